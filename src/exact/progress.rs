//! Which rows of a call are complete: the blocks that were begun, but for those that workers left when it was stopped.

use super::call::Call;
use super::grid::Grid;
use super::order::BlockOrder;
use super::workspace::Scratch;
use crate::element::Element;
use crate::parallel::Begun;

/// How far a call came.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant, reason = "it lies in the workspace, where nothing is to be allocated")]
pub(crate) enum Progress {
    /// Nothing is complete.
    Nothing,
    /// The rows of some blocks are.
    Part(Blocks),
    /// All is.
    All,
}

/// How rows are cut into blocks, and which of those were begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    grid: Grid,
    kv_heads: usize,
    group: usize,
    begun: Begun,
}

impl Blocks {
    pub(crate) fn new<T: Element>(call: &Call<'_, T>, grid: &Grid, begun: Begun) -> Self {
        Self { grid: *grid, kv_heads: call.problem.kv_heads, group: call.problem.group(), begun }
    }

    /// Whether the row `[sequence, q_head, query]` is complete; workers and order are those of the workspace.
    pub(crate) fn has(
        &self,
        [sequence, q_head, query]: [usize; 3],
        workers: &[Scratch],
        order: &BlockOrder,
    ) -> bool {
        let Grid { units, rows, .. } = self.grid;
        let unit = sequence.saturating_mul(self.kv_heads).saturating_add(q_head / self.group.max(1));
        let row = query.saturating_mul(self.group).saturating_add(q_head % self.group.max(1));
        q_head < self.kv_heads * self.group && unit < units && row < rows && {
            self.has_block(unit, self.grid.block_of(row), workers, order)
        }
    }

    /// Rows that are complete.
    pub(crate) fn count<T: Element>(
        &self,
        call: &Call<'_, T>,
        workers: &[Scratch],
        order: &BlockOrder,
    ) -> usize {
        let Grid { units, blocks_per_unit, .. } = self.grid;
        let rows_of = |unit: usize, block: usize| {
            let rows = call.sequences.get(unit / self.kv_heads).q_len * self.group;
            self.grid.rows_of(block, rows).len()
        };
        let blocks = (0..units).flat_map(|unit| (0..blocks_per_unit).map(move |block| (unit, block)));
        blocks
            .filter(|&(unit, block)| self.has_block(unit, block, workers, order))
            .map(|(unit, block)| rows_of(unit, block))
            .sum()
    }

    fn has_block(&self, unit: usize, block: usize, workers: &[Scratch], order: &BlockOrder) -> bool {
        let task = self.grid.task(unit, block, order);
        let workers = &workers[..self.grid.workers.min(workers.len())];
        self.begun.has(task) && workers.iter().all(|worker| worker.stopped_in != Some(task))
    }
}
