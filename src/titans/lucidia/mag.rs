//! MAG, memory-attended gates: how much the memory forgets, learns and keeps of its momentum.

use super::gates::{GateValues, Gates};
use super::hints::{self, Focus, Hints, TemperatureOn};
use super::{Chosen, check_dims, with_temperature};
use crate::error::{AttentionError, check_size};
use crate::module::InputDims;
use crate::module::workspace::reserve;
use crate::titans::attention::{Ask, HistoryAttention, Shaping, TitansWorkspace};
use crate::titans::{CurrentStep, StepDims};

/// Choices of a [`Mag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MagOptions {
    /// What a temperature divides.
    pub temperature: TemperatureOn,
    /// Whether `θ s_θ` is clamped to [0, 1] as the other gates are; not so in the original.
    pub clamp_theta: bool,
}

impl Default for MagOptions {
    fn default() -> Self {
        Self { temperature: TemperatureOn::Logits, clamp_theta: true }
    }
}

/// The variant MAG: gates of the update, `α' = clamp(α s_α)` and so on, where α, θ and η are [`Gates`] of attention of `q`
/// over the history's keys.
#[derive(Clone, Debug)]
pub struct Mag<G> {
    attention: HistoryAttention,
    gates: G,
    dims: StepDims,
    /// Of what is attended to.
    attended: usize,
    options: MagOptions,
}

/// What a call of [`Mag`] did, by the original's names.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MagMetrics {
    /// Whether there was a history, and so are gates.
    pub gate_calculation_success: bool,
    /// Steps attended to.
    pub history_size_used: usize,
    /// Whether hints were given.
    pub hints_used: bool,
    /// The focus.
    pub attention_focus: Focus,
    /// What logits (or the query) were divided by.
    pub attention_temperature: f32,
    /// Whether that is not 1.
    pub temperature_scaling: bool,
    /// The limit that focus or hint set.
    pub context_limit: Option<usize>,
    /// Whether it left out steps.
    pub context_limited: bool,
    /// Whether the layer's policy fitted vectors of other sizes.
    pub dimensions_aligned: bool,
    /// To what.
    pub aligned_dimension: Option<InputDims>,
    /// The Euclidean norm of what was attended to.
    pub attention_norm: Option<f32>,
    /// What gates are multiplied by.
    pub gate_modifiers: GateValues,
    /// Whether that, or the clamp, changed any.
    pub gates_modified: bool,
    /// The gates before.
    pub original_gates: Option<GateValues>,
    /// The gates after.
    pub calculated_gates: Option<GateValues>,
}

/// What a focus sets: limit, temperature, factors of α, θ and η.
fn row(focus: Focus) -> (Option<usize>, f32, [f32; 3]) {
    match focus {
        Focus::Default => (Some(20), 1.0, [1.0; 3]),
        Focus::Recency => (Some(15), 0.7, [1.2, 1.3, 0.9]),
        Focus::Relevance => (Some(25), 1.2, [0.8, 1.1, 0.95]),
        Focus::Balance => (Some(20), 1.0, [1.0, 1.0, 0.9]),
        Focus::Broad => (None, 1.5, [0.7, 0.9, 1.0]),
        Focus::Emotional => (Some(25), 1.3, [0.6, 1.4, 0.8]),
    }
}

impl<G: Gates> Mag<G> {
    /// Of this attention and these gates, for steps of these sizes.
    ///
    /// # Errors
    /// As [`Mag::with_options`].
    pub fn new(
        attention: impl Into<HistoryAttention>,
        gates: G,
        dims: StepDims,
    ) -> Result<Self, AttentionError> {
        Self::with_options(attention, gates, dims, MagOptions::default())
    }

    /// With these options.
    ///
    /// # Errors
    /// The attention does not take queries and keys of these sizes, or the gates not what comes out.
    pub fn with_options(
        attention: impl Into<HistoryAttention>,
        gates: G,
        dims: StepDims,
        options: MagOptions,
    ) -> Result<Self, AttentionError> {
        let attention = attention.into();
        let attended = attention.check(Self::input_dims(dims))?;
        check_size("gates", "attention_dim", attended, gates.attention_dim())?;
        Ok(Self { attention, gates, dims, attended, options })
    }

    fn input_dims(dims: StepDims) -> InputDims {
        InputDims { query: dims.query, key: dims.key, value: dims.key }
    }

    /// The gates for the update with a step, which are [`MagMetrics::calculated_gates`] too. Without a history there is
    /// nothing to say, and the memory's own gates are to be used.
    ///
    /// Does not allocate (but for the gates, if they do) once `workspace` has served a call as large.
    ///
    /// # Errors
    /// Sizes are not those it was made for, a hint is out of range, the layer refuses its inputs, or the gates are not
    /// numbers from 0 to 1 or could not be had.
    pub fn process_input(
        &self,
        step: &CurrentStep<'_>,
        hints: Option<&Hints>,
        workspace: &mut TitansWorkspace,
    ) -> Result<(Option<GateValues>, MagMetrics), AttentionError> {
        workspace.attention.clear();
        check_dims(self.dims, step)?;
        let Hints { focus, mag, .. } = hints.copied().unwrap_or_default();
        let (limit, temperature, factors) = row(focus);
        let context_limit = hints::limit(mag.context_limit)?.or(limit);
        let modifiers = mag.gate_modifiers;
        let given = [modifiers.alpha_scale, modifiers.theta_scale, modifiers.eta_scale];
        let factors = std::array::from_fn(|gate| given[gate].unwrap_or(factors[gate]));
        if let Some(got) = factors.into_iter().find(|factor| !(0.0..f32::INFINITY).contains(factor)) {
            let (operand, expected) = ("hints.gate_modifiers", "finite numbers that are not negative");
            return Err(AttentionError::Value { operand, expected, got: got.to_string() });
        }

        let history = step.history();
        let (n, limit) = (history.len(), context_limit.unwrap_or(usize::MAX));
        let chosen = Chosen::newest(n, limit);
        let applied = chosen.count > 0;
        let TitansWorkspace { attention: scratch, attended, query } = workspace;
        let (mut norm, mut original, mut calculated) = (None, None, None);
        if applied {
            let keys = chosen.rows(history.keys(), self.dims.key);
            let query_t = step.step().query;
            let ask = Ask { query: query_t, keys, values: keys, logit_scale: 1.0, shaping: Shaping::Plain };
            let ask = with_temperature(ask, (temperature, self.options.temperature), query)?;
            let attended = reserve(attended, self.attended)?;
            self.attention.attend(&ask, attended, scratch)?;
            norm = Some(attended.iter().map(|&a| f64::from(a) * f64::from(a)).sum::<f64>().sqrt() as f32);
            let gates = self.gates.gates(attended)?;
            original = Some(gates);
            calculated = Some(self.modified(gates, factors)?);
        }

        let aligned = self.attention.aligned(Self::input_dims(self.dims)).filter(|_| applied);
        let [alpha, theta, eta] = factors;
        let metrics = MagMetrics {
            gate_calculation_success: applied,
            history_size_used: chosen.count,
            hints_used: hints.is_some(),
            attention_focus: focus,
            attention_temperature: temperature,
            temperature_scaling: applied && temperature != 1.0,
            context_limit,
            context_limited: n > limit,
            dimensions_aligned: aligned.is_some(),
            aligned_dimension: aligned,
            attention_norm: norm,
            gate_modifiers: GateValues { alpha, theta, eta },
            gates_modified: calculated != original,
            original_gates: original,
            calculated_gates: calculated,
        };
        Ok((calculated, metrics))
    }

    fn modified(&self, gates: GateValues, factors: [f32; 3]) -> Result<GateValues, AttentionError> {
        let GateValues { alpha, theta, eta } = gates;
        for (operand, gate) in [("gate alpha", alpha), ("gate theta", theta), ("gate eta", eta)] {
            if !(0.0..=1.0).contains(&gate) {
                let (expected, got) = ("a number from 0 to 1", gate.to_string());
                return Err(AttentionError::Value { operand, expected, got });
            }
        }
        let theta = theta * factors[1];
        Ok(GateValues {
            alpha: (alpha * factors[0]).min(1.0),
            theta: if self.options.clamp_theta { theta.min(1.0) } else { theta },
            eta: (eta * factors[2]).min(1.0),
        })
    }
}
