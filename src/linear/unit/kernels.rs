//! What is compiled for each level.

use super::super::features::{Ready, Side, vectors};
use super::super::gauge::bits;
use super::super::rows::{RowScratch, Rows, sum_columns};
use super::super::state::{StateShape, UnitState, rescale};
use crate::element::Element;
use crate::isa::{Isa, Kernel, Level};
use crate::kernel::MAX_ROWS;
use crate::kernel::pack::{pack_panels, widen};
use crate::kernel::score::KeyRows;
use crate::kernel::tiles::Accumulate;
use crate::kernel::value::{ValueRows, WeightedRows};
use crate::math::vector;
use crate::panels::PANEL;
use crate::rows::OwnedRows;
use crate::softmax::exp2;
use crate::view::{AnyView, with_any_view};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Compiles a kernel once, into this crate.
macro_rules! run {
    ($name:ident, $kernel:ty) => {
        #[inline(never)]
        pub(super) fn $name(level: Level, task: $kernel) {
            level.dispatch(task);
        }
    };
}
run!(run_map_tokens, MapTokens<'_>);
run!(run_rows, Rows<'_>);
run!(run_fold, Fold<'_, '_>);
run!(run_store, Store<'_, '_>);

pub(super) struct MapTokens<'a> {
    pub(super) map: &'a Ready,
    pub(super) side: Side,
    pub(super) tokens: Range<usize>,
    pub(super) panel: &'a [f32],
    pub(super) row: &'a mut [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for MapTokens<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if !self.tokens.is_empty() {
            self.map.apply(isa, self.side, self.panel, self.tokens, (self.row, self.out));
        }
    }
}

/// Adds keys to the sums.
pub(super) struct Fold<'a, 's> {
    pub(super) shape: StateShape,
    /// Features, `[features][64]`; decayed in place.
    pub(super) keys: &'a mut [f32],
    pub(super) columns: Range<usize>,
    pub(super) values: &'a [f32],
    pub(super) totals: Option<&'a [f32; PANEL]>,
    pub(super) unit: &'a mut UnitState<'s>,
    /// Room for 6 rows of sums.
    pub(super) acc: &'a mut [f32],
}

impl Kernel for Fold<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Fold { shape, keys, columns, values, totals, unit, acc } = self;
        let StateShape { features, v_dim, v_stride, .. } = shape;
        if let Some(totals) = totals {
            let total = totals[columns.end - 1];
            let factor = exp2(isa, total * LOG2_E);
            (0..features).for_each(|feature| rescale(isa, unit, feature, v_stride, factor));
            *unit.decay += total;
            decay_keys(isa, keys, totals, total, &columns);
        }
        for (norm, row) in unit.norms.iter_mut().zip(keys.chunks_exact(PANEL)) {
            *norm += sum_columns(isa, row, columns.clone());
        }
        let values = ValueRows::cached(&values[columns.start * v_stride..], v_stride, v_dim);
        for first in (0..features).step_by(MAX_ROWS) {
            let weights = &keys[first * PANEL + columns.start..];
            let rows = MAX_ROWS.min(features - first);
            // By themselves first, as the norms are: next to all keys before, each would round away the same way.
            let acc = &mut acc[..rows * v_stride];
            acc.fill(0.0);
            let weighted =
                WeightedRows { weights, weights_stride: PANEL, acc: &mut *acc, acc_stride: v_stride };
            isa.call(Accumulate { rows, values, keys: columns.len(), step: PANEL, weighted });
            let sums = unit.sums[first * v_stride..][..rows * v_stride].chunks_exact_mut(I::LANES);
            for (sum, block) in sums.zip(acc.chunks_exact(I::LANES)) {
                isa.store(isa.add(isa.load(sum), isa.load(block)), sum);
            }
        }
    }
}

/// Keys as the last of them leaves them.
#[inline(always)]
fn decay_keys<I: Isa>(isa: I, keys: &mut [f32], totals: &[f32; PANEL], total: f32, columns: &Range<usize>) {
    let kept = bits(columns);
    for column in vectors::<I>(columns).step_by(I::LANES) {
        let exponent = isa.mul(isa.sub(isa.splat(total), isa.load(&totals[column..])), isa.splat(LOG2_E));
        let factor = vector::exp2(isa, exponent);
        let factor = isa.select(isa.mask((kept >> column) as u32), factor, isa.splat(1.0));
        for row in keys.chunks_exact_mut(PANEL) {
            let row = &mut row[column..];
            isa.store(isa.mul(isa.load(row), factor), row);
        }
    }
}

/// Divides rows and rounds them.
pub(super) struct Store<'a, 'o> {
    pub(super) v_stride: usize,
    pub(super) normalize: bool,
    pub(super) head: usize,
    pub(super) first_token: usize,
    pub(super) rows: Range<usize>,
    pub(super) scratch: &'a RowScratch,
    pub(super) out: &'a mut OwnedRows<'o>,
}

impl Kernel for Store<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Store { v_stride, normalize, head, first_token, rows, scratch, out } = self;
        for (token, row) in (first_token..).zip(rows) {
            let acc = &scratch.acc[row * v_stride..][..v_stride];
            let divisor =
                if mutant!("normaliser-missing", normalize, false) { scratch.denominators[row] } else { 1.0 };
            if divisor == 0.0 {
                out.store_zero(head, token);
            } else {
                out.store(isa, head, token, acc, divisor);
            }
        }
    }
}

/// Tokens of an operand as columns, the first ones of `panel`. Columns without a token become, or stay, arbitrary.
#[inline(never)]
pub(super) fn load_panel(
    level: Level,
    view: &AnyView<'_>,
    [b, h]: [usize; 2],
    tokens: Range<usize>,
    panel: &mut [f32],
) {
    with_any_view!(view, view => {
        let (data, stride) = (view.from(b, h, tokens.start), view.strides()[2]);
        // Nobody knows here: asking costs little where there is a feature map to compute.
        let rows = KeyRows { data, stride, len: tokens.len(), from_memory: true };
        level.dispatch(LoadPanel { rows, panel });
    });
}

struct LoadPanel<'a, T> {
    rows: KeyRows<'a, T>,
    panel: &'a mut [f32],
}

impl<T: Element> Kernel for LoadPanel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let dims = self.panel.len() / PANEL;
        pack_panels(isa, self.rows, dims, 0..1, self.panel);
    }
}

/// Rows of values, widened.
#[inline(never)]
pub(super) fn load_values(
    level: Level,
    view: &AnyView<'_>,
    [b, h]: [usize; 2],
    tokens: Range<usize>,
    (out, v_stride): (&mut [f32], usize),
) {
    with_any_view!(view, view => {
        let v_dim = view.shape()[3];
        for (token, out) in tokens.zip(out.chunks_exact_mut(v_stride)) {
            if v_dim > 0 {
                level.dispatch(Widen { row: &view.from(b, h, token)[..v_dim], out: &mut out[..v_dim] });
            }
        }
    });
}

struct Widen<'a, T> {
    row: &'a [T],
    out: &'a mut [f32],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        widen(isa, self.row, self.out);
    }
}
