//! Bad input is an error that names what is wrong, and nothing is written then. Sizes of 0 and extreme numbers are
//! either refused or answered rightly, and nothing panics.
//!
//! This runs with overflow checks and debug assertions, which `cargo test` has on.

#[path = "errors/arbitrary.rs"]
mod arbitrary;
mod common;
#[path = "errors/extremes.rs"]
mod extremes;

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

/// Operands against the plan and one another.
#[test]
fn operands() {
    let strided = |shape| View::with_strides(&NUMBERS, shape, [1, 1, 1, 2]).unwrap();
    let (q, k, v) = (view(Q), view(K), view(V));
    let table = [
        (Inputs::new(view([2, 3, 3, 8]), k, v), shape("q", "q_heads", 4, 3)),
        (Inputs::new(view([2, 4, 3, 7]), k, v), shape("q", "head_dim", 8, 7)),
        (Inputs::new(q, view([1, 2, 5, 8]), v), shape("k", "batch", 2, 1)),
        (Inputs::new(q, view([2, 4, 5, 4]), v), shape("k", "kv_heads", 2, 4)),
        (Inputs::new(q, view([2, 2, 5, 7]), v), shape("k", "head_dim", 8, 7)),
        (Inputs::new(q, k, view([3, 2, 5, 6])), shape("v", "batch", 2, 3)),
        (Inputs::new(q, k, view([2, 1, 5, 6])), shape("v", "kv_heads", 2, 1)),
        (Inputs::new(q, k, view([2, 2, 4, 6])), shape("v", "kv_len", 5, 4)),
        (Inputs::new(q, k, view([2, 2, 5, 8])), shape("v", "v_dim", 6, 8)),
        (Inputs::new(strided(Q), k, v), Stride { operand: "q", got: 2 }),
        (Inputs::new(q, strided(K), v), Stride { operand: "k", got: 2 }),
        (Inputs::new(q, k, strided(V)), Stride { operand: "v", got: 2 }),
        (
            Inputs::new(repeat([2, 4, MAX, 8]), k, v),
            TooLarge { operand: "q", axis: "q_len", limit: 3, got: MAX },
        ),
        (
            Inputs::new(q, repeat([2, 2, 6, 8]), repeat([2, 2, 6, 6])),
            TooLarge { operand: "k", axis: "kv_len", limit: 5, got: 6 },
        ),
    ];
    assert_refused(&table);
}

/// Asserts that the plan for [`inputs`] refuses each.
#[track_caller]
fn assert_refused(table: &[(Inputs<'_, f32, f32>, AttentionError)]) {
    for (inputs, expected) in table {
        assert_error(run(&plan(), inputs, &ALL), expected);
        assert_error(plan().explain(inputs), expected);
        assert!(
            attention(inputs).is_err() || matches!(expected, Shape { .. } | TooLarge { .. }),
            "{expected}"
        );
    }
}

/// Masks, positions and what else shapes scores.
#[test]
fn options() {
    let with = |mask: Mask<'static>| inputs().mask(mask).q_start(QueryStart::TopLeft);
    let intervals = Intervals::new([1, 4, 2], &[0; 9], &[]).unwrap();
    let start = |starts| inputs().q_start(QueryStart::PerSequence(starts));
    let missing = QueryStartMissing { q_len: 3, kv_len: 5 };
    let long = TooLarge { operand: "kv_lens", axis: "kv_len", limit: 5, got: MAX };
    let ascending = "ascending boundaries";
    let table = [
        (with(Mask::NONE.kv_lens(&[5])), shape("kv_lens", "entries", 2, 1)),
        (with(Mask::NONE.kv_lens(&[5, MAX])), long),
        (with(Mask::prefix_lm(&[])), shape("prefix", "entries", 2, 0)),
        (with(Mask::NONE.documents(&[0, 3, 2])), value("mask.documents", ascending, "[0, 3, 2]")),
        (with(Mask::NONE.last_n_keys(0)), value("mask.last_n_keys", "at least 1 key", "0")),
        (with(Mask::NONE.intervals(intervals)), shape("mask.intervals", "q_len", 3, 2)),
        (
            with(Mask::NONE.allowed(View::new(&YES, [1, 1, 3, 4]).unwrap())),
            shape("mask.allowed", "kv_len", 5, 4),
        ),
        (start(&[0; 3]), shape("q_start", "entries", 2, 3)),
        (inputs().mask(Mask::causal()), missing.clone()),
        (inputs().mask(Mask::NONE.window(Some(MAX), None)), missing.clone()),
        (inputs().mask(Mask::NONE.documents(&[])), missing.clone()),
        (inputs().alibi(&[0.5; 4]), missing),
        (inputs().alibi(&[0.5; 3]).q_start(QueryStart::At(0)), shape("alibi", "q_heads", 4, 3)),
        (inputs().sinks(&[0.5; 5]), shape("sinks", "q_heads", 4, 5)),
        (inputs().bias(view([2, 3, 1, 1])), shape("bias", "q_heads", 4, 3)),
    ];
    assert_refused(&table);
}

#[test]
fn ragged_batches() {
    let one = Inputs::new(view([1, 4, 3, 8]), view([1, 2, 5, 8]), view([1, 2, 5, 6]));
    let ragged = |q_bounds, kv_bounds| one.ragged(Ragged { q_bounds, kv_bounds });
    let counts = "cumulative counts that ascend from 0 to the operand's tokens";
    let panels = KeyPanels::from_rows(view([1, 2, 5, 8]), 5).unwrap();
    let in_panels = Inputs::new(view([1, 4, 3, 8]), &panels, view([1, 2, 5, 6]));
    let table = [
        (
            inputs().ragged(Ragged { q_bounds: &[0, 3], kv_bounds: &[0, 5] }),
            shape("ragged batch", "batch", 1, 2),
        ),
        (ragged(&[], &[0, 5]), value("q_bounds", counts, "[] for 3 tokens")),
        (ragged(&[0, MAX, 3], &[0, 5, 5]), value("q_bounds", counts, format!("[0, {MAX}, 3] for 3 tokens"))),
        (ragged(&[1, 3], &[0, 5]), value("q_bounds", counts, "[1, 3] for 3 tokens")),
        (ragged(&[0, 3], &[0, 4]), value("kv_bounds", counts, "[0, 4] for 5 tokens")),
        (ragged(&[0, 3], &[0, 2, 5]), shape("kv_bounds", "entries", 2, 3)),
        (
            ragged(&[0, 1, 3], &[0, 2, 5]).mask(Mask::NONE.kv_lens(&[2, 4])),
            TooLarge { operand: "kv_lens", axis: "kv_len", limit: 3, got: 4 },
        ),
        (ragged(&[0, 3], &[0, 5]).mask(Mask::causal()), QueryStartMissing { q_len: 3, kv_len: 5 }),
        (
            in_panels.ragged(Ragged { q_bounds: &[0, 3], kv_bounds: &[0, 5] }),
            Conflict {
                operand: "ragged batch",
                other: "KeyPanels",
                reason: "panels count keys from the start of the cache; hold one KeyPanels per sequence",
            },
        ),
    ];
    assert_refused(&table);
}

/// NaN, infinities and zeros for numbers that must not be.
#[test]
fn scales_and_caps() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let expected = value("scale", "a number from -2.3e38 to 2.3e38", scale.to_string());
        assert_refused(&[(inputs().scale(scale), expected)]);
    }
    for cap in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, 1e-31, 1e31] {
        let expected = value("softcap", "a number from 1e-30 to 1e30", cap.to_string());
        assert_refused(&[(inputs().softcap(cap), expected)]);
    }
    for legal in [inputs().scale(0.0), inputs().scale(-2e38), inputs().softcap(1e-30), inputs().softcap(1e30)]
    {
        run(&plan(), &legal, &ALL).unwrap();
    }
}

#[test]
fn outputs() {
    let scores = |shape| Ask { scores: Some((shape, [60, 15, 5, 1])), ..ALL };
    let below = "indices below the number there are";
    let table = [
        (Ask { out: Q, ..ALL }, shape("out", "dim", 6, 8)),
        (Ask { out: [1, 4, 3, 6], ..ALL }, shape("out", "batch", 2, 1)),
        (Ask { out: [2, 2, 3, 6], ..ALL }, shape("out", "heads", 4, 2)),
        (Ask { out: [2, 4, 4, 6], ..ALL }, shape("out", "tokens", 3, 4)),
        (Ask { out_strides: Some([144, 36, 12, 2]), ..ALL }, Stride { operand: "out", got: 2 }),
        (Ask { lse: Some(0), ..ALL }, shape("lse", "elements", 24, 0)),
        (Ask { row_max: Some(25), ..ALL }, shape("row_max", "elements", 24, 25)),
        (scores([2, 4, 3, 4]), shape("scores", "dim", 5, 4)),
        (scores([2, 1, 3, 5]), shape("scores", "heads", 4, 1)),
        (Ask { heads: Some(&[1, 1, 0]), ..scores([2, 4, 3, 5]) }, shape("scores", "heads", 3, 4)),
        (Ask { heads: Some(&[3, 4]), ..scores([2, 2, 3, 5]) }, value("scores.heads", below, "4 of 4")),
        (
            Ask { rows: Some(&[MAX]), ..scores([2, 4, 1, 5]) },
            value("scores.rows", below, format!("{MAX} of 3")),
        ),
        (Ask { scores: Some(([2, 4, 3, 5], [120, 30, 10, 2])), ..ALL }, Stride { operand: "scores", got: 2 }),
    ];
    for (ask, expected) in &table {
        assert_error(run(&plan(), &inputs(), ask), expected);
    }
    let unsorted = Ask { heads: Some(&[3, 0, 3]), rows: Some(&[2, 2, 0]), ..scores([2, 3, 3, 5]) };
    run(&plan(), &inputs(), &unsorted).unwrap();
}

#[test]
fn views() {
    let overflow = |operand| SizeOverflow { operand };
    let short = |operand, expected, got| BufferTooShort { operand, expected, got };
    let huge = [[MAX, MAX, MAX, MAX], [1, 1, 2, MAX], [1, 1 << 32, 1 << 31, 1], [0, MAX, MAX, 2]];
    for shape in huge {
        assert_error(View::<f32>::new(&[], shape), &overflow("view"));
        assert_error(View::<f32>::with_layout(&[], shape, Layout::TokenMajor), &overflow("view"));
        assert_error(ViewMut::<f32>::new(&mut [], shape), &overflow("view"));
    }
    for strides in [[MAX, 1, 1, 1], [MAX / 2, MAX / 2, 1, 1], [0, 0, 0, MAX]] {
        assert_error(View::with_strides(&NUMBERS, [3, 3, 3, 3], strides), &overflow("view"));
        assert_error(ViewMut::with_strides(&mut [0.0], [3, 3, 3, 3], strides), &overflow("output view"));
    }
    assert_error(View::new(&NUMBERS[..23], [1, 2, 3, 4]), &short("view", 24, 23));
    assert_error(ViewMut::new(&mut [0.0; 23], [1, 2, 3, 4]), &short("output view", 24, 23));
    assert_error(View::split_qkv(&NUMBERS[..31], 1, 2, [2, 1], 4), &short("packed qkv", 32, 31));
    assert_error(View::split_interleaved_qkv(&NUMBERS[..23], 1, 2, 1, 4), &short("packed qkv", 24, 23));
    for [batch, tokens, heads, dim] in [[1, MAX, 1, 2], [1, 1, MAX, 2], [1, 1, 1, MAX], [MAX, 2, 1, 1]] {
        assert_error(View::split_qkv(&NUMBERS, batch, tokens, [heads, 1], dim), &overflow("packed qkv"));
        assert_error(
            View::split_interleaved_qkv(&NUMBERS, batch, tokens, heads, dim),
            &overflow("packed qkv"),
        );
    }
    for strides in [[0, 4, 4, 1], [12, 3, 4, 1], [1, 1, 1, 1], [24, 12, 0, 1]] {
        let expected = Overlap { operand: "output view", shape: [2, 3, 2, 4], strides };
        assert_error(ViewMut::with_strides(&mut [0.0; 64], [2, 3, 2, 4], strides), &expected);
    }
}

#[test]
fn interval_lists() {
    let span = |start, end| Span { start, end };
    let offsets = "offsets that ascend from 0 to the number of spans";
    let spans = "sorted, disjoint spans with start <= end in every row";
    let new =
        |offsets: &'static [usize], spans: &[Span]| Intervals::new([1, 1, 2], offsets, spans).map(|_| ());
    assert_error(Intervals::new([MAX, 2, 1], &[0], &[]), &SizeOverflow { operand: "intervals" });
    assert_error(Intervals::new([MAX, 1, 1], &[0], &[]), &SizeOverflow { operand: "intervals" });
    assert_error(new(&[0, 0], &[]), &shape("intervals", "offsets", 3, 2));
    for wrong in [[0, 2, 1], [1, 1, 1], [0, 1, 2], [0, MAX, 1]] {
        let expected = value("intervals", offsets, format!("{wrong:?} for 1 spans"));
        assert_error(Intervals::new([1, 1, 2], &wrong, &[span(0, 1)]), &expected);
    }
    for wrong in [[span(3, 2), span(4, 5)], [span(0, 3), span(2, 5)], [span(4, 5), span(0, 1)]] {
        assert_error(new(&[0, 2, 2], &wrong), &value("intervals", spans, format!("{wrong:?}")));
    }
    new(&[0, 1, 2], &[span(0, MAX), span(MAX, MAX)]).unwrap();
}

/// What is asked about cells that no list has is answered.
#[test]
fn cells_outside_a_mask() {
    let cell = lucid_attention::Cell { sequence: 7, q_head: MAX, query: MAX, q_pos: i64::MIN, k_pos: MAX };
    let intervals = Intervals::new([2, 1, 1], &[0; 3], &[]).unwrap();
    for mask in [Mask::NONE.kv_lens(&[1, 2]), Mask::prefix_lm(&[]), Mask::NONE.intervals(intervals)] {
        assert!(!mask.allows(cell), "{mask:?}");
    }
    assert!(
        Mask::NONE
            .window(None, Some(MAX))
            .window(Some(MAX), None)
            .allows(lucid_attention::Cell { q_pos: 0, ..cell })
    );
}

#[test]
fn plans() {
    let at_least = |operand| value(operand, "at least 1", "0");
    let divides = |got: &str| value("q_heads", "a multiple of kv_heads", got);
    let problem = Problem::new(4, 8, 3, 5);
    let overflow = |operand| SizeOverflow { operand };
    let table = [
        (Problem { head_dim: 0, ..problem }, at_least("head_dim")),
        (Problem { kv_heads: 3, ..problem }, divides("4 with kv_heads = 3")),
        (Problem { kv_heads: 0, ..problem }, divides("4 with kv_heads = 0")),
        (Problem { max_q_len: MAX, ..problem }, overflow("queries")),
        (Problem { q_heads: MAX, kv_heads: 1, ..problem }, overflow("queries")),
        (Problem { max_kv_len: MAX / 16 + 1, ..problem }, overflow("keys and values")),
        (Problem { v_dim: MAX, ..problem }, overflow("queries")),
        (Problem { max_q_len: 0, max_kv_len: 0, head_dim: MAX, ..problem }, overflow("workspace")),
        (Problem { max_q_len: 0, max_kv_len: 0, v_dim: MAX, ..problem }, overflow("workspace")),
    ];
    for (problem, expected) in &table {
        assert_error(Plan::new(problem), expected);
    }
    let with = |options: PlanOptions| Plan::with_options(&Problem { max_kv_len: 5000, ..problem }, &options);
    let no_threads = PlanOptions { max_threads: Some(0), ..PlanOptions::default() };
    assert_error(with(no_threads), &at_least("max_threads"));
    assert_error(with(PlanOptions { max_threads: Some(MAX), ..no_threads }), &overflow("workspace"));
    let portable = PlanOptions { level: Some(Level::Portable), bf16_dot: true, max_threads: None };
    assert_error(with(portable), &Bf16DotUnavailable { level: "portable" });
}

#[test]
fn workspaces() {
    let options = |threads| PlanOptions { max_threads: Some(threads), ..PlanOptions::default() };
    let base = Problem { v_dim: 6, kv_heads: 2, ..Problem::new(4, 8, 3, 5) };
    let large = Problem { head_dim: 16, v_dim: 40, max_q_len: 90, max_kv_len: 2000, ..base };
    let plan = |problem, threads| Plan::with_options(&problem, &options(threads)).unwrap();
    let table = [
        ("threads", plan(large, 2), plan(large, 1)),
        ("elements for splits of keys", plan(large, 2), plan(Problem { max_kv_len: 1000, ..large }, 2)),
        ("elements for sums", plan(large, 1), plan(Problem { v_dim: 1, ..large }, 1)),
        ("elements for queries", plan(large, 1), plan(Problem { head_dim: 8, ..large }, 1)),
        ("elements for keys", plan(large, 1), plan(Problem { max_kv_len: 5, ..large }, 1)),
    ];
    let call = |plan: &Plan, workspace: &mut _| {
        let Problem { head_dim, v_dim, .. } = *plan.problem();
        let (k, v) = (repeat([1, 2, 5, head_dim]), repeat([1, 2, 5, v_dim]));
        let mut out = [UNTOUCHED; 160];
        let outputs = Outputs::new(ViewMut::new(&mut out, [1, 4, 1, v_dim])?);
        let result = plan.run(&Inputs::new(repeat([1, 4, 1, head_dim]), k, v), outputs, workspace);
        assert_eq!(result.is_err(), untouched(&out));
        result
    };
    for (lacking, plan, other) in &table {
        let error = call(plan, &mut other.workspace().unwrap()).unwrap_err();
        assert_names_its_fields(&error);
        let right = matches!(error, Workspace { part, expected, got } if part == *lacking && expected > got);
        assert!(right, "{lacking}: {error}");
        call(other, &mut plan.workspace().unwrap()).expect(lacking);
    }
}

#[test]
fn memory_that_is_not_there() {
    let out_of_memory = |result: Result<(), AttentionError>, what: &str| {
        let error = result.expect_err(what);
        assert_names_its_fields(&error);
        assert!(matches!(error, OutOfMemory { what: of, .. } if of == what), "{what}: {error}");
    };
    out_of_memory(KeyPanels::<f32>::with_capacity(1, 1, 1, TOO_MANY).map(|_| ()), "key panels");
    out_of_memory(KeyPanels::from_rows(view(K), TOO_MANY / 64).map(|_| ()), "key panels");
    let long = Plan::new(&Problem::new(1, 1, 100, TOO_MANY)).unwrap();
    out_of_memory(long.workspace().map(|_| ()), "workspace");
    let threads = PlanOptions { max_threads: Some(TOO_MANY), ..PlanOptions::default() };
    let many = Plan::with_options(&Problem::new(1, 1, 1, 1), &threads).unwrap();
    out_of_memory(many.workspace().map(|_| ()), "workspace");
    let long = Inputs::new(repeat([1, 1, TOO_MANY, 1]), view([1, 1, 1, 1]), view([1, 1, 1, 1]));
    out_of_memory(attention(&long).map(|_| ()), "out");
    out_of_memory(reference::attention(&long).map(|_| ()), "out");
    assert_error(
        attention(&Inputs::new(repeat([MAX, 1, MAX, 1]), repeat([MAX, 1, 1, 1]), repeat([MAX, 1, 1, 1]))),
        &SizeOverflow { operand: "queries" },
    );
    assert_error(
        attention(&Inputs::new(repeat([MAX, 1, 2, 1]), repeat([MAX, 1, 1, 1]), repeat([MAX, 1, 1, 1]))),
        &SizeOverflow { operand: "out" },
    );
}

#[test]
fn key_panels() {
    let overflow = SizeOverflow { operand: "key panels" };
    for [batch, heads, dim, capacity] in
        [[1, 1, 1, MAX], [MAX, 2, 1, 1], [1, MAX, MAX, 64], [2, 2, MAX / 2, 64]]
    {
        assert_error(KeyPanels::<f32>::with_capacity(batch, heads, dim, capacity), &overflow);
    }
    assert_error(KeyPanels::<f32>::with_capacity(1, 1, 0, 1), &value("head_dim", "at least 1", "0"));
    let mut panels = KeyPanels::from_rows(view(K), 64).unwrap();
    let strided = View::with_strides(&NUMBERS, K, [1, 1, 1, 2]).unwrap();
    let table = [
        (view([1, 2, 5, 8]), shape("keys", "batch", 2, 1)),
        (view([2, 3, 5, 8]), shape("keys", "heads", 2, 3)),
        (view([2, 2, 5, 4]), shape("keys", "dim", 8, 4)),
        (strided, Stride { operand: "keys", got: 2 }),
        (repeat([2, 2, 60, 8]), TooLarge { operand: "keys", axis: "tokens", limit: 59, got: 60 }),
        (repeat([2, 2, MAX, 8]), TooLarge { operand: "keys", axis: "tokens", limit: 59, got: MAX }),
    ];
    for (keys, expected) in &table {
        assert_error(panels.append(*keys), expected);
        assert_eq!(panels.shape(), K, "nothing is added");
    }
    assert_eq!(panels.get([MAX; 4]), None);
    panels.truncate(MAX);
    panels.append(repeat([2, 2, 59, 8])).unwrap();
    assert_eq!(panels.get([1, 1, 63, 7]), Some(0.5), "the last place");
    for [batch, heads, dim, tokens] in [[MAX, 0, MAX, 3], [0, MAX, MAX, 64], [MAX / 2, 2, 1, 0]] {
        let panels = KeyPanels::from_rows(repeat([batch, heads, tokens, dim]), tokens).unwrap();
        assert_eq!(panels.shape(), [batch, heads, tokens, dim], "no element, whatever the other sizes");
    }
}

#[test]
fn merging() {
    let wide = View::with_strides(&NUMBERS, OUT, [1, 1, 1, 2]).unwrap();
    let table = [
        (view([1, 4, 3, 6]), ROWS, ROWS, shape("other", "batch", 2, 1)),
        (view([2, 4, 3, 5]), ROWS, ROWS, shape("other", "dim", 6, 5)),
        (wide, ROWS, ROWS, Stride { operand: "other", got: 2 }),
        (view(OUT), ROWS - 1, ROWS, shape("lse", "rows", 24, 23)),
        (view(OUT), ROWS, ROWS + 1, shape("other_lse", "rows", 24, 25)),
    ];
    for (other, rows, other_rows, expected) in &table {
        let (mut out, mut lse) = ([UNTOUCHED; 144], vec![UNTOUCHED; *rows]);
        let into = ViewMut::new(&mut out, OUT).unwrap();
        assert_error(merge(into, &mut lse, *other, &NUMBERS[..*other_rows]), expected);
        assert!(untouched(&out) && untouched(&lse), "{expected}");
    }
    let strided = ViewMut::with_strides(&mut [0.0; 300], OUT, [144, 36, 12, 2]).map(|mut out| {
        assert_error(
            merge(out.reborrow(), &mut [0.0; ROWS], view(OUT), &NUMBERS[..ROWS]),
            &Stride { operand: "out", got: 2 },
        );
    });
    strided.unwrap();
    let empty = [MAX, 2, 1, 0];
    let into = ViewMut::<f32>::with_strides(&mut [], empty, [0; 4]).unwrap();
    assert_error(merge(into, &mut [], repeat(empty), &[]), &SizeOverflow { operand: "lse" });
}

#[test]
fn the_reference_refuses_too() {
    let (q, k, v) = (view(Q), view(K), view(V));
    let ragged = Ragged { q_bounds: &[0, 2], kv_bounds: &[0, 5] };
    let refused = [
        Inputs::new(view([2, 4, 3, 7]), k, v),
        Inputs::new(q, view([2, 3, 5, 8]), v),
        Inputs::new(q, k, view([2, 2, 4, 6])),
        Inputs::new(repeat([2, 4, MAX, 8]), k, v).q_start(QueryStart::BottomRight),
        inputs().mask(Mask::causal()),
        inputs().mask(Mask::NONE.kv_lens(&[5, 6])),
        inputs().mask(Mask::prefix_lm(&[1; 3])).q_start(QueryStart::At(0)),
        inputs().q_start(QueryStart::PerSequence(&[])),
        inputs().alibi(&[]).q_start(QueryStart::At(0)),
        inputs().sinks(&[0.0]),
        inputs().bias(view([2, 4, 3, 4])),
        inputs().ragged(ragged),
        Inputs::new(view([1, 4, 3, 8]), view([1, 2, 5, 8]), view([1, 2, 5, 6])).ragged(ragged),
    ];
    for inputs in &refused {
        assert_names_its_fields(&reference::attention(inputs).unwrap_err());
        assert_names_its_fields(&reference::scores(inputs, ScoreStage::Raw).unwrap_err());
    }
}

#[test]
fn names_of_levels() {
    for name in ["", "AVX2", "avx2 ", "sse9"] {
        assert_error(Level::from_name(name), &UnknownLevel { name: name.to_owned() });
    }
    for level in Level::ALL {
        let result = level.check_available();
        let unavailable = LevelUnavailable { level: level.name() };
        assert_names_its_fields(&unavailable);
        if Level::available().all(|available| available != level) {
            let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
            assert_error(result, &unavailable);
            assert_error(Plan::with_options(&Problem::new(1, 1, 1, 1), &options), &unavailable);
            assert_error(math::exp(level, &mut [1.0]), &unavailable);
        }
    }
}

/// The environment is read once per process, so that a wrong one needs a process of its own.
#[test]
fn a_forced_level_that_is_none() {
    let unavailable = Level::ALL.into_iter().filter(|level| !level.is_available()).map(Level::name);
    for name in ["sse9", ""].into_iter().chain(unavailable) {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "forced_level", "--ignored"])
            .env("LUCID_LEVEL", name)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && printed.contains("1 passed"), "{name}: {printed}");
    }
}

#[test]
#[ignore = "for a process that `a_forced_level_that_is_none` starts"]
fn forced_level() {
    let name = std::env::var("LUCID_LEVEL").unwrap_or_default();
    let Err(expected) = Level::from_name(&name).and_then(Level::check_available) else { return };
    if std::env::var_os("LUCID_LEVEL").is_none() {
        return;
    }
    assert_error(Level::detect(), &expected);
    assert_error(Plan::new(&Problem::new(1, 1, 1, 1)), &expected);
    assert_error(attention(&inputs()), &expected);
    let (mut out, mut lse) = ([UNTOUCHED; 144], [UNTOUCHED; ROWS]);
    let into = ViewMut::new(&mut out, OUT).unwrap();
    assert_error(merge(into, &mut lse, view(OUT), &NUMBERS[..ROWS]), &expected);
    assert!(untouched(&out) && untouched(&lse), "nothing is written");
}
