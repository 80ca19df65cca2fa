//! The crate's register tiles as functions of their own: several kernels here run the same products, and what they
//! inlined would be compiled once for each.

use crate::isa::{Isa, Kernel};
use crate::kernel::prefetch::Ahead;
use crate::kernel::product::Fma;
use crate::kernel::score::{Panels, ScoreRows, score_panels};
use crate::kernel::value::{ValueRows, WeightedRows, accumulate};
use crate::kernel::{MAX_ROWS, rows_const};
use crate::panels::PANEL;
use std::ops::Range;

/// `out = rows · panel`: `[rows][dims]` by `[dims][64]` to `[rows][64]`, some columns of it.
pub(crate) struct Project<'a> {
    pub(crate) rows: &'a [f32],
    pub(crate) count: usize,
    pub(crate) panel: &'a [f32],
    pub(crate) dims: usize,
    /// Multiples of 16.
    pub(crate) columns: Range<usize>,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Project { rows, count, panel, dims, columns, out } = self;
        for first in (0..count).step_by(MAX_ROWS) {
            let rows = &rows[first * dims..];
            let panels = Panels { data: panel, ahead: Ahead::Near { from_memory: false } };
            let out = ScoreRows { out: &mut out[first * PANEL..], stride: PANEL, scale: () };
            let columns = columns.clone();
            rows_const!(count - first, MR => score_panels::<I, Fma<f32>, MR>(isa, rows, dims, panels, columns, out));
        }
    }
}

/// `acc += weights · values`, for up to 6 rows: `[rows][stride]` by `[count][v_stride]`, `step` rows of values at a time.
pub(crate) struct AddRows<'a> {
    pub(crate) rows: usize,
    pub(crate) values: ValueRows<'a, f32>,
    pub(crate) count: usize,
    pub(crate) step: usize,
    pub(crate) weights: WeightedRows<'a, f32>,
}

impl Kernel for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let AddRows { rows, values, count, step, weights } = self;
        rows_const!(rows, MR => accumulate::<I, Fma<f32>, MR, false>(isa, values, count, step, weights));
    }
}
