//! Rows of a block: what each may attend, and what is known of it so far.

use super::block::Block;
use super::call::Call;
use super::sequence::Sequence;
use crate::element::Element;
use crate::mask::MaskRow;
use crate::softmax::{Partial, RowState};
use std::ops::Range;

/// A row of a block while it is worked on.
#[derive(Clone, Debug)]
pub(crate) struct BlockRow {
    pub(crate) mask: MaskRow,
    /// All its keys lie in here.
    pub(crate) keys: Range<usize>,
    /// Of the current split; until one begins, another row's.
    pub(crate) state: RowState,
    pub(crate) total: Partial,
}

impl BlockRow {
    pub(crate) const EMPTY: BlockRow =
        BlockRow { mask: MaskRow::NONE, keys: 0..0, state: RowState::EMPTY, total: Partial::EMPTY };

    /// Turns to another row, of which nothing is known yet but what it may attend; its state stays.
    #[inline(always)]
    pub(crate) fn describe<T: Element>(
        &mut self,
        call: &Call<'_, T>,
        sequence: &Sequence,
        query: usize,
        q_head: usize,
    ) {
        let q_pos = sequence.q_start.saturating_add(query as i64);
        self.mask = call.mask.row(sequence.index, q_head, query, q_pos);
        self.keys = call.mask.interval(&self.mask, sequence.kv_len);
        self.total = Partial::EMPTY;
    }
}

/// The rows of a block, nothing computed yet, and the keys they may attend. In place, with their states left to whoever begins a
/// split: 32 tokens of 32 dimensions (12 heads) are 1.06 times as fast as with rows made anew, 128 tokens 1.02 times
/// (example `bench_worker`, level AVX-512).
pub(crate) fn describe_rows<T: Element>(
    call: &Call<'_, T>,
    block: &Block,
    rows: &mut Vec<BlockRow>,
) -> Reach {
    let mut reach = Reach::NONE;
    let group = call.problem.group();
    let (mut query, mut head, mut kv_head) =
        (block.rows.start / group, block.rows.start % group, block.kv_head);
    rows.resize(block.rows.len(), BlockRow::EMPTY);
    for row in rows {
        let q_head = mutant!(
            "heads-tiled-not-repeated",
            kv_head * group + head,
            head * call.problem.kv_heads + kv_head
        );
        row.describe(call, &block.sequence, query, q_head);
        head += 1;
        if head == group {
            (query, head) = (query + 1, 0);
        }
        if query == block.sequence.q_len {
            (query, kv_head) = (0, kv_head + 1);
        }
        reach.add(&row.keys);
    }
    reach
}

/// What of some rows' intervals of keys is one interval.
pub(crate) struct Reach {
    /// From the first key to the last that some row has; where none has any, it ends before it starts.
    pub(crate) some: Range<usize>,
    /// Those that every row has; ends before it starts if there are none.
    pub(crate) all: Range<usize>,
}

impl Reach {
    /// Of no rows.
    pub(crate) const NONE: Reach = Reach { some: Range { start: usize::MAX, end: 0 }, all: 0..usize::MAX };

    /// Takes a row in.
    #[inline(always)]
    pub(crate) fn add(&mut self, keys: &Range<usize>) {
        self.all = self.all.start.max(keys.start)..self.all.end.min(keys.end);
        if !keys.is_empty() {
            self.some = self.some.start.min(keys.start)..self.some.end.max(keys.end);
        }
    }

    /// Those that some row has within `limits`, if any.
    pub(crate) fn within(&self, limits: &Range<usize>) -> Option<Range<usize>> {
        let keys = self.some.start.max(limits.start)..self.some.end.min(limits.end);
        (keys.start < keys.end).then_some(keys)
    }
}

/// The keys from the first to the last that some row may attend, within `limits`.
pub(crate) fn hull(rows: &[BlockRow], limits: &Range<usize>) -> Option<Range<usize>> {
    let mut reach = Reach::NONE;
    rows.iter().for_each(|row| reach.add(&row.keys));
    reach.within(limits)
}
