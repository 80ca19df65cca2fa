//! A picture read back from its SVG.

use lucid_attention::viz::Picture;
use roxmltree::{Document, Node};
use std::collections::{BTreeMap, BTreeSet};
use unicode_width::UnicodeWidthStr;

/// A square of a heat map.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Square {
    pub(crate) x: usize,
    pub(crate) y: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) colour: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Words {
    pub(crate) text: String,
    /// Left, top, right, bottom; of the letters, without the space between lines.
    pub(crate) bounds: [f64; 4],
}

#[derive(Debug)]
pub(crate) struct Panel {
    /// `[rows][columns]`.
    pub(crate) squares: Vec<Vec<Square>>,
    pub(crate) words: Vec<Words>,
}

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) size: [usize; 2],
    pub(crate) panels: Vec<Panel>,
    /// All of the page, panels included.
    pub(crate) words: Vec<Words>,
    /// Colours outside the scale, by their names in the legend.
    pub(crate) legend: BTreeMap<String, String>,
}

fn number<T: std::str::FromStr>(node: Node<'_, '_>, name: &str) -> T {
    let text = node.attribute(name).unwrap_or_else(|| panic!("{node:?} has no {name}"));
    text.parse().unwrap_or_else(|_| panic!("{name} = {text}"))
}

fn is(node: Node<'_, '_>, name: &str, class: &str) -> bool {
    node.has_tag_name(name) && (class.is_empty() || node.attribute("class") == Some(class))
}

impl Page {
    pub(crate) fn read(picture: &Picture) -> Self {
        let document = Document::parse(picture.svg()).expect("well-formed XML");
        let root = document.root_element();
        assert_eq!(root.tag_name().namespace(), Some("http://www.w3.org/2000/svg"));
        let nodes = || root.descendants();
        let panels = nodes().filter(|node| is(*node, "g", "panel")).map(panel).collect();
        let words = nodes().filter(|node| is(*node, "text", "")).map(words).collect();
        let legend = nodes()
            .filter(|node| is(*node, "g", "notes"))
            .flat_map(|notes| notes.children().filter(|node| is(*node, "rect", "")).collect::<Vec<_>>())
            .map(|rect| {
                let name = rect.next_sibling_element().and_then(|name| name.text()).expect("a name");
                (name.trim().to_owned(), rect.attribute("fill").expect("a colour").to_owned())
            })
            .collect();
        Self { size: [number(root, "width"), number(root, "height")], panels, words, legend }
    }

    pub(crate) fn texts(&self) -> Vec<&str> {
        self.words.iter().map(|words| words.text.as_str()).collect()
    }

    /// Asserts that no text lies on another, on cells, or outside the page. Texts in cells stay inside theirs.
    pub(crate) fn assert_readable(&self) {
        let [width, height] = self.size.map(|side| side as f64);
        for (index, words) in self.words.iter().enumerate() {
            let [left, top, right, bottom] = words.bounds;
            let inside = 4.0 <= left && right <= width - 4.0 && 4.0 <= top && bottom <= height - 4.0;
            assert!(inside, "{words:?} leaves the page of {width} x {height}");
            for other in &self.words[..index] {
                assert!(!overlap(words.bounds, other.bounds), "{words:?} lies on {other:?}");
            }
            for square in self.panels.iter().flat_map(|panel| panel.squares.iter().flatten()) {
                let Square { x, y, width, height, .. } = *square;
                let bounds = [x, y, x + width, y + height].map(|side| side as f64);
                let within =
                    bounds[0] <= left && right <= bounds[2] && bounds[1] <= top && bottom <= bounds[3];
                assert!(within || !overlap(words.bounds, bounds), "{words:?} lies on {square:?}");
            }
        }
    }
}

fn overlap(a: [f64; 4], b: [f64; 4]) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

fn panel(group: Node<'_, '_>) -> Panel {
    let mut squares = BTreeMap::new();
    let cells = group.children().find(|node| is(*node, "g", "cells")).expect("cells");
    for path in cells.children().filter(|node| is(*node, "path", "")) {
        let (colour, data) = (path.attribute("fill").expect("a fill"), path.attribute("d").expect("data"));
        for part in data.split('M').skip(1) {
            let numbers: Vec<usize> =
                part.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
            let [x, y, width, height, back] = numbers[..] else { panic!("M{part} is no rectangle") };
            assert_eq!(format!("{x} {y}h{width}v{height}h-{back}z"), part);
            assert_eq!(width, back);
            let square = Square { x, y, width, height, colour: colour.to_owned() };
            assert_eq!(squares.insert((y, x), square), None, "two squares at {x}, {y}");
        }
    }
    let xs: BTreeSet<_> = squares.keys().map(|&(_, x)| x).collect();
    let ys: BTreeSet<_> = squares.keys().map(|&(y, _)| y).collect();
    let row = |y| xs.iter().map(|&x| squares[&(y, x)].clone()).collect::<Vec<_>>();
    let rows: Vec<Vec<Square>> = ys.iter().map(|&y| row(y)).collect();
    for square in rows.iter().flatten() {
        let Square { x, y, width, height, .. } = square;
        assert!(xs.iter().all(|other| other <= x || *other >= x + width), "squares overlap");
        assert!(ys.iter().all(|other| other <= y || *other >= y + height), "squares overlap");
    }
    let words = group.descendants().filter(|node| is(*node, "text", "")).map(words).collect();
    Panel { squares: rows, words }
}

/// The text and what it covers in a monospaced font: 0.602 of its size a column, 0.73 high, 0.23 below the line.
fn words(node: Node<'_, '_>) -> Words {
    // SVG drops space at both ends.
    let text = node.text().unwrap_or("").trim().to_owned();
    let [x, y, size]: [f64; 3] = ["x", "y", "font-size"].map(|name| number(node, name));
    let length = text.width() as f64 * size * 0.602;
    let start = match node.attribute("text-anchor") {
        Some("end") => -length,
        Some("middle") => -length / 2.0,
        _ => 0.0,
    };
    let flat = [x + start, y - 0.73 * size, x + start + length, y + 0.23 * size];
    let bounds = match node.attribute("transform") {
        None => flat,
        Some(turn) => {
            let inner = turn.strip_prefix("rotate(-90 ").and_then(|turn| turn.strip_suffix(')')).expect(turn);
            let (cx, cy) = inner.split_once(' ').expect(turn);
            let [cx, cy]: [f64; 2] = [cx, cy].map(|n| n.parse().expect("a number"));
            let [left, top, right, bottom] = flat;
            // A quarter turn against the clock: right becomes up.
            [cx + (top - cy), cy - (right - cx), cx + (bottom - cy), cy - (left - cx)]
        }
    };
    Words { text, bounds }
}
