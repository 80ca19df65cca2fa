//! The largest probabilities of a row: how many reach a threshold, and the sum of the top few.
//!
//! A probability is `w / l` at last, with `w = exp2(t - m)` and an `l` that only grows under the same maximum. So a key whose
//! weight falls below the threshold of the sum so far stays below it, and at most `1 / threshold` keys do not: [`Peaks`]
//! keeps their logits while the row is summed up, and looks at them again when its maximum and sum are final. With that the
//! count is exact, to the bit of the probabilities that [`super::scores`] writes. A call of 2048 x 2048 at D = 64 takes 1.2
//! times as long with a threshold of 0.01, and 1.5 times with the 16 largest and all other metrics besides (bench `attention`,
//! group `metrics`, AVX2); with a second pass it took 4.6 times.
//!
//! Below [`LEAST_THRESHOLD`] that would be long lists, and where a row's keys are split among tasks they would have to be
//! joined: there, and where [`crate::Metrics`] has not the memory, [`Details`] looks at the finished probabilities, in the pass
//! of [`super::scores`].

use crate::error::AttentionError;
use crate::isa::{Isa, Kernel};
use crate::mask::{TILE, TileBits};
use crate::math;
use crate::metrics::{MAX_TOP_K, MetricsOptions, RowMetrics, extend};
use crate::outputs::TopKey;
use crate::softmax::{Partial, SUM_LANES, shift};
use std::ops::Range;

/// The least threshold that one pass takes.
const LEAST_THRESHOLD: f32 = 1.0 / 128.0;

/// What rounding may take from a weight in comparison with a sum, amply.
const MARGIN: f32 = 1.0 / 1024.0;

/// Logits that are kept of a row. When they are looked through, what stays of the splits before is above the floor of their
/// sum, and what stays of this split above that of its own: the weights of each kind make up a sum of which each is more than
/// `LEAST_THRESHOLD (1 - MARGIN)`, so there are less than 130 of it, rounding included. A tile's come on top.
const KEPT: usize = 2 * 136 + TILE;

/// Numbers that a row needs: the top ones, and those kept.
const ROW_PEAKS: usize = TOP_LIST + KEPT;

/// Numbers of a list of the largest, see [`insert`].
const TOP_LIST: usize = HEAD + MAX_TOP_K;

/// Those before the largest, all infinite.
const HEAD: usize = 16;

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

/// Memory for the peaks of a worker's rows: [`ROW_PEAKS`] numbers for each row of a block, then a tile's logits of one row.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeakBuffer(Vec<f32>);

impl PeakBuffer {
    /// Makes room for blocks of that many rows.
    pub(crate) fn reserve(&mut self, rows: usize) -> Result<(), AttentionError> {
        if self.rows() < rows { extend(&mut self.0, rows * ROW_PEAKS + TILE) } else { Ok(()) }
    }

    /// How many rows it has room for.
    pub(crate) fn rows(&self) -> usize {
        self.0.len() / ROW_PEAKS
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.len() * size_of::<f32>()
    }

    /// That of some rows, and of the tile's logits; nothing of rows there is no room for.
    #[inline(always)]
    pub(crate) fn of_rows(&mut self, rows: Range<usize>) -> PeakMemory<'_> {
        let own = self.rows() * ROW_PEAKS;
        let (all, logits) = self.0.split_at_mut(own);
        PeakMemory {
            rows: all.get_mut(rows.start * ROW_PEAKS..rows.end * ROW_PEAKS).unwrap_or_default(),
            logits,
        }
    }
}

/// See [`PeakBuffer::of_rows`].
pub(crate) struct PeakMemory<'a> {
    rows: &'a mut [f32],
    pub(crate) logits: &'a mut [f32],
}

impl PeakMemory<'_> {
    /// That of the `index`-th of the rows.
    #[inline(always)]
    pub(crate) fn row(&mut self, index: usize) -> &mut [f32] {
        self.row_and_logits(index).0
    }

    /// The same, and the tile's logits.
    #[inline(always)]
    pub(crate) fn row_and_logits(&mut self, index: usize) -> (&mut [f32], &[f32]) {
        (&mut self.rows[index * ROW_PEAKS..][..ROW_PEAKS], self.logits)
    }
}

/// A row's largest logits so far.
pub(crate) struct Peaks<'a> {
    options: PeakOptions,
    /// See [`insert`].
    top: &'a mut [f32],
    /// Those that may reach the threshold, `count` of them.
    kept: &'a mut [f32],
    count: &'a mut usize,
}

impl<'a> Peaks<'a> {
    /// Those in a row's part of a [`PeakMemory`].
    #[inline(always)]
    pub(crate) fn new(options: PeakOptions, memory: &'a mut [f32], count: &'a mut usize) -> Self {
        let (top, kept) = memory.split_at_mut(TOP_LIST);
        Self { options, top, kept: &mut kept[..KEPT], count }
    }

    /// Starts a row.
    pub(crate) fn reset(self) {
        self.top.copy_from_slice(&empty_list(f32::NEG_INFINITY));
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
        if self.options.threshold.is_some() {
            if KEPT - *self.count < columns.len() {
                self.look_through(isa, [total, part]);
            }
            self.keep_above(isa, self.floor(part), (logits, weights), columns.clone());
        }
        if self.options.top_k > 0 {
            self.keep_top(isa, (logits, weights), columns);
        }
    }

    /// Keeps the logits whose weight is above `floor`, which is not negative.
    #[inline(always)]
    fn keep_above<I: Isa>(
        &mut self,
        isa: I,
        floor: f32,
        (logits, weights): (&[f32], &[f32]),
        columns: Range<usize>,
    ) {
        let (floor, mut count) = (isa.splat(floor), *self.count);
        for first in columns.clone().step_by(64) {
            let mut found = 0;
            for column in (first..columns.end.min(first + 64)).step_by(I::LANES) {
                let above = isa.bits(isa.lt(floor, isa.load(&weights[column..])));
                found |= u64::from(above) << (column - first);
            }
            while found != 0 {
                self.kept[count] = logits[first + found.trailing_zeros() as usize];
                count += 1;
                found &= found - 1;
            }
        }
        *self.count = count;
    }

    /// Takes in the logits that are larger than the least of the top ones.
    #[inline(always)]
    fn keep_top<I: Isa>(&mut self, isa: I, (logits, weights): (&[f32], &[f32]), columns: Range<usize>) {
        let (top_k, zero) = (self.options.top_k, isa.splat(0.0));
        for first in columns.clone().step_by(64) {
            let least = isa.splat(self.top[HEAD + top_k - 1]);
            let mut found = 0;
            for column in (first..columns.end.min(first + 64)).step_by(I::LANES) {
                let larger = isa.bits(isa.lt(least, isa.load(&logits[column..])));
                let removed = isa.bits(isa.lt(isa.load(&weights[column..]), zero));
                found |= u64::from(larger & !removed) << (column - first);
            }
            while found != 0 {
                let logit = logits[first + found.trailing_zeros() as usize];
                if logit > self.top[HEAD + top_k - 1] {
                    insert(isa, self.top, top_k, logit);
                }
                found &= found - 1;
            }
        }
    }

    /// The weight that keys have to exceed to be kept, under the maximum of a state.
    #[inline(always)]
    fn floor(&self, state: &Partial) -> f32 {
        self.options.threshold.map_or(f32::INFINITY, |threshold| threshold * (1.0 - MARGIN) * state.sum)
    }

    /// Drops the logits that can no longer reach the threshold.
    #[inline(always)]
    fn look_through<I: Isa>(&mut self, isa: I, states: [&Partial; 2]) {
        for state in states {
            // Logits that all overflowed say nothing of others.
            if state.max > f32::NEG_INFINITY {
                let (count, max, floor) = (*self.count, state.max, self.floor(state));
                let logits = &mut self.kept[..count.next_multiple_of(SUM_LANES)];
                *self.count = isa.call(KeepAbove { logits, count, max, floor });
            }
        }
    }

    /// What the row's final state makes of it.
    #[inline(always)]
    pub(crate) fn write<I: Isa>(&self, isa: I, end: &Partial, row: &mut RowMetrics) {
        let count = *self.count;
        let logits = &self.kept[..count.next_multiple_of(SUM_LANES)];
        if let Some(threshold) = self.options.threshold {
            let reach = isa.call(CountReaching { logits, count, end, threshold });
            row.below_threshold = Some(if row.is_undefined() { 0 } else { row.keys - reach });
        }
        let top_k = self.options.top_k;
        if top_k > 0 {
            let mut top = [0.0; MAX_TOP_K];
            top.copy_from_slice(&self.top[HEAD..]);
            // Fewer keys than were asked for leave places empty.
            let found = top[..top_k].iter().take_while(|&&logit| logit > f32::NEG_INFINITY).count();
            isa.call(Probabilities { logits: &mut top[..top_k.next_multiple_of(SUM_LANES)], end });
            row.top_mass = Some(top_mass(row, &top[..found]));
        }
    }
}

/// Keeps those of the first `count` logits, in order, whose weight is above `floor`; returns how many.
struct KeepAbove<'a> {
    logits: &'a mut [f32],
    count: usize,
    max: f32,
    floor: f32,
}

impl Kernel for KeepAbove<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> usize {
        let (shift, floor) = (isa.splat(shift(self.max)), isa.splat(self.floor));
        let mut left = 0;
        for at in (0..self.count).step_by(I::LANES) {
            let weight = math::vector::exp2(isa, isa.sub(isa.load(&self.logits[at..]), shift));
            let mut above = isa.bits(isa.lt(floor, weight)) & first_lanes(self.count - at);
            while above != 0 {
                self.logits[left] = self.logits[at + above.trailing_zeros() as usize];
                left += 1;
                above &= above - 1;
            }
        }
        left
    }
}

/// How many of the first `count` logits have a probability of at least `threshold`.
struct CountReaching<'a> {
    logits: &'a [f32],
    count: usize,
    end: &'a Partial,
    threshold: f32,
}

impl Kernel for CountReaching<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> usize {
        let threshold = isa.splat(self.threshold);
        let mut reach = 0;
        for at in (0..self.count).step_by(I::LANES) {
            let p = probability(isa, isa.load(&self.logits[at..]), self.end);
            let below = isa.bits(isa.lt(p, threshold));
            reach += (!below & first_lanes(self.count - at).min(u32::MAX >> (32 - I::LANES))).count_ones();
        }
        reach as usize
    }
}

/// Turns logits, a multiple of 16 of them, into probabilities.
struct Probabilities<'a> {
    logits: &'a mut [f32],
    end: &'a Partial,
}

impl Kernel for Probabilities<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for lanes in self.logits.chunks_exact_mut(I::LANES) {
            isa.store(probability(isa, isa.load(lanes), self.end), lanes);
        }
    }
}

#[inline(always)]
fn probability<I: Isa>(isa: I, logits: I::F, end: &Partial) -> I::F {
    let weight = math::vector::exp2(isa, isa.sub(logits, isa.splat(shift(end.max))));
    isa.div(weight, isa.splat(end.sum))
}

/// A bit for each of the first `count` lanes.
#[inline(always)]
fn first_lanes(count: usize) -> u32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

/// What only the finished probabilities of a row tell, tile by tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Details {
    below: usize,
    /// See [`insert`].
    top: [f32; TOP_LIST],
}

impl Details {
    pub(crate) const EMPTY: Details = Details { below: 0, top: empty_list(0.0) };

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
        let top_k = options.top_k.unwrap_or(0);
        for (column, lanes) in probabilities.chunks_exact(I::LANES).enumerate() {
            let p = isa.load(lanes);
            let allowed = (allowed[column * I::LANES / 64] >> (column * I::LANES % 64)) as u32;
            self.below += (isa.bits(isa.lt(p, threshold)) & allowed).count_ones() as usize;
            let mut larger = isa.bits(isa.lt(isa.splat(least(&self.top, top_k)), p));
            while larger != 0 {
                insert(isa, &mut self.top, top_k, lanes[larger.trailing_zeros() as usize]);
                larger &= larger - 1;
            }
        }
    }

    pub(crate) fn write(&self, options: &MetricsOptions, row: &mut RowMetrics) {
        row.below_threshold = options.sparsity.map(|_| self.below);
        row.top_mass = options.top_k.map(|k| top_mass(row, &self.top[HEAD..HEAD + k]));
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
        let least = if last.is_none() { -1.0 } else { last.probability() };
        let column = vector * I::LANES;
        let allowed = (allowed[column / 64] >> (column % 64)) as u32;
        let mut larger = isa.bits(isa.lt(isa.splat(least), isa.load(lanes))) & allowed;
        while larger != 0 {
            let lane = larger.trailing_zeros() as usize;
            let found = TopKey::new(first + column + lane, lanes[lane]);
            let before = |kept: &TopKey| !kept.is_none() && kept.probability() >= found.probability();
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
fn top_mass(row: &RowMetrics, top: &[f32]) -> f32 {
    if row.is_undefined() { f32::NAN } else { top.iter().map(|&p| f64::from(p)).sum::<f64>() as f32 }
}

/// A list for [`insert`] that holds nothing larger than `x`.
const fn empty_list(x: f32) -> [f32; TOP_LIST] {
    let mut list = [x; TOP_LIST];
    let mut at = 0;
    while at < HEAD {
        list[at] = f32::INFINITY;
        at += 1;
    }
    list
}

/// The least of the `count` largest; nothing is larger than that of none.
#[inline(always)]
fn least(list: &[f32], count: usize) -> f32 {
    if count == 0 { f32::INFINITY } else { list[HEAD + count - 1] }
}

/// Puts a number in its place among the `count` largest, in descending order, behind a head that is infinite; the least falls
/// out. A place takes the number, or what stood before it, or keeps what it has: whichever is in the middle.
#[inline(always)]
fn insert<I: Isa>(isa: I, list: &mut [f32], count: usize, x: f32) {
    let x = isa.splat(x);
    let mut at = HEAD + count.next_multiple_of(SUM_LANES);
    while at > HEAD {
        at -= I::LANES;
        let (before, own) = (isa.load(&list[at - 1..]), isa.load(&list[at..]));
        isa.store(isa.max(own, isa.min(before, x)), &mut list[at..]);
    }
}
