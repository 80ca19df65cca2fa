//! Numbers in memory: where, and in which layout.

use super::super::guard::Guarded;
use lucid_attention::{View, ViewMut};
use std::ops::{Deref, DerefMut, Range};

/// How operands lie in memory. What lies between their elements is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    HeadMajor,
    TokenMajor,
    /// Gaps between rows, heads and batches.
    Gaps,
    /// As parts of one packed projection, `[batch, token, q_heads + 2 kv_heads, dim]`.
    Packed,
    /// One key and value for all heads of KV and all batches: stride 0.
    SharedHeads,
    /// One key and value for all tokens: stride 0.
    SharedTokens,
    /// Keys in panels, the rest head-major.
    Panels,
}

/// Every layout.
pub const STORAGES: [Storage; 7] = [
    Storage::HeadMajor,
    Storage::TokenMajor,
    Storage::Gaps,
    Storage::Packed,
    Storage::SharedHeads,
    Storage::SharedTokens,
    Storage::Panels,
];

/// Strides of a contiguous array.
pub fn contiguous([_, heads, tokens, dim]: [usize; 4]) -> [usize; 4] {
    [heads * tokens * dim, tokens * dim, dim, 1]
}

/// Strides of an operand; `packed` is the number of heads in a packed projection.
pub(super) fn strides(storage: Storage, shape: [usize; 4], packed: usize) -> [usize; 4] {
    let [_, heads, tokens, dim] = shape;
    match storage {
        Storage::TokenMajor => [tokens * heads * dim, dim, heads * dim, 1],
        Storage::Packed => [tokens * packed * dim, dim, packed * dim, 1],
        Storage::Gaps => {
            let row = dim + 3;
            let head = tokens * row + 5;
            [heads * head + 1, head, row, 1]
        }
        _ => contiguous(shape),
    }
}

/// Where memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Heap,
    /// Followed by an inaccessible page.
    AtEnd,
    /// Preceded by one.
    AtStart,
}

/// A slice somewhere.
#[derive(Debug)]
pub enum Memory<T> {
    Heap(Vec<T>),
    Guarded(Guarded<T>),
}

impl<T: Copy> Memory<T> {
    /// These values there.
    pub fn new(values: Vec<T>, place: Place) -> Self {
        match place {
            Place::Heap => Memory::Heap(values),
            Place::AtEnd => Memory::Guarded(Guarded::new_at_end(&values)),
            Place::AtStart => Memory::Guarded(Guarded::new_at_start(&values)),
        }
    }
}

impl<T> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Memory::Heap(values) => values,
            Memory::Guarded(values) => values,
        }
    }
}

impl<T> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Memory::Heap(values) => values,
            Memory::Guarded(values) => values,
        }
    }
}

/// Values with a shape and strides.
#[derive(Debug)]
pub struct Operand<T> {
    pub data: Memory<T>,
    pub shape: [usize; 4],
    pub strides: [usize; 4],
}

impl<T: Copy> Operand<T> {
    /// `value(index)` inside the shape, `gap` between.
    pub fn new(
        shape: [usize; 4],
        strides: [usize; 4],
        place: Place,
        gap: T,
        mut value: impl FnMut([usize; 4]) -> T,
    ) -> Self {
        let reach = (0..4).map(|axis| shape[axis].saturating_sub(1) * strides[axis]).sum::<usize>() + 1;
        let mut data = vec![gap; if shape.contains(&0) { 0 } else { reach }];
        for_each_index(shape, |index| data[offset(index, strides)] = value(index));
        Operand { data: Memory::new(data, place), shape, strides }
    }

    /// All of it.
    pub fn view(&self) -> View<'_, T> {
        View::with_strides(&self.data, self.shape, self.strides).expect("strides that fit the buffer")
    }

    /// The element at an index.
    pub fn at(&self, index: [usize; 4]) -> T {
        self.data[offset(index, self.strides)]
    }

    /// The elements in the order of the shape.
    pub fn gather(&self) -> Vec<T> {
        let mut values = Vec::new();
        for_each_index(self.shape, |index| values.push(self.at(index)));
        values
    }
}

/// Some rows of a mask or bias, if any are named; all of them where one stands for all.
pub(super) fn rows_of<T: Copy>(mask: &Operand<T>, rows: Option<Range<usize>>) -> View<'_, T> {
    match rows {
        Some(rows) if mask.shape[2] != 1 => slice(mask, rows),
        _ => mask.view(),
    }
}

/// Some tokens of an operand.
pub fn slice<T: Copy>(operand: &Operand<T>, tokens: Range<usize>) -> View<'_, T> {
    let Operand { shape: [batch, heads, _, dim], strides, .. } = *operand;
    let shape = [batch, heads, tokens.len(), dim];
    let data = if shape.contains(&0) { &[][..] } else { &operand.data[tokens.start * strides[2]..] };
    View::with_strides(data, shape, strides).expect("a part of the operand")
}

pub(super) fn view_mut<T>(operand: &mut Operand<T>) -> ViewMut<'_, T> {
    ViewMut::with_strides(&mut operand.data, operand.shape, operand.strides).expect("disjoint elements")
}

pub(super) fn offset(index: [usize; 4], strides: [usize; 4]) -> usize {
    (0..4).map(|axis| index[axis] * strides[axis]).sum()
}

/// Calls `visit` for every index of a shape, in order.
pub fn for_each_index([batch, heads, tokens, dim]: [usize; 4], mut visit: impl FnMut([usize; 4])) {
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..tokens {
                for d in 0..dim {
                    visit([b, h, t, d]);
                }
            }
        }
    }
}
