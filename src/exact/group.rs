//! A group: up to 6 rows of a block that are taken through a tile together, which of its columns they need, and what their
//! dot products become.
//!
//! ```text
//! WeighGroup         dot products into weights, and states with them
//! GroupShape         the group's rows: columns that some row, and that every row, may attend
//! Visible            one row: all columns looked at, an interval of them, or what bits say
//! ```

use super::call::Call;
use super::columns::Columns;
use super::measure::{Measured, weigh_measured};
use super::rows::{BlockRow, Reach};
use super::tier::{Accumulators, Runs};
use super::visit::{TileBlocks, Visit, columns_of, visit_the_same};
use crate::element::Element;
use crate::isa::{Isa, Kernel};
use crate::kernel::MAX_ROWS;
use crate::kernel::pack::scale_row;
use crate::mask::{TILE, TileBits, intersect, set_range};
use crate::softmax::{larger, raise_maxima, tile_max, weigh_row};
use std::ops::Range;

/// How many of some rows, which are not empty, form a group: as many as a register tile has, but under a block mask not
/// beyond their row of blocks, unless the next visits the same.
#[inline(never)]
pub(super) fn group_within_blocks(rows: &[BlockRow]) -> usize {
    let most = rows.len().min(MAX_ROWS);
    let apart = |a: &BlockRow, b: &BlockRow| {
        !a.mask.blocks.is_in_row_of(&b.mask.blocks) && !a.mask.blocks.visits_the_same(&b.mask.blocks)
    };
    let border = rows[..most].windows(2).position(|pair| apart(&pair[0], &pair[1]));
    border.map_or(most, |last| last + 1)
}

/// Takes a tile's dot products into the states of a group of rows, turns them into weights in place and rescales what the rows
/// accumulated before. Where intervals do not say which columns every row attends, those come in `shared`, and it says so.
///
/// A function of its own, as register tiles are ([`crate::kernel::tiles`]).
pub(super) struct WeighGroup<'a, 's, T: Element> {
    pub(super) call: &'a Call<'a, T>,
    pub(super) rows: &'s mut [BlockRow],
    /// The sums of rows that are measured.
    pub(super) measured: Option<Measured<'s>>,
    pub(super) tile: &'s Range<usize>,
    pub(super) shape: &'s GroupShape,
    pub(super) scores: &'s mut [f32],
    pub(super) bits: &'s mut [TileBits; MAX_ROWS],
    pub(super) shared: &'s mut TileBits,
    /// What they accumulated before; empty if nothing is accumulated.
    pub(super) acc: Accumulators<'s>,
}

impl<T: Element> Kernel for WeighGroup<'_, '_, T> {
    type Output = bool;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> bool {
        let Self { call, rows, measured, tile, shape, scores, bits, shared, acc } = self;
        let (mut visible, mut maxima) = ([Visible::All; MAX_ROWS], [f32::NEG_INFINITY; 16]);
        let columns = shape.columns;
        if !shape.whole {
            for (r, row) in rows.iter().enumerate() {
                let scores = &mut scores[r * TILE..][..TILE];
                visible[r] = shape_row(isa, call, row, tile, columns, scores, &mut bits[r]);
            }
        }
        for run in columns.runs() {
            for r in 0..rows.len() {
                let (scores, bits) = (&scores[r * TILE..][..TILE], visible[r].masked(&bits[r], &run));
                maxima[r] = larger(maxima[r], tile_max(isa, scores, run.clone(), bits));
            }
        }
        let factors = raise_maxima(isa, rows.iter_mut().map(|row| &mut row.state), &maxima);
        weigh_rows(isa, (rows, measured), tile.start, (columns, &visible, bits), &factors, scores);
        for (factor, acc) in factors.into_iter().zip(acc.acc.chunks_exact_mut(acc.stride)).take(rows.len()) {
            if factor != 1.0 {
                scale_row(isa, acc, mutant!("output-not-rescaled", factor, 1.0));
            }
        }
        let scattered = visible.iter().any(|visible| matches!(visible, Visible::Bits));
        if scattered {
            *shared = [u64::MAX; TILE / 64];
            let rows = visible.iter().zip(&*bits).take(rows.len());
            rows.filter(|(visible, _)| !matches!(visible, Visible::All))
                .for_each(|(_, bits)| intersect(shared, bits));
        }
        scattered
    }
}

/// Turns a group's logits into weights, its sums rescaled by `factors` first.
#[inline(always)]
fn weigh_rows<I: Isa>(
    isa: I,
    (rows, measured): (&mut [BlockRow], Option<Measured<'_>>),
    first_key: usize,
    (columns, visible, bits): (Columns, &[Visible; MAX_ROWS], &[TileBits; MAX_ROWS]),
    factors: &[f32; 16],
    scores: &mut [f32],
) {
    let mut rescaled = *factors;
    if let Some(mut measured) = measured {
        for run in columns.runs() {
            for (r, row) in rows.iter_mut().enumerate() {
                let scores = &mut scores[r * TILE..][..TILE];
                let bits = visible[r].masked(&bits[r], &run);
                let row = (r, row);
                weigh_measured(isa, &mut measured, row, rescaled[r], first_key, scores, run.clone(), bits);
            }
            rescaled = [1.0; 16];
        }
    } else {
        for run in columns.runs() {
            for (r, row) in rows.iter_mut().enumerate() {
                let scores = &mut scores[r * TILE..][..TILE];
                let bits = visible[r].masked(&bits[r], &run);
                weigh_row(isa, &mut row.state, rescaled[r], scores, run.clone(), bits, &mut ());
            }
            rescaled = [1.0; 16];
        }
    }
}

/// Which columns of a tile a group of rows needs.
pub(crate) struct GroupShape {
    /// Columns from the first to the last that some row may attend.
    some: Range<usize>,
    /// Columns that every row may attend, as far as intervals say.
    all: Range<usize>,
    /// Those of `some` to look at.
    pub(super) columns: Columns,
    /// Whether every row may attend all of them, and dot products are logits as they are.
    whole: bool,
}

impl GroupShape {
    /// Every row needs all of a tile, whose length is a multiple of 16; of any other it is to be [narrowed](Self::narrow).
    #[inline(always)]
    pub(super) fn whole(len: usize) -> Self {
        Self { some: 0..len, all: 0..len, columns: Columns::up_to(len), whole: true }
    }

    /// All columns of a tile, whatever rows may attend; leaves in `bits` what they may, where it takes bits.
    pub(crate) fn all_columns<T: Element>(
        call: &Call<'_, T>,
        rows: &[BlockRow],
        tile: &Range<usize>,
        bits: &mut [TileBits; MAX_ROWS],
    ) -> Self {
        if call.mask.has_bits() {
            rows.iter().zip(bits).for_each(|(row, bits)| *bits = row_bits(call, row, tile));
        }
        let len = tile.len();
        Self { some: 0..len, all: len..len, columns: Columns::up_to(len), whole: false }
    }

    /// Leaves of a whole tile what the rows need; says whether that is anything. Leaves in `bits` which columns they may attend,
    /// where it takes bits.
    ///
    /// In place: an `Option` of it would be copied in words larger than its fields, and wait for their stores. Calls of 16 to 128
    /// tokens are 1.01 to 1.02 times as fast so (example `bench_worker`, level AVX-512).
    #[inline(always)]
    pub(super) fn narrow<T: Element>(
        &mut self,
        call: &Call<'_, T>,
        rows: &[BlockRow],
        visit: &Visit,
        bits: &mut [TileBits; MAX_ROWS],
    ) -> bool {
        let tile = &visit.tile;
        let mut reach = Reach::NONE;
        rows.iter().for_each(|row| reach.add(&columns_of(&row.keys, tile)));
        let Reach { some, mut all } = reach;
        if some.is_empty() {
            return false;
        }
        if call.mask.has_bits() {
            return self.narrow_by_bits(call, rows, visit, &all, bits);
        }
        if all.start >= all.end {
            all = some.end..some.end;
        }
        self.columns = Columns::around(&some);
        (self.some, self.all, self.whole) = (some, all, false);
        true
    }

    /// [`GroupShape::narrow`] where intervals do not say it all; that of all rows is `all`.
    #[inline(never)]
    fn narrow_by_bits<T: Element>(
        &mut self,
        call: &Call<'_, T>,
        rows: &[BlockRow],
        visit: &Visit,
        all: &Range<usize>,
        bits: &mut [TileBits; MAX_ROWS],
    ) -> bool {
        if let Some((columns, some)) = full_blocks(call, rows, visit, all) {
            *self = Self { all: some.end..some.end, columns, some, whole: true };
            return true;
        }
        let mut some = TileBits::default();
        for (row, bits) in rows.iter().zip(bits) {
            *bits = row_bits(call, row, &visit.tile);
            some.iter_mut().zip(&*bits).for_each(|(word, bits)| *word |= bits);
        }
        let Some(hull) = hull_of(&some) else { return false };
        *self = Self { all: hull.end..hull.end, columns: Columns::of(&some), some: hull, whole: false };
        true
    }

    /// Those of a run of the columns to add up. `shared` has the columns that every row attends, if intervals do not say:
    /// others may be removed anywhere.
    #[inline(always)]
    pub(super) fn runs(&self, run: Range<usize>, shared: Option<&TileBits>) -> Runs {
        let within = |range: &Range<usize>| range.start.max(run.start)..range.end.min(run.end);
        let some = within(&self.some);
        let mut all = match shared {
            _ if self.whole => some.clone(),
            Some(shared) => interval_in(shared, &some),
            None => within(&self.all),
        };
        if all.start >= all.end {
            all = some.end..some.end;
        }
        Runs {
            runs: [(some.start..all.start, true), (all.clone(), false), (all.end..some.end, true)],
            columns: run,
        }
    }
}

/// The columns that all rows attend, from the first to the last, if they visit the same full blocks of a tile, whole vectors
/// of them, and nothing else shapes their scores or removes keys: `all` are those that every row's interval leaves.
fn full_blocks<T: Element>(
    call: &Call<'_, T>,
    rows: &[BlockRow],
    visit: &Visit,
    all: &Range<usize>,
) -> Option<(Columns, Range<usize>)> {
    let mask = call.mask.only_blocks().filter(|_| call.rules.is_plain())?;
    let own;
    let blocks = match &visit.blocks {
        Some(blocks) => blocks,
        None => {
            let first = rows.first().filter(|_| visit_the_same(rows))?;
            own = TileBlocks::new(mask, first.mask.blocks, &visit.tile);
            &own
        }
    };
    let hull = blocks.columns.hull()?;
    let attended = all.start <= hull.start && hull.end <= all.end;
    (blocks.whole && attended).then_some((blocks.columns, hull))
}

/// The columns of a tile that a row may attend, as far as the mask says.
#[inline(never)]
pub(crate) fn row_bits<T: Element>(call: &Call<'_, T>, row: &BlockRow, tile: &Range<usize>) -> TileBits {
    let mut bits = TileBits::default();
    set_range(&mut bits, columns_of(&row.keys, tile));
    call.mask.tile_bits(row.mask, tile.start, tile.len(), &mut bits);
    bits
}

/// From the first set bit to the last.
fn hull_of(bits: &TileBits) -> Option<Range<usize>> {
    let first = bits.iter().position(|&word| word != 0)?;
    let last = bits.iter().rposition(|&word| word != 0)?;
    let start = first * 64 + bits[first].trailing_zeros() as usize;
    Some(start..last * 64 + 64 - bits[last].leading_zeros() as usize)
}

/// The set bits within a range, if they are one interval; an empty one else.
#[inline(never)]
fn interval_in(bits: &TileBits, within: &Range<usize>) -> Range<usize> {
    let mut inside = TileBits::default();
    set_range(&mut inside, within.clone());
    intersect(&mut inside, bits);
    let count: u32 = inside.iter().map(|word| word.count_ones()).sum();
    hull_of(&inside).filter(|hull| hull.len() == count as usize).unwrap_or(0..0)
}

/// Which columns of a tile a row may attend.
#[derive(Clone, Copy)]
pub(crate) enum Visible {
    /// All of those looked at.
    All,
    /// One interval of them; the bits say which.
    Interval,
    /// What the bits say.
    Bits,
}

impl Visible {
    /// The bits, if they say anything about a run of columns.
    #[inline(always)]
    pub(crate) fn masked<'b>(self, bits: &'b TileBits, run: &Range<usize>) -> Option<&'b TileBits> {
        match self {
            Visible::All => None,
            Visible::Interval => Some(bits),
            Visible::Bits => (count_in(bits, run) < run.len()).then_some(bits),
        }
    }
}

/// How many bits of a range are set.
#[inline(always)]
pub(crate) fn count_in(bits: &TileBits, range: &Range<usize>) -> usize {
    let mut inside = TileBits::default();
    set_range(&mut inside, range.clone());
    inside.iter().zip(bits).map(|(inside, bits)| (inside & bits).count_ones() as usize).sum()
}

/// Turns dot products into logits; leaves in `bits` which columns the row may attend, if not all. Where the mask takes bits,
/// they are there already.
#[inline(always)]
pub(crate) fn shape_row<I: Isa, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    row: &BlockRow,
    tile: &Range<usize>,
    columns: Columns,
    scores: &mut [f32],
    bits: &mut TileBits,
) -> Visible {
    for run in columns.runs() {
        call.rules.cap(isa, scores, run.clone());
        call.rules.add_alibi(isa, row.mask, tile.start, scores, run);
    }
    let (has_bits, has_bias) = (call.mask.has_bits(), call.rules.has_bias());
    if !has_bits {
        let own = columns_of(&row.keys, tile);
        if !has_bias && mutant!("ragged-edge-attended", columns.are_all_of(&own), true) {
            return Visible::All;
        }
        *bits = TileBits::default();
        set_range(bits, own);
        if !has_bias {
            return Visible::Interval;
        }
    }
    for run in columns.runs() {
        call.rules.add_bias(isa, row.mask, tile.start, scores, run, bits);
    }
    Visible::Bits
}
