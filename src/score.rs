//! From dot products to logits, in the contract's order: scale, softcap, ALiBi, bias. Masks come after
//! ([`crate::mask`]), sinks at the very end ([`crate::exact`]).
//!
//! Logits are kept in units of log2, `t = s * log2 e`, so that weights are plain `exp2`. What turns `s` into `t` is
//! folded into constants, each rounded once:
//!
//! ```text
//! q'  = q * RN(scale * log2 e)            while packing queries, so that t = q' . k
//! t   = RN(cap * log2 e) * tanh(t * RN(ln 2 / cap))
//! t   = fma(|q_pos - k_pos|, RN(-slope * log2 e), t)
//! t   = fma(bias, RN(log2 e), t)
//! ```

use crate::element::Element;
use crate::isa::Isa;
use crate::kernel::load_padded;
use crate::mask::{MaskRow, TileBits};
use crate::math;
use crate::view::{AnyView, View, with_any_view};
use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Everything that shapes scores, resolved for a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreRules<'a> {
    /// RN(scale * log2 e).
    pub(crate) factor: f32,
    softcap: Option<Softcap>,
    alibi: Option<&'a [f32]>,
    /// Stretched to all batches, heads, queries and keys.
    bias: Option<AnyView<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Softcap {
    inner: f32,
    outer: f32,
}

/// `x * log2 e`, rounded once.
pub(crate) fn in_log2(x: f32) -> f32 {
    (f64::from(x) * LOG2_E) as f32
}

impl<'a> ScoreRules<'a> {
    pub(crate) fn new(
        scale: f32,
        softcap: Option<f32>,
        alibi: Option<&'a [f32]>,
        bias: Option<AnyView<'a>>,
    ) -> Self {
        let ln_2 = mutant!("softcap-in-log2", LN_2, 1.0);
        let softcap =
            softcap.map(|cap| Softcap { inner: (ln_2 / f64::from(cap)) as f32, outer: in_log2(cap) });
        Self { factor: in_log2(scale), softcap, alibi, bias }
    }

    /// Whether [`ScoreRules::add_bias`] may remove keys.
    pub(crate) fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// Whether dot products are logits as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.softcap.is_none() && self.alibi.is_none() && self.bias.is_none()
    }

    /// Softcap, on the `columns` (multiples of 16) of a row's tile.
    #[inline(always)]
    pub(crate) fn cap<I: Isa>(&self, isa: I, scores: &mut [f32], columns: Range<usize>) {
        let Some(Softcap { inner, outer }) = self.softcap else { return };
        for scores in scores[columns].chunks_exact_mut(I::LANES) {
            let ratio = isa.mul(isa.load(scores), isa.splat(inner));
            isa.store(isa.mul(isa.splat(outer), math::vector::tanh(isa, ratio)), scores);
        }
    }

    /// ALiBi.
    #[inline(always)]
    pub(crate) fn add_alibi<I: Isa>(
        &self,
        isa: I,
        row: MaskRow,
        tile_start: usize,
        scores: &mut [f32],
        columns: Range<usize>,
    ) {
        let Some(slopes) = self.alibi else { return };
        let slope = isa.splat(-in_log2(slopes[row.q_head]));
        let steps = isa.load(&STEPS);
        for column in columns.step_by(I::LANES) {
            // Exact as long as keys are less than 2^24 positions away.
            let query = mutant!("alibi-by-index", row.q_pos, row.query as i64);
            let offset = ((tile_start + column) as i64).saturating_sub(query);
            let distance = isa.abs(isa.add(isa.splat(offset as f32), steps));
            let scores = &mut scores[column..];
            isa.store(isa.mul_add(distance, slope, isa.load(scores)), scores);
        }
    }

    /// The dense bias; clears the `bits` of keys where it is -inf.
    #[inline(always)]
    pub(crate) fn add_bias<I: Isa>(
        &self,
        isa: I,
        row: MaskRow,
        tile_start: usize,
        scores: &mut [f32],
        columns: Range<usize>,
        bits: &mut TileBits,
    ) {
        let Some(bias) = self.bias else { return };
        with_any_view!(bias, view => add_bias_row(isa, &view, row, tile_start, scores, columns, bits));
    }
}

const STEPS: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

#[inline(always)]
fn add_bias_row<I: Isa, T: Element>(
    isa: I,
    bias: &View<'_, T>,
    row: MaskRow,
    tile_start: usize,
    scores: &mut [f32],
    columns: Range<usize>,
    bits: &mut TileBits,
) {
    let step = bias.strides()[3];
    let kv_len = bias.shape()[3];
    let data = bias.from(row.sequence, row.q_head, row.query);
    let log2_e = isa.splat(LOG2_E as f32);
    let lowest = isa.splat(f32::NEG_INFINITY);
    for column in columns.step_by(I::LANES) {
        let key = tile_start + column;
        let bias = if step == 1 {
            load_padded(isa, &data[..kv_len], key)
        } else {
            let mut gathered = [T::default(); 16];
            for (lane, slot) in gathered.iter_mut().enumerate().take(kv_len.saturating_sub(key).min(16)) {
                *slot = data[(key + lane) * step];
            }
            T::load(isa, &gathered)
        };
        let scores = &mut scores[column..];
        isa.store(isa.mul_add(bias, log2_e, isa.load(scores)), scores);
        // Kept: above -inf, or NaN.
        let nan = !isa.bits(isa.lt(lowest, isa.abs(bias)));
        let kept = isa.bits(isa.lt(lowest, bias)) | mutant!("bias-of-nan-removes", nan, 0);
        let removed = !kept & (u32::MAX >> (32 - I::LANES));
        let removed = mutant!("bias-of-minus-infinity-stays", removed, 0);
        bits[column / 64] &= !(u64::from(removed) << (column % 64));
    }
}
