//! Bad input is an error that names what is wrong, and nothing is written then. Sizes of 0 and extreme numbers are
//! either refused or answered rightly, and nothing panics.
//!
//! This runs with overflow checks and debug assertions, which `cargo test` has on.

mod arbitrary;
mod asking;
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod extremes;
mod hostile;
mod levels;
mod parts;
mod plans;
mod stacks;

use asking::*;
use common::cases::levels;
use lucid_attention::AttentionError::{self, *};
use lucid_attention::{
    Inputs, Intervals, KeyPanels, Layout, Level, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart,
    Ragged, ScoreStage, Scores, Span, View, ViewMut, attention, math, merge, reference,
};
use std::fmt::Debug;

/// Elements that no machine has, but whose number fits an address.
const TOO_MANY: usize = isize::MAX as usize / 64;

/// A valid call: `[batch, q_heads, q_len, head_dim]`, and so on.
const Q: [usize; 4] = [2, 4, 3, 8];
const K: [usize; 4] = [2, 2, 5, 8];
const V: [usize; 4] = [2, 2, 5, 6];
const OUT: [usize; 4] = [2, 4, 3, 6];
const ROWS: usize = 24;

fn view(shape: [usize; 4]) -> View<'static, f32> {
    View::new(&NUMBERS, shape).unwrap()
}

/// A view of any shape: one row over and over.
fn repeat(shape: [usize; 4]) -> View<'static, f32> {
    View::with_strides(&NUMBERS, shape, [0, 0, 0, 1]).unwrap()
}

fn inputs() -> Inputs<'static, f32, f32> {
    Inputs::new(view(Q), view(K), view(V))
}

fn shape(operand: &'static str, axis: &'static str, expected: usize, got: usize) -> AttentionError {
    Shape { operand, axis, expected, got }
}

fn value(operand: &'static str, expected: &'static str, got: impl Into<String>) -> AttentionError {
    Value { operand, expected, got: got.into() }
}

const NOTHING_ELSE: Ask<'static> =
    Ask { out: OUT, out_strides: None, lse: None, row_max: None, scores: None, heads: None, rows: None };
const ALL: Ask<'static> = Ask {
    lse: Some(ROWS),
    row_max: Some(ROWS),
    scores: Some(([2, 4, 3, 5], [60, 15, 5, 1])),
    ..NOTHING_ELSE
};

/// Asserts an error, and that it reads well.
#[track_caller]
fn assert_error<T: Debug>(result: Result<T, AttentionError>, expected: &AttentionError) {
    assert_names_its_fields(expected);
    assert_eq!(result.expect_err(&expected.to_string()), *expected);
}

fn plan() -> Plan {
    Plan::new(&Problem::of(&inputs())).unwrap()
}

#[test]
fn an_error_travels() {
    fn travels<T: std::error::Error + Clone + Send + Sync + 'static>() {}
    travels::<AttentionError>();
    let message = shape("k", "kv_heads", 2, 3).to_string();
    assert_eq!(message, "k: expected kv_heads = 2, got 3");
}
