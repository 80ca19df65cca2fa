//! The inner product of the register tiles: what a step of a chain is.
//!
//! | | factor (broadcast) | stored (lanes) | a step |
//! |---|---|---|---|
//! | [`Fma`] | `f32` | any storage type | `acc = fma(factor, stored, acc)` |
//! | [`Dot`] | two `bf16` | pairs of `bf16`, or two rows of them | `acc = acc + factor[0] * stored[0] + factor[1] * stored[1]` |

use super::load_padded;
use crate::element::Element;
use crate::isa::{Bf16Dot, Isa};
use half::bf16;
use std::marker::PhantomData;

/// Two halves of a 32-bit lane.
pub(crate) type Pair = [bf16; 2];

/// The weight that marks a removed key: weights are `exp2(..)`, never negative (nor -0), or NaN. Exact in bf16.
pub(crate) const REMOVED: f32 = -1.0;

/// [`REMOVED`], twice.
const REMOVED_PAIR: Pair = [bf16::from_f32_const(REMOVED); 2];

/// A step of a chain, on vectors of `LANES` sums.
pub(crate) trait Product<I: Isa> {
    /// The operand that is broadcast: queries and weights.
    type Factor: Copy;
    /// The operand whose lanes are summed side by side: keys and values.
    type Stored: Copy + 'static;
    /// A vector of either.
    type V: Copy;
    /// What of a weight's step is removed.
    type Guard: Copy;
    /// What a finished score is still to be multiplied by, if anything.
    type Scale: Copy;

    /// Stored rows (of a panel, or of values) that a step takes: 1 or 2.
    const ROWS: usize;
    /// Stands in for the second row of a step, where there is none: zeros, for the widest tile.
    const NO_ROW: &'static [Self::Stored];

    fn splat(isa: I, factor: Self::Factor) -> Self::V;
    /// A step's rows from `at` on; nobody looks at the second where it takes one.
    fn load(isa: I, rows: [&[Self::Stored]; 2], at: usize) -> Self::V;
    /// The same from their start, where they may end early (the rest is zero).
    fn load_padded(isa: I, rows: [&[Self::Stored]; 2]) -> Self::V;
    fn zero(isa: I) -> Self::V;
    fn mul_add(isa: I, factor: Self::V, stored: Self::V, acc: I::F) -> I::F;
    fn finish(isa: I, score: I::F, scale: Self::Scale) -> I::F;
    fn guard(isa: I, weight: Self::V) -> Self::Guard;
    /// [`Product::mul_add`] without removed keys: neither their value nor its sign can show.
    fn mul_add_kept(isa: I, guard: Self::Guard, weight: Self::V, stored: Self::V, acc: I::F) -> I::F;
}

/// A step of a chain against keys held as rows, a few columns of which are gathered into registers at a time.
pub(crate) trait ColumnProduct<I: Isa>: Product<I, Stored: Element> {
    /// As [`columns`](crate::element::sealed::Storage::columns), [`Product::ROWS`] of them to a vector.
    fn columns(isa: I, src: &[Self::Stored], stride: usize, rows: usize) -> [Self::V; 8];
    /// Zero in place of a step's second column.
    fn without_second(isa: I, columns: Self::V) -> Self::V;
}

/// The exact tier's: one fused multiply-add per step.
pub(crate) struct Fma<T>(PhantomData<T>);

impl<I: Isa, T: Element> Product<I> for Fma<T> {
    type Factor = f32;
    type Stored = T;
    type V = I::F;
    /// Where the weight is removed.
    type Guard = I::M;
    /// Queries hold it already.
    type Scale = ();

    const ROWS: usize = 1;
    const NO_ROW: &'static [T] = &[];

    #[inline(always)]
    fn splat(isa: I, factor: f32) -> I::F {
        isa.splat(factor)
    }
    #[inline(always)]
    fn load(isa: I, [row, _]: [&[T]; 2], at: usize) -> I::F {
        T::load(isa, &row[at..])
    }
    #[inline(always)]
    fn load_padded(isa: I, [row, _]: [&[T]; 2]) -> I::F {
        load_padded(isa, row, 0)
    }
    #[inline(always)]
    fn zero(isa: I) -> I::F {
        isa.splat(0.0)
    }
    #[inline(always)]
    fn mul_add(isa: I, factor: I::F, stored: I::F, acc: I::F) -> I::F {
        isa.mul_add(factor, stored, acc)
    }
    #[inline(always)]
    fn finish(_isa: I, score: I::F, (): ()) -> I::F {
        score
    }
    #[inline(always)]
    fn guard(isa: I, weight: I::F) -> I::M {
        isa.lt(weight, isa.splat(0.0))
    }
    #[inline(always)]
    fn mul_add_kept(isa: I, removed: I::M, weight: I::F, stored: I::F, acc: I::F) -> I::F {
        mutant!(
            "removed-values-weigh-zero",
            isa.select(removed, acc, isa.mul_add(weight, stored, acc)),
            isa.mul_add(isa.select(removed, isa.splat(0.0), weight), stored, acc)
        )
    }
}

impl<I: Isa, T: Element> ColumnProduct<I> for Fma<T> {
    #[inline(always)]
    fn columns(isa: I, src: &[T], stride: usize, rows: usize) -> [I::F; 8] {
        T::columns(isa, src, stride, rows)
    }
    #[inline(always)]
    fn without_second(_isa: I, columns: I::F) -> I::F {
        columns
    }
}

/// How the pairs of a [`Dot`] are stored: side by side, or as two rows of halves.
pub(crate) trait Halves: Copy + 'static {
    /// See [`Product::ROWS`].
    const ROWS: usize;
    /// See [`Product::NO_ROW`].
    const NO_ROW: &'static [Self];
    /// See [`Product::load`].
    fn load<I: Bf16Dot>(isa: I, rows: [&[Self]; 2], at: usize) -> I::Pairs;
    /// See [`Product::load_padded`].
    fn load_padded<I: Bf16Dot>(isa: I, rows: [&[Self]; 2]) -> I::Pairs;
}

/// Laid out for the tier: rows are padded to whole vectors.
impl Halves for Pair {
    const ROWS: usize = 1;
    const NO_ROW: &'static [Pair] = &[];

    #[inline(always)]
    fn load<I: Bf16Dot>(isa: I, [row, _]: [&[Pair]; 2], at: usize) -> I::Pairs {
        isa.load_pairs(&row[at..])
    }
    #[inline(always)]
    fn load_padded<I: Bf16Dot>(isa: I, [row, _]: [&[Pair]; 2]) -> I::Pairs {
        isa.load_pairs(row)
    }
}

/// As callers store them.
impl Halves for bf16 {
    const ROWS: usize = 2;
    const NO_ROW: &'static [bf16] = &[bf16::ZERO; 128];

    #[inline(always)]
    fn load<I: Bf16Dot>(isa: I, [even, odd]: [&[bf16]; 2], at: usize) -> I::Pairs {
        isa.load_zip(even, odd, at)
    }
    #[inline(always)]
    fn load_padded<I: Bf16Dot>(isa: I, [even, odd]: [&[bf16]; 2]) -> I::Pairs {
        let mut padded = [[bf16::ZERO; 32]; 2];
        if even.len() >= padded[0].len() && odd.len() >= padded[1].len() {
            return isa.load_zip(even, odd, 0);
        }
        for (row, padded) in [even, odd].into_iter().zip(&mut padded) {
            let there = row.len().min(I::LANES);
            padded[..there].copy_from_slice(&row[..there]);
        }
        isa.load_zip(&padded[0], &padded[1], 0)
    }
}

/// The bf16 dot-product tier's: two products per step. Of a pair with one removed key, that key's weight and value count
/// as +0; a pair with two is no step.
pub(crate) struct Dot<S>(PhantomData<S>);

impl<I: Bf16Dot, S: Halves> Product<I> for Dot<S> {
    type Factor = Pair;
    type Stored = S;
    type V = I::Pairs;
    /// The halves that are kept, and whether there is one.
    type Guard = (I::Pairs, I::M);
    type Scale = f32;

    const ROWS: usize = S::ROWS;
    const NO_ROW: &'static [S] = S::NO_ROW;

    #[inline(always)]
    fn splat(isa: I, factor: Pair) -> I::Pairs {
        isa.splat_pair(factor)
    }
    #[inline(always)]
    fn load(isa: I, rows: [&[S]; 2], at: usize) -> I::Pairs {
        S::load(isa, rows, at)
    }
    #[inline(always)]
    fn load_padded(isa: I, rows: [&[S]; 2]) -> I::Pairs {
        S::load_padded(isa, rows)
    }
    #[inline(always)]
    fn zero(isa: I) -> I::Pairs {
        isa.splat_pair([bf16::ZERO; 2])
    }
    #[inline(always)]
    fn mul_add(isa: I, factor: I::Pairs, stored: I::Pairs, acc: I::F) -> I::F {
        isa.dot_bf16(acc, factor, stored)
    }
    #[inline(always)]
    fn finish(isa: I, score: I::F, scale: f32) -> I::F {
        isa.mul(score, isa.splat(scale))
    }
    #[inline(always)]
    fn guard(isa: I, weight: I::Pairs) -> (I::Pairs, I::M) {
        let kept = isa.differs(weight, isa.splat_pair(REMOVED_PAIR));
        (kept, isa.any(kept))
    }
    #[inline(always)]
    fn mul_add_kept(
        isa: I,
        (kept, some): (I::Pairs, I::M),
        weight: I::Pairs,
        stored: I::Pairs,
        acc: I::F,
    ) -> I::F {
        let sum = isa.dot_bf16(acc, isa.and(weight, kept), isa.and(stored, kept));
        isa.select(some, sum, acc)
    }
}

impl<I: Bf16Dot> ColumnProduct<I> for Dot<bf16> {
    #[inline(always)]
    fn columns(isa: I, src: &[bf16], stride: usize, rows: usize) -> [I::Pairs; 8] {
        let mut columns = [isa.splat_pair([bf16::ZERO; 2]); 8];
        columns[..4].copy_from_slice(&isa.columns_pairs(src, stride, rows));
        columns
    }
    #[inline(always)]
    fn without_second(isa: I, columns: I::Pairs) -> I::Pairs {
        isa.and(columns, isa.splat_pair([bf16::from_bits(u16::MAX), bf16::ZERO]))
    }
}
