//! What a module's call reads and what it writes.

use super::tensor::Tensor;
use crate::cache::{AnyKeysValues, KvCache};
use crate::cancel::CancelToken;
use crate::element::Element;
use crate::error::AttentionError;
use crate::inputs::{QueryStart, Ragged};
use crate::mask::Mask;
use crate::metrics::Metrics;
use crate::outputs::{Scores, TopKeys};
use crate::view::AnyView;

/// What a call of a module reads.
///
/// Query, keys and values are tensors of one batch (a tensor without a batch axis is a batch of 1). Given as one tensor, as
/// in self-attention, they are repaired once and projected in one product.
#[derive(Clone, Copy, Debug)]
pub struct ModuleInputs<'a> {
    pub(crate) query: Tensor<'a>,
    pub(crate) keys: KeySource<'a>,
    pub(crate) mask: Mask<'a>,
    pub(crate) bias: Option<AnyView<'a>>,
    pub(crate) q_start: Option<QueryStart<'a>>,
    pub(crate) ragged: Option<Ragged<'a>>,
    pub(crate) logit_scale: Option<f32>,
    /// The seed of what training drops.
    pub(crate) training: Option<u64>,
    pub(crate) cancel: Option<&'a CancelToken>,
}

/// Where keys and values come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeySource<'a> {
    Tensors { key: Tensor<'a>, value: Tensor<'a> },
    Cache(AnyKeysValues<'a>),
}

impl<'a> ModuleInputs<'a> {
    /// `query` `[batch, q_len, query_dim]` over `key` `[batch, kv_len, key_dim]` and `value` `[batch, kv_len, value_dim]`,
    /// or fewer axes each.
    pub fn new(query: Tensor<'a>, key: Tensor<'a>, value: Tensor<'a>) -> Self {
        Self::of(query, KeySource::Tensors { key, value })
    }

    /// One tensor over itself.
    pub fn self_attention(tokens: Tensor<'a>) -> Self {
        Self::new(tokens, tokens, tokens)
    }

    /// `query` over keys and values that are projected already, by
    /// [`MultiHeadAttention::project_kv`](super::MultiHeadAttention::project_kv), and stored as `f32`, `f16` or `bf16`.
    pub fn cached<T: Element>(query: Tensor<'a>, cache: &'a KvCache<T>) -> Self {
        Self::of(query, KeySource::Cache(T::erase_cache(cache)))
    }

    fn of(query: Tensor<'a>, keys: KeySource<'a>) -> Self {
        Self {
            query,
            keys,
            mask: Mask::NONE,
            bias: None,
            q_start: None,
            ragged: None,
            logit_scale: None,
            training: None,
            cancel: None,
        }
    }

    /// Which keys each query may attend to, beside what the configuration says.
    pub fn mask(mut self, mask: Mask<'a>) -> Self {
        self.mask = mask;
        self
    }

    /// Adds to the scaled, capped scores, see [`Inputs::bias`](crate::Inputs::bias).
    pub fn bias(mut self, bias: impl Into<AnyView<'a>>) -> Self {
        self.bias = Some(bias.into());
        self
    }

    /// Where the queries stand among the keys, which masks by position need where there are not as many of both.
    pub fn q_start(mut self, q_start: QueryStart<'a>) -> Self {
        self.q_start = Some(q_start);
        self
    }

    /// The token axes, of a batch of 1, hold several sequences.
    pub fn ragged(mut self, ragged: Ragged<'a>) -> Self {
        self.ragged = Some(ragged);
        self
    }

    /// Multiplies the scores of this call, beside the configuration's scale and before softcap and bias: 1 over a
    /// temperature. The product of both is from -2.3e38 to 2.3e38.
    ///
    /// A query that is divided by the temperature instead gives other scores, as the projections have biases.
    pub fn logit_scale(mut self, logit_scale: f32) -> Self {
        self.logit_scale = Some(logit_scale);
        self
    }

    /// Drops probabilities at the configuration's rate, as training does: each call of a step with a seed of its own, and
    /// the same seed for what is dropped again. Returned probabilities and metrics are those before, as in Keras.
    pub fn training(mut self, seed: u64) -> Self {
        self.training = Some(seed);
        self
    }

    /// Stops the call when the token is stopped: it is asked when the call begins, in attention as
    /// [`Inputs::cancel`](crate::Inputs::cancel) says, and after it, but not while projections run. The error is
    /// [`AttentionError::Cancelled`](crate::AttentionError::Cancelled) with no row complete; `out` is as it was, the call counts
    /// in no metrics and no repairs, and what else it was to write is unspecified.
    pub fn cancel(mut self, token: &'a CancelToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// An error if the call is stopped; `rows` are those of its queries, of all heads.
    pub(crate) fn check_stopped(&self, rows: usize) -> Result<(), AttentionError> {
        match self.cancel {
            Some(token) if token.is_stopped() => Err(AttentionError::Cancelled { complete: 0, rows }),
            _ => Ok(()),
        }
    }
}

/// What a call of a module writes. Asking for scores, top keys or metrics changes no bit of `out`.
#[derive(Debug)]
pub struct ModuleOutputs<'a> {
    pub(crate) out: &'a mut [f32],
    pub(crate) scores: Option<Scores<'a>>,
    pub(crate) top_keys: Option<TopKeys<'a>>,
    pub(crate) metrics: Option<&'a mut Metrics>,
    /// Whether the module's running metrics and repairs take the call in.
    pub(crate) counted: bool,
}

impl<'a> ModuleOutputs<'a> {
    /// `out`: `[batch, q_len, output_dim]`, contiguous.
    pub fn new(out: &'a mut [f32]) -> Self {
        Self { out, scores: None, top_keys: None, metrics: None, counted: true }
    }

    /// Scores or probabilities at some stage, `[batch, heads, q_len, kv_len]`, for all heads and rows or some.
    pub fn scores(mut self, scores: Scores<'a>) -> Self {
        self.scores = Some(scores);
        self
    }

    /// The most probable keys of rows, `[batch, heads, q_len, k]`, for all heads and rows or some.
    pub fn top_keys(mut self, top_keys: TopKeys<'a>) -> Self {
        self.top_keys = Some(top_keys);
        self
    }

    /// Metrics of each row of each head, and totals. If the module keeps its own
    /// ([`ModuleOptions::metrics`](super::ModuleOptions::metrics)), these have to be of the same options.
    pub fn metrics(mut self, metrics: &'a mut Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }
}
