//! Linear attention: weights as products of features, so that keys and values can be summed up before queries come.
//!
//! ```text
//! w_ij = φ(q_i) · φ(k_j)          S = sum_j φ(k_j) v_jᵀ     z = sum_j φ(k_j)       [features][v_dim], [features]
//! o_i  = φ(q_i) S / φ(q_i) · z    time and memory linear in tokens; a causal row needs the S and z of the keys before it
//! ```
//!
//! It is attention's own algebra with another kernel, and so another function: with [`FeatureMap::Positive`] and its kin
//! a random estimate of the softmax's, with the others none at all but a network that was trained so.
//!
//! # Will random features do?
//!
//! Ask [`estimate`] before anything else. An entry's relative standard deviation is `sqrt((e^|z|² - 1) / features)` with
//! `z = (q + k) / head_dim^(1/4)`: hopeless for normal queries and keys of 64 dimensions (`|z|² = 16`), good for
//! small ones. What comes out of attention is a quotient of such estimates, so it is biased by some `1 / features`, and
//! errors add up over layers. Relative errors of the output (Frobenius) for 256 normal tokens of 64 dimensions with
//! standard deviation σ, beside that of the plain mean of all values, which knows nothing of queries and keys, are printed
//! by `cargo test --test linear output_errors -- --nocapture`. Features that are worse than that mean are worth nothing,
//! however small an error looks.
//!
//! # From which length it is faster
//!
//! Operations alone say from `2 m` tokens on, with `m` random features, causal from `4 m + 32 (m + d) / d` with `d` the size of
//! a head. What is measured, by map, form and number of threads, `cargo bench --bench linear` prints in its last lines.
//!
//! # Forms
//!
//! | call | rows see | |
//! |---|---|---|
//! | [`LinearPlan::run`] | all keys, or those up to their own | a whole sequence |
//! | [`LinearPlan::extend`] | all before and up to their own | a prompt, or one token, after a [`LinearState`] |
//! | [`LinearPlan::absorb`], [`LinearPlan::attend`] | all that a state has seen | keys here, queries there |
//!
//! # Numbers
//!
//! Exponential features are kept relative to a gauge that streams like the maximum of a softmax, one for each feature and
//! one for each query; both cancel in the quotient. The denominator is at least 1, no epsilon is added anywhere, and norms
//! may be any as long as `scale |k|²` is an `f32`; where it is not, the rows that see the key are NaN. Features reach 2^16, so values
//! above 5e33 or so may overflow sums. Exponents are `f32`: of
//! large norms they are known to `2^-24 |k|²` or so, and weights no better. The other maps have no gauge, and features that may
//! all be 0: **a row whose denominator is 0 is +0**, like a row that sees no key. NaN and infinity show in the rows that see
//! them, as in [`Plan`](crate::Plan).
//!
//! Sums and weights are `f32`, whatever the operands are stored as.
//!
//! # Order of operations
//!
//! Keys come in blocks of 64, from the call's first key (from the sequence's, with an exact window). A row's sum is one chain of
//! multiply-adds over features plus one over the keys of its block; `S` and `z` add a block's sum at a time. Where rows see all keys, each 1024 keys are summed up by themselves first. So results do not depend
//! on threads, batch neighbours or, causally, later tokens, bit for bit; how a sequence is cut into calls changes roundings.
//!
//! | file | what |
//! |---|---|
//! | `plan.rs`, `inputs.rs` | sizes and choices, operands |
//! | `plan/calls.rs` | calls, what is shared out |
//! | `unit.rs` | one head's keys and queries, block by block |
//! | `unit/kernels.rs` | what is compiled for each level |
//! | `unit/spread.rs` | one head's causal rows on several threads |
//! | `rows.rs` | rows of a block |
//! | `features.rs`, `directions.rs`, `projection.rs` | maps |
//! | `fingerprint.rs` | which map a state belongs to |
//! | `gauge.rs` | what exponential features are relative to |
//! | `state.rs` | what is kept of keys and values |
//! | `estimate.rs` | what to expect |

mod directions;
mod estimate;
mod features;
mod fingerprint;
mod gauge;
mod inputs;
mod plan;
mod projection;
mod rows;
mod state;
mod unit;

pub use estimate::{Estimate, estimate};
pub use features::{CustomMap, FeatureMap, Side};
pub use inputs::{LinearInputs, LogDecay};
pub use plan::{LinearOptions, LinearPlan, LinearWorkspace};
pub use projection::{Norms, Projection};
pub use state::LinearState;
