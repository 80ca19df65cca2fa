//! A planned call does not allocate: counted by the global allocator, over the whole process.

#[path = "common/counting.rs"]
mod counting;
#[path = "common/numbers.rs"]
mod numbers;

use counting::{allocations, assert_holds, held};
use half::{bf16, f16};
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask};
use lucid_attention::{
    AttentionError, CancelToken, Element, Inputs, KeyPanels, Keys, KvCache, Mask, Metrics, MetricsOptions,
    Outputs, Plan, PlanOptions, Problem, QueryStart, Ragged, ScoreStage, Scores, TopKey, TopKeys, View,
    ViewMut, merge,
};
use numbers::numbers;

/// One call of every kind, on `plan`'s threads.
fn calls<Q: Element, T: Element>(threads: usize) {
    let (heads, kv_heads, dim, batch) = (4, 2, 24, 2);
    for (q_len, kv_len) in [(1, 10), (1, 3000), (3, 3000), (200, 300)] {
        let shapes = [[batch, heads, q_len, dim], [batch, kv_heads, kv_len, dim]];
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let q = vec![Q::from_f32(0.5); count(shapes[0])];
        let (k, v) = (vec![T::from_f32(0.25); count(shapes[1])], vec![T::from_f32(0.75); count(shapes[1])]);
        let view = |data| View::new(data, shapes[1]).expect("sized to its shape");
        let panels = KeyPanels::from_rows(view(&k), kv_len + 64).expect("memory");
        let (kv_lens, q_bounds, kv_bounds) =
            ([kv_len, kv_len / 2], [0, q_len / 2, q_len], [0, kv_len / 3, kv_len]);
        let allowed = vec![true; q_len * kv_len];
        let bias = vec![0.5f32; q_len * kv_len];
        let mask_shape = [1, 1, q_len, kv_len];

        let plain = |keys| Inputs::new(View::new(&q, shapes[0]).expect("sized to its shape"), keys, view(&v));
        let base = plain(Keys::Rows(view(&k))).q_start(QueryStart::BottomRight);
        let dense = View::new(&allowed, mask_shape).expect("sized to its shape");
        let bias = View::new(&bias, mask_shape).expect("sized to its shape");
        let one = |data, shape: [usize; 4]| View::new(data, [1, shape[1], shape[2], shape[3]]);
        let ragged = Inputs::new(
            one(&q, shapes[0]).expect("sized to its shape"),
            View::new(&k, [1, kv_heads, kv_len, dim]).expect("sized to its shape"),
            View::new(&v, [1, kv_heads, kv_len, dim]).expect("sized to its shape"),
        )
        .ragged(Ragged { q_bounds: &q_bounds, kv_bounds: &kv_bounds });
        let token = CancelToken::new();
        let stopped = CancelToken::new();
        stopped.cancel();
        let layout = BlockLayout::bigbird(BlockGrid::square(kv_len, 16), &BigBird::published(1));
        let blocks = BlockMask::from(layout.expect("a layout"));
        let kinds = [
            base.cancel(&token),
            base.mask(Mask::causal().window(Some(100), None).kv_lens(&kv_lens)),
            base.mask(Mask::NONE.allowed(dense)).softcap(3.0).sinks(&[0.5; 4]),
            base.bias(bias).alibi(&[0.1; 4]),
            plain(Keys::Panels(&panels)),
            ragged,
            base.mask(Mask::causal().blocks(&blocks)),
        ];
        let options = PlanOptions { max_threads: Some(threads), ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(&base), &options).expect("a plan");
        let mut workspace = plan.workspace().expect("memory");
        assert_eq!(workspace.bytes(), plan.workspace_bytes(), "the plan foretells its workspace");
        let mut out = vec![Q::default(); count(shapes[0])];
        let (mut lse, mut row_max) = (vec![0.0; batch * heads * q_len], vec![0.0; batch * heads * q_len]);
        let mut scores = vec![0.0; batch * kv_len];
        let mut top = vec![TopKey::NONE; batch * 2 * 4];
        let options = MetricsOptions { top_k: Some(5), distance: true, ..MetricsOptions::SPECIFIED };
        let mut metrics = Metrics::new(options, heads, batch * heads * q_len).expect("memory");
        for (index, inputs) in kinds.iter().enumerate() {
            let [batch, ..] = inputs.q().shape();
            let rows = batch * heads * q_len;
            let mut call = || {
                let shape = inputs.output_shape();
                let scores = ViewMut::new(&mut scores, [batch, 1, 1, kv_len]).expect("sized to its shape");
                let top =
                    ViewMut::new(&mut top[..batch * 2 * 4], [batch, 2, 1, 4]).expect("sized to its shape");
                let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("sized to its shape"))
                    .lse(&mut lse[..rows])
                    .row_max(&mut row_max[..rows])
                    .scores(Scores::new(ScoreStage::Softmax, scores).heads(&[1]).rows(&[0]))
                    .top_keys(TopKeys::new(top).heads(&[0, 2]).rows(&[0]))
                    .metrics(&mut metrics);
                plan.run(inputs, outputs, &mut workspace).expect("a valid call");
                let out = ViewMut::new(&mut out, shape).expect("sized to its shape");
                let result = plan.run(&inputs.cancel(&stopped), Outputs::new(out), &mut workspace);
                assert!(matches!(result, Err(AttentionError::Cancelled { complete: 0, .. })), "{result:?}");
            };
            call();
            let counted = allocations(&mut call);
            let types = (Q::DTYPE, T::DTYPE);
            assert_eq!(counted, 0, "call {index} of {q_len} x {kv_len}, {types:?}, {threads} thread(s)");
        }
    }
}

/// Calls of a module of every kind, after each has been made once.
fn module_calls(threads: usize) {
    use lucid_attention::module::*;
    let config =
        AttentionConfig { num_heads: 8, key_dim: 16, kv_heads: Some(4), ..AttentionConfig::default() };
    let weights = ModuleWeights::glorot(&config, InputDims::all(128), 1).expect("a valid configuration");
    let options = ModuleOptions {
        plan: PlanOptions { max_threads: Some(threads), ..PlanOptions::default() },
        policies: InputPolicies { not_finite: NotFinite::ZeroToken, wrong_dim: WrongDim::PadTruncate },
        metrics: Some(MetricsOptions::SPECIFIED),
        ..ModuleOptions::default()
    };
    let module = MultiHeadAttention::with_options(config, &weights, options).expect("valid parts");
    let mut workspace = ModuleWorkspace::new();
    let mut numbers = vec![0.5; 300 * 128];
    numbers[5] = f32::NAN; // repaired, in scratch too
    for tokens in [1, 8, 40, 300] {
        let data = &numbers[..tokens * 128];
        let whole = Tensor::new(data, &[tokens, 128]).expect("sized to its shape");
        let narrow = Tensor::new(data, &[2 * tokens, 64]).expect("sized to its shape");
        let list: Vec<&[f32]> = data.chunks_exact(128).collect();
        let mut cache = module.project_kv(whole, whole, 400, &mut workspace).expect("memory");
        let mut out = vec![0.0; tokens * 128];
        let mut scores = vec![0.0; tokens];
        for kind in 0..5 {
            let mut call = || {
                let query = Tensor::new(&data[..128], &[128]).expect("sized to its shape");
                let (inputs, rows) = match kind {
                    0 => (ModuleInputs::self_attention(whole).mask(Mask::causal()), tokens),
                    1 => (ModuleInputs::new(query, narrow, narrow), 1),
                    2 => (ModuleInputs::cached(query, &cache), 1),
                    _ => (ModuleInputs::new(query, whole, whole), 1),
                };
                let outputs = ModuleOutputs::new(&mut out[..rows * 128]);
                match kind {
                    4 => module.process_sequence_into(&data[..128], &list, &list, outputs, &mut workspace),
                    3 => {
                        let view = ViewMut::new(&mut scores, [1, 1, 1, tokens]).expect("sized to its shape");
                        let outputs = outputs.scores(Scores::new(ScoreStage::Softmax, view).heads(&[3]));
                        module.forward_into(&inputs, outputs, &mut workspace)
                    }
                    _ => module.forward_into(&inputs, outputs, &mut workspace),
                }
                .expect("a valid call");
            };
            call();
            let counted = allocations(call);
            assert_eq!(counted, 0, "module call {kind} of {tokens} tokens, {threads} thread(s)");
        }
        let token = Tensor::new(&data[..128], &[128]).expect("sized to its shape");
        let counted =
            allocations(|| module.append_kv(token, token, &mut cache, &mut workspace).expect("room"));
        assert_eq!(counted, 0, "adding a token to a cache");
    }
}

/// Steps of a sequence, each through all variants, after a first round of every focus.
fn titans_calls(threads: usize) {
    use lucid_attention::module::*;
    use lucid_attention::titans::{lucidia::*, *};
    let (dims, plan) =
        (StepDims::all(128), PlanOptions { max_threads: Some(threads), ..PlanOptions::default() });
    let config = AttentionConfig::default();
    let weights = ModuleWeights::glorot(&config, InputDims::all(128), 1).expect("a valid configuration");
    let options = ModuleOptions { plan, ..ModuleOptions::default() };
    let layer = MultiHeadAttention::with_options(config, &weights, options).expect("valid parts");
    for attention in [HistoryAttention::from(layer), HistoryAttention::Identity { heads: 4, plan }] {
        let mac = Mac::new(attention.clone(), dims).expect("valid parts");
        let gates = DenseGates::initial(128).expect("a size");
        let mag = Mag::new(attention.clone(), gates, dims).expect("valid parts");
        let mal = Mal::new(attention, dims).expect("valid parts");
        let mut context = SequenceContext::new(dims).expect("memory");
        let mut workspaces: [TitansWorkspace; 3] = Default::default();
        let (mut y, mut v) = (vec![0.0; 128], vec![0.0; 128]);
        // Vectors that differ, so that logits do: the relevance focus divides them then.
        let vectors: Vec<Vec<f32>> =
            (0..7).map(|seed| numbers(128, seed).iter().map(|x| 3.0 * x).collect()).collect();
        let mut vectors = vectors.iter().cycle();
        let normalised = std::cell::Cell::new(0);
        let mut step = |focus| {
            let x = vectors.next().expect("they go round");
            // Of some foci every second step, which are gathered.
            let mac_hints = MacHints { context_limit: Some(7), ..MacHints::default() };
            let hints = Hints { focus, mac: mac_hints, ..Hints::default() };
            let step = Step { timestamp: 0.5, id: "memory", x, key: x, value: x, query: x };
            let current = context.begin(step).expect("a valid step");
            let [for_mac, for_mag, for_mal] = &mut workspaces;
            mag.process_input(&current, Some(&hints), for_mag).expect("a valid call");
            mal.process_input(&current, Some(&hints), &mut v, for_mal).expect("a valid call");
            let metrics =
                mac.process_input(&current, x, Some(&hints), &mut y, for_mac).expect("a valid call");
            normalised.set(normalised.get() + usize::from(metrics.variance_normalization_applied));
            current.finish(x).expect("a valid answer");
        };
        let mut round = || (0..2).for_each(|_| Focus::ALL.into_iter().for_each(&mut step));
        (0..6).for_each(|_| round()); // more steps than the context holds
        normalised.set(0);
        assert_eq!(allocations(round), 0, "steps through the variants, {threads} thread(s)");
        assert_eq!(normalised.get(), 3 * 2, "the relevance focus, each time: three rounds are counted");
    }
}

/// One test: a second would run beside it, and be counted.
#[test]
fn memory() {
    memory_is_linear_in_tokens();
    workspaces_know_their_size();
    calls::<f32, f32>(1);
    calls::<f16, f16>(1);
    calls::<bf16, f32>(1);

    module_calls(1);
    titans_calls(1);

    let mut cache = KvCache::new(1, &Problem::new(2, 8, 1, 256)).expect("memory");
    let rows = vec![1.0f32; 2 * 3 * 8];
    let view = View::new(&rows, [1, 2, 3, 8]).expect("sized to its shape");
    let counted = allocations(|| (0..10).for_each(|_| cache.append(view, view).expect("room")));
    assert_eq!(counted, 0, "appending keys and values");

    let (mut out, other, mut lse) = ([0.5f32; 48], [0.25f32; 48], [1.0; 6]);
    let counted = allocations(|| {
        let out = ViewMut::new(&mut out, [1, 2, 3, 8]).expect("sized to its shape");
        let other = View::new(&other, [1, 2, 3, 8]).expect("sized to its shape");
        merge(out, &mut lse, other, &[0.5; 6]).expect("parts that fit");
    });
    assert_eq!(counted, 0, "merging");

    // Inside a worker; entering the pool from outside is rayon's, and may allocate now and then.
    #[cfg(feature = "rayon")]
    {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
        pool.install(|| {
            // The workers' own queues grow to their size once.
            for _ in 0..200 {
                rayon::join(|| (), || ());
            }
            calls::<f32, bf16>(2);
            calls::<f32, f32>(2);
            module_calls(2);
            titans_calls(2);
        });
    }
}

fn memory_is_linear_in_tokens() {
    let bytes = |tokens| Plan::new(&Problem::new(1, 64, tokens, tokens)).expect("a plan").workspace_bytes();
    let (short, long) = (bytes(8192), bytes(32768));
    assert!(long < 5 * short, "four times the tokens take {long} bytes, after {short}");
    assert!(long < 32768 * 1024 * 2, "nothing of 32768 x 32768: {long} bytes");
}

/// The large parts of a workspace are counted.
fn workspaces_know_their_size() {
    for threads in [1, 3] {
        let options = PlanOptions { max_threads: Some(threads), ..PlanOptions::default() };
        let problem = Problem { kv_heads: 2, ..Problem::new(4, 24, 5000, 3000) };
        let plan = Plan::with_options(&problem, &options).expect("a plan");
        let before = held();
        let workspace = plan.workspace().expect("memory");
        assert_holds(workspace.bytes(), before, &format!("a workspace of {threads} thread(s)"));
    }

    use lucid_attention::module::*;
    let config =
        AttentionConfig { num_heads: 8, key_dim: 16, kv_heads: Some(4), ..AttentionConfig::default() };
    let weights = ModuleWeights::glorot(&config, InputDims::all(128), 1).expect("a valid configuration");
    let options = ModuleOptions {
        plan: PlanOptions { max_threads: Some(1), ..PlanOptions::default() },
        policies: InputPolicies { not_finite: NotFinite::ZeroToken, ..InputPolicies::default() },
        metrics: Some(MetricsOptions::SPECIFIED),
        ..ModuleOptions::default()
    };
    let module = MultiHeadAttention::with_options(config, &weights, options).expect("valid parts");
    let mut numbers = vec![0.5; 300 * 128];
    numbers[5] = f32::NAN; // repaired, in scratch
    let all = Tensor::new(&numbers, &[300, 128]).expect("sized to its shape");
    let few = Tensor::new(&numbers[..4 * 128], &[4, 128]).expect("sized to its shape");
    let list: Vec<&[f32]> = numbers.chunks_exact(128).collect();
    let mut out = vec![0.0; 300 * 128];
    module.forward(&ModuleInputs::self_attention(all)).expect("a valid call"); // its own metrics have their size now
    let before = held();
    let mut workspace = ModuleWorkspace::new();
    // Many queries; few, which leave keys and values as they are; lists, which are put side by side first.
    module
        .forward_into(&ModuleInputs::self_attention(all), ModuleOutputs::new(&mut out), &mut workspace)
        .expect("a valid call");
    assert_holds(workspace.bytes(), before, "a module's workspace after many queries");
    let outputs = ModuleOutputs::new(&mut out[..4 * 128]);
    module.forward_into(&ModuleInputs::new(few, all, all), outputs, &mut workspace).expect("a valid call");
    assert_holds(workspace.bytes(), before, "after few queries");
    let outputs = ModuleOutputs::new(&mut out[..128]);
    module
        .process_sequence_into(&numbers[128..256], &list, &list, outputs, &mut workspace)
        .expect("a valid call");
    assert_holds(workspace.bytes(), before, "after lists");
}
