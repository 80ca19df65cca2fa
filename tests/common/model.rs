//! Version 1 of the order of operations, once more, in scalar code: the bits that every level has to give.
//!
//! Written from the text of `src/exact/mod.rs`, `src/score.rs` and `src/softmax.rs`, without their code. What it
//! takes as given: which keys a row attends and what their distances and biases are ([`reference::for_each_row`]), and
//! the bits of `exp2` and `tanh`, which have an exhaustive test of their own and come from the crate's public
//! [`math`]. Order of everything else, one rounding per written operation:
//!
//! ```text
//! c    = RN(scale * log2 e)            q'_d = q_d * c
//! t_j  = fma(q'_d, k_jd, t_j)          d ascending, from +0
//! t_j  = RN(cap * log2 e) * tanh(t_j * RN(ln 2 / cap))
//! t_j  = fma(distance, RN(-slope * log2 e), t_j)
//! t_j  = fma(bias, RN(log2 e), t_j)
//! ```
//! Each split of 1024 keys from nothing (m = -inf, l = 0 in 16 lanes, a = 0); in it, each tile of 256 keys:
//! ```text
//! m'   = max(m, t_j of the tile)       f = exp2(m - m'), 1 if equal
//! l    = l * f,  a_d = a_d * f
//! w_j  = exp2(t_j - m')                l[j mod 16] += w_j      a_d = fma(w_j, v_jd, a_d)         j ascending
//! ```
//! At its end the lanes fold 16 -> 8 -> 4 -> 2 -> 1, and the split joins those before it (if it has a key):
//! ```text
//! l    = fma(l2, f2, l1 * f1)          a_d = fma(a2_d, f2, a1_d * f1)            f = exp2(own m - larger m)
//! ```
//! A row with keys whose logits all are -inf is NaN (l = NaN). At last the sink, s = RN(sink * log2 e), and the division:
//! ```text
//! l'   = l * exp2(m - max(m, s)) + exp2(s - max(m, s))          a_d likewise
//! out  = a_d / l'                      lse = (m + log2 l) * ln 2         row_max = m * ln 2
//! ```

use lucid_attention::reference::{self, Row};
use lucid_attention::{Element, Inputs, Level, ScoreStage, math};
use std::f64::consts::LOG2_E;

const LANES: usize = 16;
const LN_2: f32 = std::f32::consts::LN_2;

/// The two lengths of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Keys that share a running maximum.
    pub tile: usize,
    /// Keys after which sums start afresh.
    pub split: usize,
}

impl Lengths {
    /// Those of the order of operations, version 1.
    pub const VERSION_1: Lengths = Lengths { tile: 256, split: 1024 };
}

/// What a call has to return.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// `[batch, q_heads, q_len, v_dim]`, before the rounding of a store.
    pub out: Vec<f32>,
    /// `[batch, q_heads, q_len]`.
    pub lse: Vec<f32>,
    /// `[batch, q_heads, q_len]`.
    pub row_max: Vec<f32>,
    /// `[batch, q_heads, q_len, kv_len]`, of the stage asked for.
    pub scores: Vec<f32>,
}

impl Model {
    /// The answer to `inputs` at a level, and scores of a stage.
    pub fn new<Q: Element, T: Element>(
        inputs: &Inputs<'_, Q, T>,
        level: Level,
        stage: Option<ScoreStage>,
    ) -> Model {
        Self::with_lengths(inputs, level, stage, Lengths::VERSION_1)
    }

    /// The same with other lengths, which the crate's own tests use to reach many edges with few keys.
    pub fn with_lengths<Q: Element, T: Element>(
        inputs: &Inputs<'_, Q, T>,
        level: Level,
        stage: Option<ScoreStage>,
        lengths: Lengths,
    ) -> Model {
        let [batch, q_heads, q_len, v_dim] = inputs.output_shape();
        let kv_len = inputs.k().shape()[2];
        let rows = batch * q_heads * q_len;
        let nothing = if stage == Some(ScoreStage::Softmax) { 0.0 } else { f32::NEG_INFINITY };
        let mut model = Model {
            out: vec![0.0; rows * v_dim],
            lse: vec![f32::NEG_INFINITY; rows],
            row_max: vec![f32::NEG_INFINITY; rows],
            scores: vec![nothing; if stage.is_some() { rows * kv_len } else { 0 }],
        };
        reference::for_each_row(inputs, |row| {
            let [b, h, i] = row.index;
            let at = (b * q_heads + h) * q_len + i;
            let answer = answer(row, level, lengths, v_dim);
            if let Some(stage) = stage {
                let scores = answer.scores(stage, row, level);
                model.scores[at * kv_len..][..scores.len()].copy_from_slice(&scores);
            }
            model.out[at * v_dim..][..v_dim].copy_from_slice(&answer.out);
            model.lse[at] = answer.lse;
            model.row_max[at] = answer.row_max;
        })
        .expect("operands that fit");
        model
    }
}

/// One row's answer, and what its scores follow from.
struct RowAnswer {
    out: Vec<f32>,
    lse: f32,
    row_max: f32,
    raw: Vec<f32>,
    capped: Vec<f32>,
    logits: Vec<f32>,
    /// Largest logit and sum, the sink included; `None` without a key.
    total: Option<(f32, f32)>,
}

impl RowAnswer {
    fn scores(&self, stage: ScoreStage, row: &Row<'_>, level: Level) -> Vec<f32> {
        let in_nats = |t: &[f32]| t.iter().map(|t| t * LN_2).collect();
        let attended = row.scores.iter().map(|score| score.attended);
        match (stage, self.total) {
            (ScoreStage::Raw, _) => in_nats(&self.raw),
            (ScoreStage::Capped, _) => in_nats(&self.capped),
            (ScoreStage::Biased, _) => {
                let scores = self.logits.iter().zip(attended);
                scores.map(|(t, attended)| if attended { t * LN_2 } else { f32::NEG_INFINITY }).collect()
            }
            (ScoreStage::Softmax, None) => vec![0.0; self.raw.len()],
            (ScoreStage::Softmax, Some((max, sum))) => {
                let mut weights: Vec<f32> = self.logits.iter().map(|t| t - shift(max)).collect();
                math::exp2(level, &mut weights).expect("an available level");
                weights
                    .iter()
                    .zip(attended)
                    .map(|(w, attended)| if attended { w / sum } else { 0.0 })
                    .collect()
            }
        }
    }
}

/// A row by the order, at the speed of the machine's own multiply-add where it has one.
fn answer(row: &Row<'_>, level: Level, lengths: Lengths, v_dim: usize) -> RowAnswer {
    if !level.is_fused() {
        return by_order::<false>(row, level, lengths, v_dim);
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "fma,avx2")]
        fn with_fma(row: &Row<'_>, level: Level, lengths: Lengths, v_dim: usize) -> RowAnswer {
            by_order::<true>(row, level, lengths, v_dim)
        }
        // SAFETY: the CPU has the features, as was just asked.
        return unsafe { with_fma(row, level, lengths, v_dim) };
    }
    by_order::<true>(row, level, lengths, v_dim)
}

/// `a * b + c`, rounded once or twice.
#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// RN(x log2 e).
fn in_log2(x: f64) -> f32 {
    (x * LOG2_E) as f32
}

/// The larger; the first if either is NaN.
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// What is subtracted from logits before `exp2`: the maximum, once there is one.
fn shift(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

fn exp2(level: Level, x: f32) -> f32 {
    let mut x = [x];
    math::exp2(level, &mut x).expect("an available level");
    x[0]
}

/// The factor from maximum `old` to `new`.
fn rescale(level: Level, old: f32, new: f32) -> f32 {
    if old == new { 1.0 } else { exp2(level, old - shift(new)) }
}

/// Some keys' state.
struct Part {
    max: f32,
    sum: f32,
    acc: Vec<f32>,
}

#[inline(always)]
fn by_order<const FUSED: bool>(row: &Row<'_>, level: Level, lengths: Lengths, v_dim: usize) -> RowAnswer {
    let head_dim = row.q.len();
    let factor = in_log2(row.scale);
    let q: Vec<f32> = row.q.iter().map(|&q| q as f32 * factor).collect();
    let raw: Vec<f32> = row
        .k
        .chunks_exact(head_dim)
        .map(|k| q.iter().zip(k).fold(0.0, |t, (&q, &k)| fma::<FUSED>(q, k as f32, t)))
        .collect();

    let mut capped = raw.clone();
    if let Some(cap) = row.softcap {
        let (inner, outer) = ((std::f64::consts::LN_2 / cap) as f32, in_log2(cap));
        capped.iter_mut().for_each(|t| *t *= inner);
        math::tanh(level, &mut capped).expect("an available level");
        capped.iter_mut().for_each(|t| *t *= outer);
    }

    let slope = -in_log2(row.slope);
    let logits: Vec<f32> = row
        .scores
        .iter()
        .zip(&capped)
        .map(|(score, &t)| fma::<FUSED>(score.distance as f32, slope, t))
        .zip(row.scores)
        .map(|(t, score)| fma::<FUSED>(score.bias as f32, LOG2_E as f32, t))
        .collect();

    let keys: Vec<usize> = (0..logits.len()).filter(|&j| row.scores[j].attended).collect();
    let splits = keys.chunk_by(|a, b| a / lengths.split == b / lengths.split);
    let parts = splits.map(|keys| split::<FUSED>(row, level, &logits, keys, lengths.tile));
    let total = parts.reduce(|first, second| merge::<FUSED>(level, first, second));
    let Some(Part { max, mut sum, mut acc }) = total else {
        let (lse, row_max) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        return RowAnswer { out: vec![0.0; v_dim], lse, row_max, raw, capped, logits, total: None };
    };

    if max == f32::NEG_INFINITY {
        // All logits overflowed: there is no softmax of them.
        sum = f32::NAN;
    }
    let lse = (max + log2(sum)) * LN_2;
    let row_max = if sum.is_nan() { f32::NAN } else { max * LN_2 + 0.0 };
    let (mut all_max, mut all_sum) = (max, sum);
    if let Some(sink) = row.sink {
        let sink = in_log2(sink);
        all_max = larger(max, sink);
        let factor = rescale(level, max, all_max);
        all_sum = sum * factor + exp2(level, sink - shift(all_max));
        if factor != 1.0 {
            acc.iter_mut().for_each(|a| *a *= factor);
        }
    }
    let out = acc.iter().map(|a| a / all_sum).collect();
    RowAnswer { out, lse, row_max, raw, capped, logits, total: Some((all_max, all_sum)) }
}

/// The keys of one split.
#[inline(always)]
fn split<const FUSED: bool>(
    row: &Row<'_>,
    level: Level,
    logits: &[f32],
    keys: &[usize],
    tile: usize,
) -> Part {
    let v_dim = row.v.len() / row.scores.len();
    let mut max = f32::NEG_INFINITY;
    let mut lanes = [0.0; LANES];
    let mut acc = vec![0.0; v_dim];
    for keys in keys.chunk_by(|a, b| a / tile == b / tile) {
        let old = max;
        max = keys.iter().fold(max, |max, &j| larger(max, logits[j]));
        let factor = rescale(level, old, max);
        lanes.iter_mut().for_each(|lane| *lane *= factor);
        if factor != 1.0 {
            acc.iter_mut().for_each(|a| *a *= factor);
        }
        let mut weights: Vec<f32> = keys.iter().map(|&j| logits[j] - shift(max)).collect();
        math::exp2(level, &mut weights).expect("an available level");
        for (&j, &weight) in keys.iter().zip(&weights) {
            lanes[j % LANES] += weight;
            for (a, &v) in acc.iter_mut().zip(&row.v[j * v_dim..]) {
                *a = fma::<FUSED>(weight, v as f32, *a);
            }
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    Part { max, sum: lanes[0], acc }
}

/// Two parts, in key order.
#[inline(always)]
fn merge<const FUSED: bool>(level: Level, first: Part, second: Part) -> Part {
    let max = larger(first.max, second.max);
    let (own, other) = (rescale(level, first.max, max), rescale(level, second.max, max));
    let join = |a: f32, b: f32| fma::<FUSED>(b, other, a * own);
    let acc = first.acc.iter().zip(&second.acc).map(|(&a, &b)| join(a, b)).collect();
    Part { max, sum: join(first.sum, second.sum), acc }
}

/// log2 by the steps that `src/math.rs` documents: ln m = 2 atanh((m - 1) / (m + 1)) in `f64`, rounded once.
fn log2(x: f32) -> f32 {
    if x == 0.0 || !x.is_finite() || x < 0.0 {
        return x.log2();
    }
    let x = f64::from(x);
    let mut exponent = x.log2().round();
    while x / exponent.exp2() < std::f64::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
    }
    while x / exponent.exp2() >= std::f64::consts::SQRT_2 {
        exponent += 1.0;
    }
    let m = x / exponent.exp2();
    let y = (m - 1.0) / (m + 1.0);
    let square = y * y;
    let series = (0..12).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    (exponent + 2.0 * LOG2_E * (y * series)) as f32
}
