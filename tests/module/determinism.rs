//! A token's output has the same bits in any company, on any number of threads, at every level that fuses multiply-add, from
//! any workspace, and over a cache as over tensors, in a module that always projects; `absorbed.rs` has what others keep.

use crate::{assert_bits, lively_weights, module_at, numbers, tensor};
use lucid_attention::module::*;
use lucid_attention::{DType, Level, Mask, PlanOptions, QueryStart, ScoreStage, Scores, ViewMut};

/// Large enough that projections, attention and norm are spread over threads.
const DIM: usize = 256;
const TOKENS: usize = 150;

fn config() -> AttentionConfig {
    AttentionConfig {
        num_heads: 8,
        key_dim: 32,
        kv_heads: Some(4),
        activation: Some(Activation::Gelu),
        weights_dtype: DType::Bf16,
        ..AttentionConfig::default()
    }
}

/// A module whose short calls have the bits of longer ones.
fn projecting(config: &AttentionConfig, weights: &ModuleWeights) -> MultiHeadAttention {
    let options = ModuleOptions { always_project: true, ..ModuleOptions::default() };
    MultiHeadAttention::with_options(config.clone(), weights, options).expect("valid parts")
}

#[cfg(feature = "rayon")]
#[test]
fn threads_and_batches() {
    let weights = lively_weights(&config(), InputDims::all(DIM), 1);
    let module = projecting(&config(), &weights);
    let tokens = numbers(3 * TOKENS * DIM, 2);
    let whole = tensor(&tokens, &[3, TOKENS, DIM]);
    let inputs = ModuleInputs::self_attention(whole).mask(Mask::causal());
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| module.forward(&inputs)).expect("a valid call")
    };
    let one = on(1);
    for threads in [2, 3, 8] {
        assert_bits(&on(threads), &one, &format!("{threads} threads"));
    }
    let mut workspace = ModuleWorkspace::new();
    for (sequence, tokens) in tokens.chunks_exact(TOKENS * DIM).enumerate() {
        let expected = &one[sequence * TOKENS * DIM..][..TOKENS * DIM];
        let mut got = vec![0.0; TOKENS * DIM];
        let alone = ModuleInputs::self_attention(tensor(tokens, &[TOKENS, DIM])).mask(Mask::causal());
        module.forward_into(&alone, ModuleOutputs::new(&mut got), &mut workspace).expect("a valid call");
        assert_bits(&got, expected, &format!("sequence {sequence} alone"));
        let last = tensor(&tokens[(TOKENS - 1) * DIM..], &[DIM]);
        let keys = tensor(tokens, &[TOKENS, DIM]);
        let row = module.forward(&ModuleInputs::new(last, keys, keys)).expect("a valid call");
        assert_bits(&row, &expected[(TOKENS - 1) * DIM..], &format!("the last row of sequence {sequence}"));
    }
}

/// However little work each step is; over tokens as they are, too, of fewer KV heads than there are threads, or of one.
#[cfg(feature = "rayon")]
#[test]
fn small_steps_side_by_side() {
    let memory = numbers(60 * DIM, 2);
    for (kv_heads, tokens, dim) in [(4, 2, DIM), (1, 2, DIM), (2, 7, DIM), (4, 1, 100), (1, 20, 100)] {
        let config = AttentionConfig { kv_heads: Some(kv_heads), weights_dtype: DType::F32, ..config() };
        let weights = lively_weights(&config, InputDims::all(dim), 1);
        let on = |threads, spread_from_microseconds| {
            let plan = PlanOptions { spread_from_microseconds, ..PlanOptions::default() };
            let options = ModuleOptions { plan, ..ModuleOptions::default() };
            let module =
                MultiHeadAttention::with_options(config.clone(), &weights, options).expect("valid parts");
            let keys = tensor(&memory[..60 * dim], &[60, dim]);
            let inputs = ModuleInputs::new(tensor(&memory[..tokens * dim], &[tokens, dim]), keys, keys);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let explained = pool.install(|| module.explain(&inputs)).expect("a valid call");
            assert_eq!(explained.output.threads > 1, threads > 1, "{explained}");
            pool.install(|| module.forward(&inputs)).expect("a valid call")
        };
        let alone = on(1, None);
        for threads in [2, 3, 8] {
            assert_bits(&on(threads, Some(0)), &alone, &format!("{kv_heads} KV heads, {threads} threads"));
        }
    }
}

#[test]
fn levels() {
    let weights = lively_weights(&config(), InputDims { query: 40, key: 24, value: 31 }, 3);
    let [q, k, v] = [(7, 40), (13, 24), (13, 31)].map(|(rows, dim)| (numbers(rows * dim, 4), [rows, dim]));
    let inputs = ModuleInputs::new(tensor(&q.0, &q.1), tensor(&k.0, &k.1), tensor(&v.0, &v.1));
    let mut outputs = Level::available()
        .filter(|level| level.is_fused())
        .map(|level| (level, module_at(&config(), &weights, level).forward(&inputs).expect("a valid call")));
    let Some((first, expected)) = outputs.next() else { return };
    for (level, got) in outputs {
        assert_bits(&got, &expected, &format!("{level} and {first}"));
    }
}

/// One tensor three times, or three tensors of the same numbers: one product or three.
#[test]
fn fused_products() {
    let config =
        AttentionConfig { num_heads: 3, key_dim: 5, value_dim: Some(7), ..AttentionConfig::default() };
    let weights = lively_weights(&config, InputDims::all(29), 5);
    let module = MultiHeadAttention::new(config, &weights).expect("valid parts");
    let tokens = [(); 3].map(|()| numbers(2 * 6 * 29, 6));
    let [a, b, c] = [0, 1, 2].map(|i| tensor(&tokens[i], &[2, 6, 29]));
    let expected = module.forward(&ModuleInputs::new(a, b, c)).expect("a valid call");
    for (inputs, what) in [
        (ModuleInputs::self_attention(a), "self-attention"),
        (ModuleInputs::new(a, b, b), "keys that are the values"),
        (ModuleInputs::new(a, a, b), "keys that are the queries"),
    ] {
        assert_bits(&module.forward(&inputs).expect("a valid call"), &expected, what);
    }
}

#[test]
fn caches_and_workspaces() {
    let config = AttentionConfig { causal: true, ..config() };
    let weights = lively_weights(&config, InputDims::all(64), 7);
    let module = projecting(&config, &weights);
    let tokens = numbers(90 * 64, 8);
    let expected =
        module.forward(&ModuleInputs::self_attention(tensor(&tokens, &[90, 64]))).expect("a valid call");

    let mut workspace = ModuleWorkspace::new();
    let start = tensor(&tokens[..10 * 64], &[10, 64]);
    let mut cache = module.project_kv(start, start, 90, &mut workspace).expect("room");
    for at in 10..90 {
        let token = tensor(&tokens[at * 64..][..64], &[64]);
        module.append_kv(token, token, &mut cache, &mut workspace).expect("room");
        let inputs = ModuleInputs::cached(token, &cache).q_start(QueryStart::BottomRight);
        let mut got = vec![0.0; 64];
        module.forward_into(&inputs, ModuleOutputs::new(&mut got), &mut workspace).expect("a valid call");
        assert_bits(&got, &expected[at * 64..][..64], &format!("token {at} over a cache"));
    }
    let error =
        module.append_kv(tensor(&tokens, &[90, 64]), tensor(&tokens, &[90, 64]), &mut cache, &mut workspace);
    assert!(error.is_err() && cache.len() == 90, "a full cache is as it was");

    // Scores of one head and row are those of all, and change nothing.
    let inputs = ModuleInputs::self_attention(tensor(&tokens, &[90, 64]));
    let (_, all) = module.forward_with_scores(&inputs).expect("a valid call");
    let (mut out, mut some) = (vec![0.0; 90 * 64], vec![0.0; 90]);
    let scores = ViewMut::new(&mut some, [1, 1, 1, 90]).expect("sized to its shape");
    let scores = Scores::new(ScoreStage::Softmax, scores).heads(&[5]).rows(&[33]);
    module
        .forward_into(&inputs, ModuleOutputs::new(&mut out).scores(scores), &mut workspace)
        .expect("a valid call");
    assert_bits(&out, &expected, "with scores");
    assert_bits(&some, &all[(5 * 90 + 33) * 90..][..90], "the scores");

    // A workspace that served another module serves as an empty one does.
    let other = AttentionConfig { num_heads: 2, key_dim: 70, ..AttentionConfig::default() };
    let other_weights = lively_weights(&other, InputDims::all(11), 9);
    let other = MultiHeadAttention::new(other, &other_weights).expect("valid parts");
    let tokens = numbers(5 * 11, 10);
    let inputs = ModuleInputs::self_attention(tensor(&tokens, &[5, 11]));
    let mut got = vec![0.0; 5 * 11];
    other.forward_into(&inputs, ModuleOutputs::new(&mut got), &mut workspace).expect("a valid call");
    assert_bits(&got, &other.forward(&inputs).expect("a valid call"), "a used workspace");
    assert!(workspace.bytes() > 0);
}

/// Calls of NaN leave it everywhere in a workspace, and nowhere in the next call.
#[test]
fn a_workspace_full_of_nan() {
    let weights = lively_weights(&config(), InputDims::all(64), 13);
    let (nan, tokens) = (vec![f32::NAN; 200 * 64], numbers(70 * 64, 14));
    for level in Level::available() {
        let plan = PlanOptions { level: Some(level), ..PlanOptions::default() };
        let policies = InputPolicies { not_finite: NotFinite::Propagate, ..InputPolicies::default() };
        let options = ModuleOptions { plan, policies, ..ModuleOptions::default() };
        let module = MultiHeadAttention::with_options(config(), &weights, options).expect("valid parts");
        let mut workspace = ModuleWorkspace::new();
        let mut call = |query: &[f32], keys: &[f32]| {
            let mut got = vec![f32::NAN; query.len()];
            let (query, keys) =
                (tensor(query, &[query.len() / 64, 64]), tensor(keys, &[keys.len() / 64, 64]));
            let inputs = ModuleInputs::new(query, keys, keys);
            module.forward_into(&inputs, ModuleOutputs::new(&mut got), &mut workspace).expect("a valid call");
            (got, module.forward(&inputs).expect("a valid call"))
        };
        for rows in [1, 3, 70] {
            for of_nan in [&nan[..64], &nan] {
                let (got, _) = call(of_nan, &nan);
                assert!(got.iter().all(|x| x.is_nan()), "{level}: a call of NaN");
            }
            let (got, expected) = call(&tokens[..rows * 64], &tokens);
            assert!(expected.iter().all(|x| x.is_finite()), "{level}: a call of numbers");
            assert_bits(&got, &expected, &format!("{level}, {rows} rows after calls of NaN"));
        }
    }
}

#[test]
fn one_module_serves_several_threads() {
    let weights = lively_weights(&config(), InputDims::all(64), 11);
    let module = MultiHeadAttention::new(config(), &weights).expect("valid parts");
    let tokens = numbers(20 * 64, 12);
    let inputs = ModuleInputs::self_attention(tensor(&tokens, &[20, 64]));
    let expected = module.forward(&inputs).expect("a valid call");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut workspace = ModuleWorkspace::new();
                for _ in 0..20 {
                    let mut got = vec![0.0; 20 * 64];
                    module
                        .forward_into(&inputs, ModuleOutputs::new(&mut got), &mut workspace)
                        .expect("a valid call");
                    assert_bits(&got, &expected, "side by side");
                }
            });
        }
    });
}

/// A factor of a call's scores is one of the configuration's scale, whether that is given or not.
#[test]
fn logit_scale() {
    let of = |scale, logit_scale: Option<f32>| {
        let config = AttentionConfig { num_heads: 4, key_dim: 16, scale, ..AttentionConfig::default() };
        let weights = lively_weights(&config, InputDims::all(64), 1);
        let module = MultiHeadAttention::new(config, &weights).expect("valid parts");
        let data = numbers(9 * 64, 2);
        let inputs = ModuleInputs::self_attention(tensor(&data, &[9, 64]));
        let inputs = logit_scale.map_or(inputs, |factor| inputs.logit_scale(factor));
        module.forward(&inputs)
    };
    let out = |scale, logit_scale| of(scale, logit_scale).expect("a valid call");
    assert_bits(&out(None, Some(2.0)), &out(Some(0.5), None), "1 / sqrt(16) by default");
    assert_bits(&out(Some(0.125), Some(4.0)), &out(Some(0.5), None), "a scale of the configuration");
    assert_ne!(out(None, Some(2.0)), out(None, None));
    let error = of(None, Some(f32::NAN)).expect_err("no factor");
    assert_eq!(error.to_string(), "scale: expected a number from -2.3e38 to 2.3e38, got NaN");
}
