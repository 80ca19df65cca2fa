//! Tokens in the order of their buckets.

use super::super::memory::{filled, reserved};
use super::Lsh;
use super::hash::size;
use super::spread::{parts, piece, workers};
use crate::error::AttentionError;
use crate::parallel::for_each_part_with;

/// The tokens of all units (a sequence's head), sorted in each round, the rounds one after another.
///
/// ```text
/// slot   0 ............ stride - 1 | stride ...... 2 stride - 1 | ...        stride: tokens rounded up to chunks
/// token  round 0, by bucket   none | round 1, by bucket    none |
/// ```
pub(super) struct Orders {
    pub(super) rounds: usize,
    pub(super) tokens: usize,
    /// Slots of a round.
    pub(super) stride: usize,
    /// The token of each slot, `[units, rounds, stride]`; [`NONE`] where there is none.
    pub(super) token_at: Vec<u32>,
    /// The slot of each token among its unit's, `[units, rounds, tokens]`.
    slot_of: Vec<u32>,
}

/// No token.
pub(super) const NONE: u32 = u32::MAX;

impl Orders {
    /// Sorts by (bucket, position), buckets `[units, rounds, tokens]`; there are some of each.
    pub(super) fn new(
        lsh: &Lsh,
        buckets: &[u32],
        tokens: usize,
        threads: usize,
    ) -> Result<Self, AttentionError> {
        let overflow = AttentionError::SizeOverflow { operand: "LSH attention" };
        let stride = tokens.checked_next_multiple_of(lsh.chunk).ok_or(overflow)?;
        if u32::try_from(size([lsh.rounds, stride])?).is_err() {
            return Err(AttentionError::SizeOverflow { operand: "LSH attention" });
        }
        let sorts = buckets.len() / tokens;
        let (mut token_at, mut slot_of) = (filled(size([sorts, stride])?, NONE)?, filled(buckets.len(), 0)?);
        let workers = workers(threads, 4.0 * buckets.len() as f64);
        let mut counts = reserved(workers)?;
        for _ in 0..workers {
            counts.push(filled(lsh.buckets, 0u32)?);
        }
        let (mut tokens_left, mut slots_left) = (&mut token_at[..], &mut slot_of[..]);
        let parts = parts(sorts).map(|sorts| {
            let token_at = piece(&mut tokens_left, sorts.len() * stride);
            (piece(&mut slots_left, sorts.len() * tokens), token_at, sorts)
        });
        for_each_part_with(parts, &mut counts, &|(slot_of, token_at, sorts), counts| {
            let lists = slot_of.chunks_exact_mut(tokens).zip(token_at.chunks_exact_mut(stride));
            for (sort, (slot_of, token_at)) in sorts.zip(lists) {
                let first = (sort % lsh.rounds * stride) as u32;
                order_round(&buckets[sort * tokens..][..tokens], first, counts, (slot_of, token_at));
            }
        });
        Ok(Self { rounds: lsh.rounds, tokens, stride, token_at, slot_of })
    }

    /// Slots of a unit.
    pub(super) fn slots(&self) -> usize {
        self.rounds * self.stride
    }

    /// Units.
    pub(super) fn count(&self) -> usize {
        self.token_at.len() / self.slots()
    }

    /// Where a unit's tokens are in a round.
    pub(super) fn slot_of(&self, unit: usize, round: usize) -> &[u32] {
        &self.slot_of[(unit * self.rounds + round) * self.tokens..][..self.tokens]
    }

    /// Tokens by the slots of a unit.
    pub(super) fn token_at(&self, unit: usize) -> &[u32] {
        &self.token_at[unit * self.slots()..][..self.slots()]
    }
}

/// Sorts the tokens of one round by counting: equal buckets stay in order. The round's slots begin with `first`.
fn order_round(
    buckets: &[u32],
    first: u32,
    counts: &mut [u32],
    (slot_of, token_at): (&mut [u32], &mut [u32]),
) {
    counts.fill(0);
    buckets.iter().for_each(|&bucket| counts[bucket as usize] += 1);
    // From here on the next place of each bucket.
    let mut start = 0;
    for next in &mut *counts {
        start += std::mem::replace(next, start);
    }
    for (token, (&bucket, slot)) in buckets.iter().zip(slot_of).enumerate() {
        let place = counts[bucket as usize];
        counts[bucket as usize] += 1;
        token_at[place as usize] = token as u32;
        *slot = first + place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_buckets_stay_in_order() {
        let buckets = [2, 0, 2, 1, 0, 0, 0, 0, 0, 0];
        let lsh = Lsh { rounds: 2, buckets: 4, ..Lsh::new(4) };
        let orders = Orders::new(&lsh, &buckets, 5, 1).unwrap();
        let none = NONE;
        assert_eq!(orders.token_at, [1, 4, 3, 0, 2, none, none, none, 0, 1, 2, 3, 4, none, none, none]);
        assert_eq!(orders.slot_of, [3, 0, 4, 2, 1, 8, 9, 10, 11, 12]);
    }

    /// R1: the permutation that reformer-pytorch gets by sorting `tokens * bucket + position`, buckets of a round after those
    /// of the rounds before.
    #[test]
    fn the_permutation_of_the_reference_code() {
        let (rounds, tokens, count) = (3, 96, 10);
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) as usize
        };
        let buckets: Vec<u32> = (0..rounds * tokens).map(|_| (next() % count) as u32).collect();
        let lsh = Lsh { rounds, buckets: count, ..Lsh::new(16) };
        let orders = Orders::new(&lsh, &buckets, tokens, 1).unwrap();
        let key = |item: usize| {
            let bucket = buckets[item] as usize + item / tokens * count;
            tokens * bucket + item % tokens
        };
        let mut items: Vec<usize> = (0..rounds * tokens).collect();
        items.sort_by_key(|&item| key(item));
        let expected: Vec<u32> = items.iter().map(|item| (item % tokens) as u32).collect();
        assert_eq!(orders.token_at, expected);
    }
}
