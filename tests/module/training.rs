//! Training drops probabilities at the configuration's rate, and nothing else changes.

use crate::{assert_bits, lively_weights, numbers, tensor};
use lucid_attention::module::*;
use lucid_attention::{Cell, Dropout};

/// One head over one key, whose probability is 1: a dropped one leaves the output's bias.
#[test]
fn at_the_configuration_s_rate() {
    let config = AttentionConfig {
        num_heads: 1,
        key_dim: 6,
        dropout: 0.3,
        use_layer_norm: false,
        use_residual: false,
        ..AttentionConfig::default()
    };
    let weights = lively_weights(&config, InputDims::all(10), 1);
    let bias = weights.output.bias.clone().expect("a bias");
    let module = MultiHeadAttention::new(config, &weights).expect("valid parts");
    let (query, memory) = (numbers(2 * 64 * 10, 2), numbers(2 * 10, 3));
    let memory = tensor(&memory, &[2, 1, 10]);
    let inputs = ModuleInputs::new(tensor(&query, &[2, 64, 10]), memory, memory);
    let plain = module.forward(&inputs).expect("a valid call");
    let (got, scores) = module.forward_with_scores(&inputs.training(9)).expect("a valid call");
    assert!(scores.iter().all(|&p| p == 1.0), "returned probabilities are undropped");
    let dropout = Dropout { rate: 0.3, seed: 9 };
    let mut kept = 0;
    for (row, (got, plain)) in got.chunks_exact(10).zip(plain.chunks_exact(10)).enumerate() {
        let (sequence, query) = (row / 64, row % 64);
        let cell = Cell { sequence, q_head: 0, query, q_pos: query as i64, k_pos: 0 };
        let factor = if dropout.keeps(cell) { 1.0 / 0.7 } else { 0.0 };
        kept += usize::from(dropout.keeps(cell));
        for (d, bias) in bias.iter().enumerate() {
            let want = bias + factor * (plain[d] - bias);
            assert!((got[d] - want).abs() < 1e-5, "row {row}: {} and {want}", got[d]);
        }
    }
    assert!((60..120).contains(&kept), "{kept} of 128 kept");
}

#[test]
fn seeds_and_rates() {
    let config = AttentionConfig { dropout: 0.2, ..AttentionConfig::default() };
    let weights = lively_weights(&config, InputDims::all(40), 4);
    let tokens = numbers(2 * 9 * 40, 5);
    let inputs = ModuleInputs::self_attention(tensor(&tokens, &[2, 9, 40]));
    let at = |dropout: f32, inputs: &ModuleInputs<'_>| {
        let config = AttentionConfig { dropout, ..config.clone() };
        MultiHeadAttention::new(config, &weights).expect("valid parts").forward(inputs).expect("a valid call")
    };
    let plain = at(0.2, &inputs);
    assert_bits(&at(0.2, &inputs.training(1)), &at(0.2, &inputs.training(1)), "the same seed");
    assert_ne!(at(0.2, &inputs.training(1)), plain, "training");
    assert_ne!(at(0.2, &inputs.training(1)), at(0.2, &inputs.training(2)), "another seed");
    assert_ne!(at(0.2, &inputs.training(1)), at(0.4, &inputs.training(1)), "another rate");
    assert_bits(&at(0.0, &inputs.training(1)), &plain, "a rate of 0");
    assert_bits(&at(0.9, &inputs), &plain, "inference");
}
