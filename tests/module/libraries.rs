//! Keras, PyTorch and BERT on shared weights: within 1e-5 of what the libraries computed, and with tensors by the names
//! that the libraries gave them. `data/generate.py` made the files.

use crate::{module_at, tensor};
use lucid_attention::module::*;
use lucid_attention::{Level, Mask};
use safetensors::SafeTensors;
use serde_json::Value;

/// What the module promises of all three libraries, which compute in `f32` as well.
const TOLERANCE: f32 = 1e-5;

/// A tensor of a file.
fn read(file: &SafeTensors<'_>, name: &str) -> Option<(Vec<f32>, Vec<usize>)> {
    let tensor = file.tensor(name).ok()?;
    let numbers =
        tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4 bytes")));
    Some((numbers.collect(), tensor.shape().to_vec()))
}

/// The fields that the cases set.
fn config(fields: &Value) -> AttentionConfig {
    let size = |name: &str| fields.get(name).map(|value| value.as_u64().expect("a size") as usize);
    let flag =
        |name: &str, default| fields.get(name).map_or(default, |value| value.as_bool().expect("a flag"));
    let default = AttentionConfig::default();
    let activation = fields.get("activation").map(|name| {
        Activation::ALL.into_iter().find(|a| Some(a.name()) == name.as_str()).expect("a Keras activation")
    });
    let epsilon = fields.get("layer_norm_epsilon").map(|value| value.as_f64().expect("a number") as f32);
    AttentionConfig {
        num_heads: size("num_heads").unwrap_or(default.num_heads),
        key_dim: size("key_dim").unwrap_or(default.key_dim),
        value_dim: size("value_dim"),
        kv_heads: size("kv_heads"),
        output_dim: size("output_dim"),
        use_bias: flag("use_bias", true),
        use_layer_norm: flag("use_layer_norm", true),
        use_residual: flag("use_residual", true),
        causal: flag("causal", false),
        activation,
        layer_norm_epsilon: epsilon.unwrap_or(default.layer_norm_epsilon),
        ..default
    }
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: sizes");
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= TOLERANCE, "{what}: off by {worst:e}");
}

/// Runs all cases of a file, at every level. Returns how many there were.
fn check(bytes: &[u8], naming: Naming) -> usize {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let (_, metadata) = SafeTensors::read_metadata(bytes).expect("metadata");
    let cases = &metadata.metadata().as_ref().expect("metadata")["cases"];
    let cases: Vec<Value> = serde_json::from_str(cases).expect("a list of cases");
    let tensors: Vec<_> = file
        .names()
        .into_iter()
        .map(|name| {
            let (data, shape) = read(&file, name).expect("a name of the file");
            NamedTensor { name: name.to_owned(), shape, data }
        })
        .collect();
    for (index, case) in cases.iter().enumerate() {
        let config = config(&case["config"]);
        let prefix = format!("{index}.");
        let weights =
            ModuleWeights::from_tensors(&config, naming, &prefix, &tensors).expect("the library's tensors");
        let query = read(&file, &format!("{prefix}in.query")).expect("a query");
        let key = read(&file, &format!("{prefix}in.key"));
        let key = key.as_ref().unwrap_or(&query);
        let value = read(&file, &format!("{prefix}in.value"));
        let value = value.as_ref().unwrap_or(key);
        let [q, k, v] = [&query, key, value].map(|(data, shape)| tensor(data, shape));
        let kv_lens: Option<Vec<usize>> = case["mask"]["kv_lens"]
            .as_array()
            .map(|lens| lens.iter().map(|len| len.as_u64().expect("a length") as usize).collect());
        let mask = kv_lens.as_ref().map_or(Mask::NONE, |lens| Mask::NONE.kv_lens(lens));
        let inputs = ModuleInputs::new(q, k, v).mask(mask);
        let (out, _) = read(&file, &format!("{prefix}out")).expect("an output");
        for level in Level::available() {
            let what = format!("{naming:?} case {index}, {}, {level}", case["name"]);
            let module = module_at(&config, &weights, level);
            let (got, scores) = module.forward_with_scores(&inputs).expect("a valid call");
            assert_close(&got, &out, &what);
            if let Some((expected, _)) = read(&file, &format!("{prefix}scores")) {
                assert_close(&scores, &expected, &format!("{what}: scores"));
            }
        }
    }
    cases.len()
}

#[test]
fn keras() {
    assert_eq!(check(include_bytes!("data/keras.safetensors"), Naming::Keras), 17);
}

#[test]
fn pytorch() {
    assert_eq!(check(include_bytes!("data/torch.safetensors"), Naming::PyTorch), 10);
}

#[test]
fn bert() {
    assert_eq!(check(include_bytes!("data/bert.safetensors"), Naming::Bert), 4);
}

/// The same weights through the crate's own reader of files.
#[cfg(feature = "safetensors")]
#[test]
fn files_are_read_as_slices_are() {
    let bytes = include_bytes!("data/torch.safetensors");
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let config = AttentionConfig {
        num_heads: 3,
        key_dim: 6,
        use_layer_norm: false,
        use_residual: false,
        ..AttentionConfig::default()
    };
    let weights = ModuleWeights::from_safetensors(&config, Naming::PyTorch, "0.", &file).expect("case 0");
    let (stacked, _) = read(&file, "0.in_proj_weight").expect("a tensor of case 0");
    assert_eq!([weights.query.weight, weights.key.weight, weights.value.weight].concat(), stacked);
}
