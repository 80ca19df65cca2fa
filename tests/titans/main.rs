//! The sequence context and the Titans variants: against their definition in `f64`, and what they promise.

#[path = "../common/numbers.rs"]
mod numbers;

mod context;
mod definition;
mod determinism;
mod failures;
#[cfg(feature = "http")]
mod fetch;
mod mac;
mod mag;
mod mal;
mod relevance;
#[cfg(feature = "serde")]
mod server;
#[cfg(feature = "serde")]
mod texts;

use lucid_attention::AttentionError;
use lucid_attention::module::{AttentionConfig, InputDims, ModuleWeights};
use lucid_attention::titans::*;
use numbers::numbers;

/// Sizes that are all different, but for queries and keys.
const DIMS: StepDims = StepDims { x: 7, key: 16, value: 20, query: 16, y: 12 };

/// The vectors of a step, drawn from a seed.
#[derive(Clone, Debug)]
struct Vectors {
    x: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    query: Vec<f32>,
    y: Vec<f32>,
}

impl Vectors {
    fn new(dims: StepDims, seed: u64) -> Self {
        let part = |dim, kind| numbers(dim, seed * 5 + kind + 1);
        let StepDims { x, key, value, query, y } = dims;
        Self { x: part(x, 0), key: part(key, 1), value: part(value, 2), query: part(query, 3), y: part(y, 4) }
    }

    fn step<'a>(&'a self, timestamp: f64, id: &'a str) -> Step<'a> {
        Step { timestamp, id, x: &self.x, key: &self.key, value: &self.value, query: &self.query }
    }
}

/// A context of the steps with seeds `0..steps`, and those it still holds.
fn filled(dims: StepDims, steps: usize) -> (SequenceContext, Vec<Vectors>) {
    let mut context = SequenceContext::new(dims).expect("valid sizes");
    let all: Vec<Vectors> = (0..steps).map(|t| Vectors::new(dims, t as u64)).collect();
    for (t, vectors) in all.iter().enumerate() {
        let id = format!("memory {t}");
        let current = context.begin(vectors.step(t as f64, &id)).expect("a valid step");
        current.finish(&vectors.y).expect("a valid answer");
    }
    let kept = all.len() - context.len();
    (context, all[kept..].to_vec())
}

fn shape(operand: &'static str, axis: &'static str, expected: usize, got: usize) -> AttentionError {
    AttentionError::Shape { operand, axis, expected, got }
}

fn value(operand: &'static str, expected: &'static str, got: &str) -> AttentionError {
    AttentionError::Value { operand, expected, got: got.to_owned() }
}

/// A layer of nothing but attention, with biases that do something, and logits that differ.
fn projected(dims: InputDims, output_dim: usize) -> (AttentionConfig, ModuleWeights) {
    let config = AttentionConfig {
        num_heads: 4,
        key_dim: 6,
        value_dim: Some(5),
        output_dim: Some(output_dim),
        use_residual: false,
        use_layer_norm: false,
        ..AttentionConfig::default()
    };
    let mut weights = ModuleWeights::glorot(&config, dims, 3).expect("a valid configuration");
    weights.query.weight.iter_mut().for_each(|w| *w *= 3.0);
    let ModuleWeights { query, key, value, output, .. } = &mut weights;
    for (index, dense) in [query, key, value, output].into_iter().enumerate() {
        dense.bias = Some(numbers(dense.outputs, 40 + index as u64));
    }
    (config, weights)
}

/// Asserts that numbers are as close as `off` to those of the definition.
#[track_caller]
fn assert_near(got: &[f32], expected: &[f64], off: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (&got, expected) in got.iter().zip(expected) {
        assert!((f64::from(got) - expected).abs() <= off, "{what}: got {got}, expected {expected}");
    }
}
