//! Output rows handed to tasks that run side by side.

use crate::view::ViewMut;
use half::{bf16, f16};
use std::marker::PhantomData;

/// An output whose rows can be written by several tasks, each row by one of them.
pub(crate) struct SharedRows<'a, T> {
    data: *mut T,
    shape: [usize; 4],
    strides: [usize; 4],
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Clone for SharedRows<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedRows<'_, T> {}

// SAFETY: it stands for an exclusive borrow of a buffer of `T`, and gives out rows only under the promise of `row`
// that no two are the same; those may go to other threads as `&mut [T]` may.
unsafe impl<T: Send> Send for SharedRows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedRows<'_, T> {}

impl<'a, T> SharedRows<'a, T> {
    pub(crate) fn new(mut view: ViewMut<'a, T>) -> Self {
        let (shape, strides) = (view.shape(), view.strides());
        Self { data: view.data_mut().as_mut_ptr(), shape, strides, borrow: PhantomData }
    }

    /// Whether there is no element.
    pub(crate) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Row `[b, h, t]`; empty outside the shape.
    ///
    /// # Safety
    /// - No other reference to this row is alive: at any time one task works on it.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, b: usize, h: usize, t: usize) -> &'a mut [T] {
        let [batch, heads, tokens, dim] = self.shape;
        if b >= batch || h >= heads || t >= tokens || dim == 0 {
            return &mut [];
        }
        let at = b * self.strides[0] + h * self.strides[1] + t * self.strides[2];
        debug_assert!(dim == 1 || self.strides[3] == 1, "the elements of a row are adjacent");
        // SAFETY: `ViewMut` checked that every element inside the shape lies in the buffer and that no two share a
        // place, so rows are disjoint; the plan checked that a row's elements are adjacent; the caller keeps this one
        // unique.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), dim) }
    }
}

/// [`SharedRows`] whose storage type is known at run time.
#[derive(Clone, Copy)]
pub(crate) enum AnyRows<'a> {
    F32(SharedRows<'a, f32>),
    F16(SharedRows<'a, f16>),
    Bf16(SharedRows<'a, bf16>),
}
