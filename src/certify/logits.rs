//! Steps 1 to 4 of the derivation: exact logits and their errors.

use super::row::{Checker, Scratch};
use super::{Key, NORMAL, SAFE, TANH_ULP, TINY, U, gamma, roundings};
use crate::reference::{Row, Score};
use std::f64::consts::{LN_2, LOG2_E};

/// What f32 makes of a row's logits.
pub(super) enum Fate {
    /// Finite ones are left, and none is lost that has a weight.
    Finite,
    /// Some overflow to -inf that exactly would have a weight, or might have one.
    Doubtful,
    /// The row is NaN.
    Nan,
}

impl Checker<'_> {
    /// T_j of the derivation for all keys of a row.
    pub(super) fn magnitudes(&mut self, row: &Row<'_>) {
        let (keys, head_dim) = (row.scores.len(), row.q.len());
        let scratch = &mut self.scratch;
        let head = Some([row.sequence, row.index[0], row.index[1]]);
        if scratch.head != head {
            scratch.head = head;
            scratch.abs_k.clear();
            scratch.abs_k.resize(row.k.len(), 0.0);
            for (j, k) in row.k.chunks_exact(head_dim).enumerate() {
                for (d, k) in k.iter().enumerate() {
                    scratch.abs_k[d * keys + j] = k.abs();
                }
            }
        }
        scratch.magnitude.clear();
        scratch.magnitude.resize(keys, 0.0);
        for (q, k) in row.q.iter().zip(scratch.abs_k.chunks_exact(keys)) {
            let scaled = q * row.scale * LOG2_E;
            let scaled = if scaled == 0.0 { 0.0 } else { scaled.abs().max(NORMAL) };
            for (magnitude, k) in scratch.magnitude.iter_mut().zip(k) {
                *magnitude += scaled * k;
            }
        }
    }

    /// Steps 1 to 4: exact logits and their errors, of the keys whose weight is not 0.
    pub(super) fn logits(&mut self, row: &Row<'_>) -> Fate {
        let Scratch { magnitude, keys, .. } = &mut self.scratch;
        let bound = self.bound;
        let head_dim = row.q.len() as f64;
        let c = (row.scale * LOG2_E).abs();
        let chain = roundings(head_dim, bound.fused, 1.0);
        let c_error = if c > 0.0 { 1.25 * U + TINY / c } else { 0.0 };
        let per_magnitude = chain.map(|n| (1.0 + c_error) * (1.0 + U) * (1.0 + gamma(n)) - 1.0);
        let product = if bound.fused { 0.0 } else { U };
        let slope_error = 1.25 * U + product;

        let cap_safe = row.softcap.is_none_or(|cap| cap * LOG2_E < SAFE && LN_2 / cap < SAFE);
        let mut safe = c < SAFE && row.slope.abs() * LOG2_E < SAFE && cap_safe;
        keys.clear();
        for (index, score) in row.scores.iter().enumerate().filter(|(_, score)| score.attended) {
            let (alibi, bias) = (score.alibi.abs() * LOG2_E, score.bias.abs() * LOG2_E);
            safe &= magnitude[index] + alibi + bias < SAFE;
            let steps = 2.0 * (head_dim + 1.0) * bound.step_flush * c.max(1.0);
            let mut eps = per_magnitude.map(|e| magnitude[index] * e + steps);
            if let Some(cap) = row.softcap {
                eps = eps.map(|eps| capped_error(score.raw, cap, eps));
            }
            if row.slope != 0.0 {
                let t = (score.capped - score.alibi).abs() * LOG2_E;
                let convert = if score.distance > (1 << 24) as f64 { U } else { 0.0 };
                let term = alibi * (slope_error + convert) + (score.distance + 2.0) * TINY;
                eps = eps.map(|eps| eps + term + U * (t + eps));
            }
            if score.bias != 0.0 {
                let t = score.logit().abs() * LOG2_E;
                let term = bias * (0.25 * U + product) + 2.0 * TINY;
                eps = eps.map(|eps| eps + term + U * (t + eps));
            }
            let eps = eps.map(|eps| eps * (1.0 + 1e-5));
            keys.push(Key { index, t: score.logit() * LOG2_E, eps, ..Key::default() });
        }
        if safe {
            return Fate::Finite;
        }
        let as_f32 = |key: &Key| logit_in_f32(row, &row.scores[key.index], key.index, bound.fused);
        if keys.iter().any(|key| as_f32(key).is_nan() || as_f32(key) == f32::INFINITY) {
            return Fate::Nan;
        }
        let top = keys.iter().map(Key::highest).fold(f64::NEG_INFINITY, f64::max);
        let mut fate = Fate::Finite;
        keys.retain(|key| {
            let lost = as_f32(key) == f32::NEG_INFINITY;
            if lost && key.t != f64::NEG_INFINITY && key.highest() >= top - 200.0 {
                fate = Fate::Doubtful;
            }
            !lost
        });
        if keys.is_empty() { Fate::Nan } else { fate }
    }
}

/// Step 2: the error of a capped logit in log2 units, from that of the raw one.
fn capped_error(raw: f64, cap: f64, eps: f64) -> f64 {
    let (a, c, x) = (LN_2 / cap, cap * LOG2_E, (raw / cap).abs());
    let x = x.min(1e6);
    let dx = x * (2.25 * U + TINY / a) + a * eps + TINY;
    let tanh = x.tanh();
    let slope = 1.0 - (x - dx).max(0.0).tanh().powi(2);
    let moved = (dx * slope * (1.0 + 1e-6) + 1e-15 * dx.min(1.0)).min(2.0);
    let function = 2.0 * TANH_ULP * U * (tanh + moved) + 2.0 * TANH_ULP * TINY;
    c * (moved + function) * (1.0 + 1e-6) + c * (tanh + moved) * (2.25 * U + TINY / c) + TINY
}

/// One logit in f32, log2 units, by the order of operations.
fn logit_in_f32(row: &Row<'_>, score: &Score, key: usize, fused: bool) -> f32 {
    let fma = |a: f32, b: f32, c: f32| if fused { a.mul_add(b, c) } else { a * b + c };
    let log2_e = std::f32::consts::LOG2_E;
    let c = row.scale as f32 * log2_e;
    let k = &row.k[key * row.q.len()..];
    let mut t = row.q.iter().zip(k).fold(0.0, |t, (&q, &k)| fma(q as f32 * c, k as f32, t));
    if let Some(cap) = row.softcap {
        let cap = cap as f32;
        t = cap * log2_e * (std::f32::consts::LN_2 / cap * t).tanh();
    }
    if row.slope != 0.0 {
        t = fma(score.distance as f32, -row.slope as f32 * log2_e, t);
    }
    if score.bias != 0.0 { fma(score.bias as f32, log2_e, t) } else { t }
}
