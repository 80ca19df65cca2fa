//! The naive definition of every operation, in `f64`: what the fast paths are tested against.
//!
//! ```text
//! rows(inputs):  for each sequence, query head, query:     q [head_dim]   k [keys, head_dim]   v [keys, v_dim]
//!                    for each key:                         raw -> capped -> - alibi + bias      attended? kept?
//! attention:         row_max, lse, p = exp(s - max) / sum, out = sum kept p v
//! scores:            any of the stages, [batch, q_heads, q_len, kv_len]
//! ```
//!
//! It reads like the formula, materialises everything, and shares no helper with the kernels; of the mask it asks
//! [`Mask::allows`](crate::Mask::allows) and nothing else, of dropout [`Dropout::keeps`](crate::Dropout::keeps). Use it to check results, to teach, and to debug; it is
//! slow, allocates freely and runs on one thread.
//!
//! All arithmetic is `f64` on the exactly widened operands. It does **not** emulate `f32`: where a logit or an
//! unnormalised sum leaves the range of `f32`, the kernels give NaN or infinity as [`Inputs`] describes, and this
//! module the finite value of the formula; where a weight underflows in `f32`, it is still positive here. Only what
//! an option's type fixes is `f32`: the default scale is `1 / sqrt(head_dim)` rounded to `f32`.
//!
//! - A removed key (by the mask, or by a bias of -inf) enters no sum, whatever its key, value or bias holds.
//! - No key left: output +0, `lse` and `row_max` -inf, probabilities 0.
//! - Keys beyond a sequence's length are no keys at all: [`Row`] does not list them.
//! - Keys are left and one of their logits is NaN or +inf, or all are -inf: output, `lse`, `row_max` and the
//!   probabilities of these keys are NaN. A sink of NaN or +inf makes outputs and probabilities NaN.

use crate::element::Element;
use crate::error::AttentionError;
use crate::inputs::{Inputs, Keys, QueryStart};
use crate::mask::Cell;
use crate::outputs::ScoreStage;
use std::ops::Range;

/// What [`attention`] computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `[batch, q_heads, q_len, v_dim]`.
    pub out: Vec<f64>,
    /// `[batch, q_heads, q_len]`: the natural logarithm of the sum of `exp(logit)`, without the sink.
    pub lse: Vec<f64>,
    /// `[batch, q_heads, q_len]`: the largest logit, without the sink.
    pub row_max: Vec<f64>,
}

/// One query row with everything that decides its output: what [`for_each_row`] hands out.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The sequence: the batch index, or the index in a ragged batch.
    pub sequence: usize,
    /// `[batch, q_head, query]`, as the output counts them.
    pub index: [usize; 3],
    /// The query, `[head_dim]`.
    pub q: &'a [f64],
    /// The sequence's valid keys, `[keys, head_dim]`.
    pub k: &'a [f64],
    /// Their values, `[keys, v_dim]`.
    pub v: &'a [f64],
    /// One score for each of them.
    pub scores: &'a [Score],
    /// The factor in [`Score::raw`].
    pub scale: f64,
    /// The cap in [`Score::capped`].
    pub softcap: Option<f64>,
    /// The head's ALiBi slope; 0 without ALiBi.
    pub slope: f64,
    /// The sink's logit.
    pub sink: Option<f64>,
}

/// A score in the making, in the order of the stages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// `scale * q.k`.
    pub raw: f64,
    /// `softcap * tanh(raw / softcap)`, or `raw`.
    pub capped: f64,
    /// `|q_pos - k_pos|`.
    pub distance: f64,
    /// `slope * distance`, which is subtracted; 0 without ALiBi.
    pub alibi: f64,
    /// What the dense bias adds; -0 without one, which changes no number it is added to.
    pub bias: f64,
    /// Whether neither the mask nor a bias of -inf removes the key.
    pub attended: bool,
    /// What dropout multiplies the probability by: 0, or `1 / (1 - rate)`; 1 without dropout.
    pub dropout: f64,
}

impl Score {
    /// What the softmax sees of an attended key: capped, ALiBi subtracted, bias added.
    pub fn logit(&self) -> f64 {
        self.capped - self.alibi + self.bias
    }
}

/// Attention by its definition.
///
/// ```
/// use lucid_attention::{Inputs, View, reference};
/// let (q, k) = ([0.0f32; 4], [1.0f32; 3 * 4]); // all scores are 0,
/// let v = [1.0f32, 2.0, 6.0]; // so the output is the mean
/// let answer = reference::attention(&Inputs::new(
///     View::new(&q, [1, 1, 1, 4])?,
///     View::new(&k, [1, 1, 3, 4])?,
///     View::new(&v, [1, 1, 3, 1])?,
/// ))?;
/// assert!((answer.out[0] - 3.0).abs() < 1e-12);
/// assert!((answer.lse[0] - 3f64.ln()).abs() < 1e-12);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
///
/// # Errors
/// The operands do not fit one another, the query position is needed and missing, or memory cannot be had. Numbers
/// (scale, softcap, slopes, sinks) are taken as they are: the formula is evaluated with them.
pub fn attention<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>) -> Result<Answer, AttentionError> {
    let [batch, q_heads, q_len, v_dim] = inputs.output_shape();
    let rows = [batch, q_heads, q_len];
    let mut answer = Answer {
        out: filled("out", 0.0, &[batch, q_heads, q_len, v_dim])?,
        lse: filled("lse", f64::NEG_INFINITY, &rows)?,
        row_max: filled("row_max", f64::NEG_INFINITY, &rows)?,
    };
    for_each_row(inputs, |row| {
        let at = position(row.index, rows);
        answer.row_max[at] = row_max(row.scores);
        answer.lse[at] = lse(row.scores);
        let out = &mut answer.out[at * v_dim..][..v_dim];
        for (key, p) in probabilities(row).enumerate().filter(|&(key, _)| row.scores[key].attended) {
            for (out, v) in out.iter_mut().zip(&row.v[key * v_dim..]) {
                *out += row.scores[key].dropout * p * v;
            }
        }
    })?;
    Ok(answer)
}

/// The scores at one stage, `[batch, q_heads, q_len, kv_len]`. Keys beyond a sequence's key length hold -inf (0 at
/// [`ScoreStage::Softmax`]). In a ragged batch rows are the tokens of `q`, keys count within the sequence, and the
/// last axis is as long as the longest sequence.
///
/// # Errors
/// As [`attention`].
pub fn scores<Q: Element, T: Element>(
    inputs: &Inputs<'_, Q, T>,
    stage: ScoreStage,
) -> Result<Vec<f64>, AttentionError> {
    let [batch, q_heads, q_len, _] = inputs.q.shape();
    let kv_len = longest(inputs)[1];
    let nothing = if stage == ScoreStage::Softmax { 0.0 } else { f64::NEG_INFINITY };
    let mut scores = filled("scores", nothing, &[batch, q_heads, q_len, kv_len])?;
    for_each_row(inputs, |row| {
        let out = &mut scores[position(row.index, [batch, q_heads, q_len]) * kv_len..];
        for ((out, score), p) in out.iter_mut().zip(row.scores).zip(probabilities(row)) {
            *out = match stage {
                ScoreStage::Raw => score.raw,
                ScoreStage::Capped => score.capped,
                ScoreStage::Biased if score.attended => score.logit(),
                ScoreStage::Biased => f64::NEG_INFINITY,
                ScoreStage::Softmax => p,
            };
        }
    })?;
    Ok(scores)
}

/// Hands out every query row: the building block of [`attention`] and [`scores`], public for whoever needs the
/// operands and the scores side by side, as an error bound does.
///
/// # Errors
/// As [`attention`].
pub fn for_each_row<Q: Element, T: Element>(
    inputs: &Inputs<'_, Q, T>,
    mut visit: impl FnMut(&Row<'_>),
) -> Result<(), AttentionError> {
    crate::Problem::of(inputs).validate()?;
    inputs.mask.check_repeated()?;
    let sequences = sequences(inputs)?;
    check(inputs, &sequences)?;
    let ([_, q_heads, _, head_dim], [_, kv_heads, _, v_dim]) = (inputs.q.shape(), inputs.v.shape());
    let scale = f64::from(inputs.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()));
    let softcap = inputs.softcap.map(f64::from);
    for sequence in &sequences {
        for q_head in 0..q_heads {
            let kv_head = q_head / (q_heads / kv_heads);
            let k = rows_of(head_dim, &sequence.keys, |t, d| {
                let index = [sequence.batch, kv_head, t, d];
                match inputs.k {
                    Keys::Rows(view) => view.get(index).map(|x| x.to_f32()),
                    Keys::Panels(panels) => panels.get(index).map(|x| x.to_f32()),
                }
            })?;
            let v = rows_of(v_dim, &sequence.keys, |t, d| {
                inputs.v.get([sequence.batch, kv_head, t, d]).map(|x| x.to_f32())
            })?;
            let mut scores = Vec::with_capacity(sequence.keys.len());
            for (query, token) in sequence.queries.clone().enumerate() {
                let q = rows_of(head_dim, &(token..token + 1), |t, d| {
                    inputs.q.get([sequence.batch, q_head, t, d]).map(|x| x.to_f32())
                })?;
                let q_pos = sequence.q_start.saturating_add(query as i64);
                scores.clear();
                scores.extend(k.chunks_exact(head_dim).enumerate().map(|(k_pos, k)| {
                    let cell = Cell { sequence: sequence.index, q_head, query, q_pos, k_pos };
                    score(inputs, cell, scale * dot(&q, k))
                }));
                visit(&Row {
                    sequence: sequence.index,
                    index: [sequence.batch, q_head, token],
                    q: &q,
                    k: &k,
                    v: &v,
                    scores: &scores,
                    scale,
                    softcap,
                    slope: inputs.alibi.map_or(0.0, |slopes| f64::from(slopes[q_head])),
                    sink: inputs.sinks.map(|sinks| f64::from(sinks[q_head])),
                });
            }
        }
    }
    Ok(())
}

/// Takes a raw score through the stages, in the order of the contract.
fn score<Q, T: Element>(inputs: &Inputs<'_, Q, T>, cell: Cell, raw: f64) -> Score {
    let capped = inputs.softcap.map(f64::from).map_or(raw, |cap| cap * (raw / cap).tanh());
    let distance = (i128::from(cell.q_pos) - cell.k_pos as i128).unsigned_abs() as f64;
    let alibi = inputs.alibi.map_or(0.0, |slopes| f64::from(slopes[cell.q_head]) * distance);
    let bias = inputs.bias.map_or(-0.0, |bias| {
        let index = [cell.sequence, cell.q_head, cell.query, cell.k_pos];
        let repeated = |axis: usize| if bias.shape()[axis] == 1 { 0 } else { index[axis] };
        f64::from(bias.get([0, 1, 2, 3].map(repeated)).unwrap_or(f32::NAN))
    });
    let attended = inputs.mask.allows(cell) && bias != f64::NEG_INFINITY;
    let dropout = inputs
        .dropout
        .map_or(1.0, |dropout| if dropout.keeps(cell) { 1.0 / (1.0 - f64::from(dropout.rate)) } else { 0.0 });
    Score { raw, capped, distance, alibi, bias, attended, dropout }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The logits of the keys left.
fn logits(scores: &[Score]) -> impl Iterator<Item = f64> {
    scores.iter().filter(|score| score.attended).map(Score::logit)
}

/// The largest logit: -inf if no key is left, NaN if keys are left but no softmax is defined over them.
fn row_max(scores: &[Score]) -> f64 {
    let max = logits(scores).fold(f64::NEG_INFINITY, f64::max);
    let undefined = logits(scores).any(f64::is_nan) || max.is_infinite();
    if undefined && logits(scores).next().is_some() { f64::NAN } else { max }
}

/// `ln sum exp(logit)`.
fn lse(scores: &[Score]) -> f64 {
    let max = row_max(scores);
    if max == f64::NEG_INFINITY { max } else { max + sum_exp(scores, max).ln() }
}

fn sum_exp(scores: &[Score], max: f64) -> f64 {
    logits(scores).map(|logit| (logit - max).exp()).sum()
}

/// `exp(logit) / (sum exp(logit) + exp(sink))` for each key, 0 for removed ones.
fn probabilities<'r>(row: &Row<'r>) -> impl Iterator<Item = f64> + use<'r> {
    let (scores, sink) = (row.scores, row.sink.unwrap_or(f64::NEG_INFINITY));
    let max = row_max(scores);
    let max = if max.is_nan() || sink.is_nan() { f64::NAN } else { max.max(sink) };
    let sum = sum_exp(scores, max) + (sink - max).exp();
    scores.iter().map(move |score| if score.attended { (score.logit() - max).exp() / sum } else { 0.0 })
}

/// The rows `tokens` of an operand, widened: `[tokens, dim]`.
fn rows_of(
    dim: usize,
    tokens: &Range<usize>,
    get: impl Fn(usize, usize) -> Option<f32>,
) -> Result<Vec<f64>, AttentionError> {
    let mut rows = filled("operand", 0.0, &[tokens.len(), dim])?;
    for (index, x) in rows.iter_mut().enumerate() {
        *x = get(tokens.start + index / dim, index % dim).map_or(f64::NAN, f64::from);
    }
    Ok(rows)
}

/// An array, unless there is no such memory.
fn filled(what: &'static str, value: f64, shape: &[usize]) -> Result<Vec<f64>, AttentionError> {
    let size = shape.iter().try_fold(1usize, |size, &n| size.checked_mul(n));
    let size = size.ok_or(AttentionError::SizeOverflow { operand: what })?;
    let mut array = Vec::new();
    let bytes = size.saturating_mul(size_of::<f64>());
    array.try_reserve_exact(size).map_err(|_| AttentionError::OutOfMemory { what, bytes })?;
    array.resize(size, value);
    Ok(array)
}

/// Where a row lies in a contiguous `[batch, q_heads, q_len]`.
fn position([b, h, i]: [usize; 3], [_, q_heads, q_len]: [usize; 3]) -> usize {
    (b * q_heads + h) * q_len + i
}

/// One sequence: where its tokens lie in the views, and where its first query stands.
struct Sequence {
    index: usize,
    batch: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    q_start: i64,
}

/// The most queries and the most keys of a sequence: what the last two axes of dense masks and biases count.
fn longest<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>) -> [usize; 2] {
    let longest = |bounds: &[usize]| bounds.windows(2).map(|b| b[1].saturating_sub(b[0])).max().unwrap_or(0);
    match inputs.ragged {
        None => [inputs.q.shape()[2], inputs.k.shape()[2]],
        Some(ragged) => [longest(ragged.q_bounds), longest(ragged.kv_bounds)],
    }
}

/// The batch as a list of sequences.
fn sequences<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>) -> Result<Vec<Sequence>, AttentionError> {
    let ([batch, _, q_len, _], [_, _, kv_len, _]) = (inputs.q.shape(), inputs.k.shape());
    let count = inputs.ragged.map_or(batch, |ragged| ragged.q_bounds.len().saturating_sub(1));
    let mut places: Vec<(usize, Range<usize>, Range<usize>)> = Vec::new();
    let out_of_memory = AttentionError::OutOfMemory { what: "batch", bytes: count.saturating_mul(64) };
    places.try_reserve_exact(count).map_err(|_| out_of_memory)?;
    match inputs.ragged {
        None => places.extend((0..batch).map(|b| (b, 0..q_len, 0..kv_len))),
        Some(ragged) => {
            check_size("ragged", "batch", 1, batch)?;
            check_size("kv_bounds", "sequences + 1", ragged.q_bounds.len(), ragged.kv_bounds.len())?;
            let queries = split("q_bounds", ragged.q_bounds, q_len)?;
            let keys = split("kv_bounds", ragged.kv_bounds, kv_len)?;
            places.extend(queries.zip(keys).map(|(queries, keys)| (0, queries, keys)));
        }
    }
    let positional = inputs.mask.causal
        || inputs.mask.left.is_some()
        || inputs.mask.right.is_some()
        || inputs.mask.documents.is_some()
        || inputs.mask.blocks.is_some()
        || inputs.alibi.is_some();
    let sequence = |(index, (batch, queries, mut keys)): (usize, (usize, Range<usize>, Range<usize>))| {
        let (q_len, kv_len) = (queries.len(), keys.len());
        if let Some(lens) = inputs.mask.kv_lens {
            check_size("kv_lens", "entries", count, lens.len())?;
            let valid = lens[index];
            if valid > kv_len {
                let (operand, axis) = ("kv_lens", "kv_len");
                return Err(AttentionError::TooLarge { operand, axis, limit: kv_len, got: valid });
            }
            keys.end = keys.start + valid;
        }
        let q_start = match inputs.q_start {
            None if positional && q_len != kv_len => {
                return Err(AttentionError::QueryStartMissing { q_len, kv_len });
            }
            None | Some(QueryStart::TopLeft) => 0,
            Some(QueryStart::BottomRight) => (keys.len() as i64).saturating_sub(q_len as i64),
            Some(QueryStart::At(start)) => start,
            Some(QueryStart::PerSequence(starts)) => {
                check_size("q_start", "batch", count, starts.len())?;
                starts[index]
            }
        };
        Ok(Sequence { index, batch, queries, keys, q_start })
    };
    places.into_iter().enumerate().map(sequence).collect()
}

/// The runs between ascending bounds that cover `0..len`.
fn split<'a>(
    operand: &'static str,
    bounds: &'a [usize],
    len: usize,
) -> Result<impl Iterator<Item = Range<usize>> + use<'a>, AttentionError> {
    let ascending = bounds.windows(2).all(|pair| pair[0] <= pair[1]);
    if !ascending || bounds.first() != Some(&0) || bounds.last() != Some(&len) {
        let (expected, got) = ("bounds that ascend from 0 to the number of tokens", format!("{bounds:?}"));
        return Err(AttentionError::Value { operand, expected, got });
    }
    Ok(bounds.windows(2).map(|pair| pair[0]..pair[1]))
}

/// Entry `index` of a list with one entry for each of `count` sequences, or one for all.
fn per_sequence(
    operand: &'static str,
    list: &[usize],
    index: usize,
    count: usize,
) -> Result<usize, AttentionError> {
    if list.len() == 1 {
        return Ok(list[0]);
    }
    check_size(operand, "batch", count, list.len())?;
    Ok(list[index])
}

fn check_size(
    operand: &'static str,
    axis: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), AttentionError> {
    if expected == got { Ok(()) } else { Err(AttentionError::Shape { operand, axis, expected, got }) }
}

/// Refuses whatever would be indexed out of bounds.
fn check<Q: Element, T: Element>(
    inputs: &Inputs<'_, Q, T>,
    sequences: &[Sequence],
) -> Result<(), AttentionError> {
    let [batch, q_heads, _, head_dim] = inputs.q.shape();
    let [_, kv_heads, kv_len, _] = inputs.k.shape();
    check_size("k", "batch", batch, inputs.k.shape()[0])?;
    check_size("k", "dim", head_dim, inputs.k.shape()[3])?;
    check_size("v", "batch", batch, inputs.v.shape()[0])?;
    check_size("v", "heads", kv_heads, inputs.v.shape()[1])?;
    check_size("v", "tokens", kv_len, inputs.v.shape()[2])?;
    check_size("alibi", "q_heads", q_heads, inputs.alibi.map_or(q_heads, <[f32]>::len))?;
    check_size("sinks", "q_heads", q_heads, inputs.sinks.map_or(q_heads, <[f32]>::len))?;
    if let (Some(prefix), Some(last)) = (inputs.mask.prefix, sequences.len().checked_sub(1)) {
        per_sequence("prefix", prefix, last, sequences.len())?;
    }
    if inputs.mask.documents.is_some_and(|bounds| bounds.windows(2).any(|pair| pair[0] > pair[1])) {
        let (operand, expected, got) = ("mask.documents", "ascending boundaries", "others".to_owned());
        return Err(AttentionError::Value { operand, expected, got });
    }
    let [queries, keys] = longest(inputs);
    let full = [sequences.len(), q_heads, queries, keys];
    inputs.mask.intervals.map_or(Ok(()), |list| list.check(full))?;
    inputs.mask.blocks.map_or(Ok(()), |blocks| blocks.check(full))?;
    let dense = [
        ("bias", inputs.bias.map(|view| view.shape())),
        ("mask", inputs.mask.allowed.map(|view| view.shape())),
    ];
    for (operand, shape) in dense {
        for (axis, name) in ["batch", "q_heads", "q_len", "kv_len"].into_iter().enumerate() {
            let got = shape.map_or(1, |shape| shape[axis]);
            check_size(operand, name, if got == 1 { 1 } else { full[axis] }, got)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AnyView, Intervals, Mask, Ragged, Span, View};

    /// Reproducible numbers in -1..1.
    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b).rotate_left(13);
        (0..len as u32).map(|i| hash(hash(i)) as i32 as f32 / 2f32.powi(31)).collect()
    }

    fn view(data: &[f32], shape: [usize; 4]) -> View<'_, f32> {
        View::new(data, shape).unwrap()
    }

    /// Queries of size 1 with one-dimensional keys `k`, so that the scores with scale 1 are `q * k`.
    fn row<'a>(q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Inputs<'a, f32, f32> {
        let (q_len, kv_len) = (q.len(), k.len());
        let (q, k) = (view(q, [1, 1, q_len, 1]), view(k, [1, 1, kv_len, 1]));
        Inputs::new(q, k, view(v, [1, 1, kv_len, v.len() / kv_len])).scale(1.0)
    }

    #[track_caller]
    fn close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            let same = got == expected || (got - expected).abs() < 1e-12 || got.is_nan() && expected.is_nan();
            assert!(same, "{got} instead of {expected}");
        }
    }

    #[test]
    fn closed_forms() {
        let ln = |x: f64| x.ln() as f32;
        let one = attention(&row(&[1.0], &[0.0, 800.0, 3.0], &[1.0, 2.0, 3.0])).unwrap();
        close(&one.out, &[2.0]);
        close(&one.row_max, &[800.0]);

        let keys = [ln(3.0), 0.0];
        let two = row(&[1.0], &keys, &[4.0, 8.0]);
        let weight = f64::from(keys[0]).exp();
        close(&attention(&two).unwrap().out, &[(4.0 * weight + 8.0) / (weight + 1.0)]);
        close(&attention(&two).unwrap().lse, &[(weight + 1.0).ln()]);
        let sunk = attention(&two.sinks(&[0.0])).unwrap();
        close(&sunk.out, &[(4.0 * weight + 8.0) / (weight + 2.0)]);
        close(&sunk.lse, &[(weight + 1.0).ln()]);
        close(
            &scores(&two.sinks(&[0.0]), ScoreStage::Softmax).unwrap(),
            &[weight / (weight + 2.0), 1.0 / (weight + 2.0)],
        );

        let capped = row(&[4.0], &[1.0, -2.0], &[0.0; 2]).softcap(2.0);
        close(&scores(&capped, ScoreStage::Raw).unwrap(), &[4.0, -8.0]);
        close(&scores(&capped, ScoreStage::Capped).unwrap(), &[2.0 * 2f64.tanh(), -2.0 * 4f64.tanh()]);
        let alibi = row(&[0.0; 2], &[1.0; 3], &[0.0; 3]).alibi(&[0.5]).q_start(QueryStart::BottomRight);
        let expected = [-0.5, 0.0, -0.5, -1.0, -0.5, 0.0];
        close(&scores(&alibi, ScoreStage::Biased).unwrap(), &expected);
        let bias = [1.0, f32::NEG_INFINITY];
        let biased =
            row(&[1.0], &[2.0, f32::NAN], &[5.0, f32::NAN]).bias(AnyView::F32(view(&bias, [1, 1, 1, 2])));
        close(&scores(&biased, ScoreStage::Biased).unwrap(), &[3.0, f64::NEG_INFINITY]);
        close(&attention(&biased).unwrap().out, &[5.0]);
    }

    #[test]
    fn rows_without_keys_and_rows_without_an_answer() {
        let empty = attention(&row(&[f32::NAN; 2], &[1.0], &[1.0]).mask(Mask::NONE.kv_lens(&[0]))).unwrap();
        assert!(empty.out.iter().all(|out| out.to_bits() == 0));
        assert_eq!(empty.lse, [f64::NEG_INFINITY; 2]);
        assert_eq!(empty.row_max, [f64::NEG_INFINITY; 2]);
        for undefined in [f32::NAN, f32::INFINITY] {
            let answer = attention(&row(&[1.0], &[0.0, undefined], &[1.0; 2]).sinks(&[0.0])).unwrap();
            assert!(answer.out[0].is_nan() && answer.lse[0].is_nan() && answer.row_max[0].is_nan());
        }
        let lost = attention(&row(&[1.0], &[f32::NEG_INFINITY], &[1.0]).sinks(&[0.0])).unwrap();
        assert!(lost.out[0].is_nan() && lost.lse[0].is_nan());
        let zero = attention(&row(&[1.0], &[f32::NEG_INFINITY, 0.0], &[1.0, 7.0])).unwrap();
        close(&zero.out, &[7.0]);
    }

    #[test]
    fn positions() {
        let inputs = row(&[0.0; 3], &[0.0; 2], &[3.0, 5.0]).mask(Mask::causal());
        assert_eq!(attention(&inputs), Err(AttentionError::QueryStartMissing { q_len: 3, kv_len: 2 }));
        close(&attention(&inputs.q_start(QueryStart::TopLeft)).unwrap().out, &[3.0, 4.0, 4.0]);
        close(&attention(&inputs.q_start(QueryStart::BottomRight)).unwrap().out, &[0.0, 3.0, 4.0]);
        close(&attention(&inputs.q_start(QueryStart::PerSequence(&[-2]))).unwrap().out, &[0.0, 0.0, 3.0]);
        let short = inputs.mask(Mask::causal().kv_lens(&[1])).q_start(QueryStart::BottomRight);
        close(&attention(&short).unwrap().out, &[0.0, 0.0, 3.0]);
        let prefix = inputs.mask(Mask::prefix_lm(&[2])).q_start(QueryStart::TopLeft);
        close(&attention(&prefix).unwrap().out, &[4.0; 3]);
        let last = inputs.mask(Mask::NONE.last_n_keys(1)).q_start(QueryStart::TopLeft);
        close(&attention(&last).unwrap().out, &[3.0, 5.0, 0.0]);
        let documents = inputs.mask(Mask::NONE.documents(&[0, 1, 3])).q_start(QueryStart::TopLeft);
        close(&attention(&documents).unwrap().out, &[3.0, 5.0, 5.0]);
        let (spans, offsets) = ([Span { start: 1, end: 2 }], [0, 1, 1, 1]);
        let listed = Mask::NONE.intervals(Intervals::new([1, 1, 3], &offsets, &spans).unwrap());
        close(&attention(&inputs.mask(listed)).unwrap().out, &[5.0, 0.0, 0.0]);
        let allowed = Mask::NONE.allowed(View::new(&[false, true], [1, 1, 1, 2]).unwrap());
        close(&attention(&inputs.mask(allowed)).unwrap().out, &[5.0; 3]);
    }

    #[test]
    fn ragged_is_the_separate_calls_and_groups_are_repeated_heads() {
        let (q, k, v) = (noise(2 * 7 * 4, 1), noise(9 * 4, 2), noise(9 * 3, 3));
        let inputs = Inputs::new(view(&q, [1, 2, 7, 4]), view(&k, [1, 1, 9, 4]), view(&v, [1, 1, 9, 3]));
        let bias = noise(2 * 5 * 6, 4);
        let options = |inputs: Inputs<'_, f32, f32>| {
            attention(&inputs.mask(Mask::causal()).q_start(QueryStart::BottomRight).alibi(&[0.1, 0.2]))
                .unwrap()
        };
        let ragged = Ragged { q_bounds: &[0, 2, 7], kv_bounds: &[0, 6, 9] };
        let together = options(inputs.ragged(ragged).bias(view(&bias, [2, 1, 5, 6])));
        for (s, (queries, keys)) in [(0..2, 0..6), (2..7, 6..9)].into_iter().enumerate() {
            for h in 0..2 {
                let (m, n) = (queries.len(), keys.len());
                let bias = View::with_strides(&bias[s * 30..], [1, 1, m, n], [0, 0, 6, 1]).unwrap();
                let slopes = [0.1, 0.2];
                let alone = Inputs::new(
                    view(&q[(h * 7 + queries.start) * 4..], [1, 1, m, 4]),
                    view(&k[keys.start * 4..], [1, 1, n, 4]),
                    view(&v[keys.start * 3..], [1, 1, n, 3]),
                );
                let alone = alone.mask(Mask::causal()).q_start(QueryStart::BottomRight);
                let alone = attention(&alone.alibi(&slopes[h..=h]).bias(bias)).unwrap();
                close(&alone.out, &together.out[(h * 7 + queries.start) * 3..][..m * 3]);
                close(&alone.lse, &together.lse[h * 7 + queries.start..][..m]);
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let inputs = row(&[0.0; 3], &[0.0; 2], &[3.0, 5.0]);
        let bias = [0.0; 6];
        let wrong = [
            inputs.alibi(&[0.1; 2]).q_start(QueryStart::At(i64::MAX)),
            inputs.sinks(&[]),
            inputs.bias(view(&bias, [1, 1, 2, 2])),
            inputs.mask(Mask::NONE.kv_lens(&[3])),
            inputs.mask(Mask::NONE.kv_lens(&[])),
            inputs.mask(Mask::prefix_lm(&[1, 2])).q_start(QueryStart::TopLeft),
            inputs.q_start(QueryStart::PerSequence(&[])),
            inputs.mask(Mask::NONE.intervals(Intervals::new([1, 1, 1], &[0, 0], &[]).unwrap())),
            inputs.mask(Mask::NONE.allowed(View::new(&[true; 4], [1, 1, 1, 4]).unwrap())),
            inputs.ragged(Ragged { q_bounds: &[0, 3], kv_bounds: &[0, 3] }),
            inputs.ragged(Ragged { q_bounds: &[], kv_bounds: &[] }),
        ];
        for (case, inputs) in wrong.iter().enumerate() {
            assert!(attention(inputs).is_err() && scores(inputs, ScoreStage::Raw).is_err(), "case {case}");
        }
    }
}
