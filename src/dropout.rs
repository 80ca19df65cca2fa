//! Dropout of probabilities, in training: which are dropped is a function of where they stand, and of nothing else.
//!
//! ```text
//! word(sequence, head, q_pos, k_pos) = Philox4x32-10(key = seed, counter = [k_pos / 4, q_pos, head, sequence])[k_pos % 4]
//! kept                               = word >= rate * 2^32
//! p' = p / (1 - rate) where kept, 0 elsewhere                        the softmax's denominator is that of p
//! ```
//!
//! Philox is the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
//! (2011), with 10 rounds as in their library Random123. A mask therefore does not depend on threads, blocks, levels or
//! batch neighbours, and whoever needs it again, as a backward pass does, asks [`Dropout::keeps`].

use crate::error::AttentionError;
use crate::isa::Isa;
use crate::kernel::product::REMOVED;
use crate::mask::{Cell, MaskRow, TILE, TileBits};
use crate::softmax::mask_at;
use std::ops::Range;

/// Which probabilities a call drops.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Dropout {
    /// The share of them, in [0, 1).
    pub rate: f32,
    /// Another seed drops others.
    pub seed: u64,
}

impl Dropout {
    /// Checks the rate.
    ///
    /// # Errors
    /// [`AttentionError::Value`].
    pub fn validate(&self) -> Result<(), AttentionError> {
        if (0.0..1.0).contains(&self.rate) {
            return Ok(());
        }
        let (operand, expected, got) = ("dropout", "a rate in [0, 1)", self.rate.to_string());
        Err(AttentionError::Value { operand, expected, got })
    }

    /// The definition: whether the probability of one query and key is kept. `cell.query` plays no part: positions do, of
    /// which the lowest 32 bits count (34 of the key's).
    pub fn keeps(&self, cell: Cell) -> bool {
        let Cell { sequence, q_head, q_pos, k_pos, .. } = cell;
        let counter = [(k_pos / 4) as u32, q_pos as u32, q_head as u32, sequence as u32];
        u64::from(philox(counter, self.key())[k_pos % 4]) >= self.threshold()
    }

    /// What probabilities that are kept are multiplied by.
    pub fn scale(&self) -> f32 {
        (1.0 / mutant!("dropout-does-not-scale", 1.0 - f64::from(self.rate), 1.0)) as f32
    }

    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// `rate * 2^32`, rounded; words below it are dropped.
    fn threshold(&self) -> u64 {
        (f64::from(self.rate) * (1u64 << 32) as f64).round() as u64
    }
}

/// Applies dropout to the `columns` (multiples of 16) of a row's tile of weights; removed ones stay marked.
#[inline(always)]
pub(crate) fn drop_weights<I: Isa>(
    isa: I,
    dropout: &Dropout,
    row: MaskRow,
    tile_start: usize,
    weights: &mut [f32],
    columns: Range<usize>,
) {
    let kept = kept_bits(dropout, row, tile_start, columns.clone());
    let (zero, removed, scale) = (isa.splat(0.0), isa.splat(REMOVED), isa.splat(dropout.scale()));
    for column in columns.step_by(I::LANES) {
        let weights = &mut weights[column..];
        let weight = isa.load(weights);
        let dropped = isa.select(mask_at(isa, &kept, column), isa.mul(weight, scale), zero);
        let mark = mutant!("dropout-unmarks-removed-keys", removed, dropped);
        isa.store(isa.select(isa.lt(weight, zero), mark, dropped), weights);
    }
}

/// Counters that go through the generator side by side.
const WIDTH: usize = 16;

/// Keys of as many counters, and bits of a word of [`TileBits`].
const KEYS: usize = 4 * WIDTH;

/// [`Dropout::keeps`] for the keys of a tile, which starts at a multiple of 64; at least for `columns`.
#[inline(never)] // compiled once, not for every kernel: the compiler's own vectors will do
fn kept_bits(dropout: &Dropout, row: MaskRow, tile_start: usize, columns: Range<usize>) -> TileBits {
    let MaskRow { sequence, q_head, q_pos, .. } = row;
    let q_head = mutant!("dropout-alike-in-all-heads", q_head, 0);
    let threshold = dropout.threshold();
    let mut bits = [0; TILE / KEYS];
    for (index, bits) in
        bits.iter_mut().enumerate().take(columns.end.div_ceil(KEYS)).skip(columns.start / KEYS)
    {
        let first = (mutant!("dropout-repeats-by-tile", tile_start, 0) / 4 + index * WIDTH) as u32;
        let mut counters =
            [[0; WIDTH], [q_pos as u32; WIDTH], [q_head as u32; WIDTH], [sequence as u32; WIDTH]];
        for (lane, counter) in counters[0].iter_mut().enumerate() {
            *counter = first.wrapping_add(lane as u32);
        }
        rounds(&mut counters, dropout.key());
        for (word, lanes) in counters.iter().enumerate() {
            for (lane, &random) in lanes.iter().enumerate() {
                *bits |= u64::from(u64::from(random) >= threshold) << (4 * lane + word);
            }
        }
    }
    bits
}

/// Philox4x32-10 of one counter.
pub(crate) fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut counters = counter.map(|word| [word]);
    rounds(&mut counters, key);
    counters.map(|[word]| word)
}

/// Ten rounds, on `N` counters side by side, word by word.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "lanes of four arrays at once")]
fn rounds<const N: usize>(counters: &mut [[u32; N]; 4], mut key: [u32; 2]) {
    const ROUNDS: usize = 10;
    const MULTIPLIERS: [u64; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    for _ in 0..mutant!("philox-of-seven-rounds", ROUNDS, 7) {
        for lane in 0..N {
            let [a, b, c, d] = [0, 1, 2, 3].map(|word| counters[word][lane]);
            let (first, second) = (MULTIPLIERS[0] * u64::from(a), MULTIPLIERS[1] * u64::from(c));
            counters[0][lane] = (second >> 32) as u32 ^ b ^ key[0];
            counters[1][lane] = second as u32;
            counters[2][lane] = (first >> 32) as u32 ^ d ^ key[1];
            counters[3][lane] = first as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123 for `philox4x32`, 10 rounds: counter, key, result.
    #[test]
    fn known_answers() {
        let all = u32::MAX;
        let known = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([all; 4], [all; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in known {
            assert_eq!(philox(counter, key), expected, "counter {counter:x?}, key {key:x?}");
        }
    }

    #[test]
    fn bits_of_a_tile_are_the_definition() {
        for (seed, rate) in [(0, 0.5), (7, 0.1), (u64::MAX, 0.9), (1 << 40, 1e-9), (3, 1.0 - f32::EPSILON)] {
            let dropout = Dropout { rate, seed };
            for (q_pos, tile_start) in [(0, 0), (-5, 256), (i64::MAX, 1 << 20)] {
                let row = crate::mask::Mask::NONE.row(3, 2, 9, q_pos);
                for columns in [0..256, 16..48, 64..128, 240..256] {
                    let bits = kept_bits(&dropout, row, tile_start, columns.clone());
                    for column in columns {
                        let k_pos = tile_start + column;
                        let cell = Cell { sequence: 3, q_head: 2, query: 0, q_pos, k_pos };
                        let kept = bits[column / 64] >> (column % 64) & 1 == 1;
                        assert_eq!(kept, dropout.keeps(cell), "{dropout:?}, {q_pos}, {k_pos}");
                    }
                }
            }
        }
    }
}
