//! Few queries over many tokens: the key projection absorbed into the queries, the value projection applied after the sum.
//!
//! ```text
//! (W_q x + b_q) . (W_k y_j + b_k)  =  (W_k^T q) . y_j  +  q . b_k         the last term is the same for all keys of a row
//! sum_j p_j (W_v y_j + b_v)        =  W_v (sum_j p_j y_j)  +  b_v         as the probabilities of a row sum to 1
//!
//! q [tokens, heads * key_dim] ─> gathered [heads, tokens, key_dim] ─> W_k^T of each head ─> u [heads, tokens, key_input_dim]
//! u over the tokens as they are, one KV head for all ─> [heads, tokens, value_input_dim] ─> W_v of each head ─> context
//! ```
//!
//! No token is projected: `q_len heads (key_dim + value_dim)` rows of weights meet a vector each, in place of
//! `kv_len kv_heads (key_dim + value_dim)`. The probabilities are those of the direct path but for rounding: a logit is a sum
//! over `key_input_dim` products where it was one over `key_dim`, and its error is bounded by as many rounding errors of
//! `sum_d |u_d y_d|`, which is larger than `sum_d |q_d k_d|` where projections cancel.
//!
//! A row without keys has a context of 0, without `b_v`. Dropped probabilities do not sum to 1, and softcap bends the term
//! that is dropped here: such calls go directly.

use super::linear::{Dense, Linear, LinearOptions};
use super::projections::Projections;
use super::weights::{InputDims, ModuleWeights};
use super::workspace::{Attention, Buffer, reserve};
use crate::error::AttentionError;
use crate::outputs::Outputs;
use crate::parallel::{self, MAX_PARTS, Spread};
use crate::problem::Problem;
use crate::tile;
use crate::view::{View, ViewMut};

/// The projections of a module, the other way round.
#[derive(Debug)]
pub(crate) struct Absorbed {
    /// `W_k^T` of each KV head: `key_dim` to `dims.key`.
    keys: Vec<Linear>,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    dims: InputDims,
    spread: Spread,
}

/// What a call that absorbs needs.
#[derive(Debug, Default)]
pub(crate) struct AbsorbedScratch {
    /// Plans of attention over tokens as they are.
    pub(crate) attention: Attention,
    /// Queries by heads, and as they are absorbed; values before and after projection; log-sums.
    buffers: [Buffer; 5],
}

impl AbsorbedScratch {
    pub(crate) fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::bytes).sum::<usize>() + self.attention.bytes()
    }
}

impl Absorbed {
    /// Of `heads` query heads; `None` where the kernels cannot project a head's values by themselves.
    ///
    /// Holds the key weights once more, transposed.
    pub(crate) fn new(
        weights: &ModuleWeights,
        [heads, key_dim, value_dim]: [usize; 3],
        options: &LinearOptions,
    ) -> Result<Option<Self>, AttentionError> {
        if !Projections::has_value_heads(value_dim) {
            return Ok(None);
        }
        let dims = weights.input_dims();
        let transposed = |head: &[f32]| {
            let mut columns = Vec::with_capacity(head.len());
            (0..dims.key).for_each(|d| columns.extend(head[d..].iter().step_by(dims.key)));
            let dense = Dense { weight: &columns, bias: None, outputs: dims.key };
            Linear::stacked([dense], key_dim, options).map(|(layer, _)| layer)
        };
        let keys =
            weights.key.weight.chunks_exact(key_dim * dims.key).map(transposed).collect::<Result<_, _>>()?;
        let spread = Spread::new(options.max_threads, options.spread_from_microseconds);
        Ok(Some(Self { keys, heads, key_dim, value_dim, dims, spread }))
    }

    /// Whether a call is less work this way. Looks at the tensors' lengths and at sizes only, so bits do not depend on
    /// what else is in a batch of these lengths.
    pub(crate) fn pays(&self, [q_len, kv_len]: [usize; 2]) -> bool {
        let [q_len, kv_len] = [q_len, kv_len].map(|len| len as f64);
        let Self { heads, key_dim, value_dim, dims, .. } = self;
        let [heads, kv_heads] = [*heads, self.keys.len()].map(|heads| heads as f64);
        let [key_dim, value_dim] = [*key_dim, *value_dim].map(|dim| dim as f64);
        let [key_input, value_input] = [dims.key, dims.value].map(|dim| dim as f64);
        let matrices = key_dim * key_input + value_dim * value_input;
        let pairs = q_len * kv_len * heads;
        let direct = [kv_len * kv_heads * matrices, pairs * (key_dim + value_dim)];
        let absorbed = [q_len * heads * matrices, pairs * (key_input + value_input)];
        tile::absorbs(direct, absorbed)
    }

    /// That of attention over tokens as they are, in a call of `direct`.
    pub(crate) fn problem(&self, direct: &Problem) -> Problem {
        Problem { kv_heads: 1, head_dim: self.dims.key, v_dim: self.dims.value, ..*direct }
    }

    /// From projected queries `q`, `[batch, q_len, heads * key_dim]`, to `context`, `[batch, q_len, heads * value_dim]`.
    ///
    /// `attend` is attention of absorbed queries over tokens as they are, one KV head for all.
    pub(crate) fn run(
        &self,
        projections: &Projections,
        q: &[f32],
        [batch, q_len]: [usize; 2],
        scratch: &mut AbsorbedScratch,
        context: &mut [f32],
        attend: impl FnOnce(View<'_, f32>, Outputs<'_, f32>, &mut Attention) -> Result<(), AttentionError>,
    ) -> Result<(), AttentionError> {
        let Self { heads, key_dim, value_dim, dims, .. } = *self;
        let AbsorbedScratch { attention, buffers: [gathered, queries, sums, projected, lse] } = scratch;
        let tokens = batch * q_len;
        let room = |buffer, dim| {
            let size = tokens.checked_mul(heads).and_then(|rows| rows.checked_mul(dim));
            reserve(buffer, size.ok_or(AttentionError::SizeOverflow { operand: "module workspace" })?)
        };
        // By heads, so that a head's tokens meet its weights together. A single token lies so already.
        let strides = |dim: usize| [q_len * dim, tokens * dim, dim, 1];
        let q = if tokens == 1 {
            q
        } else {
            let gathered = room(gathered, key_dim)?;
            exchange(q, gathered, [tokens, heads, key_dim]);
            gathered
        };
        let queries = room(queries, dims.key)?;
        self.each_head((q, key_dim), (&mut *queries, dims.key), |head, x, out, spread| {
            self.keys[head].run_columns(x, 0..dims.key, out, spread);
        });
        let queries = View::with_strides(queries, [batch, heads, q_len, dims.key], strides(dims.key))?;

        let (sums, lse) = (room(sums, dims.value)?, room(lse, 1)?);
        let out = ViewMut::with_strides(sums, [batch, heads, q_len, dims.value], strides(dims.value))?;
        attend(queries, Outputs::new(out).lse(lse), attention)?;

        let project = |out: &mut [f32]| {
            self.each_head((sums, dims.value), (out, value_dim), |head, x, out, spread| {
                let (layer, columns) = projections.value_head(head, value_dim);
                layer.run_columns(x, columns, out, spread);
            });
        };
        if tokens == 1 {
            project(context);
        } else {
            let projected = room(projected, value_dim)?;
            project(projected);
            exchange(projected, context, [heads, tokens, value_dim]);
        }
        let none = mutant!("absorbed-row-without-keys-has-a-bias", f32::NEG_INFINITY, f32::NAN);
        for (row, _) in lse.iter().enumerate().filter(|&(_, &lse)| lse == none) {
            let (sequence, head, query) = (row / (heads * q_len), row / q_len % heads, row % q_len);
            context[((sequence * q_len + query) * heads + head) * value_dim..][..value_dim].fill(0.0);
        }
        Ok(())
    }

    /// Runs `product` for every KV head on rows of its query heads: of `x`, `[heads, tokens, inputs]`, to those of `out`. Heads
    /// are shared out to workers; where they are fewer, each product is.
    fn each_head(
        &self,
        (x, inputs): (&[f32], usize),
        (out, outputs): (&mut [f32], usize),
        product: impl Fn(usize, &[f32], &mut [f32], Spread) + Sync,
    ) {
        if out.is_empty() {
            return;
        }
        let kv_heads = self.keys.len();
        let rows = x.len() / inputs / kv_heads;
        let weights = (kv_heads * inputs * outputs) as f64;
        let work = [rows as f64 * weights, weights * size_of::<f32>() as f64];
        let workers = self.spread.workers(tile::nanoseconds(work));
        let by_heads = workers <= kv_heads;
        let (workers, each) = if by_heads { (workers, self.spread.over(1)) } else { (1, self.spread) };
        let heads_per_part = kv_heads.div_ceil(MAX_PARTS);
        let parts = out.chunks_mut(heads_per_part * rows * outputs).enumerate();
        parallel::for_each_part(parts, workers, &|(part, out): (usize, &mut [f32])| {
            for (head, out) in out.chunks_exact_mut(rows * outputs).enumerate() {
                let head = part * heads_per_part + head;
                product(head, &x[head * rows * inputs..][..rows * inputs], out, each);
            }
        });
    }
}

/// `[a, b, dim]` to `[b, a, dim]`.
fn exchange(from: &[f32], into: &mut [f32], [a, b, dim]: [usize; 3]) {
    for (row, into) in into.chunks_exact_mut(dim).enumerate() {
        into.copy_from_slice(&from[(row % a * b + row / a) * dim..][..dim]);
    }
}
