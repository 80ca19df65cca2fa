//! MAC: every focus and mode against its definition, hints, metrics, and what it refuses.

use crate::definition::{self, Layer};
use crate::{DIMS, Vectors, assert_near, filled, projected, shape, value};
use lucid_attention::module::*;
use lucid_attention::titans::lucidia::*;
use lucid_attention::titans::*;

/// Histories of these lengths: none, one, around every limit, full, and gone round.
const LENGTHS: [usize; 9] = [0, 1, 2, 10, 15, 20, 31, 50, 51];

/// One call after `steps` steps.
fn call(mac: &Mac, steps: usize, hints: Option<&Hints>) -> (Vec<f32>, MacMetrics, Vec<f32>) {
    let (mut context, _) = filled(DIMS, steps);
    let now = Vectors::new(DIMS, 1000);
    let current = context.begin(now.step(0.0, "now")).expect("a valid step");
    let (mut out, mut workspace) = (vec![f32::NAN; DIMS.y], TitansWorkspace::new());
    let metrics = mac.process_input(&current, &now.y, hints, &mut out, &mut workspace).expect("a valid call");
    (out, metrics, workspace.weights().to_vec())
}

/// Asserts output, weights and metrics of a call against the definition.
fn assert_defined(mac: &Mac, layer: &Layer<'_>, cap: usize, steps: usize, hints: Option<&Hints>) {
    let (out, metrics, weights) = call(mac, steps, hints);
    let (_, kept) = filled(DIMS, steps);
    let now = Vectors::new(DIMS, 1000);
    let what = format!("{steps} steps, {hints:?}");
    let given = hints.copied().unwrap_or_default();
    let (temperature, mode, limit, newest) = definition::mac_row(given.focus, kept.len());
    let temperature = given.mac.attention_temperature.map_or(temperature, f64::from);
    let mode = given.mac.attention_mode.unwrap_or(mode);
    let limit = given.mac.context_limit.or(limit);
    let picked = definition::chosen(&kept, cap, limit, newest);

    assert_eq!(metrics.hints_used, hints.is_some(), "{what}");
    assert_eq!((metrics.attention_focus, metrics.attention_mode), (given.focus, mode), "{what}");
    assert_near(&[metrics.attention_temperature], &[temperature], 1e-6, &what);
    assert_eq!((metrics.context_limit, metrics.recency_bias), (limit, newest), "{what}");
    assert_eq!(metrics.context_limited, limit.is_some_and(|limit| limit < kept.len().min(cap)), "{what}");
    assert_eq!(metrics.history_size_used, picked.len(), "{what}");
    let applied = !picked.is_empty();
    assert_eq!([metrics.attention_applied, metrics.attended_output_generated], [applied; 2], "{what}");
    assert_eq!(metrics.fallback_mode, !applied, "{what}");
    assert_eq!((metrics.dimensions_aligned, metrics.aligned_dimension), (false, None), "{what}");
    assert_eq!(metrics.temperature_scaling, applied && temperature != 1.0, "{what}");
    if !applied {
        assert_eq!((out, weights.len()), (now.y, 0), "{what}: y as it came");
        assert_eq!(
            (metrics.attention_weights_entropy, metrics.output_blending_applied),
            (None, false),
            "{what}"
        );
        return;
    }

    let (keys, ys): (Vec<&[f32]>, Vec<&[f32]>) =
        picked.iter().map(|step| (&step.key[..], &step.y[..])).unzip();
    let mut any_normalised = std::cell::Cell::new(false);
    let reshape = |logits: Vec<f64>| {
        let shaped = definition::mac_shape(mode, logits.clone());
        any_normalised.set(any_normalised.get() || mode == MacMode::RelevanceFocused && shaped != logits);
        shaped
    };
    let (attended, heads) =
        definition::attend(layer, &definition::wide(&now.query), &keys, &ys, temperature, reshape);
    let ratio = definition::mac_ratio(mode);
    let expected: Vec<f64> =
        attended.iter().zip(&now.y).map(|(a, &y)| ratio * f64::from(y) + (1.0 - ratio) * a).collect();
    assert_near(&out, &expected, 1e-5, &what);
    assert_near(&weights, &heads.concat(), 1e-5, &what);
    let entropy = metrics.attention_weights_entropy.expect("there are weights");
    assert_near(&[entropy], &[definition::entropy(&heads)], 1e-5, &what);
    assert!((0.0..=(picked.len() as f32).ln() + 1e-6).contains(&entropy), "{what}: {entropy}");
    for head in weights.chunks_exact(picked.len()) {
        assert_near(&[head.iter().sum::<f32>()], &[1.0], 1e-6, &what);
    }

    assert_eq!(metrics.variance_normalization_applied, *any_normalised.get_mut(), "{what}");
    assert_near(&[metrics.original_output_ratio], &[ratio], 1e-7, &what);
    assert_eq!(metrics.output_blending_applied, ratio > 0.0, "{what}");
    let (recency, historical) = match mode {
        MacMode::RecencyFocused => (Some(0.7), None),
        MacMode::Balanced => (Some(0.3), None),
        MacMode::EmotionalRelevance => (None, Some(0.4)),
        MacMode::BroadAssociations => (None, Some(0.6)),
        _ => (None, None),
    };
    assert_eq!(
        (metrics.recency_bias_strength, metrics.historical_bias_strength),
        (recency, historical),
        "{what}"
    );
    let applied = [metrics.recency_bias_applied, metrics.historical_bias_applied];
    assert_eq!(applied, [recency.is_some(), historical.is_some()], "{what}");
}

#[test]
fn every_focus_on_vectors_as_they_are() {
    for heads in [1, 4] {
        let mac = Mac::new(HistoryAttention::identity(heads), DIMS).expect("valid parts");
        let layer = Layer::Identity { heads };
        for steps in LENGTHS {
            assert_defined(&mac, &layer, 20, steps, None);
            for focus in Focus::ALL {
                assert_defined(&mac, &layer, 20, steps, Some(&Hints { focus, ..Hints::default() }));
            }
        }
    }
}

#[test]
fn every_focus_by_a_layer() {
    let dims = InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.y };
    let (config, weights) = projected(dims, DIMS.y);
    let options = MacOptions { max_history: 50 };
    let module = MultiHeadAttention::new(config.clone(), &weights).expect("valid parts");
    let mac = Mac::with_options(module, DIMS, options).expect("valid parts");
    let layer = Layer::Projected { config: &config, weights: &weights };
    let mut normalised = [false; 2];
    for steps in LENGTHS {
        for focus in Focus::ALL {
            let hints = Hints { focus, ..Hints::default() };
            assert_defined(&mac, &layer, 50, steps, Some(&hints));
            let (_, metrics, _) = call(&mac, steps, Some(&hints));
            normalised[usize::from(metrics.variance_normalization_applied)] |= focus == Focus::Relevance;
        }
    }
    assert_eq!(normalised, [true; 2], "logits of a variance above 1, and below");
}

#[test]
fn hints_override_the_focus() {
    let dims = InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.y };
    let (config, weights) = projected(dims, DIMS.y);
    let module = MultiHeadAttention::new(config.clone(), &weights).expect("valid parts");
    let projected = (HistoryAttention::from(module), Layer::Projected { config: &config, weights: &weights });
    let identity = (HistoryAttention::identity(2), Layer::Identity { heads: 2 });
    let modes = [
        MacMode::Standard,
        MacMode::RecencyFocused,
        MacMode::RelevanceFocused,
        MacMode::EmotionalRelevance,
        MacMode::BroadAssociations,
        MacMode::Balanced,
    ];
    for (attention, layer) in [projected, identity] {
        for cap in [20, 50] {
            let options = MacOptions { max_history: cap };
            let mac = Mac::with_options(attention.clone(), DIMS, options).expect("valid parts");
            for focus in Focus::ALL {
                for (limit, mode) in [1, 3, 7, 13, 19, 20, 26, 99].into_iter().zip(modes.into_iter().cycle())
                {
                    let hints = MacHints {
                        context_limit: Some(limit),
                        attention_temperature: Some(0.3),
                        attention_mode: Some(mode),
                    };
                    let hints = Hints { focus, mac: hints, ..Hints::default() };
                    assert_defined(&mac, &layer, cap, 50, Some(&hints));
                    let only = MacHints { context_limit: Some(limit), ..MacHints::default() };
                    let hints = Hints { focus, mac: only, ..Hints::default() };
                    assert_defined(&mac, &layer, cap, 33, Some(&hints));
                }
            }
        }
    }
}

/// The softmax that the original falls back to overflows.
#[test]
fn large_logits() {
    let mac = Mac::new(HistoryAttention::identity(1), DIMS).expect("valid parts");
    let mut context = SequenceContext::new(DIMS).expect("valid sizes");
    for t in 0..3 {
        let mut vectors = Vectors::new(DIMS, t);
        vectors.key = vec![1000.0 * (t + 1) as f32; DIMS.key];
        context.begin(vectors.step(0.0, "")).and_then(|step| step.finish(&vectors.y)).expect("a valid step");
    }
    let query = vec![1000.0; DIMS.query];
    let now = Vectors { query, ..Vectors::new(DIMS, 9) };
    let current = context.begin(now.step(0.0, "")).expect("a valid step");
    let (mut out, mut workspace) = (vec![0.0; DIMS.y], TitansWorkspace::new());
    mac.process_input(&current, &now.y, None, &mut out, &mut workspace).expect("a valid call");
    assert_eq!((out, workspace.weights()), (Vectors::new(DIMS, 2).y, &[0.0, 0.0, 1.0][..]));
}

/// Sizes that a layer was told to fit are fitted, and reported.
#[test]
fn aligned_dimensions() {
    let dims = InputDims { query: DIMS.query + 4, key: DIMS.key - 4, value: DIMS.y };
    let (config, weights) = projected(dims, DIMS.y);
    let module = |wrong_dim| {
        let policies = InputPolicies { wrong_dim, ..InputPolicies::default() };
        let options = ModuleOptions { policies, ..ModuleOptions::default() };
        MultiHeadAttention::with_options(config.clone(), &weights, options).expect("valid parts")
    };
    let error = Mac::new(module(WrongDim::Reject), DIMS).expect_err("other sizes");
    assert_eq!(error, shape("query", "dim", DIMS.query + 4, DIMS.query));
    let mac = Mac::new(module(WrongDim::PadTruncate), DIMS).expect("sizes are fitted");
    let (_, metrics, _) = call(&mac, 5, None);
    assert_eq!((metrics.dimensions_aligned, metrics.aligned_dimension), (true, Some(dims)));
    let (_, metrics, _) = call(&mac, 0, None);
    assert_eq!((metrics.dimensions_aligned, metrics.aligned_dimension), (false, None));
}

#[test]
fn what_is_refused() {
    let refuse = |attention, dims| Mac::new(attention, dims).expect_err("parts that do not fit");
    let expected = "a size that is a multiple of heads";
    assert_eq!(refuse(HistoryAttention::identity(3), DIMS), value("key", expected, "16 with 3"));
    assert_eq!(refuse(HistoryAttention::identity(0), DIMS), value("key", expected, "16 with 0"));
    let other = StepDims { y: 13, ..DIMS };
    assert_eq!(refuse(HistoryAttention::identity(4), other), value("value", expected, "13 with 4"));
    let other = StepDims { query: 13, ..DIMS };
    assert_eq!(refuse(HistoryAttention::identity(1), other), shape("query", "dim", 16, 13));
    // What comes out of the original's attention has the size of a query, where y has another.
    let (config, weights) =
        projected(InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.y }, DIMS.query);
    let module = MultiHeadAttention::new(config, &weights).expect("valid parts");
    assert_eq!(refuse(module.into(), DIMS), shape("attention", "output_dim", DIMS.y, DIMS.query));
    let options = MacOptions { max_history: 0 };
    let error = Mac::with_options(HistoryAttention::identity(1), DIMS, options).expect_err("no step");
    assert_eq!(error, value("max_history", "at least 1 step", "0"));

    let mac = Mac::new(HistoryAttention::identity(1), DIMS).expect("valid parts");
    let run = |dims: StepDims, y: usize, out: usize, hints: MacHints| {
        let (mut context, _) = filled(dims, 3);
        let now = Vectors::new(dims, 9);
        let current = context.begin(now.step(0.0, "")).expect("a valid step");
        let (mut out, mut workspace) = (vec![7.0; out], TitansWorkspace::new());
        let hints = Hints { mac: hints, ..Hints::default() };
        let error = mac
            .process_input(&current, &vec![0.0; y], Some(&hints), &mut out, &mut workspace)
            .expect_err("a call that does not fit");
        assert!(out.iter().all(|&x| x == 7.0), "nothing is written");
        error
    };
    let none = MacHints::default();
    for (dims, operand, got) in
        [(StepDims { key: 5, ..DIMS }, "key", 5), (StepDims { query: 5, ..DIMS }, "query", 5)]
    {
        assert_eq!(run(dims, DIMS.y, DIMS.y, none), shape(operand, "dim", 16, got));
    }
    assert_eq!(run(StepDims { y: 5, ..DIMS }, 5, 5, none), shape("y", "dim", DIMS.y, 5));
    assert_eq!(run(DIMS, 5, DIMS.y, none), shape("y", "dim", DIMS.y, 5));
    assert_eq!(run(DIMS, DIMS.y, 5, none), shape("y_final", "dim", DIMS.y, 5));
    for (temperature, got) in [(0.0, "0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let hints = MacHints { attention_temperature: Some(temperature), ..none };
        let expected =
            value("hints.attention_temperature", "a finite number above 0 with a finite inverse", got);
        assert_eq!(run(DIMS, DIMS.y, DIMS.y, hints), expected);
    }
    let hints = MacHints { context_limit: Some(0), ..none };
    assert_eq!(run(DIMS, DIMS.y, DIMS.y, hints), value("hints.context_limit", "at least 1 step", "0"));
}
