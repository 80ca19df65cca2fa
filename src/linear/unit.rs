//! A unit, a sequence's KV head with the query heads that share it, block by block of 64 tokens.
//!
//! ```text
//! extend   block: keys -> exponents -> run of tokens with one gauge:  features -> rows of each query head -> state += keys
//!                                      (the whole block, but for the first key, or one far above all before, or one that
//!                                      lets go of all before)
//! absorb   block: keys -> features -> state += keys
//! attend   block: rows, all keys of the state
//! ```
//!
//! On several threads a unit's blocks go in waves: [`spread`].
//!
//! With an exact window blocks are those of 64 positions, and a block's keys join the state when it is full.

mod kernels;
pub(crate) mod spread;

use super::features::{Ready, Side};
use super::gauge::{self, bits};
use super::rows::{Pairs, Queries, RowScratch, Rows};
use super::state::{StateShape, UnitState, UnitView, forget};
use crate::error::AttentionError;
use crate::isa::Level;
use crate::panels::PANEL;
use crate::rows::OwnedRows;
use crate::scratch::AlignedBuf;
use crate::view::{AnyView, View};
use kernels::{
    Fold, MapTokens, Store, load_panel, load_values, run_fold, run_map_tokens, run_rows, run_store,
};
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
    /// What tells its features from those of others.
    pub(crate) fingerprint: u64,
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
    /// Exponents of the queries of each head, `[group][features][64]`, where a block has several runs; exponential maps only.
    queries: AlignedBuf<f32>,
    /// Sums of log-decays in the block, from the last key on that let go of all before.
    totals: [f32; PANEL],
    /// Bits of such keys.
    resets: u64,
    /// The state of a call that keeps none.
    pub(crate) state: AlignedBuf<f32>,
    /// And of a part of its keys.
    pub(crate) split: AlignedBuf<f32>,
}

impl UnitScratch {
    pub(crate) fn new(shape: &StateShape, group: usize) -> Result<Self, AttentionError> {
        let buffer = |len| AlignedBuf::zeroed("workspace", len);
        let unit = shape.unit_len()?;
        let in_runs = shape.gauged && !shape.window;
        Ok(Self {
            rows: RowScratch::new(shape)?,
            panel: buffer(shape.head_dim * PANEL)?,
            keys: buffer(shape.features * PANEL)?,
            values: buffer(shape.v_stride * PANEL)?,
            queries: buffer(if in_runs { group * shape.features * PANEL } else { 0 })?,
            totals: [0.0; PANEL],
            resets: 0,
            state: buffer(unit)?,
            split: buffer(unit)?,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        let Self { panel, keys, values, queries, state, split, .. } = self;
        self.rows.bytes()
            + [panel, keys, values, queries, state, split].iter().map(|buffer| buffer.bytes()).sum::<usize>()
    }

    /// The first key from `column` on that lets go of all before; 64 if none does.
    fn next_reset(&self, column: usize) -> usize {
        (self.resets & !bits(&(0..column))).trailing_zeros() as usize
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
        let keys = tokens.min(operands.keys);
        self.extend_tokens(operands, 0..keys, (&mut *state, len), scratch, (&mut *out, heads.clone()));
        let unit = self.shape.view(state);
        self.attend(operands, (unit, len + operands.keys), scratch, (out, heads), keys..tokens);
    }

    /// Rows of tokens whose keys are new.
    fn extend_tokens(
        &self,
        operands: &Operands<'_>,
        tokens: Range<usize>,
        (state, len): (&mut [f32], usize),
        scratch: &mut UnitScratch,
        (out, heads): (&mut OwnedRows<'_>, Range<usize>),
    ) {
        let mut start = tokens.start;
        while start < tokens.end {
            let block = self.block(start, len, tokens.end);
            self.load(operands, &block, scratch);
            let mut unit = self.shape.split(state);
            if self.shape.window {
                self.extend_window(operands, &block, &mut unit, scratch, (&mut *out, heads.clone()));
            } else {
                self.extend_block(operands, &block, &mut unit, scratch, (&mut *out, heads.clone()));
            }
            start = block.tokens.end;
        }
    }

    /// The tokens from `start` on that share a block, up to `end`, after `len` that were seen before the call.
    fn block(&self, start: usize, len: usize, end: usize) -> Block {
        let first = if self.shape.window { (len + start) % PANEL } else { 0 };
        let end = end.min(start + PANEL - first);
        Block { tokens: start..end, first, keys: end - start, folded: len + start - first > 0 }
    }

    fn extend_block(
        &self,
        operands: &Operands<'_>,
        block: &Block,
        unit: &mut UnitState<'_>,
        scratch: &mut UnitScratch,
        (out, heads): (&mut OwnedRows<'_>, Range<usize>),
    ) {
        let mut keys = std::mem::take(&mut scratch.keys);
        self.map_keys(0..block.keys, &scratch.panel, &mut scratch.rows, &mut keys);
        let (mut start, mut has_state, mut mapped) = (0, block.folded, false);
        while start < block.keys {
            if scratch.next_reset(start) == start {
                forget(unit);
                has_state = false;
            }
            let end = scratch.next_reset(start + 1).min(block.keys);
            let end = self.advance(&mut keys, start..end, true, unit);
            if self.shape.gauged && end < block.keys && !mapped {
                self.map_queries(operands, block, heads.clone(), scratch);
                mapped = true;
            }
            let run = Run { columns: start..end, keys: &keys, state: unit.view(), has_state, mapped };
            self.attend_run(operands, block, &run, scratch, (&mut *out, heads.clone()));
            let UnitScratch { values, totals, rows: RowScratch { acc, .. }, .. } = &mut *scratch;
            let totals = operands.decay.map(|_| &*totals);
            self.fold(&mut keys, start..end, values, totals, (unit, acc));
            (start, has_state) = (end, true);
        }
        scratch.keys = keys;
    }

    /// Rows of tokens whose keys share a gauge and let go of none of each other.
    fn attend_run(
        &self,
        operands: &Operands<'_>,
        block: &Block,
        run: &Run<'_>,
        scratch: &mut UnitScratch,
        (out, heads): (&mut OwnedRows<'_>, Range<usize>),
    ) {
        let size = self.shape.features * PANEL;
        for (index, head) in heads.enumerate() {
            if !run.mapped {
                self.load_queries(operands, block, head, scratch);
            }
            let UnitScratch { values, totals, panel, queries, rows, .. } = &mut *scratch;
            let pairs = match operands.decay {
                Some(_) => Pairs::Decayed { keys: run.keys, totals: &*totals },
                None => Pairs::Features(run.keys),
            };
            let queries = match run.mapped {
                true => Queries::Exponents(&queries[index * size..][..size]),
                false => Queries::Panel(&*panel),
            };
            let task = Rows {
                map: &self.map,
                shape: self.shape,
                state: run.state,
                has_state: run.has_state,
                pairs,
                queries,
                values: &*values,
                rows: run.columns.clone(),
                keys: run.columns.clone(),
                causal: true,
                scratch: rows,
            };
            run_rows(self.level, task);
            self.store(head, block, run.columns.clone(), &scratch.rows, out);
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
            queries: Queries::Panel(&scratch.panel),
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
            let block = self.block(start, len, tokens.end);
            self.load(operands, &block, scratch);
            let mut unit = self.shape.split(state);
            if self.shape.window {
                self.extend_window(operands, &block, &mut unit, scratch, (&mut OwnedRows::none(), 0..0));
            } else {
                let mut kept = 0..block.keys;
                if scratch.resets != 0 {
                    forget(&mut unit);
                    kept.start = scratch.resets.ilog2() as usize;
                }
                self.map_keys(kept.clone(), &scratch.panel, &mut scratch.rows, &mut scratch.keys);
                self.advance(&mut scratch.keys, kept.clone(), false, &mut unit);
                let UnitScratch { keys, values, totals, rows: RowScratch { acc, .. }, .. } = &mut *scratch;
                let totals = operands.decay.map(|_| &*totals);
                self.fold(keys, kept, values, totals, (&mut unit, acc));
            }
            start = block.tokens.end;
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
                        queries: Queries::Panel(&scratch.panel),
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
        let tokens = block.tokens.start..block.tokens.start + block.keys;
        load_panel(self.level, &operands.k, operands.place, tokens, &mut scratch.panel);
        self.load_values(operands, block, scratch);
    }

    fn load_values(&self, operands: &Operands<'_>, block: &Block, scratch: &mut UnitScratch) {
        let [b, h] = operands.place;
        let start = block.tokens.start;
        let tokens = start..start + block.keys;
        load_values(
            self.level,
            &operands.v,
            [b, h],
            tokens.clone(),
            (&mut scratch.values, self.shape.v_stride),
        );
        scratch.resets = 0;
        if let Some(decay) = operands.decay {
            let mut total = 0.0;
            for (index, slot) in scratch.totals.iter_mut().enumerate() {
                if index < block.keys {
                    let decay = match decay {
                        UnitDecay::Constant(decay) => decay,
                        UnitDecay::Tokens(view) => view.from(b, h, start + index)[0],
                    };
                    if is_shut(decay) {
                        total = 0.0;
                        scratch.resets |= 1 << index;
                    } else {
                        total += decay;
                    }
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
        let (side, row) = (Side::Key, &mut scratch.row[..]);
        run_map_tokens(self.level, MapTokens { map: &self.map, side, tokens, panel, row, out: keys });
    }

    /// The exponents of all queries of a block, of each head.
    fn map_queries(
        &self,
        operands: &Operands<'_>,
        block: &Block,
        heads: Range<usize>,
        scratch: &mut UnitScratch,
    ) {
        let size = self.shape.features * PANEL;
        for (index, head) in heads.enumerate() {
            self.load_queries(operands, block, head, scratch);
            let UnitScratch { panel, queries, rows, .. } = &mut *scratch;
            let (side, tokens) = (Side::Query, 0..block.tokens.len());
            let (row, out) = (&mut rows.row[..], &mut queries[index * size..][..size]);
            run_map_tokens(self.level, MapTokens { map: &self.map, side, tokens, panel, row, out });
        }
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

/// Some columns of a block, queries and keys.
struct Run<'a> {
    columns: Range<usize>,
    /// Features of keys, `[features][64]`.
    keys: &'a [f32],
    /// Of all keys before.
    state: UnitView<'a>,
    has_state: bool,
    /// Whether exponents of the queries are in scratch.
    mapped: bool,
}

/// Whether a log-decay leaves nothing of what came before: its exponential is 0 in `f32`. A sum of others then keeps its
/// digits, as none is larger than 64 of these.
fn is_shut(decay: f32) -> bool {
    decay * LOG2_E < -150.0
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
