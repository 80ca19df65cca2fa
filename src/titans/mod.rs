//! Attention over what a neural memory has seen: the sequence's last steps, and the Titans variants over them.
//!
//! ```text
//!                         ┌─ Mal: v' for the update ──┐
//! x ─> k, v, q ─> begin ──┼─ Mag: gates of the update ┼─> memory: update, y = M(q) ─> Mac: y_final ─> finish(y)
//!                         └─ the history before x ────┴──────────────────────────────────┘
//! ```
//!
//! | file | what |
//! |---|---|
//! | `context.rs` | [`SequenceContext`]: the last steps, which the current one is not among |
//! | `attention.rs` | [`HistoryAttention`]: one query over them, by a layer or on the vectors as they are |
//! | `server.rs`, `fetch.rs` | configuration by a Neural Memory server (features `serde` and `http`) |
//! | [`lucidia`] | the variants MAC, MAG and MAL in the form of Lucidia's orchestrator |
//!
//! The memory itself, and what trains it, is the caller's.

mod attention;
mod context;
#[cfg(feature = "http")]
mod fetch;
pub mod lucidia;
#[cfg(feature = "serde")]
mod server;

pub use attention::{HistoryAttention, TitansWorkspace};
pub use context::{ContextOptions, CurrentStep, History, SequenceContext, Step, StepDims};
#[cfg(feature = "serde")]
pub use server::{AttentionSource, NeuralMemoryConfig, ServedAttention, ServerConfig, Variant};
