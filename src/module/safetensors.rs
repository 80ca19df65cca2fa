//! Weights in `safetensors` files: read from `f32`, `f16` or `bf16`, saved as `f32`.

use super::config::AttentionConfig;
use super::names::{Found, NamedTensor, Naming, Source};
use super::weights::{DenseWeights, ModuleWeights, NormWeights};
use crate::error::AttentionError;
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::borrow::Cow;

impl Source for SafeTensors<'_> {
    fn has(&self, name: &str) -> bool {
        self.tensor(name).is_ok() // a missing name is all that it can fail of
    }

    fn tensor(&self, name: &str) -> Result<Option<Found<'_>>, AttentionError> {
        let Ok(tensor) = self.tensor(name) else {
            return Ok(None);
        };
        let bytes = tensor.data();
        let data: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Dtype::F16 => {
                bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
            }
            Dtype::BF16 => {
                bytes.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect()
            }
            other => {
                let (name, got) = (name.to_owned(), format!("{other:?}"));
                return Err(AttentionError::TensorType { name, expected: "f32, f16 or bf16", got });
            }
        };
        Ok(Some(Found { shape: tensor.shape().to_vec().into(), data: Cow::Owned(data) }))
    }
}

impl ModuleWeights {
    /// As [`ModuleWeights::from_tensors`], from a file of `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    /// As [`ModuleWeights::from_tensors`], or a tensor is stored as something else.
    pub fn from_safetensors(
        config: &AttentionConfig,
        naming: Naming,
        prefix: &str,
        file: &SafeTensors<'_>,
    ) -> Result<Self, AttentionError> {
        Self::read(config, naming, prefix, file)
    }

    /// A file, as bytes, of [`ModuleWeights::to_tensors`] in `f32`.
    ///
    /// # Errors
    /// As [`ModuleWeights::to_tensors`], or the format cannot hold them (it can hold any but absurd sizes).
    pub fn to_safetensors(
        &self,
        config: &AttentionConfig,
        naming: Naming,
        prefix: &str,
    ) -> Result<Vec<u8>, AttentionError> {
        serialize(&self.to_tensors(config, naming, prefix)?)
    }
}

impl DenseWeights {
    /// As [`DenseWeights::from_tensors`], from a file of `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    /// As [`DenseWeights::from_tensors`], or a tensor is stored as something else.
    pub fn from_safetensors(
        naming: Naming,
        name: &str,
        file: &SafeTensors<'_>,
    ) -> Result<Self, AttentionError> {
        Self::read(naming, name, file)
    }

    /// A file, as bytes, of [`DenseWeights::to_tensors`] in `f32`.
    ///
    /// # Errors
    /// As [`DenseWeights::to_tensors`], or the format cannot hold them (it can hold any but absurd sizes).
    pub fn to_safetensors(&self, naming: Naming, name: &str) -> Result<Vec<u8>, AttentionError> {
        serialize(&self.to_tensors(naming, name)?)
    }
}

impl NormWeights {
    /// As [`NormWeights::from_tensors`], from a file of `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    /// As [`NormWeights::from_tensors`], or a tensor is stored as something else.
    pub fn from_safetensors(
        naming: Naming,
        name: &str,
        file: &SafeTensors<'_>,
    ) -> Result<Self, AttentionError> {
        Self::read(naming, name, file)
    }
}

/// Tensors as the bytes of a file.
pub(crate) fn serialize(tensors: &[NamedTensor<Vec<f32>>]) -> Result<Vec<u8>, AttentionError> {
    let refused = |error: safetensors::SafeTensorError| AttentionError::Value {
        operand: "safetensors",
        expected: "tensors that the format can hold",
        got: error.to_string(),
    };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| tensor.data.iter().flat_map(|number| number.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?;
        Ok((tensor.name.as_str(), view))
    });
    let views: Result<Vec<_>, _> = views.collect();
    safetensors::serialize(views.map_err(refused)?, None).map_err(refused)
}
