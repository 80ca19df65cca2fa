//! [`Hints`]: what a caller, or a language model on its behalf, asks of a variant.

use crate::error::AttentionError;

/// What attention is to dwell on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Focus {
    /// Plain attention.
    #[default]
    Default,
    /// The last steps.
    Recency,
    /// Steps that are alike, none of them too much.
    Relevance,
    /// Older steps, gently.
    Emotional,
    /// All steps, older ones more.
    Broad,
    /// Between the last steps and all.
    Balance,
}

impl Focus {
    /// All there are.
    pub const ALL: [Focus; 6] =
        [Focus::Default, Focus::Recency, Focus::Relevance, Focus::Emotional, Focus::Broad, Focus::Balance];
}

/// How MAC shapes its logits and how much of `y` it keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum MacMode {
    /// Neither.
    #[default]
    Standard,
    /// `0.7 i/m` is added; a fifth of `y` is kept.
    RecencyFocused,
    /// Logits are divided by their deviation, if their variance is above 1.
    RelevanceFocused,
    /// `0.4 (1 - i/m)` is added.
    EmotionalRelevance,
    /// `0.6 (1 - i/m)` is added.
    BroadAssociations,
    /// `0.3 i/m` is added; three tenths of `y` are kept.
    Balanced,
}

/// What a temperature divides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum TemperatureOn {
    /// The logits.
    #[default]
    Logits,
    /// The query, before its projection: the original's MAG and MAL. Not the same, where projections have biases.
    Query,
}

/// A focus, and what overrides it for each variant.
///
/// With the feature `serde` it reads from the original's JSON:
/// `{"focus": "recency", "mac": {"context_limit": 8}, "mal": {"blend_factor": 0.4}}`. Unknown names are an error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct Hints {
    /// What attention is to dwell on.
    pub focus: Focus,
    /// For MAC.
    pub mac: MacHints,
    /// For MAG.
    pub mag: MagHints,
    /// For MAL.
    pub mal: MalHints,
}

/// What overrides the focus in MAC.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct MacHints {
    /// The most steps, at least 1.
    pub context_limit: Option<usize>,
    /// Divides logits; positive, and 1 over it finite.
    pub attention_temperature: Option<f32>,
    /// How logits are shaped.
    pub attention_mode: Option<MacMode>,
}

/// What overrides the focus in MAG.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct MagHints {
    /// The most steps, at least 1.
    pub context_limit: Option<usize>,
    /// What gates are multiplied by.
    pub gate_modifiers: GateModifiers,
}

/// Factors of gates, finite and not negative; the focus's where not given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct GateModifiers {
    /// Of α, which forgets.
    pub alpha_scale: Option<f32>,
    /// Of θ, which learns.
    pub theta_scale: Option<f32>,
    /// Of η, which keeps momentum.
    pub eta_scale: Option<f32>,
}

/// What overrides the focus in MAL.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct MalHints {
    /// The most steps, at least 1.
    pub context_limit: Option<usize>,
    /// The share of what is attended to, in [0, 1].
    pub blend_factor: Option<f32>,
    /// Divides logits; positive, and 1 over it finite.
    pub attention_temperature: Option<f32>,
}

/// A limit that a hint sets.
pub(super) fn limit(hint: Option<usize>) -> Result<Option<usize>, AttentionError> {
    if hint == Some(0) {
        let (operand, expected) = ("hints.context_limit", "at least 1 step");
        return Err(AttentionError::Value { operand, expected, got: "0".to_owned() });
    }
    Ok(hint)
}

/// The temperature that a hint sets, or the focus's.
pub(super) fn temperature(hint: Option<f32>, focus: f32) -> Result<f32, AttentionError> {
    let temperature = hint.unwrap_or(focus);
    if temperature > 0.0 && temperature.is_finite() && temperature.recip().is_finite() {
        return Ok(temperature);
    }
    let (operand, expected) =
        ("hints.attention_temperature", "a finite number above 0 with a finite inverse");
    Err(AttentionError::Value { operand, expected, got: temperature.to_string() })
}
