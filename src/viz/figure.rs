//! What is drawn, before anybody knows how: matrices of cells with labels.

use super::label;
use crate::error::AttentionError;

/// One square of a heat map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell {
    /// From 0 up.
    Value(f32),
    Nan,
    /// All that it stands for is removed by the mask.
    Masked,
}

/// One axis of all panels: a label for each of its cells.
pub(super) struct Axis {
    pub(super) title: &'static str,
    pub(super) labels: Vec<String>,
    /// The labels are words, of which a reader wants every one, and not numbers, of which some will do.
    pub(super) words: bool,
}

/// One matrix.
pub(super) struct Panel {
    /// Shown where there are several.
    pub(super) title: String,
    /// `[rows, columns]`.
    pub(super) cells: Vec<Cell>,
}

/// Panels of one size with common axes and one scale of colours.
pub(super) struct Figure {
    pub(super) title: String,
    /// At least one.
    pub(super) panels: Vec<Panel>,
    pub(super) rows: Axis,
    pub(super) columns: Axis,
    /// What the numbers are, for the colour bar.
    pub(super) quantity: &'static str,
    /// Where the colours end; above 0.
    pub(super) upper: f32,
    /// Each cell shows its number.
    pub(super) numbers: bool,
    /// What a reader has to know to read it right.
    pub(super) notes: Vec<String>,
}

impl Figure {
    /// `[rows, columns]` of each panel.
    pub(super) fn size(&self) -> [usize; 2] {
        [self.rows.labels.len(), self.columns.labels.len()]
    }

    /// Whether some cell is like this one, which is no value.
    pub(super) fn has(&self, cell: Cell) -> bool {
        self.panels.iter().any(|panel| panel.cells.contains(&cell))
    }
}

/// The end of the scale: what was asked for, or the largest value; 1 if all values are 0.
///
/// # Errors
/// There is no value at all, or what was asked for is no end of a scale that starts at 0.
pub(super) fn upper_end(
    operand: &'static str,
    panels: &[Panel],
    asked: Option<f32>,
    notes: &mut Vec<String>,
) -> Result<f32, AttentionError> {
    let cells = panels.iter().flat_map(|panel| &panel.cells);
    let values = cells.filter_map(|cell| if let Cell::Value(value) = cell { Some(*value) } else { None });
    let Some(largest) = values.reduce(f32::max) else {
        let (expected, got) = ("a number in some cell that the mask leaves", "none".into());
        return Err(AttentionError::Value { operand, expected, got });
    };
    match asked {
        // Below the normal numbers value / upper loses its digits.
        Some(upper) if upper.is_normal() && upper > 0.0 => {
            if largest > upper {
                let [end, largest] = [upper, largest].map(label::number);
                notes.push(format!("colours end at {end}, the largest number is {largest}"));
            }
            Ok(upper)
        }
        Some(upper) => {
            let expected = "a positive, finite, normal number";
            Err(AttentionError::Value { operand: "upper", expected, got: upper.to_string() })
        }
        None if largest < f32::MIN_POSITIVE => Ok(1.0),
        None => Ok(largest),
    }
}

/// A number from 0 up or NaN as a cell.
pub(super) fn cell(operand: &'static str, value: f32) -> Result<Cell, AttentionError> {
    if value.is_nan() {
        return Ok(Cell::Nan);
    }
    if !(0.0..f32::INFINITY).contains(&value) {
        let expected = "finite numbers from 0 up, or NaN";
        return Err(AttentionError::Value { operand, expected, got: value.to_string() });
    }
    Ok(Cell::Value(value))
}
