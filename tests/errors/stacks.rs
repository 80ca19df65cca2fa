//! 64 KiB of stack are enough: for planned calls of every kind, and for everything else that computes.

use super::*;
use crate::common::engines::engines;

#[test]
fn planned_calls() {
    for level in levels() {
        on_small_stack(move || {
            for [q_len, kv_len] in [[1, 10], [3, 3000], [40, 300], [200, 1100]] {
                let [q, k] = [repeat([1, 4, q_len, 128]), repeat([1, 2, kv_len, 128])];
                let call = Inputs::new(q, k, k).mask(Mask::causal()).q_start(QueryStart::BottomRight);
                planned(level, false, &call.softcap(3.0).bias(repeat([1, 1, 1, 1])));
                planned(level, level.has_bf16_dot(), &call);
                attention(&call).unwrap();
            }
        });
    }
}

#[test]
fn everything_else() {
    for level in levels() {
        for engine in engines(level, 2) {
            let _announced = crate::common::guard::announce(&(level, engine.name));
            let expected = (engine.call)();
            on_small_stack(|| assert!((engine.call)() == expected, "{level}, {}: other bits", engine.name));
        }
    }
}

fn planned(level: Level, bf16_dot: bool, call: &Inputs<'_, f32, f32>) {
    let options =
        PlanOptions { level: Some(level), bf16_dot, max_threads: Some(2), ..PlanOptions::default() };
    let plan = Plan::with_options(&Problem::of(call), &options).unwrap();
    let [batch, heads, q_len, dim] = call.output_shape();
    let rows = batch * heads * q_len;
    let mut numbers = vec![0.0; rows * (dim + 1)];
    let (out, lse) = numbers.split_at_mut(rows * dim);
    let mut scores = vec![0.0; call.k().shape()[2]];
    let scores = ViewMut::new(&mut scores, [1, 1, 1, call.k().shape()[2]]).unwrap();
    let scores = Scores::new(ScoreStage::Softmax, scores).heads(&[1]).rows(&[0]);
    let outputs = Outputs::new(ViewMut::new(out, call.output_shape()).unwrap()).lse(lse).scores(scores);
    plan.run(call, outputs, &mut plan.workspace().unwrap()).unwrap();
}

const SMALL_STACK: usize = 64 << 10;

/// Where a call runs on the thread itself.
#[cfg(not(feature = "rayon"))]
fn on_small_stack(work: impl Fn() + Send + Sync) {
    alone_on_small_stack(&work);
}

/// Where a call runs on the thread itself, and where it is spread over a pool.
#[cfg(feature = "rayon")]
fn on_small_stack(work: impl Fn() + Send + Sync) {
    alone_on_small_stack(&work);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).stack_size(SMALL_STACK).build().unwrap();
    pool.install(&work);
}

fn alone_on_small_stack(work: &(impl Fn() + Sync)) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(SMALL_STACK).spawn_scoped(scope, work);
        thread.unwrap().join().unwrap();
    });
}
