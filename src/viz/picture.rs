//! A finished picture: an SVG document, and the PNG drawn from it.

use super::figure::Figure;
use super::svg;
use crate::error::AttentionError;
use epaint_default_fonts::{HACK_REGULAR, NOTO_EMOJI_REGULAR};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::fontdb::Source;
use resvg::usvg::{Options, Tree};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Pixels per SVG unit in a saved PNG: sharp on dense screens, and small text stays readable.
const SAVED_SCALE: u32 = 2;

/// 400 MB while a PNG is made.
const MOST_PIXELS: u64 = 100_000_000;

/// A picture as an SVG document; as PNG on request.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    svg: String,
}

impl Picture {
    pub(super) fn of(figure: &Figure) -> Self {
        Self { svg: svg::document(figure) }
    }

    /// The SVG document. Its width and height are pixels; text is text, in the reader's monospaced font.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// The bytes of a PNG file with `scale` pixels for each of the SVG, from 1 to 8. Opaque, on white; needs no font
    /// on the machine.
    ///
    /// # Errors
    /// `scale` is out of range, the picture would have more than 100 million pixels, or memory cannot be had.
    pub fn png(&self, scale: u32) -> Result<Vec<u8>, AttentionError> {
        if !(1..=8).contains(&scale) {
            let (expected, got) = ("1 to 8", scale.to_string());
            return Err(AttentionError::Value { operand: "scale", expected, got });
        }
        let mut options = Options::default();
        for font in [HACK_REGULAR, NOTO_EMOJI_REGULAR] {
            options.fontdb_mut().load_font_source(Source::Binary(Arc::new(font)));
        }
        let drawn = |error: &dyn std::fmt::Display| AttentionError::Value {
            operand: "picture",
            expected: "an SVG that can be drawn",
            got: error.to_string(),
        };
        let tree = Tree::from_str(&self.svg, &options).map_err(|error| drawn(&error))?;
        let [width, height] =
            [tree.size().width(), tree.size().height()].map(|side| (side as u32).saturating_mul(scale));
        let pixels = u64::from(width) * u64::from(height);
        if pixels > MOST_PIXELS {
            let (limit, got) = (MOST_PIXELS as usize, pixels as usize);
            return Err(AttentionError::TooLarge { operand: "picture", axis: "pixels", limit, got });
        }
        let out_of_memory = AttentionError::OutOfMemory { what: "picture", bytes: pixels as usize * 4 };
        let mut pixels = Pixmap::new(width, height).ok_or(out_of_memory)?;
        resvg::render(&tree, Transform::from_scale(scale as f32, scale as f32), &mut pixels.as_mut());
        pixels.encode_png().map_err(|error| drawn(&error))
    }

    /// Writes a file: SVG or PNG (2 pixels for each of the SVG), as the name's ending says.
    ///
    /// # Errors
    /// The name ends in neither `.svg` nor `.png` ([`io::ErrorKind::InvalidInput`]), the picture cannot be made, or
    /// the file cannot be written. The message names the file.
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        let written = match ending.as_deref() {
            Some("svg") => std::fs::write(path, &self.svg),
            Some("png") => {
                self.png(SAVED_SCALE).map_err(io::Error::other).and_then(|png| std::fs::write(path, png))
            }
            _ => {
                let message = "expected a name that ends in .svg or .png";
                Err(io::Error::new(io::ErrorKind::InvalidInput, message))
            }
        };
        written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }
}
