//! The sizes a plan is made for.

use crate::element::Element;
use crate::error::AttentionError;
use crate::inputs::Inputs;

/// Heads, dimensions and the largest lengths: what a [`Plan`](crate::Plan) fixes.
///
/// Storage types, the batch, the mask and everything else that shapes scores are the call's: a plan's choices and
/// scratch do not depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Problem {
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads; divides `q_heads`. Query head `h` uses KV head `h / (q_heads / kv_heads)`.
    pub kv_heads: usize,
    /// Size of a query and of a key, at least 1.
    pub head_dim: usize,
    /// Size of a value.
    pub v_dim: usize,
    /// The most queries of a sequence in one call.
    pub max_q_len: usize,
    /// The most keys of a sequence in one call.
    pub max_kv_len: usize,
}

impl Problem {
    /// As many KV heads as query heads and values as large as keys; set the fields for anything else.
    pub fn new(heads: usize, head_dim: usize, max_q_len: usize, max_kv_len: usize) -> Self {
        Self { q_heads: heads, kv_heads: heads, head_dim, v_dim: head_dim, max_q_len, max_kv_len }
    }

    /// The problem that exactly fits some inputs.
    pub fn of<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>) -> Self {
        let [_, q_heads, max_q_len, head_dim] = inputs.q().shape();
        let [_, kv_heads, max_kv_len, _] = inputs.k().shape();
        Self { q_heads, kv_heads, head_dim, v_dim: inputs.v().shape()[3], max_q_len, max_kv_len }
    }

    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        self.q_heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// Multiply-adds, and bytes of keys and values, where each query head has `pairs` of a query and a key, and each KV
    /// head has `keys` whose numbers take `bytes` each.
    pub(crate) fn work(&self, pairs: f64, keys: f64, bytes: usize) -> [f64; 2] {
        let dims = self.head_dim as f64 + self.v_dim as f64;
        [pairs * self.q_heads as f64 * dims, keys * self.kv_heads as f64 * dims * bytes as f64]
    }

    /// The rules that sizes obey by themselves. Lengths are not bound by memory, since views may repeat what they have;
    /// below `isize::MAX` elements, positions fit an `i64` and indices of tiles do not overflow.
    pub(crate) fn validate(&self) -> Result<(), AttentionError> {
        if self.head_dim == 0 {
            return Err(AttentionError::Value {
                operand: "head_dim",
                expected: "at least 1",
                got: "0".to_owned(),
            });
        }
        let divides =
            if self.kv_heads == 0 { self.q_heads == 0 } else { self.q_heads.is_multiple_of(self.kv_heads) };
        if mutant!("heads-need-not-divide", !divides, false) {
            return Err(AttentionError::Value {
                operand: "q_heads",
                expected: "a multiple of kv_heads",
                got: format!("{} with kv_heads = {}", self.q_heads, self.kv_heads),
            });
        }
        let dim = self.head_dim.max(self.v_dim);
        let sizes = [
            ("queries", [self.q_heads, self.max_q_len, dim]),
            ("keys and values", [self.kv_heads, self.max_kv_len, dim]),
        ];
        for (operand, size) in sizes {
            // Of zeros and huge numbers the zeros come first: there is nothing then.
            let size = if size.contains(&0) { Some(0) } else { product(&size) };
            if size.is_none_or(|size| size > isize::MAX as usize) {
                return Err(AttentionError::SizeOverflow { operand });
            }
        }
        Ok(())
    }
}

fn product(sizes: &[usize]) -> Option<usize> {
    let times = |a: usize, &b: &usize| mutant!("sizes-wrap", a.checked_mul(b), Some(a.wrapping_mul(b)));
    sizes.iter().try_fold(1, times)
}
