//! One layout of blocks: which blocks of keys each block of queries visits.

use crate::error::AttentionError;
use crate::mask::{Span, TILE, TileBits, set_range, spans_from};
use std::collections::HashMap;

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

    /// Words of bits for a row of a block.
    pub(super) fn words(&self) -> usize {
        self.kv_block.div_ceil(64)
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    pub(super) grid: BlockGrid,
    pub(super) rows: Vec<RowRuns>,
    /// Sorted and disjoint within a row.
    pub(super) spans: Vec<Span>,
    /// For each span which pattern it has, [`FULL`] if none.
    patterns: Vec<u32>,
    /// Patterns: `q_block` rows of [`BlockGrid::words`] each.
    bits: Vec<u64>,
    blocks: usize,
}

/// A full run's pattern.
const FULL: u32 = u32::MAX;

/// A row's runs, as a range of all, and how many keys they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowRuns {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) keys: usize,
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

    fn bit(&self, pattern: u32, row: usize, key: usize) -> bool {
        self.pattern_row(pattern, row)[key / 64] >> (key % 64) & 1 == 1
    }

    fn pattern_row(&self, pattern: u32, row: usize) -> &[u64] {
        let words = self.grid.words();
        &self.bits[(pattern as usize * self.grid.q_block + row) * words..][..words]
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

/// Puts a layout together, block by block in order.
pub(super) struct LayoutBuilder {
    layout: BlockLayout,
    /// Patterns there are.
    known: HashMap<Box<[u64]>, u32>,
    /// First span of the row in the making.
    first: usize,
    keys: usize,
}

impl LayoutBuilder {
    pub(super) fn new(grid: BlockGrid) -> Result<Self, AttentionError> {
        grid.check()?;
        let layout = BlockLayout {
            grid,
            rows: reserved(grid.rows())?,
            spans: Vec::new(),
            patterns: Vec::new(),
            bits: Vec::new(),
            blocks: 0,
        };
        Ok(Self { layout, known: HashMap::new(), first: 0, keys: 0 })
    }

    /// Columns there are.
    pub(super) fn columns(&self) -> usize {
        self.layout.grid.columns()
    }

    /// The row that blocks go to.
    pub(super) fn row(&self) -> usize {
        self.layout.rows.len()
    }

    /// A full block of the row, to the right of those before.
    pub(super) fn full(&mut self, column: usize) {
        self.push(column, FULL);
    }

    /// A block by its bits, `q_block` rows of [`BlockGrid::words`]; stored as what it is: full, partial, or not at all.
    /// Bits of queries and keys past the lengths do not count.
    pub(super) fn block(&mut self, column: usize, bits: &mut [u64]) {
        let grid = self.layout.grid;
        let (queries, keys) = (grid.queries(self.row()).len(), grid.keys(column).len());
        let mut count = 0;
        for (row, words) in bits.chunks_exact_mut(grid.words()).enumerate() {
            for (index, word) in words.iter_mut().enumerate() {
                let valid = keys.saturating_sub(64 * index).min(64);
                *word &= if row < queries && valid > 0 { u64::MAX >> (64 - valid) } else { 0 };
                count += word.count_ones() as usize;
            }
        }
        if count == mutant!("partial-block-stored-full", queries * keys, count.max(1)) {
            self.push(column, FULL);
        } else if count > 0 {
            let pattern = match self.known.get(&*bits) {
                Some(&pattern) => pattern,
                None => {
                    let pattern = self.known.len() as u32;
                    self.layout.bits.extend_from_slice(bits);
                    self.known.insert((&*bits).into(), pattern);
                    pattern
                }
            };
            self.push(column, pattern);
        }
    }

    fn push(&mut self, column: usize, pattern: u32) {
        let keys = self.layout.grid.keys(column);
        self.layout.blocks += 1;
        self.keys += keys.len();
        let BlockLayout { spans, patterns, .. } = &mut self.layout;
        let open = spans.len() > self.first && patterns.last() == Some(&FULL) && pattern == FULL;
        match spans.last_mut() {
            Some(last) if open && mutant!("full-blocks-join-over-gaps", last.end == keys.start, true) => {
                last.end = keys.end
            }
            _ => {
                spans.push(Span { start: keys.start, end: keys.end });
                patterns.push(pattern);
            }
        }
    }

    /// Ends a row of blocks.
    pub(super) fn end_row(&mut self) {
        let BlockLayout { rows, spans, patterns, .. } = &mut self.layout;
        let mut runs = RowRuns { start: self.first as u32, end: spans.len() as u32, keys: self.keys };
        if let Some(last) = rows.last() {
            let before = last.start as usize..last.end as usize;
            let alike = mutant!(
                "rows-of-blocks-alike-by-place",
                patterns[before.clone()] == patterns[self.first..],
                true
            );
            if spans[before] == spans[self.first..] && alike {
                spans.truncate(self.first);
                patterns.truncate(self.first);
                runs = *last;
            }
        }
        rows.push(runs);
        (self.first, self.keys) = (spans.len(), 0);
    }

    pub(super) fn finish(self) -> BlockLayout {
        self.layout
    }
}

/// Room for so many, unless there is no such memory.
pub(super) fn reserved<T>(len: usize) -> Result<Vec<T>, AttentionError> {
    let mut values = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    let error = |_| AttentionError::OutOfMemory { what: "block layout", bytes };
    values.try_reserve_exact(len).map_err(error)?;
    Ok(values)
}
