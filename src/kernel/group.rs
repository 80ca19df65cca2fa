//! The register tiles as functions of their own, for a group of up to [`MAX_ROWS`](super::MAX_ROWS) rows: what several
//! kernels run is compiled once for a level, a product and a storage type. Inlined into each of them, tiles were two thirds of
//! the crate's code. A call costs some nanoseconds and is for a tile's worth of work.

use super::pack::VALUE_PANEL;
use super::prefetch::Ahead;
use super::product::{Dot, Fma, Product};
use super::score::{KeyRows, Panels, ScoreRows, score_panels, score_rows};
use super::value::{ValueRows, WeightedRows, accumulate};
use super::{Constant, Stride, rows_const};
use crate::element::Element;
use crate::isa::{Bf16Dot, Bf16Kernel, Isa, Kernel};
use crate::mask::TILE;
use half::bf16;
use std::ops::Range;

/// [`score_panels`] for `count` rows.
pub(crate) struct ScorePanels<'a, F, S, C, D> {
    pub(crate) count: usize,
    /// Rows of `dims` factors.
    pub(crate) q: &'a [F],
    pub(crate) dims: usize,
    pub(crate) panels: &'a [S],
    /// Whether panels are expected to come from memory.
    pub(crate) from_memory: bool,
    pub(crate) columns: Range<usize>,
    pub(crate) rows: ScoreRows<'a, C, D>,
}

impl<F, S: Copy, C, D: Stride> ScorePanels<'_, F, S, C, D> {
    #[inline(always)]
    fn run_product<I: Isa, P: Product<I, Factor = F, Stored = S, Scale = C>>(self, isa: I) {
        let Self { count, q, dims, panels, from_memory, columns, rows } = self;
        let panels = Panels { data: panels, ahead: Ahead::Near { from_memory } };
        rows_const!(count, MR => score_panels::<I, P, MR>(isa, q, dims, panels, columns, rows));
    }
}

impl<T: Element, D: Stride> Kernel for ScorePanels<'_, f32, T, (), D> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.run_product::<I, Fma<T>>(isa);
    }
}

impl<D: Stride> Bf16Kernel for ScorePanels<'_, [bf16; 2], [bf16; 2], f32, D> {
    type Output = ();

    #[inline(always)]
    fn run<I: Bf16Dot>(self, isa: I) {
        self.run_product::<I, Dot>(isa);
    }
}

/// [`score_rows`] for `count` rows.
pub(crate) struct ScoreKeyRows<'a, T, D> {
    pub(crate) count: usize,
    pub(crate) q: &'a [f32],
    pub(crate) head_dim: usize,
    pub(crate) keys: KeyRows<'a, T>,
    pub(crate) tile_start: usize,
    pub(crate) columns: Range<usize>,
    pub(crate) rows: ScoreRows<'a, (), D>,
}

impl<T: Element, D: Stride> Kernel for ScoreKeyRows<'_, T, D> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { count, q, head_dim, keys, tile_start, columns, rows } = self;
        rows_const!(count, MR => score_rows::<I, T, MR>(isa, q, head_dim, keys, tile_start, columns, rows));
    }
}

/// [`accumulate`] for `count` rows: adds `keys` keys (or pairs of keys), `step` at a time, if `guard` without those whose
/// weight is marked as removed.
pub(crate) struct Accumulate<'a, F, S, V, W> {
    pub(crate) count: usize,
    pub(crate) values: ValueRows<'a, S, V>,
    pub(crate) keys: usize,
    pub(crate) step: usize,
    pub(crate) guard: bool,
    pub(crate) rows: WeightedRows<'a, F, W>,
}

impl<F, S: Copy, V: Stride, W: Stride> Accumulate<'_, F, S, V, W> {
    #[inline(always)]
    fn run_product<I: Isa, P: Product<I, Factor = F, Stored = S>>(self, isa: I) {
        let Self { count, values, keys, step, guard, rows } = self;
        if guard {
            rows_const!(count, MR => accumulate::<I, P, MR, true>(isa, values, keys, step, rows));
        } else {
            rows_const!(count, MR => accumulate::<I, P, MR, false>(isa, values, keys, step, rows));
        }
    }
}

impl<T: Element, V: Stride, W: Stride> Kernel for Accumulate<'_, f32, T, V, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.run_product::<I, Fma<T>>(isa);
    }
}

impl<V: Stride, W: Stride> Bf16Kernel for Accumulate<'_, [bf16; 2], [bf16; 2], V, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Bf16Dot>(self, isa: I) {
        self.run_product::<I, Dot>(isa);
    }
}

/// The same from packed values, `[v_dim / 16][TILE][16]` (see [`pack_values`](super::pack::pack_values)), from the first key of
/// the first panel on.
pub(crate) struct AccumulatePacked<'a, W> {
    pub(crate) count: usize,
    pub(crate) values: &'a [f32],
    pub(crate) v_dim: usize,
    pub(crate) keys: usize,
    pub(crate) guard: bool,
    pub(crate) rows: WeightedRows<'a, f32, W>,
}

impl<W: Stride> Kernel for AccumulatePacked<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { count, values, v_dim, keys, guard, rows } = self;
        let WeightedRows { weights, weights_stride, acc, acc_stride } = rows;
        for first in (0..v_dim).step_by(VALUE_PANEL) {
            let values = ValueRows {
                // On to the end: what comes next is what is read next.
                data: &values[first * TILE..],
                stride: Constant::<VALUE_PANEL>,
                v_dim: VALUE_PANEL,
                from_memory: false,
            };
            let rows = WeightedRows { weights, weights_stride, acc: &mut acc[first..], acc_stride };
            Accumulate { count, values, keys, step: usize::MAX, guard, rows }.run(isa);
        }
    }
}
