//! Keeping memory busy while registers are.
//!
//! The hardware's own prefetchers leave memory idle: they stop at pages, and several multiply-adds per cache line fill the
//! core's queues before it has seen enough lines ahead. What helps is to ask for lines ahead of time, into L2 (L1 has too few
//! fill buffers). The first rows that go through them do, if they are several, wherever lines come from; one would lose a tenth
//! from a cache. Those after them do not: where a core does two multiply-adds of 16 lanes a cycle, asking for what L2 has costs
//! them 2 to 6 % (prefill at AVX-512; example `bench_worker`, Emerald Rapids). How far ahead depends on how long a line is worked
//! on (bench `roofline`, `decode` and `few`):
//!
//! | kernel | gain from DRAM | distance |
//! |---|---|---|
//! | one row of `f32`, AVX-512 | 1.2 | 4 KiB; 2 to 6 are alike, 8 gain nothing, 16 lose a quarter |
//! | one row of `f32`, AVX2 | 1 for keys; values lose a tenth, if read in order ([`streamed_keys`]) | |
//! | one row of `f16` or `bf16` | 1.1 to 1.4 | 8 KiB; 4 lose a tenth, 16 gain less |
//! | one or two rows of `bf16` that are paired in registers | 0.6 to 1 from panels: they do not ask | |
//! | several rows | 1.1 to 3 | 16 KiB; 8 lose a quarter on AVX2 and nothing on AVX-512 |
//! | rows that are transposed | 1.3 to 1.6 | 16 KiB, two transpositions of 16 rows of 512 bytes; at AVX-512 8 lose up to 13 %, 32 up to 6 |
//!
//! [`streamed_keys`]: crate::tile::streamed_keys
//!
//! Where a head ends whose rows or panels lie in one piece, they ask for what lies behind it: the next head, which is read next,
//! or room that is left for more keys. One query against 1024 keys of 64 dimensions (256 heads, no room left) is 1.05 to 1.12
//! times as fast from rows, 1.0 to 1.08 from panels (example `bench_worker`). Values that are paired in registers end with
//! their head.
//!
//! What a block's rows visit next comes from memory, or L3, while they work on the tile before, if it lies in one piece: each group
//! asks for its share, step by step ([`Elsewhere`]), see [`asks_together`]. All lines of a share at once would stop the core, and
//! lose 1 to 15 %; one line a step costs nothing where L2 has them. Where nobody did (rows of values with gaps, a block's first
//! tile or one after a tile that not all rows attend, a single group), the first rows ask for what is near, as above.
//!
//! The bf16 tier, whose packing waits for memory most, asks while it packs, too: a panel ahead, for rows of keys as above. Both
//! together gain 1.1 to 1.6 from `KeyPanels` and 1.2 to 2 from rows (8 to 64 rows of weights, all packed, 4096 keys; example
//! `bench_worker`, `LUCID_BF16_DOT=1`).
//!
//! [`asks_together`]: crate::tile::asks_together
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

/// Where the bytes of an element are, or would be.
#[inline(always)]
fn address<T>(data: &[T], at: usize) -> *const u8 {
    data.as_ptr().wrapping_add(at).cast()
}

/// What a kernel asks for while it goes through stored operands. A type, so that a distance that is constant is one in the kernel's
/// loop, too, which then keeps no register for it.
pub(crate) trait Ahead: Copy {
    /// How many bytes a step asks for that loads so many.
    #[inline(always)]
    fn bytes_of_step(self, loaded: usize) -> usize {
        loaded
    }
}

/// The same while it goes through key panels.
pub(crate) trait AheadOfPanels: Ahead {
    /// For `per_load` multiply-adds with each vector, of rows that score `width` columns from `column` on, from `first` in the panel
    /// of `dims` rows that `data` starts with.
    fn scoring<T>(
        self,
        per_load: usize,
        data: &[T],
        dims: usize,
        first_and_width: [usize; 2],
        column: usize,
    ) -> Prefetch;
}

/// The same for rows of values.
pub(crate) trait AheadOfValues: Ahead {
    /// For `per_load` multiply-adds with each vector, of rows that add up `width` of `v_dim` dimensions from `d` on, of `count` rows
    /// of values, `stride` elements apart.
    fn adding<T>(
        self,
        per_load: usize,
        data: &[T],
        count_and_stride: [usize; 2],
        d_width_and_v_dim: [usize; 3],
    ) -> Prefetch;
}

/// The lines a little ahead of those it loads.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Near {
    /// None of them: they lie in a cache.
    Nothing,
    /// For several rows (more than one or two whose operands are paired in registers).
    ForSeveral,
    /// For one row, too: they are expected to come from memory.
    ForAny,
}

impl Near {
    /// For the first rows that go through them.
    #[inline(always)]
    pub(crate) fn first(from_memory: bool) -> Self {
        if from_memory { Near::ForAny } else { Near::ForSeveral }
    }

    /// The same, or for rows after those.
    #[inline(always)]
    pub(crate) fn only_if(self, first: bool) -> Self {
        if first { self } else { Near::Nothing }
    }
}

/// What is worked on next, or packed, while the kernel goes through something else: the part of it that falls to its rows and
/// columns, as much a step as is loaded, but a line at least and so many at most.
#[derive(Clone, Copy)]
pub(crate) struct Elsewhere<const LINES: usize> {
    pub(crate) piece: Piece,
    /// How many columns share it, of scores or of what is added up.
    pub(crate) columns: usize,
}

impl<const LINES: usize> Elsewhere<LINES> {
    /// What is asked for with a run of the columns.
    #[inline(always)]
    pub(crate) fn of_run(self, run: &Range<usize>) -> Self {
        let part = Share { start: run.start, end: run.end, of: self.columns };
        Self { piece: self.piece.share(part), ..self }
    }
}

/// What rows ask for that others go through the same operands with.
#[derive(Clone, Copy)]
pub(crate) enum Asks {
    Near(Near),
    Elsewhere(Elsewhere<1>),
}

impl Asks {
    /// What is asked for with a run of a tile's columns.
    #[inline(always)]
    pub(crate) fn of_run(self, run: &Range<usize>) -> Self {
        match self {
            Asks::Near(near) => Asks::Near(near),
            Asks::Elsewhere(elsewhere) => Asks::Elsewhere(elsewhere.of_run(run)),
        }
    }
}

/// Runs `$body` with what `$asks` is as `$ahead`.
macro_rules! with_asks {
    ($asks:expr, $ahead:ident => $body:expr) => {
        match $asks {
            $crate::kernel::prefetch::Asks::Near($ahead) => $body,
            $crate::kernel::prefetch::Asks::Elsewhere($ahead) => $body,
        }
    };
}
pub(crate) use with_asks;

/// Some memory that lies in one piece.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Piece {
    start: *const u8,
    bytes: usize,
}

impl Piece {
    /// Nothing.
    pub(crate) const NOTHING: Piece = Piece { start: std::ptr::null(), bytes: 0 };

    /// `len` elements from `first` on, whether they are there or not.
    #[inline(always)]
    pub(crate) fn new<T>(data: &[T], first: usize, len: usize) -> Self {
        Self { start: address(data, first), bytes: len * size_of::<T>() }
    }

    /// A share of it.
    #[inline(always)]
    pub(crate) fn share(self, share: Share) -> Self {
        let bytes = share.of(self.bytes);
        Self { start: self.start.wrapping_add(bytes.start), bytes: bytes.len() }
    }

    /// For so many steps that ask for `bytes` each: all of it, or as much from its start as they have room for.
    #[inline(always)]
    fn in_steps(self, steps: usize, bytes: usize) -> Prefetch {
        let per_step = self.bytes.div_ceil(steps.max(1)).min(bytes);
        Prefetch { from: self.start, per_step, asks: per_step > 0 }
    }
}

/// Prefetches of a kernel that takes steps through stored operands.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch {
    from: *const u8,
    /// Bytes from what a step asks for to what the next does.
    per_step: usize,
    asks: bool,
}

impl Prefetch {
    /// For `per_load` multiply-adds with each vector from `data[at]` on, `per_step` elements later each time, within a piece of memory
    /// that ends at `end`. Where `data` ends sooner than it reaches ahead, it asks for what is at hand already.
    #[inline(always)]
    fn near<T>(per_load: usize, data: &[T], [at, end]: [usize; 2], per_step: usize, asks: Near) -> Self {
        let asks = match asks {
            Near::Nothing => false,
            Near::ForSeveral => per_load > 1,
            Near::ForAny => true,
        };
        let bytes = match size_of::<T>() {
            _ if per_load > 1 => AHEAD_BYTES,
            4 => AHEAD_BYTES / 4,
            _ => AHEAD_BYTES / 2,
        };
        let ahead = bytes / size_of::<T>();
        let ahead = if end.saturating_add(ahead) <= data.len() { ahead } else { 0 };
        let from = address(data, at + ahead);
        Self { from, per_step: per_step * size_of::<T>(), asks }
    }

    /// Asks for the lines of the next step's `bytes` ([`Ahead::bytes_of_step`]): always as many, though the next may ask for some of them
    /// again; a number that is not constant costs products from caches 3 %.
    #[inline(always)]
    pub(crate) fn ask<I: Isa>(&mut self, isa: I, bytes: usize) {
        if self.asks {
            ask(isa, self.from, bytes);
            self.from = self.from.wrapping_add(self.per_step);
        }
    }
}

impl Ahead for Near {}

impl AheadOfPanels for Near {
    #[inline(always)]
    fn scoring<T>(
        self,
        per_load: usize,
        data: &[T],
        dims: usize,
        [first, _]: [usize; 2],
        _column: usize,
    ) -> Prefetch {
        Prefetch::near(per_load, data, [first, PANEL * dims], PANEL, self)
    }
}

impl<const LINES: usize> Ahead for Elsewhere<LINES> {
    #[inline(always)]
    fn bytes_of_step(self, loaded: usize) -> usize {
        loaded.clamp(LINE_BYTES, LINES * LINE_BYTES)
    }
}

impl<const LINES: usize> AheadOfPanels for Elsewhere<LINES> {
    #[inline(always)]
    fn scoring<T>(
        self,
        _per_load: usize,
        _data: &[T],
        dims: usize,
        [_, width]: [usize; 2],
        column: usize,
    ) -> Prefetch {
        let part = Share { start: column, end: column + width, of: self.columns };
        self.piece.share(part).in_steps(dims, self.bytes_of_step(width * size_of::<T>()))
    }
}

impl AheadOfValues for Near {
    #[inline(always)]
    fn adding<T>(
        self,
        per_load: usize,
        data: &[T],
        [count, stride]: [usize; 2],
        [d, ..]: [usize; 3],
    ) -> Prefetch {
        Prefetch::near(per_load, data, [d, count * stride], stride, self)
    }
}

impl<const LINES: usize> AheadOfValues for Elsewhere<LINES> {
    #[inline(always)]
    fn adding<T>(
        self,
        _per_load: usize,
        _data: &[T],
        [count, _]: [usize; 2],
        [d, width, v_dim]: [usize; 3],
    ) -> Prefetch {
        let part = Share { start: d, end: v_dim.min(d + width), of: v_dim };
        self.piece.share(part).in_steps(count, self.bytes_of_step(width * size_of::<T>()))
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
    /// For `count` keys from `first` on. Where rows, or the memory they lie in without gaps, end sooner than it reaches ahead, it
    /// asks for what is at hand already.
    #[inline(always)]
    pub(crate) fn new(keys: KeyRows<'a, T>, head_dim: usize, [first, count]: [usize; 2]) -> Self {
        let ahead = first + AHEAD_BYTES.div_ceil(head_dim * size_of::<T>());
        let end = ahead + count;
        let there = end <= keys.len || keys.stride == head_dim && end * head_dim <= keys.data.len();
        let first = if there { ahead } else { first };
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
            isa.prefetch(address(self.keys.data, self.row + self.element));
            self.element += LINE_BYTES / size_of::<T>();
            if self.element >= self.head_dim {
                self.element = 0;
                self.row += self.keys.stride;
            }
        }
    }
}

/// Asks for the lines of so many bytes, whether they are there or not.
#[inline(always)]
fn ask<I: Isa>(isa: I, from: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(LINE_BYTES) {
        isa.prefetch(from.wrapping_add(line));
    }
}

/// Asks for `len` elements from `first` on, whether they are there or not.
#[inline(always)]
pub(crate) fn ask_for<I: Isa, T>(isa: I, data: &[T], first: usize, len: usize) {
    ask(isa, address(data, first), len * size_of::<T>());
}

/// A share of some memory: as much of it as the rows `start..end` are of so many.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) of: usize,
}

impl Share {
    /// Whether it is all of it.
    #[inline(always)]
    pub(crate) fn is_all(self) -> bool {
        self.end - self.start == self.of
    }

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
        ask_for(isa, data, first.wrapping_add(lines.start * line), lines.len() * line);
    }

    /// Asks for its rows of a panel's worth from row `first` on, `len` elements each and `stride` apart.
    #[inline(always)]
    pub(crate) fn ask_rows<I: Isa, T>(self, isa: I, data: &[T], first: usize, [stride, len]: [usize; 2]) {
        for row in self.of(PANEL) {
            ask_for(isa, data, first.wrapping_add(row).wrapping_mul(stride), len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Kernel, Level};
    use crate::mask::TILE;

    struct Step<'a> {
        prefetch: &'a mut Prefetch,
        bytes: usize,
    }

    impl Kernel for Step<'_> {
        type Output = ();

        fn run<I: Isa>(self, isa: I) {
            self.prefetch.ask(isa, self.bytes);
        }
    }

    /// What lies elsewhere, of which groups have their shares: together, tile by tile and step by step, they ask for all of it
    /// where their steps have room for it, and for nothing that does not follow on.
    fn check_shares<const LINES: usize>(dims: usize, groups: &[usize], columns: usize, all: bool) {
        let next = vec![0u32; TILE * dims];
        let rows: usize = groups.iter().sum();
        // Steps of a register tile, each of which loads 64 numbers.
        let (steps, width) = (64, 64);
        for scores in [true, false] {
            let what = format!("{LINES} lines, {dims} dimensions, groups of {groups:?}, scores: {scores}");
            let mut asked = vec![false; 4 * next.len() + steps * 4 * width];
            let mut row = 0;
            for group in groups {
                let share = Share { start: row, end: row + group, of: rows };
                row += group;
                let piece = Piece::new(&next, 0, next.len()).share(share);
                let ahead = Elsewhere::<LINES> { piece, columns };
                let bytes = ahead.bytes_of_step(4 * width);
                for tile in (0..columns).step_by(width) {
                    let mut prefetch = match scores {
                        true => ahead.scoring::<f32>(6, &[], steps, [0, width], tile),
                        false => ahead.adding::<f32>(6, &[], [steps, 16], [tile, width, columns]),
                    };
                    assert!(prefetch.per_step <= bytes, "{what}: nothing is left out in between");
                    for _ in 0..steps {
                        let start = prefetch.from.addr() - next.as_ptr().addr();
                        asked[start..][..bytes].fill(true);
                        Level::Portable.dispatch(Step { prefetch: &mut prefetch, bytes });
                    }
                }
            }
            assert_eq!(!asked[..4 * next.len()].contains(&false), all, "{what}");
        }
    }

    #[test]
    fn groups_share_what_lies_elsewhere() {
        for (dims, groups, all) in [
            (128, &[6, 6, 4][..], true),
            (80, &[6, 2], true),
            (33, &[5], true),
            (7, &[6; 10], true),
            (160, &[6, 2], false),
        ] {
            check_shares::<8>(dims, groups, TILE, all);
        }
        // A line a step is enough from four groups on: as much as they load, a quarter each.
        for (groups, all) in [(&[6, 6][..], false), (&[6, 6, 4], false), (&[6; 4], true), (&[6; 11], true)] {
            check_shares::<1>(64, groups, TILE, all);
            check_shares::<1>(16, groups, 64, all);
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

    /// One row asks only for what comes from memory, those after the first for nothing.
    #[test]
    fn who_asks() {
        let panels = vec![0.0f32; PANEL * 8];
        for (near, per_load, asks) in [
            (Near::first(true), 1, true),
            (Near::first(true), 6, true),
            (Near::first(false), 1, false),
            (Near::first(false), 6, true),
            (Near::first(true).only_if(true), 1, true),
            (Near::first(true).only_if(false), 1, false),
            (Near::first(false).only_if(false), 6, false),
        ] {
            let prefetch = near.scoring(per_load, &panels, 8, [0, 16], 0);
            assert_eq!(prefetch.asks, asks, "{per_load} multiply-adds for each vector");
        }
    }

    /// Rows without gaps go on into the next head; others ask for what is at hand where they end.
    #[test]
    fn rows_ask_within_their_memory() {
        // 16 KiB are 64 rows of 64 dimensions.
        let row = |stride: usize, heads: usize, first: usize| {
            let data = vec![0.0f32; heads * 128 * stride];
            let keys = KeyRows { data: &data, stride, len: 128, from_memory: true };
            PrefetchRows::new(keys, 64, [first, 16]).row / stride
        };
        for heads in [1, 2] {
            assert_eq!(row(64, heads, 48), 112, "the last of a head");
            assert_eq!(row(80, heads, 48), 112, "the last of a head, with gaps");
            assert_eq!(row(80, heads, 112), 112, "there is nothing behind gaps");
        }
        assert_eq!([row(64, 1, 112), row(64, 2, 112)], [112, 176], "only where there is another head");
    }
}
