//! Keeping memory busy while registers are.
//!
//! The hardware's own prefetchers leave memory idle: they stop at pages, and several multiply-adds per cache line fill the
//! core's queues before it has seen enough lines ahead. What helps is to ask for lines ahead of time, into L2 (L1 has too few
//! fill buffers). Several rows lose nothing by it where lines come from a cache; one would lose a tenth. How far ahead depends
//! on how long a line is worked on (bench `roofline`, `decode` and `few`):
//!
//! | kernel | gain from DRAM | distance |
//! |---|---|---|
//! | one row of `f32` | 1.2 | 4 KiB; 2 to 6 are alike, 8 gain nothing, 16 lose a quarter (nothing to 7 % on AVX2) |
//! | one row of `f16` or `bf16` | 1.1 to 1.4 | 8 KiB; 4 lose a tenth, 16 gain less |
//! | several rows | 1.1 to 3 | 16 KiB; 8 lose a quarter on AVX2 and nothing on AVX-512 |
//! | rows that are transposed | 1.3 to 1.6 | 16 KiB, two transpositions of 16 rows of 512 bytes |

use super::score::KeyRows;
use crate::element::Element;
use crate::isa::Isa;

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
    pub(crate) fn new<I: Isa, T>(data: &[T], end: usize, from_memory: bool) -> Self {
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

/// Prefetches rows of keys that are transposed on their way into registers.
///
/// DRAM wants to be read in order. Transposing visits 8 or 16 rows at once, line by line across them, which the
/// hardware's prefetchers do not follow: from memory that alone runs at less than half the speed. Prefetches into L2 in the
/// order of memory make the transposition hit the cache (real loads in their place stop the core at every miss, and lose
/// a third).
#[derive(Clone, Copy)]
pub(crate) struct PrefetchRows {
    key: usize,
    element: usize,
}

impl PrefetchRows {
    /// For a vector's worth of keys from `first` on. Where rows end sooner than it reaches ahead, it asks for what is at
    /// hand already.
    #[inline(always)]
    pub(crate) fn new<I: Isa, T>(keys: KeyRows<'_, T>, head_dim: usize, first: usize) -> Self {
        let ahead = first + AHEAD_BYTES.div_ceil(head_dim * size_of::<T>());
        Self { key: if ahead + I::LANES <= keys.len { ahead } else { first }, element: 0 }
    }

    /// Asks for as many lines as a transposition of `LANES` keys by `COLUMNS` dimensions uses up.
    #[inline(always)]
    pub(crate) fn ask<I: Isa, T: Element>(&mut self, isa: I, keys: KeyRows<'_, T>, head_dim: usize) {
        for _ in 0..I::LANES * T::COLUMNS * size_of::<T>() / LINE_BYTES {
            isa.prefetch(keys.data, self.key * keys.stride + self.element);
            self.element += LINE_BYTES / size_of::<T>();
            if self.element >= head_dim {
                *self = Self { key: self.key + 1, element: 0 };
            }
        }
    }
}
