//! Weights by everybody's names: what is saved reads back, and every tensor that does not fit is named.

use crate::{assert_bits, lively_weights, numbers, tensor};
use lucid_attention::AttentionError;
use lucid_attention::module::*;

const NAMINGS: [Naming; 3] = [Naming::Keras, Naming::PyTorch, Naming::Bert];

/// Configurations whose tensors differ in shape.
fn configs() -> Vec<(AttentionConfig, InputDims)> {
    let base = AttentionConfig { num_heads: 4, key_dim: 6, ..AttentionConfig::default() };
    vec![
        (base.clone(), InputDims::all(24)),
        (AttentionConfig { value_dim: Some(5), ..base.clone() }, InputDims { query: 24, key: 20, value: 12 }),
        (AttentionConfig { kv_heads: Some(2), use_bias: false, ..base.clone() }, InputDims::all(10)),
        (
            AttentionConfig { output_dim: Some(7), use_residual: false, use_layer_norm: false, ..base },
            InputDims { query: 9, key: 9, value: 11 },
        ),
    ]
}

#[test]
fn round_trips() {
    for (config, dims) in configs() {
        let weights = lively_weights(&config, dims, 1);
        for naming in NAMINGS {
            let saved = weights.to_tensors(&config, naming, "a.b/").expect("its own configuration");
            assert!(saved.iter().all(|tensor| tensor.name.starts_with("a.b/")));
            let read = ModuleWeights::from_tensors(&config, naming, "a.b/", &saved).expect("what was saved");
            assert_eq!(read, weights, "{naming:?} of {config:?}");
            #[cfg(feature = "safetensors")]
            {
                let bytes = weights.to_safetensors(&config, naming, "x").expect("its own configuration");
                let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
                let read =
                    ModuleWeights::from_safetensors(&config, naming, "x", &file).expect("what was saved");
                assert_eq!(read, weights, "{naming:?} of {config:?} in a file");
            }
        }
    }
}

/// Files of 16-bit numbers read as what they hold; other types are refused by name.
#[cfg(feature = "safetensors")]
#[test]
fn types_of_files() {
    use half::{bf16, f16};
    use safetensors::tensor::{Dtype, TensorView};
    let (config, dims) = configs().swap_remove(0);
    let weights = lively_weights(&config, dims, 1);
    let saved = weights.to_tensors(&config, Naming::Bert, "").expect("its own configuration");
    let read = |dtype, to_bytes: fn(f32) -> Vec<u8>| {
        let bytes: Vec<Vec<u8>> =
            saved.iter().map(|tensor| tensor.data.iter().flat_map(|&x| to_bytes(x)).collect()).collect();
        let views = saved.iter().zip(&bytes).map(|(tensor, bytes)| {
            (
                tensor.name.as_str(),
                TensorView::new(dtype, tensor.shape.clone(), bytes).expect("sized to its shape"),
            )
        });
        let file = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("tensors");
        let file = safetensors::SafeTensors::deserialize(&file).expect("a safetensors file");
        ModuleWeights::from_safetensors(&config, Naming::Bert, "", &file)
    };
    let rounded = |round: fn(f32) -> f32| weights.query.weight.iter().map(|&x| round(x)).collect::<Vec<_>>();
    let half = read(Dtype::F16, |x| f16::from_f32(x).to_le_bytes().to_vec()).expect("f16");
    assert_eq!(half.query.weight, rounded(|x| f16::from_f32(x).to_f32()));
    let brain = read(Dtype::BF16, |x| bf16::from_f32(x).to_le_bytes().to_vec()).expect("bf16");
    assert_eq!(brain.query.weight, rounded(|x| bf16::from_f32(x).to_f32()));
    let error = read(Dtype::F64, |x| f64::from(x).to_le_bytes().to_vec()).expect_err("f64");
    let name = "attention.self.query.weight".to_owned();
    assert_eq!(
        error,
        AttentionError::TensorType { name, expected: "f32, f16 or bf16", got: "F64".to_owned() }
    );
}

/// Each tensor of each naming, left out and misshapen.
#[test]
fn tensors_that_do_not_fit() {
    for (config, dims) in configs() {
        let weights = lively_weights(&config, dims, 1);
        for naming in NAMINGS {
            let saved = weights.to_tensors(&config, naming, "p.").expect("its own configuration");
            for index in 0..saved.len() {
                let name = saved[index].name.clone();
                let mut missing = saved.clone();
                missing.remove(index);
                let read = ModuleWeights::from_tensors(&config, naming, "p.", &missing);
                // Without the stacked tensor of PyTorch the separate ones are looked for.
                let expected = name.replace("in_proj_weight", "q_proj_weight");
                assert_eq!(read.expect_err(&name), AttentionError::TensorMissing { name: expected });

                // An axis that is no input's, whose size would be the tensor's to say.
                let mut bent = saved.clone();
                let axis = if naming == Naming::Keras { bent[index].shape.len() - 1 } else { 0 };
                bent[index].shape[axis] += 1;
                bent[index].data = numbers(bent[index].shape.iter().product(), 2);
                let error = ModuleWeights::from_tensors(&config, naming, "p.", &bent).expect_err(&name);
                let message = error.to_string();
                let parts = [format!("\"{name}\": expected shape ["), format!("got {:?}", bent[index].shape)];
                assert!(parts.iter().all(|part| message.contains(part)), "{message}");

                let mut short = saved.clone();
                short[index].data.pop();
                let error = ModuleWeights::from_tensors(&config, naming, "p.", &short).expect_err(&name);
                assert!(error.to_string().contains(&name), "{error}");
            }
        }
    }
}

#[test]
fn tensors_that_nobody_uses() {
    let (config, dims) = configs().swap_remove(0);
    let saved =
        lively_weights(&config, dims, 1).to_tensors(&config, Naming::PyTorch, "").expect("valid parts");
    let without = AttentionConfig { use_bias: false, ..config.clone() };
    let error = ModuleWeights::from_tensors(&without, Naming::PyTorch, "", &saved).expect_err("a bias");
    let (name, reason) = ("in_proj_bias".to_owned(), "use_bias = false");
    assert_eq!(error, AttentionError::TensorUnexpected { name, reason });
    let mut extra = saved.clone();
    extra.push(NamedTensor { name: "bias_k".to_owned(), shape: vec![1, 1, 24], data: vec![0.5; 24] });
    let error = ModuleWeights::from_tensors(&config, Naming::PyTorch, "", &extra).expect_err("an extra key");
    assert!(matches!(&error, AttentionError::TensorUnexpected { name, .. } if name == "bias_k"), "{error}");
    let plain = AttentionConfig { use_layer_norm: false, ..config };
    let read =
        ModuleWeights::from_tensors(&plain, Naming::PyTorch, "", &saved).expect("a norm is left alone");
    assert_eq!(read.layer_norm, None);
}

/// The older names of BERT's layer norm.
#[test]
fn gamma_and_beta() {
    let (config, dims) = configs().swap_remove(0);
    let weights = lively_weights(&config, dims, 1);
    let mut saved = weights.to_tensors(&config, Naming::Bert, "").expect("valid parts");
    for tensor in &mut saved {
        tensor.name = tensor
            .name
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
    }
    assert_eq!(ModuleWeights::from_tensors(&config, Naming::Bert, "", &saved).expect("older names"), weights);
}

/// Glorot: the numbers of a seed, within their limit, and spread evenly.
#[test]
fn glorot() {
    let config = AttentionConfig::default();
    let [one, again, two] = [1, 1, 2].map(|seed| {
        ModuleWeights::glorot(&config, InputDims::all(128), seed).expect("a valid configuration")
    });
    assert_eq!(one, again, "the same seed");
    assert_ne!(one.query.weight, two.query.weight, "another seed");
    assert_ne!(one.query.weight, one.key.weight, "another tensor");
    let limit = (6.0f32 / 256.0).sqrt();
    let weight = &one.query.weight;
    assert!(weight.iter().all(|w| w.abs() <= limit), "within the limit");
    // The mean of n uniform numbers deviates by limit / sqrt(3 n), that of squares by limit^2 sqrt(4 / 45 n).
    let n = weight.len() as f64;
    let mean = weight.iter().map(|&w| f64::from(w)).sum::<f64>() / n;
    let squares = weight.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / n;
    let limit = f64::from(limit);
    assert!(mean.abs() < 5.0 * limit / (3.0 * n).sqrt(), "mean {mean}");
    assert!(
        (squares - limit.powi(2) / 3.0).abs() < 5.0 * limit.powi(2) * (4.0 / 45.0 / n).sqrt(),
        "squares {squares}"
    );
    // The first numbers, as computed by an independent implementation of the documented generator.
    let first: Vec<u32> = weight[..3].iter().map(|w| w.to_bits()).collect();
    assert_eq!(first, FIRST, "pinned numbers");
    assert!(one.query.bias.as_ref().is_some_and(|bias| bias.iter().all(|&b| b == 0.0)));
}

const FIRST: [u32; 3] = [0x3d9c_9c06, 0xbd20_0953, 0xbc9a_cd1c];

/// A module of saved and read weights computes the same bits.
#[test]
fn read_weights_work() {
    let (config, dims) = configs().swap_remove(1);
    let weights = lively_weights(&config, dims, 3);
    let saved = weights.to_tensors(&config, Naming::Keras, "").expect("valid parts");
    let read = ModuleWeights::from_tensors(&config, Naming::Keras, "", &saved).expect("what was saved");
    let [q, k, v] = [(5, 24), (7, 20), (7, 12)].map(|(rows, dim)| (numbers(rows * dim, 4), [rows, dim]));
    let inputs = ModuleInputs::new(tensor(&q.0, &q.1), tensor(&k.0, &k.1), tensor(&v.0, &v.1));
    let outs = [&weights, &read].map(|weights| {
        MultiHeadAttention::new(config.clone(), weights)
            .expect("valid parts")
            .forward(&inputs)
            .expect("a valid call")
    });
    assert_bits(&outs[0], &outs[1], "read weights");
}
