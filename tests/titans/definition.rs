//! The variants by their definition in `f64`, in straight lines.

use crate::Vectors;
use lucid_attention::module::{AttentionConfig, DenseWeights, ModuleWeights};
use lucid_attention::titans::lucidia::{Focus, MacMode};

/// How queries, keys and values become logits and an output.
pub(crate) enum Layer<'a> {
    Identity {
        heads: usize,
    },
    /// Without residual and layer norm.
    Projected {
        config: &'a AttentionConfig,
        weights: &'a ModuleWeights,
    },
}

pub(crate) fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

pub(crate) fn dense(x: &[f64], layer: &DenseWeights) -> Vec<f64> {
    let row = |j: usize| {
        let weights = &layer.weight[j * layer.inputs..][..layer.inputs];
        let bias = layer.bias.as_ref().map_or(0.0, |bias| f64::from(bias[j]));
        x.iter().zip(weights).map(|(x, &w)| x * f64::from(w)).sum::<f64>() + bias
    };
    (0..layer.outputs).map(row).collect()
}

/// Attention of one query: the output and the weights of each head. `shape` turns the divided logits of a head into others.
pub(crate) fn attend(
    layer: &Layer<'_>,
    query: &[f64],
    keys: &[&[f32]],
    values: &[&[f32]],
    temperature: f64,
    shape: impl Fn(Vec<f64>) -> Vec<f64>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let (keys, values): (Vec<_>, Vec<_>) =
        (keys.iter().map(|k| wide(k)).collect(), values.iter().map(|v| wide(v)).collect());
    let (heads, q, k, v) = match layer {
        Layer::Identity { heads } => (*heads, query.to_vec(), keys, values),
        Layer::Projected { config, weights } => (
            config.num_heads,
            dense(query, &weights.query),
            keys.iter().map(|k| dense(k, &weights.key)).collect(),
            values.iter().map(|v| dense(v, &weights.value)).collect(),
        ),
    };
    let (head, v_head) = (q.len() / heads, v[0].len() / heads);
    let (mut context, mut all) = (Vec::new(), Vec::new());
    for h in 0..heads {
        let part = |x: &[f64]| x[h * head..][..head].to_vec();
        let dot = |k: &Vec<f64>| part(&q).iter().zip(part(k)).map(|(q, k)| q * k).sum::<f64>();
        let logits = shape(k.iter().map(|k| dot(k) / (head as f64).sqrt() / temperature).collect());
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = logits.iter().map(|s| (s - top).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let weights: Vec<f64> = powers.iter().map(|p| p / sum).collect();
        context.extend(
            (0..v_head).map(|d| weights.iter().zip(&v).map(|(w, v)| w * v[h * v_head + d]).sum::<f64>()),
        );
        all.push(weights);
    }
    match layer {
        Layer::Identity { .. } => (context, all),
        Layer::Projected { weights, .. } => (dense(&context, &weights.output), all),
    }
}

/// The table's row of MAC: temperature, mode, limit (of `n` steps), whether limits keep the newest.
pub(crate) fn mac_row(focus: Focus, n: usize) -> (f64, MacMode, Option<usize>, bool) {
    match focus {
        Focus::Default => (1.0, MacMode::Standard, None, true),
        Focus::Recency => (0.8, MacMode::RecencyFocused, Some(10.max(n / 2)), true),
        Focus::Relevance => (1.2, MacMode::RelevanceFocused, None, false),
        Focus::Emotional => (1.5, MacMode::EmotionalRelevance, None, false),
        Focus::Broad => (2.0, MacMode::BroadAssociations, None, false),
        Focus::Balance => (1.0, MacMode::Balanced, Some(15.max((n as f64 / 1.5).floor() as usize)), true),
    }
}

/// What a mode adds, and its share of `y`.
pub(crate) fn mac_shape(mode: MacMode, logits: Vec<f64>) -> Vec<f64> {
    let n = logits.len() as f64;
    let add = |bias: &dyn Fn(f64) -> f64| {
        logits.iter().enumerate().map(|(i, s)| s + bias(i as f64 / n)).collect::<Vec<_>>()
    };
    match mode {
        MacMode::Standard => logits,
        MacMode::RecencyFocused => add(&|r| 0.7 * r),
        MacMode::Balanced => add(&|r| 0.3 * r),
        MacMode::EmotionalRelevance => add(&|r| 0.4 * (1.0 - r)),
        MacMode::BroadAssociations => add(&|r| 0.6 * (1.0 - r)),
        MacMode::RelevanceFocused => {
            let mean = logits.iter().sum::<f64>() / n;
            let variance = logits.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
            if variance > 1.0 { logits.iter().map(|s| s / variance.sqrt()).collect() } else { logits }
        }
    }
}

pub(crate) fn mac_ratio(mode: MacMode) -> f64 {
    match mode {
        MacMode::RecencyFocused => 0.2,
        MacMode::Balanced => 0.3,
        _ => 0.0,
    }
}

/// The steps that a limit leaves of the newest `cap`.
pub(crate) fn chosen(steps: &[Vectors], cap: usize, limit: Option<usize>, newest: bool) -> Vec<&Vectors> {
    let steps = &steps[steps.len() - steps.len().min(cap)..];
    let limit = limit.unwrap_or(usize::MAX).min(steps.len());
    if newest || limit == steps.len() {
        return steps[steps.len() - limit..].iter().collect();
    }
    let mut picked: Vec<&Vectors> = steps.iter().rev().step_by(steps.len() / limit).take(limit).collect();
    picked.reverse();
    picked
}

pub(crate) fn entropy(heads: &[Vec<f64>]) -> f64 {
    let head = |w: &Vec<f64>| -w.iter().map(|w| w * w.max(1e-10).ln()).sum::<f64>();
    heads.iter().map(head).sum::<f64>() / heads.len() as f64
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
