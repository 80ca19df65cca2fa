//! A whole layer with residual and layer norm: `data` holds x `[batch, q_len, dim]`, the memory `[batch, kv_len, dim]` (absent
//! where `q_len == kv_len`, which is self-attention), `W_q`, `W_k`, `W_v` `[dim, heads * key_dim]` and `W_o`
//! `[heads * key_dim, dim]` (y = x W), and their biases; `out` gets `[batch, q_len, dim]`.

use crate::{Request, flag};
use lucid_attention::module::{
    AttentionConfig, DenseWeights, ModuleInputs, ModuleOutputs, ModuleWeights, ModuleWorkspace,
    MultiHeadAttention, NormWeights, Tensor,
};
use std::error::Error;

pub(crate) fn time(request: &Request, case: [usize; 6]) -> Result<Vec<f64>, Box<dyn Error>> {
    let [batch, q_len, kv_len, dim, heads, key_dim] = case;
    let (inner, is_self) = (heads * key_dim, q_len == kv_len);
    let memory_size = if is_self { 0 } else { batch * kv_len * dim };
    let matrix = dim * inner;
    let sizes = [batch * q_len * dim, memory_size, matrix, matrix, matrix, matrix, inner, inner, inner, dim];
    let [x, memory, wq, wk, wv, wo, bq, bk, bv, bo] = request.read::<f32, 10>(sizes)?;
    let weights = ModuleWeights {
        query: dense(&wq, bq, dim),
        key: dense(&wk, bk, dim),
        value: dense(&wv, bv, dim),
        output: dense(&wo, bo, inner),
        layer_norm: Some(NormWeights { gamma: vec![1.0; dim], beta: vec![0.0; dim] }),
    };
    let config = AttentionConfig { num_heads: heads, key_dim, ..AttentionConfig::default() };
    let module = MultiHeadAttention::new(config, &weights)?;

    let query = Tensor::new(&x, &[batch, q_len, dim])?;
    let memory = if is_self { query } else { Tensor::new(&memory, &[batch, kv_len, dim])? };
    let mut workspace = ModuleWorkspace::new();
    let cache = flag("LUCID_PANELS")
        .then(|| module.project_kv(memory, memory, kv_len, &mut workspace))
        .transpose()?;
    let inputs = match &cache {
        Some(cache) => ModuleInputs::cached(query, cache),
        None => ModuleInputs::new(query, memory, memory),
    };
    let mut out = vec![0.0; x.len()];
    let times =
        request.time(|| module.forward_into(&inputs, ModuleOutputs::new(&mut out), &mut workspace))?;
    request.write(&out)?;
    Ok(times)
}

/// A layer of `[inputs, outputs]` weights, which come transposed.
fn dense(weight: &[f32], bias: Vec<f32>, inputs: usize) -> DenseWeights {
    let outputs = bias.len();
    let transposed = (0..outputs).flat_map(|j| weight[j..].iter().step_by(outputs).copied());
    DenseWeights { weight: transposed.collect(), bias: Some(bias), outputs, inputs }
}
