//! Which pairs each round has, as the bits of a layout over the sorted slots.
//!
//! ```text
//! view       a chunk of keys that a round lets a chunk of queries see: the one before, then its own
//! pair       a query and a key of a view that the mask allows on their positions, which no view before has
//! itself     in the first round only, or in all with duplicates, of queries that have no pair in any
//! ```
//!
//! A row of chunks needs no other, so rows are shared out; and what a pair needs of its key (position, chunks, buckets) is
//! gathered for a view once and lies side by side for all of its queries, so that the comparisons are a few vector
//! instructions for 64 pairs.

use super::super::block_mask::BlockMask;
use super::super::builder::LayoutBuilder;
use super::super::layout::{BlockGrid, BlockLayout};
use super::super::memory::{append, filled, reserved};
use super::Lsh;
use super::hash::size;
use super::order::{NONE, Orders};
use super::spread::{parts, piece, workers};
use crate::error::AttentionError;
use crate::mask::{Cell, Mask, TILE, bits_of};
use crate::parallel::{for_each_part, for_each_part_with};
use std::ops::Range;

/// Who sees whom.
pub(super) struct Visits<'a> {
    pub(super) lsh: &'a Lsh,
    pub(super) orders: &'a Orders,
    /// `[units, rounds, tokens]`.
    pub(super) buckets: &'a [u32],
    /// On the tokens' own positions.
    pub(super) mask: &'a Mask<'a>,
    pub(super) heads: usize,
}

/// A chunk of keys as a round sees it, by its place among a unit's.
#[derive(Clone, Copy)]
struct KeyChunk {
    chunk: usize,
    /// The round whose tokens it holds, which with [`Lsh::wrap`] may be another.
    round: usize,
}

/// What the queries of a row of chunks ask about a key, for each of the row's two views: chunks of all rounds, `[2, rounds,
/// chunk]`, and buckets.
struct Gathered {
    chunks: Vec<u32>,
    buckets: Vec<u32>,
}

impl Visits<'_> {
    /// The layouts of all units.
    pub(super) fn block_mask(&self, threads: usize) -> Result<BlockMask, AttentionError> {
        let (orders, words) = (self.orders, self.lsh.chunk.div_ceil(64));
        let (units, slots) = (orders.count(), orders.slots());
        // For each slot's query the keys of its two views; whether there are any.
        let mut bits = filled(size([units, slots, 2, words])?, 0u64)?;
        let mut sees = filled(size([units, slots])?, false)?;
        self.find_pairs(threads, &mut bits, &mut sees)?;

        let mut layouts = reserved(units)?;
        layouts.resize_with(units, || None);
        let (mut layouts_left, mut bits_left) = (&mut layouts[..], &mut bits[..]);
        let parts = parts(units).map(|units| {
            let bits = piece(&mut bits_left, units.len() * slots * 2 * words);
            (piece(&mut layouts_left, units.len()), bits, units)
        });
        let workers = workers(threads, 4.0 * (units * slots * words) as f64);
        for_each_part(parts, workers, &|(layouts, bits, units): (&mut [_], &mut [u64], Range<usize>)| {
            let lists = layouts.iter_mut().zip(bits.chunks_exact_mut(slots * 2 * words));
            for (unit, (layout, bits)) in units.zip(lists) {
                self.add_lonely(unit, &sees[unit * slots..][..slots], bits);
                *layout = Some(self.layout(bits));
            }
        });
        let mut all = reserved(units)?;
        for layout in layouts.into_iter().flatten() {
            all.push(layout?);
        }
        BlockMask::one_each(all, [units / self.heads, self.heads])
    }

    /// Fills in the pairs of a query with others.
    fn find_pairs(&self, threads: usize, bits: &mut [u64], sees: &mut [bool]) -> Result<(), AttentionError> {
        let &Lsh { chunk, rounds, .. } = self.lsh;
        let words = chunk.div_ceil(64);
        let rows = sees.len() / chunk;
        let (mut bits_left, mut sees_left) = (bits, sees);
        let parts = parts(rows).map(|rows| {
            let bits = piece(&mut bits_left, rows.len() * chunk * 2 * words);
            (piece(&mut sees_left, rows.len() * chunk), bits, rows)
        });
        let workers = workers(threads, rows as f64 * (chunk * chunk * rounds) as f64 / 4.0);
        let mut scratch = reserved(workers)?;
        for _ in 0..workers {
            let room = || filled(size([2, rounds, chunk])?, NONE);
            scratch.push(Gathered { chunks: room()?, buckets: room()? });
        }
        for_each_part_with(parts, &mut scratch, &|(sees, bits, rows), gathered| {
            let lists = sees.chunks_exact_mut(chunk).zip(bits.chunks_exact_mut(chunk * 2 * words));
            for (row, (sees, bits)) in rows.zip(lists) {
                self.find_row(row, gathered, sees, bits);
            }
        });
        Ok(())
    }

    /// [`Visits::find_pairs`] of a row of chunks, counted over all units.
    fn find_row(&self, row: usize, gathered: &mut Gathered, sees: &mut [bool], bits: &mut [u64]) {
        let &Lsh { chunk, duplicates, across_buckets, .. } = self.lsh;
        let (orders, words) = (self.orders, chunk.div_ceil(64));
        let rows_of_unit = orders.slots() / chunk;
        let (unit, row) = (row / rows_of_unit, row % rows_of_unit);
        let round = self.round_of(row);
        let tokens = orders.token_at(unit);
        let views = self.views(row);
        for (side, view) in views.iter().enumerate() {
            if let Some(view) = view {
                self.gather(unit, &tokens[view.chunk * chunk..][..chunk], side, gathered);
            }
        }
        let queries = tokens[row * chunk..][..chunk].iter().zip(sees).zip(bits.chunks_exact_mut(2 * words));
        for ((&query, sees), bits) in queries.filter(|((query, _), _)| **query != NONE) {
            let visible = self.visible(unit, query as usize);
            for (side, view) in views.iter().enumerate() {
                let Some(view) = view.filter(|view| across_buckets || view.round == round) else { continue };
                let keys = &tokens[view.chunk * chunk..][..chunk];
                for (piece, bits) in bits[side * words..][..words].chunks_mut(TILE / 64).enumerate() {
                    let at = piece * TILE..chunk.min((piece + 1) * TILE);
                    let mut seen = [false; TILE];
                    let seen = &mut seen[..at.len()];
                    let keys = &keys[at.clone()];
                    for (seen, &key) in seen.iter_mut().zip(keys) {
                        *seen = key.wrapping_sub(visible.start) < visible.end - visible.start && key != query;
                    }
                    if !across_buckets {
                        let bucket = self.bucket(unit, round, query as usize);
                        let own = &gathered.of(&gathered.buckets, side, round, chunk)[at.clone()];
                        seen.iter_mut().zip(own).for_each(|(seen, &key)| *seen &= key == bucket);
                    }
                    if !duplicates {
                        self.drop_repeated(unit, query as usize, (round, side), gathered, at, seen);
                    }
                    self.drop_masked(unit, query as usize, keys, seen);
                    bits.iter_mut().zip(bits_of(seen)).for_each(|(word, seen)| *word = seen);
                    *sees |= bits.iter().any(|&word| word != 0);
                }
            }
        }
    }

    /// Takes out the keys that a view before has.
    fn drop_repeated(
        &self,
        unit: usize,
        query: usize,
        (round, side): (usize, usize),
        gathered: &Gathered,
        at: Range<usize>,
        seen: &mut [bool],
    ) {
        let &Lsh { chunk, across_buckets, .. } = self.lsh;
        for earlier in 0..=round {
            let row = self.orders.slot_of(unit, earlier)[query] as usize / chunk;
            let views = self.views(row);
            // Of the same round only the view before this one.
            for view in views.iter().take(if earlier == round { side } else { 2 }).flatten() {
                let places = &gathered.of(&gathered.chunks, side, view.round, chunk)[at.clone()];
                let place = view.chunk as u32;
                if across_buckets {
                    seen.iter_mut().zip(places).for_each(|(seen, &key)| *seen &= key != place);
                } else if view.round == earlier {
                    let bucket = self.bucket(unit, earlier, query);
                    let buckets = &gathered.of(&gathered.buckets, side, earlier, chunk)[at.clone()];
                    for (seen, (&key, &own)) in seen.iter_mut().zip(places.iter().zip(buckets)) {
                        *seen &= key != place || own != bucket;
                    }
                }
            }
        }
    }

    /// Takes out the keys that parts of the mask remove inside its interval.
    fn drop_masked(&self, unit: usize, query: usize, keys: &[u32], seen: &mut [bool]) {
        if self.mask.has_bits() {
            for (seen, &key) in seen.iter_mut().zip(keys).filter(|(seen, _)| **seen) {
                *seen = self.mask.allows(self.cell(unit, query, key as usize));
            }
        }
    }

    /// Notes the chunks and buckets of a view's keys.
    fn gather(&self, unit: usize, keys: &[u32], side: usize, gathered: &mut Gathered) {
        let &Lsh { chunk, rounds, duplicates, across_buckets, .. } = self.lsh;
        for round in 0..rounds {
            let own = (side * rounds + round) * chunk..(side * rounds + round + 1) * chunk;
            if !duplicates {
                let slot_of = self.orders.slot_of(unit, round);
                for (place, &key) in gathered.chunks[own.clone()].iter_mut().zip(keys) {
                    *place = slot_of.get(key as usize).map_or(NONE, |&slot| slot / chunk as u32);
                }
            }
            if !across_buckets {
                for (bucket, &key) in gathered.buckets[own].iter_mut().zip(keys) {
                    *bucket = if key == NONE { NONE } else { self.bucket(unit, round, key as usize) };
                }
            }
        }
    }

    fn bucket(&self, unit: usize, round: usize, token: usize) -> u32 {
        self.buckets[(unit * self.lsh.rounds + round) * self.orders.tokens + token]
    }

    fn cell(&self, unit: usize, query: usize, key: usize) -> Cell {
        let (sequence, q_head) = (unit / self.heads, unit % self.heads);
        Cell { sequence, q_head, query, q_pos: query as i64, k_pos: key }
    }

    /// The positions that a query may see as far as the mask's intervals say.
    fn visible(&self, unit: usize, query: usize) -> Range<u32> {
        let (sequence, q_head) = (unit / self.heads, unit % self.heads);
        let kv_len = self.mask.kv_lens.map_or(self.orders.tokens, |lens| lens[sequence]);
        let row = self.mask.row(sequence, q_head, query, query as i64);
        let keys = self.mask.interval(&row, kv_len);
        keys.start as u32..keys.end as u32
    }

    /// The round of a row of chunks.
    fn round_of(&self, row: usize) -> usize {
        row / (self.orders.stride / self.lsh.chunk)
    }

    /// The chunk before, if there is another, and the row's own.
    fn views(&self, row: usize) -> [Option<KeyChunk>; 2] {
        let rows = self.orders.slots() / self.lsh.chunk;
        let first_of_round = row.is_multiple_of(self.orders.stride / self.lsh.chunk);
        let before = (row + rows - 1) % rows;
        let looks_back = (!first_of_round || self.lsh.wrap) && before != row;
        let view = |chunk| KeyChunk { chunk, round: self.round_of(chunk) };
        [looks_back.then(|| view(before)), Some(view(row))]
    }

    /// Lets the queries that have no pair in any round see themselves.
    fn add_lonely(&self, unit: usize, sees: &[bool], bits: &mut [u64]) {
        let &Lsh { chunk, rounds, duplicates, .. } = self.lsh;
        let words = chunk.div_ceil(64);
        for query in 0..self.orders.tokens {
            let slots = || (0..rounds).map(|round| self.orders.slot_of(unit, round)[query] as usize);
            let visible = self.visible(unit, query).contains(&(query as u32))
                && (!self.mask.has_bits() || self.mask.allows(self.cell(unit, query, query)));
            if visible && !slots().any(|slot| sees[slot]) {
                for slot in slots().take(if duplicates { rounds } else { 1 }) {
                    bits[slot * 2 * words + words + slot % chunk / 64] |= 1 << (slot % chunk % 64);
                }
            }
        }
    }

    /// The layout of a unit with such bits.
    fn layout(&self, bits: &[u64]) -> Result<BlockLayout, AttentionError> {
        let (chunk, words) = (self.lsh.chunk, self.lsh.chunk.div_ceil(64));
        let mut builder = LayoutBuilder::new(BlockGrid::square(self.orders.slots(), chunk))?;
        let mut block = reserved(chunk * words)?;
        for (row, rows) in bits.chunks_exact(chunk * 2 * words).enumerate() {
            let mut views = self.views(row).map(|view| view.map(|view| view.chunk));
            // With `wrap` the chunk before may be one after.
            let sides = if views[0] > views[1] { [1, 0] } else { [0, 1] };
            for side in sides {
                let Some(column) = views[side].take() else { continue };
                block.clear();
                for row in rows.chunks_exact(2 * words) {
                    append(&mut block, &row[side * words..][..words])?;
                }
                builder.block(column, &mut block)?;
            }
            builder.end_row();
        }
        Ok(builder.finish())
    }
}

impl Gathered {
    /// One of the two lists, for the keys of a view in a round.
    fn of<'a>(&self, list: &'a [u32], side: usize, round: usize, chunk: usize) -> &'a [u32] {
        let rounds = list.len() / (2 * chunk);
        &list[(side * rounds + round) * chunk..][..chunk]
    }
}
