//! Steps 5 and 6 of the derivation: one row, held against its bounds.

use super::logits::Fate;
use super::weights::{Weights, weigh};
use super::{Bound, Checked, Key, TINY, Two, U, gamma, roundings};
use lucid_attention::DType;
use lucid_attention::reference::{Answer, Row};
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
    pub(super) params: &'a Bound,
    pub(super) answer: &'a Answer,
    /// Of the output.
    pub(super) shape: [usize; 4],
    pub(super) store: Store,
    pub(super) scratch: Scratch,
    pub(super) checked: Checked,
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

impl Checker<'_> {
    /// Holds one row and its LSE, if given, against the bound.
    pub(super) fn row(
        &mut self,
        row: &Row<'_>,
        got: impl Fn(usize) -> f32,
        got_lse: Option<f32>,
    ) -> Result<(), String> {
        let [b, h, i] = row.index;
        let [_, q_heads, q_len, v_dim] = self.shape;
        let at = (b * q_heads + h) * q_len + i;
        self.checked.elements += v_dim;
        let expect_all = |what: &str, holds: &dyn Fn(f32) -> bool| match (0..v_dim).find(|&d| !holds(got(d)))
        {
            Some(d) => Err(format!("out[{b}, {h}, {i}, {d}]: got {:e}, expected {what}", got(d))),
            None => Ok(()),
        };
        let expect_lse = |what: &str, holds: &dyn Fn(f32) -> bool| match got_lse {
            Some(lse) if !holds(lse) => Err(format!("lse[{b}, {h}, {i}]: got {lse:e}, expected {what}")),
            _ => Ok(()),
        };

        if !row.scores.iter().any(|score| score.attended) {
            expect_all("+0: no key is left", &|x| x.to_bits() == 0)?;
            return expect_lse("-inf: no key is left", &|x| x == f32::NEG_INFINITY);
        }
        self.magnitudes(row);
        let fate = self.logits(row);
        let (lse, max) = (self.answer.lse[at], self.answer.row_max[at]);
        if matches!(fate, Fate::Nan) || max.is_nan() {
            expect_all("NaN: a logit is NaN or +inf, or all are -inf", &f32::is_nan)?;
            return expect_lse("NaN: a logit is NaN or +inf, or all are -inf", &f32::is_nan);
        }

        let doubtful = matches!(fate, Fate::Doubtful);
        let top = self.scratch.keys.iter().map(Key::highest).fold(f64::NEG_INFINITY, f64::max);
        let mut sums = self.sums(lse, top, None, doubtful);
        if let Some(got) = got_lse.filter(|_| !doubtful) {
            self.lse(f64::from(got), lse, max, top, &sums)
                .map_err(|what| format!("lse[{b}, {h}, {i}]: got {got:e}, expected {lse:e}, {what}"))?;
        }

        let sink = row.sink.filter(|&sink| sink_in_f32(sink) != f32::NEG_INFINITY);
        if let Some(sink) = sink {
            if !sink_in_f32(sink).is_finite() {
                return expect_all("NaN: the sink is NaN or +inf", &f32::is_nan);
            }
            sums = self.sums(lse, top, Some(sink), doubtful);
        }
        self.checked.uncertified_rows += usize::from(!sums.certified);
        self.column_sums(row, &self.answer.out[at * v_dim..][..v_dim]);
        for d in 0..v_dim {
            let exact = self.answer.out[at * v_dim + d];
            let ratios = self.element(row, d, f64::from(got(d)), exact, &sums).map_err(|what| {
                let uncertified = if sums.certified { "" } else { " (uncertified row)" };
                format!("out[{b}, {h}, {i}, {d}]: got {:e}, expected {exact:e}: {what}{uncertified}", got(d))
            })?;
            if let Some(Two { hard, sqrt }) = ratios {
                self.checked.worst = self.checked.worst.max(hard);
                self.checked.worst_sqrt = self.checked.worst_sqrt.max(sqrt);
            }
        }
        Ok(())
    }

    /// Step 5, with the sink as one more key of value 0. `lse` is that of the keys, `top` their M.
    fn sums(&mut self, lse: f64, top: f64, sink: Option<f64>, doubtful: bool) -> Sums {
        let depths = self.depths(sink.is_some());
        let exp_error = self.params.factor_error(depths.factors);
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
            flushed: (2.0 * keys.len() as f64 + 3.0 * depths.factors + 3.0) * self.params.step_flush / sum,
            certified: weights.up.hard < 1.0 && !doubtful,
            depths,
            weights,
        }
    }

    /// Holds an LSE against its bound; `sums` are those without the sink.
    fn lse(&self, got: f64, exact: f64, max: f64, top: f64, sums: &Sums) -> Result<(), String> {
        let Sums { weights, depths, .. } = sums;
        let log = (exact - max).abs();
        let shift = weights.up.hard.ln_1p().max(-(-weights.down.hard).ln_1p());
        let shift = if shift < weights.worst_rho { shift } else { weights.worst_rho };
        let bound = shift
            + gamma(depths.denominator.hard)
            + 2.0 * U * self.params.log_ulp * log
            + 3.0 * U * (max.abs() + (top * LN_2 - max) + log + shift)
            + TINY;
        let error = (got - exact).abs();
        if error.is_nan() || error > bound {
            return Err(format!("error {error:e}, bound {bound:e}"));
        }
        Ok(())
    }

    /// Holds one element against its bounds; returns the error over them, `None` where no bound applies.
    fn element(
        &self,
        row: &Row<'_>,
        d: usize,
        got: f64,
        exact: f64,
        sums: &Sums,
    ) -> Result<Option<Two>, String> {
        let &Sums { ref depths, ref weights, sink, left, flushed, certified } = sums;
        let Scratch { keys, spread, weighted, total, .. } = &self.scratch;
        let store = self.store;
        let overflow = total[d].is_nan() || total[d] > f64::from(f32::MAX) * 0.99;
        if !exact.is_finite() {
            // A value is not finite: NaN stays NaN, and so does infinity, unless its weight may be 0.
            let holds =
                got.is_nan() && (exact.is_nan() || weights.low || overflow || !certified) || got == exact;
            if !holds && (certified || got.is_finite()) {
                return Err("a value is not finite".to_owned());
            }
            return Ok(None);
        }
        if !certified {
            let (lowest, highest) = hull(keys, row, self.shape[3], d, sink.is_some());
            let size = lowest.abs().max(highest.abs());
            let slack = gamma(depths.numerator.hard)
                + 2.0 * gamma(depths.denominator.hard)
                + 2.0 * U
                + self.params.weight_unit
                + store.unit;
            let slack = slack * (1.0 + slack) * size + flushed * 2.0 + store.tiny;
            let inside = lowest - slack <= got && got <= highest + slack;
            let too_large = size + slack >= store.overflow && got.is_infinite();
            if !(inside || too_large || overflow && !got.is_finite()) {
                return Err(format!("outside [{lowest:e}, {highest:e}]"));
            }
            return Ok(None);
        }

        let bound = |of: fn(Two) -> f64| {
            let weights = (of(spread[d]) + sink.map_or(0.0, of) * exact.abs()) / of(left);
            let rounded = (1.0 + self.params.weight_unit) * (1.0 + gamma(of(depths.numerator))) - 1.0;
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
                return Ok(None);
            }
            return Err(format!("error {error:e}, bound {hard:e}"));
        }
        Ok(Some(Two { hard: ratio(error, hard), sqrt: ratio(error, bound(|two| two.sqrt)) }))
    }

    /// G, h_N and h_l of the derivation.
    fn depths(&self, sink: bool) -> Depths {
        let Bound { tile, split, fused, .. } = *self.params;
        let (mut splits, mut most_tiles, mut most_keys) = (0, 0, 0);
        for split in self.scratch.keys.chunk_by(|a, b| a.index / split == b.index / split) {
            splits += 1;
            most_tiles = most_tiles.max(split.chunk_by(|a, b| a.index / tile == b.index / tile).count());
            most_keys = most_keys.max(split.len());
        }
        let (rises, merges) = (most_tiles - 1, splits - 1);
        let factors = rises + if splits > 1 { splits } else { 0 } + usize::from(sink);
        let numerator = most_keys + rises + 2 * merges + 1;
        let denominator = most_keys.min(split.div_ceil(16)) + 4 + 2 * rises + 2 * merges + 2;
        Depths {
            factors: factors as f64,
            numerator: roundings(numerator as f64, fused, 1.0),
            denominator: roundings(denominator as f64, true, 0.0),
        }
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
            let weight = key.p + key.dw.hard;
            for d in 0..v_dim {
                let (distance, size) = ((v[d] - out[d]).abs(), v[d].abs());
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

/// The smallest and largest value of a column, 0 among them if there is a sink.
fn hull(keys: &[Key], row: &Row<'_>, v_dim: usize, d: usize, sink: bool) -> (f64, f64) {
    let start = if sink { (0.0, 0.0) } else { (f64::INFINITY, f64::NEG_INFINITY) };
    keys.iter()
        .map(|key| row.v[key.index * v_dim + d])
        .fold(start, |(low, high), v| (low.min(v), high.max(v)))
}

/// Error over bound; nothing over nothing is nothing.
fn ratio(error: f64, bound: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / bound }
}
