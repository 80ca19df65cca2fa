//! Keeping memory busy while registers are.
//!
//! The hardware's own prefetchers leave memory idle: they stop at pages, and several multiply-adds per cache line fill the
//! core's queues before it has seen enough lines ahead. What helps is to ask for lines ahead of time, into L2 (L1 has too few
//! fill buffers). Several rows lose nothing by it where lines come from a cache; one would lose a tenth. How far ahead depends
//! on how long a line is worked on (bench `roofline`, `decode` and `few`):
//!
//! | kernel | gain from DRAM | distance |
//! |---|---|---|
//! | one row of `f32`, AVX-512 | 1.2 | 4 KiB; 2 to 6 are alike, 8 gain nothing, 16 lose a quarter |
//! | one row of `f32`, AVX2 | 1 for keys; values lose a tenth, if read in order ([`streamed_keys`]) | |
//! | one row of `f16` or `bf16` | 1.1 to 1.4 | 8 KiB; 4 lose a tenth, 16 gain less |
//! | several rows | 1.1 to 3 | 16 KiB; 8 lose a quarter on AVX2 and nothing on AVX-512 |
//! | rows that are transposed | 1.3 to 1.6 | 16 KiB, two transpositions of 16 rows of 512 bytes; at AVX-512 8 lose up to 13 %, 32 up to 6 |
//!
//! [`streamed_keys`]: crate::tile::streamed_keys
//!
//! Keys and values that a few rows pack tile by tile are not asked for a tile ahead: that loses 1 to 15 % (`few` from rows, AVX-512).
//! Nothing but memory keeps the bf16 tier's packing busy: it asks a panel ahead, for rows of keys as above, and gains 1.1 to 1.6
//! from a cache and 1.3 to 1.8 from rows (8 to 64 rows of weights, 4096 keys; example `bench_worker`, `LUCID_BF16_DOT=1`).
//!
//! Blocks of a block mask lie anywhere: the next ones are asked for by name ([`Share`]), while those before are worked on.
//! Random blocks gain 1.02 to 1.04 at 4096 tokens, asking and fewer searches together (bench `sparse`, AVX2).

use super::score::KeyRows;
use crate::element::Element;
use crate::isa::Isa;
use crate::panels::PANEL;
use std::ops::Range;

const LINE_BYTES: usize = 64;

/// How far ahead the kernels ask that work longest on a line, and transpositions.
const AHEAD_BYTES: usize = 16 << 10;

/// Prefetches for `MR` rows that work on one piece of memory.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch<const MR: usize> {
    ahead: usize,
    asks: bool,
}

impl<const MR: usize> Prefetch<MR> {
    /// For the piece of `data` that ends at `end`. Where `data` ends sooner than it reaches ahead, it asks for what is at
    /// hand already; where `data` is not expected to come from memory, a single row asks for nothing.
    #[inline(always)]
    pub(crate) fn new<T>(data: &[T], end: usize, from_memory: bool) -> Self {
        let bytes = match size_of::<T>() {
            _ if MR > 1 => AHEAD_BYTES,
            4 => AHEAD_BYTES / 4,
            _ => AHEAD_BYTES / 2,
        };
        let ahead = bytes / size_of::<T>();
        let ahead = if end.saturating_add(ahead) <= data.len() { ahead } else { 0 };
        Self { ahead, asks: MR > 1 || from_memory }
    }

    /// Asks for what lies ahead of `src[at]`, where the next `vectors` vectors are about to be loaded from.
    #[inline(always)]
    pub(crate) fn ask<I: Isa, T>(self, isa: I, src: &[T], at: usize, vectors: usize) {
        if !self.asks {
            return;
        }
        let mut next = 0;
        while next < vectors * I::LANES {
            isa.prefetch(src, at + next + self.ahead);
            next += LINE_BYTES / size_of::<T>();
        }
    }
}

/// What a kernel asks for that goes through a panel, column tile by column tile.
#[derive(Clone, Copy)]
pub(crate) enum Ahead {
    /// The lines a little ahead, as [`Prefetch`] does.
    Near { from_memory: bool },
    /// The next panel, for which the groups of rows that go through this one before it ask together, each for its share: it
    /// comes from memory while all of them compute, not while the first does. 14 tokens through the 42 MB of MiniLM gain
    /// 1.11, products whose weights lie in a cache nothing (examples `minilm --bench` and `bench_worker`, AVX2).
    NextPanel { group: usize, groups: usize },
}

/// Prefetches for a tile of a panel: `asks` at `at + step * per_step`.
#[derive(Clone, Copy)]
pub(crate) struct TilePrefetch {
    at: usize,
    per_step: usize,
    asks: bool,
}

impl Ahead {
    /// Those of `MR` rows for `width` columns from `first` on, of the panel of `dims` steps that `data` starts with.
    #[inline(always)]
    pub(crate) fn tile<T, const MR: usize>(
        self,
        data: &[T],
        dims: usize,
        [first, width]: [usize; 2],
    ) -> TilePrefetch {
        let size = PANEL * dims;
        let near = |from_memory| {
            let Prefetch { ahead, asks } = Prefetch::<MR>::new(data, size, from_memory);
            TilePrefetch { at: first + ahead, per_step: PANEL, asks }
        };
        match self {
            Ahead::Near { from_memory } => near(from_memory),
            Ahead::NextPanel { group, groups } if 2 * size <= data.len() => TilePrefetch {
                at: size + (size * group + first * dims) / groups,
                per_step: width.div_ceil(groups),
                asks: true,
            },
            Ahead::NextPanel { .. } => near(false),
        }
    }
}

impl TilePrefetch {
    /// Asks for as much as the step loads, `vectors` vectors: always as many lines, though groups that share a panel would
    /// do with fewer; a number that is not constant costs products from caches 3 %.
    #[inline(always)]
    pub(crate) fn ask<I: Isa, T>(self, isa: I, panel: &[T], step: usize, vectors: usize) {
        if !self.asks {
            return;
        }
        let mut next = 0;
        while next < vectors * I::LANES {
            isa.prefetch(panel, self.at + step * self.per_step + next);
            next += LINE_BYTES / size_of::<T>();
        }
    }
}

/// Prefetches rows of keys that are transposed on their way into registers.
///
/// DRAM wants to be read in order. Transposing visits 8 or 16 rows at once, line by line across them, which the
/// hardware's prefetchers do not follow: from memory that alone runs at less than half the speed. Prefetches into L2 in the
/// order of memory make the transposition hit the cache (real loads in their place stop the core at every miss, and lose
/// a third), as many as there are lines used up: whole rows at a time, rarer, lose 4 to 10 % at AVX-512 and 2 at AVX2 (f32
/// decode from rows). Of rows that are not whole lines the last are left to the hardware. What is taken to lie in a cache is not
/// asked for.
#[derive(Clone, Copy)]
pub(crate) struct PrefetchRows<'a, T> {
    keys: KeyRows<'a, T>,
    head_dim: usize,
    /// Where the row starts whose lines are asked for.
    row: usize,
    /// The element of it whose line is next.
    element: usize,
    /// Lines that `COLUMNS` dimensions of the keys are.
    lines: usize,
}

impl<'a, T: Element> PrefetchRows<'a, T> {
    /// For `count` keys from `first` on. Where rows end sooner than it reaches ahead, it asks for what is at hand already.
    #[inline(always)]
    pub(crate) fn new(keys: KeyRows<'a, T>, head_dim: usize, [first, count]: [usize; 2]) -> Self {
        let ahead = first + AHEAD_BYTES.div_ceil(head_dim * size_of::<T>());
        let first = if ahead + count <= keys.len { ahead } else { first };
        let lines = count * T::COLUMNS * size_of::<T>() / LINE_BYTES;
        Self { keys, head_dim, row: first * keys.stride, element: 0, lines }
    }

    /// Asks for as many lines as the next `COLUMNS` dimensions of the keys are, in the order of memory.
    #[inline(always)]
    pub(crate) fn ask<I: Isa>(&mut self, isa: I) {
        if !self.keys.from_memory {
            return;
        }
        for _ in 0..self.lines {
            isa.prefetch(self.keys.data, self.row + self.element);
            self.element += LINE_BYTES / size_of::<T>();
            if self.element >= self.head_dim {
                self.element = 0;
                self.row += self.keys.stride;
            }
        }
    }
}

/// Asks for the lines of `len` elements from `first` on, whether they are there or not.
#[inline(always)]
pub(crate) fn ask<I: Isa, T>(isa: I, data: &[T], first: usize, len: usize) {
    for element in (0..len).step_by(LINE_BYTES / size_of::<T>()) {
        isa.prefetch(data, first.wrapping_add(element));
    }
}

/// A share of some memory: as much of it as the rows `start..end` are of so many.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) of: usize,
}

impl Share {
    /// That of `count` things.
    #[inline(always)]
    fn of(self, count: usize) -> Range<usize> {
        count * self.start / self.of..count * self.end / self.of
    }

    /// Asks for its lines of `len` elements from `first` on. As everywhere, what is not there may be asked for.
    #[inline(always)]
    pub(crate) fn ask<I: Isa, T>(self, isa: I, data: &[T], first: usize, len: usize) {
        let line = LINE_BYTES / size_of::<T>();
        let lines = self.of(len.div_ceil(line));
        ask(isa, data, first.wrapping_add(lines.start * line), lines.len() * line);
    }

    /// Asks for its rows of a panel's worth from row `first` on, `len` elements each and `stride` apart.
    #[inline(always)]
    pub(crate) fn ask_rows<I: Isa, T>(self, isa: I, data: &[T], first: usize, [stride, len]: [usize; 2]) {
        for row in self.of(PANEL) {
            ask(isa, data, first.wrapping_add(row).wrapping_mul(stride), len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the tiles and the number of groups, together they ask for all of the next panel.
    #[test]
    fn groups_share_the_next_panel() {
        for (dims, width, groups) in
            [(1, 16, 2), (7, 16, 3), (384, 16, 3), (384, 64, 3), (384, 32, 5), (100, 64, 22), (33, 8, 40)]
        {
            let panels = vec![0.0f32; 2 * PANEL * dims];
            let size = PANEL * dims;
            let mut asked = vec![false; 3 * size + width];
            for group in 0..groups {
                for first in (0..PANEL).step_by(width) {
                    let ahead = Ahead::NextPanel { group, groups };
                    let tile = ahead.tile::<f32, 6>(&panels, dims, [first, width]);
                    for step in 0..dims {
                        asked[tile.at + step * tile.per_step..][..tile.per_step].fill(true);
                    }
                }
            }
            let what = format!("{dims} dimensions, tiles of {width}, {groups} groups");
            assert!(!asked[..size].contains(&true), "{what}: nothing of this panel");
            assert!(!asked[size..2 * size].contains(&false), "{what}: all of the next");
        }
    }

    /// Whatever the groups, together they ask for all lines, and for none twice.
    #[test]
    fn shares_are_the_whole() {
        for (count, groups) in [(256, vec![6; 11]), (7, vec![6, 6, 4]), (0, vec![3]), (1, vec![1; 9])] {
            let of: usize = groups.iter().sum();
            let mut next = 0;
            let mut row = 0;
            for group in groups {
                let share = Share { start: row, end: row + group, of }.of(count);
                assert_eq!(share.start, next, "{count} in shares");
                (next, row) = (share.end, row + group);
            }
            assert_eq!(next, count);
        }
    }

    /// There is no next panel.
    #[test]
    fn the_last_panel_asks_nearby() {
        let panels = vec![0.0f32; PANEL * 8];
        let tile = Ahead::NextPanel { group: 1, groups: 3 }.tile::<f32, 6>(&panels, 8, [16, 16]);
        assert_eq!((tile.at, tile.per_step), (16, PANEL));
    }
}
