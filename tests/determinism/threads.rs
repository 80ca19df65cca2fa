//! D2, and every way of being called.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{everything, large_cases, with_types};
use lucid_attention::{Plan, PlanOptions, Problem, ScoreStage};

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool")
}

#[test]
fn any_number_of_threads() {
    for case in large_cases() {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let inputs = operands.inputs();
            for level in levels() {
                let alone = everything(&inputs, level, 1);
                for (size, most) in [(1, 8), (2, 2), (3, 3), (3, 8), (8, 2), (8, 8), (2, 100)] {
                    let got = pool(size).install(|| everything(&inputs, level, most));
                    assert_equal(&got, &alone, &format!("{level}, at most {most} in a pool of {size}"));
                }
            }
        });
    }
}

/// However little work they are.
#[test]
fn small_calls() {
    let base = Case { heads: [4, 2], q_len: 3, kv_len: 5, head_dim: 20, v_dim: 24, ..Case::default() };
    let cases = [
        base,
        Case { heads: [8, 8], q_len: 1, rules: Rules { sinks: true, ..Rules::NONE }, ..base },
        Case { rules: Rules::CAUSAL, q_len: 40, kv_len: 40, ..base },
        Case { storage: Storage::Panels, kv_len: 70, ..base },
        Case { types: TYPES[1], q_len: 16, kv_len: 17, rules: Rules { ragged: true, ..Rules::NONE }, ..base },
        Case { heads: [1, 1], q_len: 1, kv_len: 3000, ..base },
        Case { seed: 32, rules: Rules { blocks: true, ..Rules::NONE }, q_len: 60, kv_len: 60, ..base },
    ];
    for case in cases.map(Case::possible) {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let inputs = operands.inputs();
            for level in levels() {
                let ask = Ask::all(level).scores(ScoreStage::Softmax);
                let alone = run(&inputs, &ask);
                for size in [2, 3] {
                    let from_nothing = PlanOptions {
                        level: Some(level),
                        max_threads: Some(size),
                        spread_from_microseconds: Some(0),
                        ..PlanOptions::default()
                    };
                    let got = pool(size).install(|| {
                        let plan = Plan::with_options(&Problem::of(&inputs), &from_nothing).expect("a plan");
                        let threads = plan.explain(&inputs).expect("operands that fit").threads;
                        assert!(threads > 1, "{case:?} runs on one thread");
                        run(&inputs, &Ask { threads: size, spread_from: Some(0), ..ask })
                    });
                    assert_equal(&got, &alone, &format!("{level}, pool of {size}"));
                }
            }
        });
    }
}

/// 250 times over, on 1 to 8 threads: whoever comes first must not show.
#[test]
fn many_times() {
    let cases = [large_cases()[0], large_cases()[6]];
    for case in cases {
        let _announced = announce(&case);
        let operands = case.operands::<f32, f32>(Place::Heap);
        let level = lucid_attention::Level::detect().expect("a level");
        let alone = everything(&operands.inputs(), level, 1);
        for threads in 1..=8 {
            pool(threads).install(|| {
                for repeat in 0..250 {
                    let got = everything(&operands.inputs(), level, threads);
                    assert_equal(&got, &alone, &format!("{level}, {threads} threads, repeat {repeat}"));
                }
            });
        }
    }
}

/// The cases above do what they are there for: work side by side, over blocks and over splits of keys.
#[test]
fn the_cases_are_large_enough() {
    let split = |case: &Case| {
        let operands = case.operands::<f32, f32>(Place::Heap);
        let inputs = operands.inputs();
        let explanation = pool(4).install(|| {
            let options = PlanOptions { max_threads: Some(4), ..PlanOptions::default() };
            let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
            plan.explain(&inputs).expect("operands that fit")
        });
        assert!(explanation.threads > 1, "{case:?} runs on one thread: {explanation}");
        explanation.splits > 1
    };
    let cases = large_cases();
    let splitting = cases.iter().filter(|case| split(case)).count();
    assert!(splitting >= 5, "only {splitting} cases split their keys");
    assert!(splitting < cases.len(), "all cases split their keys");
}

/// Calls side by side, from inside workers, in a pool of one thread or more.
#[test]
fn from_inside_workers() {
    let case = large_cases()[0];
    let operands = case.operands::<f32, f32>(Place::Heap);
    let decode = large_cases()[6];
    let decode = decode.operands::<f32, f32>(Place::Heap);
    for level in levels() {
        let alone = [&operands, &decode].map(|operands| everything(&operands.inputs(), level, 1));
        for size in [1, 2, 3] {
            pool(size).install(|| {
                let call = || {
                    let got = everything(&operands.inputs(), level, 3);
                    assert_equal(&got, &alone[0], &format!("{level}, prefill in a pool of {size}"));
                };
                let other = || {
                    let got = everything(&decode.inputs(), level, 3);
                    assert_equal(&got, &alone[1], &format!("{level}, decode in a pool of {size}"));
                };
                rayon::join(|| rayon::join(call, other), || rayon::join(other, call));
            });
        }
    }
}
