//! Pictures (feature `viz`): what is in them is read back with an XML parser, a PNG decoder, and by column.
#![cfg(feature = "viz")]
#![allow(missing_docs, reason = "a test")]

mod blocks;
mod errors;
mod page;
mod pixels;
mod reduction;
mod sources;
mod terminal;
mod vector;

use lucid_attention::View;
use lucid_attention::viz::HeatMap;

/// Head `h` of row `r` at key `k` has a value of its own, from 0 up to 1.
fn values(shape: [usize; 4]) -> Vec<f32> {
    (0..shape.iter().product()).map(|i: usize| (i * 37 % 101) as f32 / 100.0).collect()
}

fn view(values: &[f32], shape: [usize; 4]) -> View<'_, f32> {
    View::new(values, shape).expect("a buffer of this shape")
}

/// One head.
fn map(values: &[f32], rows: usize, keys: usize) -> HeatMap<'_> {
    HeatMap::new(view(values, [1, 1, rows, keys]))
}

const TOKENS: [&str; 8] = ["[CLS]", "a", "man", "is", "eat", "##ing", "food", "[SEP]"];
