//! The gauge of exponential features: what each is relative to, so that nothing overflows and no sum vanishes.
//!
//! ```text
//! key      b_jf = exp2(t_jf - C_f)                   C_f = t_jf of the key that last raised it
//! query    a_if = exp2(t_if + C_f - M_i)             M_i = max_f (t_if + C_f)
//! output   o_i  = sum_f a_if S_f / sum_f a_if z_f    S_f = sum_j b_jf v_j    z_f = sum_j b_jf
//! ```
//!
//! `C` and `M` cancel in the quotient: exactly, but for rounding, and without an epsilon. The key that raised `C_f` has
//! `b_jf = 1`, so `z_f >= 1`; the feature at the maximum has `a_if = 1`; all terms are at least 0: **the denominator is
//! at least 1**. What underflows is below 2^-126 of it.
//!
//! A key raises `C_f` only where it exceeds it by more than 16, a factor of 65 536 that sums can bear, because each time
//! `S_f` and `z_f` have to be rescaled. A causal row must not know of later keys, not even by a rounding, so a run of
//! tokens that share a gauge ends before the next key that raises it. Of small keys the first one does and then hardly any; the
//! larger keys and the more features there are, the more of the first keys do. Such runs weigh their queries each by its own
//! gauge, but map none of them again: exponents know nothing of it.

use super::features::vectors;
use super::state::{UnitState, rescale};
use crate::isa::{Isa, Kernel, Level};
use crate::math::vector;
use crate::panels::PANEL;
use crate::softmax::exp2;
use std::ops::Range;

/// How much larger than its gauge, in log2, a feature may be.
const HEADROOM: f32 = 16.0;

/// Bits of some columns.
#[inline(always)]
pub(crate) fn bits(columns: &Range<usize>) -> u64 {
    let below = |end: usize| if end >= 64 { u64::MAX } else { (1 << end) - 1 };
    below(columns.end) & !below(columns.start)
}

/// Turns exponents of keys into features, for as many of the columns as share a gauge, and returns where these end. The
/// gauge is raised for the first column; for all of them, which are then one run, if not `causal`.
pub(crate) fn advance(
    level: Level,
    exponents: &mut [f32],
    columns: Range<usize>,
    causal: bool,
    (state, v_stride): (&mut UnitState<'_>, usize),
) -> usize {
    level.dispatch(Advance { exponents, columns, causal, state, v_stride })
}

/// Turns exponents of keys into features under a gauge, unless one of the columns raises it; returns whether none does.
pub(crate) fn keep(level: Level, exponents: &mut [f32], columns: Range<usize>, gauge: &[f32]) -> bool {
    level.dispatch(Keep { exponents, columns, gauge })
}

struct Keep<'a> {
    exponents: &'a mut [f32],
    columns: Range<usize>,
    gauge: &'a [f32],
}

impl Kernel for Keep<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> bool {
        let Keep { exponents, columns, gauge } = self;
        let kept = first_above(isa, exponents, &columns, gauge) == columns.end;
        if kept {
            take_powers(isa, exponents, gauge, columns);
        }
        kept
    }
}

struct Advance<'a, 's> {
    exponents: &'a mut [f32],
    columns: Range<usize>,
    causal: bool,
    state: &'a mut UnitState<'s>,
    v_stride: usize,
}

impl Kernel for Advance<'_, '_> {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> usize {
        let Advance { exponents, columns, causal, state, v_stride } = self;
        let first = columns.start;
        let mut end = first_above(isa, exponents, &columns, state.gauge);
        if mutant!("gauge-of-later-keys", !causal, true) {
            if end < columns.end {
                raise(isa, exponents, columns.clone(), state, v_stride);
            }
            end = columns.end;
        } else if end == first {
            raise(isa, exponents, first..first + 1, state, v_stride);
            end = first_above(isa, exponents, &(first + 1..columns.end), state.gauge);
        }
        take_powers(isa, exponents, state.gauge, first..end);
        end
    }
}

/// `exp2(t - gauge)` of some columns.
#[inline(always)]
fn take_powers<I: Isa>(isa: I, exponents: &mut [f32], gauge: &[f32], columns: Range<usize>) {
    let bits = bits(&columns);
    for (row, &gauge) in exponents.chunks_exact_mut(PANEL).zip(gauge) {
        for column in vectors::<I>(&columns).step_by(I::LANES) {
            let row = &mut row[column..];
            let exponent = isa.load(row);
            let power = vector::exp2(isa, isa.sub(exponent, isa.splat(gauge)));
            isa.store(isa.select(isa.mask((bits >> column) as u32), power, exponent), row);
        }
    }
}

/// The first column that exceeds the gauge of some feature by more than the headroom; the end if none does.
#[inline(always)]
fn first_above<I: Isa>(isa: I, exponents: &[f32], columns: &Range<usize>, gauge: &[f32]) -> usize {
    let kept = bits(columns);
    for column in vectors::<I>(columns).step_by(I::LANES) {
        let mut some = 0;
        for (row, &gauge) in exponents.chunks_exact(PANEL).zip(gauge) {
            some |= isa.bits(isa.lt(isa.splat(gauge + HEADROOM), isa.load(&row[column..])));
        }
        let above = u64::from(some) << column & kept;
        if above != 0 {
            return above.trailing_zeros() as usize;
        }
    }
    columns.end
}

/// Raises the gauge where some of the columns exceed it, to the largest of them.
#[inline(always)]
fn raise<I: Isa>(
    isa: I,
    exponents: &[f32],
    columns: Range<usize>,
    state: &mut UnitState<'_>,
    v_stride: usize,
) {
    for (feature, row) in exponents.chunks_exact(PANEL).enumerate().take(state.gauge.len()) {
        let mut max = f32::NEG_INFINITY;
        for &exponent in &row[columns.clone()] {
            max = if exponent > max { exponent } else { max };
        }
        let old = state.gauge[feature];
        if max > old + HEADROOM {
            rescale(isa, state, feature, v_stride, exp2(isa, old - max));
            state.gauge[feature] = max;
        }
    }
}
