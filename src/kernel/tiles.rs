//! The register tiles as functions of their own, for up to [`MAX_ROWS`](super::MAX_ROWS) rows: what several kernels run is
//! compiled once for a level, a product, a storage type and what strides are constants. Inlined into each of them, tiles were
//! two thirds of the crate's code, and compiling it took six times as long. A call costs some nanoseconds and is for a tile's
//! worth of work.
//!
//! What packs operands for them is a function of its own, too, and in [`crate::exact`] what weighs a group and what ends a block:
//! their speed depends less on what else the compiler has to keep in registers.
//!
//! Products of layers ([`crate::module::Linear`]) inline theirs.

use super::pack::{VALUE_PANEL, pack_panels, pack_values};
use super::prefetch::{AheadOfPanels, AheadOfValues, Near};
use super::product::{ColumnProduct, Dot, Fma, Halves, Pair, Product};
use super::score::{KeyRows, Panels, ScoreRows, score_panels, score_rows};
use super::value::{ValueRows, WeightedRows, accumulate};
use super::{Constant, Stride, rows_const};
use crate::element::Element;
use crate::isa::{Bf16Dot, Bf16Kernel, Isa, Kernel};
use crate::mask::TILE;
use half::bf16;
use std::ops::Range;

/// [`score_panels`] for so many rows.
pub(crate) struct ScorePanels<'a, F, S, C, D, A> {
    pub(crate) rows: usize,
    /// Rows of factors, one for each step.
    pub(crate) q: &'a [F],
    /// Stored rows of a panel.
    pub(crate) dims: usize,
    pub(crate) panels: &'a [S],
    pub(crate) ahead: A,
    pub(crate) columns: Range<usize>,
    pub(crate) out: ScoreRows<'a, C, D>,
}

impl<F, S: Copy, C, D: Stride, A: AheadOfPanels> ScorePanels<'_, F, S, C, D, A> {
    #[inline(always)]
    fn run_product<I: Isa, P: Product<I, Factor = F, Stored = S, Scale = C>>(self, isa: I) {
        let Self { rows, q, dims, panels, ahead, columns, out } = self;
        let panels = Panels { data: panels, ahead };
        rows_const!(rows, MR => score_panels::<I, P, MR>(isa, q, dims, panels, columns, out));
    }
}

impl<T: Element, D: Stride, A: AheadOfPanels> Kernel for ScorePanels<'_, f32, T, (), D, A> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.run_product::<I, Fma<T>>(isa);
    }
}

impl<S: Halves, A: AheadOfPanels> Bf16Kernel for ScorePanels<'_, Pair, S, f32, Constant<TILE>, A> {
    type Output = ();

    #[inline(always)]
    fn run<I: Bf16Dot>(self, isa: I) {
        self.run_product::<I, Dot<S>>(isa);
    }
}

/// [`score_rows`] for so many rows.
pub(crate) struct ScoreKeyRows<'a, F, T, C> {
    pub(crate) rows: usize,
    /// Rows of factors, one for each step.
    pub(crate) q: &'a [F],
    pub(crate) head_dim: usize,
    pub(crate) keys: KeyRows<'a, T>,
    pub(crate) tile_start: usize,
    pub(crate) columns: Range<usize>,
    pub(crate) out: ScoreRows<'a, C, Constant<TILE>>,
}

impl<F, T, C> ScoreKeyRows<'_, F, T, C> {
    #[inline(always)]
    fn run_product<I: Isa, P: ColumnProduct<I, Factor = F, Stored = T, Scale = C>>(self, isa: I) {
        let Self { rows, q, head_dim, keys, tile_start, columns, out } = self;
        rows_const!(rows, MR => score_rows::<I, P, MR>(isa, q, head_dim, keys, tile_start, columns, out));
    }
}

impl<T: Element> Kernel for ScoreKeyRows<'_, f32, T, ()> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.run_product::<I, Fma<T>>(isa);
    }
}

impl Bf16Kernel for ScoreKeyRows<'_, Pair, bf16, f32> {
    type Output = ();

    #[inline(always)]
    fn run<I: Bf16Dot>(self, isa: I) {
        self.run_product::<I, Dot<bf16>>(isa);
    }
}

/// [`accumulate`] for so many rows: adds `keys` keys (or pairs of keys), `step` of them at a time.
pub(crate) struct Accumulate<'a, F, S, V, W, A = Near> {
    pub(crate) rows: usize,
    pub(crate) values: ValueRows<'a, S, V, A>,
    pub(crate) keys: usize,
    pub(crate) step: usize,
    pub(crate) weighted: WeightedRows<'a, F, W>,
}

/// The same without keys whose weight is marked as removed.
pub(crate) struct Guarded<K>(pub(crate) K);

impl<F, S: Copy, V: Stride, W: Stride, A: AheadOfValues> Accumulate<'_, F, S, V, W, A> {
    #[inline(always)]
    fn run_product<I: Isa, P: Product<I, Factor = F, Stored = S>, const GUARD: bool>(self, isa: I) {
        let Self { rows, values, keys, step, weighted } = self;
        rows_const!(rows, MR => accumulate::<I, P, MR, GUARD>(isa, values, keys, step, weighted));
    }
}

impl<T: Element, V: Stride, W: Stride, A: AheadOfValues> Kernel for Accumulate<'_, f32, T, V, W, A> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.run_product::<I, Fma<T>, false>(isa);
    }
}

impl<T: Element, V: Stride, W: Stride, A: AheadOfValues> Kernel for Guarded<Accumulate<'_, f32, T, V, W, A>> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.0.run_product::<I, Fma<T>, true>(isa);
    }
}

/// Weights of a tile, in pairs.
pub(crate) type PairedTile = Constant<{ TILE / 2 }>;

impl<S: Halves, A: AheadOfValues> Bf16Kernel for Accumulate<'_, Pair, S, usize, PairedTile, A> {
    type Output = ();

    #[inline(always)]
    fn run<I: Bf16Dot>(self, isa: I) {
        self.run_product::<I, Dot<S>, false>(isa);
    }
}

impl<S: Halves, A: AheadOfValues> Bf16Kernel for Guarded<Accumulate<'_, Pair, S, usize, PairedTile, A>> {
    type Output = ();

    #[inline(always)]
    fn run<I: Bf16Dot>(self, isa: I) {
        self.0.run_product::<I, Dot<S>, true>(isa);
    }
}

/// [`Accumulate`] from packed values, `[panel of dimensions][TILE][width]` (see [`pack_values`](super::pack::pack_values)).
pub(crate) struct AccumulatePacked<'a, A = Near> {
    pub(crate) rows: usize,
    /// From the first key to add on, in the first panel of dimensions.
    pub(crate) values: &'a [f32],
    pub(crate) v_dim: usize,
    /// Dimensions of a panel, see [`value_panel`](super::pack::value_panel).
    pub(crate) width: usize,
    pub(crate) ahead: A,
    pub(crate) keys: usize,
    pub(crate) weighted: WeightedRows<'a, f32, Constant<TILE>>,
}

impl<A: AheadOfValues> AccumulatePacked<'_, A> {
    #[inline(always)]
    fn run_guard<I: Isa, const GUARD: bool>(self, isa: I) {
        let Self { rows, values, v_dim, width, ahead, keys, weighted } = self;
        let step = usize::MAX;
        if I::LANES == 16 {
            // All of a row, whose padding accumulators have room for.
            let values = ValueRows::cached(values, width, width).asking(ahead);
            return Accumulate { rows, values, keys, step, weighted }.run_product::<I, Fma<f32>, GUARD>(isa);
        }
        let WeightedRows { weights, weights_stride, acc, acc_stride } = weighted;
        for first in (0..v_dim).step_by(VALUE_PANEL) {
            // On to the end: what comes next is what is read next.
            let panel = ValueRows::cached(&values[first * TILE..], Constant::<VALUE_PANEL>, VALUE_PANEL);
            let values = panel.asking(ahead);
            let weighted = WeightedRows { weights, weights_stride, acc: &mut acc[first..], acc_stride };
            Accumulate { rows, values, keys, step, weighted }.run_product::<I, Fma<f32>, GUARD>(isa);
        }
    }
}

impl<A: AheadOfValues> Kernel for AccumulatePacked<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.run_guard::<I, false>(isa);
    }
}

impl<A: AheadOfValues> Kernel for Guarded<AccumulatePacked<'_, A>> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.0.run_guard::<I, true>(isa);
    }
}

/// [`pack_panels`] of one panel.
pub(crate) struct PackPanel<'a, T> {
    pub(crate) keys: KeyRows<'a, T>,
    pub(crate) head_dim: usize,
    pub(crate) panel: usize,
    pub(crate) out: &'a mut [f32],
}

impl<T: Element> Kernel for PackPanel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        pack_panels(isa, self.keys, self.head_dim, self.panel..self.panel + 1, self.out);
    }
}

/// [`pack_values`] of a tile's keys, panels [`TILE`] keys apart.
pub(crate) struct PackValues<'a, T> {
    pub(crate) values: ValueRows<'a, T>,
    pub(crate) keys: Range<usize>,
    /// Dimensions of a panel.
    pub(crate) width: usize,
    pub(crate) out: &'a mut [f32],
}

impl<T: Element> Kernel for PackValues<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        pack_values(isa, self.values, self.keys, [TILE, self.width], self.out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack::value_panel;
    use super::super::product::REMOVED;
    use super::*;
    use crate::Level;
    use half::f16;

    const KEYS: usize = 37;

    /// Sums of some rows from `first` on, of values that are taken to lie in memory or not.
    fn sums(
        level: Level,
        first: usize,
        rows: usize,
        v_dim: usize,
        (step, memory): (usize, bool),
    ) -> Vec<f32> {
        let number = |index: usize| (index * 7919 % 1009) as f32 / 1009.0 - 0.4;
        let weights: Vec<f32> = (0..rows * TILE).map(|index| number(first * TILE + index)).collect();
        let data: Vec<f32> = (0..KEYS * v_dim).map(|index| number(index + 5)).collect();
        let acc_stride = v_dim.next_multiple_of(16);
        let mut acc: Vec<f32> =
            (0..rows * acc_stride).map(|index| number(first * acc_stride + index)).collect();
        let mut values = ValueRows::cached(&data, v_dim, v_dim);
        (values.ahead, values.in_pairs) = (Near::first(memory), memory);
        let stride = Constant::<TILE>;
        let weighted = WeightedRows { weights: &weights, weights_stride: stride, acc: &mut acc, acc_stride };
        level.dispatch(Accumulate { rows, values, keys: KEYS, step, weighted });
        acc.chunks(acc_stride).flat_map(|row| row[..v_dim].to_vec()).collect()
    }

    /// How values are visited changes no bit: several rows are each as by itself.
    #[test]
    fn rows_are_summed_alike_whatever_the_way_through_values() {
        for level in Level::available() {
            for v_dim in [64, 128, 129, 256] {
                let alone = |row| sums(level, row, 1, v_dim, (usize::MAX, false));
                let expected: Vec<f32> = (0..6).flat_map(alone).collect();
                let ways = [(1, true), (16, true), (usize::MAX, true), (5, false)];
                for (rows, way) in (1..=6).flat_map(|rows| ways.map(|way| (rows, way))) {
                    let got = sums(level, 0, rows, v_dim, way);
                    let bits = |sums: &[f32]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
                    let same = bits(&got) == bits(&expected[..rows * v_dim]);
                    assert!(same, "{level}: {rows} rows of {v_dim} dimensions, {way:?}");
                }
            }
        }
    }

    /// Sums of the keys from `first` on, of values as they are stored, and packed among whatever was there.
    fn both_ways<T: Element>(
        level: Level,
        rows: usize,
        v_dim: usize,
        first: usize,
        guard: bool,
    ) -> [Vec<f32>; 2] {
        let number = |index: usize| (index * 7919 % 1009) as f32 / 1009.0 - 0.4;
        let data: Vec<T> = (0..KEYS * v_dim).map(|index| T::from_f32(number(index))).collect();
        let mut weights: Vec<f32> = (0..rows * TILE).map(|index| number(index + 3).abs()).collect();
        if guard {
            weights.iter_mut().step_by(3).for_each(|weight| *weight = REMOVED);
        }
        let (width, acc_stride) = (value_panel(level.lanes(), v_dim), v_dim.next_multiple_of(16));
        let mut packed = vec![f32::NAN; TILE * acc_stride];
        let values = ValueRows::cached(&data[..], v_dim, v_dim);
        level.dispatch(PackValues { values, keys: 0..KEYS, width, out: &mut packed });

        let keys = KEYS - first;
        let mut sums = [(); 2].map(|()| vec![0.25; rows * acc_stride]);
        for (packs, acc) in sums.iter_mut().enumerate() {
            let weights_stride = Constant::<TILE>;
            let weighted = WeightedRows { weights: &weights[first..], weights_stride, acc, acc_stride };
            if packs == 0 {
                let values = ValueRows { data: &data[first * v_dim..], ..values };
                let kernel = Accumulate { rows, values, keys, step: usize::MAX, weighted };
                if guard { level.dispatch(Guarded(kernel)) } else { level.dispatch(kernel) }
            } else {
                let (values, ahead) = (&packed[first * width..], Near::ForSeveral);
                let kernel = AccumulatePacked { rows, values, v_dim, width, ahead, keys, weighted };
                if guard { level.dispatch(Guarded(kernel)) } else { level.dispatch(kernel) }
            }
        }
        sums.map(|acc| acc.chunks(acc_stride).flat_map(|row| row[..v_dim].to_vec()).collect())
    }

    /// Packed values are the values: at any level, of any type and size.
    #[test]
    fn packed_values_are_summed_as_they_are_stored() {
        for level in Level::available() {
            for v_dim in [1, 15, 16, 17, 64, 80, 129] {
                for (rows, first, guard) in
                    [(6, 0, false), (6, 5, true), (1, 3, false), (4, 1, true), (5, 16, false)]
                {
                    let what = format!(
                        "{level}: {rows} rows of {v_dim} dimensions from key {first} on, guarded: {guard}"
                    );
                    for [stored, packed] in [
                        both_ways::<f32>(level, rows, v_dim, first, guard),
                        both_ways::<f16>(level, rows, v_dim, first, guard),
                        both_ways::<bf16>(level, rows, v_dim, first, guard),
                    ] {
                        assert!(stored.iter().all(|sum| sum.is_finite()), "{what}: {stored:?}");
                        let bits = |sums: &[f32]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
                        assert_eq!(bits(&packed), bits(&stored), "{what}");
                    }
                }
            }
        }
    }
}
