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
    pub(crate) fn fold<I: Isa>(&self, isa: I) -> Partial {
        let mut sum = isa.load(&self.sum);
        if I::LANES < SUM_LANES {
            sum = isa.add(sum, isa.load(&self.sum[SUM_LANES / 2..]));
        }
        Partial { max: self.max, sum: isa.reduce_add(sum), seen: self.seen }
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
        let lost = mutant!("overflowed-row-is-empty", self.seen && self.max == f32::NEG_INFINITY, false);
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
        let other_sum = mutant!("merged-sum-not-rescaled", other, 1.0);
        self.sum = first(isa, isa.mul_add(isa.splat(later.sum), isa.splat(other_sum), sum));
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
    if mutant!("minus-infinity-from-itself", max == f32::NEG_INFINITY, false) { 0.0 } else { max }
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

/// The largest allowed score of one row in `columns` (multiples of 16) of a tile; -inf if there is none. `bits` says which
/// are allowed, all if there are none. A NaN may or may not show.
#[inline(always)]
pub(crate) fn tile_max<I: Isa>(
    isa: I,
    scores: &[f32],
    columns: Range<usize>,
    bits: Option<&TileBits>,
) -> f32 {
    // As many chains as hide the latency of a maximum.
    const CHAINS: usize = 4;
    let removed = isa.splat(mutant!("masked-scores-are-finite", f32::NEG_INFINITY, -1e4));
    let mut max = [removed; CHAINS];
    match bits {
        None => {
            let mut runs = scores[columns].chunks_exact(CHAINS * I::LANES);
            for run in runs.by_ref() {
                for chain in 0..CHAINS {
                    max[chain] = isa.max(isa.load(&run[chain * I::LANES..]), max[chain]);
                }
            }
            let rest = mutant!("maximum-misses-the-tail", runs.remainder(), &[]);
            for scores in rest.chunks_exact(I::LANES) {
                max[0] = isa.max(isa.load(scores), max[0]);
            }
        }
        Some(bits) => {
            for column in columns.step_by(I::LANES) {
                let score = isa.load(&scores[column..]);
                max[0] = isa.max(isa.select(mask_at(isa, bits, column), score, removed), max[0]);
            }
        }
    }
    isa.reduce_max(isa.max(isa.max(max[0], max[1]), isa.max(max[2], max[3])))
}

/// Raises the maxima of up to 16 rows to those of a tile; returns the factors by which what they accumulated before has to
/// be rescaled. All rows at once, because one alone would be a chain of latencies.
#[inline(always)]
pub(crate) fn raise_maxima<'a, I: Isa>(
    isa: I,
    states: impl Iterator<Item = &'a mut RowState>,
    tile: &[f32; 16],
) -> [f32; 16] {
    let (mut old, mut new, mut factors) = ([0.0; 16], [0.0; 16], [1.0; 16]);
    let mut risen = false;
    for (row, state) in states.enumerate() {
        let max = larger(state.max, tile[row]);
        // Before the first maximum there is nothing to rescale.
        if max != state.max && state.max != f32::NEG_INFINITY {
            (old[row], new[row]) = (state.max, max);
            risen = true;
        }
        state.max = max;
    }
    if risen {
        for part in (0..16).step_by(I::LANES) {
            let (old, new) = (isa.load(&old[part..]), isa.load(&new[part..]));
            let (factor, _) = math::vector::exp2_nonpositive(isa, isa.sub(old, new));
            isa.store(factor, &mut factors[part..]);
        }
    }
    factors
}

/// What else is summed up while a row is weighed.
pub(crate) trait Observe<I: Isa> {
    /// Takes a vector of weights and what they are the powers of, finite but for NaN; both 0 where removed. Vector `part` of 16 columns.
    fn observe(&mut self, isa: I, part: usize, exponent: I::F, weight: I::F);
}

/// Nothing.
impl<I: Isa> Observe<I> for () {
    #[inline(always)]
    fn observe(&mut self, _isa: I, _part: usize, _exponent: I::F, _weight: I::F) {}
}

/// Turns one row's scores of a tile into weights under its maximum, in place, and adds them to its sum, rescaled by
/// `factor` first. `columns` and `bits` as in [`tile_max`].
#[inline(always)]
pub(crate) fn weigh_row<I: Isa, O: Observe<I>>(
    isa: I,
    state: &mut RowState,
    factor: f32,
    scores: &mut [f32],
    columns: Range<usize>,
    bits: Option<&TileBits>,
    observer: &mut O,
) {
    let shift = isa.splat(shift(state.max));
    let zero = isa.splat(0.0);
    let mut sum = [zero; 2];
    for part in 0..SUM_LANES / I::LANES {
        let factor = isa.splat(mutant!("sum-not-rescaled", factor, 1.0));
        sum[part] = isa.mul(isa.load(&state.sum[part * I::LANES..]), factor);
    }
    match bits {
        None => {
            state.seen = true;
            for scores in scores[columns].chunks_exact_mut(SUM_LANES) {
                for part in 0..SUM_LANES / I::LANES {
                    let scores = &mut scores[part * I::LANES..];
                    let exponent = isa.sub(isa.load(scores), shift);
                    let (weight, exponent) = math::vector::exp2_nonpositive(isa, exponent);
                    sum[part] = isa.add(sum[part], weight);
                    observer.observe(isa, part, exponent, weight);
                    let stored = mutant!("weights-in-bf16", weight, crate::mutant::through_bf16(isa, weight));
                    isa.store(stored, scores);
                }
            }
        }
        Some(bits) => {
            state.seen |= mutant!("visited-row-has-keys", bits.iter().any(|&word| word != 0), true);
            for column in columns.step_by(SUM_LANES) {
                for part in 0..SUM_LANES / I::LANES {
                    let column = column + part * I::LANES;
                    let scores = &mut scores[column..];
                    let exponent = isa.sub(isa.load(scores), shift);
                    let (weight, exponent) = math::vector::exp2_nonpositive(isa, exponent);
                    let allowed = mask_at(isa, bits, column);
                    let kept = isa.select(allowed, weight, zero);
                    sum[part] = isa.add(sum[part], kept);
                    observer.observe(isa, part, isa.select(allowed, exponent, zero), kept);
                    isa.store(isa.select(allowed, weight, isa.splat(REMOVED)), scores);
                }
            }
        }
    }
    for part in 0..SUM_LANES / I::LANES {
        isa.store(sum[part], &mut state.sum[part * I::LANES..]);
    }
}

/// The mask of a vector of columns.
#[inline(always)]
pub(crate) fn mask_at<I: Isa>(isa: I, bits: &TileBits, column: usize) -> I::M {
    isa.mask((bits[column / 64] >> (column % 64)) as u32)
}
