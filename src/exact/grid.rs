//! Blocks out of a call, tasks out of blocks.
//!
//! A *unit* is a sequence's KV head. Its query rows are cut into blocks, late ones first (under a causal mask they are
//! the expensive ones); if units are few and their rows fit one block, the keys are cut into splits instead, whose
//! states are kept and merged in key order once all are there.
//!
//! Under a block mask, blocks of query rows end where its blocks do, so that they visit few others, and a unit's
//! expensive ones (rows that see everything, among rows that see little) come first: started last, one of them would
//! keep a worker busy when the others are done.

use super::block::{Block, BlockKernel, End, describe_rows};
use super::call::Call;
use super::finish::{Targets, finish_row};
use super::measure::PartSums;
use super::partials::Partials;
use super::sequence::Sequence;
use super::tier::{Engine, Tier, TierKernel};
use super::workspace::{Scratch, WorkspaceParts};
use crate::element::Element;
use crate::isa::Isa;
use crate::parallel::Begun;
use crate::{parallel, tile};

/// How a call is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) units: usize,
    /// Query rows of a unit, at most.
    pub(crate) rows: usize,
    /// Query rows of a block, at most.
    pub(crate) block_rows: usize,
    pub(crate) blocks_per_unit: usize,
    /// Queries to whose multiples, as positions, blocks are aligned.
    align: Option<usize>,
    /// Splits of keys that run side by side; 1 if none do.
    pub(crate) splits: usize,
    pub(crate) workers: usize,
}

/// Blocks of a unit that are ordered by their work, at most: each task looks at all of them.
const ORDERED_BLOCKS: usize = 128;

impl Grid {
    pub(crate) fn new<T: Element>(call: &Call<'_, T>, max_workers: usize) -> Self {
        let problem = &call.problem;
        let units = call.sequences.count().saturating_mul(problem.kv_heads);
        let rows = problem.max_q_len.saturating_mul(problem.group());
        let workers = if tile::worth_spreading(call.work) { parallel::workers(max_workers) } else { 1 };
        let (keys, split) = (problem.max_kv_len, call.order.split);
        let splits = mutant!("last-split-is-lost", keys.div_ceil(split), (keys / split).max(1));
        let block_rows = tile::block_rows(rows, units, workers, splits);
        let aligned = call.mask.blocks.filter(|_| block_rows < rows).and_then(|blocks| {
            let align = blocks.q_block();
            let block_rows = tile::aligned_rows(block_rows, align.checked_mul(problem.group())?)?;
            (block_rows < rows).then_some((Some(align), block_rows))
        });
        let (align, block_rows) = aligned.unwrap_or((None, block_rows));
        let blocks_per_unit = rows.div_ceil(block_rows.max(1));
        let grid = Self { units, rows, block_rows, blocks_per_unit, align, splits, workers };
        let leads = |index| grid.lead(call, &call.sequences.get(index)) > 0;
        let leads = align.is_some() && (0..call.sequences.count()).any(leads);
        let blocks_per_unit = blocks_per_unit + usize::from(leads);
        let split = tile::split_keys(units, workers, blocks_per_unit, splits);
        let splits = if split { splits } else { 1 };
        let tasks = units.saturating_mul(blocks_per_unit).saturating_mul(splits);
        Self { blocks_per_unit, splits, workers: workers.min(tasks.max(1)), ..grid }
    }

    /// By how many rows a sequence's first block is shorter than the others.
    fn lead<T: Element>(&self, call: &Call<'_, T>, sequence: &Sequence) -> usize {
        let align = self.align.and_then(|align| i64::try_from(align).ok());
        let queries = align.map_or(0, |align| sequence.q_start.rem_euclid(align) as usize);
        queries * call.problem.group() % self.block_rows.max(1)
    }

    /// Which block of a unit comes `index`-th: late ones first, but before them those of more than twice the mean work, as
    /// far as the block mask says.
    fn nth_block<T: Element>(&self, call: &Call<'_, T>, unit: usize, index: usize) -> usize {
        let count = self.blocks_per_unit;
        let orders = self.workers > 1 && count <= ORDERED_BLOCKS;
        let Some(mask) = call.mask.blocks.filter(|_| orders) else { return count - 1 - index };
        let group = call.problem.group();
        let pairs = |index: usize| {
            let Block { sequence, kv_head, rows, .. } = self.block(call, unit, index, None);
            let position = |row: usize| sequence.q_start.saturating_add((row / group) as i64);
            mask.pairs(sequence.index, kv_head * group, position(rows.start)..position(rows.end))
        };
        let mean = (0..count).map(pairs).sum::<f64>() / count as f64;
        let is_heavy = |&index: &usize| pairs(index) > 2.0 * mean;
        let heavy = (0..count).rev().filter(is_heavy);
        let light = (0..count).rev().filter(|index| !is_heavy(index));
        heavy.chain(light).nth(index).unwrap_or(index)
    }

    /// The task that a unit's block is, late blocks first, where there is no block mask.
    pub(crate) fn task(&self, unit: usize, index: usize) -> usize {
        unit * self.blocks_per_unit + (self.blocks_per_unit - 1 - index)
    }

    /// The block of a task; empty where a ragged batch has a shorter sequence.
    fn block<T: Element>(
        &self,
        call: &Call<'_, T>,
        unit: usize,
        index: usize,
        split: Option<usize>,
    ) -> Block {
        let kv_heads = call.problem.kv_heads;
        let sequence = call.sequences.get(unit / kv_heads);
        let rows = sequence.q_len * call.problem.group();
        let lead = self.lead(call, &sequence);
        let bound = |index: usize| (index * self.block_rows).saturating_sub(lead).min(rows);
        let keys = match split {
            None => 0..sequence.kv_len,
            Some(split) => split * call.order.split..sequence.kv_len.min((split + 1) * call.order.split),
        };
        Block {
            sequence,
            kv_head: unit % kv_heads,
            rows: bound(index)..bound(index + 1),
            keys,
            shares_keys: self.blocks_per_unit > 1,
        }
    }
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
    let WorkspaceParts { workers: scratches, partials } = workspace;
    if grid.splits > 1
        && let Some(partials) =
            Partials::new(partials, [grid.units, grid.splits, grid.block_rows], scratches[0].acc_stride)
    {
        return run_splits(engine, call, grid, targets, scratches, &partials);
    }
    let per_unit = grid.blocks_per_unit;
    parallel::for_each_task_until(grid.units * per_unit, scratches, &|task, scratch: &mut Scratch| {
        let unit = task / per_unit;
        let block = grid.block(call, unit, grid.nth_block(call, unit, task % per_unit), None);
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
        let Scratch { rows, total, acc_stride, .. } = self.scratch;
        describe_rows(self.call, self.block, rows);
        let acc = &mut total[..*acc_stride];
        for (index, row) in rows.iter_mut().enumerate() {
            // SAFETY: units are merged one after another, when all tasks are done, and each has its own rows.
            unsafe {
                let mut sums = PartSums::EMPTY;
                row.total = self.partials.merge(isa, self.unit, self.splits, index, (acc, &mut sums));
                finish_row(isa, self.call, &self.block.sequence, (row, &sums), acc, self.targets);
            }
        }
    }
}
