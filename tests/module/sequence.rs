//! One query over lists of vectors, and tensors of every rank.

use crate::{assert_bits, lively_weights, numbers, tensor};
use lucid_attention::AttentionError;
use lucid_attention::module::*;

const DIMS: InputDims = InputDims { query: 20, key: 12, value: 16 };

fn config() -> AttentionConfig {
    AttentionConfig { num_heads: 2, key_dim: 8, ..AttentionConfig::default() }
}

fn module(wrong_dim: WrongDim) -> MultiHeadAttention {
    let policies = InputPolicies { wrong_dim, ..InputPolicies::default() };
    let weights = lively_weights(&config(), DIMS, 1);
    MultiHeadAttention::with_options(
        config(),
        &weights,
        ModuleOptions { policies, ..ModuleOptions::default() },
    )
    .expect("valid parts")
}

#[test]
fn lists_are_tensors() {
    let module = module(WrongDim::Reject);
    let (query, keys, values) = (numbers(20, 2), numbers(7 * 12, 3), numbers(7 * 16, 4));
    let key_list: Vec<&[f32]> = keys.chunks_exact(12).collect();
    let value_list: Vec<Vec<f32>> = values.chunks_exact(16).map(<[f32]>::to_vec).collect();
    let inputs = ModuleInputs::new(tensor(&query, &[20]), tensor(&keys, &[7, 12]), tensor(&values, &[7, 16]));
    let (out, scores) = module.forward_with_scores(&inputs).expect("a valid call");
    let got = module.process_sequence_with_scores(&query, &key_list, &value_list).expect("a valid call");
    assert_bits(&got.0, &out, "output");
    assert_bits(&got.1, &scores, "scores, [heads, keys]");
    assert_eq!(got.1.len(), 2 * 7);
    assert_bits(
        &module.process_sequence(&query, &key_list, &value_list).expect("a valid call"),
        &out,
        "alone",
    );
    // The same numbers of every rank.
    for [q, k, v] in [[&[1, 20][..], &[7, 12], &[7, 16]], [&[1, 1, 20], &[1, 7, 12], &[1, 7, 16]]] {
        let inputs = ModuleInputs::new(tensor(&query, q), tensor(&keys, k), tensor(&values, v));
        assert_bits(&module.forward(&inputs).expect("a valid call"), &out, "another rank");
    }
}

/// No key left: attention is 0, so what is projected is the output's bias, which residual and norm follow.
#[test]
fn empty_lists() {
    let bare = AttentionConfig { use_residual: false, use_layer_norm: false, ..config() };
    let weights = lively_weights(&bare, DIMS, 1);
    let module = MultiHeadAttention::new(bare, &weights).expect("valid parts");
    let none: [&[f32]; 0] = [];
    let (out, scores) =
        module.process_sequence_with_scores(&numbers(20, 2), &none, &none).expect("a valid call");
    assert_bits(&out, weights.output.bias.as_ref().expect("a bias"), "the output's bias is left");
    assert!(scores.is_empty());
}

#[test]
fn lists_that_do_not_fit() {
    let query = numbers(20, 2);
    let refuse = |keys: &[&[f32]], values: &[&[f32]]| {
        module(WrongDim::Reject).process_sequence(&query, keys, values).expect_err("lists that do not fit")
    };
    let (k, v) = (&[0.5; 12][..], &[0.5; 16][..]);
    let shape = |operand, axis, expected, got| AttentionError::Shape { operand, axis, expected, got };
    assert_eq!(refuse(&[k, k], &[v]), shape("value", "kv_len", 2, 1));
    assert_eq!(refuse(&[k, &k[..5]], &[v, v]), shape("key", "dim", 12, 5));
    assert_eq!(refuse(&[&[0.0; 13], k], &[v, v]), shape("key", "dim", 12, 13));
    assert_eq!(refuse(&[k, k], &[&v[..3], &v[..3]]), shape("value", "dim", 16, 3));
    let error = refuse(&[k, k], &[v, &[f32::NAN; 16]]);
    assert!(matches!(error, AttentionError::NotFinite { operand: "value", token: 1, dim: 0, .. }), "{error}");
}

/// Vectors of any size, each by itself.
#[test]
fn lists_are_fitted() {
    let module = module(WrongDim::PadTruncate);
    let query = numbers(20, 2);
    let (long, value) = (numbers(15, 3), numbers(16, 4));
    let fitted = [&long[..12], &[&long[..5], &[0.0; 7]].concat()[..]].map(<[f32]>::to_vec);
    let expected = module.process_sequence(&query, &fitted, &[&value, &value]).expect("a valid call");
    assert_eq!(module.repairs(), Repairs::default());
    let got = module.process_sequence(&query, &[&long[..], &long[..5]], &[&value, &value]).expect("fitted");
    assert_bits(&got, &expected, "cut and filled up");
    assert_eq!(module.repairs().truncated_tensors, 1, "the list is a tensor");
}

/// The query stands after the sequence: a configuration that masks by position needs nothing more.
#[test]
fn masks_by_position() {
    let causal = AttentionConfig { causal: true, window_left: Some(2), ..config() };
    let weights = lively_weights(&causal, DIMS, 1);
    let module = MultiHeadAttention::new(causal, &weights).expect("valid parts");
    let (query, keys, values) = (numbers(20, 2), numbers(7 * 12, 3), numbers(7 * 16, 4));
    let key_list: Vec<&[f32]> = keys.chunks_exact(12).collect();
    let value_list: Vec<&[f32]> = values.chunks_exact(16).collect();
    for len in [0, 1, 3, 7] {
        let (_, scores) = module
            .process_sequence_with_scores(&query, &key_list[..len], &value_list[..len])
            .expect("a valid call");
        for head in scores.chunks_exact(len.max(1)) {
            let seen: Vec<usize> = (0..len).filter(|&key| head[key] > 0.0).collect();
            assert_eq!(seen, (len.saturating_sub(3)..len).collect::<Vec<_>>(), "the last three of {len}");
        }
    }
}

/// Vectors that are filled up to the rest of their list are counted, as those that the policy fills up are.
#[test]
fn mixed_sizes_are_counted() {
    let module = module(WrongDim::PadTruncate);
    let (query, numbers) = (numbers(20, 2), numbers(64, 3));
    for (sizes, padded, truncated) in
        [([12, 12], 0, 0), ([12, 5], 1, 0), ([7, 5], 1, 0), ([30, 12], 0, 1), ([30, 5], 1, 1)]
    {
        module.reset_repairs();
        let keys = sizes.map(|size| &numbers[..size]);
        module.process_sequence(&query, &keys, &[&numbers[..16]; 2]).expect("a valid call");
        let repairs = module.repairs();
        assert_eq!([repairs.padded_tensors, repairs.truncated_tensors], [padded, truncated], "{sizes:?}");
    }
}
