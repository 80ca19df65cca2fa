//! Layers of any configuration, against the definition in `f64` and its bound.

#[allow(dead_code, reason = "a part of what tests use")]
#[path = "../../tests/module/definition.rs"]
mod definition;
#[path = "../../tests/module/parts.rs"]
mod parts;

use crate::Tally;
use arbitrary::{Result, Unstructured};
use definition::Case;
use lucid_attention::DType;
use lucid_attention::module::{Activation, AttentionConfig, InputDims};

fn case(input: &mut Unstructured<'_>) -> Result<Case> {
    let size = |input: &mut Unstructured<'_>, most: usize| input.int_in_range(1..=most);
    let maybe = |input: &mut Unstructured<'_>, most: usize| -> Result<Option<usize>> {
        Ok(if input.arbitrary()? { Some(input.int_in_range(0..=most)?) } else { None })
    };
    let number =
        |input: &mut Unstructured<'_>| -> Result<f32> { Ok(f32::from(input.arbitrary::<u8>()?) / 255.0) };
    let kv_heads = size(input, 3)?;
    let use_residual = input.arbitrary()?;
    let self_attention = input.arbitrary()?;
    let config = AttentionConfig {
        num_heads: size(input, 3)? * kv_heads,
        kv_heads: Some(kv_heads),
        key_dim: size(input, 20)?,
        value_dim: if input.arbitrary()? { Some(size(input, 20)?) } else { None },
        use_bias: input.arbitrary()?,
        use_layer_norm: input.arbitrary()?,
        use_residual,
        causal: input.arbitrary()?,
        window_left: maybe(input, 4)?,
        window_right: maybe(input, 4)?,
        scale: if input.arbitrary()? { Some(number(input)? - 0.5) } else { None },
        softcap: if input.arbitrary()? { Some(0.5 + 4.0 * number(input)?) } else { None },
        activation: if input.arbitrary()? { Some(*input.choose(&Activation::ALL)?) } else { None },
        output_dim: if use_residual { None } else { Some(size(input, 40)?) },
        weights_dtype: *input.choose(&[DType::F32, DType::F16, DType::Bf16])?,
        ..AttentionConfig::default()
    };
    let query = size(input, 40)?;
    let dims = InputDims { query, key: size(input, 40)?, value: size(input, 40)? };
    let (batch, q_len) = (size(input, 3)?, size(input, 13)?);
    let kv_len = if self_attention { q_len } else { input.int_in_range(0..=13)? };
    let mut kv_lens = None;
    if input.arbitrary()? {
        let lens: Result<Vec<usize>> = (0..batch).map(|_| input.int_in_range(0..=kv_len)).collect();
        kv_lens = Some(lens?);
    }
    Ok(Case {
        config,
        dims: if self_attention { InputDims::all(query) } else { dims },
        batch,
        q_len,
        kv_len,
        self_attention,
        kv_lens,
        bias: input.arbitrary()?,
        q_start: input.int_in_range(-3..=5)?,
        always_project: input.arbitrary()?,
        seed: input.arbitrary::<u32>()?.into(),
    })
}

pub fn module(data: &[u8], tally: &mut Tally) {
    let Ok(case) = case(&mut Unstructured::new(data)) else { return };
    case.compare(&mut |what, [got, expected, bound]| tally.bound(got, expected, bound, what));
}
