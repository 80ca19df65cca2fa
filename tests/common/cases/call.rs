//! Calls and what they return.

use super::memory::{offset, strides, view_mut};
use super::{Memory, Operand, Place, Storage, for_each_index};
use lucid_attention::{Element, Inputs, Level, Outputs, Plan, PlanOptions, Problem, ScoreStage, Scores};

/// What everything that a call writes to starts as: a NaN that no computation gives.
pub const CANARY: f32 = f32::from_bits(0x7fd5_a000);

/// How a call is made, and what is asked for besides the output.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub level: Level,
    pub threads: usize,
    /// Microseconds.
    pub spread_from: Option<u64>,
    /// In the fast tier on bf16 dot products.
    pub bf16_dot: bool,
    pub lse: bool,
    pub row_max: bool,
    pub stage: Option<ScoreStage>,
    /// Query heads and rows to ask scores of; all if not given.
    pub heads: Option<&'a [usize]>,
    pub rows: Option<&'a [usize]>,
    pub storage: Storage,
    pub place: Place,
}

impl Ask<'_> {
    /// The output and nothing else, on one thread.
    pub fn at(level: Level) -> Self {
        Ask {
            level,
            threads: 1,
            spread_from: None,
            bf16_dot: false,
            lse: false,
            row_max: false,
            stage: None,
            heads: None,
            rows: None,
            storage: Storage::HeadMajor,
            place: Place::Heap,
        }
    }

    /// The output, LSE and row maxima.
    pub fn all(level: Level) -> Self {
        Ask { lse: true, row_max: true, ..Ask::at(level) }
    }

    /// Scores of a stage, besides.
    pub fn scores(self, stage: ScoreStage) -> Self {
        Ask { stage: Some(stage), ..self }
    }
}

/// What a call wrote, contiguous; empty where nothing was asked for.
#[derive(Clone, Debug, Default)]
pub struct Results<Q> {
    pub out: Vec<Q>,
    pub lse: Vec<f32>,
    pub row_max: Vec<f32>,
    pub scores: Vec<f32>,
}

/// Makes a call. What lies between the elements it writes must be as it was afterwards.
pub fn run<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>, ask: &Ask<'_>) -> Results<Q> {
    let &Ask { level, threads, spread_from, bf16_dot, .. } = ask;
    let options = PlanOptions {
        level: Some(level),
        max_threads: Some(threads),
        spread_from_microseconds: spread_from,
        bf16_dot,
        ..PlanOptions::default()
    };
    let plan = Plan::with_options(&Problem::of(inputs), &options).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let shape = inputs.output_shape();
    let [batch, q_heads, q_len, _] = shape;
    let rows = batch * q_heads * q_len;
    let per_row = |wanted: bool| Memory::new(vec![CANARY; if wanted { rows } else { 0 }], ask.place);
    let (mut lse, mut row_max) = (per_row(ask.lse), per_row(ask.row_max));
    let score_shape = [
        batch,
        ask.heads.map_or(q_heads, <[usize]>::len),
        ask.rows.map_or(q_len, <[usize]>::len),
        inputs.k().shape()[2],
    ];
    let storage = |shape| strides(ask.storage, shape, q_heads + 1);
    let mut scores = ask.stage.map(|_| filled(score_shape, storage(score_shape), ask.place, CANARY));
    let mut out = filled(shape, storage(shape), ask.place, Q::from_f32(CANARY));

    let mut outputs = Outputs::new(view_mut(&mut out));
    if ask.lse {
        outputs = outputs.lse(&mut lse);
    }
    if ask.row_max {
        outputs = outputs.row_max(&mut row_max);
    }
    if let (Some(stage), Some(scores)) = (ask.stage, &mut scores) {
        let mut wanted = Scores::new(stage, view_mut(scores));
        if let Some(heads) = ask.heads {
            wanted = wanted.heads(heads);
        }
        if let Some(rows) = ask.rows {
            wanted = wanted.rows(rows);
        }
        outputs = outputs.scores(wanted);
    }
    plan.run(inputs, outputs, &mut workspace).expect("operands that fit");
    assert_gaps(&out, "the output");
    let scores = scores.map_or(Vec::new(), |scores| {
        assert_gaps(&scores, "the scores");
        scores.gather()
    });
    Results { out: out.gather(), lse: lse.to_vec(), row_max: row_max.to_vec(), scores }
}

/// One number everywhere, between the elements too.
pub fn filled<T: Copy>(shape: [usize; 4], strides: [usize; 4], place: Place, value: T) -> Operand<T> {
    Operand::new(shape, strides, place, value, |_| value)
}

/// Asserts that nothing was written between the elements, which is [`CANARY`] as long as that holds.
#[track_caller]
pub fn assert_gaps<T: Element>(operand: &Operand<T>, what: &str) {
    let canary = T::from_f32(CANARY).to_f32().to_bits();
    let mut inside = vec![false; operand.data.len()];
    for_each_index(operand.shape, |index| inside[offset(index, operand.strides)] = true);
    for (at, (x, inside)) in operand.data.iter().zip(inside).enumerate() {
        assert!(
            inside || x.to_f32().to_bits() == canary,
            "{what}: element {at} between rows was overwritten"
        );
    }
}

/// Whether two numbers have the same bits, all NaN being one.
pub fn same<T: Element>(a: T, b: T) -> bool {
    let (a, b) = (a.to_f32(), b.to_f32());
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Asserts that all numbers are the [`same`].
#[track_caller]
pub fn assert_same<T: Element>(got: &[T], expected: &[T], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let (x, y) = (got.to_f32(), expected.to_f32());
        assert!(same(got, expected), "{what}: element {at} is {x:e}, expected {y:e}");
    }
}

/// [`assert_same`] for everything that two calls wrote.
#[track_caller]
pub fn assert_equal<Q: Element>(got: &Results<Q>, expected: &Results<Q>, what: &str) {
    assert_same(&got.out, &expected.out, &format!("{what}: out"));
    assert_same(&got.lse, &expected.lse, &format!("{what}: lse"));
    assert_same(&got.row_max, &expected.row_max, &format!("{what}: row_max"));
    assert_same(&got.scores, &expected.scores, &format!("{what}: scores"));
}

/// Asserts that numbers are about those expected, relative to 1 or to their size.
#[track_caller]
pub fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let close = got == expected || (got - expected).abs() <= tolerance * (1.0 + expected.abs());
        assert!(close, "{what}: element {at} is {got:e}, expected about {expected:e}");
    }
}
