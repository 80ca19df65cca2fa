//! The entropy of every head, layer by layer.

use super::figure::{Axis, Figure, Panel, cell, upper_end};
use super::label;
use super::picture::Picture;
use super::terminal::{Sheet, TerminalColors};
use crate::error::AttentionError;

const OPERAND: &str = "entropy";

/// Attention entropy as colours with the numbers in them: layers down, heads to the right.
///
/// Entropy is `-sum_j p_j ln p_j` of a row's probabilities in nats, usually as the mean over rows: 0 where every query
/// looks at a single key, `ln(keys)` where it looks at all alike.
///
/// ```
/// use lucid_attention::viz::{EntropyMap, TerminalColors};
///
/// let map = EntropyMap::new(&[0.5, 1.0, 2.0, 0.1, 0.2, 2.5], [2, 3]).title("two layers of three heads");
/// assert!(map.draw()?.svg().contains("2.50"));
/// assert!(map.terminal(80, TerminalColors::Ascii)?.contains("2.50"));
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct EntropyMap<'a> {
    entropy: &'a [f32],
    shape: [usize; 2],
    title: String,
    upper: Option<f32>,
}

impl<'a> EntropyMap<'a> {
    /// Entropies `[layers, heads]`, contiguous, in nats: finite and at least 0, or NaN.
    pub fn new(entropy: &'a [f32], shape: [usize; 2]) -> Self {
        Self { entropy, shape, title: String::new(), upper: None }
    }

    /// The heading; none if not given.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// Where the colours end, `ln(keys)` for example; the largest entropy if not given.
    pub fn upper(mut self, upper: f32) -> Self {
        self.upper = Some(upper);
        self
    }

    /// The picture, for SVG and PNG.
    ///
    /// # Errors
    /// No layer or head, or more than 256; the slice does not have the shape's size; an entropy is negative or
    /// infinite, or all are NaN; `upper` is no positive number.
    pub fn draw(&self) -> Result<Picture, AttentionError> {
        Ok(Picture::of(&self.figure()?))
    }

    /// A view of it for the terminal, at most `width` columns wide (at least 40): see [`TerminalColors`]. The numbers
    /// are left out where there is no room for them.
    ///
    /// # Errors
    /// As [`draw`](EntropyMap::draw), or `width` is too small for all heads.
    pub fn terminal(&self, width: usize, colors: TerminalColors) -> Result<String, AttentionError> {
        let sheet = Sheet::new(width, colors)?;
        let figure = self.figure()?;
        let [_, heads] = figure.size();
        let limit = sheet.most_cells(1, heads, label::widest(&figure.rows.labels));
        if heads > limit {
            let (expected, got) = ("a column for each head", format!("{width} columns, {heads} heads"));
            return Err(AttentionError::Value { operand: "width", expected, got });
        }
        Ok(sheet.draw(&figure))
    }

    fn figure(&self) -> Result<Figure, AttentionError> {
        let [layers, heads] = self.shape;
        for (axis, size) in [("layers", layers), ("heads", heads)] {
            if !(1..=256).contains(&size) {
                let (expected, got) = ("1 to 256 layers and heads", format!("{size} {axis}"));
                return Err(AttentionError::Value { operand: OPERAND, expected, got });
            }
        }
        if self.entropy.len() != layers * heads {
            let (expected, got) = (layers * heads, self.entropy.len());
            return Err(AttentionError::Shape { operand: OPERAND, axis: "layers * heads", expected, got });
        }
        let cells = self.entropy.iter().map(|&value| cell(OPERAND, value)).collect::<Result<_, _>>()?;
        let panels = vec![Panel { title: String::new(), cells }];
        let mut notes = Vec::new();
        let upper = upper_end(OPERAND, &panels, self.upper, &mut notes)?;
        let axis = |title, size| Axis {
            title,
            labels: (0..size).map(|index: usize| index.to_string()).collect(),
            words: false,
        };
        Ok(Figure {
            title: self.title.clone(),
            panels,
            rows: axis("layer", layers),
            columns: axis("head", heads),
            quantity: "entropy (nats)",
            upper,
            numbers: true,
            notes,
        })
    }
}
