//! Joining attention over one set of keys with attention over another: the algebra of partial states, for users.
//!
//! ```text
//! (O, L) = merge((O1, L1), (O2, L2)):   L = ln(exp L1 + exp L2)     O = O1 exp(L1 - L) + O2 exp(L2 - L)
//! ```
//!
//! Commutative and associative within rounding, with identity (0, -inf). Kernels merge their own splits before division
//! ([`crate::exact`]), which is not this function and rounds less.

use crate::element::Element;
use crate::error::AttentionError;
use crate::isa::{Isa, Kernel, Level};
use crate::kernel::load_padded;
use crate::math;
use crate::view::{View, ViewMut};
use std::f32::consts::LN_2;

/// Merges attention over other keys, `(other, other_lse)`, into `(out, lse)`, row by row.
///
/// `out` and `other` are `[batch, q_heads, q_len, v_dim]`, `lse` and `other_lse` the `[batch, q_heads, q_len]` that
/// [`Outputs::lse`](crate::Outputs::lse) writes. Both parts must come without sinks (a sink would count twice): add it
/// at the end as a part of its own with O = 0 and L = sink.
///
/// A part without keys (L = -inf) leaves the other unchanged, bit for bit. A NaN in either L makes the row NaN. The result
/// is rounded to the storage type at each merge; keep partial results in `f32`.
///
/// ```
/// use lucid_attention::{View, ViewMut, merge};
/// let (mut out, mut lse) = ([1.0f32, 2.0], [0.5f32]);
/// let shape = [1, 1, 1, 2];
/// merge(ViewMut::new(&mut out, shape)?, &mut lse, View::new(&[3.0, 4.0], shape)?, &[0.5])?;
/// assert_eq!(out, [2.0, 3.0]);
/// assert!((lse[0] - (0.5 + 2f32.ln())).abs() < 1e-6);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
///
/// # Errors
/// Shapes differ, or `LUCID_LEVEL` names a level that is not there; nothing is written then.
pub fn merge<Q: Element>(
    out: ViewMut<'_, Q>,
    lse: &mut [f32],
    other: View<'_, Q>,
    other_lse: &[f32],
) -> Result<(), AttentionError> {
    let shape = out.shape();
    other.check_shape("other", shape)?;
    other.check_unit_stride("other")?;
    out.as_view().check_unit_stride("out")?;
    let rows = shape[..3].iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let expected = rows.ok_or(AttentionError::SizeOverflow { operand: "lse" })?;
    for (operand, got) in [("lse", lse.len()), ("other_lse", other_lse.len())] {
        if got != expected {
            return Err(AttentionError::Shape { operand, axis: "rows", expected, got });
        }
    }
    Level::detect()?.dispatch(Merge { out, lse, other, other_lse });
    Ok(())
}

/// [`merge`] of contiguous rows of `dim` numbers, on a level.
pub(crate) fn merge_on(
    level: Level,
    (out, lse): (&mut [f32], &mut [f32]),
    (other, other_lse): (&[f32], &[f32]),
    dim: usize,
) {
    let shape = [1, 1, lse.len(), dim];
    if let (Ok(out), Ok(other)) = (ViewMut::new(out, shape), View::new(other, shape)) {
        level.dispatch(Merge { out, lse, other, other_lse });
    }
}

struct Merge<'a, 'b, Q> {
    out: ViewMut<'a, Q>,
    lse: &'a mut [f32],
    other: View<'b, Q>,
    other_lse: &'b [f32],
}

impl<Q: Element> Kernel for Merge<'_, '_, Q> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Merge { mut out, lse, other, other_lse } = self;
        let [_, heads, tokens, dim] = out.shape();
        let strides = out.strides();
        for (index, (lse, &other_lse)) in lse.iter_mut().zip(other_lse).enumerate() {
            let [b, h, t] = [index / tokens / heads, index / tokens % heads, index % tokens];
            let joint = join(isa, lse, other_lse);
            if dim == 0 {
                continue;
            }
            let at = b * strides[0] + h * strides[1] + t * mutant!("merge-of-packed-rows", strides[2], dim);
            let row = &mut out.data_mut()[at..][..dim];
            let other = &other.from(b, h, t)[..dim];
            match joint {
                Joint::Own => {}
                Joint::Other => row.copy_from_slice(other),
                Joint::Both { own, factor } => merge_row(isa, row, own, other, factor),
            }
        }
    }
}

/// What a joint row is made of. A part without keys is told by its LSE, never by a factor of 0: what is NaN or infinite
/// in a part that has keys shows, however little it weighs, as it would in one call over all of them.
enum Joint {
    Own,
    Other,
    Both { own: f32, factor: f32 },
}

/// Joins the LSEs.
#[inline(always)]
fn join<I: Isa>(isa: I, lse: &mut f32, other: f32) -> Joint {
    if lse.is_nan() || other.is_nan() {
        *lse = f32::NAN;
        return Joint::Both { own: f32::NAN, factor: f32::NAN };
    }
    if mutant!("merge-of-nothing", other == f32::NEG_INFINITY, false) {
        return Joint::Own;
    }
    if *lse == f32::NEG_INFINITY {
        *lse = other;
        return Joint::Other;
    }
    let max = if other > *lse { other } else { *lse };
    let (a, b) = (exp(isa, *lse - max), exp(isa, other - max));
    let sum = a + b;
    *lse = max + math::log2(sum) * mutant!("merge-mixes-logarithms", LN_2, 1.0);
    Joint::Both { own: a / sum, factor: b / sum }
}

#[inline(always)]
fn exp<I: Isa>(isa: I, x: f32) -> f32 {
    let mut lanes = [0.0; 16];
    isa.store(math::vector::exp(isa, isa.splat(x)), &mut lanes);
    lanes[0]
}

#[inline(always)]
fn merge_row<I: Isa, Q: Element>(isa: I, row: &mut [Q], own: f32, other: &[Q], factor: f32) {
    let (own, factor) = (isa.splat(own), isa.splat(factor));
    let mut at = 0;
    for row in row.chunks_mut(I::LANES) {
        let kept = isa.mul(load_padded(isa, row, 0), own);
        let merged = isa.mul_add(load_padded(isa, other, at), factor, kept);
        let mut padded = [Q::default(); 16];
        Q::store(isa, merged, &mut padded);
        row.copy_from_slice(&padded[..row.len()]);
        at += I::LANES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    const INF: f32 = f32::INFINITY;

    /// One row of one element.
    fn merged(own: (f32, f32), other: (f32, f32)) -> (f32, f32) {
        let (mut out, mut lse) = ([own.0], [own.1]);
        let shape = [1, 1, 1, 1];
        let target = ViewMut::new(&mut out, shape).unwrap();
        merge(target, &mut lse, View::new(&[other.0], shape).unwrap(), &[other.1]).unwrap();
        (out[0], lse[0])
    }

    #[test]
    fn what_is_not_finite_shows_however_little_it_weighs() {
        for (own, other) in [((1.0, 500.0), (f32::NAN, -500.0)), ((f32::NAN, -500.0), (1.0, 500.0))] {
            assert!(merged(own, other).0.is_nan(), "{own:?} and {other:?}: an output");
        }
        assert!(merged((1.0, 500.0), (INF, -500.0)).0.is_nan(), "inf times a weight of 0, as in one call");
        for (own, other) in
            [((1.0, f32::NAN), (2.0, 0.0)), ((1.0, f32::NAN), (2.0, -INF)), ((1.0, -INF), (2.0, f32::NAN))]
        {
            let (out, lse) = merged(own, other);
            assert!(out.is_nan() && lse.is_nan(), "{own:?} and {other:?}: an LSE");
        }
    }

    #[test]
    fn a_part_without_keys_changes_no_bit() {
        assert_eq!(
            merged((-0.0, 2.0), (f32::NAN, -INF)).0.to_bits(),
            (-0.0f32).to_bits(),
            "the other is empty"
        );
        assert_eq!(
            merged((f32::NAN, -INF), (-0.0, 2.0)).0.to_bits(),
            (-0.0f32).to_bits(),
            "this one is empty"
        );
        assert_eq!(merged((0.0, -INF), (0.0, -INF)), (0.0, -INF), "both are");
    }

    #[test]
    fn strided_rows_in_half_precision() {
        let numbers = |from: f32| (0..40).map(|i| f16::from_f32(from + i as f32)).collect::<Vec<_>>();
        for shape in [[1, 2, 1, 18], [1, 1, 2, 18], [2, 1, 1, 18]] {
            let (mut out, other) = (numbers(0.0), numbers(100.0));
            let strides = [20, 20, 20, 1];
            let target = ViewMut::with_strides(&mut out, shape, strides).unwrap();
            let other = View::with_strides(&other, shape, strides).unwrap();
            merge(target, &mut [0.0; 2], other, &[0.0; 2]).unwrap();
            for (index, x) in out.iter().enumerate() {
                let mean = if index % 20 < 18 { 50.0 } else { 0.0 };
                let what = format!("{shape:?}, element {index}: a mean of two, or a gap");
                assert_eq!(x.to_f32(), mean + index as f32, "{what}");
            }
        }
    }
}
