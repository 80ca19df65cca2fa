//! One bit per key of a tile.

use std::ops::Range;

/// Keys in a tile of the order of operations, and bits in a [`TileBits`].
pub(crate) const TILE: usize = 256;

/// One bit per key of a tile of [`TILE`] keys: set means allowed.
pub(crate) type TileBits = [u64; TILE / 64];

/// Sets the bits of a range.
pub(crate) fn set_range(bits: &mut TileBits, range: Range<usize>) {
    for (index, word) in bits.iter_mut().enumerate() {
        let start = range.start.saturating_sub(index * 64).min(64);
        let end = range.end.saturating_sub(index * 64).min(64);
        if start < end {
            *word |= (u64::MAX >> (64 - (end - start))) << start;
        }
    }
}

/// At most [`TILE`] booleans as bits, eight at a time.
pub(crate) fn bits_of(allowed: &[bool]) -> TileBits {
    // The product brings bit 0 of byte i to bit 56 + i: byte i has a factor of 2^(56 - 7 i), and no two terms meet.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let mut bits = TileBits::default();
    let (eights, rest) = allowed.as_chunks::<8>();
    for (index, eight) in eights.iter().enumerate() {
        let bytes = u64::from_le_bytes(eight.map(u8::from));
        bits[index / 8] |= (bytes.wrapping_mul(GATHER) >> 56) << (index % 8 * 8);
    }
    let first = mutant!("tail-of-a-dense-mask-comes-first", eights.len() * 8, 0);
    for (key, &allowed) in (first..).zip(rest) {
        bits[key / 64] |= u64::from(allowed) << (key % 64);
    }
    bits
}

#[inline(always)]
pub(crate) fn intersect(bits: &mut TileBits, other: &TileBits) {
    for (word, other) in bits.iter_mut().zip(other) {
        *word &= other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_bits() {
        for start in 0..=TILE {
            for end in start..=TILE {
                let mut bits = TileBits::default();
                set_range(&mut bits, start..end);
                for key in 0..TILE {
                    assert_eq!(
                        bits[key / 64] >> (key % 64) & 1 == 1,
                        (start..end).contains(&key),
                        "{start}..{end} at {key}"
                    );
                }
            }
        }
    }

    #[test]
    fn bits_of_booleans() {
        let mut state = 1u64;
        for len in 0..=TILE {
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                state >> 63 == 1
            };
            let allowed: Vec<bool> = (0..len).map(|_| next()).collect();
            let bits = bits_of(&allowed);
            for key in 0..TILE {
                let expected = allowed.get(key) == Some(&true);
                assert_eq!(bits[key / 64] >> (key % 64) & 1 == 1, expected, "key {key} of {len}");
            }
        }
    }
}
