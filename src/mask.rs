//! Which keys a query may attend, asked in two ways.
//!
//! ```text
//!              keys 0 ......... 256 ......... 512 ....          kernels ask     interval(row) -> one run of keys
//!  query 0     ##############   |               |                               tile_bits(row, tile) -> 256 bits
//!  query 1     ###############  |               |               the reference   allows(cell) -> bool
//!  query 2     ################ |               |               asks
//!              `- Partial tile -´`- not visited -´
//! ```
//!
//! All parts of a [`Mask`] compose by AND. Each one narrows a row's *interval* of keys, which decides the tiles that are
//! visited at all; only lists (of spans, of blocks), dense boolean masks and biases of -inf need *bits* inside the
//! interval. The tiles that lists leave out are skipped: [`Mask::next_key`] finds the next key by a binary search in a
//! row's list, and [`Mask::tile_bits`] starts there. The kernels see nothing else, so a new mask is one more line in
//! [`Mask::interval`] (or in [`Mask::tile_bits`]) and one in [`Mask::allows`], and a property test holds the two against
//! each other.
//!
//! Positions: key `j` has position `j`, counted from the first key of its own sequence; query `i` has position
//! `q_start + i`, see [`QueryStart`](crate::QueryStart). Spans and dense masks go by the query's index in the call,
//! everything else, block masks too, by its position.

mod bits;

pub(crate) use bits::{TILE, TileBits, bits_of, intersect, set_range};

use crate::error::AttentionError;
use crate::sparse::{BlockMask, RowBlocks};
use crate::view::{MASK_AXES, View};
use std::ops::Range;

/// A run of keys `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Span {
    /// The first key.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

/// A list of allowed key runs for each query row, in O(rows) memory.
///
/// Rows are `[batch, q_heads, q_len]` in that order; `batch` and `q_heads` may be 1 to serve all. The spans of row `r`
/// are `spans[offsets[r]..offsets[r + 1]]`, sorted and disjoint.
#[derive(Clone, Copy, Debug)]
pub struct Intervals<'a> {
    shape: [usize; 3],
    offsets: &'a [usize],
    spans: &'a [Span],
}

impl<'a> Intervals<'a> {
    /// Checks and wraps the lists.
    ///
    /// # Errors
    /// `offsets` does not have `batch * q_heads * q_len + 1` ascending entries that end at `spans.len()`, or a row's
    /// spans are not sorted, disjoint and forward.
    pub fn new(shape: [usize; 3], offsets: &'a [usize], spans: &'a [Span]) -> Result<Self, AttentionError> {
        let rows = shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n))
            .and_then(|rows| rows.checked_add(1))
            .ok_or(AttentionError::SizeOverflow { operand: "intervals" })?;
        if offsets.len() != rows {
            let (expected, got) = (rows, offsets.len());
            return Err(AttentionError::Shape { operand: "intervals", axis: "offsets", expected, got });
        }
        let ascending = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if !ascending || offsets[0] != 0 || offsets[rows - 1] != spans.len() {
            return Err(AttentionError::Value {
                operand: "intervals",
                expected: "offsets that ascend from 0 to the number of spans",
                got: format!("{offsets:?} for {} spans", spans.len()),
            });
        }
        for row in offsets.windows(2) {
            let spans = &spans[row[0]..row[1]];
            let forward = spans.iter().all(|span| span.start <= span.end);
            let sorted = spans.windows(2).all(|pair| pair[0].end <= pair[1].start);
            if !forward || !sorted {
                return Err(AttentionError::Value {
                    operand: "intervals",
                    expected: "sorted, disjoint spans with start <= end in every row",
                    got: format!("{spans:?}"),
                });
            }
        }
        Ok(Self { shape, offsets, spans })
    }

    /// Checks the lists against `[batch, q_heads, q_len, kv_len]` of a call.
    pub(crate) fn check(&self, shape: [usize; 4]) -> Result<(), AttentionError> {
        for axis in 0..3 {
            let (expected, got) = (shape[axis], self.shape[axis]);
            if got != expected && (got != 1 || axis == 2) {
                return Err(AttentionError::Shape {
                    operand: "mask.intervals",
                    axis: MASK_AXES[axis],
                    expected,
                    got,
                });
            }
        }
        Ok(())
    }

    /// The spans of one row; none outside the shape.
    fn row(&self, sequence: usize, head: usize, query: usize) -> &'a [Span] {
        let [batches, heads, q_len] = self.shape;
        let batch = if batches == 1 { 0 } else { sequence };
        let head = if heads == 1 { 0 } else { head };
        if batch >= batches || head >= heads || query >= q_len {
            return &[];
        }
        let row = (mutant!("intervals-of-the-first-sequence", batch, 0) * heads + head) * q_len + query;
        &self.spans[self.offsets[row]..self.offsets[row + 1]]
    }
}

/// Which keys each query may attend; parts compose by AND. Cheap to copy: it borrows its data.
///
/// Windows compose with windows. Of every other part there is one: a call with a mask that was given two refuses it
/// ([`AttentionError::Conflict`]) rather than forget one of them.
///
/// ```
/// use lucid_attention::Mask;
/// // Causal, at most 4096 keys back, and the second sequence has only 100 valid keys.
/// let mask = Mask::causal().window(Some(4096), None).kv_lens(&[512, 100]);
/// # let _ = mask;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Mask<'a> {
    pub(crate) causal: bool,
    pub(crate) prefix: Option<&'a [usize]>,
    pub(crate) left: Option<usize>,
    pub(crate) right: Option<usize>,
    pub(crate) last_n: Option<usize>,
    pub(crate) kv_lens: Option<&'a [usize]>,
    pub(crate) documents: Option<&'a [usize]>,
    pub(crate) intervals: Option<Intervals<'a>>,
    pub(crate) blocks: Option<&'a BlockMask>,
    pub(crate) allowed: Option<View<'a, bool>>,
    /// A part that was given twice.
    pub(crate) repeated: Option<&'static str>,
}

/// One (query, key) pair, as [`Mask::allows`] is asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Batch index, or the index of the sequence in a ragged batch.
    pub sequence: usize,
    /// Query head.
    pub q_head: usize,
    /// The query's index in its sequence's part of this call.
    pub query: usize,
    /// The query's position: `q_start + query`.
    pub q_pos: i64,
    /// The key's position in its own sequence.
    pub k_pos: usize,
}

impl<'a> Mask<'a> {
    /// Every key.
    pub const NONE: Mask<'static> = Mask {
        causal: false,
        prefix: None,
        left: None,
        right: None,
        last_n: None,
        kv_lens: None,
        documents: None,
        intervals: None,
        blocks: None,
        allowed: None,
        repeated: None,
    };

    /// Keys at or before the query: `k_pos <= q_pos`.
    pub fn causal() -> Self {
        Mask { causal: true, ..Mask::NONE }
    }

    /// Causal, but the first `prefix[sequence]` keys are visible to every query: `k_pos <= q_pos || k_pos < prefix`.
    /// `prefix` has one entry per sequence, or one for all.
    pub fn prefix_lm(prefix: &'a [usize]) -> Self {
        Mask { causal: true, prefix: Some(prefix), ..Mask::NONE }
    }

    /// Only keys within `left` positions before the query and `right` after it, the query's own position not
    /// counted: `q_pos - left <= k_pos <= q_pos + right`. `None` leaves a side open. Several windows compose: the
    /// narrower side counts.
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        let narrower = |old: Option<usize>, new: Option<usize>| match (old, new) {
            (Some(old), Some(new)) => Some(mutant!("second-window-replaces-the-first", old.min(new), new)),
            (old, new) => old.or(new),
        };
        self.left = narrower(self.left, left);
        self.right = narrower(self.right, right);
        self
    }

    /// The query's own position and the `n - 1` keys before it: what other systems call a window of `n`. `n` is at
    /// least 1.
    pub fn last_n_keys(mut self, n: usize) -> Self {
        self.last_n = Some(self.last_n.map_or(n, |old| old.min(n)));
        self.window(Some(n.saturating_sub(1)), Some(0))
    }

    /// Sequence `s` has only `kv_lens[s]` valid keys; what lies beyond is never read into the result.
    pub fn kv_lens(mut self, kv_lens: &'a [usize]) -> Self {
        self.note_repeated("mask.kv_lens", self.kv_lens.is_some());
        self.kv_lens = Some(kv_lens);
        self
    }

    /// Several documents packed one after another into one sequence: document `i` holds positions
    /// `boundaries[i]..boundaries[i + 1]`, and a query sees only keys of its own document. Positions outside all
    /// documents see nothing. For sequences that lie packed in one buffer but are independent, see
    /// [`Ragged`](crate::Ragged), which also restarts positions.
    pub fn documents(mut self, boundaries: &'a [usize]) -> Self {
        self.note_repeated("mask.documents", self.documents.is_some());
        self.documents = Some(boundaries);
        self
    }

    /// Only keys in the row's spans.
    pub fn intervals(mut self, intervals: Intervals<'a>) -> Self {
        self.note_repeated("mask.intervals", self.intervals.is_some());
        self.intervals = Some(intervals);
        self
    }

    /// Only keys in the blocks that the query's row of blocks visits, and there what partial blocks allow. Everything
    /// else is skipped: see [`BlockMask`] for what it costs, and [`crate::sparse`] for how to make one.
    pub fn blocks(mut self, blocks: &'a BlockMask) -> Self {
        self.note_repeated("mask.blocks", self.blocks.is_some());
        self.blocks = Some(blocks);
        self
    }

    /// Only keys whose entry is `true`. Shape `[batch, q_heads, q_len, kv_len]`; an axis of size 1 repeats.
    pub fn allowed(mut self, allowed: View<'a, bool>) -> Self {
        self.note_repeated("mask.allowed", self.allowed.is_some());
        self.allowed = Some(allowed);
        self
    }

    fn note_repeated(&mut self, part: &'static str, is_there: bool) {
        if is_there {
            self.repeated = Some(part);
        }
    }

    /// Refuses a mask that would forget a part.
    pub(crate) fn check_repeated(&self) -> Result<(), AttentionError> {
        let reason = "a mask has one of them; combine the two first";
        self.repeated.map_or(Ok(()), |operand| {
            Err(AttentionError::Conflict { operand, other: "another of its kind", reason })
        })
    }

    /// Whether the answer depends on where the queries stand.
    pub(crate) fn is_positional(&self) -> bool {
        let window = self.left.is_some() || self.right.is_some();
        self.causal || window || self.documents.is_some() || self.blocks.is_some()
    }

    /// Whether rows have lists, which may leave out whole tiles of their interval.
    pub(crate) fn has_lists(&self) -> bool {
        self.intervals.is_some() || self.blocks.is_some()
    }

    /// The blocks, if nothing else can remove keys inside an interval.
    pub(crate) fn only_blocks(&self) -> Option<&'a BlockMask> {
        self.blocks.filter(|_| self.intervals.is_none() && self.allowed.is_none())
    }

    /// Whether some rows may need [`Mask::tile_bits`].
    pub(crate) fn has_bits(&self) -> bool {
        self.has_lists() || self.allowed.is_some()
    }

    /// The definition: whether one query may attend one key. Slow; the reference asks nothing else. What lies outside
    /// the mask's lists and shapes is not allowed.
    pub fn allows(&self, cell: Cell) -> bool {
        let Cell { sequence, q_head, query, q_pos, k_pos } = cell;
        let k = i128::try_from(k_pos).unwrap_or(i128::MAX);
        let q = i128::from(q_pos);
        let entry =
            |list: &[usize]| list.get(if list.len() == 1 { 0 } else { sequence }).copied().unwrap_or(0);
        let causal = !self.causal || k <= q || self.prefix.is_some_and(|prefix| k_pos < entry(prefix));
        let left = self.left.is_none_or(|left| q - left as i128 <= k);
        let right = self.right.is_none_or(|right| k <= q + right as i128);
        let valid = self.kv_lens.is_none_or(|lens| k_pos < entry(lens));
        let document = self.documents.is_none_or(|bounds| {
            bounds.windows(2).any(|doc| {
                let (start, end) = (doc[0] as i128, doc[1] as i128);
                start <= q && q < end && start <= k && k < end
            })
        });
        let listed = self.intervals.is_none_or(|list| {
            list.row(sequence, q_head, query).iter().any(|span| span.start <= k_pos && k_pos < span.end)
        });
        let visited = self.blocks.is_none_or(|blocks| blocks.allows(sequence, q_head, q_pos, k_pos));
        let allowed = self.allowed.is_none_or(|view| {
            let [batch, heads, queries, keys] = view.shape();
            let at = |size: usize, index: usize| if size == 1 { 0 } else { index };
            view.get([at(batch, sequence), at(heads, q_head), at(queries, query), at(keys, k_pos)])
                == Some(&true)
        });
        causal && left && right && valid && document && listed && visited && allowed
    }

    /// Whether the intervals of two sequences of the same lengths can differ.
    pub(crate) fn is_per_sequence(&self) -> bool {
        self.prefix.is_some_and(|prefix| prefix.len() > 1)
            || self.blocks.is_some_and(BlockMask::is_per_sequence)
    }

    /// A query row, as the rest of the questions are asked about it.
    #[inline(always)]
    pub(crate) fn row(&self, sequence: usize, q_head: usize, query: usize, q_pos: i64) -> MaskRow {
        let blocks = match self.blocks {
            None => RowBlocks::NONE,
            Some(blocks) => blocks.row(sequence, q_head, q_pos),
        };
        MaskRow { sequence, q_head, query, q_pos, blocks }
    }

    /// The smallest run of keys that holds all that row may attend among `0..kv_len`.
    #[inline(always)]
    pub(crate) fn interval(&self, row: &MaskRow, kv_len: usize) -> Range<usize> {
        let mut range = 0..kv_len;
        if self.causal {
            let next = row.q_pos.saturating_add(1);
            let mut end = position(mutant!("causal-sees-the-next-key", next, next.saturating_add(1)));
            if let Some(prefix) = self.prefix {
                let own = if prefix.len() == 1 { 0 } else { row.sequence };
                end = end.max(prefix[mutant!("prefix-of-the-first-sequence", own, 0)]);
            }
            range.end = range.end.min(end);
        }
        if let Some(left) = self.left {
            let left = mutant!("window-counts-the-query", left, left.saturating_sub(1));
            range.start = range.start.max(position(row.q_pos.saturating_sub_unsigned(left as u64)));
        }
        if let Some(right) = self.right {
            range.end =
                range.end.min(position(row.q_pos.saturating_add_unsigned(right as u64).saturating_add(1)));
        }
        if self.documents.is_some() || self.has_lists() {
            range = self.within_documents_and_lists(row, range);
        }
        if range.start >= range.end { 0..0 } else { range }
    }

    /// What documents and lists leave of a row's interval. Apart, so that what most masks are is inlined: calls for each
    /// row show in calls of few keys.
    #[inline(never)]
    fn within_documents_and_lists(&self, row: &MaskRow, mut range: Range<usize>) -> Range<usize> {
        if let Some(bounds) = self.documents {
            let document = document(bounds, row.q_pos);
            range = range.start.max(document.start)..range.end.min(document.end);
        }
        if let Some(list) = self.intervals {
            range = within_hull(range, list.row(row.sequence, row.q_head, row.query));
        }
        if let Some(blocks) = self.blocks {
            range = within_hull(range, blocks.spans(row.blocks));
        }
        range
    }

    /// The first key at or after `at` that the row's lists have, if there is one in `keys`.
    pub(crate) fn next_key(&self, row: MaskRow, keys: &Range<usize>, at: usize) -> Option<usize> {
        let mut at = at.max(keys.start);
        loop {
            let mut next = at;
            if let Some(list) = self.intervals {
                next = first_from(list.row(row.sequence, row.q_head, row.query), next)?;
            }
            if let Some(blocks) = self.blocks {
                next = first_from(blocks.spans(row.blocks), next)?;
            }
            if next >= keys.end {
                return None;
            }
            if next == at {
                return Some(at);
            }
            at = next;
        }
    }

    /// Narrows `bits`, which stand for the keys from `tile_start` on, to those that the row may attend. Only the
    /// parts that an interval cannot express are looked at; the rest is in [`Mask::interval`].
    pub(crate) fn tile_bits(&self, row: MaskRow, tile_start: usize, keys: usize, bits: &mut TileBits) {
        if let Some(list) = self.intervals {
            let spans = list.row(row.sequence, row.q_head, row.query);
            if spans.len() > 1 {
                let mut listed = TileBits::default();
                for span in spans_from(spans, tile_start) {
                    if span.start >= tile_start + TILE {
                        break;
                    }
                    let start = span.start.max(tile_start) - tile_start;
                    let end = mutant!("span-includes-its-end", span.end, span.end + 1).min(tile_start + TILE)
                        - tile_start;
                    set_range(&mut listed, start..end);
                }
                intersect(bits, &listed);
            }
        }
        if let Some(blocks) = self.blocks {
            intersect(bits, &blocks.tile_bits(row.blocks, row.q_pos, tile_start));
        }
        if let Some(view) = self.allowed {
            let row = view.from(row.sequence, row.q_head, row.query);
            let allowed = match view.strides()[3] {
                1 => bits_of(&row[tile_start..][..keys]),
                step => {
                    let mut allowed = [false; TILE];
                    for (key, allowed) in allowed.iter_mut().enumerate().take(keys) {
                        *allowed = row[(mutant!("stepped-mask-by-tile-column", tile_start, 0) + key) * step];
                    }
                    bits_of(&allowed[..keys])
                }
            };
            intersect(bits, &allowed);
        }
    }
}

/// A query row, as the kernels ask about it: [`Cell`] without the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaskRow {
    pub(crate) sequence: usize,
    pub(crate) q_head: usize,
    pub(crate) query: usize,
    pub(crate) q_pos: i64,
    /// Its blocks, if the mask has any.
    pub(crate) blocks: RowBlocks,
}

impl MaskRow {
    /// Stands in for a row that is not known yet.
    pub(crate) const NONE: MaskRow =
        MaskRow { sequence: 0, q_head: 0, query: 0, q_pos: 0, blocks: RowBlocks::NONE };
}

/// The spans that end after `key`.
#[inline]
pub(crate) fn spans_from(spans: &[Span], key: usize) -> &[Span] {
    &spans[spans.partition_point(|span| span.end <= key)..]
}

/// The first key of some spans at or after `at`.
#[inline]
fn first_from(spans: &[Span], at: usize) -> Option<usize> {
    let some = spans_from(spans, at).iter().find(|span| span.start < span.end)?;
    Some(some.start.max(at))
}

/// What of a range lies between the first and the last of some spans.
#[inline]
fn within_hull(range: Range<usize>, spans: &[Span]) -> Range<usize> {
    let hull = spans.first().map_or(0, |span| span.start)..spans.last().map_or(0, |span| span.end);
    range.start.max(hull.start)..range.end.min(hull.end)
}

/// A position as an index, negative ones as 0.
#[inline(always)]
fn position(pos: i64) -> usize {
    usize::try_from(pos.max(0)).unwrap_or(usize::MAX)
}

/// The document that position `q_pos` lies in.
fn document(bounds: &[usize], q_pos: i64) -> Range<usize> {
    let Ok(pos) = usize::try_from(q_pos) else { return 0..0 };
    // With empty documents several boundaries are equal: the last one at or before `pos` opens its document.
    let after = bounds.partition_point(|&bound| mutant!("document-starts-late", bound <= pos, bound < pos));
    if after == 0 || after == bounds.len() { 0..0 } else { bounds[after - 1]..bounds[after] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_own_spans() {
        // Row r of [2, 2, 3] is the span r..r + 1; of [1, 2, 3] and [2, 1, 3] some repeat.
        let spans: Vec<Span> = (0..12).map(|start| Span { start, end: start + 1 }).collect();
        let offsets: Vec<usize> = (0..=12).collect();
        let first = |list: &Intervals<'_>, index: [usize; 3]| list.row(index[0], index[1], index[2])[0].start;
        let all = Intervals::new([2, 2, 3], &offsets, &spans).unwrap();
        let shared_batch = Intervals::new([1, 2, 3], &offsets[..7], &spans[..6]).unwrap();
        let shared_head = Intervals::new([2, 1, 3], &offsets[..7], &spans[..6]).unwrap();
        for (index, expected) in
            [([0, 0, 0], [0, 0, 0]), ([0, 1, 2], [5, 5, 2]), ([1, 0, 1], [7, 1, 4]), ([1, 1, 2], [11, 5, 5])]
        {
            let got = [&all, &shared_batch, &shared_head].map(|list| first(list, index));
            assert_eq!(got, expected, "the row at {index:?}");
        }
    }

    #[test]
    fn a_part_given_twice_is_refused() {
        let (yes, lens, none) = ([true], [1], Mask::NONE);
        let allowed = View::new(&yes, [1, 1, 1, 1]).unwrap();
        let intervals = Intervals::new([1, 1, 1], &[0, 0], &[]).unwrap();
        let grid = crate::sparse::BlockGrid::square(1, 1);
        let blocks = BlockMask::from(crate::sparse::BlockLayout::from_blocks(grid, |_, _| true).unwrap());
        let twice = [
            none.allowed(allowed).allowed(allowed),
            none.kv_lens(&lens).kv_lens(&lens),
            none.documents(&lens).documents(&lens),
            none.intervals(intervals).intervals(intervals),
            none.blocks(&blocks).blocks(&blocks),
        ];
        for mask in twice {
            let q = View::new(&[1.0f32], [1, 1, 1, 1]).unwrap();
            let inputs = crate::Inputs::new(q, q, q).mask(mask);
            let refused =
                |error| matches!(error, AttentionError::Conflict { other: "another of its kind", .. });
            assert!(crate::attention(&inputs).is_err_and(refused), "run: {mask:?}");
            assert!(crate::reference::attention(&inputs).is_err_and(refused), "reference: {mask:?}");
        }
        let windows = none.window(Some(1), None).window(None, Some(1)).last_n_keys(3);
        assert!(windows.check_repeated().is_ok(), "windows compose");
    }

    #[test]
    fn a_position_lies_in_one_document() {
        let bounds = [2, 5, 5, 9];
        let of = |pos| document(&bounds, pos);
        assert_eq!(of(1), 0..0, "before the first document");
        assert_eq!(of(2), 2..5, "the first position of a document");
        assert_eq!(of(5), 5..9, "an empty document holds nothing");
        assert_eq!(of(9), 0..0, "after the last document");
        assert_eq!(of(-1), 0..0, "a negative position");
    }
}
