//! The multi-head attention module: against the libraries it stands in for, against its definition in `f64`, and what it
//! promises of bits, inputs, weights and errors.

mod absorbed;
mod caches;
mod cancellation;
mod definition;
mod determinism;
mod errors;
mod explain;
mod libraries;
mod metrics;
mod norm;
mod parts;
mod policies;
mod reference;
mod saving;
mod sequence;
mod training;
mod weights;

use lucid_attention::Level;
use lucid_attention::module::*;
use parts::{lively_weights, numbers, tensor};

/// A module at a level.
fn module_at(config: &AttentionConfig, weights: &ModuleWeights, level: Level) -> MultiHeadAttention {
    let plan = lucid_attention::PlanOptions { level: Some(level), ..Default::default() };
    let options = ModuleOptions { plan, ..ModuleOptions::default() };
    MultiHeadAttention::with_options(config.clone(), weights, options).expect("valid parts")
}

/// Asserts equal bits.
#[track_caller]
fn assert_bits(got: &[f32], expected: &[f32], what: &str) {
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(got), bits(expected), "{what}");
}
