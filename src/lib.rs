#![doc = include_str!("../README.md")]
//!
//! ## Module map
//!
//! Users meet [`Inputs`] (what a call reads), [`Outputs`] (what it writes), [`Mask`], [`View`], [`Plan`] and
//! [`KvCache`], or the whole layer, [`module::MultiHeadAttention`]; [`mod@reference`] defines what all of it means.
//! Contributors start with `exact/mod.rs`, the order of operations, then `exact/block.rs`, `mask.rs`, `softmax.rs` and
//! `tile.rs`; the layer starts with `module/mod.rs`, attention over a memory's steps with `titans/mod.rs`, linear
//! attention with `linear/mod.rs`.
#![deny(unsafe_code)]
#![cfg_attr(
    not(all(target_arch = "x86_64", not(lucid_force_portable))),
    allow(dead_code, reason = "the bf16 dot-product tier has no backend there")
)]

#[cfg(test)]
extern crate self as lucid_attention; // the integration tests' modules name the crate so

#[macro_use]
mod mutant; // first: what comes after it may use its macro

mod alibi;
mod cache;
mod cancel;
pub mod certify;
mod dropout;
mod element;
mod error;
mod exact;
mod explain;
mod inputs;
#[allow(unsafe_code, reason = "reads other crates' arrays in place")]
mod interop;
#[allow(unsafe_code, reason = "vector intrinsics and the target-feature shims around them")]
mod isa;
mod kernel;
pub mod linear;
mod mask;
pub mod math;
mod merge;
mod metrics;
pub mod module;
mod outputs;
mod panels;
mod parallel;
mod plan;
mod problem;
mod random;
pub mod reference;
#[allow(unsafe_code, reason = "hands disjoint output rows to tasks")]
mod rows;
mod score;
#[allow(unsafe_code, reason = "aligned allocation and huge-page advice")]
mod scratch;
mod softmax;
pub mod sparse;
mod tile;
pub mod titans;
mod view;
#[cfg(feature = "viz")]
pub mod viz;

pub use alibi::alibi_slopes;
pub use cache::KvCache;
pub use cancel::CancelToken;
pub use dropout::Dropout;
pub use element::{DType, Element};
pub use error::AttentionError;
pub use explain::{BlockMaskExplanation, Explanation, KeyPath};
pub use inputs::{Inputs, Keys, QueryStart, Ragged};
pub use isa::Level;
pub use mask::{Cell, Intervals, Mask, Span};
pub use merge::merge;
pub use metrics::{HeadMetrics, Metrics, MetricsOptions, RowMetrics, Spread};
pub use outputs::{OnnxNumbering, Outputs, ScoreStage, Scores, TopKey, TopKeys};
pub use panels::KeyPanels;
pub use plan::{Plan, PlanOptions, Workspace, attention};
pub use problem::Problem;
pub use view::{AnyView, Layout, View, ViewMut};
