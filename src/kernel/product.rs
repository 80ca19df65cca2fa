//! The inner product of the register tiles: what a step of a chain is.
//!
//! | | factor (broadcast) | stored (lanes) | a step |
//! |---|---|---|---|
//! | [`Fma`] | `f32` | any storage type | `acc = fma(factor, stored, acc)` |
//! | [`Dot`] | two `bf16` | pairs of `bf16` | `acc = acc + factor[0] * stored[0] + factor[1] * stored[1]` |

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
    type Stored: Copy;
    /// A vector of either.
    type V: Copy;
    /// What of a weight's step is removed.
    type Guard: Copy;
    /// What a finished score is still to be multiplied by, if anything.
    type Scale: Copy;

    fn splat(isa: I, factor: Self::Factor) -> Self::V;
    fn load(isa: I, src: &[Self::Stored]) -> Self::V;
    /// The same from `at` on, where `src` may end early (the rest is zero).
    fn load_padded(isa: I, src: &[Self::Stored], at: usize) -> Self::V;
    fn zero(isa: I) -> Self::V;
    fn mul_add(isa: I, factor: Self::V, stored: Self::V, acc: I::F) -> I::F;
    fn finish(isa: I, score: I::F, scale: Self::Scale) -> I::F;
    fn guard(isa: I, weight: Self::V) -> Self::Guard;
    /// [`Product::mul_add`] without removed keys: neither their value nor its sign can show.
    fn mul_add_kept(isa: I, guard: Self::Guard, weight: Self::V, stored: Self::V, acc: I::F) -> I::F;
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

    #[inline(always)]
    fn splat(isa: I, factor: f32) -> I::F {
        isa.splat(factor)
    }
    #[inline(always)]
    fn load(isa: I, src: &[T]) -> I::F {
        T::load(isa, src)
    }
    #[inline(always)]
    fn load_padded(isa: I, src: &[T], at: usize) -> I::F {
        load_padded(isa, src, at)
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

/// The bf16 dot-product tier's: two products per step. Of a pair with one removed key, that key's weight and value count
/// as +0; a pair with two is no step.
pub(crate) struct Dot;

impl<I: Bf16Dot> Product<I> for Dot {
    type Factor = Pair;
    type Stored = Pair;
    type V = I::Pairs;
    /// The halves that are kept, and whether there is one.
    type Guard = (I::Pairs, I::M);
    type Scale = f32;

    #[inline(always)]
    fn splat(isa: I, factor: Pair) -> I::Pairs {
        isa.splat_pair(factor)
    }
    #[inline(always)]
    fn load(isa: I, src: &[Pair]) -> I::Pairs {
        isa.load_pairs(src)
    }
    #[inline(always)]
    fn load_padded(isa: I, src: &[Pair], at: usize) -> I::Pairs {
        // Rows of packed pairs are padded to whole vectors.
        isa.load_pairs(&src[at..])
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
