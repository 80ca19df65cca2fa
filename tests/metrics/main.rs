//! Metrics of attention: against their definition on the materialised probabilities, and what they promise of bits, totals
//! and errors.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod definition;
mod peaks;
mod top_keys;
mod totals;

use lucid_attention::{
    Element, Inputs, Level, Metrics, MetricsOptions, Outputs, Plan, PlanOptions, Problem, RowMetrics,
    ScoreStage, Scores, ViewMut,
};

/// Everything that can be asked for.
const ALL: MetricsOptions =
    MetricsOptions { sparsity: Some(0.01), top_k: Some(3), first_keys: Some(4), distance: true };

/// What a call wrote.
struct Measured<Q> {
    out: Vec<Q>,
    lse: Vec<f32>,
    metrics: Metrics,
    /// `[batch, q_heads, q_len, kv_len]`.
    probabilities: Vec<f32>,
}

/// Makes a measured call, in some tier of some level.
fn measure<Q: Element, T: Element>(
    inputs: &Inputs<'_, Q, T>,
    (level, bf16_dot): (Level, bool),
    threads: usize,
    options: MetricsOptions,
) -> Measured<Q> {
    let plan_options =
        PlanOptions { level: Some(level), max_threads: Some(threads), bf16_dot, ..PlanOptions::default() };
    let plan = Plan::with_options(&Problem::of(inputs), &plan_options).expect("a plan");
    let shape @ [batch, q_heads, q_len, _] = inputs.output_shape();
    let rows = batch * q_heads * q_len;
    let kv_len = inputs.k().shape()[2];
    let mut metrics = Metrics::new(options, q_heads, rows).expect("valid options");
    let mut out = vec![Q::default(); shape.iter().product()];
    let (mut lse, mut probabilities) = (vec![0.0; rows], vec![0.0; rows * kv_len]);
    let scores = ViewMut::new(&mut probabilities, [batch, q_heads, q_len, kv_len]).expect("contiguous");
    let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("contiguous"))
        .lse(&mut lse)
        .scores(Scores::new(ScoreStage::Softmax, scores))
        .metrics(&mut metrics);
    plan.run(inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");
    Measured { out, lse, metrics, probabilities }
}

/// The bits of a row's numbers, all NaN being one.
fn bits(row: &RowMetrics) -> ([usize; 3], [Option<u32>; 7]) {
    let of = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    let numbers = [
        Some(row.total),
        Some(row.entropy),
        Some(row.effective_keys),
        Some(row.max_probability),
        row.distance,
        row.first_mass,
        row.top_mass,
    ];
    ([row.keys, row.all_keys, row.below_threshold.unwrap_or(usize::MAX)], numbers.map(|x| x.map(of)))
}

/// Asserts equal bits of all rows.
#[track_caller]
fn assert_rows(got: &Metrics, expected: &Metrics, what: &str) {
    assert_eq!(got.rows().len(), expected.rows().len(), "{what}: rows");
    for (at, (got, expected)) in got.rows().iter().zip(expected.rows()).enumerate() {
        assert_eq!(bits(got), bits(expected), "{what}: row {at}: {got:?} against {expected:?}");
    }
}
