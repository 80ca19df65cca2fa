//! Scores of a few rows against some keys: `s[r][j] = sum_d q[r][d] * k[j][d]`, one chain of multiply-adds over
//! ascending `d` from +0 for every score.

use super::load_padded;
use crate::element::Element;
use crate::isa::Isa;
use crate::panels::PANEL;
use std::ops::Range;

/// Where scores go: `MR` rows of a buffer.
pub(crate) struct ScoreRows<'a> {
    /// The buffer, from the first row's first key of the tile on.
    pub(crate) out: &'a mut [f32],
    /// Elements between rows.
    pub(crate) stride: usize,
}

/// Scores of `MR` rows (`q`, contiguous rows of `head_dim`) against columns `columns` of the tile that starts with
/// `panels` (key panels, one after another). `columns` is a multiple of 16 at both ends; all panels it touches exist.
///
/// Per 64 keys and `d`: 64 keys read once for `MR` rows.
#[inline(always)]
pub(crate) fn score_panels<I: Isa, T: Element, const MR: usize>(
    isa: I,
    q: &[f32],
    head_dim: usize,
    panels: &[T],
    columns: Range<usize>,
    rows: ScoreRows<'_>,
) {
    let q: [&[f32]; MR] = split_rows(q, head_dim, head_dim);
    let ScoreRows { out, stride } = rows;
    let mut column = columns.start;
    while column < columns.end {
        let first = column % PANEL;
        let panel = &panels[column / PANEL * PANEL * head_dim..][..PANEL * head_dim];
        let left = (columns.end - column).min(PANEL - first);
        let width = if I::LANES == 16 && left == PANEL {
            score_tile::<I, T, MR, 4>(isa, q, panel, first, &mut out[column..], stride);
            4 * I::LANES
        } else if I::LANES == 8 && I::REGISTERS >= 16 && left >= 2 * I::LANES {
            score_tile::<I, T, MR, 2>(isa, q, panel, first, &mut out[column..], stride);
            2 * I::LANES
        } else {
            score_tile::<I, T, MR, 1>(isa, q, panel, first, &mut out[column..], stride);
            I::LANES
        };
        column += width;
    }
}

/// `MR` rows against `NV` vectors of keys, from key `first` of a panel on.
#[inline(always)]
fn score_tile<I: Isa, T: Element, const MR: usize, const NV: usize>(
    isa: I,
    q: [&[f32]; MR],
    panel: &[T],
    first: usize,
    out: &mut [f32],
    stride: usize,
) {
    assert!(first + NV * I::LANES <= PANEL, "columns stay inside their panel");
    let mut acc = [[isa.splat(0.0); NV]; MR];
    // As many as `q` has dimensions, which spares the bounds checks on them.
    let dims = &panel.as_chunks::<PANEL>().0[..q[0].len()];
    for (d, dim) in dims.iter().enumerate() {
        let mut keys = [isa.splat(0.0); NV];
        for v in 0..NV {
            keys[v] = T::load(isa, &dim[first + v * I::LANES..]);
        }
        for r in 0..MR {
            let x = isa.splat(q[r][d]);
            for v in 0..NV {
                acc[r][v] = isa.mul_add(x, keys[v], acc[r][v]);
            }
        }
    }
    for r in 0..MR {
        let out = &mut out[r * stride..][..NV * I::LANES];
        for v in 0..NV {
            isa.store(acc[r][v], &mut out[v * I::LANES..]);
        }
    }
}

/// `MR` rows of `length`, `stride` elements apart.
#[inline(always)]
pub(crate) fn split_rows<const MR: usize>(rows: &[f32], stride: usize, length: usize) -> [&[f32]; MR] {
    let mut split: [&[f32]; MR] = [&[]; MR];
    for r in 0..MR {
        split[r] = &rows[r * stride..][..length];
    }
    split
}

/// Keys as rows, `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct KeyRows<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) stride: usize,
    /// Rows there are.
    pub(crate) len: usize,
}

/// The same as [`score_panels`] from keys held as rows: each square of keys by dimensions is transposed in registers.
/// `columns` counts from key `tile_start`; columns at or beyond `keys.len` get arbitrary finite scores.
///
/// Transposition costs four shuffles per vector of keys, the slow path of a few queries: DRAM wants its rows read one
/// after another, and this visits 8 or 16 at once. Reading a little of each line well ahead, in row order, wins a
/// part of that back.
#[inline(always)]
pub(crate) fn score_rows<I: Isa, T: Element, const MR: usize>(
    isa: I,
    q: &[f32],
    head_dim: usize,
    keys: KeyRows<'_, T>,
    tile_start: usize,
    columns: Range<usize>,
    rows: ScoreRows<'_>,
) {
    let q: [&[f32]; MR] = split_rows(q, head_dim, head_dim);
    for column in columns.step_by(I::LANES) {
        let first = tile_start + column;
        let mut acc = [isa.splat(0.0); MR];
        for d in (0..head_dim).step_by(I::LANES) {
            let square = load_square(isa, keys, first, d);
            let square = &square[..I::LANES.min(head_dim - d)];
            for (step, &keys) in square.iter().enumerate() {
                for r in 0..MR {
                    acc[r] = isa.mul_add(isa.splat(q[r][d + step]), keys, acc[r]);
                }
            }
        }
        for r in 0..MR {
            isa.store(acc[r], &mut rows.out[r * rows.stride + column..]);
        }
    }
}

/// `LANES` keys by `LANES` dimensions, transposed: entry `i` holds dimension `d + i` of the keys from `first` on.
/// Keys that do not exist are zero.
#[inline(always)]
pub(crate) fn load_square<I: Isa, T: Element>(
    isa: I,
    keys: KeyRows<'_, T>,
    first: usize,
    d: usize,
) -> [I::F; 16] {
    let mut square = [isa.splat(0.0); 16];
    let count = keys.len.saturating_sub(first).min(I::LANES);
    if count == I::LANES {
        for i in 0..I::LANES {
            square[i] = load_padded(isa, keys.data, (first + i) * keys.stride + d);
        }
    } else {
        for i in 0..count {
            square[i] = load_padded(isa, keys.data, (first + i) * keys.stride + d);
        }
    }
    isa.transpose(&mut square[..I::LANES]);
    square
}
