//! What a call reads.

use crate::cancel::CancelToken;
use crate::dropout::Dropout;
use crate::element::Element;
use crate::mask::Mask;
use crate::panels::KeyPanels;
use crate::view::{AnyView, View};

/// Where the queries stand among the keys: the position of a sequence's first query.
///
/// Positions decide causal masks, windows, prefixes, documents and ALiBi; nothing is aligned by itself. With as many
/// queries as keys the default is [`TopLeft`](QueryStart::TopLeft); otherwise it has to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryStart<'a> {
    /// Query 0 stands at key 0.
    TopLeft,
    /// The last query stands at the last valid key: `kv_len - q_len`, negative when there are more queries than
    /// keys (the leading rows then see no key under a causal mask).
    BottomRight,
    /// Query 0 stands here, in all sequences.
    At(i64),
    /// Query 0 of sequence `s` stands at entry `s`.
    PerSequence(&'a [i64]),
}

/// A ragged batch: sequences of different lengths packed one after another along the token axis of views whose batch
/// is 1. Sequence `s` has queries `q_bounds[s]..q_bounds[s + 1]` and keys `kv_bounds[s]..kv_bounds[s + 1]`; both its
/// query and its key positions count from its own first key.
///
/// Per-sequence arguments (key lengths, prefixes, query starts) and dense masks and biases, whose batch axis then is
/// the sequence and whose rows and keys count within it, are indexed by `s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ragged<'a> {
    /// Cumulative query counts, from 0: one more entry than sequences.
    pub q_bounds: &'a [usize],
    /// Cumulative key counts, from 0: as many entries.
    pub kv_bounds: &'a [usize],
}

/// The keys: rows as they come, or panels as [`KeyPanels`] keeps them.
#[derive(Debug)]
pub enum Keys<'a, T: Element> {
    /// `[batch, kv_heads, kv_len, head_dim]`.
    Rows(View<'a, T>),
    /// The same, held in panels of 64 keys.
    Panels(&'a KeyPanels<T>),
}

impl<T: Element> Clone for Keys<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Element> Copy for Keys<'_, T> {}

impl<T: Element> Keys<'_, T> {
    /// `[batch, kv_heads, kv_len, head_dim]`.
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Keys::Rows(view) => view.shape(),
            Keys::Panels(panels) => panels.shape(),
        }
    }

    /// How many keys after a head's first the next head begins, if it is a whole number.
    pub(crate) fn keys_per_head(&self) -> Option<usize> {
        match self {
            Keys::Rows(view) => view.rows_per_head(),
            Keys::Panels(panels) => Some(panels.capacity()),
        }
    }
}

impl<'a, T: Element> From<View<'a, T>> for Keys<'a, T> {
    fn from(view: View<'a, T>) -> Self {
        Keys::Rows(view)
    }
}

impl<'a, T: Element> From<&'a KeyPanels<T>> for Keys<'a, T> {
    fn from(panels: &'a KeyPanels<T>) -> Self {
        Keys::Panels(panels)
    }
}

/// What a call reads: operands and everything that shapes the scores.
///
/// Per query head `h` with KV head `g = h / (q_heads / kv_heads)`, for query `i` and key `j`:
///
/// ```text
/// s = scale * sum_d q[h, i, d] * k[g, j, d]
/// s = softcap * tanh(s / softcap)                       if softcap
/// s = s - alibi[h] * |q_pos - k_pos| + bias[h, i, j]    if alibi, bias
/// s = -inf                                              where the mask or a bias of -inf removes the key
/// p = exp(s) / (sum_j exp(s) + exp(sinks[h]))           the sink only if given
/// p = p / (1 - rate) or 0                               if dropout, which comes after all but the output
/// out[h, i] = sum_j p[j] * v[g, j]                      over the keys left; +0 if there is none
/// ```
#[derive(Debug)]
pub struct Inputs<'a, Q, T: Element> {
    pub(crate) q: View<'a, Q>,
    pub(crate) k: Keys<'a, T>,
    pub(crate) v: View<'a, T>,
    pub(crate) mask: Mask<'a>,
    pub(crate) q_start: Option<QueryStart<'a>>,
    pub(crate) ragged: Option<Ragged<'a>>,
    pub(crate) scale: Option<f32>,
    pub(crate) softcap: Option<f32>,
    pub(crate) alibi: Option<&'a [f32]>,
    pub(crate) bias: Option<AnyView<'a>>,
    pub(crate) sinks: Option<&'a [f32]>,
    pub(crate) dropout: Option<Dropout>,
    pub(crate) cancel: Option<&'a CancelToken>,
    /// Whether the pool's workers have just been at work.
    pub(crate) awake: bool,
}

impl<Q, T: Element> Clone for Inputs<'_, Q, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<Q, T: Element> Copy for Inputs<'_, Q, T> {}

impl<'a, Q: Element, T: Element> Inputs<'a, Q, T> {
    /// Queries `[batch, q_heads, q_len, head_dim]`, keys `[batch, kv_heads, kv_len, head_dim]` (a [`View`] or
    /// [`KeyPanels`]) and values `[batch, kv_heads, kv_len, v_dim]`; no mask, scale `1 / sqrt(head_dim)`.
    pub fn new(q: View<'a, Q>, k: impl Into<Keys<'a, T>>, v: View<'a, T>) -> Self {
        Self {
            q,
            k: k.into(),
            v,
            mask: Mask::NONE,
            q_start: None,
            ragged: None,
            scale: None,
            softcap: None,
            alibi: None,
            bias: None,
            sinks: None,
            dropout: None,
            cancel: None,
            awake: false,
        }
    }

    /// Which keys each query may attend.
    pub fn mask(mut self, mask: Mask<'a>) -> Self {
        self.mask = mask;
        self
    }

    /// Where the queries stand.
    pub fn q_start(mut self, q_start: QueryStart<'a>) -> Self {
        self.q_start = Some(q_start);
        self
    }

    /// The token axes hold several sequences.
    pub fn ragged(mut self, ragged: Ragged<'a>) -> Self {
        self.ragged = Some(ragged);
        self
    }

    /// The factor of the scores, from -2.3e38 to 2.3e38; `1 / sqrt(head_dim)` if not given.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Caps the scores smoothly at ±`softcap`, from 1e-30 to 1e30.
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// ALiBi: subtracts `slopes[q_head] * |q_pos - k_pos|`. See [`alibi_slopes`](crate::alibi_slopes) for the
    /// slopes of the paper.
    pub fn alibi(mut self, slopes: &'a [f32]) -> Self {
        self.alibi = Some(slopes);
        self
    }

    /// Adds a dense bias to the scaled, capped scores. Shape `[batch, q_heads, q_len, kv_len]`, stored as f32, f16
    /// or bf16; an axis of size 1 repeats. -inf removes the key, as a mask does.
    ///
    /// A large negative number does not: below -2.36e38 (the lowest number of `f32` or `bf16`, which some frameworks
    /// mask with, is) the biased score overflows to a weight of 0, and a row of nothing but such keys is NaN, not
    /// empty. Such masks are to be given as -inf, or as a [`Mask`].
    pub fn bias(mut self, bias: impl Into<AnyView<'a>>) -> Self {
        self.bias = Some(bias.into());
        self
    }

    /// One logit per query head that joins the denominator and nothing else: not scaled, not capped, without a
    /// value. Not part of a returned LSE.
    pub fn sinks(mut self, sinks: &'a [f32]) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Drops probabilities, for training: from the output only, not from LSE, returned probabilities or metrics. What is
    /// dropped depends on the sequence's index: a row has other bits in another place of the batch, by this option alone.
    pub fn dropout(mut self, dropout: Dropout) -> Self {
        self.dropout = Some(dropout);
        self
    }

    /// Stops the call when the token is stopped: see [`AttentionError::Cancelled`](crate::AttentionError::Cancelled).
    pub fn cancel(mut self, token: &'a CancelToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// The queries.
    pub fn q(&self) -> View<'a, Q> {
        self.q
    }

    /// The keys.
    pub fn k(&self) -> Keys<'a, T> {
        self.k
    }

    /// The values.
    pub fn v(&self) -> View<'a, T> {
        self.v
    }

    /// The shape of the output: `[batch, q_heads, q_len, v_dim]`.
    pub fn output_shape(&self) -> [usize; 4] {
        let [batch, q_heads, q_len, _] = self.q.shape();
        [batch, q_heads, q_len, self.v.shape()[3]]
    }
}
