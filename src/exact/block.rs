//! One block: some query rows of one KV head against its keys (or the few rows of several against theirs), in the order of
//! operations.
//!
//! ```text
//! for split in splits of 1024 keys                      states start fresh
//!     for tile in tiles of 256 keys that a row may attend, those that lists leave out skipped
//!         for group of up to 6 rows
//!             t = q' . k                                 kernel::score
//!             t = cap, ALiBi, bias                       crate::score
//!             p = exp2(t - m), l += p, a *= rescale      crate::softmax
//!             p = p / (1 - rate) or 0                    crate::dropout, in training
//!             a += p . v                                 kernel::value
//!     merge the split's states into the total
//! out = a / l
//! ```
//!
//! Per tile and group of rows: 256 keys and values read once (from L2 when a block has more than one group), weights
//! stay in L1. Taking each panel of 64 keys through all groups before the next, so that it comes from L2 once, would need
//! the scores of the whole block in L2 instead, and loses 2 points of the multiply-add peak (bench `roofline`).
//!
//! A tile in which each row of a group may attend every key runs without any mask; elsewhere the runs of keys that all rows
//! share do, and only the ragged ends look at weights one by one. Of a tile only those columns are scored, weighed and
//! added up, 16 at a time, that some row of the group may attend; under a block mask groups end where rows of blocks do,
//! and one whose rows visit the same full blocks of a tile runs without any mask too.
//!
//! Prefill and decode differ in where keys come from and how rows are cut into blocks, not in this loop: which is why a
//! row has the same bits in both. How operands are laid out and what a step of a sum is, the [`Tier`] says.

use super::call::Call;
use super::finish::{Targets, finish_row};
use super::group::{GroupShape, WeighGroup, group_within_blocks};
use super::measure::{Measured, Measures, PartSums, RowSums};
use super::partials::Partials;
use super::peaks::Peaks;
use super::sequence::Sequence;
use super::tier::{Accumulators, At, NextTile, Runs, Tier, TierKernel};
use super::visit::{Visit, Visits};
use super::workspace::{Operands, Scratch};
use crate::dropout::drop_weights;
use crate::element::Element;
use crate::isa::{Isa, Kernel};
use crate::kernel::MAX_ROWS;
use crate::kernel::pack::merge_row;
use crate::kernel::prefetch::Share;
use crate::mask::{MaskRow, TILE};
use crate::softmax::{Partial, RowState};
use std::ops::Range;

/// Which rows of which KV heads a task works on.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) sequence: Sequence,
    /// The first of its KV heads.
    pub(crate) kv_head: usize,
    /// How many they are; where several, all rows of each.
    pub(crate) heads: usize,
    /// Rows of a KV head, counted token by token and within a token query head by query head: heads that share keys
    /// stand side by side, and a run of rows spans few positions. Those of the next KV head follow.
    pub(crate) rows: Range<usize>,
    /// How many of them are of each KV head.
    pub(crate) head_rows: usize,
    /// Keys to visit, whole splits (but for the end).
    pub(crate) keys: Range<usize>,
    /// Whether other blocks will come back to this head's keys, so that packing all of them, and their values, pays.
    pub(crate) shares_keys: bool,
}

impl Block {
    /// One of its KV heads.
    #[inline(always)]
    fn kv_head(&self, head: usize) -> usize {
        mutant!("heads-of-a-block-share-keys", self.kv_head + head, self.kv_head)
    }

    /// The rows of one of its heads, counted from the block's first.
    #[inline(always)]
    fn rows_of(&self, head: usize) -> Range<usize> {
        head * self.head_rows..(head + 1) * self.head_rows
    }
}

/// A row of a block while it is worked on.
#[derive(Clone, Debug)]
pub(crate) struct BlockRow {
    pub(crate) mask: MaskRow,
    /// All its keys lie in here.
    pub(crate) keys: Range<usize>,
    pub(crate) state: RowState,
    pub(crate) total: Partial,
}

/// Computes a block and brings its results where they belong.
pub(crate) struct BlockKernel<'a, 's, T: Element> {
    pub(crate) call: &'a Call<'a, T>,
    pub(crate) block: &'a Block,
    pub(crate) scratch: &'s mut Scratch,
    pub(crate) end: End<'a>,
}

/// What becomes of a block's rows.
pub(crate) enum End<'a> {
    /// They are done.
    Finish(&'a Targets<'a>),
    /// They are a part, kept at `[unit, split]` until all parts are there.
    Keep { partials: &'a Partials<'a>, unit: usize, split: usize },
}

impl<T: Element> TierKernel for BlockKernel<'_, '_, T> {
    #[inline(always)]
    fn run<I: Isa, E: Tier<I>>(self, isa: I) {
        let Self { call, block, scratch, end } = self;
        prepare_rows::<I, E, T>(isa, call, block, scratch);
        compute::<I, E, T>(isa, call, block, scratch);
        isa.call(EndBlock { call, block, scratch, end });
    }
}

/// Brings the results of a block's rows where they belong.
struct EndBlock<'a, 's, T: Element> {
    call: &'a Call<'a, T>,
    block: &'a Block,
    scratch: &'s mut Scratch,
    end: End<'a>,
}

impl<T: Element> Kernel for EndBlock<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { call, block, scratch, end } = self;
        let Scratch { rows, sums, peaks, total, acc_stride, .. } = scratch;
        let mut memory = peaks.of_rows(0..rows.len());
        for (index, (row, acc)) in rows.iter().zip(total.chunks_exact_mut(*acc_stride)).enumerate() {
            let own = sums.get_mut(index);
            let sums = own.as_ref().map_or(PartSums::EMPTY, |sums| sums.total);
            let peaks = match (own, call.measures.filter(Measures::find_peaks)) {
                (Some(sums), Some(measures)) => sums.peaks(measures, memory.row(index)),
                _ => None,
            };
            // SAFETY: a call's blocks partition its rows (those of a unit's splits: its parts), and a block is one
            // task's, see `grid`.
            unsafe {
                match &end {
                    End::Finish(targets) => {
                        finish_row(isa, call, &block.sequence, (row, &sums, peaks), acc, targets)
                    }
                    End::Keep { partials, unit, split } => {
                        partials.put([*unit, *split, index], (&row.total, &sums), acc);
                    }
                }
            }
        }
    }
}

/// Leaves in `scratch` each row's state and its output row before division.
#[inline(always)]
fn compute<I: Isa, E: Tier<I>, T: Element>(isa: I, call: &Call<'_, T>, block: &Block, scratch: &mut Scratch) {
    let Some(keys) = hull(&scratch.rows, &block.keys) else { return };
    let source = E::open(call, block, block.kv_head);
    let split = call.order.split;
    let core = core(&scratch.rows, call);
    let (mut fresh, mut first_split) = (true, true);
    let mut next_split = 0;
    let visits = Visits::new(call, &scratch.rows, keys.end);
    let mut visit = visits.next(call, &scratch.rows, keys.start);
    while let Some(this) = visit {
        if call.is_stopped() {
            return; // `grid` notes that the rows are not complete
        }
        if fresh {
            reset(scratch);
            next_split = (this.tile.start / split + 1).saturating_mul(split);
        }
        let next = visits.next(call, &scratch.rows, this.tile.end);
        run_tile::<I, E, T>(isa, call, scratch, (block, &source), &this, next.as_ref(), &core);
        fresh = next.as_ref().is_none_or(|next| next.tile.start >= next_split);
        if fresh {
            close_split(isa, scratch, first_split);
            first_split = false;
        }
        visit = next;
    }
}

/// Fills `scratch.rows` and packs the queries.
#[inline(always)]
fn prepare_rows<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    block: &Block,
    scratch: &mut Scratch,
) {
    describe_rows(call, block, &mut scratch.rows);
    scratch.sums.clear();
    scratch.sums.resize(call.measures.map_or(0, |_| scratch.rows.len()), RowSums::EMPTY);
    if let Some(measures) = call.measures.filter(Measures::find_peaks) {
        let mut memory = scratch.peaks.of_rows(0..scratch.rows.len());
        for (index, sums) in scratch.sums.iter_mut().enumerate() {
            sums.peaks(measures, memory.row(index)).into_iter().for_each(Peaks::reset);
        }
    }
    for (index, row) in scratch.rows.iter().enumerate() {
        E::pack_query(isa, call, &block.sequence, row, index, &mut scratch.operands);
    }
}

/// The rows of a block, nothing computed yet.
pub(crate) fn describe_rows<T: Element>(call: &Call<'_, T>, block: &Block, rows: &mut Vec<BlockRow>) {
    let group = call.problem.group();
    let (mut query, mut head, mut kv_head) =
        (block.rows.start / group, block.rows.start % group, block.kv_head);
    rows.clear();
    rows.extend(block.rows.clone().map(|_| {
        let q_head = mutant!(
            "heads-tiled-not-repeated",
            kv_head * group + head,
            head * call.problem.kv_heads + kv_head
        );
        let row = describe_row(call, &block.sequence, query, q_head);
        head += 1;
        if head == group {
            (query, head) = (query + 1, 0);
        }
        if query == block.sequence.q_len {
            (query, kv_head) = (0, kv_head + 1);
        }
        row
    }));
}

/// One row, nothing computed yet.
#[inline(always)]
pub(crate) fn describe_row<T: Element>(
    call: &Call<'_, T>,
    sequence: &Sequence,
    query: usize,
    q_head: usize,
) -> BlockRow {
    let q_pos = sequence.q_start.saturating_add(query as i64);
    let mask = call.mask.row(sequence.index, q_head, query, q_pos);
    let keys = call.mask.interval(mask, sequence.kv_len);
    BlockRow { mask, keys, state: RowState::EMPTY, total: Partial::EMPTY }
}

/// The keys from the first to the last that some row may attend, within `limits`.
pub(crate) fn hull(rows: &[BlockRow], limits: &Range<usize>) -> Option<Range<usize>> {
    let some = rows.iter().filter(|row| !row.keys.is_empty());
    let (start, end) =
        some.fold((usize::MAX, 0), |(start, end), row| (start.min(row.keys.start), end.max(row.keys.end)));
    let keys = start.max(limits.start)..end.min(limits.end);
    (keys.start < keys.end).then_some(keys)
}

/// Keys that every row may attend, with nothing but the dot product to their scores. Only intervals are looked at: where
/// the call has more than those, no key counts.
fn core<T: Element>(rows: &[BlockRow], call: &Call<'_, T>) -> Range<usize> {
    if call.mask.has_bits() || !call.rules.is_plain() {
        return 0..0;
    }
    let own = rows.iter().map(|row| row.keys.clone());
    own.reduce(|all, own| all.start.max(own.start)..all.end.min(own.end)).unwrap_or(0..0)
}

/// Starts a split.
fn reset(scratch: &mut Scratch) {
    let Scratch { rows, acc, acc_stride, .. } = scratch;
    acc[..mutant!("sums-start-as-left", rows.len() * *acc_stride, 0)].fill(0.0);
    for row in rows {
        row.state = RowState::EMPTY;
    }
    scratch.sums.iter_mut().for_each(RowSums::reset);
}

/// Takes one tile's keys into all rows.
#[inline(always)]
fn run_tile<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    scratch: &mut Scratch,
    (block, source): (&Block, &E::Source<'_, T>),
    visit: &Visit,
    next_visit: Option<&Visit>,
    core: &Range<usize>,
) {
    let tile = &visit.tile;
    let whole_vectors = mutant!("ragged-tile-taken-for-whole", tile.len().is_multiple_of(16), true);
    let whole = core.start <= tile.start && tile.end <= core.end && whole_vectors;
    let Scratch { operands, rows, sums, peaks, scores, bits, shared, acc, acc_stride, .. } = scratch;
    let acc_stride = *acc_stride;
    let lists = call.mask.has_lists();
    let one_head = !E::JOINS_HEADS || block.heads == 1;
    if one_head {
        E::enter_tile(isa, source, operands, tile, visit.columns);
    }
    // What lies scattered is asked for while several groups work on another tile; else the hardware, or the kernel, asks.
    let ahead = next_visit.filter(|_| lists && rows.len() > MAX_ROWS);
    let mut next = 0;
    while next < rows.len() {
        let most = MAX_ROWS.min(rows.len() - next);
        let group = next..next + if lists { group_within_blocks(&rows[next..]) } else { most };
        next = group.end;
        let share = Share { start: group.start, end: group.end, of: rows.len() };
        if let Some(ahead) = ahead {
            E::ask_for_tile(isa, source, operands, ahead, share);
        }
        let next = next_visit.filter(|_| !lists).map(|visit| &visit.tile);
        let next = next.map(|tile| NextTile { start: tile.start, len: tile.len(), share });
        let at = At { tile, next };
        let rows = &mut rows[group.clone()];
        let shape = if whole {
            Some(GroupShape::whole(tile.len()))
        } else {
            GroupShape::new(call, rows, visit, bits)
        };
        let Some(shape) = shape else { continue };
        let acc = &mut acc[group.start * acc_stride..group.end * acc_stride];
        for run in shape.columns.runs() {
            if one_head {
                E::score_group(isa, source, operands, group.clone(), at, &run, scores);
            } else {
                score_heads::<I, E, T>(isa, call, block, operands, at, &run, scores);
            }
        }
        let measured = call.measures.map(|measures| Measured {
            measures,
            sums: &mut sums[group.clone()],
            memory: peaks.of_rows(group.clone()),
        });
        let scattered = isa.call(WeighGroup {
            call,
            rows: &mut *rows,
            measured,
            tile,
            shape: &shape,
            scores,
            bits,
            shared,
            acc: Accumulators { rows: group.len(), acc: &mut *acc, stride: acc_stride },
        });
        let shared = scattered.then_some(&*shared);
        if call.problem.v_dim == 0 {
            continue;
        }
        if let Some(dropout) = &call.dropout {
            for (row, weights) in rows.iter().zip(scores.chunks_mut(TILE)) {
                for run in shape.columns.runs() {
                    drop_weights(isa, dropout, row.mask, tile.start, weights, run);
                }
            }
        }
        for run in shape.columns.runs() {
            let runs = shape.runs(run, shared);
            let acc = Accumulators { rows: rows.len(), acc: &mut *acc, stride: acc_stride };
            if one_head {
                E::accumulate_group(isa, source, operands, at, &runs, scores, acc);
            } else {
                accumulate_heads::<I, E, T>(isa, call, block, (operands, scores), at, &runs, acc);
            }
        }
    }
}

/// [`Tier::score_group`] for a block of several heads, whose rows are one group. Apart, so that blocks of one head are compiled as if
/// there were no others; what it runs are functions of their own.
#[inline(never)]
fn score_heads<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    block: &Block,
    operands: &Operands,
    at: At<'_>,
    columns: &Range<usize>,
    scores: &mut [f32],
) {
    for head in 0..block.heads {
        let source = E::open(call, block, block.kv_head(head));
        let rows = block.rows_of(head);
        let scores = &mut scores[rows.start * TILE..];
        E::score_group(isa, &source, operands, rows, at, columns, scores);
    }
}

/// [`Tier::accumulate_group`], likewise.
#[inline(never)]
fn accumulate_heads<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    block: &Block,
    (operands, weights): (&mut Operands, &[f32]),
    at: At<'_>,
    runs: &Runs,
    Accumulators { acc, stride, .. }: Accumulators<'_>,
) {
    for head in 0..block.heads {
        let source = E::open(call, block, block.kv_head(head));
        let rows = block.rows_of(head);
        let weights = &weights[rows.start * TILE..];
        let acc = Accumulators { rows: rows.len(), acc: &mut acc[rows.start * stride..], stride };
        E::accumulate_group(isa, &source, operands, at, runs, weights, acc);
    }
}

/// Ends a split: joins its states to the totals, in key order.
#[inline(always)]
fn close_split<I: Isa>(isa: I, scratch: &mut Scratch, first: bool) {
    let acc_stride = scratch.acc_stride;
    for (sums, row) in scratch.sums.iter_mut().zip(&scratch.rows) {
        sums.close(isa, &row.total, &row.state.fold(isa));
    }
    if first {
        std::mem::swap(&mut scratch.acc, &mut scratch.total);
        for row in &mut scratch.rows {
            row.total = row.state.fold(isa);
        }
        return;
    }
    let rows = scratch.rows.iter_mut();
    let totals = scratch.total.chunks_exact_mut(acc_stride).zip(scratch.acc.chunks_exact(acc_stride));
    for (row, (total, acc)) in rows.zip(totals) {
        join(isa, (&mut row.total, total), (&row.state.fold(isa), acc));
    }
}

/// Joins a later part of a row to what is there.
#[inline(always)]
pub(crate) fn join<I: Isa>(isa: I, into: (&mut Partial, &mut [f32]), later: (&Partial, &[f32])) {
    if mutant!("empty-split-is-joined", !later.0.seen, false) {
        return;
    }
    if !into.0.seen {
        *into.0 = *later.0;
        into.1.copy_from_slice(later.1);
        return;
    }
    let (own, other) = into.0.merge(isa, later.0);
    merge_row(isa, into.1, own, later.1, other);
}
