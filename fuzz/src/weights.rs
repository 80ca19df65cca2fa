//! Files of weights: any bytes, and whole files with a few bytes changed.

use crate::Tally;
use arbitrary::{Result, Unstructured};
use half::{bf16, f16};
use lucid_attention::module::{
    AttentionConfig, DenseWeights, InputDims, ModuleWeights, MultiHeadAttention, Naming,
};
use lucid_attention::{AttentionError, DType, Element, View};
use safetensors::SafeTensors;

const NAMINGS: [Naming; 3] = [Naming::Keras, Naming::PyTorch, Naming::Bert];

pub fn weights(data: &[u8], tally: &mut Tally) {
    let input = &mut Unstructured::new(data);
    let Ok((config, bytes, written)) = file(input) else { return };
    let file = match SafeTensors::deserialize(&bytes) {
        Ok(file) => file,
        Err(error) => return assert!(written.is_none(), "a whole header is refused: {error}"),
    };
    for naming in NAMINGS {
        for prefix in ["", "a."] {
            let read = ModuleWeights::from_safetensors(&config, naming, prefix, &file);
            if let Some(written) = &written {
                let own = (naming, prefix) == (written.naming, written.prefix);
                assert_eq!(
                    read.is_ok(),
                    own,
                    "{naming:?}, prefix \"{prefix}\": {read:?} of {written:?}, {config:?}"
                );
                tally.refused += u64::from(!own);
            }
            match read {
                Ok(weights) => {
                    check(&config, naming, &weights, tally);
                    if let Some(Written { weights: Some(original), .. }) = &written {
                        same(&weights, original, tally, &format!("{naming:?}: written and read"));
                    }
                }
                Err(error) => says_why(&error),
            }
        }
        match DenseWeights::from_safetensors(naming, "output", &file) {
            Ok(dense) => {
                let saved = dense.to_safetensors(naming, "output").expect("of a size that was read");
                let file = SafeTensors::deserialize(&saved).expect("as it was written");
                let read = DenseWeights::from_safetensors(naming, "output", &file).expect("as it was saved");
                tally.same += dense.weight.len() as u64;
                assert_eq!(bits(&dense.weight), bits(&read.weight), "{naming:?}");
            }
            Err(error) => says_why(&error),
        }
    }
    for (_, tensor) in file.tensors() {
        view::<f32>(&tensor);
        view::<half::f16>(&tensor);
        view::<half::bf16>(&tensor);
    }
}

/// What a file with a whole header holds.
#[derive(Debug)]
struct Written {
    naming: Naming,
    prefix: &'static str,
    /// If no number was changed.
    weights: Option<ModuleWeights>,
}

/// A configuration and the bytes of a file: as they come, or of its own weights with a few bytes changed.
fn file(input: &mut Unstructured<'_>) -> Result<(AttentionConfig, Vec<u8>, Option<Written>)> {
    let kv_heads = input.int_in_range(1..=2)?;
    let config = AttentionConfig {
        num_heads: kv_heads * input.int_in_range(1..=2)?,
        kv_heads: Some(kv_heads),
        key_dim: input.int_in_range(1..=3)?,
        value_dim: if input.arbitrary()? { Some(input.int_in_range(1..=3)?) } else { None },
        use_bias: input.arbitrary()?,
        use_layer_norm: input.arbitrary()?,
        use_residual: false,
        weights_dtype: *input.choose(&[DType::F32, DType::F16, DType::Bf16])?,
        ..AttentionConfig::default()
    };
    if input.ratio(1, 4)? {
        let rest = input.bytes(input.len())?;
        return Ok((config, rest.to_vec(), None));
    }
    let [query, key, value] =
        [input.int_in_range(1..=4)?, input.int_in_range(1..=4)?, input.int_in_range(1..=4)?];
    let dims = if input.arbitrary()? { InputDims::all(query) } else { InputDims { query, key, value } };
    let (naming, prefix) = (*input.choose(&NAMINGS)?, *input.choose(&["", "a."])?);
    let weights = ModuleWeights::glorot(&config, dims, 1).expect("small sizes");
    let mut file = weights.to_safetensors(&config, naming, prefix).expect("small sizes");
    let header = 8 + u64::from_le_bytes(*file.first_chunk().expect("a length")) as usize;
    let numbers_only = input.arbitrary()?;
    let original = file.clone();
    while !input.is_empty() {
        let first = if numbers_only { header } else { 0 };
        let at = input.int_in_range(first..=file.len() - 1)?;
        file[at] = input.arbitrary()?;
    }
    let weights = (file == original).then_some(weights);
    let written = (file[..header] == original[..header]).then_some(Written { naming, prefix, weights });
    Ok((config, file, written))
}

/// What was read makes a module, and is what is read after saving.
fn check(config: &AttentionConfig, naming: Naming, weights: &ModuleWeights, tally: &mut Tally) {
    // Stored as halves, some become infinite.
    match MultiHeadAttention::new(config.clone(), weights) {
        Ok(_) => assert!(are_finite(config.weights_dtype, weights), "weights that were read for it"),
        Err(error) if are_finite(config.weights_dtype, weights) => panic!("weights that were read: {error}"),
        Err(error) => says_why(&error),
    }
    let saved = match weights.to_safetensors(config, naming, "b.") {
        Ok(saved) => saved,
        Err(error) => return says_why(&error),
    };
    let file = SafeTensors::deserialize(&saved).expect("as it was written");
    let read = ModuleWeights::from_safetensors(config, naming, "b.", &file).expect("as it was saved");
    same(&read, weights, tally, &format!("{naming:?}: saved and read"));
}

/// Whether all weights are finite in a type.
fn are_finite(dtype: DType, weights: &ModuleWeights) -> bool {
    let ModuleWeights { query, key, value, output, .. } = weights;
    let mut all = [query, key, value, output].into_iter().flat_map(|dense| &dense.weight);
    all.all(|&x| match dtype {
        DType::F32 => x.is_finite(),
        DType::F16 => f16::from_f32(x).is_finite(),
        _ => bf16::from_f32(x).is_finite(),
    })
}

/// Asserts that two layers have the same numbers.
fn same(got: &ModuleWeights, expected: &ModuleWeights, tally: &mut Tally, what: &str) {
    let parts = |weights: &ModuleWeights| {
        let ModuleWeights { query, key, value, output, layer_norm } = weights;
        let dense = [query, key, value, output]
            .map(|dense| (bits(&dense.weight), dense.bias.as_deref().map(bits), dense.outputs, dense.inputs));
        (dense, layer_norm.as_ref().map(|norm| (bits(&norm.gamma), bits(&norm.beta))))
    };
    let expected = parts(expected);
    tally.same += expected.0.iter().map(|(weight, ..)| weight.len() as u64).sum::<u64>();
    assert_eq!(parts(got), expected, "{what}");
}

/// A view of a tensor has its shape and numbers, or there is an error that says why not.
fn view<T: Element>(tensor: &safetensors::tensor::TensorView<'_>) {
    match View::<T>::try_from(tensor) {
        Ok(view) => {
            let size: usize = view.shape().iter().product();
            assert_eq!(size * T::DTYPE.bytes(), tensor.data().len(), "all of {:?}", tensor.shape());
            let last = view.shape().map(|size| size.saturating_sub(1));
            assert_eq!(view.get(last).is_some(), size > 0, "the last element of {:?}", tensor.shape());
        }
        Err(error) => says_why(&error),
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

fn says_why(error: &AttentionError) {
    assert!(error.to_string().contains(": "), "\"{error}\" names what is wrong");
}
