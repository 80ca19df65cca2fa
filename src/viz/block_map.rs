//! What a block layout lets queries attend.

use super::figure::{Axis, Cell, Figure, Panel};
use super::label;
use super::picture::Picture;
use super::terminal::{Sheet, TerminalColors};
use crate::error::AttentionError;
use crate::sparse::{BlockKind, BlockLayout};

/// The most cells along a side, of a picture.
const MOST_CELLS: usize = 256;

/// A block layout as colours: rows of blocks down, columns of blocks to the right. A cell shows the share of its pairs of query
/// and key that may be attended, 1 for a full block; blocks that are not stored have a colour of their own.
///
/// A picture has at most 256 cells along a side, a terminal what fits: with more blocks than that a cell stands for
/// several, and the picture says so.
///
/// ```
/// use lucid_attention::sparse::{BlockGrid, BlockLayout};
/// use lucid_attention::viz::{BlockMap, TerminalColors};
///
/// let layout = BlockLayout::sliding_window(BlockGrid::square(2048, 64), Some(256), Some(0))?;
/// let map = BlockMap::new(&layout).title("a window of 256");
/// assert!(map.draw()?.svg().contains("blocks of 64 x 64"));
/// println!("{}", map.terminal(80, TerminalColors::True)?);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct BlockMap<'a> {
    layout: &'a BlockLayout,
    title: String,
}

impl<'a> BlockMap<'a> {
    /// A picture of `layout`; that of a head of a mask is
    /// [`BlockMask::layout`](crate::sparse::BlockMask::layout).
    pub fn new(layout: &'a BlockLayout) -> Self {
        Self { layout, title: String::new() }
    }

    /// The heading; none if not given.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// The picture, for SVG and PNG.
    ///
    /// # Errors
    /// The layout has no row or no column of blocks.
    pub fn draw(&self) -> Result<Picture, AttentionError> {
        Ok(Picture::of(&self.figure([MOST_CELLS; 2])?))
    }

    /// A view of it for the terminal, at most `width` columns wide (at least 40): see [`TerminalColors`]. Lines end with
    /// a line feed.
    ///
    /// # Errors
    /// As [`draw`](BlockMap::draw), or `width` is too small.
    pub fn terminal(&self, width: usize, colors: TerminalColors) -> Result<String, AttentionError> {
        let sheet = Sheet::new(width, colors)?;
        let last = [self.layout.grid().q_len.to_string()];
        let limit = sheet.most_cells(1, self.layout.grid().columns(), label::widest(&last));
        Ok(sheet.draw(&self.figure([limit; 2])?))
    }

    /// At most `limit` `[rows, columns]` of cells.
    fn figure(&self, limit: [usize; 2]) -> Result<Figure, AttentionError> {
        let grid = self.layout.grid();
        let blocks = [grid.rows(), grid.columns()];
        if blocks.contains(&0) {
            let (expected, got) = ("at least one row and column of blocks", format!("{blocks:?} of them"));
            return Err(AttentionError::Value { operand: "layout", expected, got });
        }
        let each = [0, 1].map(|axis| blocks[axis].div_ceil(limit[axis].min(MOST_CELLS)));
        let cells = [0, 1].map(|axis| blocks[axis].div_ceil(each[axis]));
        let axis = |title, axis: usize, block: usize| Axis {
            title,
            labels: (0..cells[axis]).map(|cell| (cell * each[axis] * block).to_string()).collect(),
            words: false,
        };
        let mut notes = vec![format!("blocks of {} x {} (queries x keys)", grid.q_block, grid.kv_block)];
        if each != [1, 1] {
            notes.push(format!("each cell: {} x {} blocks", each[0], each[1]));
        }
        Ok(Figure {
            title: self.title.clone(),
            panels: vec![Panel { title: String::new(), cells: self.cells(each, cells) }],
            rows: axis("query", 0, grid.q_block),
            columns: axis("key", 1, grid.kv_block),
            quantity: "share of pairs attended",
            upper: 1.0,
            numbers: false,
            notes,
        })
    }

    /// `each` blocks together, `[rows, columns]` of cells.
    fn cells(&self, each: [usize; 2], [rows, columns]: [usize; 2]) -> Vec<Cell> {
        let grid = self.layout.grid();
        let queries =
            |row: usize, rows: usize| row * grid.q_block..grid.q_len.min((row + rows) * grid.q_block);
        let keys = |column: usize, columns: usize| {
            column * grid.kv_block..grid.kv_len.min((column + columns) * grid.kv_block)
        };
        let mut attended: Vec<Option<usize>> = vec![None; rows * columns];
        for (row, column, kind) in self.layout.iter() {
            let (queries, keys) = (queries(row, 1), keys(column, 1));
            let pairs = match kind {
                BlockKind::Full => queries.len() * keys.len(),
                BlockKind::Partial => {
                    let allowed = |query: usize| {
                        keys.clone().filter(|&key| self.layout.allows(query as i64, key)).count()
                    };
                    queries.map(allowed).sum()
                }
            };
            *attended[row / each[0] * columns + column / each[1]].get_or_insert(0) += pairs;
        }
        let cell = |(index, attended): (usize, Option<usize>)| {
            let (row, column) = (index / columns * each[0], index % columns * each[1]);
            let pairs = queries(row, each[0]).len() * keys(column, each[1]).len();
            attended.map_or(Cell::Masked, |attended| Cell::Value((attended as f64 / pairs as f64) as f32))
        };
        attended.into_iter().enumerate().map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sparse::BlockGrid;

    fn shares(layout: &BlockLayout, each: [usize; 2], cells: [usize; 2]) -> Vec<Option<f32>> {
        let cells = BlockMap::new(layout).cells(each, cells);
        let share = |cell: &Cell| if let Cell::Value(share) = cell { Some(*share) } else { None };
        cells.iter().map(share).collect()
    }

    #[test]
    fn a_cell_is_the_share_of_its_pairs() {
        // Causal blocks of 4 x 4 of 10 tokens: the last row and column have 2.
        let layout =
            BlockLayout::sliding_window(BlockGrid::square(10, 4), None, Some(0)).expect("a valid window");
        let (diagonal, corner) = (Some(10.0 / 16.0), Some(3.0 / 4.0));
        let expected = [diagonal, None, None, Some(1.0), diagonal, None, Some(1.0), Some(1.0), corner];
        assert_eq!(shares(&layout, [1, 1], [3, 3]), expected);
        // Two by two of them together.
        let expected = [Some(36.0 / 64.0), None, Some(1.0), corner];
        assert_eq!(shares(&layout, [2, 2], [2, 2]), expected);
    }

    #[test]
    fn half_of_a_checkerboard() {
        let layout =
            BlockLayout::from_blocks(BlockGrid::square(64, 8), |row, column| (row + column) % 2 == 0)
                .expect("a grid");
        assert_eq!(shares(&layout, [2, 2], [4, 4]), vec![Some(0.5); 16]);
        assert_eq!(shares(&layout, [1, 1], [8, 8])[..3], [Some(1.0), None, Some(1.0)]);
    }
}
