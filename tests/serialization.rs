//! The configuration types as text (feature `serde`): what is written, that it reads back, and what is refused.
#![cfg(feature = "serde")]
#![allow(missing_docs, reason = "a test")]

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
    assert_text(PlanOptions::default(), r#"{"level":null,"max_threads":null,"bf16_dot":false}"#);
    assert_text(
        PlanOptions { level: Some(Level::Avx512), max_threads: Some(3), bf16_dot: true },
        r#"{"level":"avx512","max_threads":3,"bf16_dot":true}"#,
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
