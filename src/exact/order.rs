//! In which order the blocks of a unit are begun.

use super::call::Call;
use super::grid::Grid;
use crate::element::Element;
use crate::error::AttentionError;
use crate::mask::Mask;
use crate::tile;

/// The order of blocks, the same in all units: late ones first, which under a causal mask are the expensive ones, unless
/// it was sorted. Room for it is made with the workspace.
#[derive(Debug)]
pub(crate) struct BlockOrder {
    places: Vec<Place>,
}

/// The `n`-th place holds the `n`-th block to begin, and the place of block `n`.
#[derive(Clone, Copy, Debug)]
struct Place {
    work: f64,
    block: u32,
    place: u32,
}

impl BlockOrder {
    /// Late ones first, with room to sort so many.
    pub(crate) fn with_room(blocks: usize) -> Result<Self, AttentionError> {
        let mut places = Vec::new();
        let bytes = Self::bytes_of(blocks);
        let error = |_| AttentionError::OutOfMemory { what: "workspace", bytes };
        places.try_reserve_exact(blocks).map_err(error)?;
        Ok(Self { places })
    }

    /// Memory for so many.
    pub(crate) fn bytes_of(blocks: usize) -> usize {
        blocks.saturating_mul(size_of::<Place>())
    }

    pub(crate) fn bytes(&self) -> usize {
        Self::bytes_of(self.places.capacity())
    }

    /// Sorts the blocks of a call by the work that its block mask leaves them, over all heads: the largest first, of equals
    /// late ones. Of calls without block mask, of one worker, and of more blocks than there is room for (that takes nearly
    /// a million rows, see [`tile::most_blocks`], or a workspace made for a smaller plan), late ones come first.
    pub(crate) fn sort<T: Element>(&mut self, call: &Call<'_, T>, grid: &Grid) {
        self.places.clear();
        let count = grid.blocks_per_unit;
        if call.mask.blocks.is_none() || grid.workers == 1 || !(2..=self.places.capacity()).contains(&count) {
            return;
        }
        self.places.extend((0..count).map(|block| Place {
            work: work(call, grid, block),
            block: block as u32,
            place: 0,
        }));
        self.places.sort_unstable_by(|a, b| b.work.total_cmp(&a.work).then(b.block.cmp(&a.block)));
        for place in 0..count {
            let block = self.places[place].block as usize;
            self.places[block].place = place as u32;
        }
    }

    /// The block to begin `place`-th, of so many.
    #[inline]
    pub(crate) fn block(&self, place: usize, count: usize) -> usize {
        self.places.get(place).map_or(count - 1 - place, |place| place.block as usize)
    }

    /// Where a block comes, of so many.
    pub(crate) fn place(&self, block: usize, count: usize) -> usize {
        self.places.get(block).map_or(count - 1 - block, |place| place.place as usize)
    }
}

/// Pairs of a query and a key that a block of each unit visits, all heads and all sequences that differ together.
fn work<T: Element>(call: &Call<'_, T>, grid: &Grid, block: usize) -> f64 {
    let Some(blocks) = call.mask.blocks else { return 0.0 };
    let group = call.problem.group().max(1);
    let intervals = Mask { blocks: None, intervals: None, ..call.mask };
    let of_sequence = |index| {
        let sequence = call.sequences.get(index);
        let rows = grid.rows_of(block, sequence.q_len * group);
        if rows.is_empty() {
            return 0.0;
        }
        let position = |query: usize| sequence.q_start.saturating_add(query as i64);
        let queries = rows.start / group..rows.end.div_ceil(group);
        let last = queries.end - 1;
        let row = intervals.row(sequence.index, 0, last, position(last));
        let most = queries.len() as f64 * intervals.interval(&row, sequence.kv_len).len() as f64;
        let of_head = |head| {
            let pairs = blocks.pairs(sequence.index, head, position(queries.start)..position(queries.end));
            pairs.min(most)
        };
        (0..blocks.heads()).map(of_head).sum()
    };
    (0..call.sequences_that_differ().0).map(of_sequence).sum()
}

/// Room that a plan for so many rows of a unit and so many workers makes.
pub(crate) fn room(rows: usize, workers: usize) -> usize {
    if workers > 1 { tile::most_blocks(rows, workers) } else { 0 }
}

#[cfg(all(test, feature = "rayon"))]
mod tests {
    use super::*;
    use crate::exact::call::Order;
    use crate::parallel::Spread;
    use crate::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask};
    use crate::{Inputs, Problem, QueryStart, View};

    /// The order of a call with such a layout in a pool of two, and the works of its blocks, which cover all rows.
    fn sorted(layout: BlockLayout, mask: Mask<'_>, start: i64, len: usize) -> (Vec<usize>, Vec<f64>) {
        let blocks = BlockMask::from(layout);
        let values = vec![0.5f32; len * 16];
        let x = View::new(&values, [1, 1, len, 16]).unwrap();
        let inputs = Inputs::new(x, x, x).mask(mask.blocks(&blocks)).q_start(QueryStart::At(start));
        let problem = Problem::of(&inputs);
        let call = Call::new(&problem, Order::VERSION_1, &inputs).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let grid = pool.install(|| Grid::new(&call, true, Spread::new(Some(2), None)));
        let count = grid.blocks_per_unit;
        let mut order = BlockOrder::with_room(room(len, 2)).unwrap();
        order.sort(&call, &grid);
        assert_eq!(order.places.len(), count, "there is room");
        let sorted: Vec<usize> = (0..count).map(|place| order.block(place, count)).collect();
        sorted.iter().enumerate().for_each(|(place, &block)| assert_eq!(order.place(block, count), place));
        let rows: Vec<usize> = (0..count).flat_map(|block| grid.rows_of(block, len)).collect();
        assert_eq!(rows, (0..len).collect::<Vec<_>>(), "blocks partition the rows");
        let found = |block: usize| grid.rows_of(block, len).all(|row| grid.block_of(row) == block);
        assert!((0..count).all(found), "a row is found in its block");
        (sorted, (0..count).map(|block| work(&call, &grid, block)).collect())
    }

    #[test]
    fn the_largest_come_first() {
        let len = 1024;
        for (block, start) in [(64, 0), (16, 0), (128, 0), (200, 0), (64, 40), (100, 13), (48, -5)] {
            let grid = BlockGrid::square(len, block);
            let layout = BlockLayout::bigbird(grid, &BigBird::published(1)).unwrap();
            let (order, works) = sorted(layout, Mask::NONE, start, len);
            for pair in order.windows(2) {
                let [a, b] = [pair[0], pair[1]].map(|block| works[block]);
                assert!(a > b || a == b && pair[0] > pair[1], "blocks of {block}: {order:?} by {works:?}");
            }
            // Larger blocks are so few that every row visits nearly all.
            let heavy = works[order[0]] > 1.5 * works[order[works.len() - 1]];
            assert!(heavy || block > 64, "blocks of {block}: {works:?}");
        }
    }

    /// A causal mask takes from the first rows what a layout gives them.
    #[test]
    fn causality_counts() {
        let layout = BlockLayout::from_blocks(BlockGrid::square(1024, 64), |row, _| row < 8).unwrap();
        let (order, works) = sorted(layout, Mask::causal(), 0, 1024);
        assert_eq!(works.iter().sum::<f64>(), (1..=8).map(|row| 64.0 * 64.0 * row as f64).sum::<f64>());
        assert_eq!(order[..8], [7, 6, 5, 4, 3, 2, 1, 0], "{works:?}");
    }
}
