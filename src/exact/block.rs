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
//! What begins and ends with a split, or with the block, does so group by group around its first and last tile: what a group
//! leaves is taken up while it is at hand, and one group divides while the next multiplies. Where rows have few keys that is
//! 1.01 to 1.02 times as fast (example `bench_worker`, 32 and 128 tokens of 32 dimensions, 12 heads, level AVX-512).
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
use super::finish::{Targets, finish_rows};
use super::group::{GroupShape, WeighGroup, group_within_blocks};
use super::measure::{Measured, Measures, PartSums, RowSums};
use super::partials::Partials;
use super::peaks::{PeakBuffer, Peaks};
use super::rows::{Reach, describe_rows};
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
use crate::mask::TILE;
use crate::softmax::{Partial, RowState};
use crate::tile::{asks_together, from_memory, group_rows};
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
        let reach = prepare_rows::<I, E, T>(isa, call, block, scratch);
        compute::<I, E, T>(isa, call, block, scratch, &reach, &end);
    }
}

/// Brings the results of a group of a block's rows where they belong.
struct EndGroup<'a, 's, T: Element> {
    call: &'a Call<'a, T>,
    block: &'a Block,
    scratch: &'s mut Scratch,
    group: Range<usize>,
    end: &'s End<'a>,
}

impl<T: Element> Kernel for EndGroup<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { call, block, scratch, group, end } = self;
        let Scratch { rows, sums, peaks, total, acc_stride: stride, .. } = scratch;
        let acc = &mut total[group.start * *stride..group.end * *stride];
        let rows = &rows[group.clone()];
        match end {
            End::Finish(targets) => {
                let own = mutant!("metrics-of-the-first-group", group, 0..group.len());
                let rows = (rows, measured(call, sums, peaks, own));
                // SAFETY: a call's blocks partition its rows, a block is one task's, see `grid`, and ends each of its
                // groups once.
                unsafe { finish_rows(isa, call, &block.sequence, rows, (acc, *stride), targets) };
            }
            End::Keep { partials, unit, split } => {
                for ((index, row), acc) in group.zip(rows).zip(acc.chunks_exact(*stride)) {
                    let sums = sums.get(index).map_or(PartSums::EMPTY, |sums| sums.total);
                    // SAFETY: the blocks of a unit's splits are its parts; and as above.
                    unsafe { partials.put([*unit, *split, index], (&row.total, &sums), acc) };
                }
            }
        }
    }
}

/// What is measured of a group of rows, if the call measures.
#[inline(always)]
fn measured<'s, T: Element>(
    call: &Call<'_, T>,
    sums: &'s mut [RowSums],
    peaks: &'s mut PeakBuffer,
    group: Range<usize>,
) -> Option<Measured<'s>> {
    let measures = call.measures?;
    Some(Measured { measures, sums: &mut sums[group.clone()], memory: peaks.of_rows(group) })
}

/// What begins and what ends with a tile.
#[derive(Clone, Copy)]
struct Stage {
    opens_split: bool,
    closes_split: bool,
    /// Whether its split is the first that is visited.
    first_split: bool,
    /// Whether no tile comes after it.
    last: bool,
    /// Whether all rows worked on all of the tile before, and so had occasion to ask for all of this one.
    asked: bool,
    /// What is visited after it, by this block or the next, unless lists say.
    next: Option<NextTile>,
}

/// Takes all tiles into all rows and ends those, unless the call is stopped.
#[inline(always)]
fn compute<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    block: &Block,
    scratch: &mut Scratch,
    reach: &Reach,
    end: &End<'_>,
) {
    let keys = reach.within(&block.keys).unwrap_or_default();
    let visits = Visits::new(call, &scratch.rows, keys.end);
    let mut visit = visits.next(call, &scratch.rows, keys.start);
    if visit.is_none() {
        return end_rows(isa, call, block, scratch, end);
    }
    let source = E::open(call, block, block.kv_head);
    let split = call.order.split;
    let core = core(reach, call);
    let (mut opens_split, mut first_split) = (true, true);
    let (mut next_split, mut asked) = (0, false);
    let behind = behind(call, block, visit.as_ref());
    while let Some(this) = visit {
        if call.is_stopped() {
            return; // `grid` notes that the rows are not complete
        }
        if opens_split {
            next_split = (this.tile.start / split + 1).saturating_mul(split);
        }
        let next = visits.next(call, &scratch.rows, this.tile.end);
        let closes_split = next.as_ref().is_none_or(|next| next.tile.start >= next_split);
        let next_tile = match &next {
            Some(visit) if !call.mask.has_lists() => Some(NextTile::of_head(&visit.tile)),
            Some(_) => None,
            None => behind,
        };
        let stage =
            Stage { opens_split, closes_split, first_split, last: next.is_none(), asked, next: next_tile };
        run_tile::<I, E, T>(
            isa,
            call,
            scratch,
            (block, &source),
            (&this, next.as_ref()),
            &core,
            (stage, end),
        );
        let all = &reach.all;
        asked = !call.mask.has_bits() && all.start <= this.tile.start && this.tile.end <= all.end;
        first_split &= !closes_split;
        opens_split = closes_split;
        visit = next;
    }
}

/// What is visited after a block's last tile, of which `first` is the first, where that is known and worth asking for: blocks that
/// share keys, or have lists, may begin anywhere, and what few keys are costs less to read than to ask for.
#[inline(always)]
fn behind<T: Element>(call: &Call<'_, T>, block: &Block, first: Option<&Visit>) -> Option<NextTile> {
    let known = !block.shares_keys && block.heads == 1 && !call.mask.has_lists();
    let first = first.filter(|_| known && from_memory(call.work))?;
    Some(NextTile::behind(&first.tile, &block.keys, block.sequence.kv_len))
}

/// Ends all rows of a block that visits no tile.
#[inline(always)]
fn end_rows<I: Isa, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    block: &Block,
    scratch: &mut Scratch,
    end: &End<'_>,
) {
    let count = scratch.rows.len();
    for first in (0..count).step_by(MAX_ROWS) {
        let group = first..count.min(first + MAX_ROWS);
        isa.call(EndGroup { call, block, scratch: &mut *scratch, group, end });
    }
}

/// Fills `scratch.rows` and packs the queries; returns the keys that the rows may attend.
#[inline(always)]
fn prepare_rows<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    block: &Block,
    scratch: &mut Scratch,
) -> Reach {
    let reach = describe_rows(call, block, &mut scratch.rows);
    scratch.sums.clear();
    scratch.sums.resize(call.measures.map_or(0, |_| scratch.rows.len()), RowSums::EMPTY);
    if let Some(measures) = call.measures.filter(Measures::find_peaks) {
        let mut memory = scratch.peaks.of_rows(0..scratch.rows.len());
        for (index, sums) in scratch.sums.iter_mut().enumerate() {
            sums.peaks(measures, memory.row(index)).into_iter().for_each(Peaks::reset);
        }
    }
    E::pack_queries(isa, call, &block.sequence, &scratch.rows, &mut scratch.operands);
    reach
}

/// Keys that every row may attend, with nothing but the dot product to their scores. Only intervals are looked at: where
/// the call has more than those, no key counts.
fn core<T: Element>(reach: &Reach, call: &Call<'_, T>) -> Range<usize> {
    if call.mask.has_bits() || !call.rules.is_plain() { 0..0 } else { reach.all.clone() }
}

/// Takes one tile's keys into all rows.
#[inline(always)]
fn run_tile<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    scratch: &mut Scratch,
    (block, source): (&Block, &E::Source<'_, T>),
    (visit, next_visit): (&Visit, Option<&Visit>),
    core: &Range<usize>,
    (stage, end): (Stage, &End<'_>),
) {
    let tile = &visit.tile;
    let lists = call.mask.has_lists();
    if enters_tiles::<I, E>(block) {
        E::enter_tile(isa, source, &mut scratch.operands, tile, visit.columns);
    }
    let (count, from_memory) = (scratch.rows.len(), from_memory(call.work));
    // What lies scattered is asked for while several groups work on another tile; else the hardware, or the kernel, asks.
    let ahead = next_visit.filter(|_| lists && count > MAX_ROWS);
    // Most calls of few keys visit one tile: the less there is to decide, the better.
    let together = asks_together(I::LANES, count) && !lists && (stage.asked || stage.next.is_some());
    let mut first = 0;
    while first < count {
        let size = match lists {
            true => group_within_blocks(&scratch.rows[first..]),
            false => group_rows(I::LANES, from_memory, count - first),
        };
        let group = first..first + size;
        first = group.end;
        let share = Share { start: group.start, end: group.end, of: count };
        if let Some(ahead) = ahead {
            E::ask_for_tile(isa, source, &scratch.operands, ahead, share);
        }
        if stage.opens_split {
            open_split(scratch, group.clone(), stage.first_split);
        }
        let asked = together && stage.asked;
        let at = At { tile, first_rows: group.start == 0, share, together, asked, next: stage.next };
        let own = (group.clone(), core, stage.first_split);
        take_group::<I, E, T>(isa, call, scratch, (block, source), (visit, at), own);
        if stage.closes_split {
            close_split(isa, scratch, group.clone(), stage.first_split);
        }
        if stage.last {
            isa.call(EndGroup { call, block, scratch: &mut *scratch, group, end });
        }
    }
}

/// Whether tiles of a block are entered: where it is of several heads, nothing is laid out for them.
#[inline(always)]
fn enters_tiles<I: Isa, E: Tier<I>>(block: &Block) -> bool {
    !E::JOINS_HEADS || block.heads == 1
}

/// Takes one tile's keys into a group of rows, of which `core` all may be attended.
#[inline(always)]
fn take_group<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    scratch: &mut Scratch,
    (block, source): (&Block, &E::Source<'_, T>),
    (visit, at): (&Visit, At<'_>),
    (group, core, first_split): (Range<usize>, &Range<usize>, bool),
) {
    let tile = at.tile;
    let whole_vectors = mutant!("ragged-tile-taken-for-whole", tile.len().is_multiple_of(16), true);
    let whole = core.start <= tile.start && tile.end <= core.end && whole_vectors;
    let one_head = enters_tiles::<I, E>(block);
    let Scratch { operands, rows, sums, peaks, scores, bits, shared, acc, total, acc_stride, .. } = scratch;
    let acc_stride = *acc_stride;
    let rows = &mut rows[group.clone()];
    let mut shape = GroupShape::whole(tile.len());
    if !whole && !shape.narrow(call, rows, visit, bits) {
        return;
    }
    let acc = if first_split { total } else { acc };
    let acc = &mut acc[group.start * acc_stride..group.end * acc_stride];
    for run in shape.columns.runs() {
        if one_head {
            E::score_group(isa, source, operands, group.clone(), at, &run, scores);
        } else {
            score_heads::<I, E, T>(isa, call, block, operands, at, &run, scores);
        }
    }
    let measured = measured(call, sums, peaks, group.clone());
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
        return;
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

/// Starts a split for a group of rows: the first right in their totals, of which nothing is there yet.
#[inline(always)]
fn open_split(scratch: &mut Scratch, group: Range<usize>, first: bool) {
    let Scratch { rows, sums, acc, total, acc_stride, .. } = scratch;
    let acc = &mut if first { total } else { acc }[group.start * *acc_stride..group.end * *acc_stride];
    mutant!("sums-start-as-left", acc.fill(0.0), ());
    for row in &mut rows[group.clone()] {
        row.state = mutant!("states-start-as-left", RowState::EMPTY, row.state);
    }
    if let Some(sums) = sums.get_mut(group) {
        sums.iter_mut().for_each(RowSums::reset);
    }
}

/// Ends a split for a group of rows: joins its states to the totals, in key order.
#[inline(always)]
fn close_split<I: Isa>(isa: I, scratch: &mut Scratch, group: Range<usize>, first: bool) {
    let Scratch { rows, sums, acc, total, acc_stride, .. } = scratch;
    for index in group {
        let row = &mut rows[index];
        let state = row.state.fold(isa);
        if let Some(sums) = sums.get_mut(index) {
            sums.close(isa, &row.total, &state);
        }
        if first {
            row.total = state;
        } else {
            let place = index * *acc_stride..(index + 1) * *acc_stride;
            join(isa, (&mut row.total, &mut total[place.clone()]), (&state, &acc[place]));
        }
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
