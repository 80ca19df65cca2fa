//! A figure as lines of text.

use super::colour::{self, Rgb};
use super::figure::{Cell, Figure, Panel};
use super::label;
use crate::error::AttentionError;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What a terminal can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TerminalColors {
    /// 24-bit colours and Unicode half blocks: most terminals of today.
    #[default]
    True,
    /// The 256 colours of xterm, and half blocks.
    Indexed,
    /// Nothing but ASCII: `.:-=+*#%@` from 0 up, `?` for NaN, a blank for masked; other characters of labels become
    /// `?`. For files, and terminals that are none.
    Ascii,
}

/// From 0 to the end of the scale.
const RAMP: [char; 9] = ['.', ':', '-', '=', '+', '*', '#', '%', '@'];
/// Between panels.
const GAP: usize = 2;
const LEAST_WIDTH: usize = 40;
/// A panel of a grid is no wider than this if that makes room for more beside it.
const PANEL: usize = 24;
/// Lines of words that are written downwards.
const LABEL_LINES: usize = 10;

/// Something of a given width to write on.
#[derive(Clone, Copy)]
pub(super) struct Sheet {
    width: usize,
    colors: TerminalColors,
}

/// Text and how many columns it takes, which the escapes in it do not tell.
struct Line {
    text: String,
    columns: usize,
}

/// How the panels of a figure fit.
struct Layout {
    /// Columns of the row labels with the blank after them; 0 in a grid, which has none.
    label: usize,
    /// Panels beside one another.
    across: usize,
    /// Columns of each.
    room: usize,
}

impl Sheet {
    /// # Errors
    /// `width` is less than 40 columns.
    pub(super) fn new(width: usize, colors: TerminalColors) -> Result<Self, AttentionError> {
        if width < LEAST_WIDTH {
            let (expected, got) = ("at least 40 columns", width.to_string());
            return Err(AttentionError::Value { operand: "width", expected, got });
        }
        Ok(Self { width, colors })
    }

    fn layout(self, panels: usize, columns: usize, row_label: usize) -> Layout {
        if panels == 1 {
            let label = row_label.min(label::LONGEST).min(self.width / 3) + 1;
            return Layout { label, across: 1, room: self.width - label };
        }
        let wish = columns.clamp("head 00".len(), PANEL);
        let across = ((self.width + GAP) / (wish + GAP)).clamp(1, panels);
        Layout { label: 0, across, room: (self.width + GAP) / across - GAP }
    }

    /// The most cells that a row may have, if it is to have `columns`.
    pub(super) fn most_cells(self, panels: usize, columns: usize, row_label: usize) -> usize {
        self.layout(panels, columns, row_label).room
    }

    /// All of it. A row has at most [`most_cells`](Sheet::most_cells).
    pub(super) fn draw(self, figure: &Figure) -> String {
        let columns = figure.size()[1];
        let layout = self.layout(figure.panels.len(), columns, label::widest(&figure.rows.labels));
        let mut lines: Vec<Line> =
            label::wrap(&figure.title, self.width).iter().map(|l| self.plain(l)).collect();
        for panels in figure.panels.chunks(layout.across) {
            let panels: Vec<_> = panels.iter().map(|panel| self.panel(figure, &layout, panel)).collect();
            lines.extend(beside(panels, layout.room));
        }
        lines.extend(self.legend(figure));
        lines.into_iter().map(|line| line.text + "\n").collect()
    }

    /// Text as this sheet can show it.
    fn plain(self, text: &str) -> Line {
        let mut text = text.to_owned();
        if self.colors == TerminalColors::Ascii {
            // No character gets wider than it was: those without a width go.
            let ascii = |c: char| match c {
                '…' => Some('~'),
                c if c.is_ascii() => Some(c),
                c => (c.width() > Some(0)).then_some('?'),
            };
            text = text.chars().filter_map(ascii).collect();
        }
        Line { columns: text.width(), text }
    }

    /// One matrix with its heading and labels.
    fn panel(self, figure: &Figure, layout: &Layout, panel: &Panel) -> Vec<Line> {
        let [rows, columns] = figure.size();
        let numbers: Vec<_> = match figure.numbers {
            true => panel.cells.iter().map(|&cell| self.number(cell)).collect(),
            false => Vec::new(),
        };
        let wide = label::widest(&numbers) + 2;
        let grid = figure.panels.len() > 1;
        let ascii = self.colors == TerminalColors::Ascii;
        let (cell, numbers) = match layout.room / columns {
            room if figure.numbers && room >= wide => (wide, numbers),
            // Two columns are as wide as a line is high.
            room if room >= 2 && (ascii || !grid) => (2, Vec::new()),
            _ => (1, Vec::new()),
        };
        let rows_per_line = if cell == 1 && !ascii { 2 } else { 1 };

        let mut lines = Vec::new();
        if grid {
            lines.push(self.plain(&label::cut(&panel.title, layout.room)));
        }
        for row in (0..rows).step_by(rows_per_line) {
            let mut line = Brush::new(self.colors);
            if layout.label > 0 {
                let label = self.plain(&label::cut(&figure.rows.labels[row], layout.label - 1));
                line.blank((layout.label - 1).saturating_sub(label.columns));
                line.text(&label.text, label.columns);
                line.blank(1);
            }
            for column in 0..columns {
                let index = row * columns + column;
                let upper = panel.cells[index];
                if rows_per_line == 2 {
                    let lower = panel.cells.get(index + columns);
                    line.halves(upper, lower.copied(), figure.upper);
                } else {
                    line.cell(upper, figure.upper, numbers.get(index).map_or("", String::as_str), cell);
                }
            }
            lines.push(line.finish());
        }
        if !grid {
            lines.extend(self.column_labels(figure, layout.label, cell));
        }
        lines
    }

    fn number(self, cell: Cell) -> String {
        match cell {
            Cell::Value(value) => label::in_cell(value),
            Cell::Nan => "NaN".into(),
            Cell::Masked => String::new(),
        }
    }

    /// Numbers beside one another, words downwards.
    fn column_labels(self, figure: &Figure, left: usize, cell: usize) -> Vec<Line> {
        let axis = &figure.columns;
        let room = self.width - left;
        if !axis.words {
            let step = label::step(label::widest(&axis.labels) + 1, cell, false);
            let mut text = " ".repeat(left);
            for (index, label) in axis.labels.iter().enumerate().step_by(step) {
                let width = label.width();
                // In the middle of wide cells, at the start of narrow ones.
                let at = index * cell + cell.saturating_sub(width) / 2;
                if at + width <= room {
                    text.push_str(&" ".repeat(left + at - text.len()));
                    text.push_str(label);
                }
            }
            return vec![self.plain(&text)];
        }
        let step = label::step(2, cell, true);
        let labels: Vec<Vec<char>> = axis
            .labels
            .iter()
            .step_by(step)
            .map(|label| {
                let label = self.plain(&label::cut(label, LABEL_LINES)).text;
                label.chars().filter(|c| c.width() > Some(0)).collect()
            })
            .collect();
        let longest = labels.iter().map(Vec::len).max().unwrap_or(0);
        let pitch = step * cell;
        let line = |index: usize| {
            let mut text = " ".repeat(left);
            for (place, label) in labels.iter().enumerate() {
                let c = label.get(index).copied().unwrap_or(' ');
                // The last column of the sheet may be too narrow for a wide character.
                let width = c.width().unwrap_or(0);
                if place * pitch + width <= room {
                    text.push(c);
                    text.push_str(&" ".repeat((pitch.min(room - place * pitch)).saturating_sub(width)));
                }
            }
            Line { columns: text.width(), text: text.trim_end().to_owned() }
        };
        (0..longest).map(line).collect()
    }

    /// The scale, the axes, the colours outside the scale, the notes.
    fn legend(self, figure: &Figure) -> Vec<Line> {
        let mut scale = Brush::new(self.colors);
        scale.text("0 ", 2);
        let steps = RAMP.len();
        for step in 0..steps {
            scale.cell(Cell::Value(step as f32 / (steps - 1) as f32), 1.0, "", 1);
        }
        let end = format!(" {} {}", label::number(figure.upper), figure.quantity);
        scale.text(&end, end.len());
        let mut lines = vec![scale.finish()];

        let mut axes = Brush::new(self.colors);
        let text = format!("{} down, {} right", figure.rows.title, figure.columns.title);
        axes.text(&text, text.len());
        lines.push(axes.finish());
        for (cell, name, ascii) in [(Cell::Masked, "masked", "blank"), (Cell::Nan, "NaN", "?")] {
            if !figure.has(cell) {
                continue;
            }
            let mut line = Brush::new(self.colors);
            if self.colors == TerminalColors::Ascii {
                line.text(ascii, ascii.len());
            } else {
                line.cell(cell, 1.0, "", 2);
            }
            let text = format!(" {name}");
            line.text(&text, text.len());
            lines.push(line.finish());
        }
        let notes = figure.notes.iter().flat_map(|note| label::wrap(note, self.width));
        lines.extend(notes.map(|note| self.plain(&note)));
        lines
    }
}

/// Panels side by side, each padded to `room` columns and the gap, with an empty line after them.
fn beside(panels: Vec<Vec<Line>>, room: usize) -> Vec<Line> {
    if panels.len() == 1 {
        return panels.into_iter().flatten().collect();
    }
    let height = panels.iter().map(Vec::len).max().unwrap_or(0);
    let line = |index: usize| {
        let mut joined = Line { text: String::new(), columns: 0 };
        for (place, line) in panels.iter().enumerate().filter_map(|(at, panel)| Some((at, panel.get(index)?)))
        {
            let start = place * (room + GAP);
            joined.text.push_str(&" ".repeat(start.saturating_sub(joined.columns)));
            joined.text.push_str(&line.text);
            joined.columns = start + line.columns;
        }
        joined
    };
    (0..height).map(line).chain([Line { text: String::new(), columns: 0 }]).collect()
}

/// Writes one line and switches colours where they change.
struct Brush {
    colors: TerminalColors,
    line: Line,
    ink: Option<Rgb>,
    ground: Option<Rgb>,
}

impl Brush {
    fn new(colors: TerminalColors) -> Self {
        Self { colors, line: Line { text: String::new(), columns: 0 }, ink: None, ground: None }
    }

    fn blank(&mut self, columns: usize) {
        self.text(&" ".repeat(columns), columns);
    }

    /// In the terminal's own colours.
    fn text(&mut self, text: &str, columns: usize) {
        self.switch(None, None);
        self.line.text.push_str(text);
        self.line.columns += columns;
    }

    /// One cell that fills the line's height.
    fn cell(&mut self, cell: Cell, upper: f32, number: &str, columns: usize) {
        self.line.columns += columns;
        if self.colors == TerminalColors::Ascii {
            if number.is_empty() {
                self.line.text.extend(std::iter::repeat_n(ascii(cell, upper), columns));
            } else {
                self.line.text.push_str(&format!("{number:^columns$}"));
            }
            return;
        }
        let ground = colour::of_cell(cell, upper);
        let ink = (!number.is_empty()).then(|| colour::ink_on(ground));
        self.switch(ink.or(self.ink), Some(ground));
        self.line.text.push_str(&format!("{number:^columns$}"));
    }

    /// Two cells, one above the other, in one character.
    fn halves(&mut self, upper: Cell, lower: Option<Cell>, end: f32) {
        self.switch(Some(colour::of_cell(upper, end)), lower.map(|lower| colour::of_cell(lower, end)));
        self.line.text.push('▀');
        self.line.columns += 1;
    }

    fn switch(&mut self, ink: Option<Rgb>, ground: Option<Rgb>) {
        for (now, wanted, code) in [(&mut self.ink, ink, 38), (&mut self.ground, ground, 48)] {
            if *now == wanted {
                continue;
            }
            *now = wanted;
            let text = &mut self.line.text;
            match (wanted, self.colors) {
                (_, TerminalColors::Ascii) => {}
                (None, _) => text.push_str(&format!("\x1b[{}m", code + 1)),
                (Some([r, g, b]), TerminalColors::True) => {
                    text.push_str(&format!("\x1b[{code};2;{r};{g};{b}m"));
                }
                (Some(colour), TerminalColors::Indexed) => {
                    text.push_str(&format!("\x1b[{code};5;{}m", indexed(colour)));
                }
            }
        }
    }

    fn finish(mut self) -> Line {
        self.switch(None, None);
        self.line
    }
}

fn ascii(cell: Cell, upper: f32) -> char {
    match cell {
        Cell::Value(value) => {
            let step = (value / upper).min(1.0) * (RAMP.len() - 1) as f32;
            RAMP[step.round() as usize]
        }
        Cell::Nan => '?',
        Cell::Masked => ' ',
    }
}

/// The nearest colour of xterm's cube of 6 x 6 x 6, or of its 24 greys if that is nearer.
fn indexed(colour: Rgb) -> usize {
    const SIDE: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let nearest = |part: u8| (0..6).min_by_key(|&i| SIDE[i].abs_diff(part)).unwrap_or(0);
    let distance =
        |other: Rgb| -> u32 { colour.iter().zip(other).map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum() };
    let cube = colour.map(nearest);
    let mean = colour.iter().map(|&part| usize::from(part)).sum::<usize>() / 3;
    let grey = (mean.saturating_sub(3) / 10).min(23);
    if distance([8 + 10 * grey as u8; 3]) < distance(cube.map(|i| SIDE[i])) {
        232 + grey
    } else {
        16 + 36 * cube[0] + 6 * cube[1] + cube[2]
    }
}

#[cfg(test)]
mod tests {
    use super::colour::{MASKED, NAN};
    use super::*;

    #[test]
    fn the_nearest_of_256_colours() {
        assert_eq!(indexed([0, 0, 0]), 16);
        assert_eq!(indexed([255, 255, 255]), 231);
        assert_eq!(indexed([95, 135, 175]), 67);
        assert_eq!(indexed(MASKED), 253);
        assert_eq!(indexed(NAN), 16 + 36 * 4 + 1);
    }
}
