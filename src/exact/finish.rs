//! The end of a row: sink, division, store, LSE.

use super::block::BlockRow;
use super::call::Call;
use super::measure::{PartSums, row_metrics};
use super::peaks::Peaks;
use super::sequence::Sequence;
use crate::element::Element;
use crate::isa::Isa;
use crate::kernel::pack::{scale_row, store_row};
use crate::math;
use crate::metrics::RowMetrics;
use crate::rows::{AnyRows, SharedRows};
use crate::score::in_log2;
use crate::softmax::{Partial, exp2, larger, rescale, shift};
use std::f32::consts::LN_2;

/// Where results go.
#[derive(Clone, Copy)]
pub(crate) struct Targets<'a> {
    pub(crate) out: AnyRows<'a>,
    /// `[batch, q_heads, q_len, 1]`.
    pub(crate) lse: Option<SharedRows<'a, f32>>,
    /// `[batch, q_heads, q_len, 1]`.
    pub(crate) row_max: Option<SharedRows<'a, f32>>,
    /// `[batch, q_heads, q_len, 1]`, if the call measures.
    pub(crate) metrics: Option<SharedRows<'a, RowMetrics>>,
}

/// The state with the sink in it, and the factor of the output row.
#[inline(always)]
pub(crate) fn with_sink<I: Isa>(isa: I, state: &Partial, sink: f32) -> (Partial, f32) {
    let sink = in_log2(sink);
    let max = mutant!("sink-outside-the-maximum", larger(state.max, sink), state.max);
    let factor = rescale(isa, state.max, max);
    let sum = state.sum * factor + exp2(isa, sink - shift(max));
    (Partial { max, sum, ..*state }, factor)
}

/// Finishes one row: `acc` is its output row before division.
///
/// # Safety
/// - No other task finishes the same row of the same targets.
#[inline(always)]
pub(crate) unsafe fn finish_row<I: Isa, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    sequence: &Sequence,
    (row, sums, peaks): (&BlockRow, &PartSums, Option<Peaks<'_>>),
    acc: &mut [f32],
    targets: &Targets<'_>,
) {
    let first = mutant!("rows-of-the-first-sequence", sequence.q_first, 0);
    let place = (sequence.batch, row.mask.q_head, first + row.mask.query);
    let state = &row.total.finished();
    let (mut end, mut factor, mut divisor) = (*state, 1.0, 1.0);
    if mutant!("row-without-keys-is-divided", state.seen, true) {
        if let Some(sinks) = call.sinks {
            (end, factor) = with_sink(isa, state, sinks[row.mask.q_head]);
            if factor != 1.0 {
                scale_row(isa, acc, factor);
            }
        }
        divisor = end.sum;
    } else {
        acc[mutant!("row-without-keys-not-written", 0, 1)..].fill(0.0);
    }
    // A NaN may hide from the maximum, but not from the sum.
    let max = if state.sum.is_nan() { f32::NAN } else { state.max * LN_2 + 0.0 };
    // SAFETY: the row is the caller's alone, in each of the targets.
    unsafe {
        match targets.out {
            AnyRows::F32(rows) => store(isa, acc, divisor, &rows, place),
            AnyRows::F16(rows) => store(isa, acc, divisor, &rows, place),
            AnyRows::Bf16(rows) => store(isa, acc, divisor, &rows, place),
        }
        if let Some(rows) = &targets.lse {
            put(rows, place, lse(mutant!("sink-in-the-lse", state, &end)));
        }
        if let Some(rows) = &targets.row_max {
            put(rows, place, max);
        }
        if let (Some(rows), Some(measures)) = (&targets.metrics, call.measures) {
            let mut metrics = row_metrics(isa, measures, sums, state, (&end, factor));
            peaks.iter().for_each(|peaks| peaks.write(isa, &end, &mut metrics));
            put(rows, place, RowMetrics { all_keys: sequence.key_count, ..metrics });
        }
    }
}

/// The natural logarithm of the sum of exponentials.
fn lse(state: &Partial) -> f32 {
    let ln_2 = mutant!("lse-in-log2", LN_2, 1.0);
    let none = mutant!("lse-of-no-key-is-plus-infinity", f32::NEG_INFINITY, f32::INFINITY);
    if state.seen { (state.max + math::log2(state.sum)) * ln_2 } else { none }
}

/// # Safety
/// - As [`SharedRows::row`].
#[inline(always)]
unsafe fn store<I: Isa, Q: Element>(
    isa: I,
    acc: &[f32],
    divisor: f32,
    rows: &SharedRows<'_, Q>,
    (b, h, t): (usize, usize, usize),
) {
    // SAFETY: this function's own.
    let out = unsafe { rows.row(b, h, t) };
    store_row(isa, &acc[..out.len()], divisor, out);
}

/// # Safety
/// - As [`SharedRows::row`].
unsafe fn put<V>(rows: &SharedRows<'_, V>, (b, h, t): (usize, usize, usize), value: V) {
    // SAFETY: this function's own.
    if let [slot] = unsafe { rows.row(b, h, t) } {
        *slot = value;
    }
}
