//! What a call is estimated to cost decides who works on it: masks count, not just sizes.

use lucid_attention::{Inputs, Mask, Plan, PlanOptions, Problem, QueryStart, View};

const KEYS: usize = 8192;

#[test]
fn visible_keys_count() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    let (q, kv) = (vec![0.0; 8 * 8 * 64], vec![0.0; 8 * KEYS * 64]);
    let q = View::new(&q[..], [1, 8, 8, 64]).expect("contiguous");
    let kv = View::new(&kv[..], [1, 8, KEYS, 64]).expect("contiguous");
    let threads = |mask, start| {
        let inputs = Inputs::new(q, kv, kv).mask(mask).q_start(start);
        let plan = Plan::with_options(&Problem::of(&inputs), &PlanOptions::default()).expect("a plan");
        plan.explain(&inputs).expect("a valid call").threads
    };
    pool.install(|| {
        assert_eq!(threads(Mask::NONE, QueryStart::TopLeft), 2, "all keys");
        assert_eq!(threads(Mask::causal(), QueryStart::BottomRight), 2, "nearly all keys");
        assert_eq!(threads(Mask::causal(), QueryStart::TopLeft), 1, "8 keys");
        let window = Mask::causal().window(Some(7), None);
        assert_eq!(threads(window, QueryStart::BottomRight), 1, "15 keys");
        assert_eq!(threads(Mask::causal(), QueryStart::PerSequence(&[KEYS as i64])), 2, "from its start on");
    });
}
