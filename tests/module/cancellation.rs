//! Calls that are stopped: nothing of them is seen.

use crate::{assert_bits, lively_weights, numbers, tensor};
use lucid_attention::module::*;
use lucid_attention::{AttentionError, CancelToken, MetricsOptions};
use std::time::{Duration, Instant};

const DIM: usize = 96;

fn module() -> MultiHeadAttention {
    let config = AttentionConfig { num_heads: 4, key_dim: 24, ..AttentionConfig::default() };
    let weights = lively_weights(&config, InputDims::all(DIM), 1);
    let policies = InputPolicies { not_finite: NotFinite::ZeroToken, ..InputPolicies::default() };
    let metrics = Some(MetricsOptions::SPECIFIED);
    let options = ModuleOptions { policies, metrics, ..ModuleOptions::default() };
    MultiHeadAttention::with_options(config, &weights, options).expect("valid parts")
}

/// Few queries over many tokens, which are not projected; many; and over a cache. One query is to be repaired.
fn with_calls(module: &MultiHeadAttention, check: impl Fn(&str, &ModuleInputs<'_>)) {
    let mut tokens = numbers(700 * DIM, 2);
    tokens[5] = f32::NAN;
    let all = tensor(&tokens, &[700, DIM]);
    let few = tensor(&tokens[..2 * DIM], &[2, DIM]);
    let finite = tensor(&tokens[DIM..], &[699, DIM]);
    let cache = module.project_kv(finite, finite, 699, &mut ModuleWorkspace::new()).expect("a cache");
    check("few queries", &ModuleInputs::new(few, all, all));
    check("many queries", &ModuleInputs::self_attention(all));
    check("a cache", &ModuleInputs::cached(few, &cache));
}

/// A call that is stopped before it begins, or at some point of it, leaves its output and the module as they were; one that
/// is not has the bits of one without a token.
#[test]
fn all_or_nothing() {
    let module = module();
    with_calls(&module, |what, inputs| {
        module.reset_metrics();
        module.reset_repairs();
        let expected = module.forward(inputs).expect("a valid call");
        let (metrics, repairs) = (format!("{:?}", module.metrics()), module.repairs());
        module.reset_metrics();
        module.reset_repairs();
        let untouched = (format!("{:?}", module.metrics()), module.repairs());
        assert_ne!((&metrics, repairs), (&untouched.0, untouched.1), "{what}: a call counts");

        let mut workspace = ModuleWorkspace::new();
        let stopped = CancelToken::new();
        stopped.cancel();
        let soon =
            |microseconds| CancelToken::with_deadline(Instant::now() + Duration::from_micros(microseconds));
        let tokens = std::iter::once(stopped).chain((0..60).map(|step| soon(step * step)));
        for token in tokens.chain([CancelToken::new()]) {
            let mut out = vec![7.5; expected.len()];
            let result =
                module.forward_into(&inputs.cancel(&token), ModuleOutputs::new(&mut out), &mut workspace);
            let now = (format!("{:?}", module.metrics()), module.repairs());
            match result {
                Ok(()) => {
                    assert_bits(&out, &expected, what);
                    assert_eq!(now, (metrics.clone(), repairs), "{what}: counted once");
                }
                Err(AttentionError::Cancelled { complete: 0, rows }) => {
                    assert_eq!(rows, 4 * expected.len() / DIM, "{what}: rows of all heads");
                    assert!(
                        token.is_stopped() && out.iter().all(|&x| x == 7.5),
                        "{what}: something was written"
                    );
                    assert_eq!(now, untouched, "{what}: something was counted");
                }
                Err(error) => panic!("{what}: {error}"),
            }
            module.reset_metrics();
            module.reset_repairs();
        }
    });
}
