//! Borrowed four-dimensional operands over flat buffers: `[batch, head, token, dim]`.
//!
//! ```text
//! element (b, h, t, d) = data[b * strides[0] + h * strides[1] + t * strides[2] + d * strides[3]]
//! ```
//!
//! Strides count elements. An operand's last stride is 1; any other may be 0 to repeat what lies there (broadcast
//! batch, head or token). A view only describes: it checks once, when it is made, that every element lies inside the
//! buffer, and copies nothing.

use crate::element::Element;
use crate::error::AttentionError;
use half::{bf16, f16};

/// The axes of a view, in order.
pub(crate) const AXES: [&str; 4] = ["batch", "heads", "tokens", "dim"];

/// The names of the memory layouts that an operand may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[batch, head, token, dim]`, contiguous: BHND.
    HeadMajor,
    /// `[batch, token, head, dim]`, contiguous: BNHD, what a projection leaves behind.
    TokenMajor,
}

/// A borrowed operand: `[batch, head, token, dim]` over a flat buffer.
///
/// Element `[b, h, t, d]` is `data[b * strides[0] + h * strides[1] + t * strides[2] + d * strides[3]]`. Strides count
/// elements; an operand's last stride is 1, any other may be 0 to repeat what lies there.
#[derive(Debug)]
pub struct View<'a, T> {
    data: &'a [T],
    shape: [usize; 4],
    strides: [usize; 4],
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

/// Strides of a contiguous array of this shape, or `None` if its size overflows.
fn contiguous(shape: [usize; 4]) -> Option<[usize; 4]> {
    let mut strides = [1; 4];
    for axis in (0..3).rev() {
        strides[axis] = shape[axis + 1].checked_mul(strides[axis + 1])?;
    }
    shape[0].checked_mul(strides[0]).filter(|&total| total <= isize::MAX as usize)?;
    Some(strides)
}

/// How many elements a buffer needs for this shape and these strides; `None` on overflow.
pub(crate) fn reach(shape: [usize; 4], strides: [usize; 4]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    for axis in 0..4 {
        let (steps, stride) = (shape[axis] - 1, strides[axis]);
        let way = mutant!("strides-wrap", steps.checked_mul(stride), Some(steps.wrapping_mul(stride)));
        last = last.checked_add(way?)?;
    }
    last.checked_add(1).filter(|&total| total <= isize::MAX as usize)
}

fn check_reach(
    operand: &'static str,
    len: usize,
    shape: [usize; 4],
    strides: [usize; 4],
) -> Result<(), AttentionError> {
    let expected = reach(shape, strides).ok_or(AttentionError::SizeOverflow { operand })?;
    if expected > len {
        return Err(AttentionError::BufferTooShort { operand, expected, got: len });
    }
    Ok(())
}

/// Strides whose products with any index inside `shape` fit: those of axes that are never stepped along may be anything,
/// and become harmless.
fn stepped(len: usize, shape: [usize; 4], mut strides: [usize; 4]) -> [usize; 4] {
    for axis in 0..4 {
        if shape.contains(&0) {
            strides[axis] = 0;
        } else if shape[axis] == 1 {
            strides[axis] = strides[axis].min(len);
        }
    }
    strides
}

/// Shape and strides of `[batch, heads, tokens, dim]` in the given layout.
fn layout_strides(shape: [usize; 4], layout: Layout) -> Result<[usize; 4], AttentionError> {
    let overflow = AttentionError::SizeOverflow { operand: "view" };
    match layout {
        Layout::HeadMajor => contiguous(shape).ok_or(overflow),
        Layout::TokenMajor => {
            let [batch, heads, tokens, dim] = shape;
            let [b, t, h, d] = contiguous([batch, tokens, heads, dim]).ok_or(overflow)?;
            Ok([b, h, t, d])
        }
    }
}

impl<'a, T> View<'a, T> {
    /// A contiguous `[batch, heads, tokens, dim]` array.
    ///
    /// # Errors
    /// `data` is shorter than `shape` needs, or the size overflows.
    pub fn new(data: &'a [T], shape: [usize; 4]) -> Result<Self, AttentionError> {
        Self::with_layout(data, shape, Layout::HeadMajor)
    }

    /// An array of shape `[batch, heads, tokens, dim]` that lies in memory as `layout` says. The shape is always
    /// given in this order, whatever the layout.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn with_layout(data: &'a [T], shape: [usize; 4], layout: Layout) -> Result<Self, AttentionError> {
        Self::with_strides(data, shape, layout_strides(shape, layout)?)
    }

    /// Any strides, in elements; 0 repeats. Element `[0, 0, 0, 0]` is `data[0]`.
    ///
    /// # Errors
    /// The last element lies outside `data`, or the arithmetic overflows.
    pub fn with_strides(
        data: &'a [T],
        shape: [usize; 4],
        strides: [usize; 4],
    ) -> Result<Self, AttentionError> {
        check_reach("view", data.len(), shape, strides)?;
        Ok(Self { data, shape, strides: stepped(data.len(), shape, strides) })
    }

    /// Queries, keys and values out of one packed projection `[batch, token, (q_heads + kv_heads + kv_heads) * dim]`,
    /// the three blocks one after another, as fused QKV projections write them.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn split_qkv(
        data: &'a [T],
        batch: usize,
        tokens: usize,
        heads: [usize; 2],
        dim: usize,
    ) -> Result<[Self; 3], AttentionError> {
        let overflow = || AttentionError::SizeOverflow { operand: "packed qkv" };
        let [q_heads, kv_heads] = heads;
        let blocks = kv_heads.checked_mul(2).and_then(|n| n.checked_add(q_heads)).ok_or_else(overflow)?;
        let row = blocks.checked_mul(dim).ok_or_else(overflow)?;
        let strides = [tokens.checked_mul(row).ok_or_else(overflow)?, dim, row, 1];
        check_reach("packed qkv", data.len(), [batch, blocks, tokens, dim], strides)?;
        let block = |first: usize, heads: usize| {
            let shape = [batch, heads, tokens, dim];
            let data = if shape.contains(&0) { &data[..0] } else { &data[first * dim..] };
            Self::with_strides(data, shape, strides)
        };
        let (keys, values) = (q_heads, mutant!("packed-values-are-keys", q_heads + kv_heads, q_heads));
        Ok([block(0, q_heads)?, block(keys, kv_heads)?, block(values, kv_heads)?])
    }

    /// Queries, keys and values out of `[batch, token, heads, 3, dim]`, interleaved per head.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn split_interleaved_qkv(
        data: &'a [T],
        batch: usize,
        tokens: usize,
        heads: usize,
        dim: usize,
    ) -> Result<[Self; 3], AttentionError> {
        let overflow = || AttentionError::SizeOverflow { operand: "packed qkv" };
        let head = dim.checked_mul(3).ok_or_else(overflow)?;
        let row = heads.checked_mul(head).ok_or_else(overflow)?;
        let strides = [tokens.checked_mul(row).ok_or_else(overflow)?, head, row, 1];
        check_reach("packed qkv", data.len(), [batch, heads, tokens, head], strides)?;
        let shape = [batch, heads, tokens, dim];
        let part = |index: usize| {
            let data = if shape.contains(&0) { &data[..0] } else { &data[index * dim..] };
            Self::with_strides(data, shape, strides)
        };
        Ok([part(0)?, part(1)?, part(2)?])
    }

    /// `[batch, heads, tokens, dim]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Elements between neighbours along each axis; where there are none, whatever the view keeps.
    pub fn strides(&self) -> [usize; 4] {
        self.strides
    }

    /// How many rows after a head's first the next head begins (the next sequence, where each has one head), if it is a whole number.
    pub(crate) fn rows_per_head(&self) -> Option<usize> {
        let [batch, head, row, _] = self.strides;
        let step = if self.shape[1] == 1 { batch } else { head };
        (row > 0 && step > 0 && step.is_multiple_of(row)).then(|| step / row)
    }

    /// The buffer, from element `[0, 0, 0, 0]`.
    pub fn data(&self) -> &'a [T] {
        self.data
    }

    /// The element at `[b, h, t, d]`, or `None` outside the shape.
    pub fn get(&self, index: [usize; 4]) -> Option<&'a T> {
        if (0..4).any(|axis| index[axis] >= self.shape[axis]) {
            return None;
        }
        self.data.get((0..4).map(|axis| index[axis] * self.strides[axis]).sum::<usize>())
    }

    /// The buffer from element `[b, h, t, 0]` on; empty if there is none.
    #[inline(always)]
    pub(crate) fn from(&self, b: usize, h: usize, t: usize) -> &'a [T] {
        let [sb, sh, st, _] = self.strides;
        let at = b * sb + h * sh + t * st;
        self.data.get(mutant!("offsets-in-32-bits", at, at as i32 as usize)..).unwrap_or(&[])
    }

    /// The same view, refused if its last axis is not adjacent.
    pub(crate) fn check_unit_stride(&self, operand: &'static str) -> Result<(), AttentionError> {
        if self.strides[3] == 1 || self.shape[3] <= 1 || self.shape.contains(&0) {
            return Ok(());
        }
        Err(AttentionError::Stride { operand, got: self.strides[3] as isize })
    }

    /// Checks all axes.
    pub(crate) fn check_shape(
        &self,
        operand: &'static str,
        expected: [usize; 4],
    ) -> Result<(), AttentionError> {
        (0..4).try_for_each(|axis| self.check_axis(operand, axis, expected[axis]))
    }

    /// Checks one axis.
    pub(crate) fn check_axis(
        &self,
        operand: &'static str,
        axis: usize,
        expected: usize,
    ) -> Result<(), AttentionError> {
        if self.shape[axis] == expected {
            return Ok(());
        }
        Err(AttentionError::Shape { operand, axis: AXES[axis], expected, got: self.shape[axis] })
    }

    /// This view stretched to `shape`: every axis must have that size already, or 1, which is repeated.
    pub(crate) fn broadcast(&self, operand: &'static str, shape: [usize; 4]) -> Result<Self, AttentionError> {
        let mut view = *self;
        for axis in 0..4 {
            if self.shape[axis] == shape[axis] {
                continue;
            }
            if self.shape[axis] != 1 {
                let (expected, got) = (shape[axis], self.shape[axis]);
                return Err(AttentionError::Shape { operand, axis: MASK_AXES[axis], expected, got });
            }
            view.strides[axis] = mutant!("repeated-axis-is-stepped", 0, self.strides[axis]);
            view.shape[axis] = shape[axis];
        }
        Ok(view)
    }
}

/// The axes of a dense mask or bias, in order.
pub(crate) const MASK_AXES: [&str; 4] = ["batch", "q_heads", "q_len", "kv_len"];

/// A view whose storage type is known at run time.
#[derive(Clone, Copy, Debug)]
pub enum AnyView<'a> {
    /// Stored as `f32`.
    F32(View<'a, f32>),
    /// Stored as `f16`.
    F16(View<'a, f16>),
    /// Stored as `bf16`.
    Bf16(View<'a, bf16>),
}

impl<'a, T: Element> From<View<'a, T>> for AnyView<'a> {
    fn from(view: View<'a, T>) -> Self {
        T::erase(view)
    }
}

/// Runs `$body` with `$view` bound to the typed view inside an [`AnyView`].
macro_rules! with_any_view {
    ($any:expr, $view:ident => $body:expr) => {
        match $any {
            $crate::view::AnyView::F32($view) => $body,
            $crate::view::AnyView::F16($view) => $body,
            $crate::view::AnyView::Bf16($view) => $body,
        }
    };
}
pub(crate) use with_any_view;

impl<'a> AnyView<'a> {
    /// See [`View::broadcast`].
    pub(crate) fn broadcast(&self, operand: &'static str, shape: [usize; 4]) -> Result<Self, AttentionError> {
        Ok(match self {
            AnyView::F32(view) => AnyView::F32(view.broadcast(operand, shape)?),
            AnyView::F16(view) => AnyView::F16(view.broadcast(operand, shape)?),
            AnyView::Bf16(view) => AnyView::Bf16(view.broadcast(operand, shape)?),
        })
    }

    /// `[batch, heads, q_len, kv_len]`.
    pub fn shape(&self) -> [usize; 4] {
        with_any_view!(self, view => view.shape())
    }

    /// The element at an index, widened; `None` outside the shape.
    pub fn get(&self, index: [usize; 4]) -> Option<f32> {
        with_any_view!(self, view => view.get(index).map(|x| x.to_f32()))
    }
}

/// A borrowed output: as [`View`], but no two elements may share a place.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    data: &'a mut [T],
    shape: [usize; 4],
    strides: [usize; 4],
}

impl<'a, T> ViewMut<'a, T> {
    /// A contiguous `[batch, heads, tokens, dim]` array.
    ///
    /// # Errors
    /// `data` is shorter than `shape` needs, or the size overflows.
    pub fn new(data: &'a mut [T], shape: [usize; 4]) -> Result<Self, AttentionError> {
        Self::with_layout(data, shape, Layout::HeadMajor)
    }

    /// As [`View::with_layout`].
    ///
    /// # Errors
    /// As [`ViewMut::new`].
    pub fn with_layout(data: &'a mut [T], shape: [usize; 4], layout: Layout) -> Result<Self, AttentionError> {
        Self::with_strides(data, shape, layout_strides(shape, layout)?)
    }

    /// Any strides that keep elements apart: with the axes of more than one element sorted by stride, each stride
    /// has to step over all that the smaller ones span.
    ///
    /// # Errors
    /// As [`View::with_strides`], or elements overlap.
    pub fn with_strides(
        data: &'a mut [T],
        shape: [usize; 4],
        strides: [usize; 4],
    ) -> Result<Self, AttentionError> {
        check_reach("output view", data.len(), shape, strides)?;
        let mut axes = [0, 1, 2, 3];
        axes.sort_unstable_by_key(|&axis| strides[axis]);
        let mut span = 0;
        for axis in axes {
            if shape.contains(&0) || shape[axis] == 1 {
                continue;
            }
            if mutant!("output-rows-may-overlap", strides[axis] <= span, false) {
                return Err(AttentionError::Overlap { operand: "output view", shape, strides });
            }
            span += (shape[axis] - 1) * strides[axis];
        }
        let strides = stepped(data.len(), shape, strides);
        Ok(Self { data, shape, strides })
    }

    /// `[batch, heads, tokens, dim]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Elements between neighbours along each axis; where there are none, whatever the view keeps.
    pub fn strides(&self) -> [usize; 4] {
        self.strides
    }

    /// The buffer.
    pub fn data_mut(&mut self) -> &mut [T] {
        self.data
    }

    /// A shorter-lived view of the same place.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { data: self.data, shape: self.shape, strides: self.strides }
    }

    /// As a view to read.
    pub fn as_view(&self) -> View<'_, T> {
        View { data: self.data, shape: self.shape, strides: self.strides }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_next_head_begins() {
        let data = [0.0f32; 2 * 3 * 5 * 4];
        let rows = |shape, layout| View::with_layout(&data, shape, layout).expect("a view").rows_per_head();
        assert_eq!(rows([2, 3, 5, 4], Layout::HeadMajor), Some(5));
        assert_eq!(rows([2, 1, 5, 4], Layout::HeadMajor), Some(5), "of the next sequence");
        assert_eq!(rows([2, 1, 5, 4], Layout::TokenMajor), Some(5), "of the next sequence");
        assert_eq!(rows([2, 3, 5, 4], Layout::TokenMajor), None, "in the middle of a row");
        let room = View::with_strides(&data, [1, 2, 5, 4], [120, 40, 4, 1]).expect("a view");
        assert_eq!(room.rows_per_head(), Some(10), "behind the room for more");
        let same = View::with_strides(&data, [1, 2, 5, 4], [120, 0, 4, 1]).expect("a view");
        assert_eq!(same.rows_per_head(), None, "all heads are one");
    }
}
