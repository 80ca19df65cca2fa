//! Inputs that are not as they should be: refused by default; repaired, and counted, where a policy says so.

use crate::{assert_bits, lively_weights, numbers, tensor};
use lucid_attention::AttentionError;
use lucid_attention::module::*;
use std::sync::Arc;

const DIM: usize = 24;

fn module(policies: InputPolicies) -> MultiHeadAttention {
    let config = AttentionConfig { num_heads: 2, key_dim: 8, ..AttentionConfig::default() };
    let weights = lively_weights(&config, InputDims::all(DIM), 1);
    MultiHeadAttention::with_options(config, &weights, ModuleOptions { policies, ..ModuleOptions::default() })
        .expect("valid parts")
}

fn numbers_policy(not_finite: NotFinite) -> MultiHeadAttention {
    module(InputPolicies { not_finite, ..InputPolicies::default() })
}

fn dim_policy(wrong_dim: WrongDim) -> MultiHeadAttention {
    module(InputPolicies { wrong_dim, ..InputPolicies::default() })
}

/// Queries, and keys of `[2, 5]` tokens with a bad number in token 3 of the second sequence.
fn broken(bad: f32) -> [Vec<f32>; 2] {
    let (query, mut keys) = (numbers(2 * 3 * DIM, 2), numbers(2 * 5 * DIM, 3));
    keys[(5 + 3) * DIM + 7] = bad;
    [query, keys]
}

#[test]
fn not_finite_is_refused_by_default() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let [query, keys] = broken(bad);
        let (q, k) = (tensor(&query, &[2, 3, DIM]), tensor(&keys, &[2, 5, DIM]));
        let module = module(InputPolicies::default());
        let mut out = vec![7.0; 2 * 3 * DIM];
        let outputs = ModuleOutputs::new(&mut out);
        let error = module.forward_into(&ModuleInputs::new(q, k, k), outputs, &mut ModuleWorkspace::new());
        let expected =
            AttentionError::NotFinite { operand: "key", batch: 1, token: 3, dim: 7, got: bad.to_string() };
        assert_eq!(error, Err(expected));
        assert!(out.iter().all(|&x| x == 7.0), "nothing is written");
        let error = module.project_kv(q, k, 10, &mut ModuleWorkspace::new());
        assert!(error.is_err(), "keys and values of different lengths");
        let error = module.project_kv(k, k, 10, &mut ModuleWorkspace::new()).expect_err("a bad key");
        assert!(matches!(error, AttentionError::NotFinite { operand: "key", .. }), "{error}");
        assert_eq!(module.repairs(), Repairs::default(), "nothing is counted");
    }
}

#[test]
fn repairs_of_numbers() {
    let [query, keys] = broken(f32::NAN);
    let q = tensor(&query, &[2, 3, DIM]);
    let run = |module: &MultiHeadAttention, keys: &[f32]| {
        let k = tensor(keys, &[2, 5, DIM]);
        module.forward(&ModuleInputs::new(q, k, k)).expect("repaired")
    };
    let plain = module(InputPolicies::default());

    let zero_tensor = numbers_policy(NotFinite::ZeroTensor);
    let zeros = vec![0.0; keys.len()];
    assert_bits(&run(&zero_tensor, &keys), &run(&plain, &zeros), "the tensor counts as zeros");
    assert_eq!((zero_tensor.repairs().zeroed_tensors, zero_tensor.repairs().zeroed_tokens), (1, 0));

    let zero_token = numbers_policy(NotFinite::ZeroToken);
    let mut one_zeroed = keys.clone();
    one_zeroed[(5 + 3) * DIM..][..DIM].fill(0.0);
    assert_bits(&run(&zero_token, &keys), &run(&plain, &one_zeroed), "the token counts as zeros");
    assert_eq!((zero_token.repairs().zeroed_tensors, zero_token.repairs().zeroed_tokens), (0, 1));
    run(&zero_token, &keys);
    assert_eq!(zero_token.repairs().zeroed_tokens, 2, "counts run on");
    zero_token.reset_repairs();
    assert_eq!(zero_token.repairs(), Repairs::default());
    run(&zero_token, &zeros);
    assert_eq!(zero_token.repairs(), Repairs::default(), "nothing to repair");

    let propagate = numbers_policy(NotFinite::Propagate);
    let out = run(&propagate, &keys);
    assert!(out[..3 * DIM].iter().all(|x| x.is_finite()), "the sequence without it");
    assert!(out[3 * DIM..].iter().all(|x| x.is_nan()), "what attends to it shows it");
    assert_eq!(propagate.repairs(), Repairs::default());
}

/// The residual is the repaired query.
#[test]
fn a_repaired_query() {
    let mut query = numbers(DIM, 4);
    query[0] = f32::INFINITY;
    let keys = numbers(3 * DIM, 5);
    let k = tensor(&keys, &[3, DIM]);
    let zeros = vec![0.0; DIM];
    let repaired = numbers_policy(NotFinite::ZeroToken);
    let got = repaired.forward(&ModuleInputs::new(tensor(&query, &[DIM]), k, k)).expect("repaired");
    let plain = module(InputPolicies::default());
    let expected = plain.forward(&ModuleInputs::new(tensor(&zeros, &[DIM]), k, k)).expect("a valid call");
    assert_bits(&got, &expected, "a query of zeros");
}

#[test]
fn other_sizes_are_refused_by_default() {
    let numbers = numbers(30 * 7, 6);
    let (good, bad) = (tensor(&numbers[..3 * DIM], &[3, DIM]), tensor(&numbers[..90], &[3, 30]));
    let module = module(InputPolicies::default());
    for (inputs, operand) in [
        (ModuleInputs::new(bad, good, good), "query"),
        (ModuleInputs::new(good, bad, good), "key"),
        (ModuleInputs::new(good, good, bad), "value"),
    ] {
        let error = module.forward(&inputs).expect_err(operand);
        assert_eq!(error, AttentionError::Shape { operand, axis: "dim", expected: DIM, got: 30 });
    }
}

#[test]
fn pad_and_truncate() {
    let module = dim_policy(WrongDim::PadTruncate);
    let numbers = numbers(5 * 30, 7);
    let (long, short) = (&numbers[..5 * 30], &numbers[..5 * 20]);
    let cut: Vec<f32> = long.chunks_exact(30).flat_map(|row| row[..DIM].to_vec()).collect();
    let padded: Vec<f32> = short.chunks_exact(20).flat_map(|row| [row, &[0.0; 4]].concat()).collect();
    let run = |q, k, v| module.forward(&ModuleInputs::new(q, k, v)).expect("fitted");
    let of = |data, dim| tensor(data, &[5, dim]);
    let expected = run(of(&cut, DIM), of(&padded, DIM), of(&padded, DIM));
    assert_eq!(module.repairs(), Repairs::default());
    assert_bits(&run(of(long, 30), of(short, 20), of(&padded, DIM)), &expected, "fitted inputs");
    let repairs = module.repairs();
    assert_eq!((repairs.truncated_tensors, repairs.padded_tensors, repairs.projected_tensors), (1, 1, 0));
}

#[test]
fn project() {
    let (inputs, matrix) = (30, numbers(DIM * 30, 8));
    let layer = || Linear::new(&matrix, None, [DIM, inputs], &LinearOptions::default()).expect("valid parts");
    let module = dim_policy(WrongDim::Project(InputLayers::all(layer())));
    let given = numbers(5 * inputs, 9);
    let mut projected = vec![0.0; 5 * DIM];
    layer().run(&given, &mut projected).expect("whole rows");
    let direct = tensor(&projected, &[5, DIM]);
    let expected = module.forward(&ModuleInputs::self_attention(direct)).expect("a valid call");
    let got = module.forward(&ModuleInputs::self_attention(tensor(&given, &[5, inputs]))).expect("projected");
    assert_bits(&got, &expected, "through the layer");
    assert_eq!(module.repairs().projected_tensors, 1, "one tensor, once");
    let error = module.forward(&ModuleInputs::self_attention(tensor(&given[..5 * 29], &[5, 29])));
    let expected = AttentionError::Shape { operand: "query", axis: "dim", expected: DIM, got: 29 };
    assert_eq!(error.expect_err("a size that the layer has not"), expected);
}

/// Query, key and value come in sizes of their own, each through a layer of its own; errors name the input.
#[test]
fn project_each_by_its_own() {
    let layer = |inputs: usize, seed| {
        let matrix = numbers(DIM * inputs, seed);
        Arc::new(Linear::new(&matrix, None, [DIM, inputs], &LinearOptions::default()).expect("valid parts"))
    };
    let [for_query, for_key, for_value] =
        [(30, 1), (20, 2), (10, 3)].map(|(inputs, seed)| layer(inputs, seed));
    let layers = InputLayers {
        query: Some(for_query.clone()),
        key: Some(for_key.clone()),
        value: Some(for_value.clone()),
    };
    let module = dim_policy(WrongDim::Project(layers));
    let given = numbers(5 * 30, 9);
    let through = |layer: &Linear| {
        let mut projected = vec![0.0; 5 * DIM];
        layer.run(&given[..5 * layer.inputs()], &mut projected).expect("whole rows");
        projected
    };
    let [q, k, v] = [&for_query, &for_key, &for_value].map(|layer| through(layer));
    let [q, k, v] = [&q, &k, &v].map(|projected| tensor(projected, &[5, DIM]));
    let expected = module.forward(&ModuleInputs::new(q, k, v)).expect("a valid call");
    assert_eq!(module.repairs(), Repairs::default());
    let of = |dim: usize| tensor(&given[..5 * dim], &[5, dim]);
    let got = module.forward(&ModuleInputs::new(of(30), of(20), of(10))).expect("projected");
    assert_bits(&got, &expected, "each through its layer");
    assert_eq!(module.repairs().projected_tensors, 3);
    for (inputs, operand, got) in [
        (ModuleInputs::new(of(20), k, v), "query", 20),
        (ModuleInputs::new(q, of(10), v), "key", 10),
        (ModuleInputs::new(q, k, of(30)), "value", 30),
    ] {
        let error = module.forward(&inputs).expect_err(operand);
        assert_eq!(error, AttentionError::Shape { operand, axis: "dim", expected: DIM, got });
    }
}

/// One tensor in several places goes through each place's layer.
#[test]
fn a_shared_tensor_with_layers_that_differ() {
    let layer = |seed| {
        let matrix = numbers(DIM * 30, seed);
        Arc::new(Linear::new(&matrix, None, [DIM, 30], &LinearOptions::default()).expect("valid parts"))
    };
    let [first, second] = [1, 2].map(layer);
    let layers =
        InputLayers { query: Some(first.clone()), key: Some(second.clone()), value: Some(second.clone()) };
    let module = dim_policy(WrongDim::Project(layers));
    let given = numbers(5 * 30, 9);
    let [q, k] = [first, second].map(|layer| {
        let mut projected = vec![0.0; 5 * DIM];
        layer.run(&given, &mut projected).expect("whole rows");
        projected
    });
    let [q, k] = [&q, &k].map(|projected| tensor(projected, &[5, DIM]));
    let expected = module.forward(&ModuleInputs::new(q, k, k)).expect("a valid call");
    let shared = ModuleInputs::self_attention(tensor(&given, &[5, 30]));
    assert_bits(&module.forward(&shared).expect("projected"), &expected, "self-attention");
    assert_eq!(module.repairs().projected_tensors, 2, "keys and values share theirs");
}

/// A layer whose outputs are not what the weights ask for would never serve.
#[test]
fn layers_that_do_not_fit_the_weights() {
    let linear = Linear::new(&[0.5; 60], None, [2, 30], &LinearOptions::default()).expect("valid parts");
    let policies =
        InputPolicies { wrong_dim: WrongDim::Project(InputLayers::all(linear)), ..Default::default() };
    let config = AttentionConfig { num_heads: 2, key_dim: 8, ..AttentionConfig::default() };
    let weights = lively_weights(&config, InputDims::all(DIM), 1);
    let options = ModuleOptions { policies, ..ModuleOptions::default() };
    let error = MultiHeadAttention::with_options(config, &weights, options).expect_err("2 numbers for 24");
    let expected = AttentionError::Shape { operand: "query layer", axis: "outputs", expected: DIM, got: 2 };
    assert_eq!(error, expected);
}

/// One tensor in any two of the three places is repaired once.
#[test]
fn a_shared_tensor_counts_once() {
    let (mut shared, other) = (numbers(4 * DIM, 2), numbers(4 * DIM, 3));
    shared[DIM] = f32::NAN;
    let (shared, other) = (tensor(&shared, &[4, DIM]), tensor(&other, &[4, DIM]));
    let module = numbers_policy(NotFinite::ZeroToken);
    for [query, key, value] in
        [[shared, shared, shared], [shared, shared, other], [shared, other, shared], [other, shared, shared]]
    {
        module.reset_repairs();
        module.forward(&ModuleInputs::new(query, key, value)).expect("a repaired call");
        assert_eq!(module.repairs().zeroed_tokens, 1);
    }
}
