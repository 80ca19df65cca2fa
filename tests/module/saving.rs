//! Weights whose public fields contradict each other: saving refuses them by name, and nothing panics.

use crate::lively_weights;
use lucid_attention::AttentionError;
use lucid_attention::module::*;

const NAMINGS: [Naming; 3] = [Naming::Keras, Naming::PyTorch, Naming::Bert];

#[test]
fn layers() {
    let layer = |outputs, inputs, weight: usize, bias: Option<usize>| DenseWeights {
        weight: vec![0.5; weight],
        bias: bias.map(|bias| vec![0.5; bias]),
        outputs,
        inputs,
    };
    for naming in NAMINGS {
        let kernel = if naming == Naming::Keras { "p/kernel" } else { "p.weight" };
        for wrong in [
            layer(2, 3, 5, None),
            layer(2, 3, 7, Some(2)),
            layer(3, 2, 0, None),
            layer(0, 3, 0, None),
            layer(3, 0, 0, None),
            layer(0, 0, 0, Some(0)),
            layer(usize::MAX, 2, usize::MAX.wrapping_mul(2) % 7, None),
        ] {
            let expected = format!("[{}, {}]", wrong.outputs, wrong.inputs);
            let got = vec![wrong.weight.len()];
            let error = AttentionError::TensorShape { name: kernel.to_owned(), expected, got };
            assert_eq!(wrong.to_tensors(naming, "p"), Err(error.clone()));
            #[cfg(feature = "safetensors")]
            assert_eq!(wrong.to_safetensors(naming, "p"), Err(error));
        }
        let bias = if naming == Naming::Keras { "p/bias" } else { "p.bias" };
        for got in [0, 1, 3] {
            let error =
                layer(2, 3, 6, Some(got)).to_tensors(naming, "p").expect_err("a bias of another size");
            let (name, expected) = (bias.to_owned(), "[2]".to_owned());
            assert_eq!(error, AttentionError::TensorShape { name, expected, got: vec![got] });
        }
    }
}

/// Every field of a module's weights, with a size of nothing, of one too many, and absurd.
#[test]
fn modules() {
    let config = AttentionConfig { num_heads: 2, key_dim: 4, ..AttentionConfig::default() };
    let good = lively_weights(&config, InputDims::all(8), 1);
    let dense: [fn(&mut ModuleWeights) -> &mut DenseWeights; 4] =
        [|w| &mut w.query, |w| &mut w.key, |w| &mut w.value, |w| &mut w.output];
    let mut wrong: Vec<ModuleWeights> = Vec::new();
    let mut spoil = |change: &dyn Fn(&mut ModuleWeights)| {
        let mut weights = good.clone();
        change(&mut weights);
        wrong.push(weights);
    };
    for of in dense {
        for size in [0, 1, 9, usize::MAX] {
            spoil(&|weights| of(weights).outputs = size);
            spoil(&|weights| of(weights).inputs = size);
        }
        spoil(&|weights| of(weights).weight.clear());
        spoil(&|weights| of(weights).weight.push(0.5));
        spoil(&|weights| of(weights).bias = None);
        spoil(&|weights| of(weights).bias = Some(Vec::new()));
        spoil(&|weights| of(weights).bias = Some(vec![0.5; 9]));
    }
    let norm = |gamma, beta| NormWeights { gamma: vec![1.0; gamma], beta: vec![0.0; beta] };
    for norm in [None, Some(norm(0, 8)), Some(norm(8, 0)), Some(norm(9, 8)), Some(norm(8, 9))] {
        spoil(&|weights| weights.layer_norm = norm.clone());
    }
    for weights in &wrong {
        for naming in NAMINGS {
            let error =
                weights.to_tensors(&config, naming, "").expect_err("fields that contradict each other");
            assert!(
                matches!(
                    error,
                    AttentionError::Shape { .. }
                        | AttentionError::Value { .. }
                        | AttentionError::SizeOverflow { .. }
                ),
                "{error}"
            );
        }
        MultiHeadAttention::new(config.clone(), weights).expect_err("fields that contradict each other");
    }

    // A bias of no elements is none that could be saved, even where none is expected.
    let without = AttentionConfig { use_bias: false, ..config };
    let mut bare = lively_weights(&without, InputDims::all(8), 1);
    bare.key.bias = Some(Vec::new());
    let (expected, got) = ("none, without use_bias", "one of no elements".to_owned());
    let error = AttentionError::Value { operand: "key bias", expected, got };
    assert_eq!(bare.to_tensors(&without, Naming::Keras, ""), Err(error.clone()));
    assert_eq!(MultiHeadAttention::new(without, &bare).expect_err("an empty bias"), error);
}

/// Whether a tensor is there does not depend on how it is stored.
#[cfg(feature = "safetensors")]
#[test]
fn a_file_is_asked_for_names_only() {
    use safetensors::tensor::{Dtype, TensorView};
    let config = AttentionConfig { num_heads: 2, key_dim: 4, use_bias: false, ..AttentionConfig::default() };
    let weights = lively_weights(&config, InputDims::all(8), 1);
    let saved = weights.to_tensors(&config, Naming::PyTorch, "").expect("its own configuration");
    let data: Vec<Vec<u8>> =
        saved.iter().map(|t| t.data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let wide = [0; 8 * 24];
    let bias = TensorView::new(Dtype::F64, vec![24], &wide).expect("sized to its shape");
    let views = saved.iter().zip(&data).map(|(t, bytes)| {
        (t.name.as_str(), TensorView::new(Dtype::F32, t.shape.clone(), bytes).expect("sized to its shape"))
    });
    let views: Vec<_> = views.chain([("in_proj_bias", bias)]).collect();
    let bytes = safetensors::serialize(views, None).expect("tensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a file");
    let error = ModuleWeights::from_safetensors(&config, Naming::PyTorch, "", &file).expect_err("a bias");
    let (name, reason) = ("in_proj_bias".to_owned(), "use_bias = false");
    assert_eq!(error, AttentionError::TensorUnexpected { name, reason });
}
