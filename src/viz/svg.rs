//! A figure laid out as an SVG document; all sizes in pixels.
//!
//! ```text
//!              title
//!              head 0     head 1       probability
//!   q  The     ########   ########     |= 0.4
//!   u  cat     ########   ########     |= 0.2
//!   e  sat     ########   ########     |= 0.0
//!   r          T c s      T c s
//!   y                key
//!              notes, what NaN and masked look like
//! ```
//!
//! Cells are whole pixels and not smoothed, so that neighbours neither blend nor leave seams. Those of one colour are one
//! path, each a subpath of its own: a tenth of the bytes of single elements.

use super::colour::{self, MASKED, NAN};
use super::figure::{Cell, Figure, Panel};
use super::label;
use std::collections::BTreeMap;
use std::fmt::Write;
use svg::Document;
use svg::node::element::{Definitions, Group, LinearGradient, Path, Rectangle, Stop, Text, Title};
use unicode_width::UnicodeWidthStr;

/// Monospaced, so that the room a text needs does not depend on which of these the reader has.
const FONTS: &str = "Hack, 'DejaVu Sans Mono', Menlo, Consolas, 'Noto Emoji', monospace";
/// Advance of one column over the font's size: 0.602 in Hack and DejaVu, less in the others.
const ADVANCE: f64 = 0.605;

const MARGIN: usize = 16;
const GAP: usize = 20;
const BAR_WIDTH: usize = 14;
const BAR_HEIGHTS: [usize; 2] = [110, 260];
/// The least width, for the sake of titles.
const LEAST_WIDTH: usize = 360;
/// Between a map and its labels.
const PAD: usize = 6;

const TITLE: Style = Style { size: 15, line: 20, fill: "#111111" };
const HEADING: Style = Style { size: 12, line: 18, fill: "#333333" };
const LABEL: Style = Style { size: 12, line: 14, fill: "#111111" };
const NOTE: Style = Style { size: 11, line: 16, fill: "#555555" };

/// How a text looks.
#[derive(Clone, Copy)]
struct Style {
    size: usize,
    /// What it needs across its direction.
    line: usize,
    fill: &'static str,
}

impl Style {
    /// The length of this many columns.
    fn length(self, columns: usize) -> usize {
        (columns as f64 * self.size as f64 * ADVANCE).ceil() as usize
    }

    /// How many columns fit.
    fn columns(self, length: usize) -> usize {
        (length as f64 / (self.size as f64 * ADVANCE)) as usize
    }

    /// A text whose `anchor` ("start", "middle", "end") is at `x`, and whose middle height is at `y`.
    fn text(self, content: &str, x: usize, y: usize, anchor: &str) -> Text {
        // Half the height of a capital or digit below the middle.
        let baseline = y as f64 + self.size as f64 * 0.36;
        let text = Text::new(content).set("x", x).set("y", format!("{baseline:.2}")).set("fill", self.fill);
        text.set("font-size", self.size).set("text-anchor", anchor)
    }

    /// The same, read from below.
    fn upright(self, content: &str, x: usize, y: usize, anchor: &str) -> Text {
        self.text(content, x, y, anchor).set("transform", format!("rotate(-90 {x} {y})"))
    }
}

/// Where things are.
struct Layout {
    cell: [usize; 2],
    /// `[rows, columns]` of panels.
    grid: [usize; 2],
    /// The top left cell of the top left panel.
    origin: [usize; 2],
    /// From one panel to the next.
    pitch: [usize; 2],
    /// Every how many rows and columns a label has room.
    steps: [usize; 2],
    labels: [Vec<String>; 2],
    /// From the lowest cells to the notes.
    below: usize,
    title: Vec<String>,
    notes: Vec<String>,
    bar: [usize; 2],
    ticks: Vec<(f32, String)>,
    /// `[width, height]` of the picture.
    size: [usize; 2],
}

/// `[height, width]` of a cell, so that the longer side of a panel comes close to a comfortable size.
fn cell_size(figure: &Figure) -> [usize; 2] {
    let [target, most] = if figure.panels.len() == 1 { [720, 24] } else { [256, 16] };
    let size = figure.size();
    let longer = size[0].max(size[1]);
    let square = (target / longer).clamp(1, most);
    // A side with few cells may have longer ones: 16 rows of 8192 keys are no line.
    let [mut height, mut width] = size.map(|cells| square.max((target / cells).min(12)));
    if figure.numbers {
        let numbers = figure.panels.iter().flat_map(|panel| &panel.cells).map(|&cell| text_of(cell).len());
        width = width.max(LABEL.length(numbers.max().unwrap_or(0)) + 2 * PAD);
        height = height.max(LABEL.line + 2 * PAD);
    }
    [height, width]
}

/// The number in a cell.
fn text_of(cell: Cell) -> String {
    match cell {
        Cell::Value(value) => label::in_cell(value),
        Cell::Nan => "NaN".into(),
        Cell::Masked => String::new(),
    }
}

/// `[rows, columns]`: as wide as high or somewhat wider, without holes if that can be.
fn grid_of(panels: usize) -> [usize; 2] {
    let root = (1..).find(|root| root * root >= panels).unwrap_or(1);
    let columns = (root..=2 * root).find(|&columns| panels.is_multiple_of(columns) && columns <= panels);
    let columns = columns.unwrap_or(root);
    [panels.div_ceil(columns), columns]
}

impl Layout {
    fn new(figure: &Figure) -> Self {
        let cell = cell_size(figure);
        let grid = grid_of(figure.panels.len());
        let axes = [&figure.rows, &figure.columns];
        let labels = axes
            .map(|axis| axis.labels.iter().map(|text| label::cut(text, label::LONGEST)).collect::<Vec<_>>());
        let lengths = [0, 1].map(|axis: usize| LABEL.length(label::widest(&labels[axis])));
        let words = figure.columns.words;
        let across = if words { LABEL.line } else { lengths[1] + 8 };
        let steps =
            [label::step(LABEL.line, cell[0], figure.rows.words), label::step(across, cell[1], words)];

        let mut panel = [0, 1].map(|axis: usize| figure.size()[axis] * cell[axis]);
        if figure.panels.len() > 1 {
            let headings = figure.panels.iter().map(|panel| heading(panel).width());
            panel[1] = panel[1].max(HEADING.length(headings.max().unwrap_or(0)));
        }
        let gaps = [HEADING.line + PAD, if words { GAP } else { GAP.max(lengths[1]) }];
        let pitch = [0, 1].map(|axis| panel[axis] + gaps[axis]);
        let maps = [0, 1].map(|axis: usize| grid[axis] * pitch[axis] - gaps[axis]);

        let ticks = label::ticks(figure.upper);
        let widest_tick = ticks.iter().map(|(_, text)| text.width()).max().unwrap_or(0);
        let bar_block =
            (BAR_WIDTH + PAD + LABEL.length(widest_tick)).max(HEADING.length(figure.quantity.width()));
        let left = HEADING.line + PAD + lengths[0] + PAD;
        let content = left + maps[1] + GAP + bar_block;
        let width = content.max(LEAST_WIDTH) + 2 * MARGIN;
        let title = label::wrap(&figure.title, TITLE.columns(width - 2 * MARGIN));
        let notes: Vec<_> = figure
            .notes
            .iter()
            .flat_map(|note| label::wrap(note, NOTE.columns(width - 2 * MARGIN)))
            .collect();

        let title_height = if title.is_empty() { 0 } else { title.len() * TITLE.line + PAD };
        let origin =
            [MARGIN + title_height + HEADING.line + PAD, MARGIN + (width - 2 * MARGIN - content) / 2 + left];
        let bar_height = maps[0].clamp(BAR_HEIGHTS[0], BAR_HEIGHTS[1]);
        let label_height = if words { lengths[1] } else { LABEL.line };
        let below = PAD + label_height + HEADING.line + PAD;
        let bottom = origin[0] + (maps[0] + below).max(bar_height + PAD);
        let legend = usize::from(figure.has(Cell::Nan) || figure.has(Cell::Masked));
        let height = bottom + (notes.len() + legend) * NOTE.line + MARGIN;
        Self {
            cell,
            grid,
            origin,
            pitch,
            steps,
            labels,
            below: bottom - origin[0],
            title,
            notes,
            bar: [bar_height, origin[1] + maps[1] + GAP],
            ticks,
            size: [width, height],
        }
    }

    /// The top left corner of a panel.
    fn corner(&self, index: usize) -> [usize; 2] {
        let place = [index / self.grid[1], index % self.grid[1]];
        [0, 1].map(|axis| self.origin[axis] + place[axis] * self.pitch[axis])
    }

    /// The middle of the cell `index` of an axis, counted from the panel's corner.
    fn middle(&self, axis: usize, index: usize) -> usize {
        index * self.cell[axis] + self.cell[axis] / 2
    }
}

fn heading(panel: &Panel) -> String {
    label::cut(&panel.title, label::LONGEST)
}

/// The document.
pub(super) fn document(figure: &Figure) -> String {
    let layout = Layout::new(figure);
    let [width, height] = layout.size;
    let mut document = Document::new()
        .set("width", width)
        .set("height", height)
        .set("viewBox", (0, 0, width, height))
        .set("font-family", FONTS)
        .add(Title::new(if figure.title.is_empty() {
            "attention".into()
        } else {
            label::clean(&figure.title)
        }))
        .add(gradient())
        .add(Rectangle::new().set("width", width).set("height", height).set("fill", "#ffffff"));
    for (index, line) in layout.title.iter().enumerate() {
        let y = MARGIN + index * TITLE.line + TITLE.line / 2;
        document = document.add(TITLE.text(line, width / 2, y, "middle"));
    }
    for (index, panel) in figure.panels.iter().enumerate() {
        document = document.add(panel_group(figure, &layout, index, panel));
    }
    document
        .add(axis_titles(figure, &layout))
        .add(colour_bar(figure, &layout))
        .add(remarks(figure, &layout))
        .to_string()
}

/// One matrix with its heading and those labels that no neighbour has for it.
fn panel_group(figure: &Figure, layout: &Layout, index: usize, panel: &Panel) -> Group {
    let [rows, columns] = figure.size();
    let [top, left] = layout.corner(index);
    let mut group = Group::new().set("class", "panel");
    if figure.panels.len() > 1 {
        let (heading, width, y) = (heading(panel), columns * layout.cell[1], top - HEADING.line / 2);
        group = group.add(if HEADING.length(heading.width()) <= width {
            HEADING.text(&heading, left + width / 2, y, "middle")
        } else {
            HEADING.text(&heading, left, y, "start")
        });
    }
    group = group.add(cells(figure, layout, [top, left], panel));
    if figure.numbers {
        for (index, &cell) in panel.cells.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            let (x, y) = (left + layout.middle(1, column), top + layout.middle(0, row));
            let ink = colour::hex(colour::ink_on(colour::of_cell(cell, figure.upper)));
            group = group.add(LABEL.text(&text_of(cell), x, y, "middle").set("fill", ink));
        }
    }
    if index.is_multiple_of(layout.grid[1]) {
        for row in (0..rows).step_by(layout.steps[0]) {
            let y = top + layout.middle(0, row);
            group = group.add(LABEL.text(&layout.labels[0][row], left - PAD, y, "end"));
        }
    }
    if index + layout.grid[1] >= figure.panels.len() {
        let y = top + rows * layout.cell[0] + PAD;
        for column in (0..columns).step_by(layout.steps[1]) {
            let (text, x) = (&layout.labels[1][column], left + layout.middle(1, column));
            group = group.add(if figure.columns.words {
                LABEL.upright(text, x, y, "end")
            } else {
                LABEL.text(text, x, y + LABEL.line / 2, "middle")
            });
        }
    }
    group
}

/// The squares: one path for each colour.
fn cells(figure: &Figure, layout: &Layout, [top, left]: [usize; 2], panel: &Panel) -> Group {
    let columns = figure.size()[1];
    let [height, width] = layout.cell;
    let mut paths = BTreeMap::<_, String>::new();
    for (index, &cell) in panel.cells.iter().enumerate() {
        let (x, y) = (left + index % columns * width, top + index / columns * height);
        let path = paths.entry(colour::of_cell(cell, figure.upper)).or_default();
        // To write to a string cannot fail.
        let _ = write!(path, "M{x} {y}h{width}v{height}h-{width}z");
    }
    let group = Group::new().set("class", "cells").set("shape-rendering", "crispEdges");
    paths.into_iter().fold(group, |group, (colour, path)| {
        group.add(Path::new().set("fill", colour::hex(colour)).set("d", path))
    })
}

/// What the rows and columns are.
fn axis_titles(figure: &Figure, layout: &Layout) -> Group {
    let maps = [0, 1].map(|axis: usize| {
        let last = layout.origin[axis] + (layout.grid[axis] - 1) * layout.pitch[axis];
        last + figure.size()[axis] * layout.cell[axis]
    });
    let middle = [0, 1].map(|axis: usize| (layout.origin[axis] + maps[axis]) / 2);
    let labels = LABEL.length(label::widest(&layout.labels[0])) + PAD;
    let x = layout.origin[1] - labels - PAD - HEADING.line / 2;
    let below =
        if figure.columns.words { LABEL.length(label::widest(&layout.labels[1])) } else { LABEL.line };
    let y = maps[0] + PAD + below + HEADING.line / 2;
    Group::new()
        .set("class", "axes")
        .add(HEADING.upright(figure.rows.title, x, middle[0], "middle"))
        .add(HEADING.text(figure.columns.title, middle[1], y, "middle"))
}

/// The colours of the scale from below, as a gradient: viridis bends so little that 33 stops are on it.
fn gradient() -> Definitions {
    let gradient =
        LinearGradient::new().set("id", "scale").set("x1", 0).set("x2", 0).set("y1", 1).set("y2", 0);
    Definitions::new().add((0..=32).fold(gradient, |gradient, stop| {
        let t = stop as f32 / 32.0;
        gradient.add(Stop::new().set("offset", t).set("stop-color", colour::hex(colour::scale(t))))
    }))
}

/// The bar, its ticks and what it counts.
fn colour_bar(figure: &Figure, layout: &Layout) -> Group {
    let [height, left] = layout.bar;
    let top = layout.origin[0];
    let bar = Rectangle::new().set("x", left).set("y", top).set("width", BAR_WIDTH).set("height", height);
    let mut group = Group::new()
        .set("class", "bar")
        // Clear of a tick at the very end.
        .add(HEADING.text(figure.quantity, left, top - HEADING.line / 2 - PAD, "start"))
        .add(bar.set("fill", "url(#scale)"));
    for (value, text) in &layout.ticks {
        let y = top + height - (height as f32 * (value / figure.upper)).round() as usize;
        let tick = format!("M{} {y}h4", left + BAR_WIDTH);
        group = group.add(Path::new().set("d", tick).set("stroke", LABEL.fill)).add(LABEL.text(
            text,
            left + BAR_WIDTH + PAD,
            y,
            "start",
        ));
    }
    group
}

/// Notes, and what the colours outside the scale mean.
fn remarks(figure: &Figure, layout: &Layout) -> Group {
    let mut group = Group::new().set("class", "notes");
    let mut y = layout.origin[0] + layout.below + NOTE.line / 2;
    for note in &layout.notes {
        group = group.add(NOTE.text(note, MARGIN, y, "start"));
        y += NOTE.line;
    }
    let mut x = MARGIN;
    for (cell, colour, name) in [(Cell::Masked, MASKED, "masked"), (Cell::Nan, NAN, "NaN")] {
        if !figure.has(cell) {
            continue;
        }
        let square = Rectangle::new().set("x", x).set("y", y - 5).set("width", 10).set("height", 10);
        group = group.add(square.set("fill", colour::hex(colour))).add(NOTE.text(name, x + 16, y, "start"));
        x += 16 + NOTE.length(name.len()) + GAP;
    }
    group
}
