//! Puts a layout together, block by block.

use super::layout::{BlockGrid, BlockLayout, FULL, RowRuns};
use super::memory::{append, no_memory, push, reserved};
use crate::error::AttentionError;
use crate::mask::Span;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A layout in the making; blocks come in order.
pub(super) struct LayoutBuilder {
    layout: BlockLayout,
    /// A pattern for each hash of bits.
    known: HashMap<u64, u32>,
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
    pub(super) fn full(&mut self, column: usize) -> Result<(), AttentionError> {
        self.push(column, FULL)
    }

    /// Full blocks at the columns that are chosen, and the row's end.
    pub(super) fn full_row(
        &mut self,
        columns: usize,
        mut chosen: impl FnMut(usize) -> bool,
    ) -> Result<(), AttentionError> {
        for column in (0..columns).filter(|&column| chosen(column)) {
            self.full(column)?;
        }
        self.end_row();
        Ok(())
    }

    /// A block by its bits, [`BlockGrid::pattern_rows`] of [`BlockGrid::words`]; stored as what it is: full, partial, or not
    /// at all. Bits of queries and keys past the lengths do not count.
    pub(super) fn block(&mut self, column: usize, bits: &mut [u64]) -> Result<(), AttentionError> {
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
            self.push(column, FULL)
        } else if count > 0 {
            let pattern = self.pattern(bits)?;
            self.push(column, pattern)
        } else {
            Ok(())
        }
    }

    /// The pattern with such bits, a new one unless it is known. (Of patterns with one hash only the last is known.)
    fn pattern(&mut self, bits: &[u64]) -> Result<u32, AttentionError> {
        let mut hasher = DefaultHasher::new();
        bits.hash(&mut hasher);
        let hash = hasher.finish();
        let known = self.known.get(&hash).copied();
        if let Some(pattern) = known.filter(|&pattern| self.layout.pattern(pattern) == bits) {
            return Ok(pattern);
        }
        let pattern = (self.layout.bits.len() / bits.len()) as u32;
        append(&mut self.layout.bits, bits)?;
        let room = self.known.try_reserve(1);
        room.map_err(|_| no_memory::<(u64, u32)>(self.known.len() + 1))?;
        self.known.insert(hash, pattern);
        Ok(pattern)
    }

    fn push(&mut self, column: usize, pattern: u32) -> Result<(), AttentionError> {
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
                push(spans, Span { start: keys.start, end: keys.end })?;
                push(patterns, pattern)?;
            }
        }
        Ok(())
    }

    /// Ends a row of blocks.
    pub(super) fn end_row(&mut self) {
        let BlockLayout { rows, spans, patterns, .. } = &mut self.layout;
        let keys_before = rows.last().map_or(0, |last| last.keys_before.saturating_add(last.keys));
        let (start, end) = (self.first as u32, spans.len() as u32);
        let mut runs = RowRuns { start, end, keys: self.keys, keys_before };
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
                runs = RowRuns { keys_before, ..*last };
            }
        }
        rows.push(runs);
        (self.first, self.keys) = (spans.len(), 0);
    }

    pub(super) fn finish(self) -> BlockLayout {
        self.layout
    }
}
