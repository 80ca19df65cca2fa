//! The bf16 dot-product tier: opt-in, twice the multiply-adds per instruction, the accuracy of bf16.
//!
//! ```text
//! q, k, v  rounded to bf16, to nearest even (exact if stored so), subnormals to zero
//! D_j  = chain over pairs of dimensions, ascending, from +0:   dot(acc, q_2i q_2i+1, k_j,2i k_j,2i+1)
//!                                                             an odd last dimension is paired with +0
//! t_j  = D_j * RN(scale * log2 e)                             then cap, ALiBi, bias (crate::score)
//! m, p_j, l                                                   as in the exact tier: f32, tiles of 256 keys
//! p'_j = p_j rounded to bf16, for the next line only
//! a_d  = chain over pairs of keys, ascending, from +0:        dot(acc, p'_2i p'_2i+1, v_2i,d v_2i+1,d)
//!        a pair with one removed key takes +0 for that key's weight and value, a pair with two is no step
//! splits of 1024 keys, their merge, sinks, out = a / l        as in the exact tier
//! ```
//!
//! `dot` is the instruction `vdpbf16ps`: both products are exact and each addition rounds to nearest even; subnormals
//! count as zero. Unlike in the exact tier the scale is not folded into `q`, which would round once more. As there, a
//! row's bits depend on its query, its keys and the call's rules only: pairs are counted from the sequence's (or the
//! cache's) first key, and what is removed is removed row by row. The bits are those of CPUs with the instruction and
//! have no model in software.
//!
//! # Accuracy
//!
//! Against attention over the rounded operands: each weight is off by 2^-8 (half the spacing of bf16) of itself, in the
//! numerator only, so an output is off by at most 2^-8 `sum_j p_j |v_jd|` (`p` normalised), and by what f32 sums cost
//! the exact tier. Rounding the operands, where they are not stored as bf16, comes on top: it moves a logit by up to
//! 2^-7 `scale sum_d |q_d k_jd|`. LSE and scores are f32, of the rounded operands.
//!
//! # Layout
//!
//! ```text
//! queries  [row][head_dim / 2][2]            keys    [kv / 64][head_dim / 2][64][2]     dimensions rounded up to pairs
//! weights  [row][tile / 2][2]                values  [kv / 2][v_dim, rounded up to 16][2]
//! ```
//!
//! Keys and values are converted once per head and worker when several blocks share them, tile by tile when not:
//! 4 bytes read (f32), 2 written, per element. A pair is one 32-bit lane, so a panel is transposed as in the exact tier.
//! What is converted next is asked for ahead of time, see [`crate::kernel::prefetch`].
//!
//! Blocks of few rows read what is stored as bf16 as it is and pair it in registers, with the same bits: two rows of a panel, or of
//! values, make a vector of pairs, and rows of keys are transposed in words of two dimensions (see `tile::pairs_in_registers`). To
//! round weights where they are made instead of in a pass of their own gains nothing (0.98 to 1.04, `prefill`).
#![allow(clippy::needless_range_loop, reason = "vectors in registers are indexed by constants")]

use super::block::Block;
use super::call::Call;
use super::columns::Columns;
use super::rows::BlockRow;
use super::sequence::Sequence;
use super::tier::{Accumulators, At, Runs, Stored, Tier};
use super::visit::Visit;
use super::workspace::{Operands, PairOperands};
use crate::element::Element;
use crate::isa::Bf16Dot;
use crate::kernel::prefetch::{AheadOfValues, Near, PrefetchRows, Share, ask_for};
use crate::kernel::product::{Halves, Pair};
use crate::kernel::score::{KeyRows, ScoreRows};
use crate::kernel::tiles::{Accumulate, Guarded, PairedTile, ScoreKeyRows, ScorePanels};
use crate::kernel::value::{ValueRows, WeightedRows};
use crate::kernel::{Constant, load_padded};
use crate::mask::TILE;
use crate::panels::PANEL;
use crate::tile::{STREAMED_KEYS, from_memory, pairs_in_registers};
use crate::view::with_any_view;
use half::bf16;
use std::ops::Range;

/// Lanes of a vector: pairs, or sums.
const LANES: usize = 16;

pub(crate) struct Bf16DotTier;

/// Where keys and values of a block's KV head come from.
pub(crate) struct Source<'a, T> {
    /// Pairs of dimensions.
    dims: usize,
    /// RN(scale * log2 e).
    factor: f32,
    head_dim: usize,
    v_dim: usize,
    keys: Stored<'a, T>,
    values: KeyRows<'a, T>,
    /// Both, where they are read as they are stored and not from scratch.
    as_stored: Option<AsStored<'a>>,
    /// Whether all lies in scratch at its own place, and not just a tile.
    whole: bool,
    /// What scratch knows the head by.
    head: [usize; 2],
}

/// Keys and values whose rows are paired in registers.
struct AsStored<'a> {
    keys: Stored<'a, bf16>,
    values: KeyRows<'a, bf16>,
}

/// Pairs of dimensions.
pub(crate) fn pairs(head_dim: usize) -> usize {
    head_dim.div_ceil(2)
}

impl<I: Bf16Dot> Tier<I> for Bf16DotTier {
    type Source<'a, T: Element> = Source<'a, T>;

    const JOINS_HEADS: bool = false;

    #[inline(always)]
    fn pack_queries<T: Element>(
        isa: I,
        call: &Call<'_, T>,
        sequence: &Sequence,
        rows: &[BlockRow],
        operands: &mut Operands,
    ) {
        let head_dim = call.problem.head_dim;
        let (dims, packed) = (pairs(head_dim), &mut operands.pairs.queries);
        with_any_view!(call.q, q => {
            for (index, row) in rows.iter().enumerate() {
                let query = q.from(sequence.batch, row.mask.q_head, sequence.q_first + row.mask.query);
                narrow_row(isa, &query[..head_dim], &mut packed[index * dims..][..dims]);
            }
        });
    }

    #[inline(always)]
    fn open<'a, T: Element>(call: &'a Call<'a, T>, block: &Block, kv_head: usize) -> Source<'a, T> {
        let Sequence { index, batch, k_first, kv_len, .. } = block.sequence;
        let values = KeyRows {
            data: call.v.from(batch, kv_head, k_first),
            stride: call.v.strides()[2],
            len: kv_len,
            from_memory: from_memory(call.work),
        };
        let head_dim = call.problem.head_dim;
        let keys = Stored::of(call, block, kv_head);
        let panels = matches!(keys, Stored::Panels(_));
        let few = !block.shares_keys && pairs_in_registers(T::DTYPE, block.head_rows, panels);
        Source {
            dims: pairs(head_dim),
            factor: call.rules.factor,
            head_dim,
            v_dim: call.problem.v_dim,
            keys,
            values,
            as_stored: if few { AsStored::new(keys, values) } else { None },
            whole: block.shares_keys,
            head: [index, kv_head],
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
        if source.as_stored.is_some() {
            return;
        }
        let first = tile.start / PANEL;
        for panel in columns.panels() {
            if !source.whole {
                source.pack(isa, operands, first + panel, panel);
            } else if operands.must_pack_keys(source.head, first + panel) {
                source.pack(isa, operands, first + panel, first + panel);
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
        if let Some(stored) = &source.as_stored {
            stored.ask_for_tile(isa, [source.head_dim, source.v_dim], visit, share);
        }
        if !source.whole {
            return;
        }
        let PairOperands { keys, values, .. } = &operands.pairs;
        let v_stride = operands.v_stride;
        for panel in visit.columns.panels() {
            let first = visit.tile.start + panel * PANEL;
            share.ask(isa, keys, first * source.dims, PANEL * source.dims);
            share.ask(isa, values, first / 2 * v_stride, PANEL / 2 * v_stride);
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
        let (dims, head_dim) = (source.dims, source.head_dim);
        let At { tile, first_rows, .. } = at;
        let q = &operands.pairs.queries[group.start * dims..];
        let (rows, columns) = (group.len(), columns.clone());
        let out = ScoreRows { out: scores, stride: Constant::<TILE>, scale: source.factor };
        match source.as_stored {
            Some(AsStored { keys: Stored::Panels(panels), .. }) => {
                let panels = &panels[tile.start * head_dim..];
                let ahead = AsStored::AHEAD.only_if(first_rows);
                isa.call_bf16(ScorePanels { rows, q, dims: head_dim, panels, ahead, columns, out });
                return;
            }
            Some(AsStored { keys: Stored::Rows(keys), .. }) => {
                isa.call_bf16(ScoreKeyRows { rows, q, head_dim, keys, tile_start: tile.start, columns, out });
                return;
            }
            None => {}
        }
        let panels = &operands.pairs.keys[source.first(tile) * dims..];
        let piece =
            source.keys.next_piece(source.packing_next(at), head_dim, source.values.from_memory, None);
        let ahead = at.elsewhere::<8>(piece);
        isa.call_bf16(ScorePanels { rows, q, dims, panels, ahead, columns, out });
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
        let At { tile, first_rows, .. } = at;
        let stride = operands.v_stride;
        let first = source.first(tile) / 2;
        let (values, rounded) = (&operands.pairs.values, &mut operands.pairs.weights);
        for row in 0..rows {
            narrow_weights(
                isa,
                &weights[row * TILE..][runs.columns.clone()],
                &mut rounded[row * TILE / 2 + runs.columns.start / 2..],
            );
        }
        let piece = source.packing_next(at).next_rows(source.values, source.v_dim, None);
        let elsewhere = at.elsewhere::<8>(piece);
        for (run, guard) in pair_runs(&runs.runs) {
            if run.is_empty() {
                continue;
            }
            let keys = run.len();
            let weighted = WeightedRows {
                weights: &rounded[run.start..],
                weights_stride: Constant::<{ TILE / 2 }>,
                acc: &mut *acc,
                acc_stride,
            };
            if let Some(stored) = &source.as_stored {
                let values = stored.values_from(tile.start + 2 * run.start, source.v_dim, first_rows);
                add_up(isa, guard, Accumulate { rows, values, keys, step: STREAMED_KEYS, weighted });
                continue;
            }
            let values = ValueRows {
                data: &values[(first + run.start) * stride..],
                stride,
                // All that the accumulators have room for: rows of values are padded likewise.
                v_dim: stride,
                ahead: elsewhere.of_run(&(2 * run.start..2 * run.end)),
                in_pairs: false,
            };
            add_up(isa, guard, Accumulate { rows, values, keys, step: usize::MAX, weighted });
        }
    }
}

/// Adds up some keys' values, with a look at each weight or without.
#[inline(always)]
fn add_up<I: Bf16Dot, S: Halves, A: AheadOfValues>(
    isa: I,
    guard: bool,
    kernel: Accumulate<'_, Pair, S, usize, PairedTile, A>,
) {
    if guard { isa.call_bf16(Guarded(kernel)) } else { isa.call_bf16(kernel) }
}

/// Runs of columns as runs of pairs: one that reaches over the edge of the run without removed keys is guarded.
#[inline(always)]
fn pair_runs(runs: &[(Range<usize>, bool); 3]) -> [(Range<usize>, bool); 3] {
    let [(before, _), (inner, _), (after, _)] = runs;
    let (start, end) = (before.start / 2, before.end.max(after.end).div_ceil(2));
    let (first, last) = (inner.start.div_ceil(2), inner.end / 2);
    if first >= last {
        return [(start..end, true), (0..0, false), (0..0, true)];
    }
    [(start..first, true), (first..last, false), (last..end, true)]
}

impl<'a> AsStored<'a> {
    /// For panels and values, up to two rows leave it to the hardware what to ask for ahead of time, wherever they lie: asking costs
    /// them up to 40 % (1 or 2 rows per KV head, 33 and 67 MB of keys and values in panels; example `bench_worker`,
    /// `LUCID_BF16_DOT=1`). More rows, which work longer on each line, gain 1.05 to 1.7.
    const AHEAD: Near = Near::ForSeveral;

    /// `None` if they are not stored as bf16.
    #[inline(always)]
    fn new<T: Element>(keys: Stored<'a, T>, values: KeyRows<'a, T>) -> Option<Self> {
        let keys = match keys {
            Stored::Panels(panels) => Stored::Panels(T::as_bf16(panels)?),
            Stored::Rows(rows) => Stored::Rows(rows.as_bf16()?),
        };
        Some(Self { keys, values: values.as_bf16()? })
    }

    /// Values from a key on, up to the last key: what lies behind it is nobody's second row.
    #[inline(always)]
    fn values_from(&self, key: usize, v_dim: usize, first_rows: bool) -> ValueRows<'a, bf16> {
        let KeyRows { data, stride, len, .. } = self.values;
        let data = &data[key * stride..(len - 1) * stride + v_dim];
        ValueRows { data, stride, v_dim, ahead: Self::AHEAD.only_if(first_rows), in_pairs: false }
    }

    /// Asks for a share of a tile.
    #[inline(always)]
    fn ask_for_tile<I: Bf16Dot>(&self, isa: I, [head_dim, v_dim]: [usize; 2], visit: &Visit, share: Share) {
        for panel in visit.columns.panels() {
            let key = visit.tile.start + panel * PANEL;
            self.keys.ask(isa, share, key, head_dim);
            share.ask_rows(isa, self.values.data, key, [self.values.stride, v_dim]);
        }
    }
}

impl<T: Element> Source<'_, T> {
    /// The same where what comes next is still to be packed; of what is packed once for all nothing is asked for.
    #[inline(always)]
    fn packing_next<'t>(&self, at: At<'t>) -> At<'t> {
        if self.whole { At { next: None, ..at } } else { at }
    }

    /// Where a tile's keys start in scratch.
    #[inline(always)]
    fn first(&self, tile: &Range<usize>) -> usize {
        if self.whole { tile.start } else { 0 }
    }

    /// Lays out the keys and values of a panel as scratch's panel `at`.
    #[inline(always)]
    fn pack<I: Bf16Dot>(&self, isa: I, operands: &mut Operands, panel: usize, at: usize) {
        let v_stride = operands.v_stride;
        let (panel_size, values_size) = (PANEL * self.dims, PANEL / 2 * v_stride);
        let out = &mut operands.pairs.keys[at * panel_size..][..panel_size];
        match self.keys {
            Stored::Panels(stored) => {
                let size = PANEL * self.head_dim;
                pair_panel(isa, &stored[panel * size..][..size], self.values.from_memory, out);
            }
            Stored::Rows(rows) => pair_keys(isa, rows, self.head_dim, panel, out),
        }
        if self.v_dim > 0 {
            let out = &mut operands.pairs.values[at * values_size..][..values_size];
            pair_values(isa, self.values, self.v_dim, panel * PANEL, out, v_stride);
        }
    }
}

/// A row rounded, `out.len()` pairs; a missing last half is +0.
#[inline(always)]
fn narrow_row<I: Bf16Dot, T: Element>(isa: I, row: &[T], out: &mut [Pair]) {
    for (index, out) in out.chunks_mut(LANES).enumerate() {
        let pairs = load_pairs_of(isa, row, index * LANES);
        if out.len() == LANES {
            isa.store_pairs(pairs, out);
        } else {
            let mut padded = [[bf16::ZERO; 2]; LANES];
            isa.store_pairs(pairs, &mut padded);
            out.copy_from_slice(&padded[..out.len()]);
        }
    }
}

/// The pairs of a row from pair `at` on, rounded; +0 past its end.
#[inline(always)]
fn load_pairs_of<I: Bf16Dot, T: Element>(isa: I, row: &[T], at: usize) -> I::Pairs {
    isa.narrow(load_padded(isa, row, 2 * at), load_padded(isa, row, 2 * at + LANES))
}

/// A row's weights, rounded.
#[inline(always)]
fn narrow_weights<I: Bf16Dot>(isa: I, weights: &[f32], out: &mut [Pair]) {
    let (whole, rest) = weights.as_chunks::<{ 2 * LANES }>();
    let (full, tail) = out.split_at_mut(whole.len() * LANES);
    for (weights, out) in whole.iter().zip(full.as_chunks_mut::<LANES>().0) {
        isa.store_pairs(isa.narrow(isa.load(weights), isa.load(&weights[LANES..])), out);
    }
    if !rest.is_empty() {
        let mut padded = [[bf16::ZERO; 2]; LANES];
        isa.store_pairs(isa.narrow(isa.load(rest), isa.splat(0.0)), &mut padded);
        tail[..LANES / 2].copy_from_slice(&padded[..LANES / 2]);
    }
}

/// The keys of a panel, from rows; those that do not exist become zero, or stay as they are.
#[inline(always)]
fn pair_keys<I: Bf16Dot, T: Element>(
    isa: I,
    keys: KeyRows<'_, T>,
    head_dim: usize,
    panel: usize,
    out: &mut [Pair],
) {
    for column in (0..PANEL).step_by(LANES) {
        let first = panel * PANEL + column;
        let count = keys.len.saturating_sub(first).min(LANES);
        if count == 0 {
            return;
        }
        let mut prefetch = PrefetchRows::new(keys, head_dim, [first, LANES]);
        for (index, out) in out.chunks_mut(LANES * PANEL).enumerate() {
            for _ in 0..(2 * out.len() / PANEL).div_ceil(T::COLUMNS) {
                prefetch.ask(isa);
            }
            let mut square = [isa.splat_pair([bf16::ZERO; 2]); LANES];
            for i in 0..count {
                let row = &keys.data[(first + i) * keys.stride..][..head_dim];
                square[i] = load_pairs_of(isa, row, index * LANES);
            }
            isa.transpose_pairs(&mut square);
            for (dim, &keys) in out.chunks_exact_mut(PANEL).zip(&square) {
                isa.store_pairs(keys, &mut dim[column..]);
            }
        }
    }
}

/// The keys of a panel, from a panel of single dimensions; asks for the next one, if panels come from memory.
#[inline(always)]
fn pair_panel<I: Bf16Dot, T: Element>(isa: I, stored: &[T], from_memory: bool, out: &mut [Pair]) {
    for (dims, out) in stored.chunks(2 * PANEL).zip(out.chunks_exact_mut(PANEL)) {
        if from_memory {
            ask_for(isa, dims, stored.len(), dims.len());
        }
        let (even, odd) = dims.split_at(PANEL);
        for column in (0..PANEL).step_by(LANES) {
            let even = T::load(isa, &even[column..]);
            let odd = if odd.is_empty() { isa.splat(0.0) } else { T::load(isa, &odd[column..]) };
            isa.store_pairs(isa.narrow_zip(even, odd), &mut out[column..]);
        }
    }
}

/// The values of a panel's keys from key `first` on, rows of `stride` pairs; what does not exist is zero. Asks for those of the
/// next panel, if values come from memory.
#[inline(always)]
fn pair_values<I: Bf16Dot, T: Element>(
    isa: I,
    values: KeyRows<'_, T>,
    v_dim: usize,
    first: usize,
    out: &mut [Pair],
    stride: usize,
) {
    for (index, out) in out.chunks_exact_mut(stride).enumerate() {
        let even = value_row(values, v_dim, first + 2 * index);
        let odd = value_row(values, v_dim, first + 2 * index + 1);
        if values.from_memory {
            for row in [even, odd] {
                ask_for(isa, row, PANEL * values.stride, row.len());
            }
        }
        for (d, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let (even, odd) = (load_padded(isa, even, d * LANES), load_padded(isa, odd, d * LANES));
            isa.store_pairs(isa.narrow_zip(even, odd), out);
        }
    }
}

/// One key's values; empty if there is no such key.
#[inline(always)]
fn value_row<T>(values: KeyRows<'_, T>, v_dim: usize, key: usize) -> &[T] {
    if key < values.len { &values.data[key * values.stride..][..v_dim] } else { &[] }
}
