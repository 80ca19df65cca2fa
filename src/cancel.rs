//! Stopping a call from outside: by hand, or at a deadline.
//!
//! ```text
//! every tile     is the token stopped?  leave the block            one predictable branch where no token is given
//! every block    stopped meanwhile?     note it, begin no other
//! the end        Err(Cancelled)         complete = begun, but for the block each worker left
//! ```
//!
//! Workers take blocks in order from a few ranges, so which were begun is an end for each range, and no flag per block
//! is needed: nothing is allocated, whatever the batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Stops the calls it is given to ([`Inputs::cancel`](crate::Inputs::cancel)). Clones are the same token.
///
/// Attention looks at it once per tile (up to 96 rows of a head and 256 keys, some 150 us at 128 dimensions) and then returns
/// [`AttentionError::Cancelled`](crate::AttentionError::Cancelled). A stopped token stays stopped. A layer
/// ([`ModuleInputs::cancel`](crate::module::ModuleInputs::cancel)) looks in attention, and before and after it.
///
/// ```
/// use lucid_attention::{AttentionError, CancelToken, Inputs, View, attention};
/// let x = [0.5f32; 8];
/// let view = View::new(&x, [1, 1, 2, 4])?;
/// let token = CancelToken::new(); // or CancelToken::with_deadline(Instant::now() + Duration::from_millis(5))
/// let inputs = Inputs::new(view, view, view).cancel(&token);
/// assert!(attention(&inputs).is_ok());
/// token.cancel(); // from any thread
/// assert!(matches!(attention(&inputs), Err(AttentionError::Cancelled { complete: 0, rows: 2, .. })));
/// # Ok::<(), AttentionError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
    /// How often it was looked at.
    #[cfg(test)]
    looks: Arc<std::sync::atomic::AtomicUsize>,
}

impl CancelToken {
    /// A token that only [`CancelToken::cancel`] stops.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that stops at a deadline, or before by [`CancelToken::cancel`].
    pub fn with_deadline(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// Stops it, and its clones.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it is stopped.
    #[inline(never)] // kernels ask, few of them with a token
    pub fn is_stopped(&self) -> bool {
        #[cfg(test)]
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.cancelled.load(Ordering::Relaxed)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::*;

    /// Layers hand their token on to attention: it is looked at for each head and tile, not only before and after.
    #[test]
    fn layers_look_in_every_tile() {
        let config = AttentionConfig { num_heads: 3, key_dim: 4, ..AttentionConfig::default() };
        let weights = ModuleWeights::glorot(&config, InputDims::all(12), 1).expect("weights");
        let module = MultiHeadAttention::new(config, &weights).expect("a module");
        let (tokens, tiles) = (600, 3);
        let x = vec![0.5; tokens * 12];
        let x = Tensor::new(&x, &[tokens, 12]).expect("tokens");
        let token = CancelToken::new();
        module.forward(&ModuleInputs::self_attention(x).cancel(&token)).expect("nobody stops it");
        assert!(token.looks.load(Ordering::Relaxed) > 3 * tiles * tokens.div_ceil(96));
    }
}
