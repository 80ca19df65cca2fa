//! [`AttentionConfig`]: what a module is, but for its weights.
//!
//! Names and defaults of the first nine fields are those of the specification's constructor, which wraps Keras's
//! `MultiHeadAttention`; the rest are ours. With the feature `serde` it reads and writes JSON and the like: fields that are
//! not given have their defaults, unknown ones are an error.

use super::activation::Activation;
use super::norm::check_epsilon;
use crate::dropout::Dropout;
use crate::element::DType;
use crate::error::AttentionError;
use crate::exact::call::{check_scale, check_softcap, default_scale};

/// What a [`MultiHeadAttention`](super::MultiHeadAttention) is, but for its weights; those also say how large the inputs
/// are.
///
/// ```
/// use lucid_attention::module::{Activation, AttentionConfig};
///
/// let config = AttentionConfig { num_heads: 8, activation: Some(Activation::Gelu), ..AttentionConfig::default() };
/// config.validate()?;
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Size of a head's queries and keys.
    pub key_dim: usize,
    /// Size of a head's values; `key_dim` if not given.
    pub value_dim: Option<usize>,
    /// The share of probabilities that training ([`ModuleInputs::training`](super::ModuleInputs::training)) drops, in [0, 1).
    pub dropout: f32,
    /// Whether the four projections have a bias.
    pub use_bias: bool,
    /// Whether a layer norm comes last.
    pub use_layer_norm: bool,
    /// Whether the query is added to the projected (and activated) output, whose size has to be the query's then.
    pub use_residual: bool,
    /// What the projected output goes through; [`Activation::Linear`], that is nothing, if not given.
    pub activation: Option<Activation>,
    /// A name for the caller's use.
    pub name: String,
    /// Key and value heads, a divisor of `num_heads`, which is the default. Query head `h` uses KV head
    /// `h / (num_heads / kv_heads)`.
    pub kv_heads: Option<usize>,
    /// Size of the output; that of the query if not given.
    pub output_dim: Option<usize>,
    /// Whether queries attend to no key after them, whatever the call's mask says.
    pub causal: bool,
    /// How many keys before itself a query may attend to; all if not given.
    pub window_left: Option<usize>,
    /// How many keys after itself a query may attend to; all if not given.
    pub window_right: Option<usize>,
    /// The factor of the scores; `1 / sqrt(key_dim)` if not given.
    pub scale: Option<f32>,
    /// Caps the scores smoothly, see [`Inputs::softcap`](crate::Inputs::softcap).
    pub softcap: Option<f32>,
    /// What the layer norm adds to a variance: 1e-6, as in the specification; BERT has 1e-12, PyTorch 1e-5. With 0, outputs
    /// that are all alike (a single one always is) become NaN.
    pub layer_norm_epsilon: f32,
    /// What the projections' weights are stored as; sums are `f32` in any case.
    pub weights_dtype: DType,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        Self {
            num_heads: 4,
            key_dim: 32,
            value_dim: None,
            dropout: 0.0,
            use_bias: true,
            use_layer_norm: true,
            use_residual: true,
            activation: None,
            name: "multi_head_attention".to_owned(),
            kv_heads: None,
            output_dim: None,
            causal: false,
            window_left: None,
            window_right: None,
            scale: None,
            softcap: None,
            layer_norm_epsilon: 1e-6,
            weights_dtype: DType::F32,
        }
    }
}

impl AttentionConfig {
    /// Checks every field by itself and against the others.
    ///
    /// # Errors
    /// [`AttentionError::Value`] (or [`AttentionError::SizeOverflow`]) that names the first field that is wrong.
    pub fn validate(&self) -> Result<(), AttentionError> {
        let value = |operand, expected, got| Err(AttentionError::Value { operand, expected, got });
        let sizes = [
            ("num_heads", self.num_heads),
            ("key_dim", self.key_dim),
            ("value_dim", self.value_dim()),
            ("kv_heads", self.kv_heads()),
            ("output_dim", self.output_dim.unwrap_or(1)),
        ];
        if let Some((operand, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return value(operand, "at least 1", "0".to_owned());
        }
        if !self.num_heads.is_multiple_of(self.kv_heads()) {
            let got = format!("{} with num_heads = {}", self.kv_heads(), self.num_heads);
            return value("kv_heads", "a divisor of num_heads", got);
        }
        let products = [
            ("key_dim", self.num_heads.checked_mul(self.key_dim)),
            ("value_dim", self.num_heads.checked_mul(self.value_dim())),
            ("output_dim", self.output_dim.or(Some(0))),
        ];
        if let Some((operand, _)) =
            products.into_iter().find(|(_, size)| size.is_none_or(|size| size > isize::MAX as usize))
        {
            return Err(AttentionError::SizeOverflow { operand });
        }
        Dropout { rate: self.dropout, seed: 0 }.validate()?;
        check_epsilon(self.layer_norm_epsilon)?;
        self.scale.map_or(Ok(()), check_scale)?;
        self.softcap.map_or(Ok(()), check_softcap)
    }

    /// Size of a head's values.
    pub fn value_dim(&self) -> usize {
        self.value_dim.unwrap_or(self.key_dim)
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.num_heads)
    }

    /// The factor of the scores.
    pub fn scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| default_scale(self.key_dim))
    }

    /// What the projected output goes through.
    pub fn activation(&self) -> Activation {
        self.activation.unwrap_or_default()
    }
}
