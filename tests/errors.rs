//! Bad input: an error that names the operand, what was expected and what came, and nothing written. No panic, whatever
//! comes.

use lucid_attention::{
    AttentionError, Inputs, Intervals, KeyPanels, Layout, Level, Mask, Outputs, Plan, PlanOptions, Problem,
    QueryStart, Ragged, ScoreStage, Scores, Span, View, ViewMut, attention, merge, reference,
};
use proptest::prelude::*;
use std::process::Command;

const HUGE: usize = usize::MAX;
/// What outputs hold before a call: no computation gives these bits.
const CANARY: u32 = 0x7fd5_a000;
static ZEROS: [f32; 4096] = [0.0; 4096];
static YES: [bool; 4096] = [true; 4096];

/// `[batch, q_heads, q_len, head_dim]` and `[batch, kv_heads, kv_len, head_dim]` of the call that gets spoiled.
const Q: [usize; 4] = [2, 4, 3, 8];
const KV: [usize; 4] = [2, 2, 5, 8];
const PROBLEM: Problem =
    Problem { q_heads: 4, kv_heads: 2, head_dim: 8, v_dim: 8, max_q_len: 3, max_kv_len: 5 };

type Call = Inputs<'static, f32, f32>;

fn view(shape: [usize; 4]) -> View<'static, f32> {
    View::new(&ZEROS, shape).expect("at most 4096 elements")
}

fn strided(shape: [usize; 4], strides: [usize; 4]) -> View<'static, f32> {
    View::with_strides(&ZEROS, shape, strides).expect("at most 4096 elements")
}

fn good() -> Call {
    Inputs::new(view(Q), view(KV), view(KV))
}

fn canaries(count: usize) -> Vec<f32> {
    vec![f32::from_bits(CANARY); count]
}

#[track_caller]
fn assert_untouched(values: &[f32], what: &str) {
    assert!(values.iter().all(|x| x.to_bits() == CANARY), "{what} was written");
}

/// What `plan` says of a call; nothing may be written then.
#[track_caller]
fn refusal(plan: &Plan, inputs: &Call) -> AttentionError {
    let mut workspace = plan.workspace().expect("memory");
    let shape = inputs.output_shape();
    let [batch, q_heads, q_len, _] = shape;
    let (rows, kv_len) = (batch * q_heads * q_len, inputs.k().shape()[2]);
    let mut results = [shape.iter().product(), rows, rows, rows * kv_len].map(canaries);
    let [out, lse, row_max, scores] = &mut results;
    let scores = ViewMut::new(scores, [batch, q_heads, q_len, kv_len]).expect("contiguous");
    let outputs = Outputs::new(ViewMut::new(out, shape).expect("contiguous"))
        .lse(lse)
        .row_max(row_max)
        .scores(Scores::new(ScoreStage::Softmax, scores));
    let error = plan.run(inputs, outputs, &mut workspace).expect_err("a call that cannot be right");
    results.iter().for_each(|values| assert_untouched(values, "an output"));
    assert_eq!(plan.explain(inputs).expect_err("the same call"), error, "explain and run agree");
    error
}

#[track_caller]
fn assert_says(error: &AttentionError, message: &str) {
    let text = error.to_string();
    assert!(text.contains(message), "expected \"{message}\" in \"{text}\"");
}

#[test]
fn operands_that_do_not_fit() {
    let of = |q: [usize; 4], k: [usize; 4], v: [usize; 4]| Inputs::new(view(q), view(k), view(v));
    let cases = [
        (of([2, 3, 3, 8], KV, KV), "q: expected q_heads = 4, got 3"),
        (of([2, 4, 3, 7], KV, KV), "q: expected head_dim = 8, got 7"),
        (of([2, 4, 4, 8], KV, KV), "q: q_len may be at most 3, got 4"),
        (of(Q, [1, 2, 5, 8], KV), "k: expected batch = 2, got 1"),
        (of(Q, [2, 4, 5, 8], KV), "k: expected kv_heads = 2, got 4"),
        (of(Q, [2, 2, 5, 9], KV), "k: expected head_dim = 8, got 9"),
        (of(Q, [2, 2, 6, 8], [2, 2, 6, 8]), "k: kv_len may be at most 5, got 6"),
        (of(Q, KV, [3, 2, 5, 8]), "v: expected batch = 2, got 3"),
        (of(Q, KV, [2, 1, 5, 8]), "v: expected kv_heads = 2, got 1"),
        (of(Q, KV, [2, 2, 4, 8]), "v: expected kv_len = 5, got 4"),
        (of(Q, KV, [2, 2, 5, 6]), "v: expected v_dim = 8, got 6"),
    ];
    let plan = Plan::new(&PROBLEM).expect("a plan");
    for (inputs, message) in cases {
        assert_says(&refusal(&plan, &inputs), message);
    }
}

#[test]
fn last_axes_with_gaps() {
    let (q, kv) = (strided(Q, [300, 60, 16, 2]), strided(KV, [300, 100, 16, 2]));
    let cases = [
        (Inputs::new(q, view(KV), view(KV)), "q: expected adjacent elements"),
        (Inputs::new(view(Q), kv, view(KV)), "k: expected adjacent elements"),
        (Inputs::new(view(Q), view(KV), kv), "v: expected adjacent elements"),
    ];
    let plan = Plan::new(&PROBLEM).expect("a plan");
    for (inputs, message) in cases {
        let error = refusal(&plan, &inputs);
        assert_says(&error, message);
        assert_says(&error, "got stride 2");
    }
}

#[test]
fn rules_that_do_not_fit() {
    let mask = |mask: Mask<'static>| good().mask(mask).q_start(QueryStart::TopLeft);
    let allowed = |shape| View::new(&YES, shape).expect("at most 4096 elements");
    static SPANS: [Span; 1] = [Span { start: 0, end: 1 }];
    let intervals = Intervals::new([1, 1, 2], &[0, 1, 1], &SPANS).expect("sorted spans");
    let ragged = |q_bounds, kv_bounds| {
        let (q, kv) = (view([1, 4, 3, 8]), view([1, 2, 5, 8]));
        Inputs::new(q, kv, kv).ragged(Ragged { q_bounds, kv_bounds })
    };
    let mut panels = KeyPanels::with_capacity(1, 2, 8, 5).expect("memory");
    panels.append(view([1, 2, 5, 8])).expect("room");
    let panels: &KeyPanels<f32> = Box::leak(Box::new(panels));
    let ragged_panels = Inputs::new(view([1, 4, 3, 8]), panels, view([1, 2, 5, 8]))
        .ragged(Ragged { q_bounds: &[0, 3], kv_bounds: &[0, 5] });
    let cases = [
        (mask(Mask::causal().kv_lens(&[5])), "kv_lens: expected entries = 2, got 1"),
        (mask(Mask::NONE.kv_lens(&[5, 6])), "kv_lens: kv_len may be at most 5, got 6"),
        (mask(Mask::prefix_lm(&[1, 2, 3])), "prefix: expected entries = 2, got 3"),
        (mask(Mask::causal().last_n_keys(0)), "mask.last_n_keys: expected at least 1 key, got 0"),
        (
            mask(Mask::NONE.documents(&[0, 3, 2])),
            "mask.documents: expected ascending boundaries, got [0, 3, 2]",
        ),
        (mask(Mask::NONE.intervals(intervals)), "mask.intervals: expected q_len = 3, got 2"),
        (mask(Mask::NONE.allowed(allowed([3, 1, 3, 5]))), "mask.allowed: expected batch = 2, got 3"),
        (mask(Mask::NONE.allowed(allowed([1, 2, 3, 5]))), "mask.allowed: expected q_heads = 4, got 2"),
        (mask(Mask::NONE.allowed(allowed([1, 1, 2, 5]))), "mask.allowed: expected q_len = 3, got 2"),
        (good().bias(view([1, 1, 3, 4])), "bias: expected kv_len = 5, got 4"),
        (good().q_start(QueryStart::PerSequence(&[0])), "q_start: expected entries = 2, got 1"),
        (good().alibi(&[1.0; 2]).q_start(QueryStart::TopLeft), "alibi: expected q_heads = 4, got 2"),
        (good().sinks(&[1.0; 5]), "sinks: expected q_heads = 4, got 5"),
        (good().scale(f32::NAN), "scale: expected a finite number, got NaN"),
        (good().scale(f32::INFINITY), "scale: expected a finite number, got inf"),
        (good().softcap(0.0), "softcap: expected a number from 1e-30 to 1e30, got 0"),
        (good().softcap(-1.0), "softcap: expected a number from 1e-30 to 1e30, got -1"),
        (good().softcap(f32::NAN), "softcap: expected a number from 1e-30 to 1e30, got NaN"),
        (good().softcap(f32::INFINITY), "softcap: expected a number from 1e-30 to 1e30, got inf"),
        (good().mask(Mask::causal()), "with q_len = 3 and kv_len = 5 needs the position of the first query"),
        (good().mask(Mask::NONE.window(Some(1), None)), "expected QueryStart::{TopLeft, BottomRight"),
        (good().alibi(&[1.0; 4]), "got none"),
        (
            good().ragged(Ragged { q_bounds: &[0, 3], kv_bounds: &[0, 5] }),
            "ragged batch: expected batch = 1, got 2",
        ),
        (ragged(&[0, 2, 1, 3], &[0, 1, 2, 5]), "q_bounds: expected cumulative counts"),
        (ragged(&[1, 3], &[0, 5]), "got [1, 3] for 3 tokens"),
        (ragged(&[0, 2], &[0, 5]), "got [0, 2] for 3 tokens"),
        (ragged(&[], &[]), "got [] for 3 tokens"),
        (ragged(&[0, 3], &[0, HUGE]), "kv_bounds: expected cumulative counts"),
        (ragged(&[0, 1, 3], &[0, 5]), "kv_bounds: expected entries = 3, got 2"),
        (ragged_panels, "ragged batch: cannot be combined with KeyPanels"),
    ];
    let plan = Plan::new(&PROBLEM).expect("a plan");
    for (inputs, message) in cases {
        assert_says(&refusal(&plan, &inputs), message);
        attention(&inputs).expect_err("the one-shot call");
    }
}

#[test]
fn outputs_that_do_not_fit() {
    let shape = good().output_shape();
    let plan = Plan::new(&PROBLEM).expect("a plan");
    let refuse = |ask: &dyn for<'a> Fn([&'a mut [f32]; 3]) -> Outputs<'a, f32>, message: &str| {
        let mut results = [400, 24, 400].map(canaries);
        let mut workspace = plan.workspace().expect("memory");
        let outputs = ask(results.each_mut().map(Vec::as_mut_slice));
        assert_says(&plan.run(&good(), outputs, &mut workspace).expect_err("no fit"), message);
        results.iter().for_each(|values| assert_untouched(values, "an output"));
    };
    fn to<'a>(values: &'a mut [f32], shape: [usize; 4]) -> ViewMut<'a, f32> {
        ViewMut::new(values, shape).expect("enough elements")
    }
    fn scores<'a>(values: &'a mut [f32], shape: [usize; 4]) -> Scores<'a> {
        Scores::new(ScoreStage::Raw, to(values, shape))
    }
    refuse(&|[out, ..]| Outputs::new(to(out, [2, 4, 3, 7])), "out: expected dim = 8, got 7");
    refuse(&|[out, ..]| Outputs::new(to(out, [2, 3, 3, 8])), "out: expected heads = 4, got 3");
    refuse(
        &|[out, ..]| {
            let columns = ViewMut::with_strides(out, shape, [96, 24, 1, 3]).expect("disjoint");
            Outputs::new(columns)
        },
        "out: expected adjacent elements along the last axis (stride 1), got stride 3",
    );
    refuse(
        &|[out, lse, _]| Outputs::new(to(out, shape)).lse(&mut lse[..23]),
        "lse: expected elements = 24, got 23",
    );
    refuse(
        &|[out, max, _]| Outputs::new(to(out, shape)).row_max(&mut max[..1]),
        "row_max: expected elements = 24, got 1",
    );
    refuse(
        &|[out, _, s]| Outputs::new(to(out, shape)).scores(scores(s, [2, 4, 3, 4])),
        "scores: expected dim = 5, got 4",
    );
    refuse(
        &|[out, _, s]| Outputs::new(to(out, shape)).scores(scores(s, [2, 1, 3, 5]).heads(&[4])),
        "scores.heads: q_head may be at most 3, got 4",
    );
    refuse(
        &|[out, _, s]| Outputs::new(to(out, shape)).scores(scores(s, [2, 4, 1, 5]).rows(&[HUGE])),
        "scores.rows: row may be at most 2",
    );
}

#[test]
fn workspaces_of_other_plans() {
    let plan = |problem: &Problem, threads| {
        let options = PlanOptions { max_threads: Some(threads), ..PlanOptions::default() };
        Plan::with_options(problem, &options).expect("a plan")
    };
    let long = Problem { max_q_len: 300, max_kv_len: 300, ..PROBLEM };
    let wide = Problem { v_dim: 40, ..PROBLEM };
    let mut out = canaries(192);
    for (needs, has) in [(plan(&long, 1), plan(&PROBLEM, 1)), (plan(&PROBLEM, 2), plan(&PROBLEM, 1))] {
        let outputs = Outputs::new(ViewMut::new(&mut out, good().output_shape()).expect("contiguous"));
        let error =
            needs.run(&good(), outputs, &mut has.workspace().expect("memory")).expect_err("too small");
        assert_says(&error, &format!("workspace: this plan needs one of {} bytes", needs.workspace_bytes()));
        assert_untouched(&out, "the output");
    }
    let outputs = Outputs::new(ViewMut::new(&mut out, good().output_shape()).expect("contiguous"));
    let error = plan(&PROBLEM, 1).run(&good(), outputs, &mut plan(&wide, 1).workspace().expect("memory"));
    assert!(matches!(error, Err(AttentionError::Workspace { .. })), "rows of another width: {error:?}");
}

#[test]
fn plans_that_cannot_be() {
    let with = |change: fn(&mut Problem)| {
        let mut problem = PROBLEM;
        change(&mut problem);
        Plan::new(&problem).expect_err("a problem that cannot be")
    };
    assert_says(&with(|p| p.head_dim = 0), "head_dim: expected at least 1, got 0");
    assert_says(
        &with(|p| p.kv_heads = 3),
        "q_heads: expected a multiple of kv_heads, got 4 with kv_heads = 3",
    );
    assert_says(
        &with(|p| p.kv_heads = 0),
        "q_heads: expected a multiple of kv_heads, got 4 with kv_heads = 0",
    );
    assert_says(&with(|p| p.head_dim = HUGE), "workspace: its size does not fit");
    assert_says(&with(|p| p.v_dim = HUGE), "workspace: its size does not fit");
    assert_says(&with(|p| (p.max_q_len, p.max_kv_len) = (100, HUGE)), "workspace: its size does not fit");

    let options = |options| Plan::with_options(&PROBLEM, &options).expect_err("options that cannot be");
    let threads = options(PlanOptions { max_threads: Some(0), ..PlanOptions::default() });
    assert_says(&threads, "max_threads: expected at least 1, got 0");
    let dot = PlanOptions { level: Some(Level::Portable), bf16_dot: true, ..PlanOptions::default() };
    assert_says(&options(dot), "bf16_dot: level \"portable\" on this CPU has no bf16 dot products");
    for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
        let error = options(PlanOptions { level: Some(level), ..PlanOptions::default() });
        assert_eq!(error, AttentionError::LevelUnavailable { level: level.name() }, "a level this CPU lacks");
    }
    assert_says(&Level::from_name("avx9").expect_err("no level"), "got \"avx9\"");
}

#[test]
fn memory_that_cannot_be_had() {
    let error = KeyPanels::<f32>::with_capacity(1, 1, 1, 1 << 46).expect_err("256 TiB");
    assert_eq!(error, AttentionError::OutOfMemory { what: "key panels", bytes: 1 << 48 });
    let error = KeyPanels::<f32>::with_capacity(HUGE, 2, 2, 64).expect_err("more than there are addresses");
    assert_eq!(error, AttentionError::SizeOverflow { operand: "key panels" });
    let error = KeyPanels::<f32>::with_capacity(1, 1, 1, HUGE).expect_err("more than there are addresses");
    assert_eq!(error, AttentionError::SizeOverflow { operand: "key panels" });
    let many = Problem { max_q_len: 1000, max_kv_len: 1 << 44, ..PROBLEM };
    let options = PlanOptions { max_threads: Some(1), ..PlanOptions::default() };
    let plan = Plan::with_options(&many, &options).expect("a plan needs no memory");
    assert!(plan.workspace_bytes() >= 1 << 46, "an honest size: {}", plan.workspace_bytes());
    let error = plan.workspace().expect_err("512 TiB");
    assert!(matches!(error, AttentionError::OutOfMemory { what: "workspace", .. }), "{error}");
}

#[test]
fn views_that_do_not_fit() {
    let mut buffer = canaries(16);
    let too_short = AttentionError::BufferTooShort { operand: "view", expected: 17, got: 16 };
    assert_eq!(View::new(&ZEROS[..16], [1, 1, 17, 1]).expect_err("too long"), too_short);
    for shape in [[HUGE, 2, 1, 1], [1 << 40, 1 << 40, 1, 1], [1, 1, 1, HUGE]] {
        View::new(&ZEROS, shape).expect_err("a shape without end");
        View::with_layout(&ZEROS, shape, Layout::TokenMajor).expect_err("a shape without end");
        ViewMut::new(&mut buffer, shape).expect_err("a shape without end");
    }
    for strides in [[HUGE, 1, 1, 1], [1, 1, 1, HUGE], [HUGE / 2 + 1, HUGE / 2 + 1, 1, 1]] {
        View::with_strides(&ZEROS, [2, 2, 2, 2], strides).expect_err("strides without end");
        ViewMut::with_strides(&mut buffer, [2, 2, 2, 2], strides).expect_err("strides without end");
    }
    for (shape, strides) in
        [([1, 1, 2, 4], [0, 0, 3, 1]), ([1, 2, 1, 4], [9, 0, 4, 1]), ([2, 1, 3, 1], [2, 9, 1, 1])]
    {
        let error = ViewMut::with_strides(&mut buffer, shape, strides).expect_err("elements overlap");
        assert_eq!(error, AttentionError::Overlap { operand: "output view", shape, strides });
        assert_says(&error, &format!("shape {shape:?} with strides {strides:?}"));
    }
    View::split_qkv(&ZEROS, HUGE, 2, [4, 2], 8).expect_err("a batch without end");
    View::split_qkv(&ZEROS, 1, 1, [HUGE, HUGE], 8).expect_err("heads without end");
    View::split_interleaved_qkv(&ZEROS, 1, 1, HUGE, 8).expect_err("heads without end");
    let error = View::split_qkv(&ZEROS[..63], 1, 1, [4, 2], 8).expect_err("64 elements");
    assert_says(&error, "packed qkv: its shape and strides reach 64 elements, the buffer has 63");
}

#[test]
fn intervals_that_are_none() {
    let span = |start, end| Span { start, end };
    let refused = |shape, offsets: &[usize], spans: &[Span]| {
        Intervals::new(shape, offsets, spans).expect_err("no list of intervals").to_string()
    };
    let text = refused([1, 1, 2], &[0, 1], &[span(0, 1)]);
    assert!(text.contains("intervals: expected offsets = 3, got 2"), "{text}");
    for offsets in [[0, 2, 1], [1, 1, 1], [0, 1, 2], [0, HUGE, 1]] {
        let text = refused([1, 1, 2], &offsets, &[span(0, 1)]);
        assert!(text.contains("offsets that ascend from 0 to the number of spans"), "{text}");
    }
    for spans in [[span(3, 1), span(4, 5)], [span(4, 5), span(0, 1)], [span(0, 3), span(2, 5)]] {
        let text = refused([1, 1, 1], &[0, 2], &spans);
        assert!(text.contains("sorted, disjoint spans"), "{text}");
    }
    let text = refused([HUGE, 2, 2], &[0], &[]);
    assert!(text.contains("intervals: its size does not fit"), "{text}");
}

#[test]
fn keys_that_panels_refuse() {
    let mut panels = KeyPanels::with_capacity(2, 2, 8, 64).expect("memory");
    let ones = vec![1.0f32; 2 * 2 * 60 * 8];
    panels.append(View::new(&ones, [2, 2, 60, 8]).expect("contiguous")).expect("room");
    for (keys, message) in [
        (view([1, 2, 1, 8]), "keys: expected batch = 2, got 1"),
        (view([2, 3, 1, 8]), "keys: expected heads = 2, got 3"),
        (view([2, 2, 1, 9]), "keys: expected dim = 8, got 9"),
        (view([2, 2, 5, 8]), "keys: tokens may be at most 4, got 5"),
        (strided([2, 2, 2, 8], [64, 32, 16, 2]), "keys: expected adjacent elements"),
    ] {
        assert_says(&panels.append(keys).expect_err("keys that do not fit"), message);
        assert_eq!(panels.len(), 60, "nothing is added");
    }
    assert!((0..60).all(|t| panels.get([1, 1, t, 7]) == Some(1.0)), "what was there is kept");
    assert_eq!(panels.get([0, 0, 60, 0]), None, "beyond the end");
    KeyPanels::<f32>::with_capacity(1, 1, 0, 64).expect_err("no dimension");
}

#[test]
fn parts_that_do_not_merge() {
    let shape = [1, 2, 3, 4];
    let (mut out, mut lse) = (canaries(24), canaries(6));
    let mut refuse = |other: View<'_, f32>, lse_len: usize, other_lse: usize, message: &str| {
        let target = ViewMut::new(&mut out, shape).expect("contiguous");
        let error = merge(target, &mut lse[..lse_len], other, &ZEROS[..other_lse]).expect_err("no fit");
        assert_says(&error, message);
        assert_untouched(&out, "the output");
        assert_untouched(&lse, "the LSE");
    };
    refuse(view([1, 2, 3, 5]), 6, 6, "other: expected dim = 4, got 5");
    refuse(view(shape), 5, 6, "lse: expected rows = 6, got 5");
    refuse(view(shape), 6, 7, "other_lse: expected rows = 6, got 7");
    refuse(strided(shape, [48, 24, 8, 2]), 6, 6, "other: expected adjacent elements");
}

#[test]
fn errors_travel() {
    fn travels<T: std::error::Error + Send + Sync + Clone + 'static>() {}
    travels::<AttentionError>();
}

/// Sizes of zero: legal but for `head_dim`; without keys an output is +0 and an LSE -inf.
#[test]
fn sizes_of_zero() {
    for bits in 0..64 {
        let size = |bit: u32, size: usize| if bits >> bit & 1 == 1 { 0 } else { size };
        let (batch, heads, q_len, kv_len) = (size(0, 2), size(1, 2), size(2, 3), size(3, 5));
        let (v_dim, head_dim) = (size(4, 4), size(5, 8));
        let (q, k) = (view([batch, heads, q_len, head_dim]), view([batch, heads, kv_len, head_dim]));
        let inputs = Inputs::new(q, k, view([batch, heads, kv_len, v_dim]));
        let result = attention(&inputs);
        if head_dim == 0 {
            assert_says(&result.expect_err("head_dim"), "head_dim: expected at least 1, got 0");
            continue;
        }
        let out = result.expect("legal sizes");
        assert_eq!(out.len(), batch * heads * q_len * v_dim, "{bits:b}");
        assert!(out.iter().all(|x| x.to_bits() == 0), "values are zeros, or there are no keys: {bits:b}");
        let plan = Plan::new(&Problem::of(&inputs)).expect("a plan");
        let (mut out, mut lse) = (canaries(out.len()), canaries(batch * heads * q_len));
        let outputs = Outputs::new(ViewMut::new(&mut out, inputs.output_shape()).expect("contiguous"));
        plan.run(&inputs, outputs.lse(&mut lse), &mut plan.workspace().expect("memory"))
            .expect("legal sizes");
        let expected = if kv_len == 0 { f32::NEG_INFINITY } else { (kv_len as f32).ln() };
        assert!(lse.iter().all(|&x| x == expected || (x - expected).abs() < 1e-6), "{bits:b}: {lse:?}");
    }
}

/// Positions and windows at the ends of their ranges are legal.
#[test]
fn positions_without_end() {
    let all: Vec<f32> = vec![0.0; 192];
    for start in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX - 1, i64::MAX] {
        for mask in [
            Mask::causal(),
            Mask::NONE.window(Some(HUGE), Some(HUGE)),
            Mask::causal().last_n_keys(HUGE),
            Mask::causal().window(Some(0), Some(0)),
            Mask::prefix_lm(&[HUGE]),
            Mask::NONE.documents(&[0, HUGE]),
            Mask::NONE.documents(&[]),
        ] {
            let inputs = good().mask(mask).q_start(QueryStart::At(start));
            assert_eq!(attention(&inputs).expect("legal positions"), all, "{start}: {mask:?}");
        }
        let inputs = good().alibi(&[1.0; 4]).q_start(QueryStart::At(start));
        assert_eq!(attention(&inputs).expect("legal positions"), all, "{start}: ALiBi");
    }
}

/// Services run on small stacks: 64 KiB are enough for a planned call, of few queries or many, at every level.
#[test]
fn small_stacks() {
    for level in Level::available() {
        for (q_len, kv_len, dim) in [(1, 50, 32), (1, 300, 16), (40, 50, 16)] {
            let (q, kv) = (view([1, 2, q_len, dim]), strided([1, 2, kv_len, dim], [0, 0, 8, 1]));
            let inputs = Inputs::new(q, kv, kv).mask(Mask::causal()).q_start(QueryStart::BottomRight);
            let work = move || {
                let options =
                    PlanOptions { level: Some(level), max_threads: Some(1), ..PlanOptions::default() };
                let plan = Plan::with_options(&Problem::of(&inputs), &options)?;
                let mut out = vec![0.0; 2 * q_len * dim];
                let outputs = Outputs::new(ViewMut::new(&mut out, [1, 2, q_len, dim])?);
                plan.run(&inputs, outputs, &mut plan.workspace()?)
            };
            let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(work).expect("a thread");
            thread.join().expect("no panic").expect("a legal call");
        }
    }
}

const CHILD: &str = "LUCID_ERRORS_CHILD";

/// `LUCID_LEVEL` is read once per process, hence in one of its own.
#[test]
fn level_from_the_environment() {
    if std::env::var_os(CHILD).is_some() {
        match attention(&good()) {
            Ok(_) => println!("level {}", Plan::new(&PROBLEM).expect("a plan").level()),
            Err(error) => println!("{error}"),
        }
        return;
    }
    let unknown = "level: expected \"portable\", \"avx2\" or \"avx512\", got \"avx9\"".to_owned();
    let mut cases = vec![("avx9", unknown)];
    for level in Level::ALL {
        let refused = AttentionError::LevelUnavailable { level: level.name() }.to_string();
        let expected = if level.is_available() { format!("level {level}") } else { refused };
        cases.push((level.name(), expected));
    }
    for (name, expected) in cases {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "level_from_the_environment", "--nocapture"])
            .env("LUCID_LEVEL", name)
            .env(CHILD, "1")
            .output()
            .expect("a child process");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(&expected), "{name}: {text}");
    }
}

/// Sizes, mostly small, some hostile.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![20 => 0..6usize, 1 => Just(HUGE), 1 => Just(HUGE / 2 + 1), 1 => Just(1 << 33), 1 => 60..70usize]
}

fn sizes<const N: usize>() -> impl Strategy<Value = [usize; N]> {
    prop::collection::vec(size(), N).prop_map(|sizes| sizes.try_into().expect("N sizes"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Arbitrary operands and rules: a result or an error, no panic; after an error the output is as it was.
    #[test]
    fn anything_goes(
        (q, k, v) in (sizes::<4>(), sizes::<4>(), sizes::<4>()),
        (fit, strided) in (any::<bool>(), any::<bool>()),
        (q_strides, kv_strides, out_shape) in (sizes::<4>(), sizes::<4>(), sizes::<4>()),
        (lists, picks) in (prop::collection::vec(prop::collection::vec(size(), 0..4), 6), any::<[u8; 9]>()),
        (start, window) in (any::<i64>(), (prop::option::of(size()), prop::option::of(size()))),
        (softcap, scale) in (any::<f32>(), any::<f32>()),
    ) {
        // Half of all cases have operands that fit each other, so that the rules are reached.
        let (k, v) = if fit { ([q[0], q[1], k[2], q[3]], [q[0], q[1], k[2], v[3]]) } else { (k, v) };
        let view = |shape, strides| {
            if strided { View::with_strides(&ZEROS, shape, strides) } else { View::new(&ZEROS, shape) }
        };
        let (Ok(q), Ok(k), Ok(v)) = (view(q, q_strides), view(k, kv_strides), view(v, kv_strides)) else {
            return Ok(());
        };
        let picked = |index: usize| picks[index] < 48;
        let mut mask = if picked(0) { Mask::causal() } else { Mask::NONE };
        if picked(1) { mask = mask.window(window.0, window.1); }
        if picked(2) { mask = mask.kv_lens(&lists[0]); }
        if picked(3) { mask = mask.documents(&lists[1]); }
        let mut inputs = Inputs::new(q, k, v).mask(mask);
        if !picked(4) { inputs = inputs.q_start(QueryStart::At(start)); }
        if picked(5) { inputs = inputs.ragged(Ragged { q_bounds: &lists[2], kv_bounds: &lists[3] }); }
        if picked(6) { inputs = inputs.softcap(softcap).scale(scale); }
        if picked(7) { inputs = inputs.sinks(&ZEROS[..2]); }

        // Repeated elements make shapes without end legal, and their work too.
        let work = |shape: [usize; 4]| shape.iter().fold(1usize, |work, &n| work.saturating_mul(n.max(1)));
        if [q.shape(), k.shape(), v.shape()].into_iter().any(|shape| work(shape) > 1 << 16) {
            return Ok(());
        }
        let _ = reference::attention(&inputs);
        let problem = Problem::of(&inputs);
        let options = PlanOptions { max_threads: Some(1), ..PlanOptions::default() };
        let Ok(plan) = Plan::with_options(&problem, &options) else { return Ok(()) };
        let Ok(mut workspace) = plan.workspace() else { return Ok(()) };
        let mut out = canaries(2048);
        let shape = if picked(8) { out_shape } else { inputs.output_shape() };
        let Ok(target) = ViewMut::new(&mut out, shape) else { return Ok(()) };
        if plan.run(&inputs, Outputs::new(target), &mut workspace).is_err() {
            assert_untouched(&out, "the output");
        }
    }
}
