//! Blocks of many numbers to one cell each.

use super::figure::Cell;

/// How a cell comes from the block of numbers that it stands for. Keys that the mask removes do not count, unless there
/// is nothing else; a NaN makes its cell NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The largest: no single peak is lost.
    #[default]
    Max,
    /// The arithmetic mean, summed in `f64`: how much there is on the whole.
    Mean,
}

impl Reduce {
    /// Its name in pictures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Reduce::Max => "largest",
            Reduce::Mean => "mean",
        }
    }
}

/// A cell in the making.
#[derive(Clone, Copy, Default)]
pub(super) struct Block {
    values: usize,
    largest: f32,
    sum: f64,
    nan: bool,
}

impl Block {
    /// Adds one number's cell to the block.
    pub(super) fn push(&mut self, cell: Cell) {
        match cell {
            Cell::Value(value) => {
                self.values += 1;
                self.largest = self.largest.max(value);
                self.sum += f64::from(value);
            }
            Cell::Nan => self.nan = true,
            Cell::Masked => {}
        }
    }

    pub(super) fn cell(self, reduce: Reduce) -> Cell {
        match (self, reduce) {
            (Block { nan: true, .. }, _) => Cell::Nan,
            (Block { values: 0, .. }, _) => Cell::Masked,
            (_, Reduce::Max) => Cell::Value(self.largest),
            (_, Reduce::Mean) => Cell::Value((self.sum / self.values as f64) as f32),
        }
    }
}
