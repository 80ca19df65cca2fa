//! Calls that absorb their projections: that they are what they say beside those that project, whatever else is asked of
//! them. How far off their numbers may be is in `reference.rs`.

use crate::{assert_bits, lively_weights, numbers, tensor};
use lucid_attention::module::*;
use lucid_attention::{
    Level, Mask, Metrics, MetricsOptions, PlanOptions, QueryStart, Ragged, RowMetrics, ScoreStage, Scores,
    TopKey, TopKeys, ViewMut,
};

const DIM: usize = 48;
const TOKENS: usize = 70;

fn config() -> AttentionConfig {
    AttentionConfig {
        num_heads: 4,
        key_dim: 12,
        value_dim: Some(16),
        kv_heads: Some(2),
        ..AttentionConfig::default()
    }
}

/// The same module twice: one that absorbs, and one that never does.
fn modules(plan: PlanOptions) -> [MultiHeadAttention; 2] {
    let weights = lively_weights(&config(), InputDims::all(DIM), 1);
    [false, true].map(|always_project| {
        let options = ModuleOptions { plan, always_project, ..ModuleOptions::default() };
        MultiHeadAttention::with_options(config(), &weights, options).expect("valid parts")
    })
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 2e-5, "{what}: number {index} is {got}, not {expected}");
    }
}

/// Two sequences of queries and tokens.
fn data(q_len: usize) -> [Vec<f32>; 2] {
    [numbers(2 * q_len * DIM, 3), numbers(2 * TOKENS * DIM, 4)]
}

/// Outputs, probabilities, logits and metrics, with rows that have no key.
#[test]
fn everything_is_as_if_projected() {
    for q_len in [1, 2, 3] {
        let [query, memory] = data(q_len);
        let (query, memory) = (tensor(&query, &[2, q_len, DIM]), tensor(&memory, &[2, TOKENS, DIM]));
        let mask = Mask::causal().window(Some(20), None).kv_lens(&[TOKENS, 10]);
        let call =
            ModuleInputs::new(query, memory, memory).mask(mask).q_start(QueryStart::PerSequence(&[30, 28]));
        let call = call.logit_scale(3.0);
        for stage in [ScoreStage::Softmax, ScoreStage::Raw, ScoreStage::Biased] {
            let results = modules(PlanOptions::default()).map(|module| {
                let shape = [2, 4, q_len, TOKENS];
                let (mut out, mut scores) =
                    (vec![f32::NAN; 2 * q_len * DIM], vec![f32::NAN; 8 * q_len * TOKENS]);
                let mut metrics =
                    Metrics::new(MetricsOptions::SPECIFIED, 4, 8 * q_len).expect("valid options");
                let wanted =
                    Scores::new(stage, ViewMut::new(&mut scores, shape).expect("sized to its shape"));
                let mut top = vec![TopKey::NONE; 8 * q_len * 2];
                let top_keys = ViewMut::new(&mut top, [2, 4, q_len, 2]).expect("sized to its shape");
                let outputs = ModuleOutputs::new(&mut out).scores(wanted).metrics(&mut metrics);
                let outputs = outputs.top_keys(TopKeys::new(top_keys));
                module.forward_into(&call, outputs, &mut ModuleWorkspace::new()).expect("a valid call");
                assert_bits(
                    &module.forward(&call).expect("a valid call"),
                    &out,
                    "without scores and metrics",
                );
                let numbers =
                    |row: &RowMetrics| [row.entropy, row.below_threshold.expect("asked for") as f32];
                let mut measured: Vec<_> = metrics.rows().iter().flat_map(numbers).collect();
                measured.extend(top.iter().map(TopKey::probability));
                let keys: Vec<_> = top.iter().map(TopKey::key).collect();
                (out, scores, measured, keys)
            });
            let [
                (out, scores, measured, keys),
                (expected, expected_scores, expected_measured, expected_keys),
            ] = results;
            let what = format!("{stage:?} of {q_len} queries");
            assert_ne!(out, expected, "{what}: the other way has other bits");
            assert_close(&out, &expected, &what);
            let finite = |scores: &[f32]| scores.iter().map(|s| s.max(-1e30)).collect::<Vec<_>>();
            assert_close(&finite(&scores), &finite(&expected_scores), &what);
            assert_close(&measured, &expected_measured, &what);
            assert_eq!(keys, expected_keys, "{what}: the most probable keys");
        }
    }
}

/// Which calls do, and that they say so.
#[test]
fn explained() {
    let [module, direct] = modules(PlanOptions::default());
    let [query, memory] = [numbers(40 * DIM, 3), numbers(TOKENS * DIM, 4)];
    let memory = tensor(&memory, &[TOKENS, DIM]);
    let call = |q_len: usize| ModuleInputs::new(tensor(&query[..q_len * DIM], &[q_len, DIM]), memory, memory);
    for (q_len, absorbed) in [(1, true), (3, true), (40, false)] {
        let explained = module.explain(&call(q_len)).expect("a valid call");
        assert_eq!(explained.absorbed, absorbed, "{q_len} queries");
        assert_eq!(explained.projections.len(), if absorbed { 1 } else { 2 }, "{q_len} queries");
        assert_eq!(explained.to_string().contains("W_k goes into the queries"), absorbed);
    }
    let bounds = [0, 1];
    let ragged = Ragged { q_bounds: &bounds, kv_bounds: &[0, TOKENS] };
    for (what, module, call) in [
        ("told not to", &direct, call(1)),
        ("training", &module, call(1).training(1)),
        ("ragged", &module, call(1).ragged(ragged)),
    ] {
        assert!(!module.explain(&call).expect("a valid call").absorbed, "{what}");
    }
}

/// Bits do not depend on threads, batch, level or the workspace's past.
#[test]
fn bits() {
    let [query, memory] = data(3);
    let whole = ModuleInputs::new(
        tensor(&query, &[2, 3, DIM]),
        tensor(&memory, &[2, TOKENS, DIM]),
        tensor(&memory, &[2, TOKENS, DIM]),
    );
    let mut first: Option<Vec<f32>> = None;
    for level in Level::available().filter(|level| level.is_fused()) {
        for max_threads in [Some(1), None] {
            let plan = PlanOptions { level: Some(level), max_threads, ..PlanOptions::default() };
            let [module, _] = modules(plan);
            let mut workspace = ModuleWorkspace::new();
            let expected = first.get_or_insert_with(|| module.forward(&whole).expect("a valid call")).clone();
            assert_bits(&module.forward(&whole).expect("a valid call"), &expected, &format!("{level}"));
            for sequence in [1, 0] {
                let query = tensor(&query[sequence * 3 * DIM..][..3 * DIM], &[3, DIM]);
                let memory = tensor(&memory[sequence * TOKENS * DIM..][..TOKENS * DIM], &[TOKENS, DIM]);
                let mut out = vec![0.0; 3 * DIM];
                let call = ModuleInputs::new(query, memory, memory);
                module
                    .forward_into(&call, ModuleOutputs::new(&mut out), &mut workspace)
                    .expect("a valid call");
                assert_bits(&out, &expected[sequence * 3 * DIM..][..3 * DIM], &format!("{level}, alone"));
            }
        }
    }
}

/// Nothing to attend to: as many outputs, none of them touched by what is not there.
#[test]
fn nothing_there() {
    let [module, direct] = modules(PlanOptions::default());
    for (batch, q_len, kv_len) in [(0, 1, 50), (1, 0, 50), (2, 1, 0)] {
        let [query, memory] = [(q_len, 5), (kv_len, 6)].map(|(len, seed)| numbers(batch * len * DIM, seed));
        let (query, memory) = (tensor(&query, &[batch, q_len, DIM]), tensor(&memory, &[batch, kv_len, DIM]));
        let call = ModuleInputs::new(query, memory, memory);
        let [got, expected] = [&module, &direct].map(|module| module.forward(&call).expect("a valid call"));
        assert_bits(&got, &expected, &format!("{batch} x {q_len} x {kv_len}"));
    }
    let [query, mut memory] = data(1);
    memory[0] = f32::NAN; // removed, and never looked at
    let policies = InputPolicies { not_finite: NotFinite::Propagate, ..InputPolicies::default() };
    let weights = lively_weights(&config(), InputDims::all(DIM), 1);
    let options = ModuleOptions { policies, ..ModuleOptions::default() };
    let module = MultiHeadAttention::with_options(config(), &weights, options).expect("valid parts");
    let (query, memory) = (tensor(&query, &[2, 1, DIM]), tensor(&memory, &[2, TOKENS, DIM]));
    let call = ModuleInputs::new(query, memory, memory).mask(Mask::NONE.kv_lens(&[0, TOKENS]));
    let [got, expected] = [&module, &direct].map(|module| module.forward(&call));
    assert!(expected.is_err(), "refused by default");
    assert!(got.expect("a valid call").iter().all(|x| x.is_finite()), "the first sequence has no key");
}

/// More heads than parts that are dealt out, on one thread and on several.
#[test]
fn many_heads() {
    let config =
        AttentionConfig { num_heads: 130, key_dim: 8, value_dim: Some(16), ..AttentionConfig::default() };
    let dim = 64;
    let weights = lively_weights(&config, InputDims::all(dim), 5);
    let [query, memory] = [numbers(2 * dim, 7), numbers(600 * dim, 8)];
    let (query, memory) = (tensor(&query, &[2, dim]), tensor(&memory, &[600, dim]));
    let run = |threads, always_project| {
        let plan = PlanOptions { max_threads: Some(threads), ..PlanOptions::default() };
        let options = ModuleOptions { plan, always_project, ..ModuleOptions::default() };
        let module =
            MultiHeadAttention::with_options(config.clone(), &weights, options).expect("valid parts");
        let call = ModuleInputs::new(query, memory, memory);
        let absorbed = module.explain(&call).expect("a valid call").absorbed;
        assert_eq!(absorbed, !always_project);
        module.forward(&call).expect("a valid call")
    };
    let alone = run(1, false);
    assert_close(&alone, &run(1, true), "as if projected");
    for threads in [2, 3] {
        assert_bits(&run(threads, false), &alone, &format!("{threads} threads"));
    }
}

/// Under a limit of memory a call goes the way that fits, whatever came before it, or is refused before anything is written.
#[test]
fn under_a_limit_of_memory() {
    let [query, memory] = [numbers(40 * DIM, 3), numbers(600 * DIM, 4)];
    let call = |q_len: usize, kv_len: usize| {
        let memory = tensor(&memory[..kv_len * DIM], &[kv_len, DIM]);
        ModuleInputs::new(tensor(&query[..q_len * DIM], &[q_len, DIM]), memory, memory)
    };
    let limited = |max_workspace_bytes| {
        let plan = PlanOptions { max_workspace_bytes, max_threads: Some(1), ..PlanOptions::default() };
        let [module, _] = modules(plan);
        module
    };
    let free = limited(None);
    let least = |q_len: usize, kv_len: usize, absorbed: bool| {
        let config = config();
        let (kv_heads, head_dim, v_dim) =
            if absorbed { (1, DIM, DIM) } else { (2, config.key_dim, config.value_dim()) };
        let problem = lucid_attention::Problem {
            q_heads: 4,
            kv_heads,
            head_dim,
            v_dim,
            max_q_len: q_len,
            max_kv_len: kv_len,
        };
        let options = PlanOptions { max_threads: Some(1), ..PlanOptions::default() };
        lucid_attention::Plan::with_options(&problem, &options).expect("a plan").workspace_bytes()
    };
    // Room for the direct path only.
    let module = limited(Some(least(2, 70, false)));
    assert!(least(2, 70, true) > least(2, 70, false) && free.explain(&call(2, 70)).expect("valid").absorbed);
    assert!(!module.explain(&call(2, 70)).expect("valid").absorbed);
    let [_, direct] = modules(PlanOptions { max_threads: Some(1), ..PlanOptions::default() });
    let expected = direct.forward(&call(2, 70)).expect("a valid call");
    assert_bits(&module.forward(&call(2, 70)).expect("it fits"), &expected, "the path that fits");

    // The same answer in a workspace that served others, each of which fits by itself.
    let limit = least(40, 70, false).max(least(20, 600, false)).max(least(3, 70, true));
    let module = limited(Some(limit));
    let mut workspace = ModuleWorkspace::new();
    for (q_len, kv_len) in [(40, 70), (20, 600), (3, 70), (40, 70), (20, 600)] {
        let mut out = vec![f32::NAN; q_len * DIM];
        let outputs = ModuleOutputs::new(&mut out);
        module.forward_into(&call(q_len, kv_len), outputs, &mut workspace).expect("it fits by itself");
        assert_bits(
            &out,
            &module.forward(&call(q_len, kv_len)).expect("it fits"),
            &format!("{q_len} x {kv_len}"),
        );
    }
    // As many threads as the limit allows, and the same bits.
    for threads in [2, 4] {
        let plan = PlanOptions {
            max_workspace_bytes: Some(limit),
            max_threads: Some(threads),
            ..PlanOptions::default()
        };
        let [several, _] = modules(plan);
        for (q_len, kv_len) in [(40, 70), (20, 600), (3, 70)] {
            let expected = module.forward(&call(q_len, kv_len)).expect("it fits");
            let got = several.forward(&call(q_len, kv_len)).expect("it fits one thread");
            assert_bits(&got, &expected, &format!("{q_len} x {kv_len} with up to {threads} threads"));
        }
    }
    let too_much = call(40, 600);
    assert!(least(40, 600, false) > limit);
    for stage in [ScoreStage::Raw, ScoreStage::Softmax] {
        let (mut out, mut scores) = (vec![f32::NAN; 40 * DIM], vec![f32::NAN; 4 * 40 * 600]);
        let wanted =
            Scores::new(stage, ViewMut::new(&mut scores, [1, 4, 40, 600]).expect("sized to its shape"));
        let outputs = ModuleOutputs::new(&mut out).scores(wanted);
        module.forward_into(&too_much, outputs, &mut workspace).expect_err("more than the limit");
        assert!(out.iter().chain(&scores).all(|x| x.is_nan()), "nothing is written");
    }
}

/// What is asked for is checked before any of it is written, whichever pass writes it.
#[test]
fn refused_before_anything_is_written() {
    let [module, _] = modules(PlanOptions::default());
    let [query, memory] = data(1);
    let memory = tensor(&memory, &[2, TOKENS, DIM]);
    let call = ModuleInputs::new(tensor(&query, &[2, 1, DIM]), memory, memory);
    assert!(module.explain(&call).expect("a valid call").absorbed);
    let run = |heads: &[usize], metric_rows: usize| {
        let mut out = vec![f32::NAN; 2 * DIM];
        let mut scores = vec![f32::NAN; 8 * TOKENS];
        let mut top = vec![TopKey::NONE; 2 * heads.len()];
        let mut metrics = Metrics::new(MetricsOptions::default(), 4, metric_rows).expect("memory");
        let wanted = Scores::new(
            ScoreStage::Raw,
            ViewMut::new(&mut scores, [2, 4, 1, TOKENS]).expect("sized to its shape"),
        );
        let top_keys = ViewMut::new(&mut top, [2, heads.len(), 1, 1]).expect("sized to its shape");
        let outputs =
            ModuleOutputs::new(&mut out).scores(wanted).top_keys(TopKeys::new(top_keys).heads(heads));
        let result = module.forward_into(&call, outputs.metrics(&mut metrics), &mut ModuleWorkspace::new());
        let unwritten = out.iter().chain(&scores).all(|x| x.is_nan()) && top.iter().all(TopKey::is_none);
        assert_eq!(result.is_err(), unwritten, "{result:?}");
        result
    };
    assert_eq!(run(&[0, 3], 8), Ok(()));
    assert!(run(&[0, 4], 8).is_err(), "there is no such head");
    assert!(run(&[0, 3], 7).is_err(), "no room for the metrics");
}
