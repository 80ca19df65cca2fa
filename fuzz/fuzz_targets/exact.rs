//! Exact attention on arbitrary small shapes, masks and values: no panic, and every level within a wide bound of the f64
//! reference. `cargo +nightly fuzz run exact`.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use lucid_attention::{
    Inputs, Level, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart, View, ViewMut, reference,
};

#[derive(Arbitrary, Debug)]
struct Case {
    kv_heads: u8,
    group: u8,
    q_len: u8,
    kv_len: u16,
    head_dim: u8,
    v_dim: u8,
    causal: bool,
    left: Option<u8>,
    right: Option<u8>,
    q_start: i16,
    valid: u16,
    softcap: Option<u8>,
    seed: u64,
    spread: u8,
}

fn values(seed: u64, count: usize, spread: f32) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * spread
    };
    (0..count).map(|_| next()).collect()
}

fuzz_target!(|case: Case| {
    let kv_heads = usize::from(case.kv_heads % 3) + 1;
    let q_heads = kv_heads * (usize::from(case.group % 4) + 1);
    let (q_len, kv_len) = (usize::from(case.q_len % 40), usize::from(case.kv_len % 600));
    let (head_dim, v_dim) = (usize::from(case.head_dim % 48) + 1, usize::from(case.v_dim % 48) + 1);
    let (q_shape, k_shape) = ([1, q_heads, q_len, head_dim], [1, kv_heads, kv_len, head_dim]);
    let (v_shape, out_shape) = ([1, kv_heads, kv_len, v_dim], [1, q_heads, q_len, v_dim]);
    let count = |shape: [usize; 4]| shape.iter().product();
    let spread = f32::from(case.spread % 8);
    let q = values(case.seed, count(q_shape), spread);
    let k = values(case.seed ^ 1 << 20, count(k_shape), 1.0);
    let v = values(case.seed ^ 1 << 40, count(v_shape), 1.0);
    let valid = [usize::from(case.valid).min(kv_len)];

    let mut mask = if case.causal { Mask::causal() } else { Mask::NONE };
    mask = mask.window(case.left.map(usize::from), case.right.map(usize::from)).kv_lens(&valid);
    let view = |data, shape| View::new(data, shape).expect("sized to its shape");
    let mut inputs = Inputs::new(view(&q, q_shape), view(&k, k_shape), view(&v, v_shape))
        .mask(mask)
        .q_start(QueryStart::At(i64::from(case.q_start)));
    if let Some(cap) = case.softcap {
        inputs = inputs.softcap(f32::from(cap) + 0.5);
    }
    let answer = reference::attention(&inputs).expect("valid inputs");
    for level in Level::available() {
        let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
        let mut out = vec![f32::NAN; count(out_shape)];
        let outputs = Outputs::new(ViewMut::new(&mut out, out_shape).expect("sized to its shape"));
        plan.run(&inputs, outputs, &mut plan.workspace().expect("memory")).expect("valid inputs");
        for (got, want) in out.iter().zip(&answer.out) {
            assert!((f64::from(*got) - want).abs() < 2e-4, "{level}: got {got}, expected {want}");
        }
    }
});
