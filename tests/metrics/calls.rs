//! The same bits for any number of threads, at every fused level and in any order of calls; errors.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{ALL, assert_rows, bits, measure, with_types};
use lucid_attention::{
    AttentionError, Inputs, Level, Metrics, MetricsOptions, Outputs, Plan, Problem, View, ViewMut,
};

/// Large enough to be spread over threads, by rows and by splits of keys.
fn large_cases() -> Vec<Case> {
    let rows = Case { heads: [4, 2], q_len: 200, kv_len: 330, head_dim: 40, v_dim: 48, ..Case::default() };
    let keys = Case { heads: [4, 2], q_len: 3, kv_len: 9000, head_dim: 64, v_dim: 64, ..rows };
    let cases = [
        rows,
        Case { rules: Rules::CAUSAL, types: TYPES[1], batch: 2, ..rows },
        Case { rules: Rules { ragged: true, ..Rules::CAUSAL }, types: TYPES[2], q_len: 500, ..rows },
        Case { rules: Rules { allowed: Some(0.3), sinks: true, ..Rules::NONE }, ..rows },
        keys,
        Case { storage: Storage::Panels, rules: Rules { sinks: true, ..Rules::CAUSAL }, ..keys },
        Case { values: Values::Increasing, rules: Rules { allowed: Some(0.5), ..Rules::NONE }, ..keys },
        Case { batch: 2, rules: Rules { kv_lens: true, ..Rules::NONE }, types: TYPES[1], ..keys },
    ];
    cases.into_iter().map(Case::possible).collect()
}

#[cfg(feature = "rayon")]
#[test]
fn any_number_of_threads() {
    let mut split = 0;
    for case in large_cases() {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let inputs = operands.inputs();
            for tier in tiers() {
                let alone = measure(&inputs, tier, 1, ALL);
                for threads in 2..=4 {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                    let got = pool.install(|| measure(&inputs, tier, threads, ALL));
                    let what = format!("{tier:?}, {threads} threads");
                    assert_rows(&got.metrics, &alone.metrics, &what);
                    assert_eq!(got.metrics.heads(), alone.metrics.heads(), "{what}: totals");
                    assert_same(&got.out, &alone.out, &what);
                    let options = lucid_attention::PlanOptions { max_threads: Some(threads), ..Default::default() };
                    let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
                    let explained = pool.install(|| plan.explain(&inputs)).expect("operands that fit");
                    assert!(explained.threads > 1, "{case:?} runs on one thread");
                    split += usize::from(explained.splits > 1);
                }
            }
        });
    }
    assert!(split > 0, "no case splits its keys");
}

/// Metrics made where fewer threads were to expect hold no memory for all: the same numbers, by a second pass.
#[cfg(feature = "rayon")]
#[test]
fn made_for_fewer_threads() {
    let case = large_cases()[0];
    let operands = case.operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let shape @ [batch, q_heads, q_len, _] = inputs.output_shape();
    let new = || Metrics::new(ALL, q_heads, batch * q_heads * q_len).expect("memory");
    let [alone, several] = [1, 3].map(|threads| pool(threads).install(new));
    let run = |mut metrics: Metrics| {
        pool(3).install(|| {
            let plan = Plan::new(&Problem::of(&inputs)).expect("a plan");
            assert!(plan.explain(&inputs).expect("operands that fit").threads > 1, "it is spread");
            let mut out = vec![0.0f32; shape.iter().product()];
            let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("contiguous"));
            let outputs = outputs.metrics(&mut metrics);
            plan.run(&inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");
        });
        metrics
    };
    assert_rows(&run(alone), &run(several), "made for one thread, run on three");
}

#[test]
fn fused_levels() {
    let fused: Vec<Level> = levels().into_iter().filter(|level| level.is_fused()).collect();
    for case in large_cases().into_iter().chain((0..200).map(|seed| Case::random(seed + 88_000))) {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let inputs = operands.inputs();
            let results: Vec<_> = fused.iter().map(|&level| measure(&inputs, (level, false), 1, ALL)).collect();
            for (level, got) in fused.iter().zip(&results) {
                assert_rows(&got.metrics, &results[0].metrics, &format!("{level} against {}", fused[0]));
            }
        });
    }
}

/// A row has the same metrics in any company: chunks of a prefill, and one row at a time.
#[test]
fn rows_alone() {
    let case = Case { heads: [2, 1], q_len: 40, kv_len: 1300, rules: Rules::CAUSAL, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    for tier in tiers() {
        let whole = measure(&operands.inputs(), tier, 1, ALL);
        for row in [0, 7, 39] {
            let alone = measure(&operands.inputs_of(row..row + 1, operands.k.view()), tier, 1, ALL);
            for head in 0..2 {
                let (got, expected) = (&alone.metrics.rows()[head], &whole.metrics.rows()[head * 40 + row]);
                assert_eq!(bits(got), bits(expected), "{tier:?}: row {row} of head {head}");
            }
        }
    }
}

/// What is asked for is there, and nothing else; it changes none of the rest.
#[test]
fn options_bind() {
    let operands = Case { heads: [2, 2], kv_len: 300, ..Case::default() }.operands::<f32, f32>(Place::Heap);
    let none = MetricsOptions::default();
    let cases = [
        none,
        MetricsOptions { sparsity: ALL.sparsity, ..none },
        MetricsOptions { top_k: ALL.top_k, ..none },
        MetricsOptions { first_keys: ALL.first_keys, ..none },
        MetricsOptions { distance: true, ..none },
        MetricsOptions::SPECIFIED,
    ];
    for tier in tiers() {
        let all = measure(&operands.inputs(), tier, 1, ALL);
        for options in cases {
            let got = measure(&operands.inputs(), tier, 1, options);
            for (row, full) in got.metrics.rows().iter().zip(all.metrics.rows()) {
                let expected = lucid_attention::RowMetrics {
                    distance: full.distance.filter(|_| options.distance),
                    first_mass: full.first_mass.filter(|_| options.first_keys.is_some()),
                    top_mass: full.top_mass.filter(|_| options.top_k.is_some()),
                    below_threshold: full.below_threshold.filter(|_| options.sparsity.is_some()),
                    ..*full
                };
                assert_eq!(*row, expected, "{tier:?}, {options:?}");
            }
            let total = got.metrics.overall();
            assert_eq!(total.sparsity().is_some(), options.sparsity.is_some());
            assert_eq!(total.top_mass().is_some(), options.top_k.is_some());
            assert_eq!(total.first_mass().is_some(), options.first_keys.is_some());
            assert_eq!(total.distance().is_some(), options.distance);
        }
        let other = measure(&operands.inputs(), tier, 1, MetricsOptions { sparsity: Some(0.002), ..ALL });
        assert_ne!(other.metrics.overall().sparsity(), all.metrics.overall().sparsity());
    }
}

#[test]
fn errors() {
    let options = MetricsOptions::default();
    let refused = [
        (MetricsOptions { sparsity: Some(0.0), ..options }, "metrics.sparsity"),
        (MetricsOptions { sparsity: Some(1.5), ..options }, "metrics.sparsity"),
        (MetricsOptions { sparsity: Some(f32::NAN), ..options }, "metrics.sparsity"),
        (MetricsOptions { top_k: Some(0), ..options }, "metrics.top_k"),
        (MetricsOptions { top_k: Some(65), ..options }, "metrics.top_k"),
        (MetricsOptions { first_keys: Some(0), ..options }, "metrics.first_keys"),
    ];
    for (options, expected) in refused {
        let error = Metrics::new(options, 1, 1).expect_err("an option out of range");
        assert!(
            matches!(error, AttentionError::Value { operand, .. } if operand == expected),
            "{options:?}: {error}"
        );
    }
    let error = Metrics::new(options, 1, usize::MAX).expect_err("more than there is");
    assert!(matches!(error, AttentionError::OutOfMemory { what: "metrics", .. }), "{error}");

    let data = [0.5f32; 12];
    let shape = [1, 2, 3, 2];
    let view = View::new(&data, shape).expect("contiguous");
    let inputs = Inputs::new(view, view, view);
    let plan = Plan::new(&Problem::of(&inputs)).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    for (heads, rows, expected) in [
        (3, 6, AttentionError::Shape { operand: "metrics", axis: "q_heads", expected: 2, got: 3 }),
        (2, 5, AttentionError::TooLarge { operand: "metrics", axis: "rows", limit: 5, got: 6 }),
    ] {
        let mut metrics = Metrics::new(options, heads, rows).expect("memory");
        let mut out = [7.0f32; 12];
        let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("contiguous")).metrics(&mut metrics);
        assert_eq!(plan.run(&inputs, outputs, &mut workspace), Err(expected));
        assert!(out == [7.0; 12] && metrics.rows().is_empty() && metrics.overall().rows() == 0);
    }
}
