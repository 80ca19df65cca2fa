//! MAC's relevance focus looks at logits before it divides them: the layer counts one call, and large logits keep their
//! digits.

use crate::definition::{self, Layer};
use crate::{DIMS, Vectors, assert_near, filled, numbers, projected};
use lucid_attention::MetricsOptions;
use lucid_attention::module::*;
use lucid_attention::titans::lucidia::*;
use lucid_attention::titans::*;
use std::sync::Arc;

const HINTS: Hints = Hints {
    focus: Focus::Relevance,
    mac: MacHints { context_limit: None, attention_temperature: None, attention_mode: None },
    mag: MagHints {
        context_limit: None,
        gate_modifiers: GateModifiers { alpha_scale: None, theta_scale: None, eta_scale: None },
    },
    mal: MalHints { context_limit: None, blend_factor: None, attention_temperature: None },
};

fn dims() -> InputDims {
    InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.y }
}

/// Running metrics and repairs of the layer.
#[test]
fn a_call_counts_once() {
    let larger = InputDims { query: DIMS.query + 4, ..dims() };
    let (config, weights) = projected(larger, DIMS.y);
    let options = ModuleOptions {
        metrics: Some(MetricsOptions::SPECIFIED),
        policies: InputPolicies { wrong_dim: WrongDim::PadTruncate, ..InputPolicies::default() },
        ..ModuleOptions::default()
    };
    let layer = Arc::new(MultiHeadAttention::with_options(config, &weights, options).expect("valid parts"));
    let mac = Mac::new(layer.clone(), DIMS).expect("sizes are fitted");
    let (mut context, _) = filled(DIMS, 20);
    let now = Vectors::new(DIMS, 1000);
    let current = context.begin(now.step(0.0, "now")).expect("a valid step");
    let (mut y, mut workspace) = (vec![0.0; DIMS.y], TitansWorkspace::new());
    let metrics =
        mac.process_input(&current, &now.y, Some(&HINTS), &mut y, &mut workspace).expect("a valid call");
    assert!(metrics.variance_normalization_applied, "logits are divided, in a second run");
    let running = layer.metrics().expect("asked for").overall();
    assert_eq!(running.rows(), 4, "one row of each head");
    assert_eq!(layer.repairs().padded_tensors, 1, "one query");
    // What is counted is what was answered.
    let mean = f64::from(metrics.attention_weights_entropy.expect("a history"));
    let entropy = running.entropy().expect("rows").mean;
    assert!((entropy - mean).abs() < 1e-5, "{entropy} and {mean}");
}

/// Logits of 1e5 and more, around 0 and far from it, in one head or all.
#[test]
fn large_logits_keep_their_digits() {
    let (config, weights) = projected(dims(), DIMS.y);
    let module = MultiHeadAttention::new(config.clone(), &weights).expect("valid parts");
    let projected = (HistoryAttention::from(module), Layer::Projected { config: &config, weights: &weights });
    let identity = (HistoryAttention::identity(4), Layer::Identity { heads: 4 });
    for (attention, layer) in [projected, identity] {
        let mac = Mac::new(attention, DIMS).expect("valid parts");
        for (size, shift) in [(1e3, 0.0), (1e5, 0.0), (300.0, 1000.0), (1e4, 1e4)] {
            let mut context = SequenceContext::new(DIMS).expect("valid sizes");
            let kept: Vec<Vectors> = (0..20)
                .map(|t| {
                    let mut step = Vectors::new(DIMS, t);
                    step.key.iter_mut().for_each(|x| *x = *x * size + shift);
                    step
                })
                .collect();
            for step in &kept {
                let current = context.begin(step.step(0.0, "")).expect("a valid step");
                current.finish(&step.y).expect("a valid answer");
            }
            // Of the first head a small part only, whose logits need no division.
            let mut now = Vectors { query: numbers(DIMS.query, 77), ..Vectors::new(DIMS, 1000) };
            now.query.iter_mut().for_each(|x| *x = *x * 100.0 + shift / 10.0);
            let current = context.begin(now.step(0.0, "now")).expect("a valid step");
            let (mut y, mut workspace) = (vec![0.0; DIMS.y], TitansWorkspace::new());
            let metrics = mac
                .process_input(&current, &now.y, Some(&HINTS), &mut y, &mut workspace)
                .expect("a valid call");
            assert!(metrics.variance_normalization_applied);
            let (keys, ys): (Vec<&[f32]>, Vec<&[f32]>) =
                kept.iter().map(|step| (&step.key[..], &step.y[..])).unzip();
            let largest = std::cell::Cell::new(0.0);
            let reshape = |logits: Vec<f64>| {
                largest.set(logits.iter().fold(largest.get(), |largest: f64, s| largest.max(s.abs())));
                definition::mac_shape(MacMode::RelevanceFocused, logits)
            };
            let (expected, heads) =
                definition::attend(&layer, &definition::wide(&now.query), &keys, &ys, 1.2, reshape);
            let what = format!("keys of {size} around {shift}, logits up to {:e}", largest.get());
            assert!(largest.get() > 1e4, "{what}");
            assert_near(workspace.weights(), &heads.concat(), 1e-5, &what);
            assert_near(&y, &expected, 1e-5, &what);
        }
    }
}

/// Steps that the layer's window masks are not among the logits whose deviation counts.
#[test]
fn masked_steps_do_not_count() {
    let (config, weights) = projected(dims(), DIMS.y);
    let windowed = AttentionConfig { window_left: Some(4), ..config };
    let layer = MultiHeadAttention::new(windowed, &weights).expect("valid parts");
    let mac = Mac::new(layer, DIMS).expect("valid parts");
    let run = |far: f32| {
        let mut context = SequenceContext::new(DIMS).expect("valid sizes");
        for t in 0..15 {
            let mut step = Vectors::new(DIMS, t);
            if t < 10 {
                step.key.iter_mut().for_each(|x| *x *= far);
            }
            context
                .begin(step.step(0.0, ""))
                .and_then(|current| current.finish(&step.y))
                .expect("a valid step");
        }
        let now = Vectors::new(DIMS, 1000);
        let current = context.begin(now.step(0.0, "now")).expect("a valid step");
        let (mut y, mut workspace) = (vec![0.0; DIMS.y], TitansWorkspace::new());
        mac.process_input(&current, &now.y, Some(&HINTS), &mut y, &mut workspace).expect("a valid call");
        let weights = workspace.weights().to_vec();
        assert!(weights.chunks_exact(15).all(|head| head[..10].iter().all(|&w| w == 0.0)), "masked");
        weights
    };
    assert_eq!(run(1.0), run(1000.0));
}
