//! MAG: gates of every focus against their definition, hints, gates of one's own, and what is refused.

use crate::definition::{self, Layer, sigmoid, wide};
use crate::{DIMS, Vectors, assert_near, filled, numbers, projected, shape, value};
use lucid_attention::AttentionError;
use lucid_attention::module::*;
use lucid_attention::titans::lucidia::*;
use lucid_attention::titans::*;

const LENGTHS: [usize; 7] = [0, 1, 15, 16, 25, 50, 51];

fn dense_gates(inputs: usize) -> DenseGates {
    DenseGates::new([1u64, 2, 3].map(|seed| DenseWeights {
        weight: numbers(inputs, seed),
        bias: Some(numbers(1, 10 + seed)),
        outputs: 1,
        inputs,
    }))
    .expect("valid weights")
}

fn call<G: Gates>(
    mag: &Mag<G>,
    steps: usize,
    hints: Option<&Hints>,
) -> Result<(Option<GateValues>, MagMetrics), AttentionError> {
    let (mut context, _) = filled(DIMS, steps);
    let now = Vectors::new(DIMS, 1000);
    let current = context.begin(now.step(0.0, "now")).expect("a valid step");
    mag.process_input(&current, hints, &mut TitansWorkspace::new())
}

/// Limit, temperature, factors.
fn row(focus: Focus) -> (Option<usize>, f64, [f64; 3]) {
    match focus {
        Focus::Default => (Some(20), 1.0, [1.0, 1.0, 1.0]),
        Focus::Recency => (Some(15), 0.7, [1.2, 1.3, 0.9]),
        Focus::Relevance => (Some(25), 1.2, [0.8, 1.1, 0.95]),
        Focus::Balance => (Some(20), 1.0, [1.0, 1.0, 0.9]),
        Focus::Broad => (None, 1.5, [0.7, 0.9, 1.0]),
        Focus::Emotional => (Some(25), 1.3, [0.6, 1.4, 0.8]),
    }
}

fn assert_defined(
    mag: &Mag<DenseGates>,
    layer: &Layer<'_>,
    gates: &DenseGates,
    options: MagOptions,
    steps: usize,
    hints: Option<&Hints>,
) {
    let what = format!("{steps} steps, {hints:?}, {options:?}");
    let (got, metrics) = call(mag, steps, hints).expect("a valid call");
    let (_, kept) = filled(DIMS, steps);
    let now = Vectors::new(DIMS, 1000);
    let given = hints.copied().unwrap_or_default();
    let (limit, temperature, factors) = row(given.focus);
    let limit = given.mag.context_limit.or(limit);
    let GateModifiers { alpha_scale, theta_scale, eta_scale } = given.mag.gate_modifiers;
    let hinted = [alpha_scale, theta_scale, eta_scale];
    let factors: Vec<f64> = (0..3).map(|i| hinted[i].map_or(factors[i], f64::from)).collect();
    let picked = definition::chosen(&kept, usize::MAX, limit, true);

    assert_eq!((metrics.hints_used, metrics.attention_focus), (hints.is_some(), given.focus), "{what}");
    assert_eq!((metrics.context_limit, metrics.history_size_used), (limit, picked.len()), "{what}");
    assert_eq!(metrics.context_limited, picked.len() < kept.len(), "{what}");
    assert_near(&[metrics.attention_temperature], &[temperature], 1e-6, &what);
    let GateValues { alpha, theta, eta } = metrics.gate_modifiers;
    assert_near(&[alpha, theta, eta], &factors, 1e-6, &what);
    assert_eq!(
        (metrics.gate_calculation_success, metrics.calculated_gates),
        (!picked.is_empty(), got),
        "{what}"
    );
    assert_eq!(metrics.temperature_scaling, !picked.is_empty() && temperature != 1.0, "{what}");
    assert_eq!((metrics.dimensions_aligned, metrics.aligned_dimension), (false, None), "{what}");
    if picked.is_empty() {
        assert_eq!(
            (got, metrics.original_gates, metrics.attention_norm, metrics.gates_modified),
            (None, None, None, false),
            "{what}"
        );
        return;
    }
    let keys: Vec<&[f32]> = picked.iter().map(|step| &step.key[..]).collect();
    let query = wide(&now.query);
    let (attended, _) = match options.temperature {
        TemperatureOn::Logits => definition::attend(layer, &query, &keys, &keys, temperature, |s| s),
        TemperatureOn::Query => {
            let query: Vec<f64> = query.iter().map(|q| q / temperature).collect();
            definition::attend(layer, &query, &keys, &keys, 1.0, |s| s)
        }
    };
    let norm = attended.iter().map(|a| a * a).sum::<f64>().sqrt();
    assert_near(&[metrics.attention_norm.expect("there is an output")], &[norm], 1e-5, &what);
    let original: Vec<f64> =
        gates.weights().iter().map(|gate| sigmoid(definition::dense(&attended, gate)[0])).collect();
    let GateValues { alpha, theta, eta } = metrics.original_gates.expect("there are gates");
    assert_near(&[alpha, theta, eta], &original, 1e-5, &what);
    let scaled: Vec<f64> = original.iter().zip(&factors).map(|(gate, factor)| gate * factor).collect();
    let theta = if options.clamp_theta { scaled[1].min(1.0) } else { scaled[1] };
    let expected = [scaled[0].min(1.0), theta, scaled[2].min(1.0)];
    let GateValues { alpha, theta, eta } = got.expect("there are gates");
    assert_near(&[alpha, theta, eta], &expected, 1e-5, &what);
    assert_eq!(metrics.gates_modified, got != metrics.original_gates, "{what}");
    assert_eq!(metrics.gates_modified, factors.iter().any(|&factor| factor != 1.0), "{what}");
}

#[test]
fn every_focus_and_hint() {
    let dims = InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.key };
    let (config, weights) = projected(dims, 9);
    let layer = Layer::Projected { config: &config, weights: &weights };
    let hinted = MagHints {
        context_limit: Some(4),
        gate_modifiers: GateModifiers { alpha_scale: Some(50.0), theta_scale: Some(60.0), eta_scale: None },
    };
    for options in [
        MagOptions::default(),
        MagOptions { temperature: TemperatureOn::Query, ..MagOptions::default() },
        MagOptions { clamp_theta: false, ..MagOptions::default() },
    ] {
        let module = MultiHeadAttention::new(config.clone(), &weights).expect("valid parts");
        let mag = Mag::with_options(module, dense_gates(9), DIMS, options).expect("valid parts");
        let identity = HistoryAttention::identity(4);
        let plain = Mag::with_options(identity, dense_gates(16), DIMS, options).expect("valid parts");
        for steps in LENGTHS {
            assert_defined(&mag, &layer, &dense_gates(9), options, steps, None);
            for focus in Focus::ALL {
                for mag_hints in [MagHints::default(), hinted] {
                    let hints = Hints { focus, mag: mag_hints, ..Hints::default() };
                    assert_defined(&mag, &layer, &dense_gates(9), options, steps, Some(&hints));
                    let layer = Layer::Identity { heads: 4 };
                    assert_defined(&plain, &layer, &dense_gates(16), options, steps, Some(&hints));
                }
            }
        }
    }
}

/// Projections have biases: a query divided by the temperature is not logits divided by it. (The original's way is an option.)
#[test]
fn temperature_on_the_query_is_another_thing() {
    let (config, weights) = projected(InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.key }, 9);
    let norm = |temperature| {
        let module = MultiHeadAttention::new(config.clone(), &weights).expect("valid parts");
        let options = MagOptions { temperature, ..MagOptions::default() };
        let mag = Mag::with_options(module, dense_gates(9), DIMS, options).expect("valid parts");
        let hints = Hints { focus: Focus::Broad, ..Hints::default() };
        call(&mag, 20, Some(&hints)).expect("a valid call").1.attention_norm.expect("there is a history")
    };
    assert!((norm(TemperatureOn::Logits) - norm(TemperatureOn::Query)).abs() > 1e-3);
}

/// A server in place of weights.
struct Served(Result<GateValues, &'static str>);

impl Gates for Served {
    fn attention_dim(&self) -> usize {
        DIMS.key
    }

    fn gates(&self, attended: &[f32]) -> Result<GateValues, AttentionError> {
        assert_eq!(attended.len(), DIMS.key);
        self.0.map_err(|reason| AttentionError::Service { operand: "gates", reason: reason.to_owned() })
    }
}

#[test]
fn gates_of_a_server() {
    let run = |served| {
        let mag = Mag::new(HistoryAttention::identity(2), Served(served), DIMS).expect("valid parts");
        call(&mag, 5, None).map(|(gates, _)| gates)
    };
    let gates = GateValues { alpha: 0.0, theta: 1.0, eta: 0.5 };
    assert_eq!(run(Ok(gates)), Ok(Some(gates)));
    let error = run(Err("status 503")).expect_err("a server that fails");
    assert_eq!(error.to_string(), "gates: status 503");
    let expected = "a number from 0 to 1";
    assert_eq!(run(Ok(GateValues { alpha: 1.5, ..gates })), Err(value("gate alpha", expected, "1.5")));
    assert_eq!(run(Ok(GateValues { theta: -0.5, ..gates })), Err(value("gate theta", expected, "-0.5")));
    assert_eq!(run(Ok(GateValues { eta: f32::NAN, ..gates })), Err(value("gate eta", expected, "NaN")));
}

#[test]
fn gates_are_saved_and_read() {
    let gates = dense_gates(9);
    for naming in [Naming::Keras, Naming::PyTorch, Naming::Bert] {
        let saved = gates.to_tensors(naming, "mag.");
        let read = DenseGates::from_tensors(naming, "mag.", &saved).expect("what was saved");
        assert_eq!(read.weights(), gates.weights());
        let error = DenseGates::from_tensors(naming, "mag.", &saved[1..]).expect_err("one is missing");
        assert!(error.to_string().contains("mag.alpha"), "{error}");
        #[cfg(feature = "safetensors")]
        {
            let bytes = gates.to_safetensors(naming, "mag.").expect("a file");
            let file = safetensors::SafeTensors::deserialize(&bytes).expect("what was saved");
            let read = DenseGates::from_safetensors(naming, "mag.", &file).expect("what was saved");
            assert_eq!(read.weights(), gates.weights());
        }
    }
    let names: Vec<String> =
        gates.to_tensors(Naming::PyTorch, "").into_iter().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["alpha.weight", "alpha.bias", "theta.weight", "theta.bias", "eta.weight", "eta.bias"]);
    assert_eq!(gates.to_tensors(Naming::Keras, "")[2].shape, [9, 1]);
}

/// What the memory starts with: it forgets an eighth at each update.
#[test]
fn initial_gates() {
    let GateValues { alpha, theta, eta } =
        DenseGates::initial(5).and_then(|gates| gates.gates(&numbers(5, 1))).expect("valid sizes");
    assert_near(&[alpha, theta, eta], &[-2.0, -3.0, 2.0].map(sigmoid), 1e-6, "gates");
}

#[test]
fn what_is_refused() {
    let error = Mag::new(HistoryAttention::identity(2), dense_gates(9), DIMS).expect_err("other sizes");
    assert_eq!(error, shape("gates", "attention_dim", 16, 9));
    let error =
        Mag::new(HistoryAttention::identity(5), dense_gates(16), DIMS).expect_err("no heads of one size");
    assert_eq!(error, value("key", "a size that is a multiple of heads", "16 with 5"));
    let dense = |outputs, inputs, weight, bias| DenseWeights {
        weight: vec![0.0; weight],
        bias: Some(vec![0.0; bias]),
        outputs,
        inputs,
    };
    let good = || dense(1, 4, 4, 1);
    let refuse = |weights| DenseGates::new(weights).expect_err("weights that do not fit");
    assert_eq!(refuse([good(), dense(2, 4, 8, 2), good()]), shape("theta weight", "outputs", 1, 2));
    assert_eq!(refuse([good(), good(), dense(1, 3, 3, 1)]), shape("eta weight", "inputs", 4, 3));
    assert_eq!(refuse([dense(1, 4, 3, 1), good(), good()]), shape("alpha weight", "elements", 4, 3));
    assert_eq!(refuse([dense(1, 4, 4, 2), good(), good()]), shape("alpha bias", "elements", 1, 2));

    let mag = Mag::new(HistoryAttention::identity(2), dense_gates(16), DIMS).expect("valid parts");
    let refuse = |hints| {
        let hints = Hints { mag: hints, ..Hints::default() };
        call(&mag, 5, Some(&hints)).expect_err("hints out of range")
    };
    let limit = MagHints { context_limit: Some(0), ..MagHints::default() };
    assert_eq!(refuse(limit), value("hints.context_limit", "at least 1 step", "0"));
    for (scale, got) in [(-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let gate_modifiers = GateModifiers { eta_scale: Some(scale), ..GateModifiers::default() };
        let expected = value("hints.gate_modifiers", "finite numbers that are not negative", got);
        assert_eq!(refuse(MagHints { context_limit: None, gate_modifiers }), expected);
    }
}
