//! Query rows of a block: features, what older keys give them, and what those of their own block do.
//!
//! ```text
//! acc_i = factor_i (sum_f a_if S_f)  +  sum_j p_ij v_j         a chain over features, one over keys, their sum
//! den_i = factor_i (sum_f a_if z_f)  +  sum_j p_ij             p_ij = φ(q_i) · φ(k_j), decayed; or exp(q_i · k_j) in a window
//! ```
//!
//! Keys that a row does not see are in no sum, whatever they hold: of the keys that only some of a group of rows see, each
//! row takes its own.

use super::features::{Exponential, Ready, Side, vectors, whole_columns};
use super::gauge::bits;
use super::state::{StateShape, UnitView};
use crate::error::AttentionError;
use crate::isa::{Isa, Kernel};
use crate::kernel::pack::merge_row;
use crate::kernel::prefetch::Near;
use crate::kernel::score::ScoreRows;
use crate::kernel::tiles::{Accumulate, ScorePanels};
use crate::kernel::value::{ValueRows, WeightedRows};
use crate::kernel::{Constant, MAX_ROWS};
use crate::math::vector;
use crate::panels::PANEL;
use crate::scratch::AlignedBuf;
use crate::softmax::{exp2, larger};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Rows of sums that are visited together: with a register tile's columns they stay in L1.
const FEATURE_STEP: usize = 128;

/// How weights of pairs in a block come about.
#[derive(Clone, Copy)]
pub(crate) enum Pairs<'a> {
    /// By features; `[features][64]`, those of the block's keys.
    Features(&'a [f32]),
    /// The same, times `exp(total_i - total_j)` of these sums of log-decays.
    Decayed { keys: &'a [f32], totals: &'a [f32; PANEL] },
    /// By the exact kernel: keys `[head_dim][64]`, and what logits are multiplied by to be in log2.
    Exact { keys: &'a [f32], scale: f32 },
}

/// Queries of a block.
#[derive(Clone, Copy)]
pub(crate) enum Queries<'a> {
    /// As they are, `[head_dim][64]`.
    Panel(&'a [f32]),
    /// Mapped, for exponential maps: `[features][64]`, before the gauge.
    Exponents(&'a [f32]),
}

/// Rows of a block.
pub(crate) struct Rows<'a> {
    pub(crate) map: &'a Ready,
    pub(crate) shape: StateShape,
    pub(crate) state: UnitView<'a>,
    /// Whether the state has keys.
    pub(crate) has_state: bool,
    pub(crate) pairs: Pairs<'a>,
    /// As they are if `pairs` are exact.
    pub(crate) queries: Queries<'a>,
    /// Values of the block, `[64][v_stride]`.
    pub(crate) values: &'a [f32],
    /// Columns that are rows.
    pub(crate) rows: Range<usize>,
    /// Columns that are keys they may see.
    pub(crate) keys: Range<usize>,
    /// Whether a row sees no key of a later column than its own.
    pub(crate) causal: bool,
    pub(crate) scratch: &'a mut RowScratch,
}

/// What rows need, and what becomes of them.
#[derive(Debug)]
pub(crate) struct RowScratch {
    /// Features, `[features][64]`.
    pub(crate) features: AlignedBuf<f32>,
    /// The same, or queries, `[64][features or head_dim]`.
    pub(crate) transposed: AlignedBuf<f32>,
    /// `[64][head_dim]`, with a window only.
    pub(crate) queries: AlignedBuf<f32>,
    /// `[6][64]`.
    pub(crate) scores: AlignedBuf<f32>,
    /// A vector and its features, 64 at least, for maps that go token by token.
    pub(crate) row: AlignedBuf<f32>,
    /// Output rows before division, `[64][v_stride]`.
    pub(crate) acc: AlignedBuf<f32>,
    /// What 6 rows get from their own block, `[6][v_stride]`.
    own: AlignedBuf<f32>,
    /// Denominators.
    pub(crate) denominators: [f32; PANEL],
    /// What of the weights of features is not in them yet: log2, or decayed, a factor.
    factors: [f32; PANEL],
}

impl RowScratch {
    pub(crate) fn new(shape: &StateShape) -> Result<Self, AttentionError> {
        let buffer = |len| AlignedBuf::zeroed("workspace", len);
        let StateShape { features, head_dim, v_stride, window, .. } = *shape;
        Ok(Self {
            features: buffer(features * PANEL)?,
            transposed: buffer(features * PANEL)?,
            queries: buffer(if window { head_dim * PANEL } else { 0 })?,
            scores: buffer(MAX_ROWS * PANEL)?,
            row: buffer(head_dim + features.max(PANEL))?,
            acc: buffer(v_stride * PANEL)?,
            own: buffer(v_stride * MAX_ROWS)?,
            denominators: [0.0; PANEL],
            factors: [0.0; PANEL],
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        let Self { features, transposed, queries, scores, row, acc, own, .. } = self;
        [features, transposed, queries, scores, row, acc, own].iter().map(|buffer| buffer.bytes()).sum()
    }
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Rows { map, shape, state, has_state, pairs, queries, values, rows, keys, causal, scratch } = self;
        let StateShape { features, head_dim, v_dim, v_stride, .. } = shape;
        let RowScratch { features: mapped, transposed, queries: copied, scores, row, .. } = scratch;
        let RowScratch { acc, own, denominators, factors, .. } = scratch;
        denominators[rows.clone()].fill(0.0);
        factors[rows.clone()].fill(f32::NEG_INFINITY);
        let columns = vectors::<I>(&rows);
        if has_state || !matches!(pairs, Pairs::Exact { .. }) {
            match queries {
                Queries::Panel(panel) => map.apply(isa, Side::Query, panel, rows.clone(), (row, mapped)),
                Queries::Exponents(from) => copy_columns(from, columns.clone(), mapped),
            }
            if let Some(map) = map.exponential() {
                let lacking = match (pairs, queries) {
                    (Pairs::Exact { .. }, Queries::Panel(panel)) if has_state => Some((map, panel)),
                    _ => None,
                };
                weigh(isa, mapped, state.gauge, columns.clone(), lacking, factors);
            }
            if has_state {
                sum_norms(isa, mapped, state.norms, columns.clone(), denominators);
            }
            transpose(isa, mapped, features, columns.clone(), transposed);
        }
        let (left, dims) = match (pairs, queries) {
            (Pairs::Exact { .. }, Queries::Panel(panel)) => {
                transpose(isa, panel, head_dim, columns, copied);
                (&**copied, head_dim)
            }
            _ => (&**transposed, features),
        };
        let sums = ValueRows::cached(state.sums, v_stride, v_dim);
        let features_there = if has_state { features } else { 0 };
        let values = ValueRows::cached(values, v_stride, v_dim);
        for first in rows.clone().step_by(MAX_ROWS) {
            let group = first..rows.end.min(first + MAX_ROWS);
            let acc = &mut acc[first * v_stride..group.end * v_stride];
            let own = &mut own[..group.len() * v_stride];
            acc.fill(0.0);
            own.fill(0.0);
            let seen = |row: usize| {
                if mutant!("block-sees-itself", causal, false) { keys.end.min(row + 1) } else { keys.end }
            };
            let shared = keys.start..seen(first).max(keys.start);
            let columns = whole_columns(&(keys.start..seen(group.end - 1).max(keys.start)));
            let weighted = WeightedRows {
                weights: &transposed[first * features..],
                weights_stride: features,
                acc: &mut *acc,
                acc_stride: v_stride,
            };
            isa.call(Accumulate {
                rows: group.len(),
                values: sums,
                keys: features_there,
                step: FEATURE_STEP,
                weighted,
            });
            let (right, scale) = match pairs {
                Pairs::Features(keys) | Pairs::Decayed { keys, .. } => (keys, 1.0),
                Pairs::Exact { keys, scale } => (keys, scale),
            };
            isa.call(ScorePanels {
                rows: group.len(),
                q: &left[first * dims..],
                dims,
                panels: right,
                ahead: Near::Nothing,
                columns,
                out: ScoreRows { out: &mut scores[..], stride: Constant::<PANEL>, scale: () },
            });
            for (index, row) in group.clone().enumerate() {
                let scores = &mut scores[index * PANEL..][..PANEL];
                let keys = keys.start..seen(row).max(keys.start);
                let factor = match pairs {
                    Pairs::Features(_) => 1.0,
                    Pairs::Decayed { totals, .. } => decay(isa, totals, row, keys.clone(), scores),
                    Pairs::Exact { .. } => exact(isa, scale, factors[row], keys.clone(), scores),
                };
                factors[row] = factor;
                if has_state && factor != 1.0 {
                    denominators[row] *= factor;
                }
                denominators[row] += sum_columns(isa, scores, keys);
            }
            let weighted = WeightedRows {
                weights: &scores[shared.start..],
                weights_stride: PANEL,
                acc: &mut *own,
                acc_stride: v_stride,
            };
            let block = ValueRows { data: &values.data[shared.start * v_stride..], ..values };
            let (rows, keys) = (group.len(), shared.len());
            isa.call(Accumulate { rows, values: block, keys, step: PANEL, weighted });
            for (index, row) in group.clone().enumerate() {
                let seen_alone = shared.end..seen(row).max(shared.end);
                let own = &mut own[index * v_stride..][..v_stride];
                let weighted = WeightedRows {
                    weights: &scores[index * PANEL + seen_alone.start..],
                    weights_stride: PANEL,
                    acc: &mut *own,
                    acc_stride: v_stride,
                };
                let block = ValueRows { data: &values.data[seen_alone.start * v_stride..], ..values };
                let keys = seen_alone.len();
                isa.call(Accumulate { rows: 1, values: block, keys, step: PANEL, weighted });
                // By themselves first, as the weights are: next to all keys before, each would round away the same way.
                let factor = if has_state { factors[row] } else { 0.0 };
                merge_row(isa, &mut acc[index * v_stride..][..v_stride], factor, own, 1.0);
            }
        }
    }
}

/// Some columns of `[count][64]`.
#[inline(always)]
fn copy_columns(from: &[f32], columns: Range<usize>, to: &mut [f32]) {
    for (to, from) in to.chunks_exact_mut(PANEL).zip(from.chunks_exact(PANEL)) {
        to[columns.clone()].copy_from_slice(&from[columns.clone()]);
    }
}

/// Exponents of queries into features under the gauge, with a maximum of 1. Without keys there is no gauge yet, and no
/// feature counts. Given the map and its queries, `factors` become what features lack, in log2.
#[inline(always)]
fn weigh<I: Isa>(
    isa: I,
    features: &mut [f32],
    gauge: &[f32],
    columns: Range<usize>,
    lacking: Option<(&Exponential, &[f32])>,
    factors: &mut [f32; PANEL],
) {
    for column in columns.step_by(I::LANES) {
        let mut max = isa.splat(f32::NEG_INFINITY);
        for (row, &gauge) in features.chunks_exact_mut(PANEL).zip(gauge) {
            let row = &mut row[column..];
            let exponent = isa.add(isa.load(row), isa.splat(gauge));
            isa.store(exponent, row);
            max = isa.max(exponent, max);
        }
        for row in features.chunks_exact_mut(PANEL).take(gauge.len()) {
            let row = &mut row[column..];
            isa.store(vector::exp2(isa, isa.sub(isa.load(row), max)), row);
        }
        if let Some((map, panel)) = lacking {
            let lacking = isa.sub(isa.splat(map.constant), map.log_norm(isa, panel, column));
            isa.store(isa.add(max, lacking), &mut factors[column..]);
        }
    }
}

/// `sum_f a_if z_f`.
#[inline(always)]
fn sum_norms<I: Isa>(
    isa: I,
    features: &[f32],
    norms: &[f32],
    columns: Range<usize>,
    sums: &mut [f32; PANEL],
) {
    for column in columns.step_by(I::LANES) {
        let mut sum = isa.splat(0.0);
        for (row, &norm) in features.chunks_exact(PANEL).zip(norms) {
            sum = isa.mul_add(isa.load(&row[column..]), isa.splat(norm), sum);
        }
        isa.store(sum, &mut sums[column..]);
    }
}

/// `[count][64]` to `[64][count]`, some columns of it.
#[inline(always)]
fn transpose<I: Isa>(isa: I, from: &[f32], count: usize, columns: Range<usize>, to: &mut [f32]) {
    for column in columns.step_by(I::LANES) {
        let mut first = 0;
        while first + I::LANES <= count {
            let mut square = [isa.splat(0.0); 16];
            for (index, row) in square[..I::LANES].iter_mut().enumerate() {
                *row = isa.load(&from[(first + index) * PANEL + column..]);
            }
            isa.transpose(&mut square[..I::LANES]);
            for (index, &row) in square[..I::LANES].iter().enumerate() {
                isa.store(row, &mut to[(column + index) * count + first..]);
            }
            first += I::LANES;
        }
        for index in first..count {
            for lane in column..column + I::LANES {
                to[lane * count + index] = from[index * PANEL + lane];
            }
        }
    }
}

/// Decays a row's weights; returns what those of older keys have to be multiplied by.
#[inline(always)]
fn decay<I: Isa>(isa: I, totals: &[f32; PANEL], row: usize, keys: Range<usize>, scores: &mut [f32]) -> f32 {
    let total = totals[row];
    let log2 = isa.splat(LOG2_E);
    for column in vectors::<I>(&keys).step_by(I::LANES) {
        let exponent = isa.mul(isa.sub(isa.splat(total), isa.load(&totals[column..])), log2);
        let scores = &mut scores[column..];
        isa.store(isa.mul(isa.load(scores), vector::exp2(isa, exponent)), scores);
    }
    exp2(isa, total * LOG2_E)
}

/// The sum of some columns of a row.
#[inline(always)]
pub(crate) fn sum_columns<I: Isa>(isa: I, row: &[f32], columns: Range<usize>) -> f32 {
    let (kept, zero) = (bits(&columns), isa.splat(0.0));
    let mut sum = zero;
    for column in vectors::<I>(&columns).step_by(I::LANES) {
        let x = isa.load(&row[column..]);
        sum = isa.add(sum, isa.select(isa.mask((kept >> column) as u32), x, zero));
    }
    isa.reduce_add(sum)
}

/// Logits of a row into exact weights beside features that lack `features`, in log2; returns the factor of these.
#[inline(always)]
fn exact<I: Isa>(isa: I, scale: f32, features: f32, keys: Range<usize>, scores: &mut [f32]) -> f32 {
    let (kept, lost) = (bits(&keys), isa.splat(f32::NEG_INFINITY));
    let mut largest = lost;
    for column in vectors::<I>(&keys).step_by(I::LANES) {
        let scores = &mut scores[column..];
        let score = isa.mul(isa.load(scores), isa.splat(scale));
        isa.store(score, scores);
        // A NaN may hide here, but not from the sum.
        largest = isa.max(isa.select(isa.mask((kept >> column) as u32), score, lost), largest);
    }
    let max = larger(features, isa.reduce_max(largest));
    for column in vectors::<I>(&keys).step_by(I::LANES) {
        let scores = &mut scores[column..];
        isa.store(vector::exp2(isa, isa.sub(isa.load(scores), isa.splat(max))), scores);
    }
    exp2(isa, features - max)
}
