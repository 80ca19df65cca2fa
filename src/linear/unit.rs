//! A unit, a sequence's KV head with the query heads that share it, block by block of 64 tokens.
//!
//! ```text
//! extend   block: keys -> exponents -> run of tokens with one gauge:  features -> rows of each query head -> state += keys
//!                                      (the whole block, but for the first key, or one far above all before)
//! absorb   block: keys -> features -> state += keys
//! attend   block: rows, all keys of the state
//! ```
//!
//! With an exact window blocks are those of 64 positions, and a block's keys join the state when it is full.

use super::features::{Ready, Side, whole_columns};
use super::gauge;
use super::products::AddRows;
use super::rows::{Pairs, RowScratch, Rows, sum_columns};
use super::state::{StateShape, UnitState, UnitView, rescale};
use crate::element::Element;
use crate::error::AttentionError;
use crate::isa::{Isa, Kernel, Level};
use crate::kernel::MAX_ROWS;
use crate::kernel::pack::{pack_panels, widen};
use crate::kernel::score::KeyRows;
use crate::kernel::value::{ValueRows, WeightedRows};
use crate::math::vector;
use crate::panels::PANEL;
use crate::rows::OwnedRows;
use crate::scratch::AlignedBuf;
use crate::softmax::exp2;
use crate::view::{AnyView, View, with_any_view};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// How a plan's units are worked off.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) level: Level,
    pub(crate) map: Ready,
    pub(crate) shape: StateShape,
    pub(crate) group: usize,
    pub(crate) normalize: bool,
    /// What logits are multiplied by, to be in log2.
    pub(crate) log2_scale: f32,
}

/// Operands of a unit.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) q: AnyView<'a>,
    pub(crate) k: AnyView<'a>,
    pub(crate) v: AnyView<'a>,
    /// The sequence and its KV head.
    pub(crate) place: [usize; 2],
    /// How many keys there are.
    pub(crate) keys: usize,
    pub(crate) decay: Option<UnitDecay<'a>>,
}

/// Log-decays of a unit.
#[derive(Clone, Copy)]
pub(crate) enum UnitDecay<'a> {
    Constant(f32),
    /// `[batch, kv_heads, kv_len, 1]`.
    Tokens(View<'a, f32>),
}

/// What one worker needs.
#[derive(Debug)]
pub(crate) struct UnitScratch {
    rows: RowScratch,
    /// Keys or queries, `[head_dim][64]`.
    panel: AlignedBuf<f32>,
    /// Features of keys, `[features][64]`.
    keys: AlignedBuf<f32>,
    /// `[64][v_stride]`.
    values: AlignedBuf<f32>,
    /// Sums of log-decays in the block.
    totals: [f32; PANEL],
    /// The state of a call that keeps none.
    pub(crate) state: AlignedBuf<f32>,
    /// And of a part of its keys.
    pub(crate) split: AlignedBuf<f32>,
}

impl UnitScratch {
    pub(crate) fn new(shape: &StateShape) -> Result<Self, AttentionError> {
        let buffer = |len| AlignedBuf::zeroed("workspace", len);
        let unit = shape.unit_len()?;
        Ok(Self {
            rows: RowScratch::new(shape)?,
            panel: buffer(shape.head_dim * PANEL)?,
            keys: buffer(shape.features * PANEL)?,
            values: buffer(shape.v_stride * PANEL)?,
            totals: [0.0; PANEL],
            state: buffer(unit)?,
            split: buffer(unit)?,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        let Self { panel, keys, values, state, split, .. } = self;
        self.rows.bytes()
            + [panel, keys, values, state, split].iter().map(|buffer| buffer.bytes()).sum::<usize>()
    }
}

impl Rules {
    /// Rows of `heads` (of the unit's, counted through all sequences) and all tokens after those of `state`, whose tokens are
    /// `len`; takes the keys into it.
    pub(crate) fn extend(
        &self,
        operands: &Operands<'_>,
        (state, len): (&mut [f32], usize),
        scratch: &mut UnitScratch,
        (out, heads): (&mut OwnedRows<'_>, Range<usize>),
    ) {
        let tokens = out.tokens().end;
        let mut start = 0;
        while start < tokens.min(operands.keys) {
            let first = if self.shape.window { (len + start) % PANEL } else { 0 };
            let rows = start..tokens.min(start + PANEL - first);
            let keys = operands.keys.min(rows.end) - start;
            let block = Block { tokens: rows.clone(), first, keys, folded: len + start - first > 0 };
            self.load(operands, &block, scratch);
            let mut unit = self.shape.split(state);
            if self.shape.window {
                self.extend_window(operands, &block, &mut unit, scratch, (out, heads.clone()));
            } else {
                self.extend_block(operands, &block, &mut unit, scratch, (out, heads.clone()));
            }
            start = rows.end;
        }
        let unit = self.shape.view(state);
        self.attend(operands, (unit, len + operands.keys), scratch, (out, heads), start..tokens);
    }

    fn extend_block(
        &self,
        operands: &Operands<'_>,
        block: &Block,
        unit: &mut UnitState<'_>,
        scratch: &mut UnitScratch,
        (out, heads): (&mut OwnedRows<'_>, Range<usize>),
    ) {
        let rows = block.tokens.len();
        self.map_keys(0..block.keys, &scratch.panel, &mut scratch.rows, &mut scratch.keys);
        let mut start = 0;
        loop {
            let end = self.advance(&mut scratch.keys, start..block.keys, true, unit);
            let run = if end == block.keys { start..rows } else { start..end };
            for head in heads.clone() {
                self.load_queries(operands, block, head, scratch);
                let UnitScratch { keys, values, totals, panel, rows: row_scratch, .. } = &mut *scratch;
                let pairs = match operands.decay {
                    Some(_) => Pairs::Decayed { keys: &*keys, totals: &*totals },
                    None => Pairs::Features(&*keys),
                };
                let task = Rows {
                    map: &self.map,
                    shape: self.shape,
                    state: unit.view(),
                    has_state: block.folded || start > 0,
                    pairs,
                    panel: &*panel,
                    values: &*values,
                    rows: run.clone(),
                    keys: start..end,
                    causal: true,
                    scratch: row_scratch,
                };
                run_rows(self.level, task);
                self.store(head, block, run.clone(), &scratch.rows, out);
            }
            let UnitScratch { keys, values, totals, rows: RowScratch { acc, .. }, .. } = &mut *scratch;
            let totals = operands.decay.map(|_| &*totals);
            self.fold(keys, start..end, values, totals, (unit, acc));
            start = end;
            if start == block.keys {
                return;
            }
        }
    }

    fn extend_window(
        &self,
        operands: &Operands<'_>,
        block: &Block,
        unit: &mut UnitState<'_>,
        scratch: &mut UnitScratch,
        (out, heads): (&mut OwnedRows<'_>, Range<usize>),
    ) {
        let new = block.first..block.first + block.keys;
        for (to, from) in unit.keys.chunks_exact_mut(PANEL).zip(scratch.panel.chunks_exact(PANEL)) {
            to[new.clone()].copy_from_slice(&from[..block.keys]);
        }
        let v_stride = self.shape.v_stride;
        let size = block.keys * v_stride;
        unit.values[block.first * v_stride..][..size].copy_from_slice(&scratch.values[..size]);
        let rows = block.first..block.first + block.tokens.len();
        for head in heads {
            self.load_queries(operands, block, head, scratch);
            self.window_rows(&rows, new.end, block.folded, true, unit.view(), scratch);
            self.store(head, block, rows.clone(), &scratch.rows, out);
        }
        if new.end == PANEL {
            self.map_keys(0..PANEL, unit.keys, &mut scratch.rows, &mut scratch.keys);
            self.advance(&mut scratch.keys, 0..PANEL, false, unit);
            scratch.values.copy_from_slice(unit.values);
            let acc = &mut scratch.rows.acc;
            self.fold(&mut scratch.keys, 0..PANEL, &scratch.values, None, (unit, acc));
        }
    }

    /// Rows whose block has `keys` keys, which the state keeps.
    fn window_rows(
        &self,
        rows: &Range<usize>,
        keys: usize,
        has_state: bool,
        causal: bool,
        unit: UnitView<'_>,
        scratch: &mut UnitScratch,
    ) {
        let task = Rows {
            map: &self.map,
            shape: self.shape,
            state: unit,
            has_state,
            pairs: Pairs::Exact { keys: unit.keys, scale: self.log2_scale },
            panel: &scratch.panel,
            values: unit.values,
            rows: rows.clone(),
            keys: 0..keys,
            causal,
            scratch: &mut scratch.rows,
        };
        run_rows(self.level, task);
    }

    /// Takes some keys into a state, in one piece.
    pub(crate) fn absorb(
        &self,
        operands: &Operands<'_>,
        tokens: Range<usize>,
        (state, len): (&mut [f32], usize),
        scratch: &mut UnitScratch,
    ) {
        let mut start = tokens.start;
        while start < tokens.end {
            let first = if self.shape.window { (len + start) % PANEL } else { 0 };
            let end = tokens.end.min(start + PANEL - first);
            let block = Block { tokens: start..end, first, keys: end - start, folded: false };
            self.load(operands, &block, scratch);
            let mut unit = self.shape.split(state);
            if self.shape.window {
                self.extend_window(operands, &block, &mut unit, scratch, (&mut OwnedRows::none(), 0..0));
            } else {
                self.map_keys(0..block.keys, &scratch.panel, &mut scratch.rows, &mut scratch.keys);
                self.advance(&mut scratch.keys, 0..block.keys, false, &mut unit);
                let UnitScratch { keys, values, totals, rows: RowScratch { acc, .. }, .. } = &mut *scratch;
                let totals = operands.decay.map(|_| &*totals);
                self.fold(keys, 0..block.keys, values, totals, (&mut unit, acc));
            }
            start = end;
        }
    }

    /// Rows of `heads` and `tokens` over all keys of a state, of which there are `len`.
    pub(crate) fn attend(
        &self,
        operands: &Operands<'_>,
        (unit, len): (UnitView<'_>, usize),
        scratch: &mut UnitScratch,
        (out, heads): (&mut OwnedRows<'_>, Range<usize>),
        tokens: Range<usize>,
    ) {
        if len == 0 {
            for token in tokens {
                heads.clone().for_each(|head| out.store_zero(head, token));
            }
            return;
        }
        let held = if self.shape.window { len % PANEL } else { 0 };
        for start in tokens.clone().step_by(PANEL) {
            let block =
                Block { tokens: start..tokens.end.min(start + PANEL), first: 0, keys: 0, folded: true };
            let rows = 0..block.tokens.len();
            for head in heads.clone() {
                self.load_queries(operands, &block, head, scratch);
                if self.shape.window {
                    self.window_rows(&rows, held, len > held, false, unit, scratch);
                } else {
                    let task = Rows {
                        map: &self.map,
                        shape: self.shape,
                        state: unit,
                        has_state: true,
                        pairs: Pairs::Features(&scratch.keys),
                        panel: &scratch.panel,
                        values: &scratch.values,
                        rows: rows.clone(),
                        keys: 0..0,
                        causal: false,
                        scratch: &mut scratch.rows,
                    };
                    run_rows(self.level, task);
                }
                self.store(head, &block, rows.clone(), &scratch.rows, out);
            }
        }
    }

    /// Keys, values and decays of a block into scratch.
    fn load(&self, operands: &Operands<'_>, block: &Block, scratch: &mut UnitScratch) {
        let [b, h] = operands.place;
        let start = block.tokens.start;
        let tokens = start..start + block.keys;
        load_panel(self.level, &operands.k, [b, h], tokens.clone(), &mut scratch.panel);
        load_values(
            self.level,
            &operands.v,
            [b, h],
            tokens.clone(),
            (&mut scratch.values, self.shape.v_stride),
        );
        if let Some(decay) = operands.decay {
            let mut total = 0.0;
            for (index, slot) in scratch.totals.iter_mut().enumerate() {
                if index < block.keys {
                    total += match decay {
                        UnitDecay::Constant(decay) => decay,
                        UnitDecay::Tokens(view) => view.from(b, h, start + index)[0],
                    };
                }
                *slot = total;
            }
        }
    }

    /// A head's queries of a block into the panel, at the columns that are its rows.
    fn load_queries(&self, operands: &Operands<'_>, block: &Block, head: usize, scratch: &mut UnitScratch) {
        let heads = operands.q.shape()[1];
        let place = [head / heads, head % heads];
        load_panel(self.level, &operands.q, place, block.tokens.clone(), &mut scratch.panel);
        if block.first > 0 {
            let count = block.tokens.len();
            for dim in scratch.panel.chunks_exact_mut(PANEL) {
                dim.copy_within(..count, block.first);
            }
        }
    }

    fn map_keys(&self, tokens: Range<usize>, panel: &[f32], scratch: &mut RowScratch, keys: &mut [f32]) {
        let task = MapKeys { map: &self.map, tokens, panel, row: &mut scratch.row, keys };
        run_map_keys(self.level, task);
    }

    fn advance(
        &self,
        keys: &mut [f32],
        columns: Range<usize>,
        causal: bool,
        unit: &mut UnitState<'_>,
    ) -> usize {
        if self.shape.gauged && !columns.is_empty() {
            gauge::advance(self.level, keys, columns, causal, (unit, self.shape.v_stride))
        } else {
            columns.end
        }
    }

    fn fold(
        &self,
        keys: &mut [f32],
        columns: Range<usize>,
        values: &[f32],
        totals: Option<&[f32; PANEL]>,
        (unit, acc): (&mut UnitState<'_>, &mut [f32]),
    ) {
        if !columns.is_empty() {
            run_fold(self.level, Fold { shape: self.shape, keys, columns, values, totals, unit, acc });
        }
    }

    /// Rows of a block, columns `rows` of scratch, to the output.
    fn store(
        &self,
        head: usize,
        block: &Block,
        rows: Range<usize>,
        scratch: &RowScratch,
        out: &mut OwnedRows<'_>,
    ) {
        let first_token = block.tokens.start + rows.start - block.first;
        let Rules { normalize, shape, .. } = *self;
        let task = Store { v_stride: shape.v_stride, normalize, head, first_token, rows, scratch, out };
        run_store(self.level, task);
    }
}

/// Some tokens of a unit that are worked on together.
struct Block {
    /// Those that are new.
    tokens: Range<usize>,
    /// The column of the first of them: as many older keys of the window's block are there.
    first: usize,
    /// How many of them are keys, the first ones.
    keys: usize,
    /// Whether older keys are in the sums.
    folded: bool,
}

/// Compiles a kernel once, into this crate.
macro_rules! run {
    ($name:ident, $kernel:ty) => {
        #[inline(never)]
        fn $name(level: Level, task: $kernel) {
            level.dispatch(task);
        }
    };
}
run!(run_map_keys, MapKeys<'_>);
run!(run_rows, Rows<'_>);
run!(run_fold, Fold<'_, '_>);
run!(run_store, Store<'_, '_>);

struct MapKeys<'a> {
    map: &'a Ready,
    tokens: Range<usize>,
    panel: &'a [f32],
    row: &'a mut [f32],
    keys: &'a mut [f32],
}

impl Kernel for MapKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if !self.tokens.is_empty() {
            self.map.apply(isa, Side::Key, self.panel, self.tokens, (self.row, self.keys));
        }
    }
}

/// Adds keys to the sums.
struct Fold<'a, 's> {
    shape: StateShape,
    /// Features, `[features][64]`; decayed in place.
    keys: &'a mut [f32],
    columns: Range<usize>,
    values: &'a [f32],
    totals: Option<&'a [f32; PANEL]>,
    unit: &'a mut UnitState<'s>,
    /// Room for 6 rows of sums.
    acc: &'a mut [f32],
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
        let values = ValueRows {
            data: &values[columns.start * v_stride..],
            stride: v_stride,
            v_dim,
            from_memory: false,
        };
        for first in (0..features).step_by(MAX_ROWS) {
            let weights = &keys[first * PANEL + columns.start..];
            let rows = MAX_ROWS.min(features - first);
            // By themselves first, as the norms are: next to all keys before, each would round away the same way.
            let acc = &mut acc[..rows * v_stride];
            acc.fill(0.0);
            let weights =
                WeightedRows { weights, weights_stride: PANEL, acc: &mut *acc, acc_stride: v_stride };
            isa.call(AddRows { rows, values, count: columns.len(), step: PANEL, weights });
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
    for column in whole_columns(columns).step_by(I::LANES) {
        let exponent = isa.mul(isa.sub(isa.splat(total), isa.load(&totals[column..])), isa.splat(LOG2_E));
        let factor = vector::exp2(isa, exponent);
        for row in keys.chunks_exact_mut(PANEL) {
            let row = &mut row[column..];
            isa.store(isa.mul(isa.load(row), factor), row);
        }
    }
}

/// Divides rows and rounds them.
struct Store<'a, 'o> {
    v_stride: usize,
    normalize: bool,
    head: usize,
    first_token: usize,
    rows: Range<usize>,
    scratch: &'a RowScratch,
    out: &'a mut OwnedRows<'o>,
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
fn load_panel(level: Level, view: &AnyView<'_>, [b, h]: [usize; 2], tokens: Range<usize>, panel: &mut [f32]) {
    with_any_view!(view, view => {
        let rows = KeyRows { data: view.from(b, h, tokens.start), stride: view.strides()[2], len: tokens.len() };
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
fn load_values(
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
