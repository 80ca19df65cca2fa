//! The definition, in `f64`: quadratic, on features that are written out once more.

use super::case::{Case, Decay, Operands};
use super::{Rng, difference, levels};
use half::{bf16, f16};
use lucid_attention::linear::{CustomMap, FeatureMap, Norms, Projection, Side};
use lucid_attention::{DType, Element};
use std::sync::Arc;

/// `ln` of features of a scaled vector, or the features themselves.
enum Features {
    Logs(Vec<f64>),
    Plain(Vec<f64>),
}

fn features(map: &FeatureMap, side: Side, x: &[f64]) -> Features {
    let dot = |a: &[f32], b: &[f64]| a.iter().zip(b).map(|(&a, b)| f64::from(a) * b).sum::<f64>();
    let square = x.iter().map(|x| x * x).sum::<f64>();
    let dim = x.len();
    let logs = |projection: &Projection, a: f64, signs: &[f64]| {
        let rows = projection.rows().chunks_exact(dim);
        let count = (projection.features() * signs.len()) as f64;
        let constant = dim as f64 / 4.0 * (1.0 - 4.0 * a).ln() - count.ln() / 2.0 - square / 2.0;
        let log = |row: &[f32], sign: f64| {
            let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            a * length + (1.0 - 4.0 * a).sqrt() * sign * dot(row, x) + constant
        };
        Features::Logs(rows.flat_map(|row| signs.iter().map(move |&sign| log(row, sign))).collect())
    };
    match map {
        FeatureMap::Positive(projection) => logs(projection, 0.0, &[1.0]),
        FeatureMap::Hyperbolic(projection) => logs(projection, 0.0, &[1.0, -1.0]),
        FeatureMap::Optimal { projection, a } => logs(projection, f64::from(*a), &[1.0]),
        FeatureMap::Elu => {
            Features::Plain(x.iter().map(|&x| if x > 0.0 { x + 1.0 } else { x.exp() }).collect())
        }
        FeatureMap::Relu { projection: None, epsilon } => {
            Features::Plain(x.iter().map(|x| x.max(0.0) + f64::from(*epsilon)).collect())
        }
        FeatureMap::Relu { projection: Some(projection), epsilon } => {
            let rows = projection.rows().chunks_exact(dim);
            Features::Plain(rows.map(|row| dot(row, x).max(0.0) + f64::from(*epsilon)).collect())
        }
        FeatureMap::Taylor => {
            let mut list = vec![1.0];
            list.extend(x);
            for i in 0..dim {
                list.push(x[i] * x[i] * 0.5f64.sqrt());
                list.extend((i + 1..dim).map(|j| x[i] * x[j]));
            }
            Features::Plain(list)
        }
        FeatureMap::Identity => Features::Plain(x.to_vec()),
        FeatureMap::Custom(map) => {
            let narrow: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            let mut out = vec![0.0; map.features(dim)];
            map.map(side, &narrow, &mut out);
            Features::Plain(out.into_iter().map(f64::from).collect())
        }
    }
}

/// `(sign of the weight, ln of it)` as a number times a power of e, relative to `shift`.
fn weight(q: &Features, k: &Features, shift: f64) -> f64 {
    match (q, k) {
        (Features::Logs(q), Features::Logs(k)) => q.iter().zip(k).map(|(q, k)| (q + k - shift).exp()).sum(),
        (Features::Plain(q), Features::Plain(k)) => q.iter().zip(k).map(|(q, k)| q * k).sum(),
        _ => panic!("one map"),
    }
}

fn largest_log(q: &Features, k: &Features) -> f64 {
    match (q, k) {
        (Features::Logs(q), Features::Logs(k)) => {
            q.iter().zip(k).map(|(q, k)| q + k).fold(f64::NEG_INFINITY, f64::max)
        }
        _ => 0.0,
    }
}

/// What the scale of a map is where none is given.
fn scale(case: &Case) -> f64 {
    let softmax = !matches!(case.map, FeatureMap::Elu | FeatureMap::Relu { .. } | FeatureMap::Custom(_));
    let default = if softmax { (case.head_dim as f64).sqrt().recip() } else { 1.0 };
    case.options.scale.map_or(default, f64::from)
}

/// `[batch, q_heads, q_len, v_dim]`.
pub(crate) fn definition<T: Element>(case: &Case, operands: &Operands<T>) -> Vec<f64> {
    let scale = scale(case);
    let rows = |data: &[T], heads: usize, tokens: usize, [b, h]: [usize; 2], dim: usize| -> Vec<Vec<f64>> {
        let data = &data[(b * heads + h) * tokens * dim..][..tokens * dim];
        data.chunks_exact(dim).map(|row| row.iter().map(|x| f64::from(x.to_f32())).collect()).collect()
    };
    let times = |x: &[f64]| -> Vec<f64> { x.iter().map(|x| x * scale.sqrt()).collect() };
    let mut out = Vec::new();
    for b in 0..case.batch {
        for h in 0..case.heads[0] {
            let g = h * case.heads[1] / case.heads[0];
            let q = rows(&operands.q, case.heads[0], case.q_len, [b, h], case.head_dim);
            let k = rows(&operands.k, case.heads[1], case.kv_len, [b, g], case.head_dim);
            let v = rows(&operands.v, case.heads[1], case.kv_len, [b, g], case.v_dim);
            let keys: Vec<Features> = k.iter().map(|k| features(&case.map, Side::Key, &times(k))).collect();
            let (mut totals, mut forgotten) = (vec![0.0], vec![0]);
            for j in 0..case.kv_len {
                let decay = match case.decay {
                    None => 0.0,
                    Some(Decay::PerHead) => f64::from(operands.per_head[g]),
                    Some(Decay::PerToken) => {
                        f64::from(operands.per_token[(b * case.heads[1] + g) * case.kv_len + j])
                    }
                };
                // A sum with -inf in it is -inf: what lies before weighs nothing.
                let shut = decay == f64::NEG_INFINITY;
                totals.push(if shut { totals[j] } else { totals[j] + decay });
                forgotten.push(if shut { j } else { forgotten[j] });
            }
            for (i, q) in q.iter().enumerate() {
                let own = features(&case.map, Side::Query, &times(q));
                let seen = if case.causal { (i + 1).min(case.keys_of(b)) } else { case.keys_of(b) };
                let exact = |j: usize| case.options.exact_window && j / 64 == i.min(case.keys_of(b)) / 64;
                let logit = |j: usize| q.iter().zip(&k[j]).map(|(q, k)| q * k).sum::<f64>() * scale;
                let shift = (0..seen).map(|j| if exact(j) { logit(j) } else { largest_log(&own, &keys[j]) });
                let shift = shift.fold(f64::NEG_INFINITY, f64::max);
                let mut sum = 0.0;
                let mut row = vec![0.0; case.v_dim];
                for j in forgotten[seen]..seen {
                    let w = if exact(j) { (logit(j) - shift).exp() } else { weight(&own, &keys[j], shift) };
                    let w = w * (totals[seen] - totals[j + 1]).exp();
                    sum += w;
                    row.iter_mut().zip(&v[j]).for_each(|(row, v)| *row += w * v);
                }
                if case.options.normalize {
                    row.iter_mut().for_each(|x| *x = if sum == 0.0 { 0.0 } else { *x / sum });
                }
                out.append(&mut row);
            }
        }
    }
    out
}

/// Positive and signed features of one's own, other for queries than for keys.
#[derive(Debug)]
pub(crate) struct Own;

impl CustomMap for Own {
    fn features(&self, head_dim: usize) -> usize {
        2 * head_dim + 1
    }
    fn map(&self, side: Side, x: &[f32], out: &mut [f32]) {
        let factor = if side == Side::Query { 0.25 } else { 0.5 };
        out[0] = 4.0;
        for (i, x) in x.iter().enumerate() {
            out[1 + i] = x * factor;
            out[1 + i + (out.len() - 1) / 2] = x * x;
        }
    }
}

/// Every map, for queries of this size.
pub(crate) fn maps(dim: usize, features: usize) -> Vec<FeatureMap> {
    let directions = || Projection::orthogonal(features, dim, Norms::Chi, 3).expect("memory");
    vec![
        FeatureMap::Positive(directions()),
        FeatureMap::Positive(Projection::orthogonal(features, dim, Norms::Regularized, 3).expect("memory")),
        FeatureMap::Hyperbolic(directions()),
        FeatureMap::Optimal { projection: directions(), a: -0.1 },
        FeatureMap::Optimal { projection: directions(), a: 0.05 },
        FeatureMap::Elu,
        FeatureMap::Relu { projection: None, epsilon: 1e-3 },
        FeatureMap::Relu { projection: Some(directions()), epsilon: 0.0 },
        FeatureMap::Taylor,
        FeatureMap::Custom(Arc::new(Own)),
    ]
}

/// Every map, sizes around every edge, every level.
#[test]
fn calls_are_the_definition() {
    let sizes = [
        (1, 1, 1, 1, [1, 1]),
        (3, 5, 1, 2, [2, 1]),
        (64, 64, 8, 16, [1, 1]),
        (65, 63, 5, 17, [4, 2]),
        (130, 130, 16, 33, [3, 1]),
        (7, 1100, 12, 3, [2, 2]),
    ];
    for (index, (q_len, kv_len, head_dim, v_dim, heads)) in sizes.into_iter().enumerate() {
        let features = [1, 7, 64, 13, 40, 20][index];
        for map in maps(head_dim, features) {
            for causal in [false, true] {
                let q_len = if causal { kv_len } else { q_len };
                let seed = index as u64;
                let case =
                    Case { seed, heads, q_len, kv_len, head_dim, v_dim, map: map.clone(), ..Case::default() };
                let lens = vec![kv_len, Rng::new(seed + 9).between(0..=kv_len)];
                let case = Case { causal, batch: 2, kv_lens: Some(lens), ..case };
                let operands = case.operands::<f32>();
                let expected = definition(&case, &operands);
                for level in levels() {
                    let off = difference(&case.run(level, &operands), &expected);
                    assert!(off <= 2e-5, "{level}: off by {off}, {case:?}");
                }
            }
        }
    }
}

fn in_type<T: Element>(tolerance: f64) {
    for map in [super::case::positive(40, 20), FeatureMap::Elu] {
        for causal in [false, true] {
            let case =
                Case { head_dim: 20, v_dim: 24, map: map.clone(), causal, heads: [4, 2], ..Case::default() };
            let operands = case.operands::<T>();
            let expected = definition(&case, &operands);
            for level in levels() {
                let got: Vec<f32> = case.run(level, &operands).iter().map(|x| x.to_f32()).collect();
                let off = difference(&got, &expected);
                assert!(off <= tolerance, "{level}, {}: off by {off}, {case:?}", T::DTYPE);
            }
        }
    }
}

/// Values, and so outputs, are below 4: a store rounds by four units at most.
#[test]
fn every_type() {
    in_type::<f32>(2e-5);
    in_type::<f16>(4.0 * DType::F16.unit_roundoff() + 2e-5);
    in_type::<bf16>(4.0 * DType::Bf16.unit_roundoff() + 2e-5);
}

#[test]
fn scales_and_options_bind() {
    for map in [super::case::positive(32, 16), FeatureMap::Elu, FeatureMap::Taylor] {
        let mut case = Case { map, ..Case::default() };
        let operands = case.operands::<f32>();
        let level = levels()[0];
        let plain = case.run(level, &operands);
        case.options.scale = Some(0.5);
        let scaled = case.run(level, &operands);
        assert_ne!(plain, scaled);
        assert!(difference(&scaled, &definition(&case, &operands)) <= 2e-5, "{case:?}");
    }
    let mut case = Case { map: FeatureMap::Identity, ..Case::default() };
    case.options.normalize = false;
    let operands = case.operands::<f32>();
    for level in levels() {
        let off = difference(&case.run(level, &operands), &definition(&case, &operands));
        assert!(off <= 1e-4, "off by {off}: sums of 100");
    }
}
