//! [`HistoryAttention`]: one query over steps of a history, by a layer or on the vectors as they are.

use crate::error::{AttentionError, check_size};
use crate::exact::call::default_scale;
use crate::inputs::{Inputs, QueryStart};
use crate::module::policy::Operand;
use crate::module::workspace::{Attention, Buffer, reserve};
use crate::module::{InputDims, ModuleInputs, ModuleOutputs, ModuleWorkspace, MultiHeadAttention, Tensor};
use crate::outputs::{Outputs, ScoreStage, Scores};
use crate::plan::{Plan, PlanOptions};
use crate::problem::Problem;
use crate::view::{View, ViewMut};
use std::sync::Arc;

/// How a variant attends to the history.
#[derive(Clone, Debug)]
pub enum HistoryAttention {
    /// By a layer, with its projections and whatever follows them; where the layer masks by position, the query has that of
    /// the newest step it attends to. Variants may share one.
    Layer(Arc<MultiHeadAttention>),
    /// On queries, keys and values as they are: each cut into heads, `softmax(q k / sqrt(key_dim / heads)) v` of each, heads
    /// side by side. Nothing is copied.
    Identity {
        /// A divisor of the sizes of keys and values.
        heads: usize,
        /// Instruction set and threads.
        plan: PlanOptions,
    },
}

impl HistoryAttention {
    /// On the vectors as they are.
    pub fn identity(heads: usize) -> Self {
        Self::Identity { heads, plan: PlanOptions::default() }
    }
}

impl From<MultiHeadAttention> for HistoryAttention {
    fn from(layer: MultiHeadAttention) -> Self {
        Self::Layer(Arc::new(layer))
    }
}

impl From<Arc<MultiHeadAttention>> for HistoryAttention {
    fn from(layer: Arc<MultiHeadAttention>) -> Self {
        Self::Layer(layer)
    }
}

/// The scratch of one variant's calls, one at a time.
///
/// Empty at first; calls that are no larger than earlier ones of the same variant allocate nothing. As with
/// [`ModuleWorkspace`], results do not depend on what it served before, but variants that take turns with one make it plan
/// anew.
#[derive(Debug, Default)]
pub struct TitansWorkspace {
    pub(crate) attention: AttentionScratch,
    /// What is attended to, where it is not the result.
    pub(crate) attended: Buffer,
    /// A query divided by a temperature.
    pub(crate) query: Buffer,
}

/// What [`HistoryAttention::attend`] needs.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    module: ModuleWorkspace,
    plans: Attention,
    /// Keys and values that are not neighbours, as a layer takes them.
    gathered: [Buffer; 2],
    bias: Buffer,
    weights: Buffer,
    /// Heads and steps of the last call.
    shape: [usize; 2],
}

impl TitansWorkspace {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The probabilities of the last call, `[heads, steps]`, oldest step first; empty if it had no history to attend to, or
    /// failed before it had any.
    pub fn weights(&self) -> &[f32] {
        self.attention.weights()
    }
}

impl AttentionScratch {
    pub(crate) fn weights(&self) -> &[f32] {
        let [heads, steps] = self.shape;
        &self.weights[..heads * steps]
    }

    /// A call begins: there is nothing yet.
    pub(crate) fn clear(&mut self) {
        self.shape = [0; 2];
    }

    /// `-sum w ln max(w, 1e-10)` in nats, the mean over heads.
    pub(crate) fn entropy(&self) -> f32 {
        let [heads, _] = self.shape;
        let bits = |&w: &f32| -f64::from(w) * f64::from(crate::math::log2(w.max(1e-10)));
        let bits: f64 = self.weights().iter().map(bits).sum();
        (bits * std::f64::consts::LN_2 / heads as f64) as f32
    }
}

/// Rows of a history, `step` rows from one to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    /// From the first row on.
    pub(crate) data: &'a [f32],
    pub(crate) dim: usize,
    pub(crate) step: usize,
    pub(crate) count: usize,
}

impl<'a> Rows<'a> {
    /// One behind the other, as a layer takes them.
    fn tensor<'t>(self, gathered: &'t mut Buffer) -> Result<Tensor<'t>, AttentionError>
    where
        'a: 't,
    {
        let Self { data, dim, step, count } = self;
        if step == 1 {
            return Tensor::new(&data[..count * dim], &[count, dim]);
        }
        let rows = reserve(gathered, count * dim)?;
        for (into, row) in rows.chunks_exact_mut(dim).zip(data.chunks(step * dim)) {
            into.copy_from_slice(&row[..dim]);
        }
        Tensor::new(rows, &[count, dim])
    }

    /// Each cut into heads, where it is.
    fn heads(self, heads: usize) -> Result<View<'a, f32>, AttentionError> {
        let Self { data, dim, step, count } = self;
        let head = dim / heads;
        View::with_strides(data, [1, heads, count, head], [0, head, step * dim, 1])
    }
}

/// What is done to logits once they are divided by the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shaping {
    Plain,
    /// Adds `strength * i / n` to step `i` of `n`, oldest first.
    TowardNewest {
        strength: f32,
    },
    /// Adds `strength * (1 - i / n)`.
    TowardOldest {
        strength: f32,
    },
    /// Divides a head's logits by their standard deviation, if their variance is above 1. They are then off by a few
    /// `2^-24` of the largest there was, over the deviation.
    UnitVariance,
}

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Logits, for another run: a layer does not count it.
    Logits,
    /// The answer, and the weights it was made of.
    Answer,
}

/// A call: one query over some steps, of which there is at least one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) keys: Rows<'a>,
    pub(crate) values: Rows<'a>,
    pub(crate) logit_scale: f32,
    pub(crate) shaping: Shaping,
}

impl HistoryAttention {
    /// Checks that it takes vectors of these sizes, and says what size comes out.
    pub(crate) fn check(&self, dims: InputDims) -> Result<usize, AttentionError> {
        match self {
            Self::Layer(layer) => {
                let expected = layer.input_dims();
                let policy = &layer.policies().wrong_dim;
                policy.check(Operand::Query, expected.query, dims.query)?;
                policy.check(Operand::Key, expected.key, dims.key)?;
                policy.check(Operand::Value, expected.value, dims.value)?;
                Ok(layer.output_dim())
            }
            &Self::Identity { heads, plan } => {
                check_size("query", "dim", dims.key, dims.query)?;
                for (operand, dim) in [("key", dims.key), ("value", dims.value)] {
                    if heads == 0 || !dim.is_multiple_of(heads) {
                        let (expected, got) =
                            ("a size that is a multiple of heads", format!("{dim} with {heads}"));
                        return Err(AttentionError::Value { operand, expected, got });
                    }
                }
                Plan::with_options(&identity_problem(heads, dims.key, dims.value, 1), &plan)?;
                Ok(dims.value)
            }
        }
    }

    /// The sizes that vectors of these are fitted to, if any is, by a layer that was told to.
    pub(crate) fn aligned(&self, dims: InputDims) -> Option<InputDims> {
        match self {
            Self::Layer(layer) => Some(layer.input_dims()).filter(|&fitted| fitted != dims),
            Self::Identity { .. } => None,
        }
    }

    fn heads(&self) -> usize {
        match self {
            Self::Layer(layer) => layer.config().num_heads,
            Self::Identity { heads, .. } => *heads,
        }
    }

    /// Attends, and leaves the probabilities in `scratch`. Says whether a head's logits were divided by their deviation.
    pub(crate) fn attend(
        &self,
        ask: &Ask<'_>,
        out: &mut [f32],
        scratch: &mut AttentionScratch,
    ) -> Result<bool, AttentionError> {
        let steps = ask.keys.count;
        let heads = self.heads();
        let mut bias = std::mem::take(&mut scratch.bias);
        let result = self.attend_biased(ask, out, scratch, &mut bias, [heads, steps]);
        scratch.bias = bias;
        result
    }

    fn attend_biased(
        &self,
        ask: &Ask<'_>,
        out: &mut [f32],
        scratch: &mut AttentionScratch,
        bias: &mut Buffer,
        [heads, steps]: [usize; 2],
    ) -> Result<bool, AttentionError> {
        let mut normalised = false;
        let ratio = |i: usize| i as f32 / steps as f32;
        let bias_heads = match ask.shaping {
            Shaping::Plain => 0,
            Shaping::TowardNewest { strength } => {
                let bias = reserve(bias, steps)?;
                bias.iter_mut().enumerate().for_each(|(i, bias)| *bias = strength * ratio(i));
                1
            }
            Shaping::TowardOldest { strength } => {
                let bias = reserve(bias, steps)?;
                bias.iter_mut().enumerate().for_each(|(i, bias)| *bias = strength * (1.0 - ratio(i)));
                1
            }
            Shaping::UnitVariance => {
                let shaped = reserve(bias, heads * steps)?;
                // What logits are is known after a run of its own. If any have to change, the bias of the second is what
                // all of them become, with a scale of 0: to add what they lack would lose the digits of large ones.
                self.run(ask, None, Pass::Logits, out, scratch)?;
                let heads_of_logits = scratch.weights().chunks_exact(steps);
                for (logits, shaped) in heads_of_logits.zip(shaped.chunks_exact_mut(steps)) {
                    let (mean, factor) = unit_variance(logits);
                    normalised |= factor.is_some();
                    for (shaped, &s) in shaped.iter_mut().zip(logits) {
                        *shaped = ((f64::from(s) - mean) * factor.unwrap_or(1.0)) as f32;
                    }
                }
                if normalised { heads } else { 0 }
            }
        };
        let ask = if normalised { &Ask { logit_scale: 0.0, ..*ask } } else { ask };
        let bias = match bias_heads {
            0 => None,
            heads => Some(View::new(&bias[..heads * steps], [1, heads, 1, steps])?),
        };
        self.run(ask, bias, Pass::Answer, out, scratch)?;
        Ok(normalised)
    }

    /// One run, with its logits or weights left in `scratch`.
    fn run(
        &self,
        ask: &Ask<'_>,
        bias: Option<View<'_, f32>>,
        pass: Pass,
        out: &mut [f32],
        scratch: &mut AttentionScratch,
    ) -> Result<(), AttentionError> {
        scratch.clear();
        let AttentionScratch { module, plans, gathered: [for_keys, for_values], weights, shape, .. } =
            scratch;
        let Ask { query, keys, values, logit_scale, .. } = *ask;
        let (heads, steps) = (self.heads(), keys.count);
        let weights = reserve(weights, heads * steps)?;
        let stage = match pass {
            Pass::Logits => ScoreStage::Biased,
            Pass::Answer => ScoreStage::Softmax,
        };
        let scores = Scores::new(stage, ViewMut::new(weights, [1, heads, 1, steps])?);
        match self {
            Self::Layer(layer) => {
                let query = Tensor::new(query, &[query.len()])?;
                let inputs = ModuleInputs::new(query, keys.tensor(for_keys)?, values.tensor(for_values)?)
                    .q_start(QueryStart::BottomRight)
                    .logit_scale(logit_scale);
                let inputs = match bias {
                    Some(bias) => inputs.bias(bias),
                    None => inputs,
                };
                let outputs = ModuleOutputs { counted: pass == Pass::Answer, ..ModuleOutputs::new(out) };
                layer.forward_into(&inputs, outputs.scores(scores), module)?;
            }
            &Self::Identity { heads, plan } => {
                let query = Rows { data: query, dim: query.len(), step: 1, count: 1 };
                let scale = default_scale(keys.dim / heads) * logit_scale;
                let inputs =
                    Inputs::new(query.heads(heads)?, keys.heads(heads)?, values.heads(heads)?).scale(scale);
                let inputs = match bias {
                    Some(bias) => inputs.bias(bias),
                    None => inputs,
                };
                let problem = identity_problem(heads, keys.dim, values.dim, steps);
                let out = ViewMut::new(out, [1, heads, 1, values.dim / heads])?;
                let (plan, workspace) = plans.plan(&problem, &plan)?;
                plan.run(&inputs, Outputs::new(out).scores(scores), workspace)?;
            }
        }
        *shape = [heads, steps];
        Ok(())
    }
}

fn identity_problem(heads: usize, key_dim: usize, value_dim: usize, steps: usize) -> Problem {
    Problem { v_dim: value_dim / heads, ..Problem::new(heads, key_dim / heads, 1, steps) }
}

/// The mean of a head's logits, and 1 over their standard deviation if their variance is above 1; without steps that the
/// layer masks, whose logits are -inf.
fn unit_variance(logits: &[f32]) -> (f64, Option<f64>) {
    let left = || logits.iter().filter(|&&s| s != f32::NEG_INFINITY).map(|&s| f64::from(s));
    let n = left().count() as f64;
    let mean = left().sum::<f64>() / n;
    let variance = left().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
    (mean, (variance > 1.0).then(|| 1.0 / variance.sqrt()))
}
