//! The encoder: BERT with 6 layers of 12 heads, and the mean of its last layer as the sentence's embedding.

use crate::Result;
use crate::attention::{self, Attention};
use crate::fetch::ModelFile;
use crate::ops::{LayerNorm, Linear, add, gelu, normalize};
use crate::text::Batch;
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
const VOCABULARY: usize = 30522;

pub(crate) struct Encoder {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    attention: Attention,
}

struct Embeddings {
    /// `[VOCABULARY, HIDDEN]`.
    words: Vec<f32>,
    /// `[POSITIONS, HIDDEN]`.
    positions: Vec<f32>,
    norm: LayerNorm,
}

struct Layer {
    /// Queries, keys and values in one product.
    qkv: Linear,
    project: Linear,
    attention_norm: LayerNorm,
    expand: Linear,
    contract: Linear,
    output_norm: LayerNorm,
}

/// What comes out for a batch; the vectors have one entry per sentence.
pub(crate) struct Encoded {
    /// `[HIDDEN]`, of length 1.
    pub(crate) embeddings: Vec<Vec<f32>>,
    /// Attention entropy, `[LAYERS][HEADS]`.
    pub(crate) entropy: Vec<Vec<Vec<f32>>>,
    /// `[HEADS, tokens, tokens]` of the first sentence at the watched layer; empty if none is.
    #[cfg_attr(not(feature = "viz"), allow(dead_code, reason = "for pictures"))]
    pub(crate) probabilities: Vec<f32>,
    /// For the embeddings, without the entropy, which looks at all probabilities once more.
    pub(crate) time: Duration,
    /// The attention's part of it.
    pub(crate) attention_time: Duration,
}

impl Encoder {
    /// Keeps the probabilities of the first sentence at the layer `watched`.
    pub(crate) fn encode(&mut self, batch: &Batch, watched: Option<usize>) -> Result<Encoded> {
        let start = Instant::now();
        let (mut attention_time, mut entropy_time) = (Duration::ZERO, Duration::ZERO);
        let mut entropy = vec![Vec::with_capacity(LAYERS); batch.ranges().count()];
        let mut kept = Vec::new();

        let mut hidden = self.embeddings.apply(batch)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = layer.qkv.apply(&hidden);

            let attention_start = Instant::now();
            let context = self.attention.attend(&qkv, batch)?;
            attention_time += attention_start.elapsed();

            let entropy_start = Instant::now();
            for (tokens, entropy) in batch.ranges().zip(&mut entropy) {
                let qkv = &qkv[tokens.start * 3 * HIDDEN..tokens.end * 3 * HIDDEN];
                let probabilities = self.attention.probabilities(qkv)?;
                entropy.push(attention::entropy(&probabilities, tokens.len()));
                if watched == Some(index) && tokens.start == 0 {
                    kept = probabilities;
                }
            }
            entropy_time += entropy_start.elapsed();

            add(&mut hidden, &layer.project.apply(&context));
            layer.attention_norm.apply(&mut hidden);

            let mut inner = layer.expand.apply(&hidden);
            gelu(&mut inner)?;
            add(&mut hidden, &layer.contract.apply(&inner));
            layer.output_norm.apply(&mut hidden);
        }
        let embeddings =
            batch.ranges().map(|tokens| pool(&hidden[tokens.start * HIDDEN..tokens.end * HIDDEN])).collect();
        let time = start.elapsed() - entropy_time;
        Ok(Encoded { embeddings, entropy, probabilities: kept, time, attention_time })
    }
}

/// The mean of a sentence's tokens, scaled to length 1.
fn pool(hidden: &[f32]) -> Vec<f32> {
    let mut embedding = vec![0.0; HIDDEN];
    for token in hidden.chunks_exact(HIDDEN) {
        add(&mut embedding, token);
    }
    normalize(&mut embedding); // to divide by the number of tokens first would change nothing
    embedding
}

impl Embeddings {
    fn apply(&self, batch: &Batch) -> Result<Vec<f32>> {
        let mut hidden = Vec::with_capacity(batch.tokens() * HIDDEN);
        for tokens in batch.ranges() {
            for (id, position) in batch.ids[tokens].iter().zip(self.positions.chunks_exact(HIDDEN)) {
                let word = self.words.chunks_exact(HIDDEN).nth(*id as usize);
                let word = word.ok_or("tokenizer.json does not belong to this model: it has more words")?;
                hidden.extend(word.iter().zip(position).map(|(word, position)| word + position));
            }
        }
        self.norm.apply(&mut hidden);
        Ok(hidden)
    }
}

impl Encoder {
    /// Reads the weights out of `model.safetensors`.
    pub(crate) fn new(file: &ModelFile) -> Result<Self> {
        let weights =
            Weights { tensors: SafeTensors::deserialize(&file.bytes).map_err(|e| file.unusable(e))?, file };
        let layers = (0..LAYERS).map(|index| Layer::new(&weights, index)).collect::<Result<_>>()?;
        Ok(Self { embeddings: Embeddings::new(&weights)?, layers, attention: Attention::new()? })
    }
}

impl Embeddings {
    fn new(weights: &Weights) -> Result<Self> {
        let mut positions = weights.tensor("embeddings.position_embeddings.weight", &[POSITIONS, HIDDEN])?;
        // Sentences are not pairs here: every token has type 0, whose embedding joins the positions'.
        let types = weights.tensor("embeddings.token_type_embeddings.weight", &[2, HIDDEN])?;
        positions.chunks_exact_mut(HIDDEN).for_each(|position| add(position, &types[..HIDDEN]));
        Ok(Self {
            words: weights.tensor("embeddings.word_embeddings.weight", &[VOCABULARY, HIDDEN])?,
            positions,
            norm: weights.layer_norm("embeddings.LayerNorm")?,
        })
    }
}

impl Layer {
    fn new(weights: &Weights, index: usize) -> Result<Self> {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let mut qkv = Linear { weight: Vec::new(), bias: Vec::new() };
        for part in ["query", "key", "value"] {
            let linear = weights.linear(&name(&format!("attention.self.{part}")), HIDDEN, HIDDEN)?;
            qkv.weight.extend(linear.weight);
            qkv.bias.extend(linear.bias);
        }
        Ok(Self {
            qkv,
            project: weights.linear(&name("attention.output.dense"), HIDDEN, HIDDEN)?,
            attention_norm: weights.layer_norm(&name("attention.output.LayerNorm"))?,
            expand: weights.linear(&name("intermediate.dense"), INNER, HIDDEN)?,
            contract: weights.linear(&name("output.dense"), HIDDEN, INNER)?,
            output_norm: weights.layer_norm(&name("output.LayerNorm"))?,
        })
    }
}

/// The tensors of the file, by the names that they have in PyTorch.
struct Weights<'a> {
    tensors: SafeTensors<'a>,
    file: &'a ModelFile,
}

impl Weights<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensors.tensor(name).map_err(|error| self.file.unusable(error))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            let (dtype, got) = (tensor.dtype(), tensor.shape());
            return Err(self.file.unusable(format!("{name}: expected F32 {shape:?}, got {dtype:?} {got:?}")));
        }
        let (numbers, _) = tensor.data().as_chunks();
        Ok(numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        Ok(Linear {
            weight: self.tensor(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: self.tensor(&format!("{name}.bias"), &[outputs])?,
        })
    }

    fn layer_norm(&self, name: &str) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: self.tensor(&format!("{name}.weight"), &[HIDDEN])?,
            bias: self.tensor(&format!("{name}.bias"), &[HIDDEN])?,
        })
    }
}
