//! Running metrics of a module: those of its probabilities, over calls and threads, until they are reset.

use crate::{assert_bits, lively_weights, numbers, tensor};
use lucid_attention::module::*;
use lucid_attention::{AttentionError, Mask, Metrics, MetricsOptions};

const OPTIONS: MetricsOptions = MetricsOptions { first_keys: Some(2), ..MetricsOptions::SPECIFIED };

fn config() -> AttentionConfig {
    AttentionConfig { num_heads: 4, key_dim: 8, kv_heads: Some(2), ..AttentionConfig::default() }
}

fn module(metrics: Option<MetricsOptions>) -> MultiHeadAttention {
    let weights = lively_weights(&config(), InputDims::all(24), 1);
    let options = ModuleOptions { metrics, ..ModuleOptions::default() };
    MultiHeadAttention::with_options(config(), &weights, options).expect("valid parts")
}

/// What the specification's example computes from the scores.
fn specified(scores: &[f32]) -> [f64; 3] {
    let n = scores.len() as f64;
    let mean = scores.iter().map(|&p| f64::from(p)).sum::<f64>() / n;
    let entropy: f64 = scores.iter().map(|&p| f64::from(p)).map(|p| -p * (p + 1e-10).ln()).sum();
    let sparse = scores.iter().filter(|&&p| p < 0.01).count();
    [mean, entropy, sparse as f64 / n]
}

#[test]
fn the_specification_s_figures() {
    let module = module(Some(OPTIONS));
    let (query, memory) = (numbers(2 * 5 * 24, 2), numbers(2 * 130 * 24, 3));
    let memory = tensor(&memory, &[2, 130, 24]);
    let lens = [130, 60];
    for mask in [Mask::NONE, Mask::NONE.kv_lens(&lens)] {
        module.reset_metrics();
        let inputs = ModuleInputs::new(tensor(&query, &[2, 5, 24]), memory, memory).mask(mask);
        let (_, scores) = module.forward_with_scores(&inputs).expect("a valid call");
        let metrics = module.metrics().expect("asked for");
        let close = |got: Option<f64>, want: f64| {
            let got = got.expect("rows");
            assert!((got - want).abs() <= 1e-5 * want, "{got} and {want}");
        };
        for (head, totals) in metrics.heads().iter().enumerate() {
            let of_head: Vec<f32> =
                (0..2).flat_map(|b| scores[(b * 4 + head) * 5 * 130..][..5 * 130].to_vec()).collect();
            let [mean, entropy, sparsity] = specified(&of_head);
            close(totals.mean_score_counting_masked(), mean);
            close(totals.entropy().map(|entropy| entropy.mean), entropy / 10.0);
            assert_eq!(totals.sparsity_counting_masked(), Some(sparsity));
            assert_eq!(totals.rows(), 10);
        }
    }
}

#[test]
fn over_calls_and_threads() {
    let measuring = module(Some(OPTIONS));
    let plain = module(None);
    assert!(plain.metrics().is_none());
    let tokens = numbers(7 * 24, 4);
    let inputs = ModuleInputs::self_attention(tensor(&tokens, &[7, 24])).mask(Mask::causal());
    let expected = plain.forward(&inputs).expect("a valid call");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut workspace = ModuleWorkspace::new();
                let mut out = vec![0.0; 7 * 24];
                for _ in 0..5 {
                    let outputs = ModuleOutputs::new(&mut out);
                    measuring.forward_into(&inputs, outputs, &mut workspace).expect("a valid call");
                    assert_bits(&out, &expected, "measured");
                }
                assert!(workspace.bytes() > 0);
            });
        }
    });
    let running = measuring.metrics().expect("asked for");
    assert_eq!(running.overall().rows(), 15 * 4 * 7);

    // A call's own: its rows, and the same totals.
    measuring.reset_metrics();
    assert_eq!(measuring.metrics().expect("asked for").overall().rows(), 0);
    let mut own = Metrics::new(OPTIONS, 4, 28).expect("memory");
    let mut out = vec![0.0; 7 * 24];
    let mut workspace = ModuleWorkspace::new();
    for module in [&measuring, &plain] {
        own.reset();
        let outputs = ModuleOutputs::new(&mut out).metrics(&mut own);
        module.forward_into(&inputs, outputs, &mut workspace).expect("a valid call");
        assert_bits(&out, &expected, "measured by the caller");
        assert_eq!(own.rows().len(), 28);
        assert_eq!(own.heads(), measuring.metrics().expect("asked for").heads());
    }
    let sequence: Vec<&[f32]> = tokens.chunks_exact(24).collect();
    measuring.process_sequence(&tokens[..24], &sequence, &sequence).expect("a valid call");
    assert_eq!(measuring.metrics().expect("asked for").overall().rows(), 28 + 4);
}

#[test]
fn refused() {
    let measuring = module(Some(OPTIONS));
    let tokens = numbers(7 * 24, 5);
    let inputs = ModuleInputs::self_attention(tensor(&tokens, &[7, 24]));
    let mut other = Metrics::new(MetricsOptions::default(), 4, 28).expect("memory");
    let mut out = vec![0.0; 7 * 24];
    let outputs = ModuleOutputs::new(&mut out).metrics(&mut other);
    let error = measuring.forward_into(&inputs, outputs, &mut ModuleWorkspace::new()).expect_err("two kinds");
    assert!(matches!(error, AttentionError::Conflict { operand: "metrics", .. }), "{error}");
    let mut small = Metrics::new(OPTIONS, 4, 27).expect("memory");
    let outputs = ModuleOutputs::new(&mut out).metrics(&mut small);
    let error = measuring.forward_into(&inputs, outputs, &mut ModuleWorkspace::new()).expect_err("no room");
    assert!(matches!(error, AttentionError::TooLarge { operand: "metrics", .. }), "{error}");
    assert_eq!(measuring.metrics().expect("asked for").overall().rows(), 0, "calls that failed do not count");
    assert!(out.iter().all(|&x| x == 0.0), "nothing is written");

    let weights = lively_weights(&config(), InputDims::all(24), 1);
    let options = ModuleOptions {
        metrics: Some(MetricsOptions { top_k: Some(0), ..OPTIONS }),
        ..ModuleOptions::default()
    };
    let error = MultiHeadAttention::with_options(config(), &weights, options).expect_err("no key");
    assert!(matches!(error, AttentionError::Value { operand: "metrics.top_k", .. }), "{error}");
}
