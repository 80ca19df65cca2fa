//! Weighted sums of values: `acc[r][d] += sum_j p[r][j] * v[j][d]`, one chain of steps over ascending `j` for every
//! output.

use super::Stride;
use super::prefetch::{AheadOfValues, Near};
use super::product::Product;
use super::score::{split_rows, takes_three};
use crate::isa::Isa;
use crate::tile::PAIRED_ROWS;
use std::ops::Range;

/// Values as rows (of keys, or of pairs of keys), `stride` elements apart, from the first on.
#[derive(Clone, Copy)]
pub(crate) struct ValueRows<'a, T, D = usize, A = Near> {
    pub(crate) data: &'a [T],
    pub(crate) stride: D,
    pub(crate) v_dim: usize,
    pub(crate) ahead: A,
    /// Whether [`PAIRED_ROWS`] rows of weights go through them two at a time, whose tile is twice as wide.
    pub(crate) in_pairs: bool,
}

impl<'a, T, D> ValueRows<'a, T, D> {
    /// Values that lie in a cache.
    #[inline(always)]
    pub(crate) fn cached(data: &'a [T], stride: D, v_dim: usize) -> Self {
        Self { data, stride, v_dim, ahead: Near::Nothing, in_pairs: false }
    }

    /// The same, asking for something else.
    #[inline(always)]
    pub(crate) fn asking<A>(self, ahead: A) -> ValueRows<'a, T, D, A> {
        let Self { data, stride, v_dim, in_pairs, .. } = self;
        ValueRows { data, stride, v_dim, ahead, in_pairs }
    }
}

/// Weights and accumulators of `MR` rows.
pub(crate) struct WeightedRows<'a, W, D> {
    /// Weights, from the first row's first key on.
    pub(crate) weights: &'a [W],
    pub(crate) weights_stride: D,
    /// Accumulators, rows of `acc_stride`, which is a multiple of 16 and at least `v_dim`.
    pub(crate) acc: &'a mut [f32],
    /// Elements between rows of accumulators.
    pub(crate) acc_stride: usize,
}

/// Adds `count` keys (or pairs of keys, which may be stored as two rows, the last of them as one). Where no single register tile
/// holds all dimensions, `step` of them at a time, whose values are visited once for each tile, and should be in L1 by then. With
/// `GUARD`, keys whose weight is [`REMOVED`](super::product::REMOVED) are left out of that row: neither their value nor its sign
/// can show.
#[inline(always)]
pub(crate) fn accumulate<I: Isa, P: Product<I>, const MR: usize, const GUARD: bool>(
    isa: I,
    values: ValueRows<'_, P::Stored, impl Stride, impl AheadOfValues>,
    count: usize,
    step: usize,
    mut rows: WeightedRows<'_, P::Factor, impl Stride>,
) {
    let vectors = values.v_dim.div_ceil(I::LANES);
    let once = vectors == 1
        || values.v_dim == vectors * I::LANES
            && (vectors == widest::<I>(MR) || vectors.is_power_of_two() && vectors < widest::<I>(MR));
    let step = if once { count } else { step };
    let in_pairs = I::LANES == 16 && MR == PAIRED_ROWS && !GUARD && !once && values.in_pairs;
    let mut start = 0;
    while start < count {
        let keys = start..count.min(start.saturating_add(step));
        if in_pairs {
            accumulate_in_pairs::<I, P, MR>(isa, values, keys.clone(), &mut rows);
        } else {
            accumulate_step::<I, P, MR, GUARD>(isa, values, keys.clone(), &mut rows);
        }
        start = keys.end;
    }
}

/// [`accumulate_step`] for two rows of weights at a time; `MR` is even.
#[inline(always)]
fn accumulate_in_pairs<I: Isa, P: Product<I>, const MR: usize>(
    isa: I,
    values: ValueRows<'_, P::Stored, impl Stride, impl AheadOfValues>,
    keys: Range<usize>,
    rows: &mut WeightedRows<'_, P::Factor, impl Stride>,
) {
    for first in (0..MR).step_by(2) {
        let mut pair = WeightedRows {
            weights: &rows.weights[first * rows.weights_stride.elements()..],
            acc: &mut rows.acc[first * rows.acc_stride..],
            ..*rows
        };
        accumulate_step::<I, P, 2, false>(isa, values, keys.clone(), &mut pair);
    }
}

/// Vectors of dimensions of the widest tile for so many rows; [`accumulate_step`] takes tiles of that many and, for what is left,
/// of each smaller power of two.
#[inline(always)]
const fn widest<I: Isa>(rows: usize) -> usize {
    match (I::LANES, I::REGISTERS) {
        (_, ..16) => 1,
        (16, _) if rows <= 2 => 8,
        (16, _) => 4,
        (8, _) if rows == 1 => 8,
        (8, _) if rows == 2 => 4,
        (8, _) if takes_three(rows, 3) => 3,
        _ => 2,
    }
}

/// Adds some keys, all dimensions of them.
#[inline(always)]
fn accumulate_step<I: Isa, P: Product<I>, const MR: usize, const GUARD: bool>(
    isa: I,
    values: ValueRows<'_, P::Stored, impl Stride, impl AheadOfValues>,
    keys: Range<usize>,
    rows: &mut WeightedRows<'_, P::Factor, impl Stride>,
) {
    let mut d = 0;
    if widest::<I>(MR) >= 8 {
        while d + 8 * I::LANES <= values.v_dim {
            accumulate_tile::<I, P, MR, 8, GUARD>(isa, values, &keys, d, rows);
            d += 8 * I::LANES;
        }
    }
    if widest::<I>(MR) >= 4 {
        while d + 4 * I::LANES <= values.v_dim {
            accumulate_tile::<I, P, MR, 4, GUARD>(isa, values, &keys, d, rows);
            d += 4 * I::LANES;
        }
    }
    if widest::<I>(MR) == 3 {
        while takes_three(MR, values.v_dim.saturating_sub(d) / I::LANES) {
            accumulate_tile::<I, P, MR, 3, GUARD>(isa, values, &keys, d, rows);
            d += 3 * I::LANES;
        }
    }
    if widest::<I>(MR) >= 2 {
        while d + 2 * I::LANES <= values.v_dim {
            accumulate_tile::<I, P, MR, 2, GUARD>(isa, values, &keys, d, rows);
            d += 2 * I::LANES;
        }
    }
    while d < mutant!("tail-of-values-skipped", values.v_dim, values.v_dim / I::LANES * I::LANES) {
        accumulate_tile::<I, P, MR, 1, GUARD>(isa, values, &keys, d, rows);
        d += I::LANES;
    }
}

/// `MR` rows by `NV` vectors of dimensions from `d` on. Lanes past `v_dim` hold what lies behind the row; nobody looks
/// at them.
#[inline(always)]
fn accumulate_tile<I: Isa, P: Product<I>, const MR: usize, const NV: usize, const GUARD: bool>(
    isa: I,
    values: ValueRows<'_, P::Stored, impl Stride, impl AheadOfValues>,
    keys: &Range<usize>,
    d: usize,
    rows: &mut WeightedRows<'_, P::Factor, impl Stride>,
) {
    const { assert!(P::ROWS == 1 || NV * I::LANES <= P::NO_ROW.len(), "there are zeros for the widest tile") };
    let width = NV * I::LANES;
    let count = keys.len();
    let stride = values.stride.elements();
    let data = &values.data[keys.start * P::ROWS * stride..];
    let weights: [&[P::Factor]; MR] =
        split_rows(&rows.weights[keys.start..], rows.weights_stride.elements(), count);
    let mut acc = [[isa.splat(0.0); NV]; MR];
    for r in 0..MR {
        let row = &rows.acc[r * rows.acc_stride + d..][..width];
        for v in 0..NV {
            acc[r][v] = isa.load(&row[v * I::LANES..]);
        }
    }
    let per_load = MR.div_ceil(P::ROWS);
    let bytes = values.ahead.bytes_of_step(width * size_of::<P::Stored>());
    let mut prefetch =
        values.ahead.adding(per_load, data, [count * P::ROWS, stride], [d, width, values.v_dim]);
    let mut rest = data.get(d..).unwrap_or(&[]);
    for j in 0..count {
        let mut value = [P::zero(isa); NV];
        if NV == 1 {
            let second = if P::ROWS == 2 { rest.get(stride..).unwrap_or(&[]) } else { P::NO_ROW };
            value[0] = P::load_padded(isa, [rest, second]);
        } else {
            let row = &rest[..width];
            let second = match rest.get(stride..stride + width) {
                Some(row) if P::ROWS == 2 => row,
                _ => P::NO_ROW,
            };
            for v in 0..NV {
                value[v] = P::load(isa, [row, second], v * I::LANES);
            }
        }
        for _ in 0..P::ROWS {
            prefetch.ask(isa, bytes);
        }
        rest = rest.get(P::ROWS * stride..).unwrap_or(&[]);
        for r in 0..MR {
            let weight = P::splat(isa, weights[r][j]);
            if GUARD {
                let guard = P::guard(isa, weight);
                for v in 0..NV {
                    acc[r][v] = P::mul_add_kept(isa, guard, weight, value[v], acc[r][v]);
                }
            } else {
                for v in 0..NV {
                    acc[r][v] = P::mul_add(isa, weight, value[v], acc[r][v]);
                }
            }
        }
    }
    for r in 0..MR {
        let row = &mut rows.acc[r * rows.acc_stride + d..][..width];
        for v in 0..NV {
            isa.store(acc[r][v], &mut row[v * I::LANES..]);
        }
    }
}
