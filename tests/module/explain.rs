//! What a module says it will do: the products that run, attention, metrics and dropout.

use crate::{lively_weights, numbers, tensor};
use lucid_attention::module::*;
use lucid_attention::{AttentionError, DType, KeyPath, Metrics, MetricsOptions, PlanOptions};

const DIM: usize = 384;

fn module(config: AttentionConfig, dims: InputDims, options: ModuleOptions) -> MultiHeadAttention {
    let weights = lively_weights(&config, dims, 1);
    MultiHeadAttention::with_options(config, &weights, options).expect("valid parts")
}

fn config() -> AttentionConfig {
    AttentionConfig { num_heads: 12, key_dim: 32, dropout: 0.25, ..AttentionConfig::default() }
}

/// What is made by which product, and its rows, inputs and outputs.
fn products(explained: &ModuleExplanation) -> Vec<(&'static str, [usize; 3])> {
    let all = explained.projections.iter().chain([&explained.output]);
    all.map(|product| (product.makes, [product.rows, product.inputs, product.outputs])).collect()
}

#[test]
fn products_by_what_is_shared() {
    let module = module(config(), InputDims::all(DIM), ModuleOptions::default());
    let data = numbers(5 * DIM, 2);
    let [a, b] = [tensor(&data[..2 * DIM], &[2, DIM]), tensor(&data[..5 * DIM], &[5, DIM])];
    let other = numbers(5 * DIM, 3);
    let c = tensor(&other, &[5, DIM]);
    let of = |inputs: ModuleInputs<'_>| products(&module.explain(&inputs).expect("a valid call"));
    let output = ("output", [2, DIM, DIM]);
    assert_eq!(
        of(ModuleInputs::self_attention(a)),
        [("queries, keys and values", [2, DIM, 3 * DIM]), output]
    );
    assert_eq!(
        of(ModuleInputs::new(a, b, b)),
        [("queries", [2, DIM, DIM]), ("keys and values", [5, DIM, 2 * DIM]), output]
    );
    assert_eq!(
        of(ModuleInputs::new(a, b, c)),
        [("queries", [2, DIM, DIM]), ("keys", [5, DIM, DIM]), ("values", [5, DIM, DIM]), output]
    );
    let mut workspace = ModuleWorkspace::new();
    let cache = module.project_kv(b, b, 64, &mut workspace).expect("memory");
    let inputs = ModuleInputs::cached(a, &cache);
    assert_eq!(of(inputs), [("queries", [2, DIM, DIM]), output]);
    let explained = module.explain(&inputs).expect("a valid call");
    assert_eq!((explained.attention.keys, explained.attention.kv_dtype), (KeyPath::Panels, DType::F32));
    let half = module.project_kv_as::<half::f16>(b, b, 64, &mut workspace).expect("memory");
    let explained = module.explain(&ModuleInputs::cached(a, &half)).expect("a valid call");
    assert_eq!(explained.attention.kv_dtype, DType::F16);

    // Inputs of sizes that differ have a layer each, whatever is shared.
    let dims = InputDims { query: DIM, key: 64, value: 64 };
    let narrow = crate::explain::module(config(), dims, ModuleOptions::default());
    let memory = tensor(&data[..5 * 64], &[5, 64]);
    let explained = narrow.explain(&ModuleInputs::new(a, memory, memory)).expect("a valid call");
    assert_eq!(
        products(&explained),
        [("queries", [2, DIM, DIM]), ("keys", [5, 64, DIM]), ("values", [5, 64, DIM]), output]
    );
}

/// Threads: what the calls would use, in the pool they would use.
#[cfg(feature = "rayon")]
#[test]
fn threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
    let data = numbers(300 * DIM, 2);
    for (rows, max_threads, spread_from_microseconds, threads, parts) in [
        (1, None, None, 3, ProductParts::Columns),
        (16, None, None, 3, ProductParts::Columns),
        (300, None, None, 3, ProductParts::Rows),
        (300, Some(2), None, 2, ProductParts::Rows),
        (300, Some(1), None, 1, ProductParts::One),
        (300, None, Some(1_000_000), 1, ProductParts::One),
        (1, None, Some(0), 3, ProductParts::Columns),
    ] {
        let plan = PlanOptions { max_threads, spread_from_microseconds, ..PlanOptions::default() };
        let module =
            module(config(), InputDims::all(DIM), ModuleOptions { plan, ..ModuleOptions::default() });
        let inputs = ModuleInputs::self_attention(tensor(&data[..rows * DIM], &[rows, DIM]));
        let explained = pool.install(|| module.explain(&inputs)).expect("a valid call");
        let [qkv] = &explained.projections[..] else { panic!("one product: {explained}") };
        assert_eq!((qkv.threads, qkv.parts), (threads, parts), "{rows} rows");
        assert_eq!(explained.level, module.level());
        let alone = threads == 1 || rows == 1 && spread_from_microseconds.is_none();
        assert_eq!(
            explained.output.parts == ProductParts::One,
            alone,
            "a third of the weights, for {rows} rows"
        );
    }
}

#[test]
fn text() {
    let metrics = Some(MetricsOptions::SPECIFIED);
    let config =
        AttentionConfig { activation: Some(Activation::Gelu), weights_dtype: DType::Bf16, ..config() };
    let measuring =
        module(config.clone(), InputDims::all(DIM), ModuleOptions { metrics, ..ModuleOptions::default() });
    let data = numbers(7 * DIM, 2);
    let inputs = ModuleInputs::self_attention(tensor(&data, &[7, DIM]));
    let text = measuring.explain(&inputs.training(5)).expect("a valid call").to_string();
    for expected in [
        &format!("multi-head attention, level {}\n", measuring.level())[..],
        "queries, keys and values: 7 row(s) of 384 to 1152, weights bf16, ",
        "  exact attention, order version 1, ",
        "output: 7 row(s) of 384 to 384, weights bf16, ",
        "then: activation gelu, residual yes, layer norm yes\n",
        "metrics: while the output is computed; for sparsity or top-k mass scores are computed twice more\n",
        "dropout: 0.25 of the probabilities",
    ] {
        assert!(text.contains(expected), "{expected:?} in\n{text}");
    }
    let text = measuring.explain(&inputs).expect("a valid call").to_string();
    assert!(text.contains("dropout: none, without training"), "{text}");
    let cheap = ModuleOptions { metrics: Some(MetricsOptions::default()), ..ModuleOptions::default() };
    let text = module(config.clone(), InputDims::all(DIM), cheap).explain(&inputs).expect("a valid call");
    assert!(text.to_string().contains("metrics: while the output is computed\n"), "{text}");
    let plain = module(config, InputDims::all(DIM), ModuleOptions::default());
    let text = plain.explain(&inputs).expect("a valid call").to_string();
    assert!(text.contains("metrics: none of the module's\n"), "{text}");
}

/// What a call would refuse; and nothing is counted.
#[test]
fn refused_and_uncounted() {
    let options = ModuleOptions {
        policies: InputPolicies { not_finite: NotFinite::ZeroToken, ..InputPolicies::default() },
        metrics: Some(MetricsOptions::default()),
        ..ModuleOptions::default()
    };
    let module = module(config(), InputDims::all(DIM), options);
    let mut data = numbers(2 * DIM, 2);
    let short = tensor(&data[..DIM], &[2, DIM / 2]);
    let error = module.explain(&ModuleInputs::self_attention(short)).expect_err("half the size");
    let (operand, axis) = ("query", "dim");
    assert_eq!(error, AttentionError::Shape { operand, axis, expected: DIM, got: DIM / 2 });
    data[3] = f32::NAN;
    let inputs = ModuleInputs::self_attention(tensor(&data, &[2, DIM]));
    module.explain(&inputs).expect("a call that would be repaired");
    assert_eq!(module.repairs(), Repairs::default());
    let rows = |metrics: Metrics| metrics.overall().rows();
    assert_eq!(module.metrics().map(rows), Some(0));
}

/// Attention between products that are spread over the pool is spread from less work on: workers are awake.
#[cfg(feature = "rayon")]
#[test]
fn attention_between_spread_products() {
    let module = module(config(), InputDims::all(DIM), ModuleOptions::default());
    let data = numbers(16 * DIM, 2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    let explained = |tokens: usize| {
        let x = tensor(&data[..tokens * DIM], &[tokens, DIM]);
        pool.install(|| module.explain(&ModuleInputs::self_attention(x)).expect("a valid call"))
    };
    let layer = explained(16);
    assert!(layer.output.threads == 2 && layer.attention.estimated_microseconds < 60.0, "{layer}");
    assert_eq!(layer.attention.threads, 2, "{layer}");
    assert_eq!(explained(2).attention.threads, 1, "too little, awake or not");
    assert_eq!(layer.attention.spread_from_microseconds, 4.0);
    assert_eq!(explained(2).attention.spread_from_microseconds, 60.0);
}
