//! Calls that fail: temperatures that nothing can be divided by, and what a workspace shows afterwards.

use crate::{DIMS, Vectors, filled, projected, value};
use lucid_attention::module::*;
use lucid_attention::titans::lucidia::*;
use lucid_attention::titans::*;

/// 1 over it is infinite.
const TINY: f32 = 1e-39;
/// 1 over it is finite, and a query of some 100 divided by it is not.
const SMALL: f32 = 1e-37;

fn mac_hints(temperature: f32) -> Hints {
    let mac = MacHints { attention_temperature: Some(temperature), ..MacHints::default() };
    Hints { mac, ..Hints::default() }
}

fn mal_hints(temperature: f32) -> Hints {
    let mal = MalHints { attention_temperature: Some(temperature), ..MalHints::default() };
    Hints { mal, ..Hints::default() }
}

#[test]
fn temperatures_without_an_inverse() {
    let (mut context, _) = filled(DIMS, 5);
    let now = Vectors::new(DIMS, 9);
    let current = context.begin(now.step(0.0, "")).expect("a valid step");
    let expected = value(
        "hints.attention_temperature",
        "a finite number above 0 with a finite inverse",
        &TINY.to_string(),
    );
    let mut workspace = TitansWorkspace::new();
    let mac = Mac::new(HistoryAttention::identity(1), DIMS).expect("valid parts");
    let mut y = vec![7.0; DIMS.y];
    let got = mac.process_input(&current, &now.y, Some(&mac_hints(TINY)), &mut y, &mut workspace);
    assert_eq!(got, Err(expected.clone()));
    assert!(y.iter().all(|&y| y == 7.0), "nothing is written");
    for temperature in [TemperatureOn::Logits, TemperatureOn::Query] {
        let options = MalOptions { temperature, ..MalOptions::default() };
        let mal = Mal::with_options(HistoryAttention::identity(1), DIMS, options).expect("valid parts");
        let mut v = vec![7.0; DIMS.value];
        let got = mal.process_input(&current, Some(&mal_hints(TINY)), &mut v, &mut workspace);
        assert_eq!(got, Err(expected.clone()));
        assert!(v.iter().all(|&v| v == 7.0), "nothing is written");
    }
}

#[test]
fn queries_that_a_temperature_overflows() {
    let (mut context, _) = filled(DIMS, 5);
    let now = Vectors { query: vec![100.0; DIMS.query], ..Vectors::new(DIMS, 9) };
    let current = context.begin(now.step(0.0, "")).expect("a valid step");
    let options = MalOptions { temperature: TemperatureOn::Query, ..MalOptions::default() };
    let mal = Mal::with_options(HistoryAttention::identity(1), DIMS, options).expect("valid parts");
    let mut v = vec![7.0; DIMS.value];
    let got = mal.process_input(&current, Some(&mal_hints(SMALL)), &mut v, &mut TitansWorkspace::new());
    let expected = "one that leaves the query finite when it is divided";
    assert_eq!(got, Err(value("temperature", expected, &SMALL.to_string())));
    assert!(v.iter().all(|&v| v == 7.0), "nothing is written");

    // MAG has no hint for it, but a focus that is below 1.
    let now = Vectors { query: vec![f32::MAX; DIMS.query], ..now.clone() };
    let current = context.begin(now.step(0.0, "")).expect("a valid step");
    let options = MagOptions { temperature: TemperatureOn::Query, ..MagOptions::default() };
    let gates = DenseGates::initial(DIMS.key).expect("a size");
    let mag = Mag::with_options(HistoryAttention::identity(1), gates, DIMS, options).expect("valid parts");
    let hints = Hints { focus: Focus::Recency, ..Hints::default() };
    let got = mag.process_input(&current, Some(&hints), &mut TitansWorkspace::new());
    assert_eq!(got, Err(value("temperature", expected, "0.7")));
}

/// A call that fails leaves nothing of the one before to be taken for its own.
#[test]
fn weights_after_a_failure() {
    let (mut context, _) = filled(DIMS, 5);
    let now = Vectors::new(DIMS, 9);
    let current = context.begin(now.step(0.0, "")).expect("a valid step");
    let mut workspace = TitansWorkspace::new();
    let fails = |what: &str, workspace: &mut TitansWorkspace, call: &mut dyn FnMut(&mut TitansWorkspace)| {
        assert_eq!(workspace.weights().len(), 5, "{what}: a call before");
        call(workspace);
        assert!(workspace.weights().is_empty(), "{what}: {:?}", workspace.weights());
    };

    let mac = Mac::new(HistoryAttention::identity(1), DIMS).expect("valid parts");
    let mut y = vec![0.0; DIMS.y];
    for (what, hints) in [("temperature", mac_hints(TINY)), ("size", Hints::default())] {
        mac.process_input(&current, &now.y, None, &mut y, &mut workspace).expect("a valid call");
        fails(what, &mut workspace, &mut |workspace| {
            let short = &now.y[usize::from(what == "size")..];
            mac.process_input(&current, short, Some(&hints), &mut y, workspace).expect_err(what);
        });
    }
    // Within the layer, which takes no scale this large.
    let (config, mut weights) =
        projected(InputDims { query: DIMS.query, key: DIMS.key, value: DIMS.y }, DIMS.y);
    let config = AttentionConfig { scale: Some(1e38), num_heads: 1, ..config };
    let ModuleWeights { query, key, value, output, .. } = &mut weights;
    for (dense, heads_dim) in [(query, 6), (key, 6), (value, 5)] {
        dense.outputs = heads_dim;
        dense.weight.truncate(heads_dim * dense.inputs);
        dense.bias = Some(vec![0.0; heads_dim]);
    }
    output.inputs = 5;
    output.weight.truncate(5 * DIMS.y);
    let layer = MultiHeadAttention::new(config, &weights).expect("valid parts");
    let by_layer = Mac::new(layer, DIMS).expect("valid parts");
    by_layer.process_input(&current, &now.y, None, &mut y, &mut workspace).expect("a valid call");
    fails("a scale beyond its range", &mut workspace, &mut |workspace| {
        let hints = mac_hints(1e-3);
        by_layer
            .process_input(&current, &now.y, Some(&hints), &mut y, workspace)
            .expect_err("a scale of 1e41");
    });

    let mal = Mal::new(HistoryAttention::identity(1), DIMS).expect("valid parts");
    let mut v = vec![0.0; DIMS.value];
    mal.process_input(&current, None, &mut v, &mut workspace).expect("a valid call");
    fails("MAL", &mut workspace, &mut |workspace| {
        mal.process_input(&current, Some(&mal_hints(TINY)), &mut v, workspace).expect_err("a temperature");
    });
    let gates = DenseGates::initial(DIMS.key).expect("a size");
    let mag = Mag::new(HistoryAttention::identity(1), gates, DIMS).expect("valid parts");
    mag.process_input(&current, None, &mut workspace).expect("a valid call");
    fails("MAG", &mut workspace, &mut |workspace| {
        let mag_hints = MagHints { context_limit: Some(0), ..MagHints::default() };
        let hints = Hints { mag: mag_hints, ..Hints::default() };
        mag.process_input(&current, Some(&hints), workspace).expect_err("a limit");
    });
}
