//! Multi-head attention as a layer: projections, attention, activation, residual, layer norm.
//!
//! ```text
//! query ─> policy ─> W_q ─> heads ─┐
//! key   ─> policy ─> W_k ─> heads ─┼─> attention ─> heads side by side ─> W_o ─> activation ─> + query ─> layer norm
//! value ─> policy ─> W_v ─> heads ─┘    (a Plan)
//! ```
//!
//! | file | what |
//! |---|---|
//! | `config.rs`, `activation.rs` | what a module is |
//! | `weights.rs`, `names.rs`, `safetensors.rs`, `init.rs` | its numbers: by whose names, from files, out of a seed |
//! | `linear.rs`, `linear/product.rs`, `projections.rs` | matrix products on packed weights, one task of them; queries, keys and values by them |
//! | `absorbed.rs` | few queries: projections moved from the tokens to the queries and the sums |
//! | `tensor.rs`, `policy.rs` | inputs, and what becomes of bad ones |
//! | `call.rs`, `workspace.rs` | what a call reads and writes, and its scratch |
//! | `forward.rs`, `sequence.rs` | the run path; one query over lists of vectors |
//! | `metrics.rs` | running metrics of its calls |
//! | `norm.rs` | residual and layer norm |
//! | `forward/explain.rs` | what a call would do, and why |
//!
//! Everything is `f32` but the projections' weights, which may be stored as `f16` or `bf16`. Accuracy, with `u = 2^-24`: a
//! projection's outputs are off by up to `(n + 1) u sum |x w|` each, attention as its own certified bound says, and the
//! layer norm by a few `u` of what it divides.
//!
//! The order of operations is fixed from end to end, so a token's output does not depend on threads, batch neighbours or
//! workspaces, and is the same on AVX2 as on AVX-512. (What training drops depends on the place in the batch.) Whether a call
//! absorbs its projections, which rounds otherwise, is decided by its lengths, in which padding counts; where outputs have to
//! have the same bits padded and not, in short calls and long, or over a cache,
//! [`always_project`](ModuleOptions::always_project) is to be set.

mod absorbed;
pub(crate) mod activation;
mod call;
mod config;
mod forward;
mod init;
mod linear;
mod metrics;
pub(crate) mod names;
mod norm;
pub(crate) mod policy;
mod projections;
#[cfg(feature = "safetensors")]
pub(crate) mod safetensors;
mod sequence;
mod tensor;
mod weights;
pub(crate) mod workspace;

pub use activation::Activation;
pub use call::{ModuleInputs, ModuleOutputs};
pub use config::AttentionConfig;
pub use forward::{ModuleExplanation, ModuleOptions, MultiHeadAttention, ProductExplanation, ProductParts};
pub use linear::{Linear, LinearOptions};
pub use names::{NamedTensor, Naming};
pub use norm::LayerNorm;
pub use policy::{InputLayers, InputPolicies, NotFinite, Repairs, WrongDim};
pub use tensor::Tensor;
pub use weights::{DenseWeights, InputDims, ModuleWeights, NormWeights};
pub use workspace::ModuleWorkspace;
