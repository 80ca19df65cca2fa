//! Layouts from what each query may attend: blocks found full, partial or empty.

use super::builder::LayoutBuilder;
use super::layout::{BlockGrid, BlockLayout};
use super::memory::{filled, push, reserved};
use crate::error::AttentionError;
use crate::exact::call::check_last_n;
use crate::mask::Mask;
use std::ops::Range;

impl BlockLayout {
    /// The pairs of a query and a key position that a function allows. Asks about each of them: `q_len * kv_len` calls.
    ///
    /// # Errors
    /// A block size is 0, there are more than 2^32 blocks, or memory cannot be had.
    pub fn from_fn(
        grid: BlockGrid,
        mut allows: impl FnMut(usize, usize) -> bool,
    ) -> Result<Self, AttentionError> {
        let mut builder = LayoutBuilder::new(grid)?;
        let mut bits = block_of_bits(&grid)?;
        for row in 0..grid.rows() {
            for column in 0..grid.columns() {
                bits.fill(0);
                for (query, words) in grid.queries(row).zip(bits.chunks_exact_mut(grid.words())) {
                    for (index, key) in grid.keys(column).enumerate() {
                        words[index / 64] |= u64::from(allows(query, key)) << (index % 64);
                    }
                }
                builder.block(column, &mut bits)?;
            }
            builder.end_row();
        }
        Ok(builder.finish())
    }

    /// The key positions that each query position attends as a list of ranges, in any order, which may overlap and reach
    /// past the end: `ranges(query, list)` adds them to an empty list. Takes O(ranges + blocks of the row) for each query.
    ///
    /// # Errors
    /// As [`BlockLayout::from_fn`].
    pub fn from_ranges(
        grid: BlockGrid,
        mut ranges: impl FnMut(usize, &mut Vec<Range<usize>>),
    ) -> Result<Self, AttentionError> {
        let mut builder = LayoutBuilder::new(grid)?;
        let mut bits = block_of_bits(&grid)?;
        // The ranges of a row's queries, and where each query's end.
        let (mut all, mut own) = (Vec::new(), Vec::new());
        let mut ends = reserved(grid.pattern_rows())?;
        // How many queries more begin to, or cease to, attend all keys of a column; which columns only some touch.
        let mut covers: Vec<i64> = reserved(grid.columns() + 1)?;
        let mut touches: Vec<bool> = reserved(grid.columns())?;
        for row in 0..grid.rows() {
            all.clear();
            ends.clear();
            covers.clear();
            covers.resize(grid.columns() + 1, 0);
            touches.clear();
            touches.resize(grid.columns(), false);
            for query in grid.queries(row) {
                own.clear();
                ranges(query, &mut own);
                let first = all.len();
                union_into(&mut all, &mut own, grid.kv_len)?;
                ends.push(all.len()); // there is room
                for range in &all[first..] {
                    note_columns(&grid, range, &mut covers, &mut touches);
                }
            }
            let mut covering = 0;
            for column in 0..grid.columns() {
                covering += covers[column];
                if covering == grid.queries(row).len() as i64 {
                    builder.full(column)?;
                } else if covering > 0 || touches[column] {
                    set_block(&grid, column, &all, &ends, &mut bits);
                    builder.block(column, &mut bits)?;
                }
            }
            builder.end_row();
        }
        Ok(builder.finish())
    }

    /// What a mask of intervals leaves: causal, windows, documents, one prefix and one key length, whatever of them it has,
    /// of a query at its position. Takes O(1) for each query besides the blocks it finds, never `q_len * kv_len`.
    ///
    /// # Errors
    /// As [`BlockLayout::from_fn`]; the mask has a part that a call refuses; or it has parts that go by sequence or by the query's index (several key lengths
    /// or prefixes, interval lists, a dense mask) or blocks already.
    pub fn from_mask(grid: BlockGrid, mask: &Mask<'_>) -> Result<Self, AttentionError> {
        mask.check_repeated()?;
        check_last_n(mask)?;
        let lists = [mask.prefix, mask.kv_lens];
        let several = lists.iter().flatten().any(|list| list.len() != 1);
        if mask.has_bits() || several || mask.documents.is_some_and(|bounds| !bounds.is_sorted()) {
            return Err(AttentionError::Value {
                operand: "mask",
                expected: "one that is an interval of keys for each position, the same in all sequences",
                got: format!("{mask:?}"),
            });
        }
        let kv_len = mask.kv_lens.map_or(grid.kv_len, |lens| lens[0].min(grid.kv_len));
        Self::from_ranges(grid, |query, list| {
            list.push(mask.interval(&mask.row(0, 0, query, query as i64), kv_len))
        })
    }
}

/// Bits of a block, none set.
fn block_of_bits(grid: &BlockGrid) -> Result<Vec<u64>, AttentionError> {
    let overflow = AttentionError::SizeOverflow { operand: "block layout" };
    filled(grid.pattern_rows().checked_mul(grid.words()).ok_or(overflow)?, 0)
}

/// Adds the union of some ranges as sorted, disjoint ones that are not empty.
fn union_into(
    all: &mut Vec<Range<usize>>,
    own: &mut [Range<usize>],
    kv_len: usize,
) -> Result<(), AttentionError> {
    let first = all.len();
    own.sort_unstable_by_key(|range| range.start);
    for range in own.iter() {
        let range = range.start..range.end.min(kv_len);
        match all[first..].last_mut() {
            _ if range.is_empty() => {}
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => push(all, range)?,
        }
    }
    Ok(())
}

/// Notes which columns a range covers, and which it only touches.
fn note_columns(grid: &BlockGrid, range: &Range<usize>, covers: &mut [i64], touches: &mut [bool]) {
    let first = range.start / grid.kv_block;
    let last = (range.end - 1) / grid.kv_block;
    let whole = |column: usize| {
        let keys = grid.keys(column);
        range.start <= keys.start && keys.end <= range.end
    };
    let covered = first + usize::from(!whole(first))
        ..last + usize::from(mutant!("last-block-is-covered", whole(last), true));
    if covered.start < covered.end {
        covers[covered.start] += 1;
        covers[covered.end] -= 1;
    }
    (touches[first], touches[last]) = (true, true);
}

/// A block's bits, from the ranges of its queries.
fn set_block(grid: &BlockGrid, column: usize, all: &[Range<usize>], ends: &[usize], bits: &mut [u64]) {
    bits.fill(0);
    let keys = grid.keys(column);
    let mut start = 0;
    for (&end, words) in ends.iter().zip(bits.chunks_exact_mut(grid.words())) {
        let own = &all[start..end];
        start = end;
        for range in &own[own.partition_point(|range| range.end <= keys.start)..] {
            if range.start >= keys.end {
                break;
            }
            set_bits(words, range.start.max(keys.start) - keys.start..range.end.min(keys.end) - keys.start);
        }
    }
}

/// Sets a range of bits.
fn set_bits(words: &mut [u64], range: Range<usize>) {
    let first = range.start / 64;
    for (index, word) in words[first..range.end.div_ceil(64).max(first)].iter_mut().enumerate() {
        let bit = |bit: usize| bit.saturating_sub(64 * (first + index)).min(64);
        let [start, end] = [range.start, range.end].map(bit);
        *word |= u64::MAX >> (64 - (end - start)) << start;
    }
}
