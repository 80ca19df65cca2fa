//! The algebra of a row: what is known of it after some of its keys, and how two parts join.
//!
//! ```text
//! state  = (max m, sum l = sum_j exp2(t_j - m), output row a[d] = sum_j exp2(t_j - m) * v[j][d])   t in units of log2
//! empty  = (-inf, 0, 0)
//! merge  = m = max(m1, m2);  l = l1 * exp2(m1 - m) + l2 * exp2(m2 - m);  a likewise
//! finish = a / l
//! ```
//!
//! The sum is kept in 16 lanes, key `j` in lane `j mod 16`, and folded 16 -> 8 -> 4 -> 2 -> 1 at the end of a split,
//! whatever the width of the vectors. Masked scores never get here: a removed key has weight 0 in the sum and is marked
//! [`REMOVED`] for the value kernel. Whether a row has any key is remembered as such (`seen`), not read off the scores:
//! a row whose attended scores all overflow to -inf is not empty but NaN, which 0 / 0 makes of it.

#![allow(clippy::needless_range_loop, reason = "vectors in registers are indexed by constants")]

use crate::isa::Isa;
use crate::kernel::product::REMOVED;
use crate::mask::TileBits;
use crate::math;
use std::ops::Range;

/// Lanes of the row sum in the order of operations.
pub(crate) const SUM_LANES: usize = 16;

/// What is known of a row within a split, besides its output row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowState {
    pub(crate) max: f32,
    pub(crate) sum: [f32; SUM_LANES],
    pub(crate) seen: bool,
}

impl RowState {
    pub(crate) const EMPTY: RowState =
        RowState { max: f32::NEG_INFINITY, sum: [0.0; SUM_LANES], seen: false };

    /// The state with its sum folded.
    #[inline(always)]
    pub(crate) fn fold(&self) -> Partial {
        let mut sum = self.sum;
        let mut half = SUM_LANES / 2;
        while half > 0 {
            for lane in 0..half {
                sum[lane] += sum[lane + half];
            }
            half /= 2;
        }
        Partial { max: self.max, sum: sum[0], seen: self.seen }
    }
}

/// A row's state over a whole split or several, besides its output row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partial {
    pub(crate) max: f32,
    pub(crate) sum: f32,
    pub(crate) seen: bool,
}

impl Partial {
    pub(crate) const EMPTY: Partial = Partial { max: f32::NEG_INFINITY, sum: 0.0, seen: false };

    /// The state at the end of a row: NaN where keys are left but every score overflowed to -inf.
    pub(crate) fn finished(self) -> Self {
        let lost = self.seen && self.max == f32::NEG_INFINITY;
        if lost { Partial { sum: f32::NAN, ..self } } else { self }
    }

    /// Joins a later part to an earlier one; returns the factors of their output rows. Neither may be empty (which
    /// would turn a -0 of the other's output into +0).
    #[inline(always)]
    pub(crate) fn merge<I: Isa>(&mut self, isa: I, later: &Partial) -> (f32, f32) {
        let max = larger(self.max, later.max);
        let own = rescale(isa, self.max, max);
        let other = rescale(isa, later.max, max);
        let sum = isa.mul(isa.splat(self.sum), isa.splat(own));
        self.sum = first(isa, isa.mul_add(isa.splat(later.sum), isa.splat(other), sum));
        self.max = max;
        (own, other)
    }
}

/// The larger; the first if either is NaN (its row is NaN through the sum, whatever the maximum).
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// What to subtract from scores whose maximum is `max`: 0 while there is none.
#[inline(always)]
pub(crate) fn shift(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The factor that takes sums from maximum `old` to `new`.
#[inline(always)]
pub(crate) fn rescale<I: Isa>(isa: I, old: f32, new: f32) -> f32 {
    if old == new { 1.0 } else { exp2(isa, old - shift(new)) }
}

/// `exp2` of one number, with the vectors' polynomial.
#[inline(always)]
pub(crate) fn exp2<I: Isa>(isa: I, x: f32) -> f32 {
    first(isa, math::vector::exp2(isa, isa.splat(x)))
}

/// The first lane.
#[inline(always)]
fn first<I: Isa>(isa: I, x: I::F) -> f32 {
    let mut lanes = [0.0; 16];
    isa.store(x, &mut lanes);
    lanes[0]
}

/// Takes one row's scores of a tile into its state and turns them into weights in place. `columns` (multiples of 16)
/// are the scores to look at; `bits` says which of them are allowed, all if there is none. Returns the factor by which
/// what was accumulated before has to be rescaled.
#[inline(always)]
pub(crate) fn softmax_row<I: Isa>(
    isa: I,
    state: &mut RowState,
    scores: &mut [f32],
    columns: Range<usize>,
    bits: Option<&TileBits>,
) -> f32 {
    match bits {
        None => {
            state.seen = true;
            softmax_units::<I, false>(isa, state, scores, columns, &TileBits::default())
        }
        Some(bits) => {
            state.seen |= bits.iter().any(|&word| word != 0);
            softmax_units::<I, true>(isa, state, scores, columns, bits)
        }
    }
}

#[inline(always)]
fn softmax_units<I: Isa, const MASKED: bool>(
    isa: I,
    state: &mut RowState,
    scores: &mut [f32],
    columns: Range<usize>,
    bits: &TileBits,
) -> f32 {
    let removed = isa.splat(f32::NEG_INFINITY);
    let scores = &mut scores[columns.clone()];

    let mut max = [removed; 2];
    for (unit, scores) in scores.chunks_exact(SUM_LANES).enumerate() {
        for part in 0..SUM_LANES / I::LANES {
            let mut score = isa.load(&scores[part * I::LANES..]);
            if MASKED {
                let column = columns.start + unit * SUM_LANES + part * I::LANES;
                score = isa.select(mask_at(isa, bits, column), score, removed);
            }
            max[part] = isa.max(score, max[part]);
        }
    }
    let tile_max = isa.reduce_max(if I::LANES == 16 { max[0] } else { isa.max(max[0], max[1]) });

    let old = state.max;
    state.max = larger(old, tile_max);
    let factor = rescale(isa, old, state.max);
    let shift = isa.splat(shift(state.max));
    let zero = isa.splat(0.0);
    let mut sum = [zero; 2];
    for part in 0..SUM_LANES / I::LANES {
        sum[part] = isa.mul(isa.load(&state.sum[part * I::LANES..]), isa.splat(factor));
    }
    for (unit, scores) in scores.chunks_exact_mut(SUM_LANES).enumerate() {
        for part in 0..SUM_LANES / I::LANES {
            let scores = &mut scores[part * I::LANES..];
            let weight = math::vector::exp2(isa, isa.sub(isa.load(scores), shift));
            if MASKED {
                let column = columns.start + unit * SUM_LANES + part * I::LANES;
                let allowed = mask_at(isa, bits, column);
                sum[part] = isa.add(sum[part], isa.select(allowed, weight, zero));
                isa.store(isa.select(allowed, weight, isa.splat(REMOVED)), scores);
            } else {
                sum[part] = isa.add(sum[part], weight);
                isa.store(weight, scores);
            }
        }
    }
    for part in 0..SUM_LANES / I::LANES {
        isa.store(sum[part], &mut state.sum[part * I::LANES..]);
    }
    factor
}

/// The mask of a vector of columns.
#[inline(always)]
pub(crate) fn mask_at<I: Isa>(isa: I, bits: &TileBits, column: usize) -> I::M {
    isa.mask((bits[column / 64] >> (column % 64)) as u32)
}
