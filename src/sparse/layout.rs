//! One layout of blocks: which blocks of keys each block of queries visits.

use crate::error::AttentionError;
use crate::mask::{Span, TILE, TileBits, set_range, spans_from};

/// How queries and keys are cut into blocks.
///
/// Block `(r, c)` holds queries `r * q_block..(r + 1) * q_block` and keys `c * kv_block..(c + 1) * kv_block`; the last
/// ones end with the lengths. Any size works; multiples of 16 of `kv_block` are fast, and a `q_block` of 48 to 96.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct BlockGrid {
    /// Query positions: those from 0 on.
    pub q_len: usize,
    /// Key positions.
    pub kv_len: usize,
    /// Queries of a block, at least 1.
    pub q_block: usize,
    /// Keys of a block, at least 1.
    pub kv_block: usize,
}

impl BlockGrid {
    /// As many queries as keys, in square blocks.
    pub fn square(len: usize, block: usize) -> Self {
        Self { q_len: len, kv_len: len, q_block: block, kv_block: block }
    }

    /// Rows of blocks.
    pub fn rows(&self) -> usize {
        self.q_len.div_ceil(self.q_block.max(1))
    }

    /// Columns of blocks.
    pub fn columns(&self) -> usize {
        self.kv_len.div_ceil(self.kv_block.max(1))
    }

    /// Columns of blocks that a row's last query reaches under a causal mask.
    pub(super) fn causal_columns(&self, row: usize) -> usize {
        let queries = self.q_len.min((row + 1) * self.q_block);
        queries.div_ceil(self.kv_block).min(self.columns())
    }

    /// Refuses empty blocks, and numbers of blocks beyond 2^32.
    pub(super) fn check(&self) -> Result<(), AttentionError> {
        for (operand, size) in [("q_block", self.q_block), ("kv_block", self.kv_block)] {
            if size == 0 {
                return Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() });
            }
        }
        let [queries, keys] = [(self.q_len, self.q_block), (self.kv_len, self.kv_block)]
            .map(|(len, block)| len.checked_add(block));
        let overflow = AttentionError::SizeOverflow { operand: "block layout" };
        let blocks = self.rows().checked_mul(self.columns()).filter(|&blocks| u32::try_from(blocks).is_ok());
        if queries.is_none() || keys.is_none() || blocks.is_none() { Err(overflow) } else { Ok(()) }
    }

    /// Words of bits for a row of a block: of a block that reaches past the end, for the keys there are.
    pub(super) fn words(&self) -> usize {
        self.kv_block.min(self.kv_len).div_ceil(64).max(1)
    }

    /// Rows of bits for a block.
    pub(super) fn pattern_rows(&self) -> usize {
        self.q_block.min(self.q_len)
    }

    /// Queries of a row of blocks.
    pub(super) fn queries(&self, row: usize) -> std::ops::Range<usize> {
        row * self.q_block..self.q_len.min((row + 1) * self.q_block)
    }

    /// Keys of a column of blocks.
    pub(super) fn keys(&self, column: usize) -> std::ops::Range<usize> {
        column * self.kv_block..self.kv_len.min((column + 1) * self.kv_block)
    }
}

/// What a stored block allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// All of its pairs of a query and a key.
    Full,
    /// Some of them.
    Partial,
}

/// The blocks of one layout, row by row as runs of keys; immutable. The builders of [`crate::sparse`] make them.
///
/// ```text
/// row 0   [0, 64) partial
/// row 1   [0, 64) full    [64, 128) partial                 adjacent full blocks are one run,
/// row 2   [0, 128) full   [128, 192) partial                a partial block is one of its own, with bits
/// ```
///
/// Rows of equal runs share them, and equal partial blocks their bits: a causal layout has one block of bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockLayout {
    pub(super) grid: BlockGrid,
    pub(super) rows: Vec<RowRuns>,
    /// Sorted and disjoint within a row.
    pub(super) spans: Vec<Span>,
    /// For each span which pattern it has, [`FULL`] if none.
    pub(super) patterns: Vec<u32>,
    /// Patterns: [`BlockGrid::pattern_rows`] of [`BlockGrid::words`] each.
    pub(super) bits: Vec<u64>,
    pub(super) blocks: usize,
}

/// A full run's pattern.
pub(super) const FULL: u32 = u32::MAX;

/// A row's runs, as a range of all, how many keys they hold, and those of all rows before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RowRuns {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) keys: usize,
    pub(super) keys_before: usize,
}

impl BlockLayout {
    /// How it is cut.
    pub fn grid(&self) -> BlockGrid {
        self.grid
    }

    /// Blocks stored.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Stored blocks as a share of all there are; 0 where there are none.
    pub fn density(&self) -> f64 {
        share(self.blocks, self.grid.rows() * self.grid.columns())
    }

    /// Of the blocks that a causal mask leaves, the share that is stored: what remains of a causal call's work.
    pub fn causal_density(&self) -> f64 {
        let stored = self.iter().filter(|&(row, column, _)| column < self.grid.causal_columns(row)).count();
        share(stored, (0..self.grid.rows()).map(|row| self.grid.causal_columns(row)).sum())
    }

    /// Every stored block as row, column and kind, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize, BlockKind)> + '_ {
        self.rows.iter().enumerate().flat_map(move |(row, runs)| {
            let spans = runs.start as usize..runs.end as usize;
            spans.flat_map(move |index| {
                let (span, pattern) = (self.spans[index], self.patterns[index]);
                let kind = if pattern == FULL { BlockKind::Full } else { BlockKind::Partial };
                let columns = span.start / self.grid.kv_block..span.end.div_ceil(self.grid.kv_block);
                columns.map(move |column| (row, column, kind))
            })
        })
    }

    /// Whether the layout lets the query at one position attend the key at another. Slow; a definition.
    pub fn allows(&self, q_pos: i64, k_pos: usize) -> bool {
        let Some(query) = usize::try_from(q_pos).ok().filter(|&query| query < self.grid.q_len) else {
            return false;
        };
        let RowRuns { start, end, .. } = self.rows[query / self.grid.q_block];
        (start as usize..end as usize).any(|index| {
            let (Span { start, end }, pattern) = (self.spans[index], self.patterns[index]);
            let inside = start <= k_pos && k_pos < end;
            inside && (pattern == FULL || self.bit(pattern, query % self.grid.q_block, k_pos - start))
        })
    }

    /// Keys in the blocks of the queries below one, counted once for each of them.
    pub(super) fn pairs_before(&self, query: usize) -> f64 {
        let query = query.min(self.grid.q_len);
        // The end of the last row, where it is whole, is a row of its own.
        let row = (query / self.grid.q_block).min(self.rows.len().saturating_sub(1));
        let Some(runs) = self.rows.get(row) else { return 0.0 };
        let inner = query - row * self.grid.q_block;
        self.grid.q_block as f64 * runs.keys_before as f64 + inner as f64 * runs.keys as f64
    }

    fn bit(&self, pattern: u32, row: usize, key: usize) -> bool {
        self.pattern_row(pattern, row)[key / 64] >> (key % 64) & 1 == 1
    }

    fn pattern_row(&self, pattern: u32, row: usize) -> &[u64] {
        &self.pattern(pattern)[row * self.grid.words()..][..self.grid.words()]
    }

    pub(super) fn pattern(&self, pattern: u32) -> &[u64] {
        let len = self.grid.pattern_rows() * self.grid.words();
        &self.bits[pattern as usize * len..][..len]
    }

    /// Runs of keys that are stored, equal rows that follow one another counted once.
    pub fn runs(&self) -> usize {
        self.spans.len()
    }

    /// Partial blocks whose bits are stored, equal ones counted once.
    pub fn patterns(&self) -> usize {
        self.bits.len().checked_div(self.grid.pattern_rows() * self.grid.words()).unwrap_or(0)
    }

    /// The keys in the runs `start..end` of those of the tile from `tile_start` on, and whether some are in partial
    /// blocks, which count as if they were full.
    #[inline]
    pub(super) fn tile_runs(&self, [start, end]: [u32; 2], tile_start: usize) -> (TileBits, bool) {
        let (mut bits, mut partial) = (TileBits::default(), false);
        let first = start as usize + spans_before(&self.spans[start as usize..end as usize], tile_start);
        for index in first..end as usize {
            let span = self.spans[index];
            if span.start >= tile_start + TILE {
                break;
            }
            partial |= self.patterns[index] != FULL;
            set_range(
                &mut bits,
                span.start.max(tile_start) - tile_start..span.end.min(tile_start + TILE) - tile_start,
            );
        }
        (bits, partial)
    }

    /// The same as query `inner` of the row of blocks sees it: with the bits of partial blocks.
    pub(super) fn tile_bits(&self, [start, end]: [u32; 2], inner: usize, tile_start: usize) -> TileBits {
        let mut bits = TileBits::default();
        let first = start as usize + spans_before(&self.spans[start as usize..end as usize], tile_start);
        for index in first..end as usize {
            let (span, pattern) = (self.spans[index], self.patterns[index]);
            if span.start >= tile_start + TILE {
                break;
            }
            if pattern == FULL {
                let start = span.start.max(tile_start) - tile_start;
                set_range(&mut bits, start..span.end.min(tile_start + TILE) - tile_start);
            } else {
                place(&mut bits, self.pattern_row(pattern, inner), span.start as isize - tile_start as isize);
            }
        }
        bits
    }
}

fn spans_before(spans: &[Span], key: usize) -> usize {
    spans.len() - spans_from(spans, key).len()
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// ORs words of bits into a tile, the first bit to column `at`; what lies outside is left out.
fn place(bits: &mut TileBits, words: &[u64], at: isize) {
    let mut word_at = |index: isize, word: u64| {
        if let Some(to) = usize::try_from(index).ok().and_then(|index| bits.get_mut(index)) {
            *to |= word;
        }
    };
    for (index, &word) in words.iter().enumerate() {
        let at = at + 64 * index as isize;
        let (to, shift) = (at.div_euclid(64), at.rem_euclid(64));
        word_at(to, word << shift);
        if shift > 0 {
            word_at(to + 1, mutant!("bits-lost-between-words", word >> (64 - shift), 0));
        }
    }
}
