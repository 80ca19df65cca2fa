//! Configurations in JSON.

use crate::Tally;
use lucid_attention::module::{
    AttentionConfig, InputDims, ModuleInputs, ModuleWeights, MultiHeadAttention, Tensor,
};
use lucid_attention::titans::lucidia::Hints;
use lucid_attention::titans::{ServerConfig, Variant};
use lucid_attention::{Plan, PlanOptions, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;

pub fn config(data: &[u8], tally: &mut Tally) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for (name, fields) in
        [("a layer", &LAYER[..]), ("a plan", &PLAN), ("a problem", &PROBLEM), ("sizes", &DIMS)]
    {
        let Some(expected) = is_of(fields, text) else { continue };
        let read = match name {
            "a layer" => serde_json::from_str::<AttentionConfig>(text).map(|_| ()),
            "a plan" => serde_json::from_str::<PlanOptions>(text).map(|_| ()),
            "a problem" => serde_json::from_str::<Problem>(text).map(|_| ()),
            _ => serde_json::from_str::<InputDims>(text).map(|_| ()),
        };
        assert_eq!(read.is_ok(), expected, "{name} of {text}: {read:?}");
        tally.same += 1;
        tally.refused += u64::from(!expected);
    }
    if let Some(config) = read::<AttentionConfig>(text) {
        attention(&config, InputDims { query: 0, key: 2, value: 2 }, tally);
        attention(&config, InputDims::all(3), tally);
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
            attention(&config, server.input_dims(variant), tally);
        }
    }
}

/// What a field may be.
#[derive(Clone, Copy)]
enum Kind {
    Size,
    Number,
    Yes,
    Text,
    OneOf(&'static [&'static str]),
}

/// A field: its name, what it may be, whether it may be null, whether it may be missing.
type Field = (&'static str, Kind, [bool; 2]);

/// A field with a default.
const fn with_default(name: &'static str, kind: Kind) -> Field {
    (name, kind, [false, true])
}

/// A field that need not be given.
const fn optional(name: &'static str, kind: Kind) -> Field {
    (name, kind, [true, true])
}

const fn required(name: &'static str) -> Field {
    (name, Kind::Size, [false, false])
}

const ACTIVATIONS: Kind = Kind::OneOf(&["linear", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]);

const LAYER: [Field; 18] = [
    with_default("num_heads", Kind::Size),
    with_default("key_dim", Kind::Size),
    optional("value_dim", Kind::Size),
    with_default("dropout", Kind::Number),
    with_default("use_bias", Kind::Yes),
    with_default("use_layer_norm", Kind::Yes),
    with_default("use_residual", Kind::Yes),
    optional("activation", ACTIVATIONS),
    with_default("name", Kind::Text),
    optional("kv_heads", Kind::Size),
    optional("output_dim", Kind::Size),
    with_default("causal", Kind::Yes),
    optional("window_left", Kind::Size),
    optional("window_right", Kind::Size),
    optional("scale", Kind::Number),
    optional("softcap", Kind::Number),
    with_default("layer_norm_epsilon", Kind::Number),
    with_default("weights_dtype", Kind::OneOf(&["f32", "f16", "bf16"])),
];

const PLAN: [Field; 5] = [
    optional("level", Kind::OneOf(&["portable", "avx2", "avx512"])),
    optional("max_threads", Kind::Size),
    optional("spread_from_microseconds", Kind::Size),
    with_default("bf16_dot", Kind::Yes),
    optional("max_workspace_bytes", Kind::Size),
];

const PROBLEM: [Field; 6] = [
    required("q_heads"),
    required("kv_heads"),
    required("head_dim"),
    required("v_dim"),
    required("max_q_len"),
    required("max_kv_len"),
];

const DIMS: [Field; 3] = [required("query"), required("key"), required("value")];

/// Whether a text is an object of these fields and no other. Nothing is said of other texts, and of objects with a field
/// given twice, which a list of fields does not show.
fn is_of(fields: &[Field], text: &str) -> Option<bool> {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return None };
    let given = text.matches(':').count();
    if given != object.len() {
        return None;
    }
    let fits = |kind: Kind, value: &Value| match kind {
        Kind::Size => value.is_u64(),
        Kind::Number => value.is_number(),
        Kind::Yes => value.is_boolean(),
        Kind::Text => value.is_string(),
        Kind::OneOf(names) => value.as_str().is_some_and(|name| names.contains(&name)),
    };
    let known = object.keys().all(|name| fields.iter().any(|field| field.0 == name));
    let right = fields.iter().all(|&(name, kind, [null, missing])| match object.get(name) {
        None => missing,
        Some(Value::Null) => null,
        Some(value) => fits(kind, value),
    });
    Some(known && right)
}

/// What is read is written and read alike.
fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = serde_json::from_str(text).ok()?;
    let written = serde_json::to_string(&value).expect("plain data");
    match serde_json::from_str::<T>(&written) {
        // JSON has no word for what a number too large became, and writes null, which some fields take.
        read if written.contains("null") && format!("{value:?}").contains("inf") => drop(read),
        read => assert_eq!(read.expect("as it was written"), value, "{written}"),
    }
    Some(value)
}

/// A valid configuration makes a module that answers; one that is not is refused, by whatever is asked first.
fn attention(config: &AttentionConfig, dims: InputDims, tally: &mut Tally) {
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
            tally.refused += 1;
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
