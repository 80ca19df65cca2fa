//! Multi-head attention as a layer.

pub(crate) mod activation;
mod config;
mod linear;

pub use activation::Activation;
pub use config::AttentionConfig;
pub use linear::{Linear, LinearOptions};
