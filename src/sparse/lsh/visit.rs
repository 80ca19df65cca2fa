//! Which pairs each round has, as the bits of a layout over the sorted slots.

use super::super::layout::{BlockGrid, BlockLayout, LayoutBuilder, reserved};
use super::Lsh;
use super::hash::size;
use super::order::{NONE, Order};
use crate::error::AttentionError;
use crate::mask::{Cell, Mask};

/// The mask of one head, on the tokens' own positions.
pub(super) struct HeadMask<'a> {
    pub(super) mask: &'a Mask<'a>,
    pub(super) sequence: usize,
    pub(super) q_head: usize,
    /// Valid tokens.
    pub(super) kv_len: usize,
}

/// The layout of a head's sorted slots: chunks that meet, and in them the pairs that the mask leaves.
pub(super) fn layout(
    lsh: &Lsh,
    order: &Order,
    buckets: &[u32],
    mask: &HeadMask<'_>,
) -> Result<BlockLayout, AttentionError> {
    let (chunk, slots) = (lsh.chunk, order.token_at.len());
    let words = chunk.div_ceil(64);
    // For each slot's query the keys of the chunk before, then those of its own.
    let len = size([slots, 2, words])?;
    let mut bits: Vec<u64> = reserved(len)?;
    bits.resize(len, 0);
    // The last query that saw a key.
    let mut seen: Vec<u32> = reserved(order.tokens)?;
    seen.resize(order.tokens, NONE);
    let before: Vec<Option<usize>> = (0..slots / chunk).map(|row| chunk_before(lsh, order, row)).collect();
    for query in 0..order.tokens {
        let row = mask.mask.row(mask.sequence, mask.q_head, query, query as i64);
        let interval = mask.mask.interval(row, mask.kv_len);
        let allows = |key: usize| {
            let cell =
                Cell { sequence: mask.sequence, q_head: mask.q_head, query, q_pos: query as i64, k_pos: key };
            interval.contains(&key) && (!mask.mask.has_bits() || mask.mask.allows(cell))
        };
        let mut alone = true;
        for slot in slots_of(order, query) {
            let round = slot / order.stride;
            let row = &mut bits[slot * 2 * words..][..2 * words];
            for (side, row_of_keys) in [before[slot / chunk], Some(slot / chunk)].into_iter().enumerate() {
                let Some(keys) = row_of_keys else { continue };
                for (index, &key) in order.token_at[keys * chunk..][..chunk].iter().enumerate() {
                    if key == NONE || key as usize == query || !allows(key as usize) {
                        continue;
                    }
                    let bucket = |token: usize| buckets[round * order.tokens + token];
                    let own = keys * chunk / order.stride == round && bucket(key as usize) == bucket(query);
                    if !lsh.across_buckets && !own {
                        continue;
                    }
                    if !lsh.duplicates
                        && std::mem::replace(&mut seen[key as usize], query as u32) == query as u32
                    {
                        continue;
                    }
                    row[side * words + index / 64] |= 1 << (index % 64);
                    alone = false;
                }
            }
        }
        if alone && allows(query) {
            // Nothing else in any round: itself, once or in each.
            let rounds = if lsh.duplicates { usize::MAX } else { 1 };
            for slot in slots_of(order, query).take(rounds) {
                let index = slot % chunk;
                bits[slot * 2 * words + words + index / 64] |= 1 << (index % 64);
            }
        }
    }
    build(slots, chunk, &before, &bits)
}

/// Where a token is in each round.
fn slots_of(order: &Order, token: usize) -> impl Iterator<Item = usize> {
    order.slot_of.iter().skip(token).step_by(order.tokens).map(|&slot| slot as usize)
}

/// The chunk that a chunk looks back at, if it is another.
fn chunk_before(lsh: &Lsh, order: &Order, row: usize) -> Option<usize> {
    let rows = order.token_at.len() / lsh.chunk;
    let first_of_round = row.is_multiple_of(order.stride / lsh.chunk);
    let before = match (first_of_round, lsh.wrap) {
        (true, false) => return None,
        _ => (row + rows - 1) % rows,
    };
    (before != row).then_some(before)
}

/// The layout with such bits.
fn build(
    slots: usize,
    chunk: usize,
    before: &[Option<usize>],
    bits: &[u64],
) -> Result<BlockLayout, AttentionError> {
    let grid = BlockGrid::square(slots, chunk);
    let words = chunk.div_ceil(64);
    let mut builder = LayoutBuilder::new(grid)?;
    let mut block = reserved(chunk * words)?;
    for (row, rows) in bits.chunks_exact(chunk * 2 * words).enumerate() {
        let mut sides: Vec<(usize, usize)> = before[row].map(|column| (column, 0)).into_iter().collect();
        sides.push((row, 1));
        sides.sort_unstable();
        for (column, side) in sides {
            block.clear();
            rows.chunks_exact(2 * words)
                .for_each(|row| block.extend_from_slice(&row[side * words..][..words]));
            builder.block(column, &mut block);
        }
        builder.end_row();
    }
    Ok(builder.finish())
}
