//! A planned call of linear attention does not allocate: counted by the global allocator, over the whole process.

#[path = "common/counting.rs"]
mod counting;

use counting::{allocations, assert_holds, held};
use lucid_attention::linear::{
    FeatureMap, LinearInputs, LinearOptions, LinearPlan, LogDecay, Norms, Projection,
};
use lucid_attention::{Problem, View, ViewMut};

#[test]
fn calls_do_not_allocate() {
    calls(1, 2, [4, 2]);
    #[cfg(feature = "rayon")]
    {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
        pool.install(|| {
            // The workers' own queues grow to their size once.
            for _ in 0..200 {
                rayon::join(|| (), || ());
            }
            calls(2, 1, [2, 1]); // one head of keys, which threads share
            calls(2, 2, [4, 2]);
        });
    }
}

fn calls(threads: usize, batch: usize, [heads, kv_heads]: [usize; 2]) {
    let (dim, tokens) = (16, 1100);
    let shapes = [heads, kv_heads].map(|heads| [batch, heads, tokens, dim]);
    let numbers = |shape: [usize; 4]| vec![0.25f32; shape.iter().product()];
    let (q, k, mut out) = (numbers(shapes[0]), numbers(shapes[1]), numbers(shapes[0]));
    let view = |data, shape| View::new(data, shape).expect("sized to its shape");
    let inputs = LinearInputs::new(view(&q[..], shapes[0]), view(&k[..], shapes[1]), view(&k[..], shapes[1]));
    let lens = &[1100, 500][..batch];
    let inputs = inputs.kv_lens(lens);
    let projection = || Projection::orthogonal(40, dim, Norms::Chi, 1).expect("memory");
    let problem = Problem { kv_heads, ..Problem::new(heads, dim, tokens, tokens) };
    let plain = LinearOptions { max_threads: Some(threads), ..LinearOptions::default() };
    let mut shut = vec![-0.1; batch * kv_heads * tokens];
    shut[700] = f32::NEG_INFINITY;
    let shut =
        LogDecay::PerToken(View::new(&shut, [batch, kv_heads, tokens, 1]).expect("sized to its shape"));
    for (map, exact_window, decays) in [
        (FeatureMap::Positive(projection()), false, false),
        (FeatureMap::Positive(projection()), true, false),
        (FeatureMap::Elu, false, true),
        (FeatureMap::Taylor, false, false),
    ] {
        let options = LinearOptions { exact_window, ..plain };
        let plan = LinearPlan::with_options(&problem, &map, &options).expect("a plan");
        let before = held();
        let mut workspace = plan.workspace().expect("memory");
        assert_holds(workspace.bytes(), before, "a workspace");
        let before = held();
        let mut state = plan.state(batch).expect("memory");
        assert_holds(state.bytes(), before, "a state");
        let causal = inputs.causal();
        let causal = if decays { causal.log_decay(shut) } else { causal };
        let count = allocations(|| {
            plan.run(&causal, output(&mut out, shapes[0]), &mut workspace).expect("a call that fits");
            if !exact_window {
                plan.run(&inputs, output(&mut out, shapes[0]), &mut workspace).expect("a call that fits");
            }
            plan.extend(&causal, output(&mut out, shapes[0]), &mut state, &mut workspace)
                .expect("a call that fits");
            plan.absorb(&inputs, &mut state, &mut workspace).expect("a call that fits");
            plan.attend(view(&q[..], shapes[0]), output(&mut out, shapes[0]), &state, &mut workspace)
                .expect("a call that fits");
        });
        assert_eq!(count, 0, "{map:?}");
    }
}

fn output(out: &mut [f32], shape: [usize; 4]) -> ViewMut<'_, f32> {
    ViewMut::new(out, shape).expect("sized to its shape")
}
