//! Exact attention, version 1 of the order of operations.
//!
//! ```text
//! c    = RN(scale * log2 e)
//! q'_d = RN(q_d * c)
//! t_j  = fma chain over d, ascending, from +0:  q'_d * k_jd       then cap, ALiBi, bias (crate::score)
//! m    = running maximum, raised once per tile of 256 keys         key 0 is the sequence's (or the cache's) first
//! p_j  = exp2(t_j - m)                                             one polynomial, on all levels
//! l    = 16 lanes, key j in lane j mod 16, ascending;  folded 16 -> 8 -> 4 -> 2 -> 1
//! a_d  = fma chain over keys, ascending, from +0:  p_j * v_jd      rescaled when m rises
//! every 1024 keys l and a start afresh; parts with a key are merged in key order
//! out  = a / l
//! ```
//!
//! A row's result depends on its query, its keys and the call's rules only: not on threads, batch, block, level (among
//! those that fuse) or on whether it came alone. `tests/determinism` holds this bit for bit, against a scalar model
//! of the order in `tests/common/model.rs`. On levels without fused multiply-add each step of a chain rounds twice and
//! all else is the same.
//!
//! | file | what |
//! |---|---|
//! | `call.rs`, `sequence.rs` | operands checked and resolved |
//! | `block.rs` | the loop above, for some rows of a head |
//! | `rows.rs` | its rows: what each may attend, what is known of it |
//! | `group.rs` | up to 6 of its rows in a tile: columns they need, weights out of dot products |
//! | `visit.rs` | the tiles that a block visits |
//! | `columns.rs` | sets of columns of a tile |
//! | `tier.rs` | what this order and that of bf16 dot products differ in |
//! | `fma.rs`, `bf16_dot.rs` | the two |
//! | `grid.rs` | blocks out of a call, tasks out of blocks, splits merged |
//! | `order.rs` | which of a unit's blocks come first |
//! | `partials.rs` | states of splits that run side by side |
//! | `finish.rs` | sinks, division, stores, LSE |
//! | `measure.rs` | sums for metrics, beside those above |
//! | `peaks.rs` | the largest probabilities of a row, for metrics |
//! | `scores.rs` | scores and probabilities on request |
//! | `progress.rs` | which rows are complete when a call is stopped |
//! | `workspace.rs` | scratch |

pub(crate) mod bf16_dot;
#[allow(unsafe_code, reason = "a block's rows are its task's")]
pub(crate) mod block;
pub(crate) mod call;
pub(crate) mod columns;
#[allow(unsafe_code, reason = "writes output rows")]
pub(crate) mod finish;
pub(crate) mod fma;
#[allow(unsafe_code, reason = "deals rows to tasks")]
pub(crate) mod grid;
pub(crate) mod group;
pub(crate) mod measure;
pub(crate) mod order;
#[allow(unsafe_code, reason = "rows written by tasks")]
pub(crate) mod partials;
pub(crate) mod peaks;
pub(crate) mod progress;
pub(crate) mod rows;
#[allow(unsafe_code, reason = "writes output rows")]
pub(crate) mod scores;
pub(crate) mod sequence;
#[cfg(test)]
#[allow(unsafe_code, reason = "memory next to inaccessible pages")]
mod tests;
pub(crate) mod tier;
pub(crate) mod visit;
pub(crate) mod workspace;
