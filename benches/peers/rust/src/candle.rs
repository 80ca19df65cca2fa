//! candle: its flash attention for CPUs, and the matrix products around a softmax that its models use.

use crate::{Call, Empty, Library, Outcome, Request};
use candle_core::{DType, Device, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use half::{bf16, f16};
use std::hint::black_box;

pub(crate) const LIBRARY: Library = Library {
    package: "candle-nn",
    routes: &["flash_attn", "matmul"],
    prepare: |request| Ok(Box::new(Attention::new(request)?)),
    empty: |_: &Empty| Ok(Box::new(Negate(Tensor::new(&[1f32], &Device::Cpu)?))),
};

struct Attention {
    qkv: [Tensor; 3],
    scale: f32,
    kind: Kind,
}

enum Kind {
    /// Operands are `[batch, tokens, heads, head_dim]`.
    Flash(AttnMask),
    /// Operands are `[batch, heads, tokens, head_dim]`, with as many KV heads as query heads.
    Matmul(Option<Tensor>),
}

impl Attention {
    fn new(request: &Request) -> Outcome<Self> {
        let dtype = match request.dtype.as_str() {
            "f32" => DType::F32,
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            other => return Err(format!("no dtype {other}").into()),
        };
        let flash = request.route == "flash_attn";
        let shapes = [request.q_shape(), request.kv_shape(), request.kv_shape()];
        let mut qkv = Vec::new();
        for (data, shape) in request.read()?.into_iter().zip(shapes) {
            let tensor = Tensor::from_vec(data, &shape, &Device::Cpu)?.to_dtype(dtype)?;
            let tensor = if flash { tensor.transpose(1, 2)? } else { repeat(&tensor, request.case[1])? };
            qkv.push(tensor.contiguous()?);
        }
        let kind = match (flash, request.causal()) {
            (true, true) => Kind::Flash(AttnMask::causal()),
            (true, false) => Kind::Flash(AttnMask::None),
            (false, true) => Kind::Matmul(Some(causal(request)?.to_dtype(dtype)?)),
            (false, false) => Kind::Matmul(None),
        };
        let qkv = qkv.try_into().expect("three tensors");
        Ok(Self { qkv, scale: request.scale(), kind })
    }

    fn attend(&self) -> candle_core::Result<Tensor> {
        let [q, k, v] = &self.qkv;
        match &self.kind {
            Kind::Flash(mask) => {
                let flash = match q.dtype() {
                    DType::F16 => flash_attn::<f16>,
                    DType::BF16 => flash_attn::<bf16>,
                    _ => flash_attn::<f32>,
                };
                flash(q, k, v, self.scale, mask.clone(), None, None)
            }
            Kind::Matmul(mask) => {
                let scores = (q * f64::from(self.scale))?.matmul(&k.t()?)?;
                let scores = match mask {
                    Some(mask) => scores.broadcast_add(mask)?,
                    None => scores,
                };
                candle_nn::ops::softmax_last_dim(&scores)?.matmul(v)
            }
        }
    }
}

impl Call for Attention {
    fn run(&self) -> Outcome<()> {
        black_box(self.attend()?);
        Ok(())
    }

    fn output(&self) -> Outcome<Vec<f32>> {
        Ok(self.attend()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

/// Each head as often as `heads` asks for; not timed, as a cache could hold it so.
fn repeat(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (batch, own, tokens, dim) = tensor.dims4()?;
    let tensor = tensor.unsqueeze(2)?.broadcast_as((batch, own, heads / own, tokens, dim))?;
    tensor.reshape((batch, heads, tokens, dim))
}

fn causal(request: &Request) -> candle_core::Result<Tensor> {
    let [_, _, _, q_len, kv_len, ..] = request.case;
    let allows = |row: usize, key: usize| if key <= row { 0.0 } else { f32::NEG_INFINITY };
    let mask: Vec<f32> = (0..q_len).flat_map(|row| (0..kv_len).map(move |key| allows(row, key))).collect();
    Tensor::from_vec(mask, (q_len, kv_len), &Device::Cpu)
}

struct Negate(Tensor);

impl Call for Negate {
    fn run(&self) -> Outcome<()> {
        black_box(self.0.neg()?);
        Ok(())
    }

    fn output(&self) -> Outcome<Vec<f32>> {
        Ok(self.0.neg()?.to_vec1()?)
    }
}
