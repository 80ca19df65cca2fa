//! [`KeyPanels`]: keys stored the way the kernels read them.
//!
//! ```text
//!                    64 keys wide
//!          d = 0   | k0[0]  k1[0]  ... k63[0] |       one panel: head_dim rows of 64 keys,
//!          d = 1   | k0[1]  k1[1]  ... k63[1] |       a key is a column
//!            ...   |                          |
//!          d = D-1 | k0[D-1] ...   k63[D-1]   |
//! memory: [batch, kv_heads, capacity / 64, head_dim, 64], layout version 1
//! ```
//!
//! A score kernel gives each vector lane a key and walks down `d`, so keys held like this stream from memory in order
//! and need no transposition; rows do. Values stay row-major: their lanes are `d`. A panel computes nothing; it
//! belongs to version 1 of the order of operations and is versioned with it.

use crate::element::Element;
use crate::error::AttentionError;
use crate::scratch::AlignedBuf;
use crate::view::View;

/// Keys in a panel, on every level.
pub(crate) const PANEL: usize = 64;

/// The keys of a batch of sequences, held in panels of 64, with room for a fixed number of tokens.
///
/// Attention over panels gives the same bits as attention over the rows they were built from, at the speed of memory
/// when there are few queries. All sequences grow together: a batch whose sequences have different lengths keeps one
/// `KeyPanels` per sequence, or is padded at its end ([`Mask::kv_lens`](crate::Mask::kv_lens)) and not appended to.
///
/// ```
/// use lucid_attention::{KeyPanels, View};
/// let keys = vec![0.5f32; 2 * 10 * 64]; // 2 heads, 10 tokens
/// let mut panels = KeyPanels::with_capacity(1, 2, 64, 1024)?;
/// panels.append(View::new(&keys, [1, 2, 10, 64])?)?;
/// assert_eq!(panels.len(), 10);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct KeyPanels<T: Element> {
    data: AlignedBuf<T>,
    batch: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

impl<T: Element> KeyPanels<T> {
    /// The version of the memory layout, that of the order of operations it belongs to.
    pub const LAYOUT_VERSION: u32 = 1;

    /// Empty panels with room for `capacity` tokens (rounded up to a multiple of 64) in each sequence.
    ///
    /// # Errors
    /// `head_dim` is 0, the size overflows, or the memory cannot be had.
    pub fn with_capacity(
        batch: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Result<Self, AttentionError> {
        if head_dim == 0 {
            return Err(AttentionError::Value {
                operand: "head_dim",
                expected: "at least 1",
                got: "0".to_owned(),
            });
        }
        let overflow = AttentionError::SizeOverflow { operand: "key panels" };
        let rounded = capacity.checked_next_multiple_of(PANEL);
        let Some((capacity, size)) = rounded.and_then(|capacity| {
            let size = batch.checked_mul(kv_heads)?.checked_mul(head_dim)?.checked_mul(capacity)?;
            Some((capacity, size))
        }) else {
            return Err(overflow);
        };
        let data = AlignedBuf::zeroed("key panels", size)?;
        Ok(Self { data, batch, kv_heads, head_dim, capacity, len: 0 })
    }

    /// Panels that hold `keys` (`[batch, kv_heads, tokens, head_dim]`) and have room for `capacity` tokens, at least
    /// as many as there are.
    ///
    /// # Errors
    /// As [`KeyPanels::with_capacity`] and [`KeyPanels::append`].
    pub fn from_rows(keys: View<'_, T>, capacity: usize) -> Result<Self, AttentionError> {
        let [batch, kv_heads, tokens, head_dim] = keys.shape();
        let mut panels = Self::with_capacity(batch, kv_heads, head_dim, capacity.max(tokens))?;
        panels.append(keys)?;
        Ok(panels)
    }

    /// Adds tokens to the end of every sequence. Does not allocate.
    ///
    /// # Errors
    /// `keys` has another batch, number of heads or dimension, or there is no room; nothing is added then.
    pub fn append(&mut self, keys: View<'_, T>) -> Result<(), AttentionError> {
        self.append_as(keys, |x| x)
    }

    /// [`KeyPanels::append`] of keys that are stored as something else.
    pub(crate) fn append_as<S: Element>(
        &mut self,
        keys: View<'_, S>,
        convert: impl Fn(S) -> T,
    ) -> Result<(), AttentionError> {
        keys.check_axis("keys", 0, self.batch)?;
        keys.check_axis("keys", 1, self.kv_heads)?;
        keys.check_axis("keys", 3, self.head_dim)?;
        keys.check_unit_stride("keys")?;
        let tokens = keys.shape()[2];
        let room = self.capacity - self.len;
        if tokens > room {
            return Err(AttentionError::TooLarge {
                operand: "keys",
                axis: "tokens",
                limit: room,
                got: tokens,
            });
        }
        let (head_dim, start) = (self.head_dim, self.len);
        self.len += tokens;
        if self.data.is_empty() {
            return Ok(()); // the sizes that are not 0 may be any: their products need not fit
        }
        let panel = head_dim * PANEL;
        for b in 0..self.batch {
            for h in 0..self.kv_heads {
                let base = (b * self.kv_heads + h) * self.capacity * head_dim;
                for t in 0..tokens {
                    let row = &keys.from(b, h, t)[..head_dim];
                    let key = mutant!("appended-keys-overwrite", start, 0) + t;
                    let first = base + key / PANEL * panel;
                    let columns = &mut self.data[first..first + panel];
                    for (column, &x) in columns.chunks_exact_mut(PANEL).zip(row) {
                        column[key % PANEL] = convert(x);
                    }
                }
            }
        }
        Ok(())
    }

    /// Forgets all but the first `len` tokens; does nothing if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.len = mutant!("truncation-grows", self.len.min(len), len.min(self.capacity));
    }

    /// Tokens held in each sequence.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there is room for in each sequence.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// `[batch, kv_heads, len, head_dim]`.
    pub fn shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.len, self.head_dim]
    }

    /// One dimension of one key; `None` outside the shape.
    pub fn get(&self, [b, h, t, d]: [usize; 4]) -> Option<T> {
        let shape = self.shape();
        if b >= shape[0] || h >= shape[1] || t >= shape[2] || d >= shape[3] {
            return None;
        }
        self.from(b, h).get(t / PANEL * PANEL * self.head_dim + d * PANEL + t % PANEL).copied()
    }

    /// The panels of one head, one after another, and what lies behind them.
    #[inline]
    pub(crate) fn from(&self, batch: usize, head: usize) -> &[T] {
        let tokens = mutant!("heads-a-length-apart", self.capacity, self.len.next_multiple_of(PANEL));
        &self.data[(batch * self.kv_heads + head) * tokens * self.head_dim..]
    }
}
