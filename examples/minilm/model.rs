//! The encoder: BERT with 6 layers of 12 heads, and the mean of its last layer as the sentence's embedding.
//!
//! ```text
//! ids -> embeddings -> norm -> 6 x [ MultiHeadAttention -> Linear, GELU -> Linear -> + what came in -> LayerNorm ] -> mean
//!                                    (residual and norm      384 -> 1536       1536 -> 384
//!                                     are the module's)
//! ```

use crate::fetch::ModelFile;
use crate::text::Batch;
use crate::{Error, Result};
use lucid_attention::module::{
    Activation, AttentionConfig, DenseWeights, LayerNorm, Linear, LinearOptions, ModuleInputs, ModuleOutputs,
    ModuleWeights, ModuleWorkspace, MultiHeadAttention, NamedTensor, Naming, NormWeights, Tensor,
};
use lucid_attention::{Metrics, MetricsOptions, Ragged, RowMetrics, ScoreStage, Scores, ViewMut};
use safetensors::{Dtype, SafeTensors};
use std::time::{Duration, Instant};

pub(crate) const LAYERS: usize = 6;
pub(crate) const HEADS: usize = 12;
pub(crate) const HEAD_DIM: usize = 32;
pub(crate) const HIDDEN: usize = HEADS * HEAD_DIM;
/// Longer sentences are cut.
pub(crate) const MAX_TOKENS: usize = 256;
const INNER: usize = 4 * HIDDEN;
const POSITIONS: usize = 512;
pub(crate) const VOCABULARY: usize = 30522;
const EPSILON: f32 = 1e-12;

pub(crate) struct Encoder {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    scratch: Scratch,
}

struct Embeddings {
    /// `[VOCABULARY, HIDDEN]`.
    words: Vec<f32>,
    /// `[POSITIONS, HIDDEN]`.
    positions: Vec<f32>,
    norm: LayerNorm,
}

struct Layer {
    attention: MultiHeadAttention,
    expand: Linear,
    contract: Linear,
    norm: LayerNorm,
}

/// Tokens on their way through a layer, and what the attention module needs; kept, so that batches after the largest
/// allocate nothing here.
#[derive(Default)]
struct Scratch {
    hidden: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    workspace: ModuleWorkspace,
}

/// What to look at besides the embeddings.
#[derive(Clone, Copy, Default)]
pub(crate) struct Watch {
    pub(crate) entropy: bool,
    /// The layer whose probabilities are wanted, of a batch of one sentence.
    pub(crate) probabilities_of: Option<usize>,
}

/// What comes out for a batch; the vectors have one entry per sentence.
#[derive(Default)]
pub(crate) struct Encoded {
    /// `[HIDDEN]`, of length 1.
    pub(crate) embeddings: Vec<Vec<f32>>,
    /// Attention entropy, `[LAYERS][HEADS]`, if watched.
    pub(crate) entropy: Vec<Vec<Vec<f32>>>,
    /// `[HEADS, tokens, tokens]` at the layer that is watched.
    #[cfg_attr(not(feature = "viz"), allow(dead_code, reason = "for pictures"))]
    pub(crate) probabilities: Vec<f32>,
    pub(crate) time: Duration,
    /// The attention modules' part of it.
    pub(crate) attention_time: Duration,
}

impl Encoder {
    pub(crate) fn encode(&mut self, batch: &Batch, watch: Watch) -> Result<Encoded> {
        let start = Instant::now();
        let (tokens, sentences) = (batch.tokens(), batch.ranges().len());
        let mut encoded = Encoded { entropy: vec![Vec::new(); sentences], ..Encoded::default() };
        let metrics = watch.entropy.then(|| Metrics::new(MetricsOptions::default(), HEADS, HEADS * tokens));
        let mut metrics = metrics.transpose()?;

        let Scratch { hidden, attended, inner, workspace } = &mut self.scratch;
        self.embeddings.apply(batch, hidden)?;
        attended.resize(tokens * HIDDEN, 0.0);
        inner.resize(tokens * INNER, 0.0);
        for (index, layer) in self.layers.iter().enumerate() {
            let attention_start = Instant::now();
            // Every token attends to all tokens of its own sentence: a ragged batch, nothing is padded.
            let bounds = &batch.bounds;
            let inputs = ModuleInputs::self_attention(Tensor::new(hidden, &[tokens, HIDDEN])?)
                .ragged(Ragged { q_bounds: bounds, kv_bounds: bounds });
            let mut outputs = ModuleOutputs::new(attended);
            if let Some(metrics) = &mut metrics {
                outputs = outputs.metrics(metrics);
            }
            if watch.probabilities_of == Some(index) {
                let shape = [1, HEADS, tokens, tokens];
                encoded.probabilities.resize(shape.iter().product(), 0.0);
                let scores = ViewMut::new(&mut encoded.probabilities, shape)?;
                outputs = outputs.scores(Scores::new(ScoreStage::Softmax, scores));
            }
            layer.attention.forward_into(&inputs, outputs, workspace)?;
            encoded.attention_time += attention_start.elapsed();

            if let Some(metrics) = &metrics {
                for (range, entropy) in batch.ranges().zip(&mut encoded.entropy) {
                    let heads = metrics.rows().chunks_exact(tokens);
                    entropy.push(heads.map(|rows| mean_entropy(&rows[range.clone()])).collect());
                }
            }
            layer.expand.run(attended, inner)?;
            layer.contract.run(inner, hidden)?;
            layer.norm.run(Some(attended), hidden)?;
        }
        encoded.embeddings =
            batch.ranges().map(|tokens| pool(&hidden[tokens.start * HIDDEN..tokens.end * HIDDEN])).collect();
        encoded.time = start.elapsed();
        Ok(encoded)
    }
}

/// Of a sentence's tokens in one head, in nats: 0 means each looks at a single one, `ln(tokens)` at all alike.
fn mean_entropy(rows: &[RowMetrics]) -> f32 {
    (rows.iter().map(|row| f64::from(row.entropy)).sum::<f64>() / rows.len() as f64) as f32
}

/// The mean of a sentence's tokens, scaled to length 1.
fn pool(hidden: &[f32]) -> Vec<f32> {
    let mut embedding = vec![0.0; HIDDEN];
    for token in hidden.chunks_exact(HIDDEN) {
        add(&mut embedding, token);
    }
    // To divide by the number of tokens first would change nothing.
    let length = embedding.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    embedding.iter_mut().for_each(|x| *x /= length);
    embedding
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

impl Embeddings {
    /// The words' vectors, `[tokens, HIDDEN]`, each with that of its place.
    fn apply(&self, batch: &Batch, hidden: &mut Vec<f32>) -> Result<()> {
        hidden.clear();
        for tokens in batch.ranges() {
            for (id, position) in batch.ids[tokens].iter().zip(self.positions.chunks_exact(HIDDEN)) {
                let word = self.words.chunks_exact(HIDDEN).nth(*id as usize);
                let word = word.ok_or("tokenizer.json does not belong to this model: it has more words")?;
                hidden.extend(word.iter().zip(position).map(|(word, position)| word + position));
            }
        }
        Ok(self.norm.run(None, hidden)?)
    }
}

impl Encoder {
    /// Reads the weights out of `model.safetensors`.
    pub(crate) fn new(file: &ModelFile) -> Result<Self> {
        let tensors = read(file)?;
        let of = |error| file.unusable(error);
        Ok(Self {
            embeddings: Embeddings::new(&tensors, file)?,
            layers: (0..LAYERS)
                .map(|index| Layer::new(&tensors, index).map_err(of))
                .collect::<Result<_>>()?,
            scratch: Scratch::default(),
        })
    }
}

impl Embeddings {
    fn new(tensors: &[NamedTensor<Vec<f32>>], file: &ModelFile) -> Result<Self> {
        let table = |name: &str, rows: usize| {
            let found = tensors.iter().find(|tensor| tensor.name == format!("embeddings.{name}.weight"));
            match found.ok_or_else(|| file.unusable(format!("embeddings.{name}.weight is missing")))? {
                NamedTensor { shape, data, .. } if *shape == [rows, HIDDEN] => Ok(data.clone()),
                NamedTensor { name, shape, .. } => {
                    Err(file.unusable(format!("{name}: expected [{rows}, {HIDDEN}], got {shape:?}")))
                }
            }
        };
        let mut positions = table("position_embeddings", POSITIONS)?;
        // Sentences are not pairs here: every token has type 0, whose embedding joins the positions'.
        let types = table("token_type_embeddings", 2)?;
        positions.chunks_exact_mut(HIDDEN).for_each(|position| add(position, &types[..HIDDEN]));
        let norm = norm(tensors, "embeddings.LayerNorm").map_err(|error| file.unusable(error))?;
        Ok(Self { words: table("word_embeddings", VOCABULARY)?, positions, norm })
    }
}

impl Layer {
    fn new(tensors: &[NamedTensor<Vec<f32>>], index: usize) -> Result<Self> {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        // Residual and layer norm are on by default.
        let config = AttentionConfig {
            num_heads: HEADS,
            key_dim: HEAD_DIM,
            output_dim: Some(HIDDEN),
            layer_norm_epsilon: EPSILON,
            ..AttentionConfig::default()
        };
        let weights = ModuleWeights::from_tensors(&config, Naming::Bert, &name(""), tensors)?;
        let dense = |part: &str, sizes: [usize; 2], activation| {
            let weights = DenseWeights::from_tensors(Naming::Bert, &name(part), tensors)?;
            let got = [weights.outputs, weights.inputs];
            if got != sizes {
                return Err(format!("{}: expected {sizes:?}, got {got:?}", name(part)).into());
            }
            let options = LinearOptions { activation, ..LinearOptions::default() };
            Ok::<_, Error>(Linear::new(&weights.weight, weights.bias.as_deref(), sizes, &options)?)
        };
        Ok(Self {
            attention: MultiHeadAttention::new(config, &weights)?,
            expand: dense("intermediate.dense", [INNER, HIDDEN], Activation::Gelu)?,
            contract: dense("output.dense", [HIDDEN, INNER], Activation::Linear)?,
            norm: norm(tensors, &name("output.LayerNorm"))?,
        })
    }
}

fn norm(tensors: &[NamedTensor<Vec<f32>>], name: &str) -> Result<LayerNorm> {
    let weights = NormWeights::from_tensors(Naming::Bert, name, tensors)?;
    let norm = LayerNorm::new(weights, EPSILON, None, None)?;
    match norm.dim() {
        HIDDEN => Ok(norm),
        dim => Err(format!("{name}: expected {HIDDEN} numbers, got {dim}").into()),
    }
}

/// The tensors of numbers, by the names that they have in PyTorch.
fn read(file: &ModelFile) -> Result<Vec<NamedTensor<Vec<f32>>>> {
    let tensors = SafeTensors::deserialize(&file.bytes).map_err(|error| file.unusable(error))?;
    let numbers = tensors.iter().filter(|(_, tensor)| tensor.dtype() == Dtype::F32);
    let named = numbers.map(|(name, tensor)| NamedTensor {
        name: name.to_owned(),
        shape: tensor.shape().to_vec(),
        data: tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
    });
    Ok(named.collect())
}
