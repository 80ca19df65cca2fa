//! Steps 5 and 6 of the derivation: one row, held against its bounds.

use super::logits::Fate;
use super::weights::{Weights, weigh};
use super::{Bound, Certificate, Finding, Key, LOG_ULP, TINY, Two, U, gamma, roundings};
use crate::element::DType;
use crate::exact::call::Order;
use crate::reference::{Answer, Row};
use std::f64::consts::{LN_2, LOG2_E};

/// The rounding of a store.
#[derive(Clone, Copy)]
pub(super) struct Store {
    unit: f64,
    tiny: f64,
    /// From here on values round to infinity.
    overflow: f64,
}

impl Store {
    pub(super) fn of(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Store { unit: dtype.unit_roundoff(), tiny: 2f64.powi(-25), overflow: 65520.0 },
            DType::Bf16 => Store {
                unit: dtype.unit_roundoff(),
                tiny: 2f64.powi(-134),
                overflow: 2f64.powi(128) * (1.0 - 2f64.powi(-9)),
            },
            _ => Store { unit: 0.0, tiny: 0.0, overflow: 2f64.powi(128) * (1.0 - 2f64.powi(-25)) },
        }
    }
}

/// Buffers that live from row to row.
#[derive(Default)]
pub(super) struct Scratch {
    /// The sequence, head and keys that `abs_k` belongs to.
    pub(super) head: Option<[usize; 3]>,
    /// `|k|` transposed: `[head_dim, keys]`.
    pub(super) abs_k: Vec<f64>,
    pub(super) magnitude: Vec<f64>,
    pub(super) keys: Vec<Key>,
    spread: Vec<Two>,
    weighted: Vec<f64>,
    total: Vec<f64>,
}

/// Holds rows against their bounds.
pub(super) struct Checker<'a> {
    pub(super) bound: &'a Bound,
    pub(super) answer: &'a Answer,
    /// Of the output.
    pub(super) shape: [usize; 4],
    pub(super) store: Store,
    /// Whether values count times what dropout makes of their weights.
    pub(super) dropout: bool,
    pub(super) scratch: Scratch,
    pub(super) certificate: Certificate,
}

/// The numbers of roundings in a row of keys.
struct Depths {
    factors: f64,
    numerator: Two,
    denominator: Two,
}

/// What the elements of a row have in common.
struct Sums {
    depths: Depths,
    weights: Weights,
    /// Error of the sink's weight; `None` without a sink.
    sink: Option<Two>,
    /// At most D- of the derivation.
    left: Two,
    /// What subnormal steps add up to.
    flushed: f64,
    /// Whether the bound holds for this row.
    certified: bool,
}

/// How an element stands.
enum Verdict {
    /// No farther from the exact one than it may be.
    Within {
        error: f64,
        bound: Two,
    },
    /// Right as far as anyone can tell: no bound applies.
    Unbounded,
    Wrong {
        bound: f64,
        reason: String,
    },
}

impl Checker<'_> {
    /// Holds one row and its LSE, if given, against the bound.
    pub(super) fn row(&mut self, row: &Row<'_>, got: impl Fn(usize) -> f32, got_lse: Option<f32>) {
        let v_dim = self.shape[3];
        self.certificate.elements += v_dim;
        if !row.scores.iter().any(|score| score.attended) {
            let (zero, infinity) = ((0.0, "as no key is left"), (f64::NEG_INFINITY, "as no key is left"));
            self.exactly(row, &got, zero);
            return self.exactly_lse(row, got_lse, infinity);
        }
        self.magnitudes(row);
        let fate = self.logits(row);
        let at = self.position(row);
        let (lse, max) = (self.answer.lse[at], self.answer.row_max[at]);
        if matches!(fate, Fate::Nan) || max.is_nan() {
            let nan = (f64::NAN, "as a logit is NaN or +inf, or all are -inf");
            self.exactly(row, &got, nan);
            return self.exactly_lse(row, got_lse, nan);
        }

        let doubtful = matches!(fate, Fate::Doubtful);
        let top = self.scratch.keys.iter().map(Key::highest).fold(f64::NEG_INFINITY, f64::max);
        let mut sums = self.sums(lse, top, None, doubtful);
        if let Some(got) = got_lse.filter(|_| !doubtful) {
            self.lse(row, f64::from(got), [lse, max, top], &sums);
        }

        let sink = row.sink.filter(|&sink| sink_in_f32(sink) != f32::NEG_INFINITY);
        if let Some(sink) = sink {
            if !sink_in_f32(sink).is_finite() {
                return self.exactly(row, &got, (f64::NAN, "as the sink is NaN or +inf"));
            }
            sums = self.sums(lse, top, Some(sink), doubtful);
        }
        self.certificate.uncertified_rows += usize::from(!sums.certified);
        self.column_sums(row, &self.answer.out[at * v_dim..][..v_dim]);
        for d in 0..v_dim {
            let (got, expected) = (f64::from(got(d)), self.answer.out[at * v_dim + d]);
            let finding = Finding { got, expected, ..finding(row, d) };
            match self.element(row, d, got, expected, &sums) {
                Verdict::Within { error, bound: Two { hard, sqrt } } => {
                    let of = |bound| Finding { ratio: ratio(error, bound), bound, ..finding };
                    self.certificate.worst.take(of(hard));
                    self.certificate.worst_statistical.take(of(sqrt));
                }
                Verdict::Unbounded => {}
                Verdict::Wrong { bound, reason } => {
                    self.certificate.wrong("out", Finding { bound, ..finding }, reason);
                }
            }
        }
    }

    /// Where a row's numbers are in `[batch, q_heads, q_len]`.
    fn position(&self, row: &Row<'_>) -> usize {
        let ([b, h, i], [_, q_heads, q_len, _]) = (row.index, self.shape);
        (b * q_heads + h) * q_len + i
    }

    /// Asks an exact value of all elements of a row: any NaN, or these bits.
    fn exactly(&mut self, row: &Row<'_>, got: impl Fn(usize) -> f32, (expected, why): (f64, &str)) {
        for d in 0..self.shape[3] {
            self.exactly_one("out", Finding { got: got(d).into(), expected, ..finding(row, d) }, why);
        }
    }

    /// The same of its LSE, if given.
    fn exactly_lse(&mut self, row: &Row<'_>, got: Option<f32>, (expected, why): (f64, &str)) {
        if let Some(got) = got {
            self.exactly_one("lse", Finding { got: got.into(), expected, ..finding(row, 0) }, why);
        }
    }

    fn exactly_one(&mut self, operand: &'static str, finding: Finding, why: &str) {
        let Finding { got, expected, .. } = finding;
        if got.to_bits() != expected.to_bits() && !(got.is_nan() && expected.is_nan()) {
            self.certificate.wrong(operand, finding, why.to_owned());
        }
    }

    /// Step 5, with the sink as one more key of value 0. `lse` is that of the keys, `top` their M.
    fn sums(&mut self, lse: f64, top: f64, sink: Option<f64>, doubtful: bool) -> Sums {
        let depths = self.depths(sink.is_some());
        let exp_error = self.bound.factor_error(depths.factors);
        // The logarithm of the exact sum, and M with the sink.
        let (mut log_sum, mut frame) = (lse, top);
        let mut sink = sink.map(|sink| {
            let t = sink * LOG2_E;
            let eps = 1.25 * U * t.abs() + 2.0 * TINY;
            log_sum = lse.max(sink) + (-(lse - sink).abs()).exp().ln_1p();
            frame = top.max(t + eps);
            Key { t, eps: Two { hard: eps, sqrt: eps }, ..Key::default() }
        });
        let keys = &mut self.scratch.keys;
        let mut weights = weigh(keys, log_sum, frame, exp_error);
        weights.add(&weigh(sink.as_mut_slice(), log_sum, frame, exp_error));

        // The exact sum in the frame of the computed maximum; as one weight is 1, it is at least about 1.
        let sum = 0.99 * (log_sum - frame * LN_2).exp().max(1.0);
        Sums {
            sink: sink.map(|sink| sink.dw),
            left: weights.down.map(|down| (1.0 - down).max(f64::MIN_POSITIVE)),
            flushed: (2.0 * keys.len() as f64 + 3.0 * depths.factors + 3.0) * self.bound.step_flush / sum,
            certified: weights.up.hard < 1.0 && !doubtful,
            depths,
            weights,
        }
    }

    /// Holds an LSE against its bound, given the exact one, the largest logit and M; `sums` are those without the sink.
    fn lse(&mut self, row: &Row<'_>, got: f64, [exact, max, top]: [f64; 3], sums: &Sums) {
        let Sums { weights, depths, .. } = sums;
        let log = (exact - max).abs();
        let shift = weights.up.hard.ln_1p().max(-(-weights.down.hard).ln_1p());
        let shift = if shift < weights.worst_rho { shift } else { weights.worst_rho };
        let bound = shift
            + gamma(depths.denominator.hard)
            + 2.0 * U * LOG_ULP * log
            + 3.0 * U * (max.abs() + (top * LN_2 - max) + log + shift)
            + TINY;
        let error = (got - exact).abs();
        let finding = Finding { got, expected: exact, bound, ratio: ratio(error, bound), ..finding(row, 0) };
        if error <= bound {
            self.certificate.worst_lse.take(finding);
        } else {
            self.certificate.wrong("lse", finding, format!("error {error:e}, bound {bound:e}"));
        }
    }

    /// Holds one element against its bounds.
    fn element(&self, row: &Row<'_>, d: usize, got: f64, exact: f64, sums: &Sums) -> Verdict {
        let &Sums { ref depths, ref weights, sink, left, flushed, certified } = sums;
        let Scratch { keys, spread, weighted, total, .. } = &self.scratch;
        let store = self.store;
        let overflow = total[d].is_nan() || total[d] > f64::from(f32::MAX) * 0.99;
        let wrong = |reason: &str| Verdict::Wrong { bound: 0.0, reason: reason.to_owned() };
        if !exact.is_finite() {
            // A value is not finite: NaN stays NaN, and so does infinity, unless its weight may be 0.
            let holds =
                got.is_nan() && (exact.is_nan() || weights.low || overflow || !certified) || got == exact;
            if !holds && (certified || got.is_finite()) {
                return wrong("as a value is not finite");
            }
            return Verdict::Unbounded;
        }
        if !certified {
            let (lowest, highest) = self.hull(keys, row, d, sink.is_some());
            let size = lowest.abs().max(highest.abs());
            let slack = gamma(depths.numerator.hard)
                + 2.0 * gamma(depths.denominator.hard)
                + 2.0 * U
                + self.bound.weight_unit
                + store.unit;
            let slack = slack * (1.0 + slack) * size + flushed * 2.0 + store.tiny;
            let inside = lowest - slack <= got && got <= highest + slack;
            let too_large = size + slack >= store.overflow && got.is_infinite();
            if !(inside || too_large || overflow && !got.is_finite()) {
                return wrong(&format!("uncertified, but outside the hull [{lowest:e}, {highest:e}]"));
            }
            return Verdict::Unbounded;
        }

        let bound = |of: fn(Two) -> f64| {
            let weights = (of(spread[d]) + sink.map_or(0.0, of) * exact.abs()) / of(left);
            let rounded = (1.0 + self.bound.weight_unit) * (1.0 + gamma(of(depths.numerator))) - 1.0;
            let sums = weights + rounded * weighted[d] / of(left) + flushed;
            let denominator = gamma(of(depths.denominator));
            let relative = denominator / (1.0 - denominator) + U;
            let divided = sums + relative * (exact.abs() + sums) + 2.0 * TINY;
            (divided + store.unit * (exact.abs() + divided) + store.tiny) * (1.0 + 1e-9)
        };
        let hard = bound(|two| two.hard);
        let error = (got - exact).abs();
        if error.is_nan() || error > hard {
            let too_large = got.is_infinite() && got * exact > 0.0 && exact.abs() + hard >= store.overflow;
            if too_large || overflow && !got.is_finite() {
                return Verdict::Unbounded;
            }
            return Verdict::Wrong { bound: hard, reason: format!("error {error:e}, bound {hard:e}") };
        }
        Verdict::Within { error, bound: Two { hard, sqrt: bound(|two| two.sqrt) } }
    }

    /// G, h_N and h_l of the derivation.
    fn depths(&self, sink: bool) -> Depths {
        let Bound { order: Order { tile, split }, fused, .. } = *self.bound;
        let (mut splits, mut most_tiles, mut most_keys) = (0, 0, 0);
        for split in self.scratch.keys.chunk_by(|a, b| a.index / split == b.index / split) {
            splits += 1;
            most_tiles = most_tiles.max(split.chunk_by(|a, b| a.index / tile == b.index / tile).count());
            most_keys = most_keys.max(split.len());
        }
        let (rises, merges) = (most_tiles - 1, splits - 1);
        let factors = rises + if splits > 1 { splits } else { 0 } + usize::from(sink);
        let dropout = if self.dropout { 2 } else { 0 };
        let numerator = most_keys + dropout + rises + 2 * merges + 1;
        let denominator = most_keys.min(split.div_ceil(16)) + 4 + 2 * rises + 2 * merges + 2;
        Depths {
            factors: factors as f64,
            numerator: roundings(numerator as f64, fused, 1.0),
            denominator: roundings(denominator as f64, true, 0.0),
        }
    }

    /// The smallest and largest value of a column, 0 among them if there is a sink.
    fn hull(&self, keys: &[Key], row: &Row<'_>, d: usize, sink: bool) -> (f64, f64) {
        let start = if sink { (0.0, 0.0) } else { (f64::INFINITY, f64::NEG_INFINITY) };
        keys.iter()
            .map(|key| row.scores[key.index].dropout * row.v[key.index * self.shape[3] + d])
            .fold(start, |(low, high), v| (low.min(v), high.max(v)))
    }

    /// For each column: sum dw |v - o|, sum (p + dw) |v| and sum |v|.
    fn column_sums(&mut self, row: &Row<'_>, out: &[f64]) {
        let Scratch { keys, spread, weighted, total, .. } = &mut self.scratch;
        let v_dim = out.len();
        spread.clear();
        spread.resize(v_dim, Two::default());
        weighted.clear();
        weighted.resize(v_dim, 0.0);
        total.clear();
        total.resize(v_dim, 0.0);
        for key in keys.iter() {
            let v = &row.v[key.index * v_dim..][..v_dim];
            let factor = row.scores[key.index].dropout;
            let weight = key.p + key.dw.hard;
            for d in 0..v_dim {
                let v = factor * v[d];
                let (distance, size) = ((v - out[d]).abs(), v.abs());
                spread[d].hard += key.dw.hard * distance;
                spread[d].sqrt += key.dw.sqrt * distance;
                weighted[d] += weight * size;
                total[d] += size;
            }
        }
    }
}

/// The sink in log2 units, in f32.
fn sink_in_f32(sink: f64) -> f32 {
    sink as f32 * std::f32::consts::LOG2_E
}

/// An element of a row, nothing found yet.
fn finding(row: &Row<'_>, d: usize) -> Finding {
    let [b, h, i] = row.index;
    Finding { sequence: row.sequence, element: [b, h, i, d], ..Finding::default() }
}

/// Error over bound; nothing over nothing is nothing.
fn ratio(error: f64, bound: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / bound }
}
