//! [`ModuleWeights`]: the numbers of a module, whatever they were called where they come from.
//!
//! ```text
//! query  [num_heads * key_dim,   query_dim]        head h has rows h * key_dim .. (h + 1) * key_dim
//! key    [kv_heads  * key_dim,   key_input_dim]
//! value  [kv_heads  * value_dim, value_input_dim]
//! output [output_dim, num_heads * value_dim]       y = x W^T + b throughout
//! ```
//!
//! `names.rs` knows what Keras, PyTorch and BERT call and how they store them.

use super::config::AttentionConfig;
use super::linear::Dense;
use crate::error::{AttentionError, check_size};

/// A projection: `y = x W^T + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseWeights {
    /// `W`, `[outputs, inputs]`, contiguous.
    pub weight: Vec<f32>,
    /// `b`, `[outputs]`.
    pub bias: Option<Vec<f32>>,
    /// Numbers of a row of the output.
    pub outputs: usize,
    /// Numbers of a row of the input.
    pub inputs: usize,
}

impl DenseWeights {
    /// As the packed layer takes it.
    pub(crate) fn dense(&self) -> Dense<'_> {
        Dense { weight: &self.weight, bias: self.bias.as_deref(), outputs: self.outputs }
    }

    /// Checks that the slices are what the sizes say and the sizes what the configuration does.
    fn check(
        &self,
        names: [&'static str; 2],
        outputs: usize,
        inputs: usize,
        use_bias: bool,
    ) -> Result<(), AttentionError> {
        let [weight, bias] = names;
        check_size(weight, "outputs", outputs, self.outputs)?;
        check_size(weight, "inputs", inputs, self.inputs)?;
        let elements = outputs.checked_mul(inputs);
        let elements = elements.ok_or(AttentionError::SizeOverflow { operand: weight })?;
        check_size(weight, "elements", elements, self.weight.len())?;
        if let (false, Some([])) = (use_bias, self.bias.as_deref()) {
            let (expected, got) = ("none, without use_bias", "one of no elements".to_owned());
            return Err(AttentionError::Value { operand: bias, expected, got });
        }
        let expected = if use_bias { outputs } else { 0 };
        check_size(bias, "elements", expected, self.bias.as_ref().map_or(0, Vec::len))
    }
}

/// Scale and shift of the layer norm, `[output_dim]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct NormWeights {
    /// What a normalised number is multiplied by.
    pub gamma: Vec<f32>,
    /// What is added then.
    pub beta: Vec<f32>,
}

/// The weights of a [`MultiHeadAttention`](super::MultiHeadAttention).
///
/// Read them by the names of [`Naming`](super::Naming) with `from_tensors` or `from_safetensors`, make some up with
/// `glorot`, or set the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleWeights {
    /// Queries of all heads, `[num_heads * key_dim, query_dim]`.
    pub query: DenseWeights,
    /// Keys of all KV heads, `[kv_heads * key_dim, key_input_dim]`.
    pub key: DenseWeights,
    /// Values of all KV heads, `[kv_heads * value_dim, value_input_dim]`.
    pub value: DenseWeights,
    /// The output, `[output_dim, num_heads * value_dim]`.
    pub output: DenseWeights,
    /// The layer norm's, if there is one.
    pub layer_norm: Option<NormWeights>,
}

/// Sizes of the vectors that go into a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct InputDims {
    /// Of a query.
    pub query: usize,
    /// Of a key.
    pub key: usize,
    /// Of a value.
    pub value: usize,
}

impl InputDims {
    /// The same for all three.
    pub fn all(dim: usize) -> Self {
        Self { query: dim, key: dim, value: dim }
    }
}

/// Outputs of the four projections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) query: usize,
    pub(crate) key: usize,
    pub(crate) value: usize,
    /// Heads side by side, which the output projection reads.
    pub(crate) context: usize,
    pub(crate) output: usize,
}

impl Columns {
    /// Of a valid configuration.
    pub(crate) fn new(config: &AttentionConfig, query_dim: usize) -> Self {
        Self {
            query: config.num_heads * config.key_dim,
            key: config.kv_heads() * config.key_dim,
            value: config.kv_heads() * config.value_dim(),
            context: config.num_heads * config.value_dim(),
            output: config.output_dim.unwrap_or(query_dim),
        }
    }
}

impl ModuleWeights {
    /// The sizes of the vectors that go in.
    pub fn input_dims(&self) -> InputDims {
        InputDims { query: self.query.inputs, key: self.key.inputs, value: self.value.inputs }
    }

    /// Checks that they are those of `config`, which is valid.
    pub(crate) fn check(&self, config: &AttentionConfig) -> Result<(), AttentionError> {
        let InputDims { query, key, value } = self.input_dims();
        let inputs = [("query weight", query), ("key weight", key), ("value weight", value)];
        if let Some((operand, _)) = inputs.into_iter().find(|&(_, inputs)| inputs == 0) {
            let got = "0".to_owned();
            return Err(AttentionError::Value { operand, expected: "at least 1 input", got });
        }
        let columns = Columns::new(config, query);
        let bias = config.use_bias;
        self.query.check(["query weight", "query bias"], columns.query, query, bias)?;
        self.key.check(["key weight", "key bias"], columns.key, key, bias)?;
        self.value.check(["value weight", "value bias"], columns.value, value, bias)?;
        self.output.check(["output weight", "output bias"], columns.output, columns.context, bias)?;
        if config.use_layer_norm != self.layer_norm.is_some() {
            let (expected, got) = if config.use_layer_norm {
                ("a scale and a shift, with use_layer_norm", "none")
            } else {
                ("none, without use_layer_norm", "some")
            };
            return Err(AttentionError::Value { operand: "layer norm", expected, got: got.to_owned() });
        }
        let norm =
            |part: fn(&NormWeights) -> &Vec<f32>| self.layer_norm.as_ref().map_or(0, |n| part(n).len());
        let expected = if config.use_layer_norm { columns.output } else { 0 };
        check_size("layer norm gamma", "elements", expected, norm(|norm| &norm.gamma))?;
        check_size("layer norm beta", "elements", expected, norm(|norm| &norm.beta))
    }
}
