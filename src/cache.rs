//! [`KvCache`]: the keys and values of tokens seen so far, both where decode reads them fastest.
//!
//! ```text
//! keys      KeyPanels                                 lanes are keys, see `panels.rs`
//! values    [batch, kv_heads, capacity, v_dim]        lanes are dimensions: rows as they come
//! ```
//!
//! Decode is bound by memory, and both halves count: a large cache asks for huge pages under each.

use crate::element::Element;
use crate::error::AttentionError;
use crate::inputs::{Inputs, Keys};
use crate::panels::KeyPanels;
use crate::problem::Problem;
use crate::scratch::AlignedBuf;
use crate::view::View;
use half::{bf16, f16};

/// Keys and values of a batch of sequences, with room for a fixed number of tokens, to append to and attend over.
///
/// Keys lie in [`KeyPanels`], so attention over a cache has the same bits as over the rows it was filled from. All
/// sequences grow together, as in [`KeyPanels`].
///
/// ```
/// use lucid_attention::{KvCache, Problem, View, attention};
/// let problem = Problem::new(2, 4, 1, 100); // 2 heads of dimension 4, up to 100 tokens
/// let mut cache = KvCache::new(1, &problem)?;
/// let (k, v) = ([0.5f32; 24], [0.25f32; 24]);
/// cache.append(View::new(&k, [1, 2, 3, 4])?, View::new(&v, [1, 2, 3, 4])?)?; // 3 tokens
/// let q = [1.0f32; 8];
/// assert_eq!(attention(&cache.inputs(View::new(&q, [1, 2, 1, 4])?))?, [0.25; 8]);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct KvCache<T: Element> {
    keys: KeyPanels<T>,
    values: AlignedBuf<T>,
    v_dim: usize,
}

impl<T: Element> KvCache<T> {
    /// An empty cache for `batch` sequences of `problem`'s KV heads and dimensions, with room for its `max_kv_len`
    /// tokens (rounded up to a multiple of 64) in each.
    ///
    /// # Errors
    /// The problem's sizes contradict one another, the cache's size overflows, or the memory cannot be had.
    pub fn new(batch: usize, problem: &Problem) -> Result<Self, AttentionError> {
        problem.validate()?;
        let Problem { kv_heads, head_dim, v_dim, max_kv_len, .. } = *problem;
        let keys = KeyPanels::with_capacity(batch, kv_heads, head_dim, max_kv_len)?;
        let size = [kv_heads, keys.capacity(), v_dim].iter().try_fold(batch, |size, &n| size.checked_mul(n));
        let size = size.ok_or(AttentionError::SizeOverflow { operand: "values" })?;
        Ok(Self { keys, values: AlignedBuf::zeroed("values", size)?, v_dim })
    }

    /// Adds tokens to the end of every sequence: keys `[batch, kv_heads, tokens, head_dim]` and values
    /// `[batch, kv_heads, tokens, v_dim]`. Does not allocate.
    ///
    /// # Errors
    /// Shapes that do not fit the cache or each other, or there is no room; nothing is added then.
    pub fn append(&mut self, keys: View<'_, T>, values: View<'_, T>) -> Result<(), AttentionError> {
        self.append_as(keys, values, |x| x)
    }

    /// [`KvCache::append`] of tokens that are stored as something else.
    pub(crate) fn append_as<S: Element>(
        &mut self,
        keys: View<'_, S>,
        values: View<'_, S>,
        convert: impl Fn(S) -> T,
    ) -> Result<(), AttentionError> {
        let [batch, kv_heads, tokens, _] = keys.shape();
        values.check_shape("values", [batch, kv_heads, tokens, self.v_dim])?;
        values.check_unit_stride("values")?;
        let start = mutant!("appended-values-overwrite", self.keys.len(), 0);
        self.keys.append_as(keys, &convert)?;
        if self.values.is_empty() {
            return Ok(()); // sizes that are not 0 may be any: their products need not fit
        }
        let row = self.v_dim;
        for b in 0..batch {
            for h in 0..kv_heads {
                let first = ((b * kv_heads + h) * self.capacity() + start) * row;
                let rows = self.values[first..][..tokens * row].chunks_exact_mut(row);
                for (t, into) in rows.enumerate() {
                    let row = &values.from(b, h, t)[..row];
                    into.iter_mut().zip(row).for_each(|(into, &x)| *into = convert(x));
                }
            }
        }
        Ok(())
    }

    /// Queries (`[batch, q_heads, q_len, head_dim]`) against all that is held. Under a causal mask or a window say
    /// where they stand: [`QueryStart::BottomRight`](crate::QueryStart::BottomRight) for the last tokens.
    pub fn inputs<'a, Q: Element>(&'a self, q: View<'a, Q>) -> Inputs<'a, Q, T> {
        Inputs::new(q, &self.keys, self.values())
    }

    /// The keys.
    pub fn keys(&self) -> &KeyPanels<T> {
        &self.keys
    }

    /// The values, `[batch, kv_heads, len, v_dim]`.
    pub fn values(&self) -> View<'_, T> {
        let [batch, kv_heads, len, _] = self.keys.shape();
        let head = self.values.len().checked_div(batch * kv_heads).unwrap_or(0);
        let strides = [kv_heads * head, head, self.v_dim, 1];
        View::with_strides(&self.values, [batch, kv_heads, len, self.v_dim], strides)
            .expect("a cache never holds more tokens than it has room for")
    }

    /// Forgets all but the first `len` tokens; does nothing if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.keys.truncate(len);
    }

    /// Tokens held in each sequence.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Tokens there is room for in each sequence.
    pub fn capacity(&self) -> usize {
        self.keys.capacity()
    }
}

/// Keys and values as attention reads them, by what they are stored as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AnyKeysValues<'a> {
    F32(Keys<'a, f32>, View<'a, f32>),
    F16(Keys<'a, f16>, View<'a, f16>),
    Bf16(Keys<'a, bf16>, View<'a, bf16>),
}

/// Runs `$body` with `$k` and `$v` bound to the typed ones.
macro_rules! with_keys_values {
    ($any:expr, ($k:ident, $v:ident) => $body:expr) => {
        match $any {
            $crate::cache::AnyKeysValues::F32($k, $v) => $body,
            $crate::cache::AnyKeysValues::F16($k, $v) => $body,
            $crate::cache::AnyKeysValues::Bf16($k, $v) => $body,
        }
    };
}
pub(crate) use with_keys_values;

impl AnyKeysValues<'_> {
    pub(crate) fn kv_len(&self) -> usize {
        with_keys_values!(self, (k, _v) => k.shape()[2])
    }
}
