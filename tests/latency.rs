//! A small call runs on its caller alone: it starts no thread, and does not allocate.
#![cfg(target_os = "linux")]

#[path = "common/counting.rs"]
mod counting;

use counting::allocations;
use lucid_attention::{Inputs, Outputs, Plan, PlanOptions, Problem, View, ViewMut, attention};

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("a Linux with /proc").count()
}

/// Of any shape: all rows are the same numbers.
fn inputs(q_shape: [usize; 4], kv_shape: [usize; 4]) -> Inputs<'static, f32, f32> {
    let ones = |shape: [usize; 4]| View::with_strides(&[1.0; 64], shape, [0, 0, 0, 1]).expect("64 of a row");
    Inputs::new(ones(q_shape), ones(kv_shape), ones(kv_shape))
}

/// One test: rayon's global pool starts once in a process, and here it must not.
#[test]
fn a_small_call_starts_no_thread() {
    let small = inputs([1, 4, 1, 32], [1, 4, 10, 32]);
    let large = inputs([1, 8, 200, 64], [1, 8, 200, 64]);
    let before = threads();

    attention(&small).expect("a valid call");
    assert_eq!(threads(), before, "attention()");

    let plan = Plan::new(&Problem::of(&small)).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut out = [0.0; 128];
    let counted = allocations(|| {
        let out = ViewMut::new(&mut out, small.output_shape()).expect("sized to its shape");
        plan.run(&small, Outputs::new(out), &mut workspace).expect("a valid call");
    });
    assert_eq!(counted, 0, "a planned call allocates");
    assert_eq!(plan.explain(&small).expect("a valid call").threads, 1);
    assert_eq!(threads(), before, "a planned call");

    let alone = PlanOptions { max_threads: Some(1), ..PlanOptions::default() };
    let plan_alone = Plan::with_options(&Problem::of(&large), &alone).expect("a plan");
    let mut out = vec![0.0; 8 * 200 * 64];
    let outputs = Outputs::new(ViewMut::new(&mut out, large.output_shape()).expect("sized to its shape"));
    plan_alone.run(&large, outputs, &mut plan_alone.workspace().expect("memory")).expect("a valid call");
    assert_eq!(threads(), before, "a large call of a plan for one thread");

    let never = PlanOptions { spread_from_microseconds: Some(u64::MAX), ..PlanOptions::default() };
    let plan_unspread = Plan::with_options(&Problem::of(&large), &never).expect("a plan");
    assert_eq!(plan_unspread.explain(&large).expect("a valid call").threads, 1);
    assert_eq!(threads(), before, "a plan of which no call is spread");

    // The small plan is not bound to one thread: what is work enough is spread, and starts the pool.
    #[cfg(feature = "rayon")]
    {
        let batch = inputs([2000, 4, 1, 32], [2000, 4, 10, 32]);
        let spread = plan.explain(&batch).expect("a valid call").threads;
        assert!(threads() > before, "a batch of small sequences asks the pool");
        assert_eq!(spread, plan.max_threads().min(rayon::current_num_threads()));
        let with = |from, max| PlanOptions {
            spread_from_microseconds: Some(from),
            max_threads: Some(max),
            ..PlanOptions::default()
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
        let threads_of = |inputs: &Inputs<'_, f32, f32>, options| {
            let plan = Plan::with_options(&Problem::of(inputs), &options).expect("a plan");
            let explained = pool.install(|| plan.explain(inputs)).expect("a valid call");
            assert_eq!(
                explained.spread_from_microseconds,
                options.spread_from_microseconds.unwrap_or(60) as f64
            );
            explained.threads
        };
        assert_eq!(threads_of(&small, with(0, 2)), 2, "as soon as asked");
        assert_eq!(threads_of(&small, with(0, 1)), 1, "never more than asked");
        assert_eq!(threads_of(&large, with(1_000_000, 2)), 1, "no sooner than asked");
        assert_eq!(threads_of(&large, PlanOptions { max_threads: Some(2), ..PlanOptions::default() }), 2);
        let outside = Plan::new(&Problem::of(&large)).expect("a plan");
        assert_eq!(
            outside.max_threads(),
            rayon::current_num_threads(),
            "a plan for large calls asks the pool"
        );
    }
}
