//! Scores of a few rows against some keys: `s[r][j] = sum_d q[r][d] * k[j][d]`, one chain of steps over ascending `d`
//! from +0 for every score.

use super::Stride;
use super::prefetch::{AheadOfPanels, PrefetchRows};
use super::product::{ColumnProduct, Product};
use crate::element::sealed::Storage;
use crate::element::{DType, Element};
use crate::isa::Isa;
use crate::panels::PANEL;
use half::bf16;
use std::ops::Range;

/// Where scores go: `MR` rows of a buffer.
pub(crate) struct ScoreRows<'a, S, D> {
    /// The buffer, from the first row's first key of the tile on.
    pub(crate) out: &'a mut [f32],
    pub(crate) stride: D,
    /// See [`Product::Scale`].
    pub(crate) scale: S,
}

/// Key panels, one after another.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a, T, A> {
    pub(crate) data: &'a [T],
    pub(crate) ahead: A,
}

/// Scores of `MR` rows (`q`, contiguous, a factor for each step) against columns `columns` of the tile that starts with `panels`,
/// each of `dims` stored rows. `columns` is a multiple of 16 at both ends; all panels it touches exist.
///
/// Per 64 keys and `d`: 64 keys read once for `MR` rows. Fewer keys are taken two vectors at a time, at AVX-512, too: one vector for
/// each row would be too few chains where a core does two multiply-adds a cycle (32 tokens are 1.05 to 1.1 times as fast; example
/// `bench_worker`, Emerald Rapids).
#[inline(always)]
pub(crate) fn score_panels<I: Isa, P: Product<I>, const MR: usize>(
    isa: I,
    q: &[P::Factor],
    dims: usize,
    panels: Panels<'_, P::Stored, impl AheadOfPanels>,
    columns: Range<usize>,
    mut rows: ScoreRows<'_, P::Scale, impl Stride>,
) {
    let steps = dims.div_ceil(P::ROWS);
    let q: [&[P::Factor]; MR] = split_rows(q, steps, steps);
    let Panels { data: panels, ahead } = panels;
    let mut column = columns.start;
    while column < columns.end {
        let first = column % PANEL;
        let start = column / PANEL * PANEL * dims;
        let panels = &panels[start..];
        let left = (columns.end - column).min(PANEL - first);
        let width = if I::LANES == 16 && left == PANEL {
            score_tile::<I, P, MR, 4>(isa, q, (panels, dims), first, ahead, column, &mut rows);
            4 * I::LANES
        } else if has_narrow_tiles::<I>() && MR == 1 && left >= 8 * I::LANES {
            score_tile::<I, P, MR, 8>(isa, q, (panels, dims), first, ahead, column, &mut rows);
            8 * I::LANES
        } else if has_narrow_tiles::<I>() && MR <= 2 && left >= 4 * I::LANES {
            score_tile::<I, P, MR, 4>(isa, q, (panels, dims), first, ahead, column, &mut rows);
            4 * I::LANES
        } else if has_narrow_tiles::<I>() && takes_three(MR, left / I::LANES) {
            score_tile::<I, P, MR, 3>(isa, q, (panels, dims), first, ahead, column, &mut rows);
            3 * I::LANES
        } else if I::REGISTERS >= 16 && left >= 2 * I::LANES {
            score_tile::<I, P, MR, 2>(isa, q, (panels, dims), first, ahead, column, &mut rows);
            2 * I::LANES
        } else {
            score_tile::<I, P, MR, 1>(isa, q, (panels, dims), first, ahead, column, &mut rows);
            I::LANES
        };
        column += width;
    }
}

/// Whether 16 registers of 8 lanes hold the tiles: of two vectors, which leave room for 6 rows, or of more where fewer rows
/// would be too few chains to hide the latency of a multiply-add.
#[inline(always)]
pub(crate) fn has_narrow_tiles<I: Isa>() -> bool {
    I::LANES == 8 && I::REGISTERS >= 16
}

/// Whether the next of `left` vectors are taken three at a time where tiles are narrow: three rows are too few chains in tiles of
/// two, and in tiles of four, which spill, 1.5 to 1.6 times as slow (example `bench_worker`, one query, 3 query heads per KV head,
/// 1024 keys in a cache, level AVX2). Four rows spill with three.
#[inline(always)]
pub(crate) const fn takes_three(rows: usize, left: usize) -> bool {
    rows == 3 && left >= 3 && left != 4
}

/// `MR` rows against `NV` vectors of keys, from key `first` of the first panel on, of `dims` stored rows, to column `column`.
#[inline(always)]
fn score_tile<I: Isa, P: Product<I>, const MR: usize, const NV: usize>(
    isa: I,
    q: [&[P::Factor]; MR],
    (panels, dims): (&[P::Stored], usize),
    first: usize,
    ahead: impl AheadOfPanels,
    column: usize,
    rows: &mut ScoreRows<'_, P::Scale, impl Stride>,
) {
    assert!(first + NV * I::LANES <= PANEL, "columns stay inside their panel");
    let mut acc = [[isa.splat(0.0); NV]; MR];
    let dims = &panels.as_chunks::<PANEL>().0[..dims];
    let per_load = MR.div_ceil(P::ROWS);
    let bytes = ahead.bytes_of_step(NV * I::LANES * size_of::<P::Stored>());
    let mut prefetch = ahead.scoring(per_load, panels, dims.len(), [first, NV * I::LANES], column);
    for step in 0..dims.len().div_ceil(P::ROWS) {
        let second = match dims.get(P::ROWS * step + 1) {
            Some(dim) if P::ROWS == 2 => dim,
            _ => P::NO_ROW,
        };
        let mut keys = [P::zero(isa); NV];
        for v in 0..NV {
            keys[v] = P::load(isa, [&dims[P::ROWS * step], second], first + v * I::LANES);
        }
        for _ in 0..P::ROWS {
            prefetch.ask(isa, bytes);
        }
        for r in 0..MR {
            let x = P::splat(isa, q[r][step]);
            for v in 0..NV {
                acc[r][v] = P::mul_add(isa, x, keys[v], acc[r][v]);
            }
        }
    }
    for r in 0..MR {
        let out = &mut rows.out[column + r * rows.stride.elements()..][..NV * I::LANES];
        for v in 0..NV {
            let score = P::finish(isa, acc[r][v], rows.scale);
            let score = mutant!("scores-in-f16", score, crate::mutant::through_f16(isa, score));
            isa.store(score, &mut out[v * I::LANES..]);
        }
    }
}

/// `MR` rows of `length`, `stride` elements apart.
#[inline(always)]
pub(crate) fn split_rows<T, const MR: usize>(rows: &[T], stride: usize, length: usize) -> [&[T]; MR] {
    let mut split: [&[T]; MR] = [&[]; MR];
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
    /// Whether they are expected to come from memory.
    pub(crate) from_memory: bool,
}

impl<'a, T: Element> KeyRows<'a, T> {
    /// These, if they are bf16.
    #[inline(always)]
    pub(crate) fn as_bf16(self) -> Option<KeyRows<'a, bf16>> {
        let Self { data, stride, len, from_memory } = self;
        Some(KeyRows { data: T::as_bf16(data)?, stride, len, from_memory })
    }

    /// The memory of some keys, if they exist and are made of whole pieces of `COLUMNS` dimensions.
    #[inline(always)]
    fn block(&self, keys: Range<usize>, head_dim: usize) -> Option<&'a [T]> {
        if keys.is_empty() || keys.end > self.len || !head_dim.is_multiple_of(T::COLUMNS) {
            return None;
        }
        self.data.get(keys.start * self.stride..(keys.end - 1) * self.stride + head_dim)
    }
}

/// The same as [`score_panels`] from keys held as rows: a few columns are gathered into registers at a time. For up to three
/// rows two vectors of keys side by side, as one chain of multiply-adds waits for itself: a row against keys in a cache is 1.2 to
/// 1.3 times as fast, two rows 1.1 times. Four vectors make a single row of bf16, which takes fewest registers to widen, another
/// 1.05 to 1.1 times as fast; they cost as much in f16, and 1.2 to 1.4 in f32 from memory, which leaves hardly any of L1 (bench
/// `roofline`, `small` and `decode` from rows, level AVX2). One vector of AVX-512 is 16 keys already: two lose 1 to 8 % (the same,
/// level AVX-512). Whether keys exist is looked up once for each vector, and of a last one that is not whole those that do.
/// `columns` counts from key `tile_start`; columns at or beyond `keys.len` get arbitrary scores.
#[inline(always)]
pub(crate) fn score_rows<I: Isa, P: ColumnProduct<I>, const MR: usize>(
    isa: I,
    q: &[P::Factor],
    head_dim: usize,
    keys: KeyRows<'_, P::Stored>,
    tile_start: usize,
    columns: Range<usize>,
    mut rows: ScoreRows<'_, P::Scale, impl Stride>,
) {
    let steps = head_dim.div_ceil(P::ROWS);
    let q: [&[P::Factor]; MR] = split_rows(q, steps, steps);
    let mut column = columns.start;
    while column < columns.end && tile_start + column < keys.len {
        let (first, left) = (tile_start + column, (columns.end - column) / I::LANES);
        let whole = |vectors: usize| keys.block(first..first + vectors * I::LANES, head_dim);
        let at = (keys, head_dim, first, column);
        let mut vectors = 1;
        if has_narrow_tiles::<I>()
            && MR == 1
            && P::Stored::DTYPE == DType::Bf16
            && left >= 4
            && let Some(block) = whole(4)
        {
            score_block::<I, P, MR, 4>(isa, q, (block, I::LANES), at, &mut rows);
            vectors = 4;
        } else if has_narrow_tiles::<I>()
            && MR <= 3
            && left >= 2
            && let Some(block) = whole(2)
        {
            score_block::<I, P, MR, 2>(isa, q, (block, I::LANES), at, &mut rows);
            vectors = 2;
        } else if let Some(block) = whole(1) {
            score_block::<I, P, MR, 1>(isa, q, (block, I::LANES), at, &mut rows);
        } else if let Some(block) = keys.block(first..keys.len, head_dim) {
            // Apart, as how many there are is a constant above.
            score_block::<I, P, MR, 1>(isa, q, (block, keys.len - first), at, &mut rows);
        } else {
            score_pieces::<I, P, MR>(isa, q, at, &mut rows);
        }
        column += vectors * I::LANES;
    }
}

/// `MR` rows against `NV` vectors of `keys` from key `first` on, the memory of which is `block`; to column `column`. The first
/// `there` keys of each vector exist.
#[inline(always)]
fn score_block<I: Isa, P: ColumnProduct<I>, const MR: usize, const NV: usize>(
    isa: I,
    q: [&[P::Factor]; MR],
    (block, there): (&[P::Stored], usize),
    (keys, head_dim, first, column): (KeyRows<'_, P::Stored>, usize, usize, usize),
    rows: &mut ScoreRows<'_, P::Scale, impl Stride>,
) {
    let mut acc = [[isa.splat(0.0); NV]; MR];
    let mut prefetch = PrefetchRows::new(keys, head_dim, [first, NV * I::LANES]);
    for d in (0..head_dim).step_by(P::Stored::COLUMNS) {
        prefetch.ask(isa);
        let mut factors: [&[P::Factor]; MR] = [&[]; MR];
        for r in 0..MR {
            factors[r] = &q[r][d / P::ROWS..][..P::Stored::COLUMNS / P::ROWS];
        }
        for v in 0..NV {
            let columns = P::columns(isa, &block[v * I::LANES * keys.stride + d..], keys.stride, there);
            for step in 0..P::Stored::COLUMNS / P::ROWS {
                for r in 0..MR {
                    let x = P::splat(isa, factors[r][step]);
                    acc[r][v] = P::mul_add(isa, x, columns[step], acc[r][v]);
                }
            }
        }
    }
    for r in 0..MR {
        let out = &mut rows.out[column + r * rows.stride.elements()..][..NV * I::LANES];
        for v in 0..NV {
            isa.store(P::finish(isa, acc[r][v], rows.scale), &mut out[v * I::LANES..]);
        }
    }
}

/// The same for one vector of keys, some of which may not exist, where dimensions are no whole pieces.
#[inline(always)]
fn score_pieces<I: Isa, P: ColumnProduct<I>, const MR: usize>(
    isa: I,
    q: [&[P::Factor]; MR],
    (keys, head_dim, first, column): (KeyRows<'_, P::Stored>, usize, usize, usize),
    rows: &mut ScoreRows<'_, P::Scale, impl Stride>,
) {
    let mut acc = [isa.splat(0.0); MR];
    let mut prefetch = PrefetchRows::new(keys, head_dim, [first, I::LANES]);
    for d in (0..head_dim).step_by(P::Stored::COLUMNS) {
        prefetch.ask(isa);
        let columns = load_columns::<I, P>(isa, keys, head_dim, first, d);
        for step in 0..P::Stored::COLUMNS / P::ROWS {
            let dim = d + step * P::ROWS;
            if dim < head_dim {
                let whole = dim + P::ROWS <= head_dim;
                let keys = if whole { columns[step] } else { P::without_second(isa, columns[step]) };
                for r in 0..MR {
                    acc[r] = P::mul_add(isa, P::splat(isa, q[r][dim / P::ROWS]), keys, acc[r]);
                }
            }
        }
    }
    for r in 0..MR {
        let score = P::finish(isa, acc[r], rows.scale);
        isa.store(score, &mut rows.out[r * rows.stride.elements() + column..]);
    }
}

/// Dimensions `d..d + COLUMNS` of the `LANES` keys from `first` on, a vector for each step. Keys and dimensions that do not exist
/// are arbitrary.
#[inline(always)]
pub(crate) fn load_columns<I: Isa, P: ColumnProduct<I>>(
    isa: I,
    keys: KeyRows<'_, P::Stored>,
    head_dim: usize,
    first: usize,
    d: usize,
) -> [P::V; 8] {
    let rows = keys.len.saturating_sub(first).min(I::LANES);
    let at = first * keys.stride + d;
    let reach = |rows: usize| at..at + rows.saturating_sub(1) * keys.stride + P::Stored::COLUMNS;
    if rows == I::LANES
        && let Some(block) = keys.data.get(reach(I::LANES))
    {
        return P::columns(isa, block, keys.stride, I::LANES);
    }
    let copied;
    let (block, stride, rows) = match keys.data.get(reach(rows)) {
        Some(block) if rows > 0 => (block, keys.stride, rows),
        _ => {
            copied = copy_edge(keys, head_dim, first, d);
            (&copied[..], 8, I::LANES)
        }
    };
    P::columns(isa, block, stride, rows)
}

/// What there is of a block of keys where the buffer ends, in rows of 8.
#[inline(never)]
fn copy_edge<T: Element>(keys: KeyRows<'_, T>, head_dim: usize, first: usize, d: usize) -> [T; 128] {
    let mut block = [T::default(); 16 * 8];
    let dims = T::COLUMNS.min(mutant!("last-dimension-of-the-last-key", head_dim - d, head_dim - d - 1));
    for (lane, to) in block.chunks_exact_mut(8).enumerate().take(keys.len.saturating_sub(first)) {
        to[..dims].copy_from_slice(&keys.data[(first + lane) * keys.stride + d..][..dims]);
    }
    block
}
