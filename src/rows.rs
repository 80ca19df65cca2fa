//! Output rows handed to tasks that run side by side.

use crate::element::Element;
use crate::isa::Isa;
use crate::kernel::pack::store_row;
use crate::view::ViewMut;
use half::{bf16, f16};
use std::marker::PhantomData;
use std::ops::Range;

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

/// Some rows of an output that are one task's alone: those of `heads` (counted through all sequences) and `tokens`.
pub(crate) struct OwnedRows<'a> {
    rows: AnyRows<'a>,
    heads_per_sequence: usize,
    heads: Range<usize>,
    tokens: Range<usize>,
}

impl<'a> OwnedRows<'a> {
    /// All of an output's.
    pub(crate) fn new<T: Element>(view: ViewMut<'a, T>) -> Self {
        let [batch, heads, tokens, _] = view.shape();
        let rows = T::share(SharedRows::new(view));
        Self { rows, heads_per_sequence: heads, heads: 0..batch * heads, tokens: 0..tokens }
    }

    /// Takes the first `count` heads, or as many as there are, out of it.
    pub(crate) fn take_heads(&mut self, count: usize) -> Self {
        let middle = self.heads.end.min(self.heads.start.saturating_add(count));
        let taken = Self { heads: self.heads.start..middle, tokens: self.tokens.clone(), ..*self };
        self.heads.start = middle;
        taken
    }

    /// Takes the first `count` tokens, or as many as there are, out of it.
    pub(crate) fn take_tokens(&mut self, count: usize) -> Self {
        let middle = self.tokens.end.min(self.tokens.start.saturating_add(count));
        let taken = Self { heads: self.heads.clone(), tokens: self.tokens.start..middle, ..*self };
        self.tokens.start = middle;
        taken
    }

    pub(crate) fn heads(&self) -> Range<usize> {
        self.heads.clone()
    }

    pub(crate) fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// None.
    pub(crate) fn none() -> Self {
        let data: &mut [f32] = &mut [];
        let nothing =
            SharedRows { data: data.as_mut_ptr(), shape: [0; 4], strides: [0; 4], borrow: PhantomData };
        Self { rows: AnyRows::F32(nothing), heads_per_sequence: 0, heads: 0..0, tokens: 0..0 }
    }

    /// Where a head's token is in the output, if it is in this part.
    #[inline(always)]
    fn place(&self, head: usize, token: usize) -> Option<[usize; 3]> {
        let inside = self.heads.contains(&head) && self.tokens.contains(&token);
        inside.then(|| [head / self.heads_per_sequence, head % self.heads_per_sequence, token])
    }

    /// `row / divisor` to a head's token, rounded to the stored type; nothing outside this part. `row` holds at least as many
    /// numbers as the output's rows.
    #[inline(always)]
    pub(crate) fn store<I: Isa>(&mut self, isa: I, head: usize, token: usize, row: &[f32], divisor: f32) {
        let Some(place) = self.place(head, token) else { return };
        // SAFETY: the place is in this part.
        unsafe {
            match &mut self.rows {
                AnyRows::F32(rows) => store(isa, own(rows, place), row, divisor),
                AnyRows::F16(rows) => store(isa, own(rows, place), row, divisor),
                AnyRows::Bf16(rows) => store(isa, own(rows, place), row, divisor),
            }
        }
    }

    /// +0 to a head's token; nothing outside this part.
    pub(crate) fn store_zero(&mut self, head: usize, token: usize) {
        let Some(place) = self.place(head, token) else { return };
        // SAFETY: the place is in this part.
        unsafe {
            match &mut self.rows {
                AnyRows::F32(rows) => own(rows, place).fill(0.0),
                AnyRows::F16(rows) => own(rows, place).fill(f16::ZERO),
                AnyRows::Bf16(rows) => own(rows, place).fill(bf16::ZERO),
            }
        }
    }
}

#[inline(always)]
fn store<I: Isa, T: Element>(isa: I, out: &mut [T], row: &[f32], divisor: f32) {
    store_row(isa, &row[..out.len()], divisor, out);
}

/// A row of an [`OwnedRows`], for as long as it is borrowed.
///
/// # Safety
/// - `rows` are those of an [`OwnedRows`] and the place is in its part.
#[inline(always)]
unsafe fn own<'r, T>(rows: &'r mut SharedRows<'_, T>, [b, h, t]: [usize; 3]) -> &'r mut [T] {
    // SAFETY: `OwnedRows` are only ever made by taking rows out of one that had them alone, so no two share a row; and this
    // one is borrowed exclusively meanwhile.
    unsafe { rows.row(b, h, t) }
}
