//! [`Gates`]: from what is attended to, the three gates of a memory's update.

use crate::error::{AttentionError, check_size};
use crate::module::names::Source;
use crate::module::{Activation, DenseWeights, Linear, LinearOptions, NamedTensor, Naming};

/// The gates of a memory's update, `S = η S - θ ∇`, `M = (1 - α) M + S`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct GateValues {
    /// How much is forgotten.
    pub alpha: f32,
    /// How much is learned.
    pub theta: f32,
    /// How much momentum is kept.
    pub eta: f32,
}

/// Gates out of attention: learned weights ([`DenseGates`]), or the caller's memory server.
pub trait Gates {
    /// The size of the attention output that [`Gates::gates`] reads.
    fn attention_dim(&self) -> usize;

    /// The gates, each in [0, 1].
    ///
    /// # Errors
    /// Whatever keeps it from answering, such as [`AttentionError::Service`].
    fn gates(&self, attended: &[f32]) -> Result<GateValues, AttentionError>;
}

/// Three layers of one output each, `σ(w a + b)`.
///
/// ```
/// use lucid_attention::module::Naming;
/// use lucid_attention::titans::lucidia::{DenseGates, Gates};
///
/// let gates = DenseGates::initial(128)?; // to start training from: α = 0.119, θ = 0.047, η = 0.881
/// assert!((gates.gates(&[0.5; 128])?.alpha - 0.1192).abs() < 1e-4);
/// let saved = gates.to_tensors(Naming::Keras, "memory/");
/// assert_eq!((saved[0].name.as_str(), &saved[0].shape[..]), ("memory/alpha/kernel", &[128, 1][..]));
/// assert_eq!(DenseGates::from_tensors(Naming::Keras, "memory/", &saved)?.weights(), gates.weights());
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct DenseGates {
    /// α, θ and η.
    weights: [DenseWeights; 3],
    layer: Linear,
}

const NAMES: [&str; 3] = ["alpha", "theta", "eta"];

impl DenseGates {
    /// Of the layers of α, θ and η.
    ///
    /// # Errors
    /// They have not one output each, not the same inputs, or memory cannot be had.
    pub fn new(weights: [DenseWeights; 3]) -> Result<Self, AttentionError> {
        let inputs = weights[0].inputs;
        let operands =
            [("alpha weight", "alpha bias"), ("theta weight", "theta bias"), ("eta weight", "eta bias")];
        for (dense, (weight, bias)) in weights.iter().zip(operands) {
            check_size(weight, "outputs", 1, dense.outputs)?;
            check_size(weight, "inputs", inputs, dense.inputs)?;
            check_size(weight, "elements", inputs, dense.weight.len())?;
            check_size(bias, "elements", 1, dense.bias.as_ref().map_or(1, Vec::len))?;
        }
        let weight: Vec<f32> = weights.iter().flat_map(|dense| dense.weight.iter().copied()).collect();
        let bias = weights.each_ref().map(|dense| dense.bias.as_ref().map_or(0.0, |bias| bias[0]));
        let options = LinearOptions { activation: Activation::Sigmoid, ..LinearOptions::default() };
        let layer = Linear::new(&weight, Some(&bias), [3, inputs], &options)?;
        Ok(Self { weights, layer })
    }

    /// Weights of 0, and biases of -2, -3 and 2 as the memory starts with.
    ///
    /// # Errors
    /// `attention_dim` is 0, or memory cannot be had.
    pub fn initial(attention_dim: usize) -> Result<Self, AttentionError> {
        Self::new([-2.0, -3.0, 2.0].map(|bias| DenseWeights {
            weight: vec![0.0; attention_dim],
            bias: Some(vec![bias]),
            outputs: 1,
            inputs: attention_dim,
        }))
    }

    /// The layers called `alpha`, `theta` and `eta`, each with `prefix` in front.
    ///
    /// # Errors
    /// As [`DenseWeights::from_tensors`] and [`DenseGates::new`].
    pub fn from_tensors<D: AsRef<[f32]>>(
        naming: Naming,
        prefix: &str,
        tensors: &[NamedTensor<D>],
    ) -> Result<Self, AttentionError> {
        Self::read(naming, prefix, tensors)
    }

    /// The same from a file of `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    /// As [`DenseGates::from_tensors`], or a tensor is stored as something else.
    #[cfg(feature = "safetensors")]
    pub fn from_safetensors(
        naming: Naming,
        prefix: &str,
        file: &safetensors::SafeTensors<'_>,
    ) -> Result<Self, AttentionError> {
        Self::read(naming, prefix, file)
    }

    fn read(naming: Naming, prefix: &str, source: &(impl Source + ?Sized)) -> Result<Self, AttentionError> {
        let [alpha, theta, eta] =
            NAMES.map(|name| DenseWeights::read(naming, &format!("{prefix}{name}"), source));
        Self::new([alpha?, theta?, eta?])
    }

    /// The layers' tensors, as [`DenseGates::from_tensors`] reads them.
    pub fn to_tensors(&self, naming: Naming, prefix: &str) -> Vec<NamedTensor<Vec<f32>>> {
        let named = NAMES.iter().zip(&self.weights);
        named.flat_map(|(name, dense)| dense.tensors(naming, &format!("{prefix}{name}"))).collect()
    }

    /// A file, as bytes, of [`DenseGates::to_tensors`] in `f32`.
    ///
    /// # Errors
    /// The format cannot hold them (it can hold any but absurd sizes).
    #[cfg(feature = "safetensors")]
    pub fn to_safetensors(&self, naming: Naming, prefix: &str) -> Result<Vec<u8>, AttentionError> {
        crate::module::safetensors::serialize(&self.to_tensors(naming, prefix))
    }

    /// The layers of α, θ and η.
    pub fn weights(&self) -> &[DenseWeights; 3] {
        &self.weights
    }
}

impl Gates for DenseGates {
    fn attention_dim(&self) -> usize {
        self.layer.inputs()
    }

    fn gates(&self, attended: &[f32]) -> Result<GateValues, AttentionError> {
        let mut gates = [0.0; 3];
        check_size("attended", "dim", self.attention_dim(), attended.len())?;
        self.layer.run(attended, &mut gates)?;
        let [alpha, theta, eta] = gates;
        Ok(GateValues { alpha, theta, eta })
    }
}
