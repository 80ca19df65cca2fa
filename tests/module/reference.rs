//! Modules drawn at random, held against the definition.

use crate::definition::{Case, erf};
use lucid_attention::DType;
use lucid_attention::module::*;
use proptest::prelude::*;

prop_compose! {
    fn cases()(
        (group, kv_heads, key_dim, value_dim) in (1..4usize, 1..4usize, 1..20usize, prop::option::of(1..20usize)),
        (use_bias, use_layer_norm, use_residual, causal) in any::<(bool, bool, bool, bool)>(),
        (activation, dtype) in (prop::option::of(0..7usize), 0..3usize),
        (window_left, window_right) in (prop::option::of(0..5usize), prop::option::of(0..5usize)),
        (scale, softcap) in (prop::option::of(-0.5..0.5f32), prop::option::of(0.5..5.0f32)),
        dims in (1..40usize, 1..40usize, 1..40usize),
        output_dim in prop::option::of(1..40usize),
        (batch, q_len, kv_len) in (1..4usize, 1..14usize, 0..14usize),
        (self_attention, bias) in any::<(bool, bool)>(),
        lens in prop::option::of(prop::collection::vec(0..14usize, 4)),
        (q_start, seed) in (-3..6i64, any::<u32>()),
        (few, always_project) in any::<(bool, bool)>(),
    ) -> Case {
        // Where projections may be absorbed: few queries, more keys, whole vectors of values, and no cap.
        let (q_len, kv_len, value_dim, softcap) =
            if few { (1 + q_len / 6, 3 * kv_len, Some(16), None) } else { (q_len, kv_len, value_dim, softcap) };
        let num_heads = group * kv_heads;
        let query = dims.0;
        let config = AttentionConfig {
            num_heads, key_dim, value_dim, use_bias, use_layer_norm, use_residual, causal, window_left, window_right,
            scale, softcap,
            kv_heads: Some(kv_heads),
            activation: activation.map(|index| Activation::ALL[index]),
            output_dim: if use_residual { None } else { output_dim },
            weights_dtype: [DType::F32, DType::F16, DType::Bf16][dtype],
            ..AttentionConfig::default()
        };
        let kv_len = if self_attention { q_len } else { kv_len };
        let dims = if self_attention { InputDims::all(query) } else { InputDims { query, key: dims.1, value: dims.2 } };
        let kv_lens = lens.map(|lens| lens[..batch].iter().map(|&len| len.min(kv_len)).collect());
        Case { config, dims, batch, q_len, kv_len, self_attention, kv_lens, bias, q_start, always_project, seed: seed.into() }
    }
}

#[test]
fn every_number_is_within_the_bound() {
    let mut counts = [0, 0];
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let counted = std::cell::RefCell::new(&mut counts);
    runner
        .run(&cases(), |case| {
            let [asked, sharp] = case.check();
            let mut counts = counted.borrow_mut();
            (counts[0], counts[1]) = (counts[0] + asked, counts[1] + sharp);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let [asked, sharp] = counts;
    assert!(asked > 10_000 && sharp * 10 > asked * 9, "{sharp} of {asked} bounds say something");
}

#[test]
fn erf_is_right() {
    for (x, y) in [(0.0, 0.0), (0.5, 0.520_499_877_813_046_5), (-1.0, -0.842_700_792_949_714_9)] {
        assert!((erf(x) - y).abs() < 1e-14, "erf({x}) = {}", erf(x));
    }
    assert!((erf(2.4999999) - erf(2.5000001)).abs() < 1e-8, "the two forms meet");
    assert!((erf(3.0) - 0.999_977_909_503_001_4).abs() < 1e-14, "the continued fraction");
}
