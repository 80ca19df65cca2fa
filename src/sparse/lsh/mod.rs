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
//! # Why bits, and not positions
//!
//! Masks go by original positions, which slots do not tell. Kernels could take lists of positions and ask, pair by pair, what
//! is asked in `visit.rs`; but whether a pair is allowed depends on more than two positions (the chunks of both tokens in all
//! rounds before, buckets, and whether a token sees anybody), each tile would ask again for every group of rows, and each
//! kernel would have a second kind of mask. Bits are asked for once, a few vector instructions for 64 pairs, and kernels know
//! them already. They take a bit for each pair that chunks make possible, and another in the layout while it is made: `chunk / 2`
//! bytes for each token and round, 32 at chunks of 64, beside 768 of gathered queries, keys and values of 64 dimensions.
//! Positions and the chunks of all rounds would take `4 (rounds + 1)`.
//!
//! Costs `2 rounds c` keys for each query, plus hashing and the bits: fewer operations than attention of all from some `4 rounds c`
//! tokens on, but slower than it for some thousands. It is meant for models trained with it. All stages are shared out over the
//! current pool: hashing and layouts by heads, sorting by heads and rounds, bits by rows of chunks, gathering and merging by
//! rows.

mod attend;
mod hash;
mod order;
mod spread;
mod visit;

pub use attend::LshOutput;
pub use hash::Rotations;

use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::isa::Level;
use crate::parallel::check_max_threads;
use crate::view::View;

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
/// let buckets = lsh.buckets(&rotations, x)?;
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
    /// Tokens of a chunk; of a larger one than there are tokens, all.
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
    /// The instruction set; [`Level::detect`] if not given.
    pub level: Option<Level>,
    /// The most tasks that run side by side; the size of the current pool if not given.
    pub max_threads: Option<usize>,
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
            level: None,
            max_threads: None,
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

    /// The buckets that rotations give tokens `x`: [`Rotations::buckets`] on the level and the threads of these choices.
    ///
    /// # Errors
    /// As [`Rotations::buckets`]; or the rotations are for another number of rounds or buckets.
    pub fn buckets<T: Element>(
        &self,
        rotations: &Rotations,
        x: View<'_, T>,
    ) -> Result<Vec<u32>, AttentionError> {
        self.validate()?;
        let [rounds, buckets] = rotations.sizes();
        check_size("rotations", "rounds", self.rounds, rounds)?;
        check_size("rotations", "buckets", self.buckets, buckets)?;
        rotations.buckets_on(x, Level::chosen(self.level)?, self.max_threads.unwrap_or(usize::MAX))
    }

    fn validate(&self) -> Result<(), AttentionError> {
        for (operand, size) in [("rounds", self.rounds), ("chunk", self.chunk)] {
            if size == 0 {
                return Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() });
            }
        }
        hash::check_buckets(self.buckets)?;
        check_max_threads(self.max_threads)?;
        if !(self.norm_epsilon >= 0.0 && self.norm_epsilon.is_finite()) {
            let (expected, got) = ("a number from 0 on", self.norm_epsilon.to_string());
            return Err(AttentionError::Value { operand: "norm_epsilon", expected, got });
        }
        crate::exact::call::check_scale(self.scale)
    }
}
