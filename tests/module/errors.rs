//! Every way to be wrong is an error that names what is wrong, what was expected and what came; nothing is written then.

use crate::{lively_weights, numbers, tensor};
use lucid_attention::AttentionError::{self, *};
use lucid_attention::module::*;
use lucid_attention::{
    DType, Level, Mask, PlanOptions, QueryStart, Ragged, ScoreStage, Scores, View, ViewMut,
};

fn config() -> AttentionConfig {
    AttentionConfig { num_heads: 4, key_dim: 6, ..AttentionConfig::default() }
}

fn module(config: AttentionConfig) -> MultiHeadAttention {
    let weights = lively_weights(&config, InputDims::all(24), 1);
    MultiHeadAttention::new(config, &weights).expect("valid parts")
}

fn shape(operand: &'static str, axis: &'static str, expected: usize, got: usize) -> AttentionError {
    Shape { operand, axis, expected, got }
}

fn value(operand: &'static str, expected: &'static str, got: &str) -> AttentionError {
    Value { operand, expected, got: got.to_owned() }
}

#[test]
fn configurations() {
    let base = AttentionConfig::default;
    let huge = usize::MAX / 2;
    for (wrong, expected) in [
        (AttentionConfig { num_heads: 0, ..base() }, value("num_heads", "at least 1", "0")),
        (AttentionConfig { key_dim: 0, ..base() }, value("key_dim", "at least 1", "0")),
        (AttentionConfig { value_dim: Some(0), ..base() }, value("value_dim", "at least 1", "0")),
        (AttentionConfig { kv_heads: Some(0), ..base() }, value("kv_heads", "at least 1", "0")),
        (AttentionConfig { output_dim: Some(0), ..base() }, value("output_dim", "at least 1", "0")),
        (
            AttentionConfig { kv_heads: Some(3), ..base() },
            value("kv_heads", "a divisor of num_heads", "3 with num_heads = 4"),
        ),
        (AttentionConfig { key_dim: huge, ..base() }, SizeOverflow { operand: "key_dim" }),
        (AttentionConfig { value_dim: Some(huge), ..base() }, SizeOverflow { operand: "value_dim" }),
        (AttentionConfig { dropout: 1.0, ..base() }, value("dropout", "a rate in [0, 1)", "1")),
        (AttentionConfig { dropout: -0.5, ..base() }, value("dropout", "a rate in [0, 1)", "-0.5")),
        (AttentionConfig { dropout: f32::NAN, ..base() }, value("dropout", "a rate in [0, 1)", "NaN")),
        (
            AttentionConfig { layer_norm_epsilon: f32::INFINITY, ..base() },
            value("layer_norm_epsilon", "a finite number that is not negative", "inf"),
        ),
        (
            AttentionConfig { scale: Some(f32::NAN), ..base() },
            value("scale", "a number from -2.3e38 to 2.3e38", "NaN"),
        ),
        (
            AttentionConfig { softcap: Some(0.0), ..base() },
            value("softcap", "a number from 1e-30 to 1e30", "0"),
        ),
    ] {
        assert_eq!(wrong.validate(), Err(expected.clone()), "{wrong:?}");
        assert_eq!(ModuleWeights::glorot(&wrong, InputDims::all(24), 1), Err(expected.clone()));
        let weights = lively_weights(&config(), InputDims::all(24), 1);
        assert_eq!(MultiHeadAttention::new(wrong, &weights).err(), Some(expected), "the module");
    }
    assert_eq!(base().validate(), Ok(()));
}

#[test]
fn weights() {
    let weights = lively_weights(&config(), InputDims::all(24), 1);
    let refuse = |change: &dyn Fn(&mut ModuleWeights), config: AttentionConfig| {
        let mut weights = weights.clone();
        change(&mut weights);
        MultiHeadAttention::new(config, &weights).expect_err("weights that do not fit")
    };
    let none = |_: &mut ModuleWeights| {};
    let other = AttentionConfig { key_dim: 7, ..config() };
    assert_eq!(refuse(&none, other), shape("query weight", "outputs", 28, 24));
    let other = AttentionConfig { kv_heads: Some(2), ..config() };
    assert_eq!(refuse(&none, other), shape("key weight", "outputs", 12, 24));
    let other = AttentionConfig { value_dim: Some(2), ..config() };
    assert_eq!(refuse(&none, other), shape("value weight", "outputs", 8, 24));
    let other = AttentionConfig { output_dim: Some(5), use_residual: false, ..config() };
    assert_eq!(refuse(&none, other), shape("output weight", "outputs", 5, 24));
    let other = AttentionConfig { use_bias: false, ..config() };
    assert_eq!(refuse(&none, other), shape("query bias", "elements", 0, 24));
    let other = AttentionConfig { use_layer_norm: false, ..config() };
    let expected = value("layer norm", "none, without use_layer_norm", "some");
    assert_eq!(refuse(&none, other.clone()), expected);
    let empty = |weights: &mut ModuleWeights| {
        weights.layer_norm = Some(NormWeights { gamma: Vec::new(), beta: Vec::new() });
    };
    assert_eq!(refuse(&empty, other), expected);
    assert_eq!(refuse(&empty, config()), shape("layer norm gamma", "elements", 24, 0));
    let short = |weights: &mut ModuleWeights| weights.key.weight.truncate(3);
    assert_eq!(refuse(&short, config()), shape("key weight", "elements", 576, 3));
    let missing = |weights: &mut ModuleWeights| weights.output.bias = None;
    assert_eq!(refuse(&missing, config()), shape("output bias", "elements", 24, 0));
    let missing = |weights: &mut ModuleWeights| weights.layer_norm = None;
    assert_eq!(
        refuse(&missing, config()),
        value("layer norm", "a scale and a shift, with use_layer_norm", "none")
    );
    let infinite = |weights: &mut ModuleWeights| weights.value.weight[5] = f32::INFINITY;
    assert_eq!(refuse(&infinite, config()), value("weight", "finite numbers, as they are stored", "inf"));
    let large = |weights: &mut ModuleWeights| weights.key.weight[100] = 1e5;
    let other = AttentionConfig { weights_dtype: DType::F16, ..config() };
    assert_eq!(refuse(&large, other), value("weight", "finite numbers, as they are stored", "100000"));
    let empty = |weights: &mut ModuleWeights| weights.value.inputs = 0;
    assert_eq!(refuse(&empty, config()), value("value weight", "at least 1 input", "0"));

    let other = AttentionConfig { output_dim: Some(5), ..config() };
    let weights = lively_weights(&other, InputDims::all(24), 1);
    let error = MultiHeadAttention::new(other, &weights).expect_err("a residual of another size");
    assert_eq!(error, shape("residual", "output_dim", 24, 5));
    assert_eq!(
        ModuleWeights::glorot(&config(), InputDims::all(0), 1),
        Err(value("query weight", "at least 1 input", "0"))
    );
}

#[test]
fn options() {
    let weights = lively_weights(&config(), InputDims::all(24), 1);
    let refuse = |plan| {
        let options = ModuleOptions { plan, ..ModuleOptions::default() };
        MultiHeadAttention::with_options(config(), &weights, options).expect_err("options in vain")
    };
    let threads = PlanOptions { max_threads: Some(0), ..PlanOptions::default() };
    assert_eq!(refuse(threads), value("max_threads", "at least 1", "0"));
    for level in Level::ALL {
        if !level.is_available() {
            let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
            assert_eq!(refuse(options), LevelUnavailable { level: level.name() });
        } else if !level.has_bf16_dot() {
            let options = PlanOptions { level: Some(level), bf16_dot: true, ..PlanOptions::default() };
            assert_eq!(refuse(options), Bf16DotUnavailable { level: level.name() });
        }
    }
}

#[test]
fn tensors() {
    let data = [0.0; 24];
    let refuse = |shape: &[usize]| Tensor::new(&data, shape).expect_err("no such tensor");
    let ranks = "a shape of [dim], [tokens, dim] or [batch, tokens, dim]";
    assert_eq!(refuse(&[]), value("tensor", ranks, "[]"));
    assert_eq!(refuse(&[1, 1, 1, 24]), value("tensor", ranks, "[1, 1, 1, 24]"));
    assert_eq!(refuse(&[5, 5]), shape("tensor", "elements", 25, 24));
    assert_eq!(refuse(&[3, 7]), shape("tensor", "elements", 21, 24));
    assert_eq!(refuse(&[usize::MAX, 2]), SizeOverflow { operand: "tensor" });
}

#[test]
fn layers() {
    let weight = [0.5; 6];
    let new = |weight: &[f32], bias: Option<&[f32]>, sizes, options: LinearOptions| {
        Linear::new(weight, bias, sizes, &options).map(|layer| layer.outputs())
    };
    let options = LinearOptions::default();
    assert_eq!(new(&weight, None, [0, 3], options), Err(value("outputs", "at least 1", "0")));
    assert_eq!(new(&weight, None, [2, 0], options), Err(value("inputs", "at least 1", "0")));
    assert_eq!(new(&weight, None, [2, 4], options), Err(shape("weight", "elements", 8, 6)));
    assert_eq!(new(&weight, Some(&[0.0]), [2, 3], options), Err(shape("bias", "elements", 2, 1)));
    assert_eq!(new(&weight, None, [usize::MAX, 2], options), Err(SizeOverflow { operand: "weight" }));
    let none = LinearOptions { max_threads: Some(0), ..options };
    assert_eq!(new(&weight, None, [2, 3], none), Err(value("max_threads", "at least 1", "0")));

    let layer = Linear::new(&weight, None, [2, 3], &options).expect("valid parts");
    assert_eq!((layer.outputs(), layer.inputs(), layer.dtype()), (2, 3, DType::F32));
    let mut out = [7.0; 4];
    assert_eq!(layer.run(&[0.0; 5], &mut out), Err(shape("x", "elements", 3, 5)));
    assert_eq!(layer.run(&[0.0; 3], &mut out), Err(shape("out", "elements", 2, 4)));
    assert_eq!(out, [7.0; 4], "nothing is written");
    assert_eq!(layer.run(&[], &mut []), Ok(()), "no rows");
}

/// A call that fails: what it says, and that it writes nothing.
#[track_caller]
fn assert_refused(module: &MultiHeadAttention, inputs: &ModuleInputs<'_>, expected: AttentionError) {
    let [batch, q_len] = [2, 3];
    let mut out = vec![7.0; batch * q_len * 24];
    let mut scores = vec![7.0; batch * 4 * q_len * 5];
    let view = ViewMut::new(&mut scores, [batch, 4, q_len, 5]).expect("sized to its shape");
    let outputs = ModuleOutputs::new(&mut out).scores(Scores::new(ScoreStage::Softmax, view));
    let got = module.forward_into(inputs, outputs, &mut ModuleWorkspace::new());
    assert_eq!(got, Err(expected));
    assert!(out.iter().chain(&scores).all(|&x| x == 7.0), "nothing is written");
}

#[test]
fn calls() {
    let module = module(config());
    let data = numbers(1000, 2);
    let of = |batch: usize, tokens: usize| tensor(&data[..batch * tokens * 24], &[batch, tokens, 24]);
    let (q, k) = (of(2, 3), of(2, 5));
    let good = ModuleInputs::new(q, k, k);
    let refused = |inputs: ModuleInputs<'_>, expected| assert_refused(&module, &inputs, expected);
    refused(ModuleInputs::new(q, of(1, 5), of(1, 5)), shape("key", "batch", 2, 1));
    refused(ModuleInputs::new(q, k, of(1, 5)), shape("value", "batch", 2, 1));
    refused(ModuleInputs::new(q, k, of(2, 4)), shape("value", "kv_len", 5, 4));
    refused(ModuleInputs::new(of(2, 4), k, k), shape("out", "elements", 192, 144));
    refused(good.mask(Mask::causal()), QueryStartMissing { q_len: 3, kv_len: 5 });
    refused(good.mask(Mask::NONE.kv_lens(&[1])), shape("kv_lens", "entries", 2, 1));
    let bias = View::new(&data[..7], [1, 1, 1, 7]).expect("sized to its shape");
    refused(good.bias(bias), shape("bias", "kv_len", 5, 7));
    let bounds = [0, 1];
    let ragged = Ragged { q_bounds: &bounds, kv_bounds: &bounds };
    let mut out = vec![0.0; 2 * 3 * 24];
    let outputs = ModuleOutputs::new(&mut out);
    let got = module.forward_into(&good.ragged(ragged), outputs, &mut ModuleWorkspace::new());
    assert!(got.is_err(), "a ragged batch of 2");
    let mut wrong = vec![0.0; 10];
    let view = ViewMut::new(&mut wrong, [1, 1, 2, 5]).expect("sized to its shape");
    let outputs = ModuleOutputs::new(&mut out).scores(Scores::new(ScoreStage::Softmax, view));
    let got = module.forward_into(&good, outputs, &mut ModuleWorkspace::new());
    assert_eq!(got, Err(shape("scores", "batch", 2, 1)));

    let (module, prefix) = (crate::errors::module(AttentionConfig { causal: true, ..config() }), [2]);
    let inputs = good.mask(Mask::prefix_lm(&prefix)).q_start(QueryStart::TopLeft);
    let got = module.forward(&inputs).expect_err("a prefix against a causal configuration");
    assert!(matches!(got, Conflict { operand: "mask.prefix_lm", other: "causal", .. }), "{got}");
}

/// Caches of another module, and sizes of 0.
#[test]
fn caches_and_nothing() {
    let module = module(config());
    let data = numbers(1000, 3);
    let of = |batch: usize, tokens: usize| tensor(&data[..batch * tokens * 24], &[batch, tokens, 24]);
    let mut workspace = ModuleWorkspace::new();
    let other = crate::errors::module(AttentionConfig { kv_heads: Some(2), ..config() });
    let cache = other.project_kv(of(2, 5), of(2, 5), 0, &mut workspace).expect("room for what there is");
    let inputs = ModuleInputs::cached(of(2, 3), &cache);
    assert_eq!(module.forward(&inputs), Err(shape("k", "kv_heads", 4, 2)));
    let inputs = ModuleInputs::cached(of(1, 3), &cache);
    assert_eq!(other.forward(&inputs), Err(shape("k", "batch", 1, 2)));

    for [batch, q_len, kv_len] in [[0, 3, 5], [2, 0, 5], [2, 3, 0], [0, 0, 0], [1, 0, 0]] {
        let (q, k) = (of(batch, q_len), of(batch, kv_len));
        let (out, scores) =
            module.forward_with_scores(&ModuleInputs::new(q, k, k)).expect("nothing is allowed");
        assert_eq!((out.len(), scores.len()), (batch * q_len * 24, batch * 4 * q_len * kv_len));
        assert!(out.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn activations_at_levels() {
    for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
        let mut values = [1.0];
        assert_eq!(Activation::Relu.apply(level, &mut values), Err(LevelUnavailable { level: level.name() }));
        assert_eq!(values, [1.0]);
    }
    for level in Level::available() {
        let mut values = [-1.0, f32::NAN, 2.0];
        Activation::Relu.apply(level, &mut values).expect("an available level");
        assert!(values[0] == 0.0 && values[1].is_nan() && values[2] == 2.0);
    }
}
