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
        let Grid { units, heads, rows, .. } = self.grid;
        let unit = q_head / self.group.max(1) / heads;
        let unit = sequence.saturating_mul(self.kv_heads / heads).saturating_add(unit);
        // Of its KV head: where a unit has several, they are one block.
        let row = query.saturating_mul(self.group).saturating_add(q_head % self.group.max(1));
        q_head < self.kv_heads * self.group && unit < units && row < rows / heads && {
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
        let Grid { units, heads, blocks_per_unit, .. } = self.grid;
        let rows_of = |unit: usize, block: usize| {
            let rows = call.sequences.get(unit / (self.kv_heads / heads)).q_len * self.group * heads;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exact::call::Order;
    use crate::parallel::Spread;
    use crate::{Inputs, Problem, View};

    /// Of KV heads that share a block all rows are complete, or none.
    #[test]
    fn heads_of_one_block_are_complete_together() {
        for (group, q_len) in [(2, 1), (1, 2)] {
            whole_blocks(group, q_len);
        }
    }

    /// Of a batch of two, with 9 KV heads, of which 3 have 6 rows together.
    fn whole_blocks(group: usize, q_len: usize) {
        let (batch, kv_heads, kv_len) = (2, 9, 5);
        let values = vec![0.5f32; batch * kv_heads * kv_len * 4];
        let q = View::new(&values, [batch, kv_heads * group, q_len, 4]).unwrap();
        let k = View::new(&values, [batch, kv_heads, kv_len, 4]).unwrap();
        let inputs = Inputs::new(q, k, k);
        let problem = Problem::of(&inputs);
        let call = Call::new(&problem, Order::VERSION_1, &inputs).unwrap();
        let grid = Grid::new(&call, true, Spread::new(Some(1), None));
        assert_eq!([grid.heads, grid.rows, grid.units], [3, 6, 6]);
        let order = BlockOrder::with_room(0).unwrap();
        for begun in 0..=grid.units {
            let blocks = Blocks::new(&call, &grid, Begun::first(begun));
            let mut complete = 0;
            for row in 0..batch * kv_heads * 2 {
                let (head, query) = (row / q_len, row % q_len);
                let (sequence, q_head) = (head / (kv_heads * group), head % (kv_heads * group));
                let has = blocks.has([sequence, q_head, query], &[], &order);
                assert_eq!(has, sequence * 3 + q_head / group / 3 < begun, "{begun}: {sequence}, {q_head}");
                complete += usize::from(has);
            }
            assert_eq!(blocks.count(&call, &[], &order), complete, "{begun}");
            for outside in [[0, 0, q_len], [0, kv_heads * group, 0], [batch, 0, 0]] {
                assert!(!blocks.has(outside, &[], &order), "{begun}: {outside:?}");
            }
        }
    }
}
