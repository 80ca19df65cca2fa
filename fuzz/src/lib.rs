//! What the fuzz targets make of their bytes, and what they ask of the answers: values, not only that nothing crashes.
//!
//! | target | makes | asks |
//! |---|---|---|
//! | `exact` | shapes, options, layouts, storage types; data from a seed | bits of the scalar model, certified bound, guard pages |
//! | `masks` | lists, bounds, bits of masks one by one, mostly valid ones | certified bound, removed keys change no bit, panels like rows |
//! | `sparse` | compressed rows, bits, ranges and patterns of blocks; LSH | pairs and kinds of blocks, certified bound, bits of a dense call; a set of pairs in `f64` |
//! | `linear` | maps, options, calls in pieces, states saved, merged and from hostile numbers | the quadratic form in `f64` and its bound, the same bits after saving |
//! | `decode` | appends, truncations and queries on a cache | bits of the rows it was filled from |
//! | `module` | configurations, sizes, inputs of a layer | the bound of its definition in `f64` |
//! | `merge` | partial results, also with numbers that are none | the formula in `f64`, and that it commutes |
//! | `plan` | sizes, strides and lists that no machine has | an error that says so and touches nothing, or a certified answer |
//! | `weights` | files, whole ones with a few bytes changed | the numbers that were written, or an error where the header was changed |
//! | `config` | JSON | a configuration wherever its fields are of their types, written and read alike, that does what it says |
//!
//! What is refused has to be wrong by the target's own account, and what is wrong by it refused: a refusal alone proves
//! nothing. (`plan` alone takes any error that names its fields: so much is wrong there at once.)
//!
//! Targets are plain functions of bytes, which count in a [`Tally`] what they compare: `fuzz_targets/` hands them to
//! libFuzzer, `tests/replay.rs` runs them over the committed corpora on a stable compiler, and `src/bin/reliability` over
//! inputs that [`Target::draw`] makes of numbers.
#![allow(missing_docs, reason = "names say what targets are")]

#[path = "../../tests/common/mod.rs"]
pub mod common;

mod call;
mod config;
mod decode;
mod draw;
mod exact;
mod linear;
mod masks;
mod merge;
mod module;
mod plan;
mod size;
mod sparse;
mod tally;
mod weights;

pub use config::config;
pub use decode::decode;
pub use exact::exact;
pub use linear::linear;
pub use masks::masks;
pub use merge::merge;
pub use module::module;
pub use plan::plan;
pub use sparse::sparse;
pub use tally::Tally;
pub use weights::weights;

use common::cases::Rng;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// That of its corpus, too.
    pub name: &'static str,
    /// What it does with its bytes.
    pub run: fn(&[u8], &mut Tally),
    /// Bytes that make something of it.
    pub draw: fn(&mut Rng) -> Vec<u8>,
}

/// All of them.
pub const TARGETS: [Target; 10] = [
    Target { name: "exact", run: exact, draw: |rng| draw::bytes(rng, 24, 40) },
    Target { name: "masks", run: masks, draw: |rng| draw::bytes(rng, 60, 400) },
    Target { name: "sparse", run: sparse, draw: |rng| draw::bytes(rng, 60, 300) },
    Target { name: "linear", run: linear, draw: |rng| draw::bytes(rng, 60, 200) },
    Target { name: "decode", run: decode, draw: |rng| draw::bytes(rng, 20, 60) },
    Target { name: "module", run: module, draw: |rng| draw::bytes(rng, 40, 80) },
    Target { name: "merge", run: merge, draw: |rng| draw::bytes(rng, 40, 200) },
    Target { name: "plan", run: plan, draw: draw::choices },
    Target { name: "weights", run: weights, draw: draw::file },
    Target { name: "config", run: config, draw: draw::json },
];
