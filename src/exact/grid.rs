//! Blocks out of a call, tasks out of blocks.
//!
//! A *unit* is mostly a sequence's KV head. Its query rows are cut into blocks, late ones first (under a causal mask they are
//! the expensive ones); if units are few and their rows fit one block, the keys are cut into splits instead, whose
//! states are kept and merged in key order once all are there.
//!
//! Of one query against few keys, what goes on around the sums takes longer than they do: KV heads whose rows fit one register
//! tile, and keys one tile, are a unit together, and its block goes through all of that once, where one worker has the whole call
//! (in the exact tier, and without lists of keys). Four heads of ten keys are 1.2 to 1.3 times as fast, twelve of 64 keys 1.1 to 1.2
//! (bench `roofline`, `small`).
//!
//! Under a block mask, blocks of query rows end where its blocks do, so that they visit few others; where those are too
//! large, or too few for all workers, each is cut into several. A unit's expensive blocks (rows that see everything, among
//! rows that see little) come first: started last, one of them would keep a worker busy when the others are done.

use super::block::{Block, BlockKernel, End};
use super::call::Call;
use super::finish::{Targets, finish_rows};
use super::measure::{Measured, RowSums};
use super::order::BlockOrder;
use super::partials::Partials;
use super::rows::describe_rows;
use super::tier::{Engine, Tier, TierKernel};
use super::workspace::{Scratch, WorkspaceParts};
use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::{self, Begun, Spread};
use crate::tile;
use std::ops::Range;

/// How a call is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) units: usize,
    /// KV heads of a unit.
    pub(crate) heads: usize,
    /// Query rows of a unit, at most.
    pub(crate) rows: usize,
    /// Query rows of a block, at most.
    pub(crate) block_rows: usize,
    pub(crate) blocks_per_unit: usize,
    /// Rows after which blocks start afresh: one block, or those of a row of a block mask's blocks.
    stretch: usize,
    /// Rows that the first stretch is shorter than the others.
    lead: usize,
    /// Splits of keys that run side by side; 1 if none do.
    pub(crate) splits: usize,
    pub(crate) workers: usize,
}

impl Grid {
    /// `joins_heads`: see [`Tier::JOINS_HEADS`].
    pub(crate) fn new<T: Element>(call: &Call<'_, T>, joins_heads: bool, spread: Spread) -> Self {
        let problem = &call.problem;
        let workers = call.spread(spread).workers(tile::nanoseconds(call.work));
        let rows = problem.max_q_len.saturating_mul(problem.group());
        let joins_heads = joins_heads && workers == 1;
        let heads = if joins_heads { heads_together(call, rows) } else { 1 };
        let (units_of_sequence, rows) = (problem.kv_heads / heads, rows.saturating_mul(heads));
        let units = call.sequences.count().saturating_mul(units_of_sequence);
        let (keys, split) = (problem.max_kv_len, call.order.split);
        let splits = mutant!("last-split-is-lost", keys.div_ceil(split), (keys / split).max(1));
        let block_rows = tile::block_rows(rows, units, workers, splits);
        let unit = call.mask.blocks.and_then(|blocks| blocks.q_block().checked_mul(problem.group()));
        let unit = unit.filter(|&unit| block_rows < rows && unit < rows);
        let [stretch, block_rows] =
            unit.map_or([block_rows; 2], |unit| tile::aligned_rows(block_rows, rows, unit));
        let lead = unit.map_or(0, |_| lead(call, stretch));
        let stretches = rows.saturating_add(lead).div_ceil(stretch.max(1));
        let blocks_per_unit = stretches * stretch.div_ceil(block_rows.max(1));
        let split = tile::split_keys(units, workers, blocks_per_unit, splits);
        let splits = if split { splits } else { 1 };
        let tasks = units.saturating_mul(blocks_per_unit).saturating_mul(splits);
        let workers = workers.min(tasks.max(1));
        Self { units, heads, rows, block_rows, blocks_per_unit, stretch, lead, splits, workers }
    }

    /// Blocks of a stretch.
    fn parts(&self) -> usize {
        self.stretch.div_ceil(self.block_rows.max(1)).max(1)
    }

    /// The rows of a unit's block, of so many.
    pub(crate) fn rows_of(&self, block: usize, rows: usize) -> Range<usize> {
        let parts = self.parts();
        let bound = |stretch: usize, part: usize| {
            let at = stretch * self.stretch + (part * self.block_rows).min(self.stretch);
            at.saturating_sub(self.lead).min(rows)
        };
        let (stretch, part) = (block / parts, block % parts);
        bound(stretch, part)..bound(stretch, part + 1)
    }

    /// The block that a row of a unit is in.
    pub(crate) fn block_of(&self, row: usize) -> usize {
        let (stretch, row) =
            ((row + self.lead) / self.stretch.max(1), (row + self.lead) % self.stretch.max(1));
        stretch * self.parts() + row / self.block_rows.max(1)
    }

    /// The task that a unit's block is, where keys are not split or all splits are merged.
    pub(crate) fn task(&self, unit: usize, block: usize, order: &BlockOrder) -> usize {
        unit * self.blocks_per_unit + order.place(block, self.blocks_per_unit)
    }

    /// The block of a task; empty where a ragged batch has a shorter sequence.
    fn block<T: Element>(
        &self,
        call: &Call<'_, T>,
        unit: usize,
        index: usize,
        split: Option<usize>,
    ) -> Block {
        let units = call.problem.kv_heads / self.heads;
        let sequence = call.sequences.get(unit / units);
        let kv_head = unit % units * self.heads;
        let head_rows = sequence.q_len * call.problem.group();
        let rows = self.rows_of(index, head_rows * self.heads);
        let head_rows = if self.heads == 1 { rows.len() } else { head_rows };
        let keys = match split {
            None => 0..sequence.kv_len,
            Some(split) => split * call.order.split..sequence.kv_len.min((split + 1) * call.order.split),
        };
        let shares_keys = self.blocks_per_unit > 1;
        Block { sequence, kv_head, heads: self.heads, rows, head_rows, keys, shares_keys }
    }
}

/// KV heads of `rows` query rows each that a worker takes as one block, if it has all of the call: where no lists say which tiles
/// they visit, and there is one.
fn heads_together<T: Element>(call: &Call<'_, T>, rows: usize) -> usize {
    let one_tile = call.problem.max_kv_len <= call.order.tile && !call.mask.has_lists();
    if one_tile { tile::heads_together(call.problem.kv_heads, rows) } else { 1 }
}

/// By how many rows the first stretch is shorter, so that others begin with a block mask's rows of blocks: those of the
/// first sequence. In a batch whose sequences stand elsewhere, theirs may be cut in the middle, which costs a few visits.
fn lead<T: Element>(call: &Call<'_, T>, stretch: usize) -> usize {
    let group = call.problem.group().max(1);
    let start = if call.sequences.count() > 0 { call.sequences.get(0).q_start } else { 0 };
    i64::try_from(stretch / group).map_or(0, |queries| start.rem_euclid(queries.max(1)) as usize * group)
}

/// Runs a checked call; returns which tasks were begun: if it was stopped, not all. Each worker has a scratch of its own,
/// and the workspace's partials have room for [`Grid::splits`] if there is more than one.
pub(crate) fn run<T: Element>(
    engine: Engine,
    call: &Call<'_, T>,
    grid: &Grid,
    targets: &Targets<'_>,
    workspace: WorkspaceParts<'_>,
) -> Begun {
    let WorkspaceParts { workers: scratches, partials, order } = workspace;
    if grid.splits > 1
        && let Some(partials) =
            Partials::new(partials, [grid.units, grid.splits, grid.block_rows], scratches[0].acc_stride)
    {
        return run_splits(engine, call, grid, targets, scratches, &partials);
    }
    let per_unit = grid.blocks_per_unit;
    parallel::for_each_task_until(grid.units * per_unit, scratches, &|task, scratch: &mut Scratch| {
        let unit = task / per_unit;
        let block = grid.block(call, unit, order.block(task % per_unit, per_unit), None);
        engine.dispatch(BlockKernel {
            call,
            block: &block,
            scratch: &mut *scratch,
            end: End::Finish(targets),
        });
        scratch.note_stop(call.is_stopped(), task)
    })
}

fn run_splits<T: Element>(
    engine: Engine,
    call: &Call<'_, T>,
    grid: &Grid,
    targets: &Targets<'_>,
    scratches: &mut [Scratch],
    partials: &Partials<'_>,
) -> Begun {
    parallel::for_each_task_until(grid.units * grid.splits, scratches, &|task, scratch: &mut Scratch| {
        let (unit, split) = (task / grid.splits, task % grid.splits);
        let block = grid.block(call, unit, 0, Some(split));
        engine.dispatch(BlockKernel {
            call,
            block: &block,
            scratch: &mut *scratch,
            end: End::Keep { partials, unit, split },
        });
        !call.is_stopped()
    });
    for unit in 0..grid.units {
        if call.is_stopped() {
            return Begun::first(unit);
        }
        let block = grid.block(call, unit, 0, None);
        let splits = grid.splits;
        engine.dispatch(MergeKernel {
            call,
            block: &block,
            scratch: &mut scratches[0],
            targets,
            partials,
            unit,
            splits,
        });
    }
    Begun::first(grid.units)
}

/// Merges the splits of a unit and finishes its rows.
struct MergeKernel<'a, 's, T: Element> {
    call: &'a Call<'a, T>,
    block: &'a Block,
    scratch: &'s mut Scratch,
    targets: &'a Targets<'a>,
    partials: &'a Partials<'a>,
    unit: usize,
    splits: usize,
}

impl<T: Element> TierKernel for MergeKernel<'_, '_, T> {
    #[inline(always)]
    fn run<I: Isa, E: Tier<I>>(self, isa: I) {
        let Scratch { rows, total, peaks, acc_stride, .. } = self.scratch;
        describe_rows(self.call, self.block, rows);
        let acc = &mut total[..*acc_stride];
        for (index, row) in rows.iter_mut().enumerate() {
            let mut sums = RowSums::EMPTY;
            let parts = (&mut *acc, &mut sums.total);
            // SAFETY: units are merged one after another, when all tasks are done, and each has its own rows.
            row.total = unsafe { self.partials.merge(isa, self.unit, self.splits, index, parts) };
            // Peaks are not looked for where keys are split: no row has memory for them.
            let (sums, memory) = (std::slice::from_mut(&mut sums), peaks.of_rows(0..0));
            let measured = self.call.measures.map(|measures| Measured { measures, sums, memory });
            let rows = (std::slice::from_ref(row), measured);
            // SAFETY: as above.
            unsafe {
                finish_rows(isa, self.call, &self.block.sequence, rows, (acc, *acc_stride), self.targets);
            }
        }
    }
}
