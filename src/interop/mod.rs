//! Views of other crates' arrays, each behind the feature of that crate's name. Nothing is copied.

#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(feature = "safetensors")]
mod safetensors;
