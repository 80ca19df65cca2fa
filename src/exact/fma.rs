//! The exact tier: operands in f32 (or widened on the way into registers), one multiply-add per step.

use super::block::{Block, BlockRow};
use super::call::Call;
use super::columns::Columns;
use super::sequence::Sequence;
use super::tier::{Accumulators, Runs, Stored, Tier};
use super::visit::Visit;
use super::workspace::Operands;
use crate::element::{DType, Element};
use crate::isa::Isa;
use crate::kernel::group::{Accumulate, ScoreKeyRows, ScorePanels};
use crate::kernel::pack::{VALUE_PANEL, pack_panels, pack_query, pack_values, widen};
use crate::kernel::prefetch::Share;
use crate::kernel::score::{KeyRows, ScoreRows};
use crate::kernel::value::{ValueRows, WeightedRows};
use crate::kernel::{Constant, Stride};
use crate::mask::TILE;
use crate::panels::PANEL;
use crate::tile::{FUSED_ROWS, STREAMED_KEYS, from_memory, packs_values};
use crate::view::with_any_view;
use std::ops::Range;

pub(crate) struct FmaTier;

/// Where a block's keys and values come from.
pub(crate) struct Source<'a, T> {
    head_dim: usize,
    /// What scratch knows the keys' head by.
    head: [usize; 2],
    keys: KeySource<'a, T>,
    /// From key 0 on.
    values: ValueRows<'a, T>,
    /// Whether values are packed into scratch tile by tile.
    packs_values: bool,
    /// Values to visit at a time.
    step: usize,
}

/// Where a block's keys come from.
enum KeySource<'a, T> {
    /// Panels as they are stored.
    Panels(&'a [T]),
    /// Panels packed into scratch, at their own place.
    Packed,
    /// The same, packed when the first block visits them.
    PackedLater(Stored<'a, T>),
    /// Rows, packed into scratch tile by tile.
    PackedTile(KeyRows<'a, T>),
    /// Rows, transposed in registers.
    Rows(KeyRows<'a, T>),
}

impl<I: Isa> Tier<I> for FmaTier {
    type Source<'a, T: Element> = Source<'a, T>;

    #[inline(always)]
    fn pack_query<T: Element>(
        isa: I,
        call: &Call<'_, T>,
        sequence: &Sequence,
        row: &BlockRow,
        index: usize,
        operands: &mut Operands,
    ) {
        let head_dim = call.problem.head_dim;
        let packed = &mut operands.queries[index * head_dim..][..head_dim];
        with_any_view!(call.q, q => {
            let query = q.from(sequence.batch, row.mask.q_head, sequence.q_first + row.mask.query);
            pack_query(isa, &query[..head_dim], call.rules.factor, packed);
        });
    }

    #[inline(always)]
    fn open<'a, T: Element>(
        isa: I,
        call: &'a Call<'a, T>,
        block: &Block,
        operands: &mut Operands,
        keys: &Range<usize>,
    ) -> Source<'a, T> {
        let Sequence { index, batch, k_first, .. } = block.sequence;
        let values = ValueRows {
            data: call.v.from(batch, block.kv_head, k_first),
            stride: call.v.strides()[2],
            v_dim: call.problem.v_dim,
            from_memory: from_memory(call.work),
        };
        let head_dim = call.problem.head_dim;
        let step = if block.shares_keys { usize::MAX } else { STREAMED_KEYS };
        let packs_values = packs_values(I::LANES, block.rows.len());
        let head = [index, block.kv_head];
        let keys = key_source(isa, call, block, operands, keys);
        Source { head_dim, head, keys, values, packs_values, step }
    }

    #[inline(always)]
    fn enter_tile<T: Element>(
        isa: I,
        source: &Source<'_, T>,
        operands: &mut Operands,
        tile: &Range<usize>,
        columns: Columns,
    ) {
        let (head_dim, first) = (source.head_dim, tile.start / PANEL);
        match source.keys {
            KeySource::PackedTile(rows) => {
                for panel in columns.panels() {
                    let out = &mut operands.panels[panel * PANEL * head_dim..][..PANEL * head_dim];
                    pack_panels(isa, rows, head_dim, first + panel..first + panel + 1, out);
                }
            }
            KeySource::PackedLater(stored) => {
                for panel in columns.panels() {
                    pack_missing(
                        isa,
                        stored,
                        source.head,
                        head_dim,
                        operands,
                        first + panel..first + panel + 1,
                    );
                }
            }
            KeySource::Panels(_) | KeySource::Packed | KeySource::Rows(_) => {}
        }
        if source.packs_values {
            for run in columns.runs() {
                let keys = tile.start + run.start..tile.end.min(tile.start + run.end);
                pack_values(isa, source.values, keys, TILE, &mut operands.values[run.start * VALUE_PANEL..]);
            }
        }
    }

    #[inline(always)]
    fn ask_for_tile<T: Element>(
        isa: I,
        source: &Source<'_, T>,
        operands: &Operands,
        visit: &Visit,
        share: Share,
    ) {
        let ValueRows { data, stride, v_dim, .. } = source.values;
        let head_dim = source.head_dim;
        for panel in visit.columns.panels() {
            let first = visit.tile.start + panel * PANEL;
            match source.keys {
                KeySource::Panels(panels) => share.ask(isa, panels, first * head_dim, PANEL * head_dim),
                KeySource::Packed | KeySource::PackedLater(_) => {
                    share.ask(isa, &operands.panels, first * head_dim, PANEL * head_dim);
                }
                KeySource::PackedTile(rows) | KeySource::Rows(rows) => {
                    share.ask_rows(isa, rows.data, first, [rows.stride, head_dim]);
                }
            }
            share.ask_rows(isa, data, first, [stride, v_dim]);
        }
    }

    #[inline(always)]
    fn score_group<T: Element>(
        isa: I,
        source: &Source<'_, T>,
        operands: &Operands,
        group: Range<usize>,
        tile: &Range<usize>,
        columns: &Range<usize>,
        scores: &mut [f32],
    ) {
        let head_dim = source.head_dim;
        let q = &operands.queries[group.start * head_dim..];
        let rows = ScoreRows { out: scores, stride: Constant::<TILE>, scale: () };
        let (count, columns) = (group.len(), columns.clone());
        let first = tile.start * head_dim;
        match source.keys {
            KeySource::Panels(panels) => {
                let (panels, from_memory) = (&panels[first..], source.values.from_memory);
                isa.call(ScorePanels { count, q, dims: head_dim, panels, from_memory, columns, rows });
            }
            KeySource::Packed | KeySource::PackedLater(_) | KeySource::PackedTile(_) => {
                let first = if matches!(source.keys, KeySource::PackedTile(_)) { 0 } else { first };
                let panels = &operands.panels[first..];
                isa.call(ScorePanels { count, q, dims: head_dim, panels, from_memory: false, columns, rows });
            }
            KeySource::Rows(keys) => {
                isa.call(ScoreKeyRows { count, q, head_dim, keys, tile_start: tile.start, columns, rows });
            }
        }
    }

    #[inline(always)]
    fn accumulate_group<T: Element>(
        isa: I,
        source: &Source<'_, T>,
        operands: &mut Operands,
        tile: &Range<usize>,
        runs: Runs,
        weights: &[f32],
        mut acc: Accumulators<'_>,
    ) {
        let ValueRows { data, stride, v_dim, .. } = source.values;
        for (run, guard) in runs.runs {
            if run.is_empty() {
                continue;
            }
            let weights = &weights[run.start..];
            if !source.packs_values {
                let values = ValueRows { data: &data[(tile.start + run.start) * stride..], ..source.values };
                accumulate_run(isa, values, &run, guard, source.step, weights, &mut acc);
                continue;
            }
            for (index, panel) in operands.values.chunks_exact(TILE * VALUE_PANEL).enumerate() {
                let first = index * VALUE_PANEL;
                if first >= v_dim {
                    break;
                }
                let data = &panel[run.start * VALUE_PANEL..];
                let stride = Constant::<VALUE_PANEL>;
                let values = ValueRows { data, stride, v_dim: VALUE_PANEL, from_memory: false };
                let mut acc = Accumulators { acc: &mut acc.acc[first..], ..acc };
                accumulate_run(isa, values, &run, guard, usize::MAX, weights, &mut acc);
            }
        }
    }
}

/// Adds a run of a tile's columns.
#[inline(always)]
fn accumulate_run<I: Isa, T: Element>(
    isa: I,
    values: ValueRows<'_, T, impl Stride>,
    run: &Range<usize>,
    guard: bool,
    step: usize,
    weights: &[f32],
    acc: &mut Accumulators<'_>,
) {
    let Accumulators { rows: count, ref mut acc, stride: acc_stride } = *acc;
    let rows = WeightedRows { weights, weights_stride: Constant::<TILE>, acc, acc_stride };
    isa.call(Accumulate { count, values, keys: run.len(), step, guard, rows });
}

/// Chooses where keys come from, and packs them if the head's blocks share them; where a block may skip keys, packing waits
/// until one visits them.
#[inline(always)]
fn key_source<'a, I: Isa, T: Element>(
    isa: I,
    call: &'a Call<'a, T>,
    block: &Block,
    operands: &mut Operands,
    keys: &Range<usize>,
) -> KeySource<'a, T> {
    let stored = Stored::of(call, block);
    match stored {
        Stored::Panels(panels) if !block.shares_keys || T::DTYPE == DType::F32 => KeySource::Panels(panels),
        Stored::Rows(rows) if !block.shares_keys && block.rows.len() > FUSED_ROWS => {
            KeySource::PackedTile(rows)
        }
        Stored::Rows(rows) if !block.shares_keys => KeySource::Rows(rows),
        _ if call.mask.has_lists() => KeySource::PackedLater(stored),
        _ => {
            let panels = keys.start / PANEL..keys.end.div_ceil(PANEL);
            pack_missing(
                isa,
                stored,
                [block.sequence.index, block.kv_head],
                call.problem.head_dim,
                operands,
                panels,
            );
            KeySource::Packed
        }
    }
}

/// Packs those of some panels of a head that are not in scratch.
#[inline(always)]
fn pack_missing<I: Isa, T: Element>(
    isa: I,
    stored: Stored<'_, T>,
    head: [usize; 2],
    head_dim: usize,
    operands: &mut Operands,
    panels: Range<usize>,
) {
    let size = PANEL * head_dim;
    while let Some(missing) = operands.missing_panels(head, &panels) {
        let range = missing.start * size..missing.end * size;
        let out = &mut operands.panels[range.clone()];
        match stored {
            Stored::Panels(panels) => widen(isa, &panels[range], out),
            Stored::Rows(rows) => pack_panels(isa, rows, head_dim, missing, out),
        }
    }
}
