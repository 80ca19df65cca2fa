//! Hand-optimised attention kernels for CPUs.
#![deny(unsafe_code)]

mod element;
mod error;
mod inputs;
#[allow(unsafe_code, reason = "vector intrinsics and the target-feature shims around them")]
mod isa;
mod mask;
mod panels;
mod parallel;
mod problem;
#[allow(unsafe_code, reason = "aligned allocation and huge-page advice")]
mod scratch;
mod view;

pub use element::{DType, Element};
pub use error::AttentionError;
pub use inputs::{Inputs, Keys, OnnxNumbering, Outputs, QueryStart, Ragged, ScoreStage, Scores};
pub use isa::Level;
pub use mask::{Cell, Intervals, Mask, Span};
pub use panels::KeyPanels;
pub use problem::Problem;
pub use view::{AnyView, Layout, View, ViewMut};
