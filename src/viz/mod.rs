//! Pictures of attention (feature `viz`): as SVG, as PNG, and in the terminal.
//!
//! ```text
//! HeatMap     probabilities [batch, heads, rows, kv_len]   one head, or a grid of heads under one colour bar
//! EntropyMap  entropies [layers, heads], in nats           a matrix with the numbers in it
//! BlockMap    a block layout                               which blocks of keys each block of queries visits
//!
//! each ->  Figure (figure.rs: cells, labels, range) -> svg.rs: layout -> Picture: SVG, and PNG drawn from that SVG
//!                                                    `- terminal.rs: text of a given width
//! ```
//!
//! The probabilities are those of chosen heads and rows, as [`Scores`](crate::Scores) writes them: a picture of a
//! sequence of 8192 tokens needs 16 rows of it, not all 8192.
//!
//! ```
//! use lucid_attention::viz::{HeatMap, TerminalColors};
//! use lucid_attention::{Inputs, Mask, Outputs, Plan, Problem, ScoreStage, Scores, View, ViewMut};
//!
//! let (heads, tokens, dim) = (4, 100, 8);
//! let shape = [1, heads, tokens, dim];
//! let q: Vec<f32> = (0..heads * tokens * dim).map(|i| (i as f32).sin()).collect();
//! let view = View::new(&q, shape)?;
//! let mut out = vec![0.0; q.len()];
//!
//! let (chosen_heads, chosen_rows) = ([0, 3], [10, 50, 99]);
//! let scores_shape = [1, 2, 3, tokens];
//! let mut probabilities = vec![0.0; 2 * 3 * tokens];
//! let scores = Scores::new(ScoreStage::Softmax, ViewMut::new(&mut probabilities, scores_shape)?);
//! let outputs = Outputs::new(ViewMut::new(&mut out, shape)?)
//!     .scores(scores.heads(&chosen_heads).rows(&chosen_rows));
//! let plan = Plan::new(&Problem::new(heads, dim, tokens, tokens))?;
//! plan.run(&Inputs::new(view, view, view).mask(Mask::causal()), outputs, &mut plan.workspace()?)?;
//!
//! let map = HeatMap::new(View::new(&probabilities, scores_shape)?)
//!     .heads(&chosen_heads)
//!     .rows(&chosen_rows)
//!     .mask(Mask::causal())
//!     .title("two heads, three rows");
//! let picture = map.draw()?; // .save("attention.svg") or .save("attention.png")
//! assert!(picture.svg().starts_with("<svg"));
//! println!("{}", map.terminal(80, TerminalColors::True)?);
//! # Ok::<(), lucid_attention::AttentionError>(())
//! ```
//!
//! ## What the colours say
//!
//! Viridis, linear from 0 to the largest number shown, or to [`HeatMap::upper`]; one scale for all heads of a picture.
//! NaN and what the mask removes have colours of their own, outside the scale. Where there are more rows or keys than
//! [`HeatMap::max_cells`], a cell stands for a block of them, by [`Reduce`]; the picture then says so. The same input
//! gives the same bytes.
//!
//! ## On which crates
//!
//! The layout (cells of whole pixels, thinned labels) is what this module is for; a general plotting crate would not
//! do it. `svg` writes the document and `resvg` (linebender) draws the PNG from that very document, so that the two
//! agree. `plotters` was the alternative: its fonts are either the system's, or registered in a global table that
//! its `ttf` feature, if any other crate turns it on, ignores. Here no system font is looked up: PNGs are set in Hack
//! (Latin, Greek, Cyrillic), with Noto Emoji (the older emoji) for what it lacks; both are embedded, from
//! `epaint_default_fonts`. Other scripts come out right in SVG and terminals, as boxes in PNG. Colours are from
//! `colorous`, widths of characters from `unicode-width`. All are maintained and under MIT, Apache-2.0 or BSD-3-Clause;
//! the fonts under MIT, Bitstream Vera's licence and OFL-1.1.

mod block_map;
mod colour;
mod entropy;
mod figure;
mod heat_map;
mod label;
mod picture;
mod reduce;
mod svg;
mod terminal;

pub use block_map::BlockMap;
pub use entropy::EntropyMap;
pub use heat_map::HeatMap;
pub use picture::Picture;
pub use reduce::Reduce;
pub use terminal::TerminalColors;
