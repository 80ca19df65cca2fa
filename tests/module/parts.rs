//! Parts of modules' tests.

#[path = "../common/numbers.rs"]
mod generator;

pub(crate) use generator::numbers;

use lucid_attention::module::*;

/// Glorot weights with biases and a layer norm that do something.
pub(crate) fn lively_weights(config: &AttentionConfig, dims: InputDims, seed: u64) -> ModuleWeights {
    let mut weights = ModuleWeights::glorot(config, dims, seed).expect("a valid configuration");
    let ModuleWeights { query, key, value, output, layer_norm } = &mut weights;
    for (index, dense) in [query, key, value, output].into_iter().enumerate() {
        if let Some(bias) = &mut dense.bias {
            *bias = numbers(bias.len(), seed + index as u64);
        }
    }
    if let Some(norm) = layer_norm {
        norm.gamma = numbers(norm.gamma.len(), seed + 5).iter().map(|x| 1.0 + 0.5 * x).collect();
        norm.beta = numbers(norm.beta.len(), seed + 6);
    }
    weights
}

/// A tensor of these axes.
pub(crate) fn tensor<'a>(data: &'a [f32], shape: &[usize]) -> Tensor<'a> {
    Tensor::new(data, shape).expect("sized to its shape")
}
