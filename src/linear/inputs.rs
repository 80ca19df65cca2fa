//! What a call of linear attention reads.

use crate::error::{AttentionError, check_size};
use crate::problem::Problem;
use crate::view::{AnyView, View, with_any_view};

/// How fast older keys fade: `log γ`, at most 0.
#[derive(Clone, Copy, Debug)]
pub enum LogDecay<'a> {
    /// One for each KV head, `[kv_heads]`, the same for all tokens: RetNet's `ln(1 - 2^(-5 - h))`.
    PerHead(&'a [f32]),
    /// `[batch, kv_heads, kv_len, 1]`: the gate of a token fades all keys before it (simple GLA, Mamba-2).
    PerToken(View<'a, f32>),
}

/// What a call reads: queries, keys, values and what shapes the weights.
///
/// ```text
/// w[h, i, j] = φ(q[h, i]) · φ(k[g, j]) * exp(sum of log_decay over tokens j + 1 ..= i)       g = h / (q_heads / kv_heads)
/// out[h, i]  = sum_j w[h, i, j] v[g, j] / sum_j w[h, i, j]         over the keys that row i sees
/// ```
///
/// The division only if the plan normalises. A row that sees no key, or whose denominator is 0, is +0.
#[derive(Clone, Copy, Debug)]
pub struct LinearInputs<'a> {
    pub(crate) q: AnyView<'a>,
    pub(crate) k: AnyView<'a>,
    pub(crate) v: AnyView<'a>,
    pub(crate) causal: bool,
    pub(crate) kv_lens: Option<&'a [usize]>,
    pub(crate) log_decay: Option<LogDecay<'a>>,
}

impl<'a> LinearInputs<'a> {
    /// Queries `[batch, q_heads, q_len, head_dim]`, keys `[batch, kv_heads, kv_len, head_dim]` and values
    /// `[batch, kv_heads, kv_len, v_dim]`, each stored as it is; every row sees every key.
    pub fn new(q: impl Into<AnyView<'a>>, k: impl Into<AnyView<'a>>, v: impl Into<AnyView<'a>>) -> Self {
        Self { q: q.into(), k: k.into(), v: v.into(), causal: false, kv_lens: None, log_decay: None }
    }

    /// Row `i` sees keys `0..=i` only; there must be as many queries as keys.
    pub fn causal(self) -> Self {
        Self { causal: true, ..self }
    }

    /// How many keys of each sequence there are, `[batch]`; what lies beyond is not read.
    pub fn kv_lens(self, kv_lens: &'a [usize]) -> Self {
        Self { kv_lens: Some(kv_lens), ..self }
    }

    /// Fading keys, for causal calls with maps that are not exponential. At -inf, and wherever its
    /// exponential is 0 in `f32` (below -104), a gate is shut: a token and those after it see nothing of what came before
    /// it, not even NaN.
    pub fn log_decay(self, log_decay: LogDecay<'a>) -> Self {
        Self { log_decay: Some(log_decay), ..self }
    }

    /// How many keys a sequence has.
    pub(crate) fn keys_of(&self, sequence: usize) -> usize {
        self.kv_lens.map_or(self.k.shape()[2], |lens| lens[sequence])
    }

    /// Everything that does not depend on the kind of call.
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), AttentionError> {
        let Problem { q_heads, kv_heads, head_dim, v_dim, max_q_len, max_kv_len } = *problem;
        let [batch, heads, q_len, dim] = self.q.shape();
        check_size("q", "q_heads", q_heads, heads)?;
        check_size("q", "head_dim", head_dim, dim)?;
        let [k_batch, k_heads, kv_len, k_dim] = self.k.shape();
        check_size("k", "batch", batch, k_batch)?;
        check_size("k", "kv_heads", kv_heads, k_heads)?;
        check_size("k", "head_dim", head_dim, k_dim)?;
        let [v_batch, v_heads, v_len, values] = self.v.shape();
        check_size("v", "batch", batch, v_batch)?;
        check_size("v", "kv_heads", kv_heads, v_heads)?;
        check_size("v", "kv_len", kv_len, v_len)?;
        check_size("v", "v_dim", v_dim, values)?;
        for (operand, view) in [("q", self.q), ("k", self.k), ("v", self.v)] {
            with_any_view!(view, view => view.check_unit_stride(operand))?;
        }
        for (operand, axis, limit, got) in
            [("q", "q_len", max_q_len, q_len), ("k", "kv_len", max_kv_len, kv_len)]
        {
            if got > limit {
                return Err(AttentionError::TooLarge { operand, axis, limit, got });
            }
        }
        if let Some(lens) = self.kv_lens {
            check_size("kv_lens", "batch", batch, lens.len())?;
            if let Some(&got) = lens.iter().find(|&&len| len > kv_len) {
                let (operand, axis) = ("kv_lens", "kv_len");
                return Err(AttentionError::TooLarge { operand, axis, limit: kv_len, got });
            }
        }
        self.check_decay([batch, kv_heads, kv_len, 1])
    }

    /// What rows need beyond [`LinearInputs::check`].
    pub(crate) fn check_rows(&self) -> Result<(), AttentionError> {
        if self.causal {
            return check_size("q", "q_len", self.k.shape()[2], self.q.shape()[2]);
        }
        match self.log_decay {
            None => Ok(()),
            Some(_) => Err(AttentionError::Conflict {
                operand: "log_decay",
                other: "a call that is not causal",
                reason: "keys fade from row to row",
            }),
        }
    }

    fn check_decay(&self, shape: [usize; 4]) -> Result<(), AttentionError> {
        let check = |x: &f32| {
            let error = |operand, expected| AttentionError::Value { operand, expected, got: x.to_string() };
            if *x <= 0.0 { Ok(()) } else { Err(error("log_decay", "numbers of at most 0")) }
        };
        match self.log_decay {
            None => Ok(()),
            Some(LogDecay::PerHead(decays)) => {
                check_size("log_decay", "kv_heads", shape[1], decays.len())?;
                decays.iter().try_for_each(check)
            }
            Some(LogDecay::PerToken(view)) => {
                view.check_shape("log_decay", shape)?;
                let [batch, heads, ..] = shape;
                for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
                    (0..self.keys_of(b)).filter_map(|t| view.get([b, h, t, 0])).try_for_each(check)?;
                }
                Ok(())
            }
        }
    }
}
