//! [`Tensor`]: vectors of tokens, as they go into a module.

use crate::error::AttentionError;
use crate::view::View;

/// A borrowed, contiguous array of `[dim]`, `[tokens, dim]` or `[batch, tokens, dim]`; axes that are not there count as 1.
///
/// ```
/// use lucid_attention::module::Tensor;
/// let numbers = [0.0f32; 24];
/// assert_eq!(Tensor::new(&numbers, &[3, 8])?.shape(), [1, 3, 8]);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    data: &'a [f32],
    shape: [usize; 3],
}

impl<'a> Tensor<'a> {
    /// `data` of this shape.
    ///
    /// # Errors
    /// The shape has no axis or more than three, or `data` is not as large as it says.
    pub fn new(data: &'a [f32], shape: &[usize]) -> Result<Self, AttentionError> {
        let shape = match *shape {
            [dim] => [1, 1, dim],
            [tokens, dim] => [1, tokens, dim],
            [batch, tokens, dim] => [batch, tokens, dim],
            _ => {
                return Err(AttentionError::Value {
                    operand: "tensor",
                    expected: "a shape of [dim], [tokens, dim] or [batch, tokens, dim]",
                    got: format!("{shape:?}"),
                });
            }
        };
        let expected = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        let expected = expected.ok_or(AttentionError::SizeOverflow { operand: "tensor" })?;
        if data.len() != expected {
            let got = data.len();
            return Err(AttentionError::Shape { operand: "tensor", axis: "elements", expected, got });
        }
        Ok(Self { data, shape })
    }

    /// Other vectors for the same tokens.
    pub(crate) fn with_vectors(&self, data: &'a [f32], dim: usize) -> Self {
        let [batch, tokens, _] = self.shape;
        debug_assert_eq!(data.len(), batch * tokens * dim);
        Self { data, shape: [batch, tokens, dim] }
    }

    /// `[batch, tokens, dim]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The same for all heads: `[batch, 1, tokens, dim]`.
    pub(crate) fn view(&self) -> Result<View<'a, f32>, AttentionError> {
        let [batch, tokens, dim] = self.shape;
        View::new(self.data, [batch, 1, tokens, dim])
    }

    /// The numbers.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Whether it is the same numbers at the same place.
    pub(crate) fn is(&self, other: &Tensor<'_>) -> bool {
        self.shape == other.shape && std::ptr::eq(self.data.as_ptr(), other.data.as_ptr())
    }
}
