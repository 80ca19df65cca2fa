//! Criterion benches: `cargo bench`, or `cargo bench -- prefill/avx512`. Each case is checked against the f64 reference
//! before it is timed, so `cargo bench -- --test` is a test.
//!
//! Ids read `<group>/<kernel>/<level>/<dtype>/b1_h8_kv8_q512_k512_d64_causal`; throughput is in floating-point operations
//! (prefill, small) or bytes of keys and values (decode). Baselines stand in the same group: `naive` (loops over the
//! formula) and `unfused` (two matrix products by the `matrixmultiply` crate around a softmax). The group `metrics` has what
//! is measured in place of the kernel: nothing, what the one pass gives, and all there is.

#[path = "common/baselines.rs"]
mod baselines;
mod common;

use baselines::{naive, unfused};
use common::{Case, Tensors};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use half::{bf16, f16};
use lucid_attention::{
    Element, Inputs, KeyPanels, Keys, Level, Mask, Metrics, MetricsOptions, Outputs, Plan, PlanOptions,
    Problem, QueryStart, View, ViewMut,
    reference::{self, Answer},
};
use std::hint::black_box;

const fn case(heads: [usize; 2], lens: [usize; 2], dim: usize, causal: bool) -> Case {
    Case { batch: 1, q_heads: heads[0], kv_heads: heads[1], q_len: lens[0], kv_len: lens[1], dim, causal }
}

fn prefill(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for case in [
        case([8, 8], [128, 128], 32, false),
        case([8, 8], [512, 512], 64, false),
        case([8, 8], [512, 512], 64, true),
        case([8, 2], [1024, 1024], 128, true),
    ] {
        group.throughput(Throughput::Elements(case.operations()));
        levels::<f32>(&mut group, &case, false);
        levels::<f16>(&mut group, &case, false);
        levels::<bf16>(&mut group, &case, false);
        baselines(&mut group, &case);
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10);
    for case in [
        case([32, 32], [1, 1024], 128, false),
        case([32, 8], [1, 4096], 128, false),
        case([8, 8], [4, 4096], 64, true),
    ] {
        group.throughput(Throughput::Bytes(case.kv_bytes(4)));
        levels::<f32>(&mut group, &case, false);
        levels::<f32>(&mut group, &case, true);
        baselines(&mut group, &case);
        group.throughput(Throughput::Bytes(case.kv_bytes(2)));
        levels::<f16>(&mut group, &case, true);
        levels::<bf16>(&mut group, &case, true);
    }
    group.finish();
}

fn small(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("small");
    for case in [
        case([4, 4], [1, 10], 32, false),
        case([4, 4], [1, 50], 32, false),
        case([12, 12], [16, 16], 64, false),
    ] {
        group.throughput(Throughput::Elements(case.operations()));
        levels::<f32>(&mut group, &case, false);
        levels::<f32>(&mut group, &case, true);
        baselines(&mut group, &case);
    }
    group.finish();
}

/// Times every level there is.
fn levels<T: Element>(group: &mut BenchmarkGroup<'_, WallTime>, case: &Case, in_panels: bool) {
    let tensors = Tensors::<T>::new(case);
    let rows = View::new(&tensors.k, case.kv_shape()).expect("k fits its shape");
    let panels = KeyPanels::from_rows(rows, case.kv_len).expect("panels for k");
    let keys = if in_panels { Keys::Panels(&panels) } else { Keys::Rows(rows) };
    let inputs = inputs(case, &tensors, keys);
    let answer = reference::attention(&inputs).expect("the reference");
    let kernel = if in_panels { "panels" } else { "rows" };
    for level in Level::available() {
        let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
        let mut workspace = plan.workspace().expect("a workspace");
        let mut out = vec![T::default(); case.q_shape().iter().product()];
        let mut call = |out: &mut [T]| {
            let out = ViewMut::new(out, case.q_shape()).expect("out fits its shape");
            plan.run(black_box(&inputs), Outputs::new(out), &mut workspace).expect("a checked call");
        };
        call(&mut out);
        check(case, &out, &answer);
        let id = BenchmarkId::new(format!("{kernel}/{level}/{}", T::DTYPE), case);
        group.bench_function(id, |bencher| bencher.iter(|| call(&mut out)));
    }
}

/// What metrics cost.
fn metrics(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("metrics");
    group.sample_size(10);
    let case = case([2, 2], [2048, 2048], 64, false);
    group.throughput(Throughput::Elements(case.operations()));
    let tensors = Tensors::<f32>::new(&case);
    let keys = Keys::Rows(View::new(&tensors.k, case.kv_shape()).expect("k fits its shape"));
    let inputs = inputs(&case, &tensors, keys);
    let answer = reference::attention(&inputs).expect("the reference");
    let entropy = MetricsOptions::default();
    let all =
        MetricsOptions { top_k: Some(16), first_keys: Some(4), distance: true, ..MetricsOptions::SPECIFIED };
    for level in Level::available() {
        let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
        let mut workspace = plan.workspace().expect("a workspace");
        let mut out = vec![0.0; case.q_shape().iter().product()];
        let specified = MetricsOptions::SPECIFIED;
        let rows =
            [("off", None), ("entropy", Some(entropy)), ("specified", Some(specified)), ("all", Some(all))];
        for (name, measured) in rows {
            let metrics =
                measured.map(|options| Metrics::new(options, case.q_heads, case.q_heads * case.q_len));
            let mut metrics = metrics.transpose().expect("memory");
            let mut call = |out: &mut [f32]| {
                let outputs = Outputs::new(ViewMut::new(out, case.q_shape()).expect("out fits its shape"));
                let outputs = metrics.iter_mut().fold(outputs, |outputs, metrics| outputs.metrics(metrics));
                plan.run(black_box(&inputs), outputs, &mut workspace).expect("a checked call");
            };
            call(&mut out);
            check(&case, &out, &answer);
            let id = BenchmarkId::new(format!("{name}/{level}/f32"), case);
            group.bench_function(id, |bencher| bencher.iter(|| call(&mut out)));
        }
    }
    group.finish();
}

/// Computes a case into its output.
type Baseline = fn(&Case, &Tensors<f32>, &mut [f32]);

fn baselines(group: &mut BenchmarkGroup<'_, WallTime>, case: &Case) {
    let tensors = Tensors::<f32>::new(case);
    let rows = View::new(&tensors.k, case.kv_shape()).expect("k fits its shape");
    let answer = reference::attention(&inputs(case, &tensors, Keys::Rows(rows))).expect("the reference");
    let baselines: [(&str, Baseline); 2] = [("naive", naive), ("unfused", unfused)];
    for (name, baseline) in baselines {
        let mut out = vec![0.0; case.q_shape().iter().product()];
        baseline(case, &tensors, &mut out);
        check(case, &out, &answer);
        group.bench_function(BenchmarkId::new(name, case), |bencher| {
            bencher.iter(|| baseline(black_box(case), &tensors, &mut out));
        });
    }
}

fn inputs<'a, T: Element>(case: &Case, tensors: &'a Tensors<T>, keys: Keys<'a, T>) -> Inputs<'a, T, T> {
    let q = View::new(&tensors.q, case.q_shape()).expect("q fits its shape");
    let v = View::new(&tensors.v, case.kv_shape()).expect("v fits its shape");
    let mask = if case.causal { Mask::causal() } else { Mask::NONE };
    Inputs::new(q, keys, v).mask(mask).q_start(QueryStart::BottomRight)
}

/// Asserts that results are right: a wrong kernel is not worth timing.
fn check<Q: Element>(case: &Case, out: &[Q], answer: &Answer) {
    let error = |(got, want): (&Q, &f64)| (f64::from(got.to_f32()) - want).abs();
    let worst = out.iter().zip(&answer.out).map(error).fold(0.0, f64::max);
    let tolerance = 1e-5 + 4.0 * Q::DTYPE.unit_roundoff();
    assert!(worst <= tolerance, "{case}: off by {worst}, more than {tolerance}");
}

criterion_group!(benches, prefill, decode, small, metrics);
criterion_main!(benches);
