//! Which columns of a tile are worked on.

use crate::mask::{TILE, TileBits};
use std::ops::Range;

/// Columns that are worked on together: the lanes of a row sum, and a multiple of every vector's width.
const WIDTH: usize = 16;

/// Columns of a tile, 16 at a time: bit `i` stands for columns `16 i..16 i + 16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns(u16);

const _: () = assert!(TILE / WIDTH == u16::BITS as usize, "a bit for each");

impl Columns {
    /// Those that hold the first `len`.
    #[inline(always)]
    pub(crate) fn up_to(len: usize) -> Self {
        Self(((1u32 << len.div_ceil(WIDTH)) - 1) as u16)
    }

    /// Those that hold a range, which is not empty.
    #[inline(always)]
    pub(crate) fn around(range: &Range<usize>) -> Self {
        Self(Self::up_to(range.end).0 & !Self::up_to(range.start / WIDTH * WIDTH).0)
    }

    /// Those that hold some set bit.
    #[inline(always)]
    pub(crate) fn of(bits: &TileBits) -> Self {
        let mut columns = 0;
        for (index, word) in bits.iter().enumerate() {
            for part in 0..64 / WIDTH {
                let some = word >> (part * WIDTH) & 0xffff != 0;
                columns |= u16::from(some) << (index * 64 / WIDTH + part);
            }
        }
        Self(columns)
    }

    /// Whether they are exactly the set bits.
    #[inline(always)]
    pub(crate) fn are(self, bits: &TileBits) -> bool {
        let count: u32 = bits.iter().map(|word| word.count_ones()).sum();
        count == self.0.count_ones() * WIDTH as u32 && self == Self::of(bits)
    }

    /// Whether they are exactly a range.
    #[inline(always)]
    pub(crate) fn are_all_of(self, range: &Range<usize>) -> bool {
        let whole = range.start.is_multiple_of(WIDTH) && range.end.is_multiple_of(WIDTH);
        whole && !range.is_empty() && self == Self::around(range)
    }

    /// From the first of them to the last.
    pub(crate) fn hull(self) -> Option<Range<usize>> {
        let (first, beyond) = (self.0.trailing_zeros(), u16::BITS - self.0.leading_zeros());
        (self.0 != 0).then(|| first as usize * WIDTH..beyond as usize * WIDTH)
    }

    /// Maximal runs of them, ascending.
    #[inline(always)]
    pub(crate) fn runs(self) -> ColumnRuns {
        ColumnRuns(u32::from(self.0))
    }

    /// The panels of 64 columns that hold some of them, ascending.
    pub(crate) fn panels(self) -> impl Iterator<Item = usize> {
        (0..TILE / 64).filter(move |panel| self.0 >> (panel * 64 / WIDTH) & 0xf != 0)
    }
}

/// See [`Columns::runs`].
pub(crate) struct ColumnRuns(u32);

impl Iterator for ColumnRuns {
    type Item = Range<usize>;

    #[inline(always)]
    fn next(&mut self) -> Option<Range<usize>> {
        if self.0 == 0 {
            return None;
        }
        let start = self.0.trailing_zeros();
        let end = start + (!(self.0 >> start)).trailing_zeros();
        self.0 &= u32::MAX << end;
        Some(start as usize * WIDTH..end as usize * WIDTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::set_range;

    /// Every set of columns is its runs, and its bits.
    #[test]
    fn runs_are_the_columns() {
        for columns in 0..=u16::MAX {
            let (mut bits, mut last) = (TileBits::default(), None);
            for run in Columns(columns).runs() {
                assert!(last < Some(run.start) && run.start < run.end, "{columns:b}: {run:?} after {last:?}");
                last = Some(run.end);
                set_range(&mut bits, run);
            }
            assert_eq!(Columns::of(&bits), Columns(columns), "{columns:b}: {bits:x?}");
            assert!(Columns(columns).are(&bits), "{columns:b}");
            let runs: Vec<_> = Columns(columns).runs().collect();
            let hull = runs.first().map(|first| first.start..runs[runs.len() - 1].end);
            assert_eq!(Columns(columns).hull(), hull, "{columns:b}: hull");
            let panels: Vec<usize> = Columns(columns).panels().collect();
            let expected: Vec<usize> = (0..4).filter(|&panel| bits[panel] != 0).collect();
            assert_eq!(panels, expected, "{columns:b}: panels");
        }
    }

    #[test]
    fn columns_around_ranges() {
        for start in 0..TILE {
            for end in start + 1..=TILE {
                let mut bits = TileBits::default();
                set_range(&mut bits, start..end);
                let columns = Columns::around(&(start..end));
                assert_eq!(columns, Columns::of(&bits), "{start}..{end}");
                assert_eq!(columns.are(&bits), start % 16 == 0 && end % 16 == 0, "{start}..{end}");
                assert_eq!(columns.are_all_of(&(start..end)), columns.are(&bits), "{start}..{end}");
                assert_eq!(columns.are_all_of(&(0..TILE)), start < 16 && end > 240, "{start}..{end}");
            }
            assert_eq!(Columns::up_to(start), Columns(((1u32 << start.div_ceil(16)) - 1) as u16));
        }
    }
}
