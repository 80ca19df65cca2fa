//! The end of rows: sink, division, store, LSE.

use super::call::Call;
use super::measure::{Measured, row_metrics};
use super::rows::BlockRow;
use super::sequence::Sequence;
use crate::element::Element;
use crate::isa::Isa;
use crate::kernel::MAX_ROWS;
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

impl Targets<'_> {
    /// Whether nothing is wanted but outputs.
    fn are_outputs(&self) -> bool {
        self.lse.is_none() && self.row_max.is_none() && self.metrics.is_none()
    }
}

/// Finishes up to [`MAX_ROWS`] rows: `acc` holds their output rows before division, `stride` elements apart.
///
/// Divisors come first, of all rows, so that little stands between the divisions, which the core starts one after another
/// and does not wait for.
///
/// # Safety
/// - No other task finishes the same rows of the same targets.
#[inline(always)]
pub(crate) unsafe fn finish_rows<I: Isa, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    sequence: &Sequence,
    (rows, mut measured): (&[BlockRow], Option<Measured<'_>>),
    (acc, stride): (&mut [f32], usize),
    targets: &Targets<'_>,
) {
    let mut divisors = [1.0; MAX_ROWS];
    let plain = call.sinks.is_none() && targets.are_outputs();
    for (index, (row, acc)) in rows.iter().zip(acc.chunks_exact_mut(stride)).enumerate() {
        let mut state = row.total.finished();
        if !plain {
            // SAFETY: this function's own.
            state = unsafe {
                finish_state(isa, call, sequence, (row, state), (index, &mut measured), acc, targets)
            };
        }
        if mutant!("row-without-keys-is-divided", state.seen, true) {
            divisors[index] = state.sum;
        } else {
            acc[mutant!("row-without-keys-not-written", 0, 1)..].fill(0.0);
        }
    }
    let rows = (sequence, rows, &divisors);
    // SAFETY: this function's own.
    unsafe {
        match &targets.out {
            AnyRows::F32(out) => store_rows(isa, rows, acc, stride, out),
            AnyRows::F16(out) => store_rows(isa, rows, acc, stride, out),
            AnyRows::Bf16(out) => store_rows(isa, rows, acc, stride, out),
        }
    }
}

/// Where a row's results lie.
#[inline(always)]
fn place(sequence: &Sequence, row: &BlockRow) -> (usize, usize, usize) {
    let first = mutant!("rows-of-the-first-sequence", sequence.q_first, 0);
    (sequence.batch, row.mask.q_head, first + row.mask.query)
}

/// Takes a row's sink into its state, which it returns, and its output row, and puts what else is wanted of it.
///
/// # Safety
/// - As [`finish_rows`].
#[inline(always)]
unsafe fn finish_state<I: Isa, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    sequence: &Sequence,
    (row, state): (&BlockRow, Partial),
    (index, measured): (usize, &mut Option<Measured<'_>>),
    acc: &mut [f32],
    targets: &Targets<'_>,
) -> Partial {
    let place = place(sequence, row);
    let (mut end, mut factor) = (state, 1.0);
    if state.seen
        && let Some(sinks) = call.sinks
    {
        (end, factor) = with_sink(isa, &state, sinks[row.mask.q_head]);
        if factor != 1.0 {
            scale_row(isa, acc, factor);
        }
    }
    // A NaN may hide from the maximum, but not from the sum.
    let max = if state.sum.is_nan() { f32::NAN } else { state.max * LN_2 + 0.0 };
    // SAFETY: the row is the caller's alone, in each of the targets.
    unsafe {
        if let Some(rows) = &targets.lse {
            put(rows, place, lse(mutant!("sink-in-the-lse", &state, &end)));
        }
        if let Some(rows) = &targets.row_max {
            put(rows, place, max);
        }
        if let (Some(rows), Some(Measured { measures, sums, memory })) = (&targets.metrics, measured) {
            let mut metrics = row_metrics(isa, *measures, &sums[index].total, &state, (&end, factor));
            if measures.find_peaks()
                && let Some(peaks) = sums[index].peaks(*measures, memory.row(index))
            {
                peaks.write(isa, &end, &mut metrics);
            }
            put(rows, place, RowMetrics { all_keys: sequence.key_count, ..metrics });
        }
    }
    end
}

/// The natural logarithm of the sum of exponentials.
fn lse(state: &Partial) -> f32 {
    let ln_2 = mutant!("lse-in-log2", LN_2, 1.0);
    let none = mutant!("lse-of-no-key-is-plus-infinity", f32::NEG_INFINITY, f32::INFINITY);
    if state.seen { (state.max + math::log2(state.sum)) * ln_2 } else { none }
}

/// Divides and stores.
///
/// # Safety
/// - As [`finish_rows`].
#[inline(always)]
unsafe fn store_rows<I: Isa, Q: Element>(
    isa: I,
    (sequence, rows, divisors): (&Sequence, &[BlockRow], &[f32; MAX_ROWS]),
    acc: &[f32],
    stride: usize,
    out: &SharedRows<'_, Q>,
) {
    for ((row, &divisor), acc) in rows.iter().zip(divisors).zip(acc.chunks_exact(stride)) {
        let (b, h, t) = place(sequence, row);
        // SAFETY: this function's own.
        let out = unsafe { out.row(b, h, t) };
        store_row(isa, &acc[..out.len()], divisor, out);
    }
}

/// # Safety
/// - As [`SharedRows::row`].
unsafe fn put<V>(rows: &SharedRows<'_, V>, (b, h, t): (usize, usize, usize), value: V) {
    // SAFETY: this function's own.
    if let [slot] = unsafe { rows.row(b, h, t) } {
        *slot = value;
    }
}
