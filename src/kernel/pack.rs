//! Passes that turn stored operands into what the kernels read, and results into what is stored.

use super::load_padded;
use super::prefetch::PrefetchRows;
use super::product::Fma;
use super::score::{KeyRows, load_columns};
use super::value::ValueRows;
use crate::element::Element;
use crate::isa::Isa;
use crate::panels::PANEL;
use std::ops::Range;

/// `out[d] = row[d] * factor`, in `f32`.
#[inline(always)]
pub(crate) fn pack_query<I: Isa, Q: Element>(isa: I, row: &[Q], factor: f32, out: &mut [f32]) {
    let factor = isa.splat(factor);
    let (mut from, mut to) = (row.chunks_exact(I::LANES), out.chunks_exact_mut(I::LANES));
    for (row, out) in from.by_ref().zip(to.by_ref()) {
        isa.store(isa.mul(Q::load(isa, row), factor), out);
    }
    let rest = to.into_remainder();
    if !rest.is_empty() {
        let mut padded = [0.0; 16];
        let row = load_padded(isa, from.remainder(), 0);
        isa.store(mutant!("tail-of-queries-not-scaled", isa.mul(row, factor), row), &mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Rows of keys into `panels`, reading and writing each once. Keys that do not exist become, or stay, arbitrary numbers.
#[inline(always)]
pub(crate) fn pack_panels<I: Isa, T: Element>(
    isa: I,
    keys: KeyRows<'_, T>,
    head_dim: usize,
    panels: Range<usize>,
    out: &mut [f32],
) {
    for (panel, out) in panels.zip(out.chunks_exact_mut(PANEL * head_dim)) {
        for column in (0..PANEL).step_by(I::LANES) {
            let first = panel * PANEL + column;
            if first >= keys.len {
                return;
            }
            let mut prefetch = PrefetchRows::new(keys, head_dim, [first, I::LANES]);
            for d in (0..head_dim).step_by(T::COLUMNS) {
                prefetch.ask(isa);
                let columns = load_columns::<I, Fma<T>>(isa, keys, head_dim, first, d);
                let dims = out[d * PANEL..].chunks_exact_mut(PANEL);
                for (dim, &keys) in dims.zip(&columns[..T::COLUMNS]) {
                    isa.store(keys, &mut dim[column..]);
                }
            }
        }
    }
}

/// Dimensions of a panel of packed values where vectors are narrow: what a register tile of [`crate::isa::avx2`]'s level has.
pub(crate) const VALUE_PANEL: usize = 16;

/// The same on any level: vectors of 16 lanes have one panel of all dimensions, in whole vectors.
#[inline(always)]
pub(crate) const fn value_panel(lanes: usize, v_dim: usize) -> usize {
    if lanes < 16 { VALUE_PANEL } else { v_dim.next_multiple_of(16) }
}

/// Values of the keys `keys` as `out[panel of dimensions][key][width]`, panels `rows` keys apart; dimensions that do
/// not exist become zero. Narrow register tiles then read one run of memory, where rows would have them visit as few cache
/// sets as there are lines between pieces of 64 bytes; wide ones whole lines, in `f32`. Rows are read in the order of memory: 16
/// queries of each of 32 heads on 8 gain 2 % from there (bench `roofline`, `few`, level AVX2).
#[inline(always)]
pub(crate) fn pack_values<I: Isa, T: Element>(
    isa: I,
    values: ValueRows<'_, T>,
    keys: Range<usize>,
    [rows, width]: [usize; 2],
    out: &mut [f32],
) {
    for (index, key) in keys.enumerate() {
        let row = &values.data[key * values.stride..][..values.v_dim];
        let dims = (0..values.v_dim).step_by(width);
        for (first, out) in dims.zip(out.chunks_mut(rows * width)) {
            let out = &mut out[index * width..][..width];
            for lane in (0..width).step_by(I::LANES) {
                isa.store(load_padded(isa, row, first + lane), &mut out[lane..]);
            }
        }
    }
}

/// Widens stored values, as many as `out` holds.
#[inline(always)]
pub(crate) fn widen<I: Isa, T: Element>(isa: I, src: &[T], out: &mut [f32]) {
    let (mut from, mut to) = (src[..out.len()].chunks_exact(I::LANES), out.chunks_exact_mut(I::LANES));
    for (src, out) in from.by_ref().zip(to.by_ref()) {
        isa.store(T::load(isa, src), out);
    }
    for (&src, out) in from.remainder().iter().zip(to.into_remainder()) {
        *out = src.to_f32();
    }
}

/// `out[d] = row[d] / divisor`, rounded to the stored type.
#[inline(always)]
pub(crate) fn store_row<I: Isa, Q: Element>(isa: I, row: &[f32], divisor: f32, out: &mut [Q]) {
    let divisor = isa.splat(divisor);
    let (mut from, mut to) = (row.chunks_exact(I::LANES), out.chunks_exact_mut(I::LANES));
    for (row, out) in from.by_ref().zip(to.by_ref()) {
        let row = isa.load(row);
        let quotient = mutant!(
            "division-by-reciprocal",
            isa.div(row, divisor),
            isa.mul(row, isa.div(isa.splat(1.0), divisor))
        );
        Q::store(isa, quotient, out);
    }
    let rest = to.into_remainder();
    if !rest.is_empty() {
        let mut padded = [Q::default(); 16];
        let row = load_padded(isa, from.remainder(), 0);
        Q::store(isa, mutant!("tail-of-outputs-not-divided", isa.div(row, divisor), row), &mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// `row[d] = row[d] * factor`; the length is a multiple of 16.
#[inline(always)]
pub(crate) fn scale_row<I: Isa>(isa: I, row: &mut [f32], factor: f32) {
    let factor = isa.splat(factor);
    for row in row.chunks_exact_mut(I::LANES) {
        isa.store(isa.mul(isa.load(row), factor), row);
    }
}

/// `into[d] = into[d] * own + other[d] * factor`, the multiply-add last; the length is a multiple of 16.
#[inline(always)]
pub(crate) fn merge_row<I: Isa>(isa: I, into: &mut [f32], own: f32, other: &[f32], factor: f32) {
    let (own, factor) = (isa.splat(own), isa.splat(factor));
    for (into, other) in into.chunks_exact_mut(I::LANES).zip(other.chunks_exact(I::LANES)) {
        let kept = isa.mul(isa.load(into), own);
        isa.store(isa.mul_add(isa.load(other), factor, kept), into);
    }
}
