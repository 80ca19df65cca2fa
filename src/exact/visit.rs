//! The tiles that a block visits, one after another, and which of their columns.
//!
//! Where lists leave keys out, the next tile is found by a search in the rows' lists. Rows of a block mask's row of blocks visit
//! the same keys, and mostly make up a whole block: they are asked as one, once for each tile.

use super::call::Call;
use super::columns::Columns;
use super::rows::{BlockRow, hull};
use crate::element::Element;
use crate::mask::{MaskRow, TileBits, intersect, set_range};
use crate::sparse::{BlockMask, RowBlocks};
use std::ops::Range;

const EVERYWHERE: Range<usize> = 0..usize::MAX;

/// Finds the tiles that some row of a block may attend.
pub(super) struct Visits {
    /// Of the keys.
    end: usize,
    /// The first row, and the keys from the first to the last of all rows, if those differ in no list.
    alike: Option<(MaskRow, Range<usize>)>,
}

/// A tile that is visited.
pub(crate) struct Visit {
    pub(super) tile: Range<usize>,
    /// Those that may hold keys of some row; what lies outside need not be there.
    pub(super) columns: Columns,
    /// What block masks say, if it is the same for all rows.
    pub(super) blocks: Option<TileBlocks>,
}

/// The keys of a tile that are in a row's blocks.
pub(crate) struct TileBlocks {
    bits: TileBits,
    pub(super) columns: Columns,
    /// Whether they are all of the columns, and the blocks full ones.
    pub(super) whole: bool,
}

impl Visits {
    /// For rows that attend nothing at or beyond `end`.
    pub(super) fn new<T: Element>(call: &Call<'_, T>, rows: &[BlockRow], end: usize) -> Self {
        let same = call.mask.only_blocks().is_some()
            && mutant!("rows-visit-what-the-first-does", visit_the_same(rows), true);
        let keys = if same { hull(rows, &EVERYWHERE) } else { None };
        Self { end, alike: keys.map(|keys| (rows[0].mask, keys)) }
    }

    /// The next tile, from a key on.
    #[inline(always)]
    pub(super) fn next<T: Element>(
        &self,
        call: &Call<'_, T>,
        rows: &[BlockRow],
        from: usize,
    ) -> Option<Visit> {
        if call.mask.has_lists() {
            return self.next_listed(call, rows, from);
        }
        let tile = self.tile(call, from)?;
        Some(Visit { columns: Columns::up_to(tile.len()), tile, blocks: None })
    }

    /// That of a key.
    #[inline(always)]
    fn tile<T: Element>(&self, call: &Call<'_, T>, key: usize) -> Option<Range<usize>> {
        let start = key & !(call.order.tile - 1); // a power of two
        (key < self.end).then(|| start..self.end.min(start.saturating_add(call.order.tile)))
    }

    #[inline(never)]
    fn next_listed<T: Element>(&self, call: &Call<'_, T>, rows: &[BlockRow], from: usize) -> Option<Visit> {
        let key = match &self.alike {
            Some((row, keys)) => call.mask.next_key(*row, keys, from),
            None => next_key(call, rows, from),
        };
        let tile = self.tile(call, key?)?;
        let Some(blocks) = call.mask.blocks else {
            return Some(Visit { columns: Columns::up_to(tile.len()), tile, blocks: None });
        };
        if let Some((row, keys)) = &self.alike {
            let own = TileBlocks::new(blocks, row.blocks, &tile);
            let columns = Columns::of(&own.within(keys, &tile));
            return Some(Visit { tile, columns, blocks: Some(own) });
        }
        let mut visited = TileBits::default();
        for rows in rows.chunk_by(|a, b| a.mask.blocks.visits_the_same(&b.mask.blocks)) {
            let Some(keys) = hull(rows, &tile) else { continue };
            let own = TileBlocks::new(blocks, rows[0].mask.blocks, &tile).within(&keys, &tile);
            visited.iter_mut().zip(&own).for_each(|(word, bits)| *word |= bits);
        }
        Some(Visit { columns: Columns::of(&visited), tile, blocks: None })
    }
}

impl TileBlocks {
    pub(super) fn new(blocks: &BlockMask, row: RowBlocks, tile: &Range<usize>) -> Self {
        let (mut bits, partial) = blocks.tile_runs(row, tile.start);
        let partial = mutant!("partial-block-taken-for-full", partial, false);
        let mut own = TileBits::default();
        set_range(&mut own, 0..tile.len());
        intersect(&mut bits, &own);
        let columns = Columns::of(&bits);
        Self { bits, columns, whole: !partial && columns.are(&bits) }
    }

    /// Those of a tile that are among some keys.
    fn within(&self, keys: &Range<usize>, tile: &Range<usize>) -> TileBits {
        let mut bits = TileBits::default();
        set_range(&mut bits, columns_of(keys, tile));
        intersect(&mut bits, &self.bits);
        bits
    }
}

/// An interval of keys in a tile's columns.
#[inline(always)]
pub(super) fn columns_of(keys: &Range<usize>, tile: &Range<usize>) -> Range<usize> {
    let clamp = |key: usize| key.clamp(tile.start, tile.end) - tile.start;
    clamp(keys.start)..clamp(keys.end)
}

/// Whether some rows visit the same blocks.
pub(super) fn visit_the_same(rows: &[BlockRow]) -> bool {
    let same = |a: &BlockRow, b: &BlockRow| a.mask.blocks.visits_the_same(&b.mask.blocks);
    rows.first().is_some_and(|first| rows[1..].iter().all(|row| same(first, row)))
}

/// The first key at or after `at` that the lists of some row have.
fn next_key<T: Element>(call: &Call<'_, T>, rows: &[BlockRow], at: usize) -> Option<usize> {
    let keys = rows
        .chunk_by(|a, b| call.mask.only_blocks().is_some() && a.mask.blocks.visits_the_same(&b.mask.blocks));
    keys.filter_map(|rows| call.mask.next_key(rows[0].mask, &hull(rows, &EVERYWHERE)?, at)).min()
}
