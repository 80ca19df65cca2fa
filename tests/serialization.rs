//! The configuration types as text (feature `serde`): what is written, that it reads back, and what is refused.
#![cfg(feature = "serde")]
#![allow(missing_docs, reason = "a test")]

use lucid_attention::module::{Activation, AttentionConfig, InputDims, Naming, NotFinite};
use lucid_attention::{DType, Level, PlanOptions, Problem, ScoreStage, Span};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Asserts that a value is written as this text and read from it.
#[track_caller]
fn assert_text<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, text: &str) {
    assert_eq!(serde_json::to_string(&value).expect("plain data"), text);
    assert_eq!(serde_json::from_str::<T>(text).expect("what was written"), value);
}

/// Asserts that a text is refused with an error that says why.
#[track_caller]
fn assert_refused<T: DeserializeOwned + Debug>(text: &str, why: &str) {
    let error = serde_json::from_str::<T>(text).expect_err(text).to_string();
    assert!(error.contains(why), "{text}: \"{error}\" does not say \"{why}\"");
}

/// Levels and storage types have the names that messages and the environment use.
#[test]
fn names() {
    for level in Level::ALL {
        assert_text(level, &format!("\"{}\"", level.name()));
    }
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        assert_text(dtype, &format!("\"{}\"", dtype.name()));
    }
    assert_text(ScoreStage::Raw, "\"raw\"");
    assert_text(ScoreStage::Capped, "\"capped\"");
    assert_text(ScoreStage::Biased, "\"biased\"");
    assert_text(ScoreStage::Softmax, "\"softmax\"");
    assert_refused::<Level>("\"sse9\"", "unknown variant");
    assert_refused::<Level>("\"Avx2\"", "unknown variant");
    assert_refused::<DType>("\"f64\"", "unknown variant");
    assert_refused::<ScoreStage>("\"probabilities\"", "unknown variant");
}

/// What is not given is as by default; what there is not is refused.
#[test]
fn options() {
    assert_text(
        PlanOptions::default(),
        r#"{"level":null,"max_threads":null,"spread_from_microseconds":null,"bf16_dot":false,"max_workspace_bytes":null}"#,
    );
    assert_text(
        PlanOptions {
            level: Some(Level::Avx512),
            max_threads: Some(3),
            spread_from_microseconds: Some(8),
            bf16_dot: true,
            max_workspace_bytes: Some(1 << 20),
        },
        r#"{"level":"avx512","max_threads":3,"spread_from_microseconds":8,"bf16_dot":true,"max_workspace_bytes":1048576}"#,
    );
    let read = |text| serde_json::from_str::<PlanOptions>(text).expect(text);
    assert_eq!(read("{}"), PlanOptions::default());
    let threads = PlanOptions { max_threads: Some(2), ..PlanOptions::default() };
    assert_eq!(read(r#"{"max_threads": 2}"#), threads);
    assert_refused::<PlanOptions>(r#"{"threads": 2}"#, "unknown field `threads`");
    assert_refused::<PlanOptions>(r#"{"max_threads": -1}"#, "invalid value");
    assert_refused::<PlanOptions>(r#"{"level": "sse9"}"#, "unknown variant");
}

/// Every size has to be there, and nothing else.
#[test]
fn problems() {
    let problem =
        Problem { q_heads: 8, kv_heads: 2, head_dim: 64, v_dim: 48, max_q_len: 100, max_kv_len: 4096 };
    let text = r#"{"q_heads":8,"kv_heads":2,"head_dim":64,"v_dim":48,"max_q_len":100,"max_kv_len":4096}"#;
    assert_text(problem, text);
    assert_refused::<Problem>(&text.replace("v_dim", "value_dim"), "unknown field `value_dim`");
    assert_refused::<Problem>(&text.replace("\"v_dim\":48,", ""), "missing field `v_dim`");
    assert_refused::<Problem>(&text.replace("48", "4.8"), "invalid type");
}

#[test]
fn spans() {
    assert_text(Span { start: 3, end: 9 }, r#"{"start":3,"end":9}"#);
    assert_refused::<Span>(r#"{"start":3}"#, "missing field `end`");
}

/// The module's configuration: the specification's names and defaults; nothing else is taken for one of its fields.
#[test]
fn module_configuration() {
    let default = AttentionConfig::default();
    let text = concat!(
        r#"{"num_heads":4,"key_dim":32,"value_dim":null,"dropout":0.0,"use_bias":true,"use_layer_norm":true,"#,
        r#""use_residual":true,"activation":null,"name":"multi_head_attention","kv_heads":null,"output_dim":null,"#,
        r#""causal":false,"window_left":null,"window_right":null,"scale":null,"softcap":null,"#,
        r#""layer_norm_epsilon":0.000001,"weights_dtype":"f32"}"#,
    );
    assert_text(default.clone(), text);
    let read = |text| serde_json::from_str::<AttentionConfig>(text).expect(text);
    assert_eq!(read("{}"), default);
    let other = AttentionConfig {
        num_heads: 8,
        value_dim: Some(16),
        dropout: 0.1,
        activation: Some(Activation::GeluTanh),
        name: "attention".to_owned(),
        scale: Some(0.3),
        window_left: Some(7),
        layer_norm_epsilon: 1e-12,
        weights_dtype: DType::Bf16,
        ..default
    };
    assert_eq!(read(&serde_json::to_string(&other).expect("plain data")), other);
    for activation in Activation::ALL {
        assert_text(activation, &format!("\"{}\"", activation.name()));
    }
    assert_text(Naming::PyTorch, "\"pytorch\"");
    assert_text(NotFinite::ZeroToken, "\"zero_token\"");
    assert_text(InputDims::all(3), r#"{"query":3,"key":3,"value":3}"#);
    assert_refused::<AttentionConfig>(r#"{"heads": 2}"#, "unknown field `heads`");
    assert_refused::<AttentionConfig>(r#"{"activation": "swish9"}"#, "unknown variant");
    assert_refused::<AttentionConfig>(r#"{"num_heads": -1}"#, "invalid value");
}
