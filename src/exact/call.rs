//! A call's operands, checked and resolved: what the engine works from.

use super::measure::Measures;
use super::sequence::{Sequence, Sequences};
use crate::cancel::CancelToken;
use crate::dropout::Dropout;
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::inputs::{Inputs, Keys};
use crate::mask::{Mask, TILE};
use crate::parallel::Spread;
use crate::problem::Problem;
use crate::score::{ScoreRules, in_log2};
use crate::view::{AnyView, View};

/// The two lengths of the order of operations that bits depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// Keys that share a running maximum: 256, or 64 or 128, which divide it.
    pub(crate) tile: usize,
    /// Keys after which sums start afresh: a multiple of `tile`.
    pub(crate) split: usize,
}

impl Order {
    /// Version 1. Tests use smaller ones to reach the edges.
    pub(crate) const VERSION_1: Order = Order { tile: TILE, split: 1024 };
}

/// Operands of a call. Storage type of queries and outputs is erased: they are touched once per block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a, T: Element> {
    pub(crate) problem: Problem,
    pub(crate) order: Order,
    pub(crate) q: AnyView<'a>,
    pub(crate) keys: Keys<'a, T>,
    pub(crate) v: View<'a, T>,
    pub(crate) mask: Mask<'a>,
    pub(crate) rules: ScoreRules<'a>,
    pub(crate) sequences: Sequences<'a>,
    pub(crate) sinks: Option<&'a [f32]>,
    /// Of a rate above 0.
    pub(crate) dropout: Option<Dropout>,
    /// What stops it.
    pub(crate) cancel: Option<&'a CancelToken>,
    /// Whether the pool's workers have just been at work.
    pub(crate) awake: bool,
    /// What to sum up for metrics.
    pub(crate) measures: Option<Measures>,
    /// An estimate of the work from sizes and masks' intervals: multiply-adds, and bytes of keys and values.
    pub(crate) work: [f64; 2],
}

impl<'a, T: Element> Call<'a, T> {
    /// Checks every operand against the problem and the others.
    pub(crate) fn new<Q: Element>(
        limits: &Problem,
        order: Order,
        inputs: &Inputs<'a, Q, T>,
    ) -> Result<Self, AttentionError> {
        let Inputs { q, k, v, ragged, .. } = *inputs;
        let [batch, _, q_len, _] = q.shape();
        let kv_len = k.shape()[2];
        check_operands(limits, inputs)?;
        let positional = inputs.mask.is_positional() || inputs.alibi.is_some();
        let sequences =
            Sequences::new([batch, q_len, kv_len], ragged, &inputs.mask, inputs.q_start, positional)?;
        let [longest_q, longest_kv] = sequences.longest();
        check_limit("q", "q_len", limits.max_q_len, longest_q)?;
        check_limit("k", "kv_len", limits.max_kv_len, longest_kv)?;
        if ragged.is_some() && matches!(k, Keys::Panels(_)) {
            return Err(AttentionError::Conflict {
                operand: "ragged batch",
                other: "KeyPanels",
                reason: "panels count keys from the start of the cache; hold one KeyPanels per sequence",
            });
        }
        let mask_shape = [sequences.count(), limits.q_heads, longest_q, longest_kv];
        let mask = check_mask(&inputs.mask, mask_shape)?;
        let rules = check_rules(inputs, limits, mask_shape)?;
        if let Some(sinks) = inputs.sinks {
            check_per_head("sinks", limits, sinks.len())?;
        }
        inputs.dropout.map_or(Ok(()), |dropout| dropout.validate())?;
        let problem = Problem { max_q_len: longest_q, max_kv_len: longest_kv, ..*limits };
        let mut call = Self {
            problem,
            order,
            q: q.into(),
            keys: k,
            v,
            mask,
            rules,
            sequences,
            sinks: inputs.sinks,
            dropout: inputs.dropout.filter(|dropout| dropout.rate > 0.0),
            cancel: inputs.cancel,
            awake: inputs.awake,
            measures: None,
            work: [0.0; 2],
        };
        call.work = call.estimate();
        Ok(call)
    }
}

impl<T: Element> Call<'_, T> {
    /// When it is spread, of a plan that is so.
    pub(crate) fn spread(&self, plan: Spread) -> Spread {
        if self.awake { plan.awake() } else { plan }
    }

    /// Whether nobody wants the answer any more.
    #[inline(always)]
    pub(crate) fn is_stopped(&self) -> bool {
        self.cancel.is_some_and(CancelToken::is_stopped)
    }

    /// How many of the first sequences stand for all, and for how many each of them.
    pub(crate) fn sequences_that_differ(&self) -> (usize, usize) {
        let count = self.sequences.count();
        let alike = self.sequences.are_alike() && !self.mask.is_per_sequence();
        if alike { (count.min(1), count) } else { (count, 1) }
    }

    /// See `work`.
    fn estimate(&self) -> [f64; 2] {
        let (counted, times) = self.sequences_that_differ();
        let (mut pairs, mut keys) = (0.0, 0.0);
        for sequence in (0..counted).map(|index| self.sequences.get(index)) {
            let Some(last) = sequence.q_len.checked_sub(1) else { continue };
            // Three rows stand for all: intervals mostly grow or move evenly, but may be short at both ends. Spans say
            // anything, so they are taken to leave all keys; blocks are counted.
            let mask = Mask { intervals: None, blocks: None, ..self.mask };
            let rows = [0, last / 2, last].map(|query| {
                let q_pos = sequence.q_start.saturating_add(query as i64);
                mask.interval(&mask.row(sequence.index, 0, query, q_pos), sequence.kv_len)
            });
            let [first, middle, last] = rows.each_ref().map(|keys| keys.len() as f64);
            let in_intervals = sequence.q_len as f64 * (first + 2.0 * middle + last) / 4.0;
            pairs +=
                self.pairs_in_blocks(&sequence).map_or(in_intervals, |visited| visited.min(in_intervals));
            let some = || rows.iter().filter(|keys| !keys.is_empty());
            let [start, end] = [some().map(|keys| keys.start).min(), some().map(|keys| keys.end).max()];
            keys += (end.unwrap_or(0) - start.unwrap_or(0)) as f64;
        }
        let times = times as f64;
        self.problem.work(times * pairs, times * keys, T::DTYPE.bytes())
    }

    /// Pairs in the blocks that a sequence's queries visit, of the mean head; `None` without a block mask.
    fn pairs_in_blocks(&self, sequence: &Sequence) -> Option<f64> {
        let blocks = self.mask.blocks?;
        let queries = sequence.q_start..sequence.q_start.saturating_add(sequence.q_len as i64);
        let of_head = |head| blocks.pairs(sequence.index, head, queries.clone());
        Some((0..blocks.heads()).map(of_head).sum::<f64>() / blocks.heads().max(1) as f64)
    }
}

/// Pairs of a query and a key in the blocks that a call's queries visit, all heads and sequences together; 0 without a block
/// mask.
pub(crate) fn visited_pairs<T: Element>(call: &Call<'_, T>) -> f64 {
    let (counted, times) = call.sequences_that_differ();
    let pairs = |index| call.pairs_in_blocks(&call.sequences.get(index)).unwrap_or(0.0);
    (0..counted).map(pairs).sum::<f64>() * times as f64 * call.problem.q_heads as f64
}

fn check_limit(
    operand: &'static str,
    axis: &'static str,
    limit: usize,
    got: usize,
) -> Result<(), AttentionError> {
    if got <= limit { Ok(()) } else { Err(AttentionError::TooLarge { operand, axis, limit, got }) }
}

fn check_per_head(operand: &'static str, problem: &Problem, got: usize) -> Result<(), AttentionError> {
    check_size(operand, "q_heads", problem.q_heads, got)
}

/// Shapes and strides of q, k and v.
fn check_operands<Q: Element, T: Element>(
    problem: &Problem,
    inputs: &Inputs<'_, Q, T>,
) -> Result<(), AttentionError> {
    let Inputs { q, k, v, .. } = *inputs;
    let [batch, q_heads, _, q_dim] = q.shape();
    let [k_batch, k_heads, kv_len, k_dim] = k.shape();
    let [v_batch, v_heads, v_len, v_dim] = v.shape();
    check_size("q", "q_heads", problem.q_heads, q_heads)?;
    check_size("q", "head_dim", problem.head_dim, q_dim)?;
    check_size("k", "batch", batch, k_batch)?;
    check_size("k", "kv_heads", problem.kv_heads, k_heads)?;
    check_size("k", "head_dim", problem.head_dim, k_dim)?;
    check_size("v", "batch", batch, v_batch)?;
    check_size("v", "kv_heads", problem.kv_heads, v_heads)?;
    check_size("v", "kv_len", kv_len, v_len)?;
    check_size("v", "v_dim", problem.v_dim, v_dim)?;
    q.check_unit_stride("q")?;
    v.check_unit_stride("v")?;
    match k {
        Keys::Rows(view) => view.check_unit_stride("k"),
        Keys::Panels(_) => Ok(()),
    }
}

/// The mask with its dense part stretched, all its lists checked.
pub(crate) fn check_mask<'a>(mask: &Mask<'a>, shape: [usize; 4]) -> Result<Mask<'a>, AttentionError> {
    mask.check_repeated()?;
    check_last_n(mask)?;
    let mut mask = *mask;
    if let Some(bounds) = mask.documents
        && !bounds.is_sorted()
    {
        return Err(AttentionError::Value {
            operand: "mask.documents",
            expected: "ascending boundaries",
            got: format!("{bounds:?}"),
        });
    }
    if let Some(intervals) = mask.intervals {
        intervals.check(shape)?;
    }
    mask.blocks.map_or(Ok(()), |blocks| blocks.check(shape))?;
    if let Some(allowed) = mask.allowed {
        mask.allowed = Some(allowed.broadcast("mask.allowed", shape)?);
    }
    Ok(mask)
}

/// Refuses a window of no keys.
pub(crate) fn check_last_n(mask: &Mask<'_>) -> Result<(), AttentionError> {
    if mask.last_n != Some(0) {
        return Ok(());
    }
    let (operand, expected) = ("mask.last_n_keys", "at least 1 key");
    Err(AttentionError::Value { operand, expected, got: "0".to_owned() })
}

/// The factor of the scores where none is given.
pub(crate) fn default_scale(head_dim: usize) -> f32 {
    (head_dim as f32).sqrt().recip()
}

pub(crate) fn check_scale(scale: f32) -> Result<(), AttentionError> {
    if in_log2(scale).is_finite() {
        return Ok(());
    }
    let (expected, got) = ("a number from -2.3e38 to 2.3e38", scale.to_string());
    Err(AttentionError::Value { operand: "scale", expected, got })
}

pub(crate) fn check_softcap(cap: f32) -> Result<(), AttentionError> {
    if (1e-30..=1e30).contains(&cap) {
        return Ok(());
    }
    let (expected, got) = ("a number from 1e-30 to 1e30", cap.to_string());
    Err(AttentionError::Value { operand: "softcap", expected, got })
}

fn check_rules<'a, Q: Element, T: Element>(
    inputs: &Inputs<'a, Q, T>,
    problem: &Problem,
    mask_shape: [usize; 4],
) -> Result<ScoreRules<'a>, AttentionError> {
    let scale = inputs.scale.unwrap_or_else(|| default_scale(problem.head_dim));
    check_scale(scale)?;
    inputs.softcap.map_or(Ok(()), check_softcap)?;
    if let Some(slopes) = inputs.alibi {
        check_per_head("alibi", problem, slopes.len())?;
    }
    let bias = inputs.bias.map(|bias| bias.broadcast("bias", mask_shape)).transpose()?;
    Ok(ScoreRules::new(scale, inputs.softcap, inputs.alibi, bias))
}
