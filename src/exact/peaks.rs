//! The largest probabilities of a row: how many reach a threshold, and the sum of the top few.
//!
//! A probability is `w / l` at last, with `w = exp2(t - m)` and an `l` that only grows under the same maximum. So a key whose
//! weight falls below the threshold of the sum so far stays below it, and at most `1 / threshold` keys do not: [`Peaks`]
//! keeps their logits while the row is summed up, and looks at them again when its maximum and sum are final. With that the
//! count is exact, to the bit of the probabilities that [`super::scores`] writes, and costs a few percent.
//!
//! Below [`LEAST_THRESHOLD`] that would be long lists, and where a row's keys are split among tasks they would have to be
//! joined: there [`Details`] looks at the finished probabilities, in the pass of [`super::scores`].

use crate::isa::Isa;
use crate::mask::{TILE, TileBits};
use crate::metrics::{MAX_TOP_K, MetricsOptions, RowMetrics};
use crate::outputs::TopKey;
use crate::softmax::{Partial, exp2, shift};
use std::ops::Range;

/// The least threshold that one pass takes.
const LEAST_THRESHOLD: f32 = 1.0 / 128.0;

/// What rounding may take from a weight in comparison with a sum, amply.
const MARGIN: f32 = 1.0 / 1024.0;

/// Logits that are kept of a row: those above the sum of the splits so far, those above the sum of its own split, and a
/// tile's before they are looked through.
const KEPT: usize = 2 * 136 + TILE;

/// Numbers that a row needs: the top ones, and those kept.
pub(crate) const ROW_PEAKS: usize = MAX_TOP_K + KEPT;

const _: () = assert!((KEPT - TILE) as f32 / 2.0 > (1.0 + 8.0 * MARGIN) / LEAST_THRESHOLD, "room for all");

/// What to look for in one pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeakOptions {
    threshold: Option<f32>,
    top_k: usize,
}

impl PeakOptions {
    /// `None` if there is nothing to look for, or not in one pass.
    pub(crate) fn new(options: &MetricsOptions) -> Option<Self> {
        let small = options.sparsity.is_some_and(|threshold| threshold < LEAST_THRESHOLD);
        let wanted = options.needs_probabilities() && !small;
        wanted.then(|| Self { threshold: options.sparsity, top_k: options.top_k.unwrap_or(0) })
    }
}

/// A row's largest logits so far.
pub(crate) struct Peaks<'a> {
    options: PeakOptions,
    /// In descending order.
    top: &'a mut [f32],
    /// Those that may reach the threshold, `count` of them.
    kept: &'a mut [f32],
    count: &'a mut usize,
}

impl<'a> Peaks<'a> {
    /// Those in a row's `memory`, [`ROW_PEAKS`] numbers.
    #[inline(always)]
    pub(crate) fn new(options: PeakOptions, memory: &'a mut [f32], count: &'a mut usize) -> Self {
        let (top, kept) = memory.split_at_mut(MAX_TOP_K);
        Self { options, top: &mut top[..options.top_k], kept: &mut kept[..KEPT], count }
    }

    /// Starts a row.
    pub(crate) fn reset(self) {
        self.top.fill(f32::NEG_INFINITY);
        *self.count = 0;
    }

    /// Takes in the `columns` (multiples of 16) of a tile, weighed; `part` is the state of the split with them in it, `total`
    /// that of the splits before.
    #[inline(always)]
    pub(crate) fn add<I: Isa>(
        &mut self,
        isa: I,
        (logits, weights): (&[f32], &[f32]),
        columns: Range<usize>,
        (total, part): (&Partial, &Partial),
    ) {
        if KEPT - *self.count < columns.len() {
            self.look_through(isa, [total, part]);
        }
        let floor = self.floor(part);
        let mut least = self.top.last().copied().unwrap_or(f32::INFINITY);
        let (low, zero) = (isa.splat(floor), isa.splat(0.0));
        let mut high = isa.splat(least);
        for column in columns.step_by(I::LANES) {
            let (logit, weight) = (isa.load(&logits[column..]), isa.load(&weights[column..]));
            let above = isa.bits(isa.lt(low, weight));
            let removed = isa.bits(isa.lt(weight, zero));
            let mut found = above | isa.bits(isa.lt(high, logit)) & !removed;
            if found == 0 {
                continue;
            }
            while found != 0 {
                let lane = found.trailing_zeros();
                let logit = logits[column + lane as usize];
                if above >> lane & 1 == 1 {
                    self.kept[*self.count] = logit;
                    *self.count += 1;
                }
                if logit > least {
                    insert(self.top, logit);
                    least = self.top.last().copied().unwrap_or(f32::INFINITY);
                }
                found &= found - 1;
            }
            high = isa.splat(least);
        }
    }

    /// The weight that keys have to exceed to be kept, under the maximum of a state.
    #[inline(always)]
    fn floor(&self, state: &Partial) -> f32 {
        self.options.threshold.map_or(f32::INFINITY, |threshold| threshold * (1.0 - MARGIN) * state.sum)
    }

    /// Drops the logits that can no longer reach the threshold.
    #[inline(never)]
    fn look_through<I: Isa>(&mut self, isa: I, states: [&Partial; 2]) {
        let mut left = 0;
        for at in 0..*self.count {
            let logit = self.kept[at];
            let stays = |state: &Partial| exp2(isa, logit - shift(state.max)) > self.floor(state);
            if states.iter().all(|state| !state.seen || stays(state)) {
                self.kept[left] = logit;
                left += 1;
            }
        }
        *self.count = left;
    }

    /// What the row's final state makes of it.
    #[inline(always)]
    pub(crate) fn write<I: Isa>(&self, isa: I, end: &Partial, row: &mut RowMetrics) {
        let probability = |&logit: &f32| exp2(isa, logit - shift(end.max)) / end.sum;
        row.below_threshold = self.options.threshold.map(|threshold| {
            let reach = self.kept[..*self.count].iter().filter(|logit| probability(logit) >= threshold);
            if row.is_undefined() { 0 } else { row.keys - reach.count() }
        });
        // Fewer keys than were asked for leave places empty.
        let found = self.top.iter().filter(|&&logit| logit > f32::NEG_INFINITY);
        row.top_mass = (!self.top.is_empty()).then(|| top_mass(row, found.map(probability)));
    }
}

/// What only the finished probabilities of a row tell, tile by tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Details {
    below: usize,
    /// The largest so far, in descending order.
    top: [f32; MAX_TOP_K],
}

impl Details {
    pub(crate) const EMPTY: Details = Details { below: 0, top: [0.0; MAX_TOP_K] };

    /// Takes in the probabilities of the columns of a tile that `allowed` has.
    #[inline(always)]
    pub(crate) fn add<I: Isa>(
        &mut self,
        isa: I,
        options: &MetricsOptions,
        probabilities: &[f32],
        allowed: &TileBits,
    ) {
        let threshold = isa.splat(options.sparsity.unwrap_or(0.0));
        let top = &mut self.top[..options.top_k.unwrap_or(0)];
        for (column, lanes) in probabilities.chunks_exact(I::LANES).enumerate() {
            let p = isa.load(lanes);
            let allowed = (allowed[column * I::LANES / 64] >> (column * I::LANES % 64)) as u32;
            self.below += (isa.bits(isa.lt(p, threshold)) & allowed).count_ones() as usize;
            let Some(&least) = top.last() else { continue };
            let mut larger = isa.bits(isa.lt(isa.splat(least), p));
            while larger != 0 {
                insert(top, lanes[larger.trailing_zeros() as usize]);
                larger &= larger - 1;
            }
        }
    }

    pub(crate) fn write(&self, options: &MetricsOptions, row: &mut RowMetrics) {
        row.below_threshold = options.sparsity.map(|_| self.below);
        row.top_mass = options.top_k.map(|k| top_mass(row, self.top[..k].iter().copied()));
    }
}

/// Takes the probabilities of the columns of a tile that `allowed` has into a row's list of the largest; column 0 is key
/// `first`. NaN is none.
#[inline(always)]
pub(crate) fn add_top_keys<I: Isa>(
    isa: I,
    top: &mut [TopKey],
    first: usize,
    probabilities: &[f32],
    allowed: &TileBits,
) {
    for (vector, lanes) in probabilities.chunks_exact(I::LANES).enumerate() {
        let Some(&last) = top.last() else { return };
        // Whatever there is, as long as there is room.
        let least = if last == TopKey::NONE { -1.0 } else { last.probability };
        let column = vector * I::LANES;
        let allowed = (allowed[column / 64] >> (column % 64)) as u32;
        let mut larger = isa.bits(isa.lt(isa.splat(least), isa.load(lanes))) & allowed;
        while larger != 0 {
            let lane = larger.trailing_zeros() as usize;
            let found = TopKey { key: first + column + lane, probability: lanes[lane] };
            let before = |kept: &TopKey| *kept != TopKey::NONE && kept.probability >= found.probability;
            let at = top.partition_point(before);
            if at < top.len() {
                top[at..].rotate_right(1);
                top[at] = found;
            }
            larger &= larger - 1;
        }
    }
}

/// The sum of a row's largest probabilities.
fn top_mass(row: &RowMetrics, top: impl Iterator<Item = f32>) -> f32 {
    if row.is_undefined() { f32::NAN } else { top.map(f64::from).sum::<f64>() as f32 }
}

/// Takes a number into a descending list if it is larger than the least, which falls out.
fn insert(list: &mut [f32], x: f32) {
    let at = list.partition_point(|&kept| kept >= x);
    if at < list.len() {
        list[at..].rotate_right(1);
        list[at] = x;
    }
}
