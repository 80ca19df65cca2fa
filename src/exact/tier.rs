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
use crate::panels::PANEL;
use crate::tile::from_memory;
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

    /// What is asked for of those that are packed tile by tile, see [`NextTile::of_rows`].
    #[inline(always)]
    pub(super) fn next(self, next: Option<NextTile>, head_dim: usize, from_memory: bool) -> Piece {
        match self {
            Stored::Panels(panels) => NextTile::of(next.filter(|_| from_memory), panels, head_dim),
            Stored::Rows(rows) => NextTile::of_rows(next, rows, head_dim),
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
    /// Whether it is the first that the block visits.
    pub(crate) first_tile: bool,
    /// Whether the groups of the block ask for the next tile together, see [`asks_together`](crate::tile::asks_together).
    pub(crate) together: bool,
    pub(crate) next: Option<NextTile>,
}

impl At<'_> {
    /// Whether nobody asked for the tile's part of some operand before these rows do: where that lies in one piece, groups may
    /// have done so while they worked on the tile before.
    #[inline(always)]
    pub(crate) fn are_first(self, in_one_piece: bool) -> bool {
        self.first_rows && (self.first_tile || !self.together || !in_one_piece)
    }

    /// What the rows ask for of `data`, `len` elements for each key: if nobody did before them, lines of this tile that are `near`;
    /// else their share of the next.
    #[inline(always)]
    pub(crate) fn asks<T>(self, near: Near, data: &[T], len: usize, in_one_piece: bool) -> Asks {
        let first = self.are_first(in_one_piece);
        match self.next {
            Some(next) if self.together && in_one_piece && !first => {
                Asks::Elsewhere(Elsewhere(NextTile::of(Some(next), data, len)))
            }
            _ => Asks::Near(near.only_if(first)),
        }
    }
}

/// What a group of rows may ask for while it works on a tile: its share of the one that is visited next, or of what lies behind the
/// last.
#[derive(Clone, Copy)]
pub(crate) struct NextTile {
    /// Its first key.
    pub(crate) start: usize,
    /// Keys there are.
    pub(crate) len: usize,
    pub(crate) share: Share,
}

impl NextTile {
    /// What is asked for of rows that are packed tile by tile, `len` elements each: those that lie in one piece, if they are
    /// expected to come from memory; otherwise nothing that is not at hand.
    #[inline(always)]
    pub(crate) fn of_rows<T: Element>(next: Option<Self>, rows: KeyRows<'_, T>, len: usize) -> Piece {
        Self::of(next.filter(|_| rows.from_memory && rows.stride == len), rows.data, len)
    }

    /// The same of what holds `len` elements for each key and comes from memory; nothing of it where it ends sooner.
    #[inline(always)]
    pub(crate) fn of<T>(next: Option<Self>, data: &[T], len: usize) -> Piece {
        let there = next.filter(|next| (next.start + next.len) * len <= data.len());
        let piece = |next: Self| Piece::new(data, next.start * len, next.len * len).share(next.share);
        there.map_or(Piece::new(data, 0, 0), piece)
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
    use crate::mask::TILE;

    /// The first rows ask for lines of their tile, unless groups asked for it before; all others for their share of the next.
    #[test]
    fn who_asks_for_what() {
        const LEN: usize = 4;
        let data = vec![0.0f32; 2 * TILE * LEN];
        let tile = 0..TILE;
        let share = Share { start: 6, end: 12, of: 12 };
        let next = |start| Some(NextTile { start, len: TILE, share });
        let at = |first_rows, first_tile, together| At {
            tile: &tile,
            first_rows,
            first_tile,
            together,
            next: next(TILE),
        };
        let asks = |at: At<'_>, in_one_piece| match at.asks(Near::ForAny, &data, LEN, in_one_piece) {
            Asks::Near(Near::Nothing) => "nothing",
            Asks::Near(_) => "near",
            Asks::Elsewhere(Elsewhere(piece))
                if piece == Piece::new(&data, TILE * LEN, TILE * LEN).share(share) =>
            {
                "its share"
            }
            Asks::Elsewhere(Elsewhere(piece)) if piece == Piece::new(&data, 0, 0) => "nothing that is there",
            Asks::Elsewhere(_) => "something else",
        };
        for (first_rows, first_tile, together, in_one_piece, expected) in [
            (true, true, true, true, "near"),
            (false, true, true, true, "its share"),
            (true, false, true, true, "its share"),
            (false, false, true, true, "its share"),
            (true, false, true, false, "near"),
            (false, false, true, false, "nothing"),
            (true, false, false, true, "near"),
            (false, false, false, true, "nothing"),
        ] {
            let at = at(first_rows, first_tile, together);
            let what = format!("first rows: {first_rows}, first tile: {first_tile}, together: {together}");
            assert_eq!(asks(at, in_one_piece), expected, "{what}, in one piece: {in_one_piece}");
            assert_eq!(at.are_first(in_one_piece), expected == "near", "{what}");
        }
        let behind = At { next: next(2 * TILE), ..at(false, false, true) };
        assert_eq!(asks(behind, true), "nothing that is there", "behind the end");
        let listed = At { next: None, ..at(false, false, true) };
        assert_eq!(asks(listed, true), "nothing", "lists say what is next");
    }
}
