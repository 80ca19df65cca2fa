//! LSH attention (Reformer, Kitaev et al. 2020, arXiv 2001.04451): queries that are keys, sorted into buckets of their likes.
//!
//! ```text
//! bucket_r(x) = argmax [x R_r; -x R_r]                     hash.rs      a random rotation for each round r
//! order_r     = stable sort of positions by bucket_r       order.rs     counting sort: equal buckets stay in order
//! chunks of c of the sorted tokens see themselves and the chunk before   visit.rs
//! pairs       = those, left by the mask on original positions, each in the first round that has it
//! out         = merge over rounds of softmax(scale q k' over the round's pairs) v          k' = k / |k|
//! ```
//!
//! It has no engine of its own: tokens are gathered into the order of their buckets, and a [`BlockMask`](super::BlockMask) over
//! that order says which chunks meet and, by the bits of its partial blocks, which pairs. A pair that several rounds have
//! counts once: the paper subtracts `ln N_ij` from its logit in each of the `N_ij` rounds, whose sum is the same as leaving it
//! to one of them.
//!
//! Costs `2 rounds c` keys for each query, plus hashing and the bits, which look at as many pairs one by one: fewer operations
//! than attention of all from some `4 rounds c` tokens on, but slower than it for some thousands. It is meant for models
//! trained with it.

mod attend;
mod hash;
mod order;
mod visit;

pub use attend::LshOutput;
pub use hash::Rotations;

use crate::error::AttentionError;

/// How LSH attention is done.
///
/// ```
/// use lucid_attention::sparse::{Lsh, Rotations};
/// use lucid_attention::{Mask, View};
///
/// let (heads, tokens, dim) = (2, 128, 16);
/// let x: Vec<f32> = (0..heads * tokens * dim).map(|i| (i as f32 * 0.37).sin()).collect();
/// let x = View::new(&x, [1, heads, tokens, dim])?;
/// let lsh = Lsh { rounds: 2, buckets: 8, ..Lsh::new(16) };
/// let rotations = Rotations::seeded(7, 1, dim, lsh.rounds, lsh.buckets)?;
/// let buckets = rotations.buckets(x)?;
/// let result = lsh.attention(x, x, &buckets, Mask::causal())?;
/// assert_eq!(result.out.len(), heads * tokens * dim);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Lsh {
    /// Rounds of hashing.
    pub rounds: usize,
    /// Buckets of a round; even.
    pub buckets: usize,
    /// Tokens of a chunk.
    pub chunk: usize,
    /// The factor of `q . k'`; 1 in the paper and in Trax.
    pub scale: f32,
    /// Keys are `k / sqrt(|k|^2 + head_dim * norm_epsilon)`; of zeros, zeros.
    pub norm_epsilon: f32,
    /// The first chunk of a round sees the last one of the round before, and the first of all the last of all, as the well-known
    /// codes have it; the paper's first chunk sees itself.
    pub wrap: bool,
    /// A pair counts in every round that has it, and twice where chunks of two rounds meet, as the well-known codes have it
    /// unless told otherwise; else once.
    pub duplicates: bool,
    /// Tokens of other buckets (of other rounds, all) in the same chunks are seen too.
    pub across_buckets: bool,
}

impl Lsh {
    /// The paper's, in chunks of `chunk`: one round, 2 buckets, scale 1.
    pub fn new(chunk: usize) -> Self {
        Self {
            rounds: 1,
            buckets: 2,
            chunk,
            scale: 1.0,
            norm_epsilon: 0.0,
            wrap: false,
            duplicates: false,
            across_buckets: true,
        }
    }

    /// As reformer-pytorch 1.4 does it by default: wrapped, with duplicates, and logits divided by `sqrt(head_dim)` besides.
    pub fn reformer_pytorch(chunk: usize, buckets: usize, rounds: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { rounds, buckets, scale, wrap: true, duplicates: true, ..Self::new(chunk) }
    }

    /// As Hugging Face's Reformer does it: wrapped, with duplicates, keys normalised with an epsilon of 1e-6.
    pub fn hugging_face(chunk: usize, buckets: usize, rounds: usize) -> Self {
        Self { rounds, buckets, norm_epsilon: 1e-6, wrap: true, duplicates: true, ..Self::new(chunk) }
    }

    fn validate(&self) -> Result<(), AttentionError> {
        for (operand, size) in [("rounds", self.rounds), ("chunk", self.chunk)] {
            if size == 0 {
                return Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() });
            }
        }
        hash::check_buckets(self.buckets)?;
        if !(self.norm_epsilon >= 0.0 && self.norm_epsilon.is_finite()) {
            let (expected, got) = ("a number from 0 on", self.norm_epsilon.to_string());
            return Err(AttentionError::Value { operand: "norm_epsilon", expected, got });
        }
        crate::exact::call::check_scale(self.scale)
    }
}
