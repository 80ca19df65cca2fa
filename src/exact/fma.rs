//! The exact tier: operands in f32 (or widened on the way into registers), one multiply-add per step.

use super::block::Block;
use super::call::Call;
use super::columns::Columns;
use super::rows::BlockRow;
use super::sequence::Sequence;
use super::tier::{Accumulators, At, Operand, Runs, Stored, Tier};
use super::visit::Visit;
use super::workspace::Operands;
use crate::element::{DType, Element};
use crate::isa::Isa;
use crate::kernel::Constant;
use crate::kernel::pack::{pack_query, value_panel, widen};
use crate::kernel::prefetch::{Near, Share, with_asks};
use crate::kernel::score::{KeyRows, ScoreRows, has_narrow_tiles};
use crate::kernel::tiles::{
    Accumulate, AccumulatePacked, Guarded, PackPanel, PackValues, ScoreKeyRows, ScorePanels,
};
use crate::kernel::value::{ValueRows, WeightedRows};
use crate::mask::TILE;
use crate::panels::PANEL;
use crate::tile::{
    FUSED_ROWS, adds_in_pairs, asks_for_values, from_memory, packs_values, streamed_again, streamed_keys,
    widens_tiles,
};
use crate::view::with_any_view;
use std::ops::Range;

pub(crate) struct FmaTier;

/// Where keys and values of a KV head of a block come from.
pub(crate) struct Source<'a, T> {
    head_dim: usize,
    /// What scratch knows the head by.
    head: [usize; 2],
    keys: KeySource<'a, T>,
    /// From key 0 on.
    values: ValueRows<'a, T>,
    /// Values there are.
    kv_len: usize,
    packing: ValuePacking,
    /// Whether keys and values are expected to come from memory.
    from_memory: bool,
    /// Values to visit at a time.
    step: usize,
    /// See [`Operand::next_head`]; of keys and of values, where they come from memory.
    next_keys: Option<usize>,
    next_values: Option<usize>,
}

/// Where its keys come from.
enum KeySource<'a, T> {
    /// Panels as they are stored.
    Panels(&'a [T]),
    /// Panels packed into scratch, at their own place, when the first block visits them.
    Packed(Stored<'a, T>),
    /// Packed into scratch tile by tile.
    PackedTile(Stored<'a, T>),
    /// Rows, transposed in registers.
    Rows(KeyRows<'a, T>),
}

/// Whether values are packed into scratch.
#[derive(Clone, Copy)]
enum ValuePacking {
    /// They are read as they are stored.
    None,
    /// Tile by tile.
    Tile,
    /// At their own place, when the first block visits them.
    Head,
}

impl<I: Isa> Tier<I> for FmaTier {
    type Source<'a, T: Element> = Source<'a, T>;

    const JOINS_HEADS: bool = true;

    #[inline(always)]
    fn pack_queries<T: Element>(
        isa: I,
        call: &Call<'_, T>,
        sequence: &Sequence,
        rows: &[BlockRow],
        operands: &mut Operands,
    ) {
        let (head_dim, packed) = (call.problem.head_dim, &mut operands.queries);
        with_any_view!(call.q, q => {
            for (index, row) in rows.iter().enumerate() {
                let query = q.from(sequence.batch, row.mask.q_head, sequence.q_first + row.mask.query);
                let packed = &mut packed[index * head_dim..][..head_dim];
                pack_query(isa, &query[..head_dim], call.rules.factor, packed);
            }
        });
    }

    #[inline(always)]
    fn open<'a, T: Element>(call: &'a Call<'a, T>, block: &Block, kv_head: usize) -> Source<'a, T> {
        let Sequence { index, batch, k_first, kv_len, .. } = block.sequence;
        let (narrow, from_memory) = (has_narrow_tiles::<I>(), from_memory(call.work));
        let (rows, v_dim) = (block.head_rows, call.problem.v_dim);
        let values = ValueRows {
            data: call.v.from(batch, kv_head, k_first),
            stride: call.v.strides()[2],
            v_dim,
            ahead: Near::first(asks_for_values(narrow, T::DTYPE, from_memory)),
            in_pairs: adds_in_pairs(narrow, rows, T::DTYPE, v_dim, from_memory),
        };
        let half = T::DTYPE != DType::F32;
        let packing = match packs_values(I::LANES, half, rows, block.shares_keys, kv_len * v_dim) {
            false => ValuePacking::None,
            true if block.shares_keys => ValuePacking::Head,
            true => ValuePacking::Tile,
        };
        let row_bytes = v_dim * size_of::<T>();
        let step = match block.shares_keys {
            true => usize::MAX,
            false => streamed_keys(narrow, rows, T::DTYPE, row_bytes, from_memory),
        };
        Source {
            head_dim: call.problem.head_dim,
            head: [index, kv_head],
            keys: KeySource::new::<I>(call, block, kv_head),
            values,
            kv_len,
            packing,
            from_memory,
            step,
            next_keys: if from_memory { call.keys.keys_per_head() } else { None },
            next_values: if from_memory { call.v.rows_per_head() } else { None },
        }
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
            KeySource::PackedTile(stored) => {
                for panel in columns.panels() {
                    let out = &mut operands.panels[panel * PANEL * head_dim..];
                    pack_keys(isa, stored, head_dim, first + panel, out);
                }
            }
            KeySource::Packed(stored) => {
                for panel in columns.panels().map(|panel| first + panel) {
                    if operands.must_pack_keys(source.head, panel) {
                        let out = &mut operands.panels[panel * PANEL * head_dim..];
                        pack_keys(isa, stored, head_dim, panel, out);
                    }
                }
            }
            KeySource::Panels(_) | KeySource::Rows(_) => {}
        }
        let width = value_panel(I::LANES, source.values.v_dim);
        match source.packing {
            ValuePacking::None => {}
            ValuePacking::Tile => {
                for run in columns.runs() {
                    let keys = tile.start + run.start..tile.end.min(tile.start + run.end);
                    let out = &mut operands.values[run.start * width..];
                    isa.call(PackValues { values: source.values, keys, width, out });
                }
            }
            ValuePacking::Head => {
                for panel in columns.panels() {
                    if operands.must_pack_values(source.head, first + panel) {
                        let key = tile.start + panel * PANEL;
                        let place = operands.value_place(key, width);
                        let there = mutant!("values-packed-to-the-end-of-the-tile", source.kv_len, tile.end);
                        let keys = key..there.min(key + PANEL);
                        let out = &mut operands.values[place..];
                        isa.call(PackValues { values: source.values, keys, width, out });
                    }
                }
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
            let key = visit.tile.start + panel * PANEL;
            match source.keys {
                KeySource::Packed(_) if operands.has_keys(source.head, key / PANEL) => {
                    share.ask(isa, &operands.panels, key * head_dim, PANEL * head_dim);
                }
                KeySource::Packed(stored) | KeySource::PackedTile(stored) => {
                    stored.ask(isa, share, key, head_dim);
                }
                KeySource::Panels(panels) => Stored::Panels(panels).ask(isa, share, key, head_dim),
                KeySource::Rows(rows) => Stored::Rows(rows).ask(isa, share, key, head_dim),
            }
            match source.packing {
                ValuePacking::Head if operands.has_values(source.head, key / PANEL) => {
                    let width = value_panel(I::LANES, v_dim);
                    let packed = &operands.values[operands.value_place(key, width)..];
                    for dims in packed.chunks(TILE * width).take(v_dim.div_ceil(width)) {
                        share.ask(isa, dims, 0, PANEL * width);
                    }
                }
                _ => share.ask_rows(isa, data, key, [stride, v_dim]),
            }
        }
    }

    #[inline(always)]
    fn score_group<T: Element>(
        isa: I,
        source: &Source<'_, T>,
        operands: &Operands,
        group: Range<usize>,
        at: At<'_>,
        columns: &Range<usize>,
        scores: &mut [f32],
    ) {
        let (head_dim, tile) = (source.head_dim, at.tile);
        let q = &operands.queries[group.start * head_dim..];
        let out = ScoreRows { out: scores, stride: Constant::<TILE>, scale: () };
        let (rows, columns) = (group.len(), columns.clone());
        let first = tile.start * head_dim;
        match source.keys {
            KeySource::Panels(panels) => {
                let operand =
                    Operand { data: panels, len: head_dim, in_one_piece: true, next_head: source.next_keys };
                let asks = at.asks::<I, _>(Near::first(source.from_memory), operand);
                let panels = &panels[first..];
                with_asks!(asks, ahead =>
                    isa.call(ScorePanels { rows, q, dims: head_dim, panels, ahead, columns, out }));
            }
            KeySource::Packed(_) => {
                let asks = at.asks::<I, _>(Near::ForSeveral, Operand::packed(&operands.panels, head_dim));
                let panels = &operands.panels[first..];
                with_asks!(asks, ahead =>
                    isa.call(ScorePanels { rows, q, dims: head_dim, panels, ahead, columns, out }));
            }
            KeySource::PackedTile(keys) => {
                let piece = keys.next_piece(at, head_dim, source.from_memory, source.next_keys);
                let ahead = at.elsewhere::<1>(piece);
                let panels = &operands.panels[..];
                isa.call(ScorePanels { rows, q, dims: head_dim, panels, ahead, columns, out });
            }
            KeySource::Rows(keys) => {
                isa.call(ScoreKeyRows { rows, q, head_dim, keys, tile_start: tile.start, columns, out });
            }
        }
    }

    #[inline(always)]
    fn accumulate_group<T: Element>(
        isa: I,
        source: &Source<'_, T>,
        operands: &mut Operands,
        at: At<'_>,
        runs: &Runs,
        weights: &[f32],
        acc: Accumulators<'_>,
    ) {
        let Accumulators { rows, acc, stride: acc_stride } = acc;
        let (values, tile) = (source.values, at.tile);
        let width = value_panel(I::LANES, values.v_dim);
        let packed = source.packed_values(operands, tile, width);
        let in_one_piece = values.stride == values.v_dim;
        let stored =
            Operand { data: values.data, len: values.v_dim, in_one_piece, next_head: source.next_values };
        let asks = match source.packing {
            ValuePacking::Head => {
                at.asks::<I, _>(Near::ForSeveral, Operand::packed(&operands.values, operands.v_stride))
            }
            ValuePacking::Tile => at.asks::<I, _>(Near::ForSeveral, stored),
            ValuePacking::None => at.asks::<I, _>(values.ahead, stored),
        };
        let step = match at.are_first(in_one_piece) {
            true => source.step,
            false => streamed_again(I::LANES, source.step),
        };
        for &(ref run, guard) in &runs.runs {
            if run.is_empty() {
                continue;
            }
            let weighted = WeightedRows {
                weights: &weights[run.start..],
                weights_stride: Constant::<TILE>,
                acc: &mut *acc,
                acc_stride,
            };
            let keys = run.len();
            if let Some(packed) = packed {
                let (values, v_dim) = (&packed[run.start * width..], values.v_dim);
                with_asks!(asks.of_run(run), ahead => {
                    let kernel = AccumulatePacked { rows, values, v_dim, width, ahead, keys, weighted };
                    if guard { isa.call(Guarded(kernel)) } else { isa.call(kernel) }
                });
            } else {
                let data = &values.data[(tile.start + run.start) * values.stride..];
                with_asks!(asks.of_run(run), ahead => {
                    let values = ValueRows { data, ..values }.asking(ahead);
                    let kernel = Accumulate { rows, values, keys, step, weighted };
                    if guard { isa.call(Guarded(kernel)) } else { isa.call(kernel) }
                });
            }
        }
    }
}

impl<T> Source<'_, T> {
    /// A tile's packed values, `[panel of dimensions][256][width]`, and what comes after them.
    #[inline(always)]
    fn packed_values<'o>(
        &self,
        operands: &'o Operands,
        tile: &Range<usize>,
        width: usize,
    ) -> Option<&'o [f32]> {
        match self.packing {
            ValuePacking::None => None,
            ValuePacking::Tile => Some(&operands.values),
            ValuePacking::Head => Some(&operands.values[operands.value_place(tile.start, width)..]),
        }
    }
}

impl<'a, T: Element> KeySource<'a, T> {
    /// Where the keys of one of a block's heads come from.
    #[inline(always)]
    fn new<I: Isa>(call: &'a Call<'a, T>, block: &Block, kv_head: usize) -> Self {
        match Stored::of(call, block, kv_head) {
            Stored::Panels(panels) if T::DTYPE == DType::F32 => Self::Panels(panels),
            stored if block.shares_keys => Self::Packed(stored),
            Stored::Panels(panels) if !widens_tiles(I::LANES, block.head_rows) => Self::Panels(panels),
            Stored::Rows(rows) if block.head_rows <= FUSED_ROWS => Self::Rows(rows),
            stored => Self::PackedTile(stored),
        }
    }
}

/// Packs a panel of a head's keys.
#[inline(always)]
fn pack_keys<I: Isa, T: Element>(
    isa: I,
    stored: Stored<'_, T>,
    head_dim: usize,
    panel: usize,
    out: &mut [f32],
) {
    let size = PANEL * head_dim;
    let out = &mut out[..size];
    match stored {
        Stored::Panels(panels) => widen(isa, &panels[panel * size..], out),
        Stored::Rows(keys) => isa.call(PackPanel { keys, head_dim, panel, out }),
    }
}
