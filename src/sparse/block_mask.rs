//! Layouts dealt to heads: what a mask refers to.

use super::layout::{BlockLayout, RowRuns};
use super::memory::{no_memory, reserved};
use crate::error::AttentionError;
use crate::mask::{Span, TileBits};
use crate::view::MASK_AXES;
use std::collections::HashMap;
use std::ops::Range;

/// Which blocks of keys each block of queries visits, for every sequence and query head; part of a mask by
/// [`Mask::blocks`](crate::Mask::blocks).
///
/// Queries and keys are those at the layout's *positions*: a query at position `p`
/// ([`QueryStart`](crate::QueryStart)) has row `p / q_block`, so that one layout serves a prompt, its chunks and each
/// token decoded after it. What lies outside the layout, positions below 0 among it, sees nothing and is not seen;
/// sequences may be shorter than their layout, and rows without a block are empty rows.
///
/// Blocks are skipped, not masked: a call costs what the blocks it visits cost. As with every mask, what is removed
/// changes no bit: results are those of a dense call with the same pairs as a boolean mask.
///
/// ```
/// use lucid_attention::sparse::{BlockGrid, BlockLayout, BlockMask};
/// use lucid_attention::{Inputs, Mask, View, attention};
///
/// // Sixteen tokens in blocks of four; each query sees its own block and the one before.
/// let layout = BlockLayout::from_blocks(BlockGrid::square(16, 4), |row, column| row < column + 2 && column <= row)?;
/// assert_eq!(layout.blocks(), 7);
/// let blocks = BlockMask::from(layout);
/// let x = vec![0.5f32; 2 * 16 * 8];
/// let x = View::new(&x, [1, 2, 16, 8])?;
/// attention(&Inputs::new(x, x, x).mask(Mask::causal().blocks(&blocks)))?;
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMask {
    layouts: Vec<BlockLayout>,
    /// Sequences and heads that `table` tells apart; 1 where all are alike.
    shape: [usize; 2],
    /// The layout of each.
    table: Vec<usize>,
}

/// The runs of blocks of a query row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowBlocks {
    layout: u32,
    /// Runs, as a range of the layout's.
    runs: [u32; 2],
    /// The row of blocks.
    row: u32,
}

impl RowBlocks {
    /// None at all.
    pub(crate) const NONE: RowBlocks = RowBlocks { layout: 0, runs: [0, 0], row: 0 };

    /// Whether both visit the same blocks.
    #[inline(always)]
    pub(crate) fn visits_the_same(&self, other: &Self) -> bool {
        mutant!("layouts-alike-by-runs", self.layout == other.layout, true) && self.runs == other.runs
    }

    /// Whether both are in one row of blocks.
    #[inline(always)]
    pub(crate) fn is_in_row_of(&self, other: &Self) -> bool {
        self.row == other.row
    }
}

impl From<BlockLayout> for BlockMask {
    /// One layout for all sequences and heads.
    fn from(layout: BlockLayout) -> Self {
        Self { layouts: vec![layout], shape: [1, 1], table: vec![0] }
    }
}

impl BlockMask {
    /// Layouts dealt to sequences and heads: sequence `s` and query head `h` have layout `table[s * heads + h]`, with
    /// `shape` = `[sequences, heads]`, either of which may be 1 to serve all. Of equal layouts only the first is kept, so
    /// heads of equal layouts share its memory, and those of a KV head should: its query heads are worked on together, and
    /// visit what any of them does.
    ///
    /// # Errors
    /// There is no layout, the layouts' block sizes differ, the table has another size than `shape` says, or an entry that is
    /// no layout; or memory cannot be had.
    pub fn new(
        layouts: Vec<BlockLayout>,
        shape: [usize; 2],
        table: Vec<usize>,
    ) -> Result<Self, AttentionError> {
        let overflow = AttentionError::SizeOverflow { operand: "block mask" };
        let expected = shape[0].checked_mul(shape[1]).ok_or(overflow)?;
        if table.len() != expected {
            let (operand, axis, got) = ("block mask", "table entries", table.len());
            return Err(AttentionError::Shape { operand, axis, expected, got });
        }
        let value = |expected, got| AttentionError::Value { operand: "block mask", expected, got };
        let Some(first) = layouts.first() else {
            return Err(value("at least one layout", "none".to_owned()));
        };
        let sizes = |layout: &BlockLayout| [layout.grid().q_block, layout.grid().kv_block];
        if let Some(at) = layouts.iter().position(|layout| sizes(layout) != sizes(first)) {
            let got = format!("{:?} and, layout {at}, {:?}", sizes(first), sizes(&layouts[at]));
            return Err(value("layouts of one block size", got));
        }
        if let Some(at) = table.iter().position(|&layout| layout >= layouts.len()) {
            let got = format!("{} at entry {at}, with {} layouts", table[at], layouts.len());
            return Err(value("table entries below the number of layouts", got));
        }
        let (layouts, table) = interned(layouts, table)?;
        Ok(Self { layouts, shape, table })
    }

    /// As [`BlockMask::new`] with a layout of its own for every sequence and head, which nobody compares.
    pub(super) fn one_each(layouts: Vec<BlockLayout>, shape: [usize; 2]) -> Result<Self, AttentionError> {
        debug_assert_eq!(layouts.len(), shape[0] * shape[1]);
        let mut table = reserved(layouts.len())?;
        table.extend(0..layouts.len());
        Ok(Self { layouts, shape, table })
    }

    /// One layout for each query head, by its index among `layouts`: see [`BlockMask::new`].
    ///
    /// # Errors
    /// As [`BlockMask::new`].
    pub fn per_head(layouts: Vec<BlockLayout>, heads: Vec<usize>) -> Result<Self, AttentionError> {
        Self::new(layouts, [1, heads.len()], heads)
    }

    /// The layouts.
    pub fn layouts(&self) -> &[BlockLayout] {
        &self.layouts
    }

    /// The layout of a sequence's query head; `None` outside the table.
    pub fn layout(&self, sequence: usize, q_head: usize) -> Option<&BlockLayout> {
        Some(&self.layouts[self.index(sequence, q_head)?])
    }

    fn index(&self, sequence: usize, q_head: usize) -> Option<usize> {
        let [sequences, heads] = self.shape;
        let sequence = if sequences == 1 { 0 } else { sequence };
        let head = if heads == 1 { 0 } else { q_head };
        let at = mutant!("blocks-of-the-first-sequence", sequence, 0) * heads + head;
        (sequence < sequences && head < heads).then(|| self.table[at])
    }

    /// The share of blocks that are stored: the mean over all sequences and heads that the table tells apart.
    pub fn density(&self) -> f64 {
        self.mean(BlockLayout::density)
    }

    /// The same of the blocks that a causal mask leaves: see [`BlockLayout::causal_density`].
    pub fn causal_density(&self) -> f64 {
        self.mean(BlockLayout::causal_density)
    }

    fn mean(&self, of: impl Fn(&BlockLayout) -> f64) -> f64 {
        let shares: Vec<f64> = self.layouts.iter().map(of).collect();
        let sum: f64 = self.table.iter().map(|&layout| shares[layout]).sum();
        sum / self.table.len().max(1) as f64
    }

    /// Whether a query may attend a key, by position; the definition.
    pub fn allows(&self, sequence: usize, q_head: usize, q_pos: i64, k_pos: usize) -> bool {
        self.layout(sequence, q_head).is_some_and(|layout| layout.allows(q_pos, k_pos))
    }

    /// Whether sequences have layouts of their own.
    pub(crate) fn is_per_sequence(&self) -> bool {
        self.shape[0] > 1
    }

    /// Queries of a block.
    pub(crate) fn q_block(&self) -> usize {
        self.layouts[0].grid().q_block
    }

    /// Checks the table against `[batch, q_heads, q_len, kv_len]` of a call.
    pub(crate) fn check(&self, shape: [usize; 4]) -> Result<(), AttentionError> {
        for axis in 0..2 {
            let (expected, got) = (shape[axis], self.shape[axis]);
            if got != expected && got != 1 {
                let (operand, axis) = ("mask.blocks", MASK_AXES[axis]);
                return Err(AttentionError::Shape { operand, axis, expected, got });
            }
        }
        Ok(())
    }

    /// A query's runs.
    #[inline]
    pub(crate) fn row(&self, sequence: usize, q_head: usize, q_pos: i64) -> RowBlocks {
        let Some(index) = self.index(sequence, q_head) else { return RowBlocks::NONE };
        let layout = &self.layouts[index];
        match usize::try_from(q_pos) {
            Ok(query) if query < layout.grid.q_len => {
                let row = query / layout.grid.q_block;
                let RowRuns { start, end, .. } = layout.rows[row];
                RowBlocks { layout: index as u32, runs: [start, end], row: row as u32 }
            }
            _ => RowBlocks::NONE,
        }
    }

    /// A row's runs of keys.
    #[inline]
    pub(crate) fn spans(&self, row: RowBlocks) -> &[Span] {
        &self.layouts[row.layout as usize].spans[row.runs[0] as usize..row.runs[1] as usize]
    }

    /// Of a tile, the keys in a row's blocks, and whether some are in partial ones (which count as full).
    #[inline]
    pub(crate) fn tile_runs(&self, row: RowBlocks, tile_start: usize) -> (TileBits, bool) {
        self.layouts[row.layout as usize].tile_runs(row.runs, tile_start)
    }

    /// Of a tile, the keys that the query at a position may attend, whose row is `row`.
    pub(crate) fn tile_bits(&self, row: RowBlocks, q_pos: i64, tile_start: usize) -> TileBits {
        let inner = (q_pos.max(0) as usize).saturating_sub(row.row as usize * self.q_block());
        self.layouts[row.layout as usize].tile_bits(row.runs, inner, tile_start)
    }

    /// Keys in the blocks of some queries of a head, counted once for each query. Takes O(1).
    pub(crate) fn pairs(&self, sequence: usize, q_head: usize, queries: Range<i64>) -> f64 {
        let Some(layout) = self.layout(sequence, q_head) else { return 0.0 };
        let before = |pos: i64| layout.pairs_before(usize::try_from(pos.max(0)).unwrap_or(usize::MAX));
        before(queries.end) - before(queries.start)
    }

    /// Heads that the table tells apart.
    pub(crate) fn heads(&self) -> usize {
        self.shape[1]
    }
}

/// Layouts without those that equal an earlier one, and the table of what is left.
fn interned(
    layouts: Vec<BlockLayout>,
    mut table: Vec<usize>,
) -> Result<(Vec<BlockLayout>, Vec<usize>), AttentionError> {
    let mut kept: HashMap<&BlockLayout, usize> = HashMap::new();
    kept.try_reserve(layouts.len()).map_err(|_| no_memory::<(&BlockLayout, usize)>(layouts.len()))?;
    // Where each layout ends up, and whether it is the first of its kind.
    let mut places = reserved(layouts.len())?;
    for layout in &layouts {
        let next = kept.len();
        let place = *kept.entry(layout).or_insert(next);
        places.push((place, place == next));
    }
    let mut left = layouts;
    let mut is_first = places.iter().map(|&(_, is_first)| is_first);
    left.retain(|_| is_first.next().unwrap_or(true));
    table.iter_mut().for_each(|layout| *layout = places[*layout].0);
    Ok((left, table))
}
