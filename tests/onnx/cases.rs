//! Reads the cases that `tests/data/generate_onnx.py` wrote.

use crate::operator::{Attention, AttnMask, Attributes, Tensor};
use lucid_attention::Element;
use serde_json::Value;

/// All cases and the tensors that they name.
pub(crate) struct Cases {
    root: Value,
}

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    tensors: &'a Value,
    json: &'a Value,
}

impl Cases {
    pub(crate) fn load() -> Self {
        let text = include_str!("../data/onnx_attention.json");
        Self { root: serde_json::from_str(text).expect("the generator writes JSON") }
    }

    /// The cases of `set`: `package` or `text`.
    pub(crate) fn of(&self, set: &str) -> Vec<Case<'_>> {
        let cases = self.root["cases"].as_array().expect("a list of cases");
        let case = |json| Case { tensors: &self.root["tensors"], json };
        cases.iter().filter(|json| json["set"] == set).map(case).collect()
    }
}

impl Case<'_> {
    pub(crate) fn name(&self) -> &str {
        self.json["name"].as_str().expect("a name")
    }

    pub(crate) fn opset(&self) -> i64 {
        self.json["opset"].as_i64().expect("an opset")
    }

    /// The storage type of Q, which is that of all operands: `f32`, `f16` or `bf16`.
    pub(crate) fn dtype(&self) -> &str {
        let (dtype, ..) = self.parts("inputs", "Q").expect("Q is always given");
        dtype
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<i64> {
        self.json["attributes"][name].as_i64()
    }

    fn real(&self, name: &str) -> Option<f32> {
        self.json["attributes"][name].as_f64().map(|x| x as f32)
    }

    /// Whether the case has this `input`.
    pub(crate) fn shape(&self, input: &str) -> Option<Vec<usize>> {
        self.parts("inputs", input).map(|(_, shape, _)| shape)
    }

    /// The storage type of `attn_mask`.
    pub(crate) fn mask_dtype(&self) -> Option<&str> {
        self.parts("inputs", "attn_mask").map(|(dtype, ..)| dtype)
    }

    /// A tensor of `group` (`inputs`, `outputs` or `wide`) in f32, exactly.
    pub(crate) fn numbers(&self, group: &str, name: &str) -> Option<Tensor<f32>> {
        let (dtype, shape, bytes) = self.parts(group, name)?;
        let data = match dtype {
            "f32" => bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
            "f16" => bytes.as_chunks().0.iter().map(|&x| half::f16::from_le_bytes(x).to_f32()).collect(),
            "bf16" => bytes.as_chunks().0.iter().map(|&x| half::bf16::from_le_bytes(x).to_f32()).collect(),
            "i64" => bytes.as_chunks().0.iter().map(|&x| i64::from_le_bytes(x) as f32).collect(),
            dtype => panic!("{}: {name} is {dtype}", self.name()),
        };
        Some(Tensor { shape, data })
    }

    /// The node and its inputs.
    pub(crate) fn attention<T: Element>(&self) -> Attention<T> {
        let operand = |name| {
            let Tensor { shape, data } = self.numbers("inputs", name)?;
            Some(Tensor { shape, data: data.into_iter().map(T::from_f32).collect() })
        };
        let heads = |name| self.attribute(name).map(|n| usize::try_from(n).expect("a number of heads"));
        Attention {
            opset: self.opset(),
            attributes: Attributes {
                is_causal: self.attribute("is_causal") == Some(1),
                kv_num_heads: heads("kv_num_heads"),
                left_window_size: self.attribute("left_window_size").unwrap_or(-1),
                q_num_heads: heads("q_num_heads"),
                qk_matmul_output_mode: self.attribute("qk_matmul_output_mode").unwrap_or(0),
                right_window_size: self.attribute("right_window_size").unwrap_or(-1),
                scale: self.real("scale"),
                softcap: self.real("softcap").unwrap_or(0.0),
            },
            q: operand("Q").expect("Q is always given"),
            k: operand("K").expect("K is always given"),
            v: operand("V").expect("V is always given"),
            attn_mask: match self.parts("inputs", "attn_mask") {
                Some(("bool", shape, bytes)) => {
                    let data = bytes.iter().map(|&byte| byte != 0).collect();
                    Some(AttnMask::Bool(Tensor { shape, data }))
                }
                _ => operand("attn_mask").map(AttnMask::Float),
            },
            past: operand("past_key").zip(operand("past_value")).map(|(key, value)| [key, value]),
            nonpad_kv_seqlen: self
                .numbers("inputs", "nonpad_kv_seqlen")
                .map(|lens| lens.data.into_iter().map(|len| len as usize).collect()),
        }
    }

    /// Storage type, shape and bytes of a tensor, if the case has it.
    fn parts(&self, group: &str, name: &str) -> Option<(&str, Vec<usize>, Vec<u8>)> {
        let index = usize::try_from(self.json[group][name].as_u64()?).expect("an index");
        let tensor = &self.tensors[index];
        let sizes = tensor["shape"].as_array().expect("a shape").iter();
        let shape = sizes.map(|n| usize::try_from(n.as_u64().expect("a size")).expect("a size")).collect();
        let bytes = decode_base64(tensor["base64"].as_str().expect("bytes"));
        Some((tensor["dtype"].as_str().expect("a type"), shape, bytes))
    }
}

/// RFC 4648, padded.
fn decode_base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("{:?} is not base64", char::from(c)),
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.as_bytes().chunks(4) {
        let digits = group.iter().filter(|&&c| c != b'=');
        let count = digits.clone().count();
        let bits = digits.fold(0u32, |bits, &c| bits << 6 | u32::from(value(c))) << (6 * (4 - count));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..count]);
    }
    bytes
}
