//! Layouts from every builder, each beside the pairs that it stands for.

use crate::Tally;
use crate::call::refused;
use arbitrary::{Result, Unstructured};
use lucid_attention::sparse::{BigBird, BlockGrid, BlockKind, BlockLayout};
use lucid_attention::{AttentionError, Mask};
use std::ops::Range;

/// A layout, and its pairs, `[q_len][kv_len]`.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) layout: BlockLayout,
    pub(super) pairs: Vec<bool>,
}

impl Built {
    /// Whether the query at a position may attend a key.
    pub(super) fn allows(&self, q_pos: i64, key: usize) -> bool {
        let BlockGrid { q_len, kv_len, .. } = self.layout.grid();
        let query = usize::try_from(q_pos).ok().filter(|&query| query < q_len && key < kv_len);
        query.is_some_and(|query| self.pairs[query * kv_len + key])
    }
}

/// A layout of a grid, if what was drawn makes one.
pub(super) fn build(
    input: &mut Unstructured<'_>,
    grid: BlockGrid,
    tally: &mut Tally,
) -> Result<Option<Built>> {
    let square = grid.q_block == grid.kv_block;
    let block_of = |query: usize, key: usize| (query / grid.q_block, key / grid.kv_block);
    let size = |input: &mut Unstructured<'_>| -> Result<usize> {
        if input.ratio(1, 16)? { Ok(usize::MAX) } else { input.int_in_range(0..=20) }
    };
    match input.int_in_range(0..=10)? {
        0 => rows_of_blocks(input, grid, tally),
        1 => {
            let blocks = bits(input, grid.rows() * grid.columns())?;
            let layout = BlockLayout::from_dense(grid, &blocks);
            let columns = grid.columns();
            let chosen = |query, key| {
                let (row, column) = block_of(query, key);
                blocks[row * columns + column]
            };
            if input.ratio(1, 8)? {
                let mut longer = blocks.clone();
                longer.push(true);
                let error = BlockLayout::from_dense(grid, &longer).expect_err("a block too many");
                refused(&error, &["blocks"], tally);
            }
            checked(layout, &[], grid, chosen, tally)
        }
        2 | 3 => {
            let (len, share) = (grid.kv_len, input.int_in_range(0..=3)?);
            let bits = bits(input, grid.q_len * len)?;
            // All of a block, some of it, or what comes.
            let full = |query, key| share == 0 || share == 1 && block_of(query, key).1.is_multiple_of(2);
            let allows = |query: usize, key: usize| full(query, key) || bits[query * len + key];
            checked(BlockLayout::from_fn(grid, allows), &[], grid, allows, tally)
        }
        4 => {
            let mut lists: Vec<Vec<Range<usize>>> = Vec::new();
            for query in 0..grid.q_len {
                // Some queries repeat those before, so that whole blocks come about.
                if query > 0 && input.ratio(2, 3)? {
                    lists.push(lists[query - 1].clone());
                    continue;
                }
                let count = input.int_in_range(0..=3)?;
                let list: Result<_> = (0..count)
                    .map(|_| {
                        let start = input.int_in_range(0..=grid.kv_len + 2)?;
                        let end = if input.ratio(1, 16)? {
                            usize::MAX
                        } else {
                            start + input.int_in_range(0..=40)?
                        };
                        // Backward, now and then: an empty one.
                        Ok(if input.ratio(1, 16)? { end..start } else { start..end })
                    })
                    .collect();
                lists.push(list?);
            }
            let layout = BlockLayout::from_ranges(grid, |query, list| list.extend_from_slice(&lists[query]));
            checked(
                layout,
                &[],
                grid,
                |query, key| lists[query].iter().any(|range| range.contains(&key)),
                tally,
            )
        }
        5 => {
            let causal = input.arbitrary()?;
            let [left, right] = [maybe(input, size)?, maybe(input, size)?];
            let len = maybe(input, |input| input.int_in_range(0..=grid.kv_len + 2))?.map(|len| [len]);
            let mask = if causal { Mask::causal() } else { Mask::NONE }.window(left, right);
            let layout = BlockLayout::from_mask(grid, &len.as_ref().map_or(mask, |len| mask.kv_lens(len)));
            let allows = |query: usize, key: usize| {
                (!causal || key <= query)
                    && left.is_none_or(|left| key >= query.saturating_sub(left))
                    && right.is_none_or(|right| key <= query.saturating_add(right))
                    && len.is_none_or(|[len]| key < len)
            };
            checked(layout, &[], grid, allows, tally)
        }
        6 => {
            let one_side = size(input)?;
            let mut global: Vec<usize> = Vec::new();
            for _ in 0..input.int_in_range(0..=3)? {
                global.push(input.int_in_range(0..=grid.q_len.max(grid.kv_len))?);
            }
            if input.ratio(7, 8)? {
                global.sort_unstable();
                global.dedup();
            }
            let limit = grid.q_len.max(grid.kv_len);
            let wrong =
                global.windows(2).any(|pair| pair[0] >= pair[1]) || global.iter().any(|&at| at >= limit);
            let wrong: &[&str] = if wrong { &["global"] } else { &[] };
            let allows = |query: usize, key: usize| {
                query.abs_diff(key) <= one_side || global.contains(&query) || global.contains(&key)
            };
            checked(BlockLayout::longformer(grid, one_side, &global), wrong, grid, allows, tally)
        }
        7 => {
            let pattern = BigBird {
                window: input.int_in_range(0..=3)?,
                global: input.int_in_range(0..=2)?,
                random: input.int_in_range(0..=4)?,
                seed: input.arbitrary()?,
            };
            bigbird(grid, &pattern, tally)
        }
        8 => {
            let stride = input.int_in_range(0..=5)?;
            let mut wrong = square_rule(square);
            wrong.extend((stride == 0).then_some("stride"));
            let allows = |query, key| {
                let (row, column) = block_of(query, key);
                let distance = row.abs_diff(column);
                distance < stride || distance % stride == 0
            };
            checked(BlockLayout::strided(grid, stride), &wrong, grid, allows, tally)
        }
        9 => {
            let (local, global) = (input.int_in_range(0..=5)?, input.int_in_range(0..=5)?);
            let mut wrong = square_rule(square);
            wrong.extend((local == 0).then_some("local"));
            wrong.extend((global > local).then_some("global"));
            let allows = |query, key| {
                let (row, column) = block_of(query, key);
                row / local == column / local || column % local + global >= local
            };
            checked(BlockLayout::fixed(grid, local, global), &wrong, grid, allows, tally)
        }
        _ => {
            let (sink, recent) = (size(input)?, size(input)?);
            let wrong: &[&str] = if recent == 0 { &["recent"] } else { &[] };
            let allows = |query: usize, key: usize| key <= query && (key < sink || query - key < recent);
            checked(BlockLayout::sink_and_recent(grid, sink, recent), wrong, grid, allows, tally)
        }
    }
}

fn square_rule(square: bool) -> Vec<&'static str> {
    if square { vec![] } else { vec!["block layout"] }
}

pub(super) fn maybe<'a, T>(
    input: &mut Unstructured<'a>,
    make: impl FnOnce(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if input.arbitrary()? { make(input).map(Some) } else { Ok(None) }
}

/// So many bits, from a few bytes that repeat.
fn bits(input: &mut Unstructured<'_>, count: usize) -> Result<Vec<bool>> {
    let bytes = input.bytes(input.len().min(count.div_ceil(8)).min(12))?;
    let bit = |at: usize| {
        let byte = bytes.get(at / 8 % bytes.len().max(1)).copied().unwrap_or(0x5a);
        byte >> (at % 8) & 1 == 1
    };
    Ok((0..count).map(bit).collect())
}

/// Compressed rows, mostly right ones.
fn rows_of_blocks(input: &mut Unstructured<'_>, grid: BlockGrid, tally: &mut Tally) -> Result<Option<Built>> {
    let (count, columns) = (grid.rows(), grid.columns());
    let blocks = bits(input, count * columns)?;
    let (mut rows, mut list) = (vec![0i32], Vec::new());
    for row in 0..count {
        list.extend((0..columns).filter(|column| blocks[row * columns + column]).map(|column| column as i32));
        rows.push(list.len() as i32);
    }
    list.extend(vec![-1; input.int_in_range(0..=3)?]);
    for _ in 0..input.int_in_range(0..=2)? {
        let entry = if input.ratio(1, 4)? {
            input.arbitrary()?
        } else {
            input.int_in_range(-2..=columns as i32 + 1)?
        };
        let entries = if input.arbitrary()? { &mut rows } else { &mut list };
        match (input.int_in_range(0..=3)?, entries.len()) {
            (0, _) => entries.push(entry),
            (1, 1..) => drop(entries.pop()),
            (_, 0) => {}
            (_, len) => entries[input.int_in_range(0..=len - 1)?] = entry,
        }
    }
    let layout = BlockLayout::from_csr(grid, &rows, &list);
    let chosen = csr(&rows, &list, [count, columns]);
    let wrong: &[&str] = if chosen.is_none() { &["block_row_indices", "block_col_indices"] } else { &[] };
    let chosen = chosen.unwrap_or_default();
    let allows = |query: usize, key: usize| chosen[query / grid.q_block * columns + key / grid.kv_block];
    checked(layout, wrong, grid, allows, tally)
}

/// The matrix that compressed rows stand for, unless they are none.
fn csr(rows: &[i32], list: &[i32], [count, columns]: [usize; 2]) -> Option<Vec<bool>> {
    let offsets: Option<Vec<usize>> = rows.iter().map(|&offset| usize::try_from(offset).ok()).collect();
    let offsets =
        offsets.filter(|offsets| offsets.len() == count + 1 && offsets[0] == 0 && offsets.is_sorted())?;
    let mut matrix = vec![false; count * columns];
    for row in 0..count {
        let own = list.get(offsets[row]..offsets[row + 1])?;
        if own.windows(2).any(|pair| pair[0] >= pair[1]) {
            return None;
        }
        for &column in own {
            let column = usize::try_from(column).ok().filter(|&column| column < columns)?;
            matrix[row * columns + column] = true;
        }
    }
    list[offsets[count]..].iter().all(|&padding| padding == -1).then_some(matrix)
}

/// Which of BigBird's blocks are random is its own business: how many, and the others, is not.
fn bigbird(grid: BlockGrid, pattern: &BigBird, tally: &mut Tally) -> Result<Option<Built>> {
    let n = grid.columns();
    let layout = BlockLayout::bigbird(grid, pattern);
    if grid.rows() != n || grid.q_block != grid.kv_block {
        refused(&layout.expect_err("rows and columns differ"), &["block layout"], tally);
        return Ok(None);
    }
    let layout = layout.expect("a pattern of squares");
    let end = |at: usize| at < pattern.global || n - 1 - at < pattern.global;
    let mut stored = vec![false; n * n];
    layout.iter().for_each(|(row, column, _)| stored[row * n + column] = true);
    for row in 0..n {
        let fixed = |column: usize| end(row) || end(column) || row.abs_diff(column) <= pattern.window;
        let count = |of: &dyn Fn(usize) -> bool| (0..n).filter(|&column| of(column)).count();
        assert!(
            (0..n).all(|column| !fixed(column) || stored[row * n + column]),
            "row {row} of {grid:?}, {pattern:?}"
        );
        let (own, others) = (count(&|column| stored[row * n + column]), n - count(&fixed));
        assert_eq!(own, n - others + pattern.random.min(others), "row {row} of {grid:?}, {pattern:?}");
        tally.same += 1 + n as u64;
    }
    let allows = |query: usize, key: usize| stored[query / grid.q_block * n + key / grid.kv_block];
    checked(Ok(layout), &[], grid, allows, tally)
}

/// Holds a layout against its pairs: which blocks it stores, of which kind, and what it allows. If something is wrong it
/// has to be refused.
fn checked(
    layout: std::result::Result<BlockLayout, AttentionError>,
    wrong: &[&str],
    grid: BlockGrid,
    allows: impl Fn(usize, usize) -> bool,
    tally: &mut Tally,
) -> Result<Option<Built>> {
    if !wrong.is_empty() {
        refused(&layout.expect_err(&format!("{wrong:?} are wrong")), wrong, tally);
        return Ok(None);
    }
    let layout = layout.unwrap_or_else(|error| panic!("{error}, of {grid:?}"));
    let BlockGrid { q_len, kv_len, q_block, kv_block } = grid;
    let pairs: Vec<bool> = (0..q_len * kv_len).map(|at| allows(at / kv_len, at % kv_len)).collect();
    let mut expected = Vec::new();
    for row in 0..grid.rows() {
        let queries = row * q_block..q_len.min((row + 1) * q_block);
        for column in 0..grid.columns() {
            let keys = column * kv_block..kv_len.min((column + 1) * kv_block);
            let count_of =
                |query: usize| pairs[query * kv_len..][keys.clone()].iter().filter(|&&pair| pair).count();
            match queries.clone().map(count_of).sum::<usize>() {
                0 => {}
                count if count == queries.len() * keys.len() => expected.push((row, column, BlockKind::Full)),
                _ => expected.push((row, column, BlockKind::Partial)),
            }
        }
    }
    assert_eq!(layout.iter().collect::<Vec<_>>(), expected, "blocks of {grid:?}");
    assert_eq!((layout.grid(), layout.blocks()), (grid, expected.len()));
    tally.same += (grid.rows() * grid.columns()) as u64;
    let built = Built { layout, pairs };
    // Every pair of a small layout, some of a large one, and what lies beyond.
    let step = 1 + q_len * kv_len / 1000;
    for at in (0..(q_len + 1) * (kv_len + 1)).step_by(step) {
        let (query, key) = ((at / (kv_len + 1)) as i64, at % (kv_len + 1));
        assert_eq!(
            built.layout.allows(query, key),
            built.allows(query, key),
            "query {query}, key {key} of {grid:?}"
        );
        tally.same += 1;
    }
    assert!(
        !built.layout.allows(-1, 0) && !built.layout.allows(i64::MIN, 0) && !built.layout.allows(i64::MAX, 0)
    );
    Ok(Some(built))
}
