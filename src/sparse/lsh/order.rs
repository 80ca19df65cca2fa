//! Tokens in the order of their buckets.

use super::super::layout::reserved;
use super::hash::size;
use crate::error::AttentionError;

/// The tokens of one head, sorted in each round, the rounds one after another.
///
/// ```text
/// slot   0 ............ stride - 1 | stride ...... 2 stride - 1 | ...        stride: tokens rounded up to chunks
/// token  round 0, by bucket   none | round 1, by bucket    none |
/// ```
pub(super) struct Order {
    pub(super) tokens: usize,
    /// Slots of a round.
    pub(super) stride: usize,
    /// The token of each slot, [`NONE`] where there is none.
    pub(super) token_at: Vec<u32>,
    /// The slot of each token in each round, `[rounds, tokens]`.
    pub(super) slot_of: Vec<u32>,
}

/// No token.
pub(super) const NONE: u32 = u32::MAX;

impl Order {
    /// Sorts by (bucket, position), buckets `[rounds, tokens]` below `count`, in chunks of `chunk`.
    pub(super) fn new(
        buckets: &[u32],
        count: usize,
        tokens: usize,
        chunk: usize,
    ) -> Result<Self, AttentionError> {
        let overflow = AttentionError::SizeOverflow { operand: "LSH attention" };
        let stride = tokens.checked_next_multiple_of(chunk).ok_or(overflow)?;
        let rounds = buckets.len().checked_div(tokens).unwrap_or(0);
        let slots = size([rounds, stride])?;
        if u32::try_from(slots).is_err() {
            return Err(AttentionError::SizeOverflow { operand: "LSH attention" });
        }
        let mut token_at = reserved(slots)?;
        token_at.resize(slots, NONE);
        let mut slot_of = reserved(buckets.len())?;
        let mut next = reserved(count)?;
        for (round, buckets) in buckets.chunks_exact(tokens.max(1)).enumerate() {
            next.clear();
            next.resize(count, 0u32);
            buckets.iter().for_each(|&bucket| next[bucket as usize] += 1);
            let mut start = (round * stride) as u32;
            for first in &mut next {
                start += std::mem::replace(first, start);
            }
            for (token, &bucket) in buckets.iter().enumerate() {
                let slot = next[bucket as usize];
                next[bucket as usize] += 1;
                token_at[slot as usize] = token as u32;
                slot_of.push(slot);
            }
        }
        Ok(Self { tokens, stride, token_at, slot_of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_buckets_stay_in_order() {
        let buckets = [2, 0, 2, 1, 0, 0, 0, 0, 0, 0];
        let order = Order::new(&buckets, 3, 5, 4).unwrap();
        let none = NONE;
        assert_eq!(order.token_at, [1, 4, 3, 0, 2, none, none, none, 0, 1, 2, 3, 4, none, none, none]);
        assert_eq!(order.slot_of, [3, 0, 4, 2, 1, 8, 9, 10, 11, 12]);
    }
}
