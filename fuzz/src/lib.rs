//! What the fuzz targets make of their bytes, and what they ask of the answers: values, not only that nothing crashes.
//!
//! | target | makes | asks |
//! |---|---|---|
//! | `exact` | shapes, options, layouts, storage types; data from a seed | bits of the scalar model, certified bound, guard pages |
//! | `masks` | lists, bounds, bits of masks one by one, mostly valid ones | certified bound, removed keys change no bit, panels like rows |
//! | `decode` | appends, truncations and queries on a cache | bits of the rows it was filled from |
//! | `module` | configurations, sizes, inputs of a layer | the bound of its definition in `f64` |
//! | `merge` | partial results, also with numbers that are none | the formula in `f64`, and that it commutes |
//! | `plan` | sizes, strides and lists that no machine has | an error that says so and touches nothing, or a certified answer |
//! | `weights` | files, whole ones with a few bytes changed | an error, or weights that are saved and read alike |
//! | `config` | JSON | an error, or a configuration that is written and read alike and does what it says |
//!
//! Targets are plain functions of bytes: `fuzz_targets/` hands them to libFuzzer, `tests/replay.rs` runs them over the
//! committed corpora on a stable compiler.
#![allow(missing_docs, reason = "names say what targets are")]

#[path = "../../tests/common/mod.rs"]
pub mod common;

mod config;
mod decode;
mod exact;
mod masks;
mod merge;
mod module;
mod plan;
mod weights;

pub use config::config;
pub use decode::decode;
pub use exact::exact;
pub use masks::masks;
pub use merge::merge;
pub use module::module;
pub use plan::plan;
pub use weights::weights;

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 8] = [
    ("exact", exact),
    ("masks", masks),
    ("decode", decode),
    ("module", module),
    ("merge", merge),
    ("plan", plan),
    ("weights", weights),
    ("config", config),
];
