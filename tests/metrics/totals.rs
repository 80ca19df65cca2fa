//! Running totals: over rows, calls and heads, in any order; rows without keys and rows that are NaN.

use crate::common::cases::*;
use crate::{ALL, measure};
use lucid_attention::{
    HeadMetrics, Inputs, Mask, Metrics, MetricsOptions, Outputs, Plan, Problem, Spread, View, ViewMut,
};

/// Heads of some cases that have empty rows, too.
fn some_heads() -> Vec<HeadMetrics> {
    let cases = (0..6).map(|seed| {
        let rules = Rules { allowed: Some(0.05), sinks: seed % 2 == 0, ..Rules::NONE };
        Case { seed, heads: [4, 2], q_len: 11, kv_len: 40, rules, ..Case::default() }
    });
    let heads = cases.flat_map(|case| {
        let operands = case.operands::<f32, f32>(Place::Heap);
        measure(&operands.inputs(), (levels()[0], false), 1, ALL).metrics.heads().to_vec()
    });
    heads.collect()
}

fn spreads(head: &HeadMetrics) -> [Option<Spread>; 6] {
    [
        head.entropy(),
        head.effective_keys(),
        head.max_probability(),
        head.distance(),
        head.first_mass(),
        head.top_mass(),
    ]
}

#[track_caller]
fn assert_near(got: &HeadMetrics, expected: &HeadMetrics) {
    assert_eq!(
        [got.rows(), got.empty_rows(), got.undefined_rows()],
        [expected.rows(), expected.empty_rows(), expected.undefined_rows()]
    );
    assert_eq!(got.sparsity(), expected.sparsity());
    assert_eq!(got.sparsity_counting_masked(), expected.sparsity_counting_masked());
    for (got, expected) in spreads(got).into_iter().zip(spreads(expected)) {
        let (got, expected) = (got.expect("rows"), expected.expect("rows"));
        assert_eq!([got.min, got.max], [expected.min, expected.max]);
        assert!((got.mean - expected.mean).abs() <= 1e-14 * expected.mean.abs(), "{got:?} and {expected:?}");
    }
}

#[test]
fn merging_in_any_order() {
    let heads = some_heads();
    assert!(heads.iter().any(|head| head.empty_rows() > 0), "no empty row");
    let merged = |order: &mut dyn Iterator<Item = &HeadMetrics>| {
        let mut all = HeadMetrics::default();
        order.for_each(|head| all.merge(head));
        all
    };
    let expected = merged(&mut heads.iter());
    assert_near(&merged(&mut heads.iter().rev()), &expected);
    let (left, right) = heads.split_at(7);
    let mut parts = merged(&mut right.iter());
    parts.merge(&merged(&mut left.iter()));
    assert_near(&parts, &expected);
    for pair in heads.windows(2) {
        let (mut one, mut other) = (pair[0], pair[1]);
        one.merge(&pair[1]);
        other.merge(&pair[0]);
        assert_eq!(one, other, "merging is commutative");
        let mut same = pair[0];
        same.merge(&HeadMetrics::default());
        assert_eq!(same, pair[0], "nothing is the identity");
    }
}

/// Totals are those of the rows, over several calls, until they are reset.
#[test]
fn over_calls() {
    let (heads, dim) = (3, 8);
    let problem = Problem::new(heads, dim, 20, 50);
    let plan = Plan::new(&problem).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut metrics = Metrics::new(ALL, heads, 2 * heads * 20).expect("memory");
    let mut expected = vec![HeadMetrics::default(); heads];
    for (seed, batch, q_len) in [(1, 1, 20), (2, 2, 7), (3, 2, 20), (4, 0, 3), (5, 1, 0), (6, 1, 1)] {
        let case = Case { seed, batch, heads: [heads, heads], q_len, kv_len: 50, ..Case::default() };
        let operands = case.operands::<f32, f32>(Place::Heap);
        let inputs = operands.inputs();
        let shape = inputs.output_shape();
        let mut out = vec![0.0; shape.iter().product()];
        let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("contiguous")).metrics(&mut metrics);
        plan.run(&inputs, outputs, &mut workspace).expect("operands that fit");
        assert_eq!(metrics.rows().len(), batch * heads * q_len);
        for (index, row) in metrics.rows().iter().enumerate() {
            expected[index / q_len % heads].add(row);
        }
        assert_eq!(metrics.heads(), expected);
    }
    assert_eq!(metrics.overall().rows(), heads as u64 * (20 + 14 + 40 + 1));
    let mut twice = metrics.clone();
    twice.merge(&metrics).expect("the same options");
    assert_eq!(twice.overall().rows(), 2 * metrics.overall().rows());
    assert_eq!(twice.overall().sparsity(), metrics.overall().sparsity());
    let other = Metrics::new(MetricsOptions::default(), heads, 1).expect("memory");
    assert!(twice.merge(&other).is_err(), "other options");
    assert!(twice.merge(&Metrics::new(ALL, 2, 1).expect("memory")).is_err(), "other heads");
    metrics.reset();
    assert!(metrics.rows().is_empty() && metrics.overall() == HeadMetrics::default());
}

/// By hand: two keys, three rows; one without a key, one that is NaN.
#[test]
fn rows_that_count_apart() {
    let (q, k, v) = ([0.0f32, 1.0, f32::NAN], [0.0f32, 3f32.ln()], [1.0f32; 2]);
    let inputs = Inputs::new(
        View::new(&q, [1, 1, 3, 1]).expect("contiguous"),
        View::new(&k, [1, 1, 2, 1]).expect("contiguous"),
        View::new(&v, [1, 1, 2, 1]).expect("contiguous"),
    );
    let allowed = [true, false, true, true, true, true];
    let allowed = View::new(&allowed, [1, 1, 3, 2]).expect("contiguous");
    let none = [false, false, true, true, true, true];
    let none = View::new(&none, [1, 1, 3, 2]).expect("contiguous");
    let options = MetricsOptions { sparsity: Some(0.3), top_k: Some(1), first_keys: Some(1), distance: true };
    for tier in tiers().into_iter().filter(|tier| !tier.1) {
        let got = measure(&inputs.mask(Mask::NONE.allowed(allowed)), tier, 1, options).metrics;
        let head = got.heads()[0];
        assert_eq!([head.rows(), head.empty_rows(), head.undefined_rows()], [2, 0, 1]);
        let close = |got: Option<f64>, want: f64| {
            assert!((got.expect("rows") - want).abs() < 1e-6, "{got:?}, {want}")
        };
        let entropy = 4f64.ln() - 0.75 * 3f64.ln(); // of a quarter and three
        close(head.entropy().map(|entropy| entropy.max), entropy);
        close(head.entropy().map(|entropy| entropy.mean), entropy / 2.0);
        assert_eq!(head.entropy().map(|entropy| entropy.min), Some(0.0));
        close(head.effective_keys().map(|keys| keys.max), entropy.exp());
        close(head.max_probability().map(|p| p.min), 0.75);
        close(head.top_mass().map(|mass| mass.mean), 0.875);
        close(head.first_mass().map(|mass| mass.min), 0.25);
        close(head.distance().map(|distance| distance.mean), 0.125); // 0 of key 0, 1/4 of position 1
        close(head.mean_score(), 2.0 / 3.0);
        close(head.mean_score_counting_masked(), 0.5);
        assert_eq!(head.sparsity(), Some(1.0 / 3.0));
        assert_eq!(head.sparsity_counting_masked(), Some(0.5));
        let nan = &got.rows()[2];
        assert!(nan.is_undefined() && !nan.is_empty() && nan.keys == 2);

        let got = measure(&inputs.mask(Mask::NONE.allowed(none)), tier, 1, options).metrics;
        let head = got.heads()[0];
        assert_eq!([head.rows(), head.empty_rows(), head.undefined_rows()], [1, 1, 1]);
        let empty = &got.rows()[0];
        assert!(empty.is_empty() && !empty.is_undefined() && empty.all_keys == 2);
        assert_eq!([empty.entropy, empty.effective_keys, empty.total, empty.mean_score()], [0.0; 4]);
        assert_eq!([empty.distance, empty.first_mass, empty.top_mass, empty.sparsity()], [Some(0.0); 4]);
        assert_eq!(head.sparsity_counting_masked(), Some(0.75), "the empty row's two, and the quarter");
    }
}
