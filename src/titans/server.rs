//! [`ServerConfig`]: what the Neural Memory server says of itself, and the attention that goes with it.
//!
//! The reply of `/config`, by `GET` or `POST`:
//!
//! ```json
//! {"neural_memory_config": {"input_dim": 768, "key_dim": 128, "value_dim": 768, "query_dim": 128,
//!                           "memory_hidden_dims": [512], "gate_hidden_dims": [64], "alpha_init": -2.0,
//!                           "theta_init": -3.0, "eta_init": 2.0, "outer_learning_rate": 0.001,
//!                           "use_complex_gates": false},
//!  "attention_config": null, "titans_variant": "MAC",
//!  "supports_external_gates": true, "supports_external_projections": true}
//! ```
//!
//! Fields that are not known are left alone, as a newer server may have more; but not in `attention_config`, where they
//! would change results.

use super::StepDims;
use crate::error::AttentionError;
use crate::module::{AttentionConfig, InputDims};
use serde::{Deserialize, Serialize};

/// A variant, as the server names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Variant {
    /// [`Mac`](super::lucidia::Mac).
    Mac,
    /// [`Mag`](super::lucidia::Mag).
    Mag,
    /// [`Mal`](super::lucidia::Mal).
    Mal,
    /// The memory by itself.
    None,
}

/// The memory's own configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeuralMemoryConfig {
    /// Size of an input embedding.
    pub input_dim: usize,
    /// Of a key.
    pub key_dim: usize,
    /// Of a value, and of an answer.
    pub value_dim: usize,
    /// Of a query.
    pub query_dim: usize,
    /// Hidden layers of the memory.
    pub memory_hidden_dims: Vec<usize>,
    /// Hidden layers of the gates.
    pub gate_hidden_dims: Vec<usize>,
    /// The logit of α before anything is learned.
    pub alpha_init: f32,
    /// Of θ.
    pub theta_init: f32,
    /// Of η.
    pub eta_init: f32,
    /// What projections and gates are trained with.
    pub outer_learning_rate: f32,
    /// Whether gates have hidden layers.
    pub use_complex_gates: bool,
    /// A hidden size that some servers give.
    #[serde(default)]
    pub hidden_dim: Option<usize>,
}

/// The attention's configuration, where the server gives one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedAttention {
    /// Query heads.
    pub num_heads: usize,
    /// Size of a head's queries and keys.
    pub key_dim: usize,
    /// The share of probabilities that training drops.
    #[serde(default)]
    pub dropout: f32,
    /// Whether a layer norm comes last.
    #[serde(default = "yes")]
    pub use_layer_norm: bool,
    /// Whether the query is added.
    #[serde(default = "yes")]
    pub use_residual: bool,
    /// How often the original warns of sizes that do not fit; here they are an error.
    #[serde(default)]
    pub max_dim_mismatch_warnings: Option<usize>,
}

fn yes() -> bool {
    true
}

/// Where a configuration of attention comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionSource {
    /// The server's `attention_config`.
    Served,
    /// The memory's sizes, as `attention_config` is null: 4 heads, each a quarter of a key, as the original's engine has it.
    KeyDim,
}

/// The reply of the Neural Memory server's `/config`.
///
/// ```
/// use lucid_attention::titans::{ServerConfig, Variant};
///
/// # let reply = r#"{"neural_memory_config": {"input_dim": 768, "key_dim": 128, "value_dim": 768, "query_dim": 128,
/// #     "memory_hidden_dims": [512], "gate_hidden_dims": [64], "alpha_init": -2.0, "theta_init": -3.0, "eta_init": 2.0,
/// #     "outer_learning_rate": 0.001, "use_complex_gates": false}, "attention_config": null, "titans_variant": "MAC",
/// #     "supports_external_gates": true, "supports_external_projections": true}"#;
/// let server = ServerConfig::from_json(reply)?; // or, with the feature `http`, ServerConfig::fetch
/// let attention = server.attention()?;
/// assert_eq!((attention.num_heads, attention.key_dim), (4, 32));
/// let mac = server.variant_attention(Variant::Mac)?; // for `Mac::new`, with weights of these sizes:
/// assert_eq!((mac.output_dim, server.input_dims(Variant::Mac).value), (Some(768), 768));
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerConfig {
    /// The memory's own configuration.
    pub neural_memory_config: NeuralMemoryConfig,
    /// The attention's; null in practice.
    pub attention_config: Option<ServedAttention>,
    /// The variant in force.
    pub titans_variant: Variant,
    /// Whether an update takes gates from outside, as MAG needs.
    pub supports_external_gates: bool,
    /// Whether an update takes keys and values from outside, as MAL needs.
    pub supports_external_projections: bool,
}

impl ServerConfig {
    /// Reads and checks a reply.
    ///
    /// # Errors
    /// [`AttentionError::Service`] if it is no JSON, or a field is missing or of another type (which it names);
    /// [`AttentionError::Value`] if a number makes no sense.
    pub fn from_json(reply: &str) -> Result<Self, AttentionError> {
        let config: Self = serde_json::from_str(reply).map_err(|error| AttentionError::Service {
            operand: "/config",
            reason: format!("expected a Neural Memory server's configuration, got: {error}"),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`AttentionError::Value`] that names the first that makes no sense.
    pub fn validate(&self) -> Result<(), AttentionError> {
        let value = |operand, expected, got| Err(AttentionError::Value { operand, expected, got });
        let NeuralMemoryConfig { input_dim, key_dim, value_dim, query_dim, .. } = self.neural_memory_config;
        let memory = &self.neural_memory_config;
        let hidden = memory.memory_hidden_dims.iter().map(|&dim| ("memory_hidden_dims", dim));
        let sizes = [
            ("input_dim", input_dim),
            ("key_dim", key_dim),
            ("value_dim", value_dim),
            ("query_dim", query_dim),
        ]
        .into_iter()
        .chain(hidden)
        .chain(memory.gate_hidden_dims.iter().map(|&dim| ("gate_hidden_dims", dim)))
        .chain(memory.hidden_dim.map(|dim| ("hidden_dim", dim)));
        for (operand, size) in sizes {
            if size == 0 {
                return value(operand, "at least 1", "0".to_owned());
            }
        }
        for (operand, number) in [
            ("alpha_init", memory.alpha_init),
            ("theta_init", memory.theta_init),
            ("eta_init", memory.eta_init),
        ] {
            if !number.is_finite() {
                return value(operand, "a finite number", number.to_string());
            }
        }
        if !(0.0..f32::INFINITY).contains(&memory.outer_learning_rate) {
            let got = memory.outer_learning_rate.to_string();
            return value("outer_learning_rate", "a finite number that is not negative", got);
        }
        self.attention()?;
        Ok(())
    }

    /// Where [`ServerConfig::attention`] comes from.
    pub fn attention_source(&self) -> AttentionSource {
        match self.attention_config {
            Some(_) => AttentionSource::Served,
            None => AttentionSource::KeyDim,
        }
    }

    /// The attention's configuration: the server's, or where it gives none 4 heads of a quarter of `key_dim`, with residual
    /// and layer norm.
    ///
    /// # Errors
    /// `key_dim` cannot be cut into 4 heads, or the server's own configuration makes no sense.
    pub fn attention(&self) -> Result<AttentionConfig, AttentionError> {
        let config = match &self.attention_config {
            Some(served) => AttentionConfig {
                num_heads: served.num_heads,
                key_dim: served.key_dim,
                dropout: served.dropout,
                use_layer_norm: served.use_layer_norm,
                use_residual: served.use_residual,
                ..AttentionConfig::default()
            },
            None => {
                let (heads, key_dim) = (4, self.neural_memory_config.key_dim);
                if !key_dim.is_multiple_of(heads) {
                    let (expected, got) =
                        ("a multiple of 4, where attention_config is null", key_dim.to_string());
                    return Err(AttentionError::Value { operand: "key_dim", expected, got });
                }
                AttentionConfig { num_heads: heads, key_dim: key_dim / heads, ..AttentionConfig::default() }
            }
        };
        config.validate()?;
        Ok(config)
    }

    /// The same for a variant: with the output it needs (an answer for MAC, a value for MAL, as large as a query for MAG's
    /// gates), without residual and layer norm, which the original's variants ignore.
    ///
    /// # Errors
    /// As [`ServerConfig::attention`].
    pub fn variant_attention(&self, variant: Variant) -> Result<AttentionConfig, AttentionError> {
        let NeuralMemoryConfig { value_dim, query_dim, .. } = self.neural_memory_config;
        let output_dim = match variant {
            Variant::Mac | Variant::Mal => value_dim,
            Variant::Mag | Variant::None => query_dim,
        };
        Ok(AttentionConfig {
            output_dim: Some(output_dim),
            use_layer_norm: false,
            use_residual: false,
            ..self.attention()?
        })
    }

    /// Sizes of the vectors that go into a variant's attention.
    pub fn input_dims(&self, variant: Variant) -> InputDims {
        let NeuralMemoryConfig { key_dim, value_dim, query_dim, .. } = self.neural_memory_config;
        let value = match variant {
            Variant::Mac | Variant::Mal => value_dim,
            Variant::Mag | Variant::None => key_dim,
        };
        InputDims { query: query_dim, key: key_dim, value }
    }

    /// Sizes of a step's vectors.
    pub fn step_dims(&self) -> StepDims {
        let NeuralMemoryConfig { input_dim, key_dim, value_dim, query_dim, .. } = self.neural_memory_config;
        StepDims { x: input_dim, key: key_dim, value: value_dim, query: query_dim, y: value_dim }
    }
}
