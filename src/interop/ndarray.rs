//! `ndarray` arrays of four axes, `[batch, head, token, dim]`, as views: contiguous ones, with axes in any order.
//!
//! A slice with gaps is refused although its elements could be reached: a flat slice over it would also span elements
//! that somebody else may hold mutably.

use crate::error::AttentionError;
use crate::view::{View, ViewMut};
use ndarray::{ArrayView4, ArrayViewMut4};

/// Strides in elements, refused if negative. Axes that are not stepped along get 0.
fn strides(operand: &'static str, shape: &[usize], strides: &[isize]) -> Result<[usize; 4], AttentionError> {
    let mut converted = [0; 4];
    for axis in 0..4 {
        if shape[axis] <= 1 {
            continue;
        }
        converted[axis] = usize::try_from(strides[axis]).map_err(|_| AttentionError::Value {
            operand,
            expected: "strides that are not negative",
            got: format!("{strides:?}"),
        })?;
    }
    Ok(converted)
}

fn shape4(shape: &[usize]) -> [usize; 4] {
    [shape[0], shape[1], shape[2], shape[3]]
}

impl<'a, T> TryFrom<ArrayView4<'a, T>> for View<'a, T> {
    type Error = AttentionError;

    /// # Errors
    /// The array's elements do not fill their stretch of memory: it is a slice with gaps, broadcast, or reversed. Use
    /// [`View::with_strides`] over the whole array's slice for those.
    fn try_from(array: ArrayView4<'a, T>) -> Result<Self, AttentionError> {
        let shape = shape4(array.shape());
        let strides = strides("ndarray view", &shape, array.strides())?;
        let data = array.to_slice_memory_order().ok_or_else(|| AttentionError::Value {
            operand: "ndarray view",
            expected: "elements that fill their memory without gaps, in any order of axes",
            got: format!("shape {shape:?} with strides {strides:?}"),
        })?;
        View::with_strides(data, shape, strides)
    }
}

impl<'a, T> TryFrom<ArrayViewMut4<'a, T>> for ViewMut<'a, T> {
    type Error = AttentionError;

    /// # Errors
    /// The array is not contiguous in `[batch, head, token, dim]` or `[batch, token, head, dim]` order: a mutable slice
    /// may only span elements that are all the array's own.
    fn try_from(array: ArrayViewMut4<'a, T>) -> Result<Self, AttentionError> {
        let shape = shape4(array.shape());
        let strides = strides("ndarray view", &shape, array.strides())?;
        let error = || AttentionError::Value {
            operand: "ndarray output view",
            expected: "a contiguous array, or one with head and token axes exchanged",
            got: format!("shape {shape:?} with strides {strides:?}"),
        };
        let slice = if array.is_standard_layout() {
            array.into_slice()
        } else {
            array.permuted_axes([0, 2, 1, 3]).into_slice()
        };
        ViewMut::with_strides(slice.ok_or_else(error)?, shape, strides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array4, s};

    fn counting() -> Array4<f32> {
        Array4::from_shape_fn((2, 3, 4, 5), |(b, h, t, d)| (b * 1000 + h * 100 + t * 10 + d) as f32)
    }

    #[test]
    fn arrays_and_permutations_borrow() {
        let array = counting();
        for view in
            [array.view(), array.view().permuted_axes([0, 2, 1, 3]), array.slice(s![1..2, .., .., ..])]
        {
            let converted = View::try_from(view).unwrap();
            for ((b, h, t, d), x) in view.indexed_iter() {
                assert_eq!(converted.get([b, h, t, d]), Some(x), "element [{b}, {h}, {t}, {d}]");
            }
        }
    }

    #[test]
    fn reversed_axes_and_gaps_are_refused() {
        let array = counting();
        let error = View::try_from(array.slice(s![.., .., ..;-1, ..])).unwrap_err();
        assert!(error.to_string().contains("not negative"), "{error}");
        let error = View::try_from(array.slice(s![.., 1.., .., ..])).unwrap_err();
        assert!(error.to_string().contains("without gaps"), "{error}");
    }

    #[test]
    fn outputs_in_either_order() {
        let mut array = Array4::<f32>::zeros((2, 4, 3, 5));
        let mut view = ViewMut::try_from(array.view_mut().permuted_axes([0, 2, 1, 3])).unwrap();
        assert_eq!(view.shape(), [2, 3, 4, 5], "heads before tokens");
        view.data_mut()[5] = 1.0;
        assert_eq!(array[[0, 0, 1, 0]], 1.0, "the array itself is written");
        assert!(ViewMut::try_from(array.slice_mut(s![.., .., ..2, ..])).is_err(), "a slice has foreign gaps");
    }
}
