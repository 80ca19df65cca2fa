//! What one task of a [`Linear`](super::Linear) computes: some rows, or some columns of a few rows.

use super::super::activation::{Activation, with_activation};
use super::SECTION;
use crate::element::Element;
use crate::isa::{Isa, Kernel};
use crate::kernel::prefetch::{Asks, Elsewhere, Near, Piece, Share, with_asks};
use crate::kernel::product::Fma;
use crate::kernel::score::{Panels, ScoreRows, score_panels};
use crate::kernel::{Constant, MAX_ROWS, rows_const, store_padded};
use crate::math::Function;
use crate::panels::PANEL;
use crate::tile::COLUMN_PARTS_ROWS;
use std::ops::Range;

/// What one task computes.
pub(super) struct Part<'a, 'o> {
    /// The first row, of `x` and of the output.
    pub(super) first_row: usize,
    pub(super) columns: Range<usize>,
    pub(super) out: PartRows<'a, 'o>,
}

/// Output rows of a part, its columns only.
pub(super) enum PartRows<'a, 'o> {
    /// One after another.
    Whole(&'o mut [f32]),
    /// Each by itself.
    Few(&'a mut FewRows<'o>),
}

/// Rows that do not lie side by side.
pub(super) struct FewRows<'o> {
    rows: [&'o mut [f32]; COLUMN_PARTS_ROWS],
    count: usize,
}

impl Part<'_, '_> {
    fn rows(&self) -> usize {
        match &self.out {
            PartRows::Whole(out) => out.len() / self.columns.len(),
            PartRows::Few(few) => few.count,
        }
    }

    /// Some columns of a row.
    #[inline(always)]
    fn row(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let columns = columns.start - self.columns.start..columns.end - self.columns.start;
        match &mut self.out {
            PartRows::Whole(out) => &mut out[row * self.columns.len()..][columns],
            PartRows::Few(few) => &mut few.rows[row][columns],
        }
    }
}

/// Cuts a few rows into columns.
pub(super) struct ColumnParts<'o> {
    rows: FewRows<'o>,
    columns: Range<usize>,
    /// Parts end at multiples of this.
    step: usize,
}

impl<'o> ColumnParts<'o> {
    pub(super) fn new(out: &'o mut [f32], count: usize, columns: Range<usize>, step: usize) -> Self {
        let mut rows = out.chunks_mut(columns.len());
        let rows = std::array::from_fn(|_| rows.next().unwrap_or_default());
        Self { rows: FewRows { rows, count }, columns, step }
    }
}

impl<'o> Iterator for ColumnParts<'o> {
    type Item = (Range<usize>, FewRows<'o>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.columns.is_empty() {
            return None;
        }
        let end = self.columns.end.min((self.columns.start / PANEL * PANEL).saturating_add(self.step));
        let columns = self.columns.start..end;
        let FewRows { rows: all, count } = &mut self.rows;
        let mut rows = std::array::from_fn(|_| Default::default());
        for (part, row) in rows.iter_mut().zip(&mut all[..*count]) {
            (*part, *row) = std::mem::take(row).split_at_mut(columns.len());
        }
        self.columns.start = end;
        Some((columns, FewRows { rows, count: *count }))
    }
}

/// `y = activation(x W^T + b)` of a part.
pub(super) struct LinearKernel<'a, 'o, T> {
    pub(super) weights: &'a [T],
    pub(super) from_memory: bool,
    pub(super) bias: &'a [f32],
    pub(super) inputs: usize,
    pub(super) activation: Activation,
    pub(super) x: &'a [f32],
    pub(super) part: Part<'a, 'o>,
}

impl<T: Element> Kernel for LinearKernel<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { weights, from_memory, bias, inputs, activation, x, mut part } = self;
        let rows = part.rows();
        let group = group_size(rows);
        // A single row's product may be short enough for the difference to be felt.
        let (mut one, mut several);
        let sums = if group == 1 {
            one = [0.0; PANEL];
            &mut one[..]
        } else {
            several = [0.0; MAX_ROWS * PANEL];
            &mut several[..]
        };
        let mut column = part.columns.start;
        while column < part.columns.end {
            let panel = column / PANEL;
            let columns = column..part.columns.end.min((panel + 1) * PANEL);
            let weights = &weights[panel * PANEL * inputs..];
            let first = column - panel * PANEL;
            let within = first..(first + columns.len()).next_multiple_of(SECTION);
            for start in (0..rows).step_by(group) {
                let count = group.min(rows - start);
                let share = Share { start, end: start + count, of: rows };
                let x = &x[(part.first_row + start) * inputs..];
                let out = ScoreRows { out: &mut *sums, stride: Constant::<PANEL>, scale: () };
                let within = within.clone();
                with_asks!(asks_for_weights(weights, inputs, share, from_memory), ahead => {
                    let weights = Panels { data: weights, ahead };
                    rows_const!(count, MR => score_panels::<I, Fma<T>, MR>(isa, x, inputs, weights, within, out))
                });
                for row in 0..count {
                    let sums = &sums[row * PANEL + first..(row + 1) * PANEL];
                    let out = part.row(start + row, columns.clone());
                    let bias = &bias[column..];
                    with_activation!(activation, F => finish::<I, F>(isa, sums, bias, out));
                }
            }
            column = columns.end;
        }
    }
}

/// Rows of a group, which are as equal as can be: two of 4 rows make more of a loaded weight than 6 and 2.
#[inline(always)]
fn group_size(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(MAX_ROWS))
}

/// The first rows, which ask for weights together: 128 and more lose 2 % at AVX2 if all do (layers 384 wide, example `bench_worker`).
const ASKING_ROWS: usize = 8 * MAX_ROWS;

/// What some rows, a share of all, ask for while they go through the first panel of `weights`: their share of the next one, which
/// comes from memory or L3 while several groups compute, not while the first does. 14 tokens through the 42 MB of MiniLM gain 1.11
/// (example `minilm --bench`, AVX2); of weights in a cache layers of 14 and 32 tokens, 384 wide, would lose a tenth without it (AVX2,
/// AVX-512). At AVX-512 two or three groups have no steps for all of it, a line each; 8 and 14 tokens, 2048 wide, are 1.1 times as fast
/// with what they have as with 4 lines. Rows that are all there are ask for lines a little ahead.
#[inline(always)]
fn asks_for_weights<T>(weights: &[T], inputs: usize, rows: Share, from_memory: bool) -> Asks {
    let size = PANEL * inputs;
    if rows.is_all() || 2 * size > weights.len() || rows.start >= ASKING_ROWS {
        return Asks::Near(Near::first(from_memory && rows.is_all()).only_if(rows.start == 0));
    }
    let rows = Share { end: rows.end.min(ASKING_ROWS), of: rows.of.min(ASKING_ROWS), ..rows };
    Asks::Elsewhere(Elsewhere { piece: Piece::new(weights, size, size).share(rows), columns: PANEL })
}

/// `out = F(sums + bias)`; `sums` and `bias` reach to the next multiple of 16.
#[inline(always)]
fn finish<I: Isa, F: Function>(isa: I, sums: &[f32], bias: &[f32], out: &mut [f32]) {
    let mut at = 0;
    while at < out.len() {
        let x = F::apply(isa, isa.add(isa.load(&sums[at..]), isa.load(&bias[at..])));
        store_padded(isa, x, out, at);
        at += I::LANES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first rows ask for all of the next panel, each group for its share; those after them for nothing. Rows that are all there
    /// are, and the first ones in the last panel, ask nearby.
    #[test]
    fn rows_share_the_next_panel() {
        let inputs = 10;
        let size = PANEL * inputs;
        let weights = vec![0.0f32; 2 * size];
        for rows in [8, 14, 48, 51, 300] {
            let mut next = 0;
            let group = group_size(rows);
            for start in (0..rows).step_by(group) {
                let share = Share { start, end: rows.min(start + group), of: rows };
                let what = format!("rows from {start} on of {rows}");
                let asking = Share { end: share.end.min(ASKING_ROWS), of: rows.min(ASKING_ROWS), ..share };
                match asks_for_weights(&weights, inputs, share, true) {
                    Asks::Elsewhere(Elsewhere { piece, columns }) => {
                        let expected = Piece::new(&weights, size, size).share(asking);
                        assert!(piece == expected && columns == PANEL && start == next, "{what}");
                        next = asking.end;
                    }
                    Asks::Near(near) => {
                        assert!(matches!(near, Near::Nothing) && start >= ASKING_ROWS, "{what}")
                    }
                }
                let last = asks_for_weights(&weights[size..], inputs, share, true);
                let nearby = matches!(last, Asks::Near(Near::ForSeveral));
                assert_eq!(nearby, start == 0, "{what}, the last panel");
            }
            assert_eq!(next, rows.min(ASKING_ROWS), "{rows} rows: their shares are all of it");
        }
        for (from_memory, expected) in [(true, Near::ForAny), (false, Near::ForSeveral)] {
            let all = Share { start: 0, end: 6, of: 6 };
            let asks = asks_for_weights(&weights, inputs, all, from_memory);
            assert!(
                matches!(asks, Asks::Near(near) if near == expected),
                "alone, from memory: {from_memory}"
            );
        }
    }
}
