//! Configurations in JSON.

use lucid_attention::module::{
    AttentionConfig, InputDims, ModuleInputs, ModuleWeights, MultiHeadAttention, Tensor,
};
use lucid_attention::titans::lucidia::Hints;
use lucid_attention::titans::{ServerConfig, Variant};
use lucid_attention::{Plan, PlanOptions, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(config) = read::<AttentionConfig>(text) {
        attention(&config, InputDims { query: 0, key: 2, value: 2 });
        attention(&config, InputDims::all(3));
    }
    read::<PlanOptions>(text);
    read::<InputDims>(text);
    read::<Hints>(text);
    if let Some(problem) = read::<Problem>(text) {
        let options = PlanOptions { max_threads: Some(2), ..PlanOptions::default() };
        if let Ok(plan) = Plan::with_options(&problem, &options) {
            assert!(plan.workspace_bytes() > 0, "scratch for {problem:?}");
        }
    }
    if let Ok(server) = ServerConfig::from_json(text) {
        server.validate().expect("what was read has been checked");
        let written = serde_json::to_string(&server).expect("plain data");
        assert_eq!(ServerConfig::from_json(&written).as_ref(), Ok(&server), "{written}");
        for variant in [Variant::Mac, Variant::Mag, Variant::Mal, Variant::None] {
            let config = server.variant_attention(variant).expect("what was read has been checked");
            attention(&config, server.input_dims(variant));
        }
    }
}

/// What is read is written and read alike.
fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = serde_json::from_str(text).ok()?;
    let written = serde_json::to_string(&value).expect("plain data");
    match serde_json::from_str::<T>(&written) {
        Ok(again) => assert_eq!(again, value, "{written}"),
        // JSON has no word for what a number too large became.
        Err(_) => assert!(written.contains("null"), "{written}"),
    }
    Some(value)
}

/// A valid configuration makes a module that answers; one that is not is refused, by whatever is asked first.
fn attention(config: &AttentionConfig, dims: InputDims) {
    let InputDims { query, key, value } = dims;
    let small = |size: usize| size <= 64;
    let columns = config.num_heads.saturating_mul(config.key_dim.max(config.value_dim()));
    let valid = config.validate();
    let all_small = [query, key, value, config.output_dim.unwrap_or(0), columns].into_iter().all(small);
    let absurd = columns > 1 << 44 && config.output_dim.is_none_or(small) && query == 0;
    if valid.is_ok() && !all_small && !absurd {
        return; // memory for it may or may not be there
    }
    let weights = match (ModuleWeights::glorot(config, dims, 7), &valid) {
        (Ok(weights), Ok(())) => weights,
        (Ok(_), Err(error)) => panic!("weights for {config:?} in spite of {error}"),
        (Err(_), _) => {
            let possible = valid.is_ok() && all_small && [query, key, value].iter().all(|&dim| dim > 0);
            assert!(!possible, "no weights for {config:?}");
            return;
        }
    };
    let output = config.output_dim.unwrap_or(query);
    let made = MultiHeadAttention::new(config.clone(), &weights);
    assert!(made.is_ok() || config.use_residual && output != query, "{made:?} of {config:?}");
    let Ok(module) = made else { return };
    let numbers = [0.5f32; 3 * 64];
    let tokens = |dim: usize| Tensor::new(&numbers[..3 * dim], &[3, dim]).expect("sized to it");
    let out = module.forward(&ModuleInputs::new(tokens(query), tokens(key), tokens(value)));
    let out = out.expect("operands that fit");
    assert_eq!(out.len(), 3 * output, "{config:?}");
    let tame = config.scale().abs() < 1e9 && config.layer_norm_epsilon > 0.0;
    assert!(!tame || out.iter().all(|x| x.is_finite()), "{config:?} gave {out:?}");
}
