//! Fixed patterns of the literature: in blocks where they are defined so, exact to the token where they are not.

use super::builder::LayoutBuilder;
use super::layout::{BlockGrid, BlockLayout};
use super::memory::reserved;
use crate::error::AttentionError;
use crate::mask::Mask;

/// BigBird's pattern, "internal transformer construction" (Zaheer et al. 2020, arXiv 2007.14062), in blocks.
///
/// ```text
/// row  0, n - 1     all blocks
/// row  i            0, n - 1, i - window ..= i + window, and `random` others
/// ```
///
/// Every block counts once. (In the best-known code, random blocks that repeat others count more than once, outside
/// training that is always so, and rows outside the pattern's minimum length silently turn dense.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct BigBird {
    /// Blocks to each side of the diagonal.
    pub window: usize,
    /// Blocks at the beginning, and as many at the end, that see and are seen by all.
    pub global: usize,
    /// Random blocks of each other row, among those it does not visit anyway (fewer, if there are not as many).
    pub random: usize,
    /// What decides the random blocks; give heads different ones.
    pub seed: u64,
}

impl BigBird {
    /// The published sizes: one block to each side, one global block at each end, three random ones.
    pub fn published(seed: u64) -> Self {
        Self { window: 1, global: 1, random: 3, seed }
    }
}

impl BlockLayout {
    /// The blocks `(row, column)` that a function chooses, all of them full.
    ///
    /// # Errors
    /// A block size is 0, there are more than 2^32 blocks, or memory cannot be had.
    pub fn from_blocks(
        grid: BlockGrid,
        mut chosen: impl FnMut(usize, usize) -> bool,
    ) -> Result<Self, AttentionError> {
        let mut builder = LayoutBuilder::new(grid)?;
        for row in 0..grid.rows() {
            builder.full_row(grid.columns(), |column| chosen(row, column))?;
        }
        Ok(builder.finish())
    }

    /// A sliding window, exact to the token: keys from `left` positions before the query to `right` after it; `None`
    /// leaves a side open.
    ///
    /// # Errors
    /// As [`BlockLayout::from_ranges`].
    pub fn sliding_window(
        grid: BlockGrid,
        left: Option<usize>,
        right: Option<usize>,
    ) -> Result<Self, AttentionError> {
        Self::from_mask(grid, &Mask::NONE.window(left, right))
    }

    /// Longformer's pattern (Beltagy et al. 2020, arXiv 2004.05150), exact to the token: `one_side` keys to each side of the
    /// query, the query's own position besides, and global positions, which see all and are seen by all. A key that is
    /// both counts once. (Separate projections for global tokens are the caller's: two calls and a merge.)
    ///
    /// # Errors
    /// As [`BlockLayout::from_ranges`]; `global` is not ascending, or has a position that is no query's and no key's.
    pub fn longformer(grid: BlockGrid, one_side: usize, global: &[usize]) -> Result<Self, AttentionError> {
        check_ascending("global", global, grid.q_len.max(grid.kv_len))?;
        Self::from_ranges(grid, |query, list| {
            if global.binary_search(&query).is_ok() {
                list.push(0..grid.kv_len);
                return;
            }
            list.push(query.saturating_sub(one_side)..query.saturating_add(one_side).saturating_add(1));
            list.extend(global.iter().map(|&key| key..key + 1));
        })
    }

    /// [`BigBird`].
    ///
    /// # Errors
    /// A block size is 0, blocks have not as many queries as keys, there are more than 2^32 of them, or not as many rows of
    /// blocks as columns.
    pub fn bigbird(grid: BlockGrid, pattern: &BigBird) -> Result<Self, AttentionError> {
        grid.check()?;
        let n = grid.columns();
        if grid.rows() != n {
            let (operand, axis) = ("block layout", "rows of blocks");
            return Err(AttentionError::Shape { operand, axis, expected: n, got: grid.rows() });
        }
        check_square(&grid)?;
        let &BigBird { window, global, random, seed } = pattern;
        let is_global = |index: usize| index < global || n - 1 - index < global;
        let mut state = seed;
        let mut others: Vec<usize> = reserved(n)?;
        let mut chosen: Vec<bool> = reserved(n)?;
        let mut builder = LayoutBuilder::new(grid)?;
        for row in 0..n {
            chosen.clear();
            chosen.extend(
                (0..n).map(|column| is_global(row) || is_global(column) || row.abs_diff(column) <= window),
            );
            others.clear();
            others.extend((0..n).filter(|&column| !chosen[column]));
            // The first few of a shuffle.
            for drawn in 0..random.min(others.len()) {
                let left = (others.len() - drawn) as u64;
                others.swap(drawn, drawn + (next_random(&mut state) % left) as usize);
                chosen[others[drawn]] = true;
            }
            builder.full_row(n, |column| chosen[column])?;
        }
        Ok(builder.finish())
    }

    /// The Sparse Transformer's strided pattern (Child et al. 2019, arXiv 1904.10509, section 4.2) in blocks: columns less
    /// than `stride` away from the row, and those at multiples of it. The paper's is causal: combine it with
    /// [`Mask::causal`].
    ///
    /// # Errors
    /// A block size or `stride` is 0, blocks have not as many queries as keys, or there are more than 2^32 of them.
    pub fn strided(grid: BlockGrid, stride: usize) -> Result<Self, AttentionError> {
        check_positive("stride", stride)?;
        check_square(&grid)?;
        Self::from_blocks(grid, |row, column| {
            let distance = row.abs_diff(column);
            distance < stride || distance.is_multiple_of(stride)
        })
    }

    /// The Sparse Transformer's fixed pattern (section 4.2) in blocks: columns of the row's own stretch of `local` blocks, and
    /// the last `global` of every stretch. The paper's is causal: combine it with [`Mask::causal`].
    ///
    /// # Errors
    /// A block size or `local` is 0, `global` is larger than `local`, blocks have not as many queries as keys, or there are
    /// more than 2^32 of them.
    pub fn fixed(grid: BlockGrid, local: usize, global: usize) -> Result<Self, AttentionError> {
        check_positive("local", local)?;
        if global > local {
            let got = format!("{global} of {local}");
            return Err(AttentionError::Value { operand: "global", expected: "at most local", got });
        }
        check_square(&grid)?;
        Self::from_blocks(grid, |row, column| {
            row / local == column / local || column % local >= local - global
        })
    }

    /// Streaming heads (StreamingLLM, DuoAttention), exact to the token: the first `sink` keys and the last `recent` up to the
    /// query's own position, which is one of them. Causal by itself.
    ///
    /// # Errors
    /// As [`BlockLayout::from_ranges`]; or `recent` is 0.
    pub fn sink_and_recent(grid: BlockGrid, sink: usize, recent: usize) -> Result<Self, AttentionError> {
        check_positive("recent", recent)?;
        Self::from_ranges(grid, |query, list| {
            list.push(0..sink.min(query + 1));
            list.push((query + 1).saturating_sub(recent)..query + 1);
        })
    }
}

/// Refuses blocks whose rows are not at the places of their columns.
fn check_square(grid: &BlockGrid) -> Result<(), AttentionError> {
    grid.check()?;
    let BlockGrid { q_block, kv_block, .. } = grid;
    if q_block == kv_block {
        return Ok(());
    }
    let (operand, expected) = ("block layout", "blocks of as many queries as keys");
    Err(AttentionError::Value { operand, expected, got: format!("{q_block} x {kv_block}") })
}

fn check_positive(operand: &'static str, size: usize) -> Result<(), AttentionError> {
    if size > 0 {
        return Ok(());
    }
    Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() })
}

/// Refuses lists that are not ascending, or have an entry at or beyond `limit`.
pub(super) fn check_ascending(
    operand: &'static str,
    list: &[usize],
    limit: usize,
) -> Result<(), AttentionError> {
    let wrong = (0..list.len()).find(|&at| list[at] >= limit || at > 0 && list[at] <= list[at - 1]);
    let Some(at) = wrong else { return Ok(()) };
    let reason = if list[at] >= limit { format!("of {limit}") } else { format!("after {}", list[at - 1]) };
    let (expected, got) =
        ("ascending indices below the number there are", format!("{} {reason}, entry {at}", list[at]));
    Err(AttentionError::Value { operand, expected, got })
}

/// splitmix64.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
