//! States of splits that run side by side: `[unit, split, row]`, each the row's state followed by its output row.

use super::block::join;
use super::measure::PartSums;
use crate::isa::Isa;
use crate::rows::SharedRows;
use crate::softmax::Partial;
use crate::view::ViewMut;

/// Elements before the output row; keeps it aligned.
const HEADER: usize = 16;

/// The store, written by tasks.
pub(crate) struct Partials<'a> {
    rows: SharedRows<'a, f32>,
}

/// Elements of a store of this shape.
pub(crate) fn partials_len(units: usize, splits: usize, rows: usize, acc_stride: usize) -> Option<usize> {
    units.checked_mul(splits)?.checked_mul(rows)?.checked_mul(acc_stride.checked_add(HEADER)?)
}

impl<'a> Partials<'a> {
    /// A store in `buffer`; `None` if it is too small.
    pub(crate) fn new(
        buffer: &'a mut [f32],
        [units, splits, rows]: [usize; 3],
        acc_stride: usize,
    ) -> Option<Self> {
        let view = ViewMut::new(buffer, [units, splits, rows, acc_stride + HEADER]).ok()?;
        Some(Self { rows: SharedRows::new(view) })
    }

    /// Keeps a part.
    ///
    /// # Safety
    /// - No other task works on the parts of this `[unit, split]` meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn put(
        &self,
        [unit, split, row]: [usize; 3],
        (state, sums): (&Partial, &PartSums),
        acc: &[f32],
    ) {
        // SAFETY: the row lies in the part, which is the caller's alone.
        let slot = unsafe { self.rows.row(unit, split, row) };
        slot[0] = state.max;
        slot[1] = state.sum;
        slot[2] = f32::from(u8::from(state.seen));
        // Exact: a split's sums were `f32` when they were folded, and its keys are few.
        slot[3..7].copy_from_slice(&[
            sums.keys as f32,
            sums.energy as f32,
            sums.distance as f32,
            sums.first as f32,
        ]);
        slot[HEADER..].copy_from_slice(acc);
    }

    /// Joins a row's parts in key order into `acc` and `sums`, which it overwrites.
    ///
    /// # Safety
    /// - No other task works on the parts of this `unit` meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn merge<I: Isa>(
        &self,
        isa: I,
        unit: usize,
        splits: usize,
        row: usize,
        (acc, sums): (&mut [f32], &mut PartSums),
    ) -> Partial {
        let mut total = Partial::EMPTY;
        *sums = PartSums::EMPTY;
        for split in 0..splits {
            // SAFETY: the row lies in a part of the unit, which is the caller's alone.
            let slot = unsafe { self.rows.row(unit, split, row) };
            let seen = mutant!("empty-split-has-keys", slot[2] != 0.0, true);
            let later = Partial { max: slot[0], sum: slot[1], seen };
            let [keys, energy, distance, first] = [3, 4, 5, 6].map(|at| f64::from(slot[at]));
            let part = PartSums { keys: keys as usize, energy, distance, first };
            sums.join(isa, &total, (&later, &part));
            join(isa, (&mut total, acc), (&later, &slot[HEADER..]));
        }
        total
    }
}
