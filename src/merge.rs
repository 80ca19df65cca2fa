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
            let (own, factor, merged) = weights(isa, *lse, other_lse);
            *lse = merged;
            if dim == 0 {
                continue;
            }
            let at = b * strides[0] + h * strides[1] + t * strides[2];
            let row = &mut out.data_mut()[at..][..dim];
            let other = &other.from(b, h, t)[..dim];
            if factor == 0.0 && own == 1.0 {
                continue;
            }
            if own == 0.0 && factor == 1.0 {
                row.copy_from_slice(other);
                continue;
            }
            merge_row(isa, row, own, other, factor);
        }
    }
}

/// The factors of both rows and the joint LSE. Exactly (1, 0) or (0, 1) if one part has no keys.
#[inline(always)]
fn weights<I: Isa>(isa: I, own: f32, other: f32) -> (f32, f32, f32) {
    if other == f32::NEG_INFINITY {
        return (1.0, 0.0, own);
    }
    if own == f32::NEG_INFINITY {
        return (0.0, 1.0, other);
    }
    let max = if other > own { other } else { own };
    let (a, b) = (exp(isa, own - max), exp(isa, other - max));
    let sum = a + b;
    (a / sum, b / sum, max + math::log2(sum) * LN_2)
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
