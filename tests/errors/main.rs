//! Bad input is an error that names what is wrong, and nothing is written then. Sizes of 0 and extreme numbers are
//! either refused or answered rightly, and nothing panics.
//!
//! This runs with overflow checks and debug assertions, which `cargo test` has on.

mod arbitrary;
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod extremes;
mod levels;
mod parts;
mod plans;

use common::cases::levels;
use lucid_attention::AttentionError::{self, *};
use lucid_attention::{
    Inputs, Intervals, KeyPanels, Layout, Level, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart,
    Ragged, ScoreStage, Scores, Span, View, ViewMut, attention, math, merge, reference,
};
use std::fmt::Debug;

const MAX: usize = usize::MAX;
/// Elements that no machine has, but whose number fits an address.
const TOO_MANY: usize = isize::MAX as usize / 64;

/// A valid call: `[batch, q_heads, q_len, head_dim]`, and so on.
const Q: [usize; 4] = [2, 4, 3, 8];
const K: [usize; 4] = [2, 2, 5, 8];
const V: [usize; 4] = [2, 2, 5, 6];
const OUT: [usize; 4] = [2, 4, 3, 6];
const ROWS: usize = 24;

static NUMBERS: [f32; 256] = [0.5; 256];
static YES: [bool; 256] = [true; 256];

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

/// What a call writes, prefilled.
#[derive(Clone, Copy, Debug)]
struct Ask<'a> {
    out: [usize; 4],
    out_strides: Option<[usize; 4]>,
    lse: Option<usize>,
    row_max: Option<usize>,
    scores: Option<([usize; 4], [usize; 4])>,
    heads: Option<&'a [usize]>,
    rows: Option<&'a [usize]>,
}

const NOTHING_ELSE: Ask<'static> =
    Ask { out: OUT, out_strides: None, lse: None, row_max: None, scores: None, heads: None, rows: None };
const ALL: Ask<'static> = Ask {
    lse: Some(ROWS),
    row_max: Some(ROWS),
    scores: Some(([2, 4, 3, 5], [60, 15, 5, 1])),
    ..NOTHING_ELSE
};

/// A signalling NaN: no computation leaves it behind.
const UNTOUCHED: f32 = f32::from_bits(0x7fa0_1234);

fn untouched(values: &[f32]) -> bool {
    values.iter().all(|x| x.to_bits() == UNTOUCHED.to_bits())
}

/// Everything that was written; `out` first.
type Written = [Vec<f32>; 4];

/// Runs a call; asserts that an error names what is wrong and leaves all outputs as they were.
fn run(plan: &Plan, inputs: &Inputs<'_, f32, f32>, ask: &Ask<'_>) -> Result<Written, AttentionError> {
    let filled = |size: usize| vec![UNTOUCHED; size.min(4096)];
    let mut written =
        [filled(4096), filled(ask.lse.unwrap_or(0)), filled(ask.row_max.unwrap_or(0)), filled(4096)];
    let result = plan.workspace().and_then(|mut workspace| {
        let outputs = ask.outputs(&mut written)?;
        plan.run(inputs, outputs, &mut workspace)
    });
    if let Err(error) = result {
        assert_names_its_fields(&error);
        assert!(written.iter().all(|values| untouched(values)), "written in spite of: {error}");
        return Err(error);
    }
    Ok(written)
}

impl Ask<'_> {
    fn outputs<'a>(&'a self, written: &'a mut Written) -> Result<Outputs<'a, f32>, AttentionError> {
        let [out, lse, row_max, scores] = written;
        let mut outputs = Outputs::new(match self.out_strides {
            Some(strides) => ViewMut::with_strides(out, self.out, strides)?,
            None => ViewMut::new(out, self.out)?,
        });
        if self.lse.is_some() {
            outputs = outputs.lse(lse);
        }
        if self.row_max.is_some() {
            outputs = outputs.row_max(row_max);
        }
        if let Some((shape, strides)) = self.scores {
            let all = Scores::new(ScoreStage::Biased, ViewMut::with_strides(scores, shape, strides)?);
            let some = self.heads.into_iter().fold(all, |scores, heads| scores.heads(heads));
            outputs = outputs.scores(self.rows.into_iter().fold(some, |scores, rows| scores.rows(rows)));
        }
        Ok(outputs)
    }
}

/// The message holds the operand, what was expected and what came.
#[track_caller]
fn assert_names_its_fields(error: &AttentionError) {
    let message = error.to_string();
    let named = |field: &dyn Debug| {
        let field = format!("{field:?}").replace('"', "");
        assert!(message.contains(&field), "\"{message}\" does not name {field}");
    };
    let fields: &[&dyn Debug] = match error {
        Shape { operand, axis, expected, got } => &[operand, axis, expected, got],
        TooLarge { operand, axis, limit, got } => &[operand, axis, limit, got],
        BufferTooShort { operand, expected, got } => &[operand, expected, got],
        Overlap { operand, shape, strides } => &[operand, shape, strides],
        Stride { operand, got } => &[operand, got],
        SizeOverflow { operand } => &[operand],
        Value { operand, expected, got } => &[operand, expected, got],
        QueryStartMissing { q_len, kv_len } => &[q_len, kv_len],
        Conflict { operand, other, reason } => &[operand, other, reason],
        Workspace { part, expected, got } => &[part, expected, got],
        UnknownLevel { name } => &[name],
        LevelUnavailable { level } | Bf16DotUnavailable { level } => &[level],
        OutOfMemory { what, bytes } => &[what, bytes],
        other => panic!("a variant that this test does not know: {other:?}"),
    };
    fields.iter().for_each(|field| named(*field));
}

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
