//! D2 for everything that computes: on 1 to 8 threads, inside workers, in pools of one, by callers side by side.

use crate::common::cases::*;
use crate::common::engines::{Engine, engines};
use crate::common::guard::announce;
use crate::{everything, large_cases};
use lucid_attention::{Level, Outputs, Plan, PlanOptions, Problem, ViewMut};
use rayon::prelude::*;

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool")
}

/// What each gives on one thread.
fn alone(level: Level) -> Vec<Vec<u32>> {
    engines(level, 1).iter().map(|engine| (engine.call)()).collect()
}

#[track_caller]
fn assert_bits(engine: &Engine, expected: &[u32], what: &str) {
    let got = (engine.call)();
    assert!(got == expected, "{}, {what}: other bits", engine.name);
}

#[test]
fn any_number_of_threads() {
    for level in levels() {
        let expected = alone(level);
        for threads in 1..=8 {
            let all = engines(level, threads);
            pool(threads).install(|| {
                for (engine, expected) in all.iter().zip(&expected) {
                    let _announced = announce(&(level, threads, engine.name));
                    (0..10)
                        .for_each(|_| assert_bits(engine, expected, &format!("{level}, {threads} threads")));
                }
            });
        }
    }
}

/// Calls within parallel loops, within joins, within scopes, of pools of one thread and more.
#[test]
fn inside_workers() {
    for level in levels() {
        let expected = alone(level);
        let all: Vec<_> = engines(level, 3).into_iter().zip(expected).collect();
        for size in [1, 2, 3] {
            let what = format!("{level}, in a pool of {size}");
            pool(size).install(|| {
                all.par_iter().for_each(|(engine, expected)| {
                    let call = || assert_bits(engine, expected, &what);
                    rayon::join(call, || rayon::scope(|scope| scope.spawn(|_| call())));
                });
            });
        }
    }
}

/// Threads of nobody's pool, which all enter the global one, and threads that wait for one small pool.
#[test]
fn side_by_side() {
    let level = Level::detect().expect("a level");
    let expected = alone(level);
    let all: Vec<_> = engines(level, 2).into_iter().zip(expected).collect();
    let shared = pool(2);
    std::thread::scope(|scope| {
        for caller in 0..6 {
            let (all, shared) = (&all, &shared);
            scope.spawn(move || {
                for (engine, expected) in all.iter().cycle().skip(caller * 3).take(2 * all.len()) {
                    let call = || assert_bits(engine, expected, &format!("{level}, caller {caller}"));
                    if caller % 2 == 0 { call() } else { shared.install(call) }
                }
            });
        }
    });
}

/// One plan, a workspace for each caller.
#[test]
fn one_plan() {
    for case in [large_cases()[0], large_cases()[8]] {
        let operands = case.operands::<f32, f32>(Place::Heap);
        let inputs = operands.inputs();
        for level in levels() {
            let expected = everything(&inputs, level, 1).out;
            let options = PlanOptions { level: Some(level), max_threads: Some(2), ..PlanOptions::default() };
            let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
            std::thread::scope(|scope| {
                for caller in 0..4 {
                    let (plan, inputs, expected) = (&plan, &inputs, &expected);
                    scope.spawn(move || {
                        let mut workspace = plan.workspace().expect("memory");
                        for repeat in 0..10 {
                            let mut out = vec![CANARY; expected.len()];
                            let view = ViewMut::new(&mut out, inputs.output_shape()).expect("contiguous");
                            plan.run(inputs, Outputs::new(view), &mut workspace).expect("operands that fit");
                            assert_same(
                                &out,
                                expected,
                                &format!("{level}, caller {caller}, repeat {repeat}"),
                            );
                        }
                    });
                }
            });
        }
    }
}
