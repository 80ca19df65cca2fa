//! What the two tiers differ in: how operands are laid out, and what a step of a sum is. The loop that uses it is
//! [`super::block`]'s, for both.
//!
//! | tier | file | a step of a chain | order of operations |
//! |---|---|---|---|
//! | exact | `fma.rs` | one multiply-add in f32 | version 1, see [`super`] |
//! | bf16 dot | `bf16_dot.rs` | two products of bf16, added to an f32 | its own, written there |

use super::bf16_dot::Bf16DotTier;
use super::block::Block;
use super::call::Call;
use super::columns::Columns;
use super::fma::FmaTier;
use super::rows::BlockRow;
use super::sequence::Sequence;
use super::visit::Visit;
use super::workspace::Operands;
use crate::element::Element;
use crate::inputs::Keys;
use crate::isa::{Bf16Dot, Bf16Kernel, Bf16Level, Isa, Kernel, Level};
use crate::kernel::prefetch::{Asks, Elsewhere, Near, Piece, Share};
use crate::kernel::score::KeyRows;
use crate::mask::TILE;
use crate::panels::PANEL;
use crate::tile::{asks_together, from_memory};
use std::ops::Range;

/// A head's keys as they are stored, and what lies behind them.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a, T> {
    Panels(&'a [T]),
    Rows(KeyRows<'a, T>),
}

impl<'a, T: Element> Stored<'a, T> {
    /// Asks for a share of a panel's worth of keys from `key` on.
    #[inline(always)]
    pub(super) fn ask<I: Isa>(self, isa: I, share: Share, key: usize, head_dim: usize) {
        match self {
            Stored::Panels(panels) => share.ask(isa, panels, key * head_dim, PANEL * head_dim),
            Stored::Rows(rows) => share.ask_rows(isa, rows.data, key, [rows.stride, head_dim]),
        }
    }

    /// What rows ask for of those that are packed tile by tile: their share of the next tile's, if it lies in one piece and is
    /// expected to come from memory. `head` as in [`At::next_piece`].
    #[inline(always)]
    pub(super) fn next_piece(
        self,
        at: At<'_>,
        head_dim: usize,
        from_memory: bool,
        head: Option<usize>,
    ) -> Piece {
        match self {
            Stored::Panels(panels) if from_memory => at.next_piece(panels, head_dim, head),
            Stored::Panels(_) => Piece::NOTHING,
            Stored::Rows(rows) => at.next_rows(rows, head_dim, head),
        }
    }

    /// Those of a KV head of a block.
    #[inline(always)]
    pub(super) fn of(call: &Call<'a, T>, block: &Block, kv_head: usize) -> Self {
        let Sequence { batch, k_first, kv_len, .. } = block.sequence;
        match call.keys {
            Keys::Panels(panels) => Stored::Panels(panels.from(batch, kv_head)),
            Keys::Rows(view) => {
                let (data, stride) = (view.from(batch, kv_head, k_first), view.strides()[2]);
                Stored::Rows(KeyRows { data, stride, len: kv_len, from_memory: from_memory(call.work) })
            }
        }
    }
}

/// A tier on an instruction set. All of it is `#[inline(always)]`.
pub(crate) trait Tier<I: Isa> {
    /// Keys and values of a KV head of a block, and all that is needed to use them.
    type Source<'a, T: Element>;

    /// Whether blocks of few rows can be of several KV heads: they enter no tile, as nothing is laid out for them.
    const JOINS_HEADS: bool;

    /// Lays out the queries of a block's rows.
    fn pack_queries<T: Element>(
        isa: I,
        call: &Call<'_, T>,
        sequence: &Sequence,
        rows: &[BlockRow],
        operands: &mut Operands,
    );

    /// Chooses where keys and values of one of a block's KV heads come from.
    fn open<'a, T: Element>(call: &'a Call<'a, T>, block: &Block, kv_head: usize) -> Self::Source<'a, T>;

    /// Lays out those of a tile's keys and values that hold `columns` and are to be laid out, but are not yet.
    fn enter_tile<T: Element>(
        isa: I,
        source: &Self::Source<'_, T>,
        operands: &mut Operands,
        tile: &Range<usize>,
        columns: Columns,
    );

    /// Asks for a share of what the columns of the tile hold that is visited next.
    fn ask_for_tile<T: Element>(
        isa: I,
        source: &Self::Source<'_, T>,
        operands: &Operands,
        visit: &Visit,
        share: Share,
    );

    /// Scaled dot products of the block's rows `group` (at most [`MAX_ROWS`](crate::kernel::MAX_ROWS)) with a tile's
    /// `columns`, a multiple of 16 at both ends; rows of `scores` are [`TILE`](crate::mask::TILE) apart.
    fn score_group<T: Element>(
        isa: I,
        source: &Self::Source<'_, T>,
        operands: &Operands,
        group: Range<usize>,
        at: At<'_>,
        columns: &Range<usize>,
        scores: &mut [f32],
    );

    /// Adds values of a run of a tile's columns, times weights laid out like scores, to the accumulators of a group.
    fn accumulate_group<T: Element>(
        isa: I,
        source: &Self::Source<'_, T>,
        operands: &mut Operands,
        at: At<'_>,
        runs: &Runs,
        weights: &[f32],
        acc: Accumulators<'_>,
    );
}

/// The tile that a group of rows works on.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) tile: &'a Range<usize>,
    /// Whether they are the block's first: those after them mostly find in a cache what these went through.
    pub(crate) first_rows: bool,
    /// What they are of the block's rows.
    pub(crate) share: Share,
    /// Whether the groups of the block ask for the next tile together, see [`asks_together`](crate::tile::asks_together).
    pub(crate) together: bool,
    /// Whether they did so for this tile while they worked on the one before, all of them on all of it (but for the first rows,
    /// where nobody had asked for that either).
    pub(crate) asked: bool,
    pub(crate) next: Option<NextTile>,
}

/// One of a tile's operands, as groups of rows ask for it together.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a, T> {
    pub(crate) data: &'a [T],
    /// Elements for each key.
    pub(crate) len: usize,
    /// Whether nothing lies between keys; otherwise nobody asks.
    pub(crate) in_one_piece: bool,
    /// How many keys after its first the next head begins, if that is known.
    pub(crate) next_head: Option<usize>,
}

impl<'a, T> Operand<'a, T> {
    /// Of what is packed, where the next block begins anywhere. The first of those that share it, which packs, asks for lines that it
    /// is about to write.
    #[inline(always)]
    pub(crate) fn packed(data: &'a [T], len: usize) -> Self {
        Self { data, len, in_one_piece: true, next_head: None }
    }
}

impl<'a> At<'a> {
    /// Of all rows that there are of a tile which is visited by itself.
    #[inline(always)]
    pub(crate) fn alone(tile: &'a Range<usize>, rows: usize) -> Self {
        let share = Share { start: 0, end: rows, of: rows };
        Self { tile, first_rows: true, share, together: false, asked: false, next: None }
    }

    /// Whether nobody asked for the tile's part of some operand before these rows do.
    #[inline(always)]
    pub(crate) fn are_first(self, in_one_piece: bool) -> bool {
        self.first_rows && !(self.asked && in_one_piece)
    }

    /// What the rows ask for of an operand: if nobody did before them, lines of this tile that are `near`; else their share of the
    /// next.
    #[inline(always)]
    pub(crate) fn asks<I: Isa, T>(self, near: Near, operand: Operand<'_, T>) -> Asks {
        let Operand { data, len, in_one_piece, next_head } = operand;
        // The first is of constants where it is never so, which leaves out the kernels that ask.
        if !asks_together(I::LANES, self.share.of) || !self.together {
            return Asks::Near(near.only_if(self.first_rows));
        }
        let first = self.are_first(in_one_piece);
        let known = self.next.is_some_and(|next| !next.in_next_head || next_head.is_some());
        if known && in_one_piece && !first {
            return Asks::Elsewhere(self.elsewhere(self.next_piece(data, len, next_head)));
        }
        Asks::Near(near.only_if(first))
    }

    /// A piece to ask for while the rows go through the tile.
    #[inline(always)]
    pub(crate) fn elsewhere<const LINES: usize>(self, piece: Piece) -> Elsewhere<LINES> {
        Elsewhere { piece, columns: self.tile.len().next_multiple_of(16) }
    }

    /// The rows' share of what holds `len` elements for each of the next tile's keys; nothing where it ends sooner, or the next head
    /// is not known to begin `head` keys after this one.
    #[inline(always)]
    pub(crate) fn next_piece<T>(self, data: &[T], len: usize, head: Option<usize>) -> Piece {
        let place = |next: NextTile| {
            let start = next.start.checked_add(if next.in_next_head { head? } else { 0 })?;
            let end = start.checked_add(next.len)?.checked_mul(len)?;
            (end <= data.len()).then(|| Piece::new(data, start * len, next.len * len))
        };
        self.next.and_then(place).map_or(Piece::NOTHING, |piece| piece.share(self.share))
    }

    /// The same of rows, if they lie in one piece and are expected to come from memory.
    #[inline(always)]
    pub(crate) fn next_rows<T>(self, rows: KeyRows<'_, T>, len: usize, head: Option<usize>) -> Piece {
        match rows.from_memory && rows.stride == len {
            true => self.next_piece(rows.data, len, head),
            false => Piece::NOTHING,
        }
    }
}

/// The tile that is visited next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NextTile {
    /// Its first key.
    pub(crate) start: usize,
    /// Keys there are.
    pub(crate) len: usize,
    /// Whether it is the next head's, from whose first key on keys are counted then.
    pub(crate) in_next_head: bool,
}

impl NextTile {
    /// One of the same head.
    #[inline(always)]
    pub(crate) fn of_head(tile: &Range<usize>) -> Self {
        Self { start: tile.start, len: tile.len(), in_next_head: false }
    }

    /// What is visited after the last tile of a block that has `keys` of a head's `kv_len` by itself, and first visits the tile
    /// `first`: the keys behind, or what the next head begins with.
    pub(crate) fn behind(first: &Range<usize>, keys: &Range<usize>, kv_len: usize) -> Self {
        if keys.end < kv_len {
            return Self::of_head(&(keys.end..kv_len.min(keys.end + TILE)));
        }
        let start = if keys.start == 0 { first.start } else { 0 };
        Self { start, len: first.len(), in_next_head: true }
    }
}

/// Which of a run of a tile's columns to add up.
pub(crate) struct Runs {
    /// Runs of columns, ascending, and whether some row's weights there may be marked as removed.
    pub(crate) runs: [(Range<usize>, bool); 3],
    /// They lie in here; a multiple of 16 at both ends.
    pub(crate) columns: Range<usize>,
}

/// Output rows of a group.
pub(crate) struct Accumulators<'a> {
    pub(crate) rows: usize,
    pub(crate) acc: &'a mut [f32],
    /// Elements between rows.
    pub(crate) stride: usize,
}

/// The tier and level a plan chose.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Exact(Level),
    Bf16Dot(Bf16Level),
}

/// A computation written once for all tiers and instruction sets; `run` must be `#[inline(always)]`.
pub(crate) trait TierKernel {
    fn run<I: Isa, E: Tier<I>>(self, isa: I);
}

impl Engine {
    /// See [`Tier::JOINS_HEADS`].
    pub(crate) fn joins_heads(self) -> bool {
        matches!(self, Engine::Exact(_))
    }

    /// Runs `kernel` compiled for the tier and level.
    #[inline]
    pub(crate) fn dispatch<K: TierKernel>(self, kernel: K) {
        match self {
            Engine::Exact(level) => level.dispatch(OnFma(kernel)),
            Engine::Bf16Dot(level) => level.dispatch(OnBf16Dot(kernel)),
        }
    }
}

struct OnFma<K>(K);

impl<K: TierKernel> Kernel for OnFma<K> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.0.run::<I, FmaTier>(isa);
    }
}

struct OnBf16Dot<K>(K);

impl<K: TierKernel> Bf16Kernel for OnBf16Dot<K> {
    type Output = ();

    #[inline(always)]
    fn run<I: Bf16Dot>(self, isa: I) {
        self.0.run::<I, Bf16DotTier>(isa);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::MAX_ROWS;

    const LEN: usize = 4;

    struct Ask<'a> {
        at: At<'a>,
        operand: Operand<'a, f32>,
    }

    impl Kernel for Ask<'_> {
        type Output = Asks;

        fn run<I: Isa>(self, _isa: I) -> Asks {
            self.at.asks::<I, f32>(Near::ForAny, self.operand)
        }
    }

    /// The first rows ask for lines of their tile, unless groups asked for it before; all others for their share of the next.
    #[test]
    fn who_asks_for_what() {
        let data = vec![0.0f32; 3 * TILE * LEN];
        let tile = 0..TILE;
        let share = Share { start: MAX_ROWS, end: 2 * MAX_ROWS, of: 2 * MAX_ROWS };
        let next = |start, len, in_next_head| Some(NextTile { start, len, in_next_head });
        let at = |first_rows, asked, together| At {
            tile: &tile,
            first_rows,
            share,
            together,
            asked,
            next: next(TILE, TILE, false),
        };
        let operand = |in_one_piece, next_head| Operand { data: &data, len: LEN, in_one_piece, next_head };
        let their_share = |first: usize, len: usize| Piece::new(&data, first * LEN, len * LEN).share(share);
        for level in Level::available() {
            let asks = |at, operand| match level.dispatch(Ask { at, operand }) {
                Asks::Near(Near::Nothing) => "nothing",
                Asks::Near(_) => "near",
                Asks::Elsewhere(Elsewhere { piece, .. }) if piece == their_share(TILE, TILE) => "its share",
                Asks::Elsewhere(Elsewhere { piece, .. }) if piece == their_share(2 * TILE, TILE) => {
                    "the next head's"
                }
                Asks::Elsewhere(Elsewhere { piece, .. }) if piece == their_share(9, 9) => "a short head's",
                Asks::Elsewhere(Elsewhere { piece, .. }) if piece == Piece::NOTHING => "nothing",
                Asks::Elsewhere(_) => "something else",
            };
            let wide = level.lanes() == 16;
            for (first_rows, asked, together, in_one_piece, expected) in [
                (true, false, true, true, "near"),
                (false, false, true, true, if wide { "its share" } else { "nothing" }),
                (true, true, true, true, if wide { "its share" } else { "near" }),
                (false, true, true, true, if wide { "its share" } else { "nothing" }),
                (true, true, true, false, "near"),
                (false, true, true, false, "nothing"),
                (true, false, false, true, "near"),
                (false, false, false, true, "nothing"),
            ] {
                // Nobody did where vectors are narrow.
                let at = at(first_rows, asked && wide, together);
                let what = format!("{level}: first rows: {first_rows}, asked: {asked}, together: {together}");
                let got = asks(at, operand(in_one_piece, None));
                assert_eq!(got, expected, "{what}, in one piece: {in_one_piece}");
                assert_eq!(at.are_first(in_one_piece), expected == "near", "{what}");
            }
            for (next, next_head, expected) in [
                (None, None, "nothing"),
                (None, Some(2 * TILE), "nothing"),
                (next(0, TILE, true), None, "nothing"),
                (next(0, TILE, true), Some(2 * TILE), "the next head's"),
                (next(TILE, TILE, true), Some(TILE), "the next head's"),
                (next(TILE, TILE, true), Some(2 * TILE), "nothing"),
                (next(0, 9, true), Some(9), "a short head's"),
            ] {
                let expected = if wide { expected } else { "nothing" };
                let got = asks(At { next, ..at(false, true, true) }, operand(true, next_head));
                assert_eq!(got, expected, "{level}: {next:?}, next head at {next_head:?}");
            }
        }
    }

    /// A block goes on behind its keys, or where the next head's block begins: as this one did, or with the head's first split.
    #[test]
    fn what_lies_behind_a_block() {
        let tile = |start, len, in_next_head| NextTile { start, len, in_next_head };
        for (first, keys, kv_len, expected) in [
            (0..256, 0..4096, 4096, tile(0, 256, true)),
            (0..100, 0..100, 100, tile(0, 100, true)),
            (512..768, 0..4096, 4096, tile(512, 256, true)),
            (0..256, 0..1024, 4096, tile(1024, 256, false)),
            (0..256, 0..1024, 1100, tile(1024, 76, false)),
            (1024..1280, 1024..4096, 4096, tile(0, 256, true)),
        ] {
            assert_eq!(NextTile::behind(&first, &keys, kv_len), expected, "{first:?}, {keys:?} of {kv_len}");
        }
    }
}
