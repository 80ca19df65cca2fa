//! One token after many: from a state, whose size does not depend on them, and from a cache, which has to be read.

use super::common::rounds::{calls_per_round, medians, time};
use super::common::{Case, Tensors};
use super::{DIM, HEADS, Map};
use lucid_attention::linear::{LinearInputs, LinearPlan};
use lucid_attention::{KvCache, Outputs, Plan, Problem, View, ViewMut};

/// Prints a line for each length up to `most`, on one thread.
pub(crate) fn print(maps: &[Map], most: usize, rounds: usize) {
    println!("\n{:<24} {:>11} {:>11} {:>7}", "token after", "cache us", "state us", "ratio");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let lengths = std::iter::successors(Some(1024), |len| Some(len * 4)).take_while(|&len| len <= most);
    for len in lengths {
        for &map in maps {
            let [cache, state, ratio] = pool.install(|| compare(map, len, rounds));
            let id = format!("{len} ({})", map.name());
            println!("{id:<24} {:>11.2} {:>11.2} {ratio:>7.2}", cache * 1e6, state * 1e6);
        }
    }
}

fn compare(map: Map, len: usize, rounds: usize) -> [f64; 3] {
    let case =
        Case { batch: 1, q_heads: HEADS, kv_heads: HEADS, q_len: 1, kv_len: len, dim: DIM, causal: true };
    let mut tensors = Tensors::<f32>::new(&case);
    tensors.q.iter_mut().chain(&mut tensors.k).for_each(|x| *x *= 0.25);
    let q = View::new(&tensors.q, case.q_shape()).expect("q fits its shape");
    let k = View::new(&tensors.k, case.kv_shape()).expect("k fits its shape");
    let v = View::new(&tensors.v, case.kv_shape()).expect("v fits its shape");

    let problem = Problem::new(HEADS, DIM, 1, len);
    let mut cache = KvCache::new(1, &problem).expect("memory");
    cache.append(k, v).expect("room");
    let inputs = cache.inputs(q);
    let plan = Plan::new(&problem).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let [mut exact, mut out] = [0.0, 0.0].map(|zero: f32| vec![zero; HEADS * DIM]);
    let mut dense = || {
        let out = ViewMut::new(&mut exact, case.q_shape()).expect("out fits its shape");
        plan.run(std::hint::black_box(&inputs), Outputs::new(out), &mut workspace).expect("a checked call");
    };

    let plan = LinearPlan::new(&problem, &map.make()).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut state = plan.state(1).expect("memory");
    let none = View::new(&tensors.q[..0], [1, HEADS, 0, DIM]).expect("no query");
    plan.absorb(&LinearInputs::new(none, k, v), &mut state, &mut workspace).expect("a checked call");
    let inputs = LinearInputs::new(q, q, q).causal();
    let mut linear = || {
        let out = ViewMut::new(&mut out, case.q_shape()).expect("out fits its shape");
        plan.extend(std::hint::black_box(&inputs), out, &mut state, &mut workspace).expect("a checked call");
    };
    let calls = [calls_per_round(&mut dense), calls_per_round(&mut linear)];
    let mut found = Vec::new();
    for _ in 0..rounds {
        let times = [time(calls[0], &mut dense), time(calls[1], &mut linear)];
        found.push([times[0], times[1], times[0] / times[1]]);
    }
    medians(&found)
}
