//! What [`crate::Metrics`] need of a row, summed up beside it.
//!
//! ```text
//! E = sum_j p_j (t_j - m)     D = sum_j p_j |q_pos - k_pos|     F = sum_j p_j, j < n     p_j = exp2(t_j - m)
//!
//! m rises by r:   E = exp2(-r) (E - r l)     D, F = exp2(-r) D, exp2(-r) F              l = sum_j p_j before
//! at the end:     entropy = ln l - E ln 2 / l     largest = 1 / l     distance = D / l
//! ```
//!
//! Neither term of the entropy is negative, so nothing cancels, however large the logits. Lanes, splits and merges are the
//! row sum's: bits do not depend on threads or blocks, nor on the level among those that fuse. Nothing here touches what
//! the output is made of.

use super::group::count_in;
use super::peaks::{PeakMemory, PeakOptions, Peaks};
use super::rows::BlockRow;
use crate::isa::Isa;
use crate::mask::{TILE, TileBits, set_range};
use crate::math;
use crate::metrics::{MetricsOptions, RowMetrics};
use crate::softmax::{Observe, Partial, RowState, SUM_LANES, exp2, larger, mask_at, rescale, weigh_row};
use std::f64::consts::LN_2;
use std::ops::Range;

/// Where weights are 0 for certain, which is as far as [`math::vector::exp2_nonpositive`] lets exponents go.
const NO_WEIGHT: f32 = -160.0;

/// What to sum up beside `E`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measures {
    distance: bool,
    first_keys: usize,
    peaks: Option<PeakOptions>,
}

impl Measures {
    /// `finds_peaks` if there is memory for them, and no row's keys are split among tasks.
    pub(crate) fn new(options: &MetricsOptions, finds_peaks: bool) -> Self {
        Self {
            distance: options.distance,
            first_keys: options.first_keys.unwrap_or(0),
            peaks: PeakOptions::new(options).filter(|_| finds_peaks),
        }
    }

    /// Whether peaks are looked for.
    pub(crate) fn find_peaks(&self) -> bool {
        self.peaks.is_some()
    }

    /// Whether they tell all that `options` ask for.
    pub(crate) fn are_all(&self, options: &MetricsOptions) -> bool {
        self.peaks.is_some() || !options.needs_probabilities()
    }
}

/// Where a group's rows are measured.
pub(crate) struct Measured<'a> {
    pub(crate) measures: Measures,
    pub(crate) sums: &'a mut [RowSums],
    pub(crate) memory: PeakMemory<'a>,
}

/// The sums of a row of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowSums {
    /// Those of the splits so far.
    pub(crate) total: PartSums,
    /// The maximum that the current split's stand under.
    max: f32,
    keys: usize,
    /// Logits that are kept of it, of all splits.
    peaks: usize,
    energy: [f32; SUM_LANES],
    distance: [f32; SUM_LANES],
    first: [f32; SUM_LANES],
}

/// The sums of a row over one split or several, under the maximum of its [`Partial`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PartSums {
    pub(crate) keys: usize,
    pub(crate) energy: f64,
    pub(crate) distance: f64,
    pub(crate) first: f64,
}

impl PartSums {
    pub(crate) const EMPTY: PartSums = PartSums { keys: 0, energy: 0.0, distance: 0.0, first: 0.0 };

    /// Joins a later part's; the states are those before they are joined.
    #[inline(always)]
    pub(crate) fn join<I: Isa>(&mut self, isa: I, own: &Partial, later: (&Partial, &PartSums)) {
        let (other, sums) = later;
        let max = larger(own.max, other.max);
        let mut joint = PartSums { keys: self.keys + sums.keys, ..PartSums::EMPTY };
        for (state, part) in [(own, &*self), (other, sums)] {
            if state.seen {
                let factor = f64::from(rescale(isa, state.max, max));
                joint.energy += factor * part.energy_under(state, max);
                joint.distance += factor * part.distance;
                joint.first += factor * part.first;
            }
        }
        *self = joint;
    }

    /// `E` with `t_j - max` in place of `t_j - state.max`.
    #[inline(always)]
    fn energy_under(&self, state: &Partial, max: f32) -> f64 {
        self.energy
            - f64::from(mutant!("energy-not-rescaled", rise(state.max, max), 0.0)) * f64::from(state.sum)
    }
}

/// By how much a maximum rises, as far as anything is left of the sums under it.
#[inline(always)]
fn rise(old: f32, new: f32) -> f32 {
    if old == new || old == f32::NEG_INFINITY { 0.0 } else { (new - old).min(-NO_WEIGHT) }
}

impl RowSums {
    pub(crate) const EMPTY: RowSums = RowSums {
        total: PartSums::EMPTY,
        max: f32::NEG_INFINITY,
        keys: 0,
        peaks: 0,
        energy: [0.0; SUM_LANES],
        distance: [0.0; SUM_LANES],
        first: [0.0; SUM_LANES],
    };

    /// Starts a split.
    pub(crate) fn reset(&mut self) {
        *self = RowSums { total: self.total, peaks: self.peaks, ..RowSums::EMPTY };
    }

    /// The row's peaks, if they are looked for.
    #[inline(always)]
    pub(crate) fn peaks<'a>(&'a mut self, measures: Measures, memory: &'a mut [f32]) -> Option<Peaks<'a>> {
        measures.peaks.map(|options| Peaks::new(options, memory, &mut self.peaks))
    }

    /// Ends a split of state `part`, before it is joined to `total`.
    #[inline(always)]
    pub(crate) fn close<I: Isa>(&mut self, isa: I, total: &Partial, part: &Partial) {
        let fold = |lanes: &[f32; SUM_LANES]| {
            let sum = RowState { sum: *lanes, ..RowState::EMPTY }.fold(isa).sum;
            f64::from(sum)
        };
        let sums = PartSums {
            keys: self.keys,
            energy: fold(&self.energy),
            distance: fold(&self.distance),
            first: fold(&self.first),
        };
        self.total.join(isa, total, (part, &sums));
    }

    /// Takes sums to the row's new maximum; `state` has the sum under the old one still.
    #[inline(always)]
    fn rescale<I: Isa>(&mut self, isa: I, state: &RowState, factor: f32) {
        if factor != 1.0 {
            let (rise, factor) = (isa.splat(-rise(self.max, state.max)), isa.splat(factor));
            for part in (0..SUM_LANES).step_by(I::LANES) {
                let energy = isa.mul_add(rise, isa.load(&state.sum[part..]), isa.load(&self.energy[part..]));
                isa.store(isa.mul(energy, factor), &mut self.energy[part..]);
                for lanes in [&mut self.distance, &mut self.first] {
                    let scaled = isa.mul(isa.load(&lanes[part..]), factor);
                    isa.store(scaled, &mut lanes[part..]);
                }
            }
        }
        self.max = state.max;
    }
}

/// `E` in registers.
struct Energy<F>([F; 2]);

impl<I: Isa> Observe<I> for Energy<I::F> {
    #[inline(always)]
    fn observe(&mut self, isa: I, part: usize, exponent: I::F, weight: I::F) {
        self.0[part] = isa.mul_add(weight, exponent, self.0[part]);
    }
}

/// As [`weigh_row`] on a group's row `index`, and sums up. `tile_start` is the key of column 0.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "those of weigh_row, and what it is about")]
pub(crate) fn weigh_measured<I: Isa>(
    isa: I,
    measured: &mut Measured<'_>,
    (index, row): (usize, &mut BlockRow),
    factor: f32,
    tile_start: usize,
    scores: &mut [f32],
    columns: Range<usize>,
    bits: Option<&TileBits>,
) {
    let Measured { measures, sums, memory } = measured;
    let (measures, sums) = (*measures, &mut sums[index]);
    sums.rescale(isa, &row.state, factor);
    sums.keys += bits.map_or(columns.len(), |bits| count_in(bits, &columns));
    if measures.find_peaks() {
        memory.logits[columns.clone()].copy_from_slice(&scores[columns.clone()]);
    }
    let mut energy = Energy([isa.splat(0.0); 2]);
    for part in 0..SUM_LANES / I::LANES {
        energy.0[part] = isa.load(&sums.energy[part * I::LANES..]);
    }
    weigh_row(isa, &mut row.state, factor, scores, columns.clone(), bits, &mut energy);
    for part in 0..SUM_LANES / I::LANES {
        isa.store(energy.0[part], &mut sums.energy[part * I::LANES..]);
    }
    if measures.find_peaks() {
        let (own, logits) = memory.row_and_logits(index);
        let states = (&row.total, &row.state.fold(isa));
        if let Some(mut peaks) = sums.peaks(measures, own) {
            peaks.add(isa, (logits, scores), columns.clone(), states);
        }
    }
    if measures.distance {
        let offset = (tile_start as i64).saturating_sub(row.mask.q_pos) as f32;
        add_distances(isa, &mut sums.distance, offset, scores, columns.clone());
    }
    if tile_start < measures.first_keys {
        add_first(isa, &mut sums.first, measures.first_keys - tile_start, scores, columns);
    }
}

/// The weight of a column, 0 if it is marked as removed.
#[inline(always)]
fn weight<I: Isa>(isa: I, weights: &[f32], column: usize) -> I::F {
    isa.max(isa.splat(0.0), isa.load(&weights[column..]))
}

/// Adds up distances, of which column 0 has that of `offset`. Exact as long as keys are less than 2^24 positions away.
#[inline(always)]
fn add_distances<I: Isa>(
    isa: I,
    sums: &mut [f32; SUM_LANES],
    offset: f32,
    weights: &[f32],
    columns: Range<usize>,
) {
    let steps = isa.load(&STEPS);
    for column in columns.step_by(I::LANES) {
        let distance = isa.abs(isa.add(isa.splat(offset + column as f32), steps));
        let lanes = &mut sums[column % SUM_LANES..];
        isa.store(isa.mul_add(weight(isa, weights, column), distance, isa.load(lanes)), lanes);
    }
}

const STEPS: [f32; SUM_LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// Adds up the weights of the columns below `end`.
#[inline(always)]
fn add_first<I: Isa>(
    isa: I,
    sums: &mut [f32; SUM_LANES],
    end: usize,
    weights: &[f32],
    columns: Range<usize>,
) {
    let end = end.min(TILE);
    let mut first = TileBits::default();
    set_range(&mut first, 0..end);
    let columns = columns.start..columns.end.min(end.next_multiple_of(SUM_LANES));
    for column in columns.step_by(I::LANES) {
        let lanes = &mut sums[column % SUM_LANES..];
        let weight = isa.select(mask_at(isa, &first, column), weight(isa, weights, column), isa.splat(0.0));
        isa.store(isa.add(isa.load(lanes), weight), lanes);
    }
}

/// The metrics of a row whose state is `state`, and `end` with the sink in it, for which its output row takes `factor`.
#[inline(always)]
pub(crate) fn row_metrics<I: Isa>(
    isa: I,
    measures: Measures,
    sums: &PartSums,
    state: &Partial,
    (end, factor): (&Partial, f32),
) -> RowMetrics {
    let asked = |asked: bool, x: f64| asked.then_some(x as f32);
    let (distance, first) = (measures.distance, measures.first_keys > 0);
    if !state.seen {
        return RowMetrics {
            distance: asked(distance, 0.0),
            first_mass: asked(first, 0.0),
            ..RowMetrics::default()
        };
    }
    let inverse = f64::from(factor) / f64::from(end.sum);
    let total = f64::from(state.sum) * inverse;
    let energy = sums.energy_under(state, end.max) * inverse;
    let entropy = (total * f64::from(math::log2(end.sum)) - energy) * LN_2;
    RowMetrics {
        keys: sums.keys,
        all_keys: 0,
        total: total as f32,
        entropy: entropy as f32,
        effective_keys: exp2(isa, (entropy / LN_2) as f32),
        max_probability: inverse as f32,
        distance: asked(distance, sums.distance * inverse),
        first_mass: asked(first, sums.first * inverse),
        ..RowMetrics::default()
    }
}
