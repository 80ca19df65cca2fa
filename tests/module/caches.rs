//! Caches of 16-bit numbers: attention over what was projected, rounded once.

use crate::{assert_bits, lively_weights, numbers, tensor};
use half::{bf16, f16};
use lucid_attention::module::*;
use lucid_attention::{AttentionError, DType, Element, KvCache, QueryStart};

const DIM: usize = 24;

fn module() -> MultiHeadAttention {
    let config = AttentionConfig {
        num_heads: 4,
        key_dim: 6,
        value_dim: Some(5),
        kv_heads: Some(2),
        causal: true,
        ..AttentionConfig::default()
    };
    let weights = lively_weights(&config, InputDims::all(DIM), 1);
    MultiHeadAttention::new(config, &weights).expect("valid parts")
}

/// What a cache holds, `[batch, kv_heads, tokens, dim]` of keys and values, widened.
fn held<T: Element>(cache: &KvCache<T>) -> [Vec<f32>; 2] {
    let (keys, values) = (cache.keys(), cache.values());
    let [batch, heads, tokens, key_dim] = keys.shape();
    let value_dim = values.shape()[3];
    let mut all = [Vec::new(), Vec::new()];
    for (b, h, t) in
        (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..tokens).map(move |t| (b, h, t))))
    {
        all[0].extend((0..key_dim).map(|d| keys.get([b, h, t, d]).expect("held").to_f32()));
        all[1].extend((0..value_dim).map(|d| values.get([b, h, t, d]).expect("held").to_f32()));
    }
    all
}

fn rounded<T: Element>() {
    let module = module();
    let memory = numbers(2 * 70 * DIM, 2);
    let query = numbers(2 * 3 * DIM, 3);
    let mut workspace = ModuleWorkspace::new();
    let memory = tensor(&memory, &[2, 70, DIM]);
    let full = module.project_kv(memory, memory, 70, &mut workspace).expect("memory");
    let cache = module.project_kv_as::<T>(memory, memory, 100, &mut workspace).expect("memory");
    assert!(cache.capacity() >= 100);
    for (got, exact) in held(&cache).iter().zip(&held(&full)) {
        let expected: Vec<f32> = exact.iter().map(|&x| T::from_f32(x).to_f32()).collect();
        assert_bits(got, &expected, T::DTYPE.name());
    }
    // Attention over it is attention over the rounded numbers.
    let mut widened: KvCache<f32> = module.project_kv(memory, memory, 70, &mut workspace).expect("memory");
    widened.truncate(0);
    let [keys, values] = held(&cache);
    let view = |data, dim| lucid_attention::View::new(data, [2, 2, 70, dim]).expect("sized to its shape");
    widened.append(view(&keys[..], 6), view(&values[..], 5)).expect("room");
    let query = tensor(&query, &[2, 3, DIM]);
    let of = |inputs: ModuleInputs<'_>| {
        module.forward_with_scores(&inputs.q_start(QueryStart::BottomRight)).expect("a valid call")
    };
    let (out, scores) = of(ModuleInputs::cached(query, &cache));
    let (expected, expected_scores) = of(ModuleInputs::cached(query, &widened));
    assert_bits(&out, &expected, T::DTYPE.name());
    assert_bits(&scores, &expected_scores, T::DTYPE.name());
    // And close to that over what was not rounded.
    let (exact, _) = of(ModuleInputs::cached(query, &full));
    let off = exact.iter().zip(&out).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = if T::DTYPE == DType::Bf16 { 0.1 } else { 0.01 };
    assert!(off < largest && (off > 0.0) == (T::DTYPE != DType::F32), "{}: off by {off}", T::DTYPE);
}

#[test]
fn keys_and_values_are_rounded_once() {
    rounded::<f32>();
    rounded::<f16>();
    rounded::<bf16>();
}

/// Token by token it holds what it holds at once, and a full one is as it was.
#[test]
fn growing() {
    let module = module();
    let memory = numbers(64 * DIM, 4);
    let mut workspace = ModuleWorkspace::new();
    let whole = tensor(&memory, &[64, DIM]);
    let at_once = module.project_kv_as::<f16>(whole, whole, 64, &mut workspace).expect("memory");
    let first = tensor(&memory[..DIM], &[DIM]);
    let mut cache = module.project_kv_as::<f16>(first, first, 64, &mut workspace).expect("memory");
    for token in memory.chunks_exact(DIM).skip(1) {
        let token = tensor(token, &[DIM]);
        module.append_kv(token, token, &mut cache, &mut workspace).expect("room");
    }
    assert_eq!(held(&cache), held(&at_once));
    let error = module.append_kv(first, first, &mut cache, &mut workspace).expect_err("no room");
    assert!(matches!(error, AttentionError::TooLarge { operand: "keys", .. }), "{error}");
    assert_eq!(held(&cache), held(&at_once));
}
