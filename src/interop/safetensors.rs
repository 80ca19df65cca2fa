//! `safetensors` tensors of four axes, or fewer with leading axes of 1, as views.

use crate::element::Element;
use crate::error::AttentionError;
use crate::view::View;
use safetensors::tensor::{Dtype, TensorView};

impl<'a, T: Element> TryFrom<&TensorView<'a>> for View<'a, T> {
    type Error = AttentionError;

    /// # Errors
    /// The tensor has another type or more than four axes, or its bytes are not aligned for `T` in memory (which a
    /// mapped file of the current format is).
    fn try_from(tensor: &TensorView<'a>) -> Result<Self, AttentionError> {
        let refused = |expected, got| AttentionError::Value { operand: "safetensors tensor", expected, got };
        let expected = match T::DTYPE {
            crate::DType::F32 => Dtype::F32,
            crate::DType::F16 => Dtype::F16,
            crate::DType::Bf16 => Dtype::BF16,
        };
        if tensor.dtype() != expected {
            return Err(refused("the element type of the view", format!("{:?}", tensor.dtype())));
        }
        if cfg!(target_endian = "big") {
            return Err(refused("a little-endian machine, as the format is", "a big-endian one".to_owned()));
        }
        let axes = tensor.shape();
        if axes.len() > 4 {
            return Err(refused("at most four axes", format!("{axes:?}")));
        }
        let mut shape = [1; 4];
        shape[4 - axes.len()..].copy_from_slice(axes);
        // SAFETY: any bytes are a value of an `Element`: plain numbers; `align_to` sees to alignment.
        let (before, data, _) = unsafe { tensor.data().align_to::<T>() };
        if !before.is_empty() {
            return Err(refused("data aligned for its type", format!("{} stray bytes", before.len())));
        }
        View::new(data, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_borrowed() {
        let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        // SAFETY: plain bytes of plain numbers.
        let view = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), 24) };
        let tensor = TensorView::new(Dtype::F32, vec![2, 3], view).unwrap();
        let converted = View::<f32>::try_from(&tensor).unwrap();
        assert_eq!(converted.shape(), [1, 1, 2, 3], "leading axes of 1");
        assert_eq!(converted.data(), values, "the values");
        assert!(View::<half::f16>::try_from(&tensor).is_err(), "another type is refused");
    }
}
