//! Weighted sums of values: `acc[r][d] += sum_j p[r][j] * v[j][d]`, one chain of multiply-adds over ascending `j` for
//! every output.

use super::load_padded;
use super::score::split_rows;
use crate::element::Element;
use crate::isa::Isa;
use std::ops::Range;

/// The weight that marks a removed key: weights are `exp2(..)`, never negative (nor -0), or NaN.
pub(crate) const REMOVED: f32 = -1.0;

/// Values as rows, `stride` elements apart, from the first key on.
#[derive(Clone, Copy)]
pub(crate) struct ValueRows<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) stride: usize,
    pub(crate) v_dim: usize,
}

/// Weights and accumulators of `MR` rows.
pub(crate) struct WeightedRows<'a> {
    /// Weights, from the first row's first key on.
    pub(crate) weights: &'a [f32],
    /// Elements between rows of weights.
    pub(crate) weights_stride: usize,
    /// Accumulators, rows of `acc_stride`, which is a multiple of 16 and at least `v_dim`.
    pub(crate) acc: &'a mut [f32],
    /// Elements between rows of accumulators.
    pub(crate) acc_stride: usize,
}

/// Adds `count` keys, `step` of them at a time: with more dimensions than fit in registers, a step's values are visited
/// several times, and should be in L1 by then. With `GUARD`, keys whose weight is [`REMOVED`] are left out of that row: neither their value nor
/// its sign can show.
#[inline(always)]
pub(crate) fn accumulate<I: Isa, T: Element, const MR: usize, const GUARD: bool>(
    isa: I,
    values: ValueRows<'_, T>,
    count: usize,
    step: usize,
    mut rows: WeightedRows<'_>,
) {
    let mut start = 0;
    while start < count {
        let keys = start..count.min(start.saturating_add(step));
        accumulate_step::<I, T, MR, GUARD>(isa, values, keys.clone(), &mut rows);
        start = keys.end;
    }
}

/// Adds some keys, all dimensions of them.
#[inline(always)]
fn accumulate_step<I: Isa, T: Element, const MR: usize, const GUARD: bool>(
    isa: I,
    values: ValueRows<'_, T>,
    keys: Range<usize>,
    rows: &mut WeightedRows<'_>,
) {
    let mut d = 0;
    if I::LANES == 16 {
        if MR <= 2 {
            while d + 8 * I::LANES <= values.v_dim {
                accumulate_tile::<I, T, MR, 8, GUARD>(isa, values, &keys, d, rows);
                d += 8 * I::LANES;
            }
        }
        while d + 4 * I::LANES <= values.v_dim {
            accumulate_tile::<I, T, MR, 4, GUARD>(isa, values, &keys, d, rows);
            d += 4 * I::LANES;
        }
    }
    if I::REGISTERS >= 16 {
        while d + 2 * I::LANES <= values.v_dim {
            accumulate_tile::<I, T, MR, 2, GUARD>(isa, values, &keys, d, rows);
            d += 2 * I::LANES;
        }
    }
    while d < values.v_dim {
        accumulate_tile::<I, T, MR, 1, GUARD>(isa, values, &keys, d, rows);
        d += I::LANES;
    }
}

/// `MR` rows by `NV` vectors of dimensions from `d` on. Lanes past `v_dim` hold what lies behind the row; nobody looks
/// at them.
#[inline(always)]
fn accumulate_tile<I: Isa, T: Element, const MR: usize, const NV: usize, const GUARD: bool>(
    isa: I,
    values: ValueRows<'_, T>,
    keys: &Range<usize>,
    d: usize,
    rows: &mut WeightedRows<'_>,
) {
    let width = NV * I::LANES;
    let count = keys.len();
    let data = &values.data[keys.start * values.stride..];
    let weights: [&[f32]; MR] = split_rows(&rows.weights[keys.start..], rows.weights_stride, count);
    let mut acc = [[isa.splat(0.0); NV]; MR];
    for r in 0..MR {
        let row = &rows.acc[r * rows.acc_stride + d..][..width];
        for v in 0..NV {
            acc[r][v] = isa.load(&row[v * I::LANES..]);
        }
    }
    for j in 0..count {
        let at = j * values.stride + d;
        let mut value = [isa.splat(0.0); NV];
        if NV == 1 {
            value[0] = load_padded(isa, data, at);
        } else {
            let row = &data[at..][..width];
            for v in 0..NV {
                value[v] = T::load(isa, &row[v * I::LANES..]);
            }
        }
        for r in 0..MR {
            let weight = isa.splat(weights[r][j]);
            if GUARD {
                let removed = isa.lt(weight, isa.splat(0.0));
                for v in 0..NV {
                    acc[r][v] = isa.select(removed, acc[r][v], isa.mul_add(weight, value[v], acc[r][v]));
                }
            } else {
                for v in 0..NV {
                    acc[r][v] = isa.mul_add(weight, value[v], acc[r][v]);
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
