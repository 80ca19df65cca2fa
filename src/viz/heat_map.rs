//! The heat map of one head, or of many in a grid.

use super::figure::{Axis, Cell, Figure, Panel, cell, upper_end};
use super::label;
use super::picture::Picture;
use super::reduce::{Block, Reduce};
use super::terminal::{Sheet, TerminalColors};
use crate::error::AttentionError;
use crate::mask::{self, Mask};
use crate::view::View;

const OPERAND: &str = "probabilities";
/// The most cells along a side: keeps a picture a picture, and its size in memory some ten megabytes.
const MOST_CELLS: usize = 2048;

/// Probabilities as colours: queries down, keys to the right.
///
/// One head fills the picture; several become a grid of panels under one colour bar. Nothing is checked before
/// [`draw`](HeatMap::draw) or [`terminal`](HeatMap::terminal).
#[derive(Clone, Debug)]
pub struct HeatMap<'a> {
    probabilities: View<'a, f32>,
    batch: usize,
    heads: Option<&'a [usize]>,
    head: Option<usize>,
    rows: Option<&'a [usize]>,
    q_start: i64,
    mask: Mask<'a>,
    tokens: Option<Vec<String>>,
    query_tokens: Option<Vec<String>>,
    title: String,
    reduce: Reduce,
    max_cells: usize,
    upper: Option<f32>,
}

impl<'a> HeatMap<'a> {
    /// Probabilities `[batch, heads, rows, kv_len]`, any strides: what [`Scores`](crate::Scores) writes at
    /// [`ScoreStage::Softmax`](crate::ScoreStage::Softmax). They have to be finite and at least 0, or NaN.
    pub fn new(probabilities: View<'a, f32>) -> Self {
        Self {
            probabilities,
            batch: 0,
            heads: None,
            head: None,
            rows: None,
            q_start: 0,
            mask: Mask::NONE,
            tokens: None,
            query_tokens: None,
            title: String::new(),
            reduce: Reduce::Max,
            max_cells: 256,
            upper: None,
        }
    }

    /// The sequence of the batch to draw; 0 if not given.
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// The numbers of the heads that are there, as given to [`Scores::heads`](crate::Scores::heads); 0, 1, ... if not
    /// given.
    pub fn heads(mut self, heads: &'a [usize]) -> Self {
        self.heads = Some(heads);
        self
    }

    /// Draws the head of this number alone.
    pub fn head(mut self, head: usize) -> Self {
        self.head = Some(head);
        self
    }

    /// The numbers of the query rows that are there, as given to [`Scores::rows`](crate::Scores::rows); 0, 1, ... if
    /// not given.
    pub fn rows(mut self, rows: &'a [usize]) -> Self {
        self.rows = Some(rows);
        self
    }

    /// The position of query 0 among the keys; 0 if not given. Row `r` is labelled as position `q_start + r`.
    pub fn q_start(mut self, q_start: i64) -> Self {
        self.q_start = q_start;
        self
    }

    /// The mask of the call: what it removes gets a colour of its own. Without it, removed keys look like those of
    /// probability 0, which they have.
    pub fn mask(mut self, mask: Mask<'a>) -> Self {
        self.mask = mask;
        self
    }

    /// The tokens of the sequence, one per key; queries at the same positions have the same. They label the axes, which
    /// otherwise show positions, as they do where a cell stands for several.
    pub fn tokens<S: AsRef<str>>(mut self, tokens: &[S]) -> Self {
        self.tokens = Some(cleaned(tokens));
        self
    }

    /// The tokens of the queries, where they are not those of the keys (cross-attention): one per query row of the
    /// call, of which [`rows`](HeatMap::rows) picks.
    pub fn query_tokens<S: AsRef<str>>(mut self, tokens: &[S]) -> Self {
        self.query_tokens = Some(cleaned(tokens));
        self
    }

    /// The heading; none if not given.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// What a cell shows of the block it stands for; the largest probability if not given.
    pub fn reduce(mut self, reduce: Reduce) -> Self {
        self.reduce = reduce;
        self
    }

    /// The most cells along each side of a panel, from 1 to 2048; 256 if not given. With more rows or keys than that,
    /// each cell stands for an equal block of them (the last may be smaller).
    pub fn max_cells(mut self, cells: usize) -> Self {
        self.max_cells = cells;
        self
    }

    /// Where the colours end, so that pictures compare: a positive number; larger probabilities have its colour. The
    /// largest number shown if not given.
    pub fn upper(mut self, upper: f32) -> Self {
        self.upper = Some(upper);
        self
    }

    /// The picture, for SVG and PNG.
    ///
    /// # Errors
    /// - no head, row or key; a sequence or head that is not there;
    /// - the lists of heads, rows or tokens do not have the size of the probabilities, or a row has no token;
    /// - a probability is negative or infinite, or no cell has a number (NaN and masked only);
    /// - `max_cells` or `upper` out of range.
    pub fn draw(&self) -> Result<Picture, AttentionError> {
        Ok(Picture::of(&self.figure([usize::MAX; 2])?))
    }

    /// A view of it for the terminal, at most `width` columns wide (at least 40): see [`TerminalColors`]. Lines
    /// end with a line feed.
    ///
    /// # Errors
    /// As [`draw`](HeatMap::draw), or `width` is too small.
    pub fn terminal(&self, width: usize, colors: TerminalColors) -> Result<String, AttentionError> {
        self.check()?;
        let sheet = Sheet::new(width, colors)?;
        let kv_len = self.probabilities.shape()[3];
        let limit = sheet.most_cells(self.shown()?.len(), kv_len, self.widest_row_label());
        Ok(sheet.draw(&self.figure([limit; 2])?))
    }

    /// The cells, at most `limit` `[rows, columns]` of them in each panel.
    fn figure(&self, limit: [usize; 2]) -> Result<Figure, AttentionError> {
        self.check()?;
        let [_, _, rows, kv_len] = self.probabilities.shape();
        let block =
            [rows.div_ceil(limit[0].min(self.max_cells)), kv_len.div_ceil(limit[1].min(self.max_cells))];

        let panels = self.shown()?.into_iter().map(|(index, number)| {
            let cells = self.cells(index, number, block)?;
            Ok(Panel { title: format!("head {number}"), cells })
        });
        let panels = panels.collect::<Result<Vec<_>, AttentionError>>()?;

        let mut notes = Vec::new();
        if block != [1, 1] {
            let [rows, keys] = block;
            notes.push(format!("each cell: {} of {rows} x {keys} (queries x keys)", self.reduce.name()));
        }
        let upper = upper_end(OPERAND, &panels, self.upper, &mut notes)?;
        Ok(Figure {
            title: self.title.clone(),
            panels,
            rows: Axis {
                title: "query",
                labels: self.row_labels(block[0])?,
                words: block[0] == 1 && (self.query_tokens.is_some() || self.tokens.is_some()),
            },
            columns: Axis {
                title: "key",
                labels: self.key_labels(block[1]),
                words: block[1] == 1 && self.tokens.is_some(),
            },
            quantity: "probability",
            upper,
            numbers: false,
            notes,
        })
    }

    /// Sizes and options, but not the probabilities themselves.
    fn check(&self) -> Result<(), AttentionError> {
        let shape @ [batch, heads, rows, kv_len] = self.probabilities.shape();
        if shape.contains(&0) {
            let (expected, got) = ("at least one sequence, head, row and key", format!("shape {shape:?}"));
            return Err(AttentionError::Value { operand: OPERAND, expected, got });
        }
        if self.batch >= batch {
            let (limit, got) = (batch - 1, self.batch);
            return Err(AttentionError::TooLarge { operand: "batch", axis: "index", limit, got });
        }
        let lists = [
            ("heads", "heads", heads, self.heads.map(<[usize]>::len)),
            ("rows", "rows", rows, self.rows.map(<[usize]>::len)),
            ("tokens", "kv_len", kv_len, self.tokens.as_ref().map(Vec::len)),
        ];
        for (operand, axis, expected, got) in lists {
            if let Some(got) = got.filter(|&got| got != expected) {
                return Err(AttentionError::Shape { operand, axis, expected, got });
            }
        }
        if !(1..=MOST_CELLS).contains(&self.max_cells) {
            let (expected, got) = ("1 to 2048", self.max_cells.to_string());
            return Err(AttentionError::Value { operand: "max_cells", expected, got });
        }
        Ok(())
    }

    /// The heads to draw: index in the operand, number.
    fn shown(&self) -> Result<Vec<(usize, usize)>, AttentionError> {
        let heads = self.probabilities.shape()[1];
        let all = (0..heads).map(|index| (index, self.heads.map_or(index, |heads| heads[index])));
        let Some(head) = self.head else {
            return Ok(all.collect());
        };
        let found: Vec<_> = all.filter(|&(_, number)| number == head).take(1).collect();
        if found.is_empty() {
            let (expected, got) = ("one of the heads that are there", head.to_string());
            return Err(AttentionError::Value { operand: "head", expected, got });
        }
        Ok(found)
    }

    /// The number of the `row`-th row that is there.
    fn row_number(&self, row: usize) -> usize {
        self.rows.map_or(row, |rows| rows[row])
    }

    /// An upper limit of the columns that a row's label takes.
    fn widest_row_label(&self) -> usize {
        let last =
            self.rows.map_or(self.probabilities.shape()[2], |rows| rows.iter().copied().max().unwrap_or(0));
        let positions = [self.q_start, self.q_start.saturating_add_unsigned(last as u64)];
        let numbers = positions.map(|position| position.to_string());
        let tokens = self.query_tokens.as_ref().or(self.tokens.as_ref());
        label::widest(&numbers).max(tokens.map_or(0, |tokens| label::widest(tokens)))
    }

    /// One label for each block of rows: its first row's token or position.
    fn row_labels(&self, block: usize) -> Result<Vec<String>, AttentionError> {
        let label = |row| {
            let number = self.row_number(row);
            let position = self.q_start.saturating_add_unsigned(number as u64);
            let token = match (&self.query_tokens, &self.tokens) {
                _ if block > 1 => return Ok(position.to_string()),
                (Some(tokens), _) => tokens.get(number).ok_or(("query_tokens", tokens.len())),
                (None, Some(tokens)) => {
                    let token = usize::try_from(position).ok().and_then(|position| tokens.get(position));
                    token.ok_or(("tokens", tokens.len()))
                }
                (None, None) => return Ok(position.to_string()),
            };
            token.cloned().map_err(|(operand, tokens)| AttentionError::Value {
                operand,
                expected: "a token for every row",
                got: format!("{tokens} tokens and row {number} at position {position}"),
            })
        };
        (0..self.probabilities.shape()[2]).step_by(block).map(label).collect()
    }

    /// The same for keys.
    fn key_labels(&self, block: usize) -> Vec<String> {
        match &self.tokens {
            Some(tokens) if block == 1 => tokens.clone(),
            _ => (0..self.probabilities.shape()[3]).step_by(block).map(|key| key.to_string()).collect(),
        }
    }

    /// One head, block by block.
    fn cells(&self, index: usize, number: usize, block: [usize; 2]) -> Result<Vec<Cell>, AttentionError> {
        let [_, _, rows, kv_len] = self.probabilities.shape();
        let columns = kv_len.div_ceil(block[1]);
        let mut blocks = vec![Block::default(); rows.div_ceil(block[0]) * columns];
        for row in 0..rows {
            let query = self.row_number(row);
            let q_pos = self.q_start.saturating_add_unsigned(query as u64);
            for key in 0..kv_len {
                let asked = mask::Cell { sequence: self.batch, q_head: number, query, q_pos, k_pos: key };
                let value = match self.probabilities.get([self.batch, index, row, key]) {
                    Some(&value) if self.mask.allows(asked) => cell(OPERAND, value)?,
                    _ => Cell::Masked,
                };
                blocks[row / block[0] * columns + key / block[1]].push(value);
            }
        }
        Ok(blocks.into_iter().map(|block| block.cell(self.reduce)).collect())
    }
}

fn cleaned<S: AsRef<str>>(texts: &[S]) -> Vec<String> {
    texts.iter().map(|text| label::clean(text.as_ref())).collect()
}
