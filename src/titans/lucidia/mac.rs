//! MAC, memory as context: the memory's answer, in the light of the answers before it.

use super::hints::{self, Focus, Hints, MacMode};
use super::{Chosen, check_dims};
use crate::error::{AttentionError, check_size};
use crate::module::InputDims;
use crate::titans::attention::{Ask, HistoryAttention, Shaping, TitansWorkspace};
use crate::titans::{CurrentStep, StepDims};

/// Choices of a [`Mac`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacOptions {
    /// The most steps it ever looks at, the newest: 20 in the original.
    pub max_history: usize,
}

impl Default for MacOptions {
    fn default() -> Self {
        Self { max_history: 20 }
    }
}

/// The variant MAC: `y_final = ρ y + (1 - ρ) ŷ`, where `ŷ` is attention of `q` over the history's keys and ys.
#[derive(Clone, Debug)]
pub struct Mac {
    attention: HistoryAttention,
    dims: StepDims,
    options: MacOptions,
}

/// What a call of [`Mac`] did, by the original's names.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MacMetrics {
    /// Whether there was a history to attend to.
    pub attention_applied: bool,
    /// Whether `ŷ` is part of the output: the same.
    pub attended_output_generated: bool,
    /// Whether the output is `y` as it came, for want of a history.
    pub fallback_mode: bool,
    /// Steps attended to.
    pub history_size_used: usize,
    /// Whether hints were given.
    pub hints_used: bool,
    /// The focus.
    pub attention_focus: Focus,
    /// What logits were divided by.
    pub attention_temperature: f32,
    /// Whether that is not 1.
    pub temperature_scaling: bool,
    /// How logits were shaped.
    pub attention_mode: MacMode,
    /// Whether a limit keeps the newest steps, not some of all.
    pub recency_bias: bool,
    /// The limit that focus or hint set.
    pub context_limit: Option<usize>,
    /// Whether it left out steps.
    pub context_limited: bool,
    /// Whether the layer's policy fitted vectors of other sizes.
    pub dimensions_aligned: bool,
    /// To what.
    pub aligned_dimension: Option<InputDims>,
    /// Whether newer steps were favoured.
    pub recency_bias_applied: bool,
    /// By how much, at most.
    pub recency_bias_strength: Option<f32>,
    /// Whether older steps were favoured.
    pub historical_bias_applied: bool,
    /// By how much, at most.
    pub historical_bias_strength: Option<f32>,
    /// Whether a head's logits were divided by their deviation.
    pub variance_normalization_applied: bool,
    /// Whether some of `y` was kept.
    pub output_blending_applied: bool,
    /// How much: `ρ`.
    pub original_output_ratio: f32,
    /// `-sum w ln max(w, 1e-10)` in nats, the mean over heads: 0 to `ln history_size_used`.
    pub attention_weights_entropy: Option<f32>,
}

/// What a focus sets: temperature, mode, whether limits keep the newest.
fn row(focus: Focus) -> (f32, MacMode, bool) {
    match focus {
        Focus::Default => (1.0, MacMode::Standard, true),
        Focus::Recency => (0.8, MacMode::RecencyFocused, true),
        Focus::Relevance => (1.2, MacMode::RelevanceFocused, false),
        Focus::Emotional => (1.5, MacMode::EmotionalRelevance, false),
        Focus::Broad => (2.0, MacMode::BroadAssociations, false),
        Focus::Balance => (1.0, MacMode::Balanced, true),
    }
}

/// The limit of a focus, with `n` steps in the history.
fn focus_limit(focus: Focus, n: usize) -> Option<usize> {
    match focus {
        Focus::Recency => Some((n / 2).max(10)),
        Focus::Balance => Some((n - n.div_ceil(3)).max(15)), // n / 1.5, rounded down
        _ => None,
    }
}

/// What a mode does to logits, and `ρ`.
fn shaping(mode: MacMode) -> (Shaping, f32) {
    match mode {
        MacMode::Standard => (Shaping::Plain, 0.0),
        MacMode::RecencyFocused => (Shaping::TowardNewest { strength: 0.7 }, 0.2),
        MacMode::RelevanceFocused => (Shaping::UnitVariance, 0.0),
        MacMode::EmotionalRelevance => (Shaping::TowardOldest { strength: 0.4 }, 0.0),
        MacMode::BroadAssociations => (Shaping::TowardOldest { strength: 0.6 }, 0.0),
        MacMode::Balanced => (Shaping::TowardNewest { strength: 0.3 }, 0.3),
    }
}

impl Mac {
    /// Of this attention (a layer, or [`HistoryAttention::identity`]), for steps of these sizes.
    ///
    /// # Errors
    /// As [`Mac::with_options`].
    pub fn new(attention: impl Into<HistoryAttention>, dims: StepDims) -> Result<Self, AttentionError> {
        Self::with_options(attention, dims, MacOptions::default())
    }

    /// With these options.
    ///
    /// # Errors
    /// The attention does not take queries, keys and ys of these sizes, or what comes out is no `y`; or it may look at no
    /// step.
    pub fn with_options(
        attention: impl Into<HistoryAttention>,
        dims: StepDims,
        options: MacOptions,
    ) -> Result<Self, AttentionError> {
        let attention = attention.into();
        let output = attention.check(Self::input_dims(dims))?;
        check_size("attention", "output_dim", dims.y, output)?;
        if options.max_history == 0 {
            let (operand, expected) = ("max_history", "at least 1 step");
            return Err(AttentionError::Value { operand, expected, got: "0".to_owned() });
        }
        Ok(Self { attention, dims, options })
    }

    fn input_dims(dims: StepDims) -> InputDims {
        InputDims { query: dims.query, key: dims.key, value: dims.y }
    }

    /// Writes `y_final` for a step that the memory answered with `y`. Without a history that is `y`.
    ///
    /// Does not allocate once `workspace` has served a call as large. The order of operations is fixed, so results do not
    /// depend on threads or workspaces.
    ///
    /// # Errors
    /// Sizes are not those it was made for, a hint is out of range, or the layer refuses its inputs.
    pub fn process_input(
        &self,
        step: &CurrentStep<'_>,
        y: &[f32],
        hints: Option<&Hints>,
        y_final: &mut [f32],
        workspace: &mut TitansWorkspace,
    ) -> Result<MacMetrics, AttentionError> {
        workspace.attention.clear();
        check_dims(self.dims, step)?;
        check_size("y", "dim", self.dims.y, y.len())?;
        check_size("y_final", "dim", self.dims.y, y_final.len())?;
        let Hints { focus, mac, .. } = hints.copied().unwrap_or_default();
        let (temperature, mode, recency_bias) = row(focus);
        let temperature = hints::temperature(mac.attention_temperature, temperature)?;
        let mode = mac.attention_mode.unwrap_or(mode);
        let context_limit = hints::limit(mac.context_limit)?.or(focus_limit(focus, step.history().len()));

        let history = step.history().recent(self.options.max_history);
        let (n, limit) = (history.len(), context_limit.unwrap_or(usize::MAX));
        let chosen = if recency_bias { Chosen::newest(n, limit) } else { Chosen::spread(n, limit) };
        let (shaping, ratio) = shaping(mode);
        let applied = chosen.count > 0;
        let mut normalised = false;
        if applied {
            let ask = Ask {
                query: step.step().query,
                keys: chosen.rows(history.keys(), self.dims.key),
                values: chosen.rows(history.ys(), self.dims.y),
                logit_scale: 1.0 / temperature,
                shaping,
            };
            normalised = self.attention.attend(&ask, y_final, &mut workspace.attention)?;
            if ratio > 0.0 {
                for (attended, &y) in y_final.iter_mut().zip(y) {
                    *attended = ratio * y + (1.0 - ratio) * *attended;
                }
            }
        } else {
            y_final.copy_from_slice(y);
        }

        let aligned = self.attention.aligned(Self::input_dims(self.dims)).filter(|_| applied);
        let strength = |toward_newest: bool| match shaping {
            Shaping::TowardNewest { strength } if applied && toward_newest => Some(strength),
            Shaping::TowardOldest { strength } if applied && !toward_newest => Some(strength),
            _ => None,
        };
        let ratio = if applied { ratio } else { 0.0 };
        Ok(MacMetrics {
            attention_applied: applied,
            attended_output_generated: applied,
            fallback_mode: !applied,
            history_size_used: chosen.count,
            hints_used: hints.is_some(),
            attention_focus: focus,
            attention_temperature: temperature,
            temperature_scaling: applied && temperature != 1.0,
            attention_mode: mode,
            recency_bias,
            context_limit,
            context_limited: n > limit,
            dimensions_aligned: aligned.is_some(),
            aligned_dimension: aligned,
            recency_bias_applied: strength(true).is_some(),
            recency_bias_strength: strength(true),
            historical_bias_applied: strength(false).is_some(),
            historical_bias_strength: strength(false),
            variance_normalization_applied: normalised,
            output_blending_applied: ratio > 0.0,
            original_output_ratio: ratio,
            attention_weights_entropy: applied.then(|| workspace.attention.entropy()),
        })
    }
}
