//! MAL: values of every focus against their definition, hints, the learned gate and projection, and what is refused.

use crate::definition::{self, Layer, sigmoid, wide};
use crate::{DIMS, Vectors, assert_near, filled, numbers, projected, shape, value};
use lucid_attention::module::*;
use lucid_attention::titans::lucidia::*;
use lucid_attention::titans::*;

const LENGTHS: [usize; 8] = [0, 1, 10, 11, 15, 26, 50, 51];

fn call(mal: &Mal, steps: usize, hints: Option<&Hints>) -> (Vec<f32>, MalMetrics) {
    let (mut context, _) = filled(DIMS, steps);
    let now = Vectors::new(DIMS, 1000);
    let current = context.begin(now.step(0.0, "now")).expect("a valid step");
    let mut out = vec![f32::NAN; DIMS.value];
    let metrics =
        mal.process_input(&current, hints, &mut out, &mut TitansWorkspace::new()).expect("a valid call");
    (out, metrics)
}

/// Limit, temperature, share, word.
fn row(focus: Focus) -> (Option<usize>, f64, f64, &'static str) {
    match focus {
        Focus::Default => (Some(15), 1.0, 0.5, "standard"),
        Focus::Recency => (Some(10), 0.7, 0.6, "recency_weighted"),
        Focus::Relevance => (Some(20), 1.2, 0.3, "semantic_weighted"),
        Focus::Emotional => (Some(25), 1.5, 0.2, "emotion_weighted"),
        Focus::Broad => (None, 1.8, 0.1, "broad_context"),
        Focus::Balance => (Some(15), 1.0, 0.5, "balanced"),
    }
}

fn assert_defined(mal: &Mal, layer: &Layer<'_>, options: &MalOptions, steps: usize, hints: Option<&Hints>) {
    let what = format!("{steps} steps, {hints:?}");
    let (out, metrics) = call(mal, steps, hints);
    let (_, kept) = filled(DIMS, steps);
    let now = Vectors::new(DIMS, 1000);
    let given = hints.copied().unwrap_or_default();
    let (limit, temperature, share, word) = row(given.focus);
    let limit = given.mal.context_limit.or(limit);
    let temperature = given.mal.attention_temperature.map_or(temperature, f64::from);
    let picked = definition::chosen(&kept, usize::MAX, limit, true);

    assert_eq!((metrics.hints_used, metrics.attention_focus), (hints.is_some(), given.focus), "{what}");
    assert_eq!((metrics.attention_mode, metrics.context_limit), (word, limit), "{what}");
    assert_eq!((metrics.history_size, metrics.history_size_used), (kept.len(), picked.len()), "{what}");
    assert_eq!(metrics.context_limited, picked.len() < kept.len(), "{what}");
    assert_near(&[metrics.attention_temperature], &[temperature], 1e-6, &what);
    assert_eq!(metrics.temperature_scaling, !picked.is_empty() && temperature != 1.0, "{what}");
    assert_eq!(metrics.value_modification_success, !picked.is_empty(), "{what}");
    assert_eq!((metrics.dimensions_aligned, metrics.aligned_dimension), (false, None), "{what}");
    if picked.is_empty() {
        assert_eq!((out, metrics.v_change_magnitude, metrics.blend_factor), (now.value, None, 0.0), "{what}");
        return;
    }
    let (keys, values): (Vec<&[f32]>, Vec<&[f32]>) =
        picked.iter().map(|step| (&step.key[..], &step.value[..])).unzip();
    let query = wide(&now.query);
    let (attended, _) = match options.temperature {
        TemperatureOn::Logits => definition::attend(layer, &query, &keys, &values, temperature, |s| s),
        TemperatureOn::Query => {
            let query: Vec<f64> = query.iter().map(|q| q / temperature).collect();
            definition::attend(layer, &query, &keys, &values, 1.0, |s| s)
        }
    };
    let v = wide(&now.value);
    let learned = match &options.blend {
        Blend::Factor => share,
        Blend::Gate(gate) => 1.0 - sigmoid(definition::dense(&[&v[..], &attended].concat(), gate)[0]),
    };
    let share = given.mal.blend_factor.map_or(learned, f64::from);
    assert_near(&[metrics.blend_factor], &[share], 1e-5, &what);
    let mut expected: Vec<f64> =
        v.iter().zip(&attended).map(|(v, a)| (1.0 - share) * v + share * a).collect();
    if let Some(projector) = &options.projector {
        expected = definition::dense(&expected, projector).into_iter().map(f64::tanh).collect();
    }
    assert_near(&out, &expected, 1e-5, &what);
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let change =
        norm(&mut expected.iter().zip(&v).map(|(to, from)| to - from)) / norm(&mut v.iter().copied());
    assert_near(&[metrics.v_change_magnitude.expect("a value that is not 0")], &[change], 1e-5, &what);
}

fn dense(outputs: usize, inputs: usize) -> DenseWeights {
    let (weight, bias) = (numbers(outputs * inputs, 71), Some(numbers(outputs, 72)));
    DenseWeights { weight: weight.iter().map(|w| 0.3 * w).collect(), bias, outputs, inputs }
}

#[test]
fn every_focus_and_hint() {
    let dims = InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.value };
    let (config, weights) = projected(dims, DIMS.value);
    let layer = Layer::Projected { config: &config, weights: &weights };
    let gate = Blend::Gate(dense(1, 2 * DIMS.value));
    for options in [
        MalOptions::default(),
        MalOptions { temperature: TemperatureOn::Query, ..MalOptions::default() },
        MalOptions { blend: gate.clone(), ..MalOptions::default() },
        MalOptions { blend: gate, projector: Some(dense(DIMS.value, DIMS.value)), ..MalOptions::default() },
    ] {
        let module = MultiHeadAttention::new(config.clone(), &weights).expect("valid parts");
        let mal = Mal::with_options(module, DIMS, options.clone()).expect("valid parts");
        let plain =
            Mal::with_options(HistoryAttention::identity(4), DIMS, options.clone()).expect("valid parts");
        for steps in LENGTHS {
            assert_defined(&mal, &layer, &options, steps, None);
            for focus in Focus::ALL {
                let hinted = |share| MalHints {
                    context_limit: Some(4),
                    blend_factor: Some(share),
                    attention_temperature: Some(0.4),
                };
                for mal_hints in [MalHints::default(), hinted(0.35), hinted(0.0), hinted(1.0)] {
                    let hints = Hints { focus, mal: mal_hints, ..Hints::default() };
                    assert_defined(&mal, &layer, &options, steps, Some(&hints));
                    assert_defined(&plain, &Layer::Identity { heads: 4 }, &options, steps, Some(&hints));
                }
            }
        }
    }
}

/// The share is that of what is attended to: with 0 the value stays, with 1 nothing of it is left.
#[test]
fn the_share_is_the_attended_ones() {
    let mal = Mal::new(HistoryAttention::identity(1), DIMS).expect("valid parts");
    let (_, kept) = filled(DIMS, 1);
    for (share, expected) in [(0.0, Vectors::new(DIMS, 1000).value), (1.0, kept[0].value.clone())] {
        let hints = MalHints { blend_factor: Some(share), ..MalHints::default() };
        let (out, _) = call(&mal, 1, Some(&Hints { mal: hints, ..Hints::default() }));
        assert_eq!(out, expected);
    }
}

#[test]
fn layers_are_saved_and_read() {
    let layer = dense(5, 3);
    for naming in [Naming::Keras, Naming::PyTorch, Naming::Bert] {
        let saved = layer.to_tensors(naming, "projector").expect("sizes that fit");
        assert_eq!(DenseWeights::from_tensors(naming, "projector", &saved), Ok(layer.clone()));
        let bare = DenseWeights { bias: None, ..layer.clone() };
        assert_eq!(DenseWeights::from_tensors(naming, "projector", &saved[..1]), Ok(bare));
        let error = DenseWeights::from_tensors(naming, "gate", &saved).expect_err("no such layer");
        assert!(matches!(error, lucid_attention::AttentionError::TensorMissing { .. }), "{error}");
        #[cfg(feature = "safetensors")]
        {
            let bytes = layer.to_safetensors(naming, "projector").expect("a file");
            let file = safetensors::SafeTensors::deserialize(&bytes).expect("what was saved");
            assert_eq!(DenseWeights::from_safetensors(naming, "projector", &file), Ok(layer.clone()));
        }
    }
    let keras = layer.to_tensors(Naming::Keras, "p").expect("sizes that fit");
    assert_eq!((&keras[0].name[..], &keras[0].shape[..]), ("p/kernel", &[3, 5][..]));
    assert_eq!(keras[0].data[1], layer.weight[3], "y = x W");
    let mut wrong = layer.to_tensors(Naming::PyTorch, "p").expect("sizes that fit");
    wrong[1].shape = vec![1, 5];
    let error = DenseWeights::from_tensors(Naming::PyTorch, "p", &wrong).expect_err("a bias of two axes");
    assert_eq!(error.to_string(), "tensor \"p.bias\": expected shape [5], got [1, 5]");
}

#[test]
fn what_is_refused() {
    // What comes out of the original's attention has the size of a query, and the blend fails.
    let (config, weights) =
        projected(InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.value }, DIMS.query);
    let module = MultiHeadAttention::new(config, &weights).expect("valid parts");
    let error = Mal::new(module, DIMS).expect_err("another size");
    assert_eq!(error, shape("attention", "output_dim", DIMS.value, DIMS.query));
    let refuse = |options| {
        Mal::with_options(HistoryAttention::identity(1), DIMS, options).expect_err("layers that do not fit")
    };
    let gate = |dense| MalOptions { blend: Blend::Gate(dense), ..MalOptions::default() };
    assert_eq!(refuse(gate(dense(1, 20))), shape("gate", "inputs", 40, 20));
    assert_eq!(refuse(gate(dense(2, 40))), shape("gate", "outputs", 1, 2));
    let projector = |dense| MalOptions { projector: Some(dense), ..MalOptions::default() };
    assert_eq!(refuse(projector(dense(20, 19))), shape("projector", "inputs", 20, 19));
    assert_eq!(refuse(projector(dense(19, 20))), shape("projector", "outputs", 20, 19));

    let mal = Mal::new(HistoryAttention::identity(1), DIMS).expect("valid parts");
    let (mut context, _) = filled(DIMS, 3);
    let now = Vectors::new(DIMS, 9);
    let current = context.begin(now.step(0.0, "")).expect("a valid step");
    let mut workspace = TitansWorkspace::new();
    let mut refuse = |out: usize, hints| {
        let (mut out, hints) = (vec![7.0; out], Hints { mal: hints, ..Hints::default() });
        let error = mal
            .process_input(&current, Some(&hints), &mut out, &mut workspace)
            .expect_err("a call that does not fit");
        assert!(out.iter().all(|&x| x == 7.0), "nothing is written");
        error
    };
    let none = MalHints::default();
    assert_eq!(refuse(19, none), shape("v_prime", "dim", 20, 19));
    for (share, got) in [(-0.1, "-0.1"), (1.1, "1.1"), (f32::NAN, "NaN")] {
        let hints = MalHints { blend_factor: Some(share), ..none };
        assert_eq!(refuse(20, hints), value("hints.blend_factor", "a number from 0 to 1", got));
    }
    let hints = MalHints { attention_temperature: Some(0.0), ..none };
    let expected = "a finite number above 0 with a finite inverse";
    assert_eq!(refuse(20, hints), value("hints.attention_temperature", expected, "0"));
    let hints = MalHints { context_limit: Some(0), ..none };
    assert_eq!(refuse(20, hints), value("hints.context_limit", "at least 1 step", "0"));
}
