//! MAL, memory as a layer of learning: what the memory is told to keep, in the light of what it kept before.

use super::hints::{self, Focus, Hints, TemperatureOn};
use super::{Chosen, check_dims, with_temperature};
use crate::error::{AttentionError, check_size};
use crate::module::workspace::reserve;
use crate::module::{Activation, DenseWeights, InputDims, Linear, LinearOptions};
use crate::titans::attention::{Ask, HistoryAttention, Shaping, TitansWorkspace};
use crate::titans::{CurrentStep, StepDims};

/// Where the share `b` of what is attended to comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Blend {
    /// Focus or hint: the original's last version.
    #[default]
    Factor,
    /// A learned gate, `1 - b = σ(w [v; ṽ] + bias)`, unless a hint says otherwise: the original's first versions.
    Gate(DenseWeights),
}

/// Choices of a [`Mal`]. Read and save weights by [`DenseWeights::from_tensors`] and [`DenseWeights::to_tensors`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MalOptions {
    /// What a temperature divides.
    pub temperature: TemperatureOn,
    /// How much of what is attended to goes in.
    pub blend: Blend,
    /// A last layer, `v' = tanh(W v' + bias)`; none by default, as one without training only garbles.
    pub projector: Option<DenseWeights>,
}

/// The variant MAL: `v' = (1 - b) v + b ṽ`, where `ṽ` is attention of `q` over the history's keys and values. The memory is
/// to be updated with the step's key, as it is, and `v'`.
#[derive(Debug)]
pub struct Mal {
    attention: HistoryAttention,
    dims: StepDims,
    temperature: TemperatureOn,
    gate: Option<Linear>,
    projector: Option<Linear>,
}

/// What a call of [`Mal`] did, by the original's names.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MalMetrics {
    /// Whether there was a history, and so `v'` is not just `v`.
    pub value_modification_success: bool,
    /// Steps in the history.
    pub history_size: usize,
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
    /// The original's word for the focus.
    pub attention_mode: &'static str,
    /// `b`: the share of `ṽ`. Without a history 0.
    pub blend_factor: f32,
    /// The limit that focus or hint set.
    pub context_limit: Option<usize>,
    /// Whether it left out steps.
    pub context_limited: bool,
    /// Whether the layer's policy fitted vectors of other sizes.
    pub dimensions_aligned: bool,
    /// To what.
    pub aligned_dimension: Option<InputDims>,
    /// `|v' - v| / |v|`; none where `v` is 0, or without a history.
    pub v_change_magnitude: Option<f32>,
}

/// What a focus sets: limit, temperature, `b`, and its word.
fn row(focus: Focus) -> (Option<usize>, f32, f32, &'static str) {
    match focus {
        Focus::Default => (Some(15), 1.0, 0.5, "standard"),
        Focus::Recency => (Some(10), 0.7, 0.6, "recency_weighted"),
        Focus::Relevance => (Some(20), 1.2, 0.3, "semantic_weighted"),
        Focus::Emotional => (Some(25), 1.5, 0.2, "emotion_weighted"),
        Focus::Broad => (None, 1.8, 0.1, "broad_context"),
        Focus::Balance => (Some(15), 1.0, 0.5, "balanced"),
    }
}

impl Mal {
    /// Of this attention, for steps of these sizes.
    ///
    /// # Errors
    /// As [`Mal::with_options`].
    pub fn new(attention: impl Into<HistoryAttention>, dims: StepDims) -> Result<Self, AttentionError> {
        Self::with_options(attention, dims, MalOptions::default())
    }

    /// With these options.
    ///
    /// # Errors
    /// The attention does not take queries, keys and values of these sizes, what comes out is no value, or the layers of
    /// `options` do not fit.
    pub fn with_options(
        attention: impl Into<HistoryAttention>,
        dims: StepDims,
        options: MalOptions,
    ) -> Result<Self, AttentionError> {
        let attention = attention.into();
        let output = attention.check(Self::input_dims(dims))?;
        check_size("attention", "output_dim", dims.value, output)?;
        let MalOptions { temperature, blend, projector } = options;
        let both = dims.value.checked_mul(2).ok_or(AttentionError::SizeOverflow { operand: "gate" })?;
        let gate = match &blend {
            Blend::Factor => None,
            Blend::Gate(gate) => Some(layer("gate", gate, [1, both], Activation::Sigmoid)?),
        };
        let sizes = [dims.value, dims.value];
        let projector =
            projector.map(|dense| layer("projector", &dense, sizes, Activation::Tanh)).transpose()?;
        Ok(Self { attention, dims, temperature, gate, projector })
    }

    fn input_dims(dims: StepDims) -> InputDims {
        InputDims { query: dims.query, key: dims.key, value: dims.value }
    }

    /// Writes `v'` for a step. Without a history that is its value.
    ///
    /// Does not allocate once `workspace` has served a call as large.
    ///
    /// # Errors
    /// Sizes are not those it was made for, a hint is out of range, or the layer refuses its inputs.
    pub fn process_input(
        &self,
        step: &CurrentStep<'_>,
        hints: Option<&Hints>,
        v_prime: &mut [f32],
        workspace: &mut TitansWorkspace,
    ) -> Result<MalMetrics, AttentionError> {
        workspace.attention.clear();
        check_dims(self.dims, step)?;
        check_size("v_prime", "dim", self.dims.value, v_prime.len())?;
        let Hints { focus, mal, .. } = hints.copied().unwrap_or_default();
        let (limit, temperature, blend, attention_mode) = row(focus);
        let temperature = hints::temperature(mal.attention_temperature, temperature)?;
        let context_limit = hints::limit(mal.context_limit)?.or(limit);
        if let Some(got) = mal.blend_factor.filter(|blend| !(0.0..=1.0).contains(blend)) {
            let (operand, expected) = ("hints.blend_factor", "a number from 0 to 1");
            return Err(AttentionError::Value { operand, expected, got: got.to_string() });
        }

        let history = step.history();
        let (n, limit) = (history.len(), context_limit.unwrap_or(usize::MAX));
        let chosen = Chosen::newest(n, limit);
        let applied = chosen.count > 0;
        let v = step.step().value;
        let TitansWorkspace { attention: scratch, attended, query } = workspace;
        let (mut blend_factor, mut change) = (0.0, None);
        if applied {
            let ask = Ask {
                query: step.step().query,
                keys: chosen.rows(history.keys(), self.dims.key),
                values: chosen.rows(history.values(), self.dims.value),
                logit_scale: 1.0,
                shaping: Shaping::Plain,
            };
            let ask = with_temperature(ask, (temperature, self.temperature), query)?;
            // The value and what is attended to, side by side as the gate reads them.
            let both = reserve(attended, 2 * v.len())?;
            both[..v.len()].copy_from_slice(v);
            self.attention.attend(&ask, &mut both[v.len()..], scratch)?;
            blend_factor = match (mal.blend_factor, &self.gate) {
                (Some(blend), _) => blend,
                (None, None) => blend,
                (None, Some(gate)) => {
                    let mut kept = [0.0];
                    gate.run(both, &mut kept)?;
                    1.0 - kept[0]
                }
            };
            let (blended, attended) = both.split_at_mut(v.len());
            for (v, &attended) in blended.iter_mut().zip(&*attended) {
                *v = (1.0 - blend_factor) * *v + blend_factor * attended;
            }
            match &self.projector {
                Some(projector) => projector.run(blended, v_prime)?,
                None => v_prime.copy_from_slice(blended),
            }
            let squares = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
            let moved =
                squares(&mut v_prime.iter().zip(v).map(|(&to, &from)| f64::from(to) - f64::from(from)));
            let size = squares(&mut v.iter().map(|&x| f64::from(x)));
            change = (size > 0.0).then(|| (moved / size).sqrt() as f32);
        } else {
            v_prime.copy_from_slice(v);
        }

        let aligned = self.attention.aligned(Self::input_dims(self.dims)).filter(|_| applied);
        Ok(MalMetrics {
            value_modification_success: applied,
            history_size: n,
            history_size_used: chosen.count,
            hints_used: hints.is_some(),
            attention_focus: focus,
            attention_temperature: temperature,
            temperature_scaling: applied && temperature != 1.0,
            attention_mode,
            blend_factor,
            context_limit,
            context_limited: n > limit,
            dimensions_aligned: aligned.is_some(),
            aligned_dimension: aligned,
            v_change_magnitude: change,
        })
    }
}

/// A layer of these sizes.
fn layer(
    operand: &'static str,
    dense: &DenseWeights,
    [outputs, inputs]: [usize; 2],
    activation: Activation,
) -> Result<Linear, AttentionError> {
    check_size(operand, "outputs", outputs, dense.outputs)?;
    check_size(operand, "inputs", inputs, dense.inputs)?;
    let options = LinearOptions { activation, ..LinearOptions::default() };
    Linear::new(&dense.weight, dense.bias.as_deref(), [outputs, inputs], &options)
}
