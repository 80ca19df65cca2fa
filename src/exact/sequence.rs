//! The sequences of a call: batch entries, or the parts of a ragged batch.

use crate::error::{AttentionError, check_size};
use crate::inputs::{QueryStart, Ragged};
use crate::mask::Mask;

/// One sequence: where its tokens lie in the operands, and where its queries stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// What per-sequence arguments are indexed by.
    pub(crate) index: usize,
    /// The batch entry of the operands.
    pub(crate) batch: usize,
    pub(crate) q_first: usize,
    pub(crate) q_len: usize,
    pub(crate) k_first: usize,
    /// Valid keys.
    pub(crate) kv_len: usize,
    /// Keys, valid or not.
    pub(crate) key_count: usize,
    /// Position of the first query.
    pub(crate) q_start: i64,
}

/// All sequences of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences<'a> {
    batch: usize,
    q_len: usize,
    kv_len: usize,
    ragged: Option<Ragged<'a>>,
    kv_lens: Option<&'a [usize]>,
    q_start: QueryStart<'a>,
}

impl<'a> Sequences<'a> {
    /// Checks all that is given per sequence. `batch`, `q_len` and `kv_len` are the operands' sizes.
    pub(crate) fn new(
        [batch, q_len, kv_len]: [usize; 3],
        ragged: Option<Ragged<'a>>,
        mask: &Mask<'a>,
        q_start: Option<QueryStart<'a>>,
        positional: bool,
    ) -> Result<Self, AttentionError> {
        let start = q_start.unwrap_or(QueryStart::TopLeft);
        let sequences = Self { batch, q_len, kv_len, ragged, kv_lens: mask.kv_lens, q_start: start };
        if let Some(Ragged { q_bounds, kv_bounds }) = ragged {
            check_size("ragged batch", "batch", 1, batch)?;
            check_bounds("q_bounds", q_bounds, q_len)?;
            check_bounds("kv_bounds", kv_bounds, kv_len)?;
            check_size("kv_bounds", "entries", q_bounds.len(), kv_bounds.len())?;
        }
        let count = sequences.count();
        if let Some(lens) = mask.kv_lens {
            check_size("kv_lens", "entries", count, lens.len())?;
            for (index, &len) in lens.iter().enumerate() {
                let limit = sequences.bounds(index).1.len();
                if mutant!("key-length-unchecked", len > limit, false) {
                    return Err(AttentionError::TooLarge {
                        operand: "kv_lens",
                        axis: "kv_len",
                        limit,
                        got: len,
                    });
                }
            }
        }
        if let Some(prefix) = mask.prefix
            && prefix.len() != 1
        {
            check_size("prefix", "entries", count, prefix.len())?;
        }
        if let QueryStart::PerSequence(starts) = start {
            check_size("q_start", "entries", count, starts.len())?;
        }
        if positional && q_start.is_none() {
            for index in 0..if ragged.is_some() { count } else { count.min(1) } {
                let (queries, keys) = sequences.bounds(index);
                if queries.len() != keys.len() {
                    let (q_len, kv_len) = (queries.len(), keys.len());
                    return Err(AttentionError::QueryStartMissing { q_len, kv_len });
                }
            }
        }
        Ok(sequences)
    }

    pub(crate) fn count(&self) -> usize {
        self.ragged.map_or(self.batch, |ragged| ragged.q_bounds.len() - 1)
    }

    /// Whether all have the same lengths and positions.
    pub(crate) fn are_alike(&self) -> bool {
        let starts = matches!(self.q_start, QueryStart::PerSequence(_));
        self.ragged.is_none() && self.kv_lens.is_none() && !starts
    }

    /// Query and key tokens of a sequence in the operands.
    fn bounds(&self, index: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        match self.ragged {
            None => (0..self.q_len, 0..self.kv_len),
            Some(Ragged { q_bounds, kv_bounds }) => {
                (q_bounds[index]..q_bounds[index + 1], kv_bounds[index]..kv_bounds[index + 1])
            }
        }
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Sequence {
        let (queries, keys) = self.bounds(index);
        let valid = |lens: &[usize]| mutant!("key-lengths-of-the-first-sequence", lens[index], lens[0]);
        let kv_len = self.kv_lens.map_or(keys.len(), valid);
        let q_start = match self.q_start {
            QueryStart::TopLeft => {
                mutant!("top-left-is-bottom-right", 0, kv_len as i64 - queries.len() as i64)
            }
            QueryStart::BottomRight => {
                let kv_len = mutant!("bottom-right-of-the-buffer", kv_len, keys.len());
                let start = (kv_len as i64).saturating_sub(queries.len() as i64);
                mutant!("negative-start-is-clamped", start, start.max(0))
            }
            QueryStart::At(start) => start,
            QueryStart::PerSequence(starts) => starts[index],
        };
        Sequence {
            index,
            batch: if self.ragged.is_some() { 0 } else { index },
            q_first: queries.start,
            q_len: queries.len(),
            k_first: keys.start,
            kv_len,
            key_count: keys.len(),
            q_start,
        }
    }

    /// The sequence that query token `token` of a batch entry belongs to.
    pub(crate) fn find(&self, batch: usize, token: usize) -> usize {
        match self.ragged {
            None => batch,
            Some(Ragged { q_bounds, .. }) => {
                let ends = |&bound: &usize| {
                    bound <= mutant!("first-token-is-the-sequence-before", token, token.max(1) - 1)
                };
                let after = q_bounds.partition_point(ends);
                after - 1
            }
        }
    }

    /// The longest sequence's queries and keys, before key lengths: the shape of dense masks and biases.
    pub(crate) fn longest(&self) -> [usize; 2] {
        if self.ragged.is_none() {
            return [self.q_len, self.kv_len];
        }
        (0..self.count())
            .map(|index| self.bounds(index))
            .fold([0, 0], |[q, kv], (queries, keys)| [q.max(queries.len()), kv.max(keys.len())])
    }
}

/// Cumulative counts: ascending from 0 to at most `total`.
fn check_bounds(operand: &'static str, bounds: &[usize], total: usize) -> Result<(), AttentionError> {
    let ascending = bounds.windows(2).all(|pair| pair[0] <= pair[1]);
    if bounds.first() != Some(&0) || !ascending || bounds.last().is_none_or(|&last| last != total) {
        return Err(AttentionError::Value {
            operand,
            expected: "cumulative counts that ascend from 0 to the operand's tokens",
            got: format!("{bounds:?} for {total} tokens"),
        });
    }
    Ok(())
}
