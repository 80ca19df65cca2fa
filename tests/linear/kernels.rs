//! L3 to L5: random features as estimates of the softmax's kernel. Seeds are fixed, so are the results.

use super::Rng;
use super::case::{Case, positive};
use super::levels;
use half::{bf16, f16};
use lucid_attention::linear::{
    Estimate, FeatureMap, LinearInputs, LinearOptions, LinearPlan, Norms, Projection, estimate,
};
use lucid_attention::{AttentionError, Element, Level, Problem, View, ViewMut};

fn dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(&a, b)| f64::from(a) * b).sum()
}

fn square(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// The crate's own estimates of kernel entries over the exact ones, `q` and `k` being halves of each `z`: their mean has to
/// be 1. 64 such keys fill a window and become features; beside them stands a key of 0, whose weight is exactly 1 and whose
/// value alone is not 0, so that the output is its share.
fn ratios<T: Element>(level: Level, map: &FeatureMap, all: &[Vec<f64>]) -> Vec<f64> {
    let (batch, dim) = (all.len(), all[0].len());
    let root = (dim as f64).powf(0.25);
    let narrow = |z: &[f64]| z.iter().map(|z| T::from_f32((z / 2.0 * root) as f32)).collect::<Vec<T>>();
    let q: Vec<T> = all.iter().flat_map(|z| narrow(z)).collect();
    let k: Vec<T> = q.chunks_exact(dim).flat_map(|row| row.repeat(64)).collect();
    let [zero, one] = [0.0, 1.0].map(T::from_f32);
    let (v, none, ones) = (vec![zero; batch * 64], vec![zero; q.len()], vec![one; batch]);
    let view = |data, tokens, dim| View::new(data, [batch, 1, tokens, dim]).expect("sized to its shape");

    let problem = Problem { v_dim: 1, ..Problem::new(1, dim, 64, 64) };
    let options = LinearOptions { level: Some(level), max_threads: Some(1), ..LinearOptions::default() };
    let options = LinearOptions { exact_window: true, ..options };
    let plan = LinearPlan::with_options(&problem, map, &options).expect("a plan");
    let (mut state, mut workspace) = (plan.state(batch).expect("memory"), plan.workspace().expect("memory"));
    let keys = LinearInputs::new(view(&q[..0], 0, dim), view(&k, 64, dim), view(&v, 64, 1));
    plan.absorb(&keys, &mut state, &mut workspace).expect("keys");
    let mut out = vec![zero; batch];
    let target = ViewMut::new(&mut out, [batch, 1, 1, 1]).expect("sized to its shape");
    let row = LinearInputs::new(view(&q, 1, dim), view(&none, 1, dim), view(&ones, 1, 1)).causal();
    plan.extend(&row, target, &mut state, &mut workspace).expect("a row");
    let entries = out.iter().zip(q.chunks_exact(dim)).map(|(share, q)| {
        let square = q.iter().map(|x| f64::from(x.to_f32()).powi(2)).sum::<f64>();
        (1.0 / f64::from(share.to_f32()) - 1.0) / 64.0 / (square / (dim as f64).sqrt()).exp()
    });
    entries.collect()
}

/// Vectors of one length in all kinds of directions: along an axis, along the diagonal, anywhere.
fn directions(dim: usize, length: f64) -> [Vec<f64>; 3] {
    let rng = &mut Rng::new(5);
    let mut axis = vec![0.0; dim];
    axis[0] = 1.0;
    let anywhere: Vec<f64> = (0..dim).map(|_| f64::from(rng.normal())).collect();
    [axis, vec![1.0; dim], anywhere].map(|z| {
        let factor = length / square(&z).sqrt();
        z.iter().map(|z| z * factor).collect()
    })
}

/// L3. Directions whose blocks lack the sign rule fail this by 7 and 15 % along the diagonal.
#[test]
fn estimates_are_unbiased() {
    for level in levels() {
        for dim in [16, 64] {
            let draw = |features, seed| Projection::orthogonal(features, dim, Norms::Chi, seed).unwrap();
            let positive = |seed| FeatureMap::Positive(draw(1024, seed));
            unbiased::<f32>(level, dim, &positive);
            unbiased::<f16>(level, dim, &positive);
            unbiased::<bf16>(level, dim, &positive);
            unbiased::<f32>(level, dim, &|seed| FeatureMap::Hyperbolic(draw(512, seed)));
            // Its variance is the largest.
            let optimal = |seed| FeatureMap::Optimal { projection: draw(2048, seed), a: -0.05 };
            unbiased::<f32>(level, dim, &optimal);
        }
    }
}

fn unbiased<T: Element>(level: Level, dim: usize, draw: &dyn Fn(u64) -> FeatureMap) {
    let all: Vec<_> = [0.5, 1.0].into_iter().flat_map(|square: f64| directions(dim, square.sqrt())).collect();
    let draws: Vec<Vec<f64>> = (0..160).map(|seed| ratios::<T>(level, &draw(seed), &all)).collect();
    let count = draws.len() as f64;
    for index in 0..all.len() {
        let of_draws = || draws.iter().map(|draw| draw[index]);
        let mean = of_draws().sum::<f64>() / count;
        let variance = of_draws().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let error = (variance / count).sqrt();
        let what =
            format!("{level}, {}, d = {dim}, z {index}, {:?}", T::DTYPE, std::mem::discriminant(&draw(0)));
        assert!(error <= 0.004, "{what}: too few features, {error}");
        assert!((mean - 1.0).abs() < 4.0 * error, "{what}: mean {mean}, s.e. {error}");
    }
}

/// Mean squared relative errors of entries over 20 000 draws.
fn variances(level: Level, all: &[Vec<f64>], draw: impl Fn(u64) -> FeatureMap) -> Vec<f64> {
    let mut sums = vec![0.0; all.len()];
    for seed in 0..20_000 {
        let ratios = ratios::<f32>(level, &draw(seed), all);
        sums.iter_mut().zip(ratios).for_each(|(sum, ratio)| *sum += (ratio - 1.0).powi(2) / 20_000.0);
    }
    sums
}

/// L4.
#[test]
fn variances_are_those_of_the_formulas() {
    let (dim, features) = (16, 16);
    let iid = |features, seed| Projection::gaussian(features, dim, seed).unwrap();
    let orthogonal = |seed| Projection::orthogonal(features, dim, Norms::Chi, seed).unwrap();
    let check = |what: &str, found: &[f64], formula: f64| {
        for (index, found) in found.iter().enumerate() {
            let ratio = found / formula.powi(2);
            assert!((0.85..=1.15).contains(&ratio), "{what}, z {index}: {ratio} of the formula");
        }
    };
    let less = |what: &str, some: &[f64], others: &[f64]| {
        let mut pairs = some.iter().zip(others);
        assert!(pairs.all(|(a, b)| a <= b), "{what}: {some:?} against {others:?}");
    };
    for level in levels() {
        for square in [0.5, 1.0] {
            let all = directions(dim, f64::sqrt(square));
            let formula = Estimate { mean_square: square, head_dim: dim, features };
            let what = format!("{level}, |z|² = {square}");
            let positive = variances(level, &all, |seed| FeatureMap::Positive(iid(features, seed)));
            check(&what, &positive, formula.positive());
            let blocks = variances(level, &all, |seed| FeatureMap::Positive(orthogonal(seed)));
            less(&what, &blocks, &positive);
            let a = formula.best_a() as f32;
            let optimal = |seed| FeatureMap::Optimal { projection: iid(features, seed), a };
            let optimal = variances(level, &all, optimal);
            check(&format!("{what}, A = {a}"), &optimal, formula.optimal(f64::from(a)));
            less(&what, &optimal, &positive);
            // Two features for each of half as many directions.
            let hyperbolic = |seed| FeatureMap::Hyperbolic(iid(features / 2, seed));
            let hyperbolic = variances(level, &all, hyperbolic);
            check(&format!("{what}, hyperbolic"), &hyperbolic, formula.hyperbolic());
        }
    }
}

#[test]
fn the_best_a_is_the_best() {
    for (mean_square, head_dim) in [(0.1, 64), (1.0, 16), (4.0, 64), (16.0, 64), (9.0, 8)] {
        let formula = Estimate { mean_square, head_dim, features: 256 };
        let best = formula.best_a();
        assert!(best < 0.0, "{best}");
        for a in [best * 0.9, best * 1.1, 0.0, 0.01, -0.2] {
            assert!(formula.optimal(best) <= formula.optimal(a), "{formula:?}: {a} beats {best}");
        }
    }
}

#[test]
fn estimates_of_operands() {
    let case = Case { batch: 2, heads: [4, 2], head_dim: 8, ..Case::default() };
    let mut operands = case.operands::<f32>();
    operands.k.iter_mut().for_each(|x| *x += 0.3);
    let (q, k) =
        (View::new(&operands.q, case.q_shape()).unwrap(), View::new(&operands.k, case.k_shape()).unwrap());
    let found = estimate(q, k, 64, None).unwrap();
    let mut sum = 0.0;
    for (head, q) in operands.q.chunks_exact(800).enumerate() {
        let k = &operands.k[head / 2 * 800..][..800];
        for q in q.chunks_exact(8) {
            for k in k.chunks_exact(8) {
                sum += q.iter().zip(k).map(|(q, k)| f64::from(q + k).powi(2)).sum::<f64>() / 8f64.sqrt();
            }
        }
    }
    let mean = sum / (8 * 100 * 100) as f64;
    assert!((found.mean_square - mean).abs() < 1e-5 * mean, "{found:?}, {mean}");
    assert_eq!((found.head_dim, found.features), (8, 64));
    assert!(matches!(estimate(q, k, 0, None), Err(AttentionError::Value { operand: "features", .. })));
    assert!(matches!(estimate(q, k, 1, Some(-1.0)), Err(AttentionError::Value { operand: "scale", .. })));
}

/// `|a - b| / |b|`.
fn relative(a: &[f32], b: &[f64]) -> f64 {
    let off: f64 = a.iter().zip(b).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    (off / square(b)).sqrt()
}

/// Attention itself.
fn softmax(case: &Case, operands: &super::case::Operands<f32>) -> Vec<f64> {
    let (dim, v_dim) = (case.head_dim, case.v_dim);
    let mut out = Vec::new();
    for (i, q) in operands.q.chunks_exact(dim).enumerate() {
        let seen = if case.causal { i + 1 } else { case.kv_len };
        let wide: Vec<f64> = q.iter().map(|&x| f64::from(x)).collect();
        let weights: Vec<f64> = operands
            .k
            .chunks_exact(dim)
            .take(seen)
            .map(|k| (dot(k, &wide) / (dim as f64).sqrt()).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..v_dim {
            out.push(
                weights
                    .iter()
                    .enumerate()
                    .map(|(j, w)| w * f64::from(operands.v[j * v_dim + d]))
                    .sum::<f64>()
                    / sum,
            );
        }
    }
    out
}

/// Draws of operands and projections to take the mean of: of 4, errors of half the size of the mean's are off by a tenth.
const DRAWS: u64 = 12;

/// L5, on 256 tokens of 64 dimensions; prints the table of the documentation (`--nocapture`).
#[test]
fn output_errors() {
    levels().into_iter().for_each(output_errors_at);
}

fn output_errors_at(level: Level) {
    let mean = |sigma: f32, map: &dyn Fn(u64, f64) -> FeatureMap, causal: bool, exact_window: bool| {
        let error = |seed: u64| {
            let case = Case { seed: seed + 1, sigma, head_dim: 64, v_dim: 64, causal, ..Case::default() };
            let mut case = Case {
                q_len: 256,
                kv_len: 256,
                map: map(seed, 2.0 * f64::from(sigma).powi(2) * 8.0),
                ..case
            };
            case.options.exact_window = exact_window;
            let operands = case.operands::<f32>();
            relative(&case.run(level, &operands), &softmax(&case, &operands))
        };
        (0..DRAWS).map(error).sum::<f64>() / DRAWS as f64
    };
    let directions =
        |features: usize, seed: u64| Projection::orthogonal(features, 64, Norms::Chi, seed + 40).unwrap();
    let favor = |features: usize| move |seed: u64, _: f64| FeatureMap::Positive(directions(features, seed));
    let optimal = |features: usize| {
        move |seed: u64, mean_square: f64| {
            let formula = Estimate { mean_square, head_dim: 64, features };
            FeatureMap::Optimal { projection: directions(features, seed), a: formula.best_a() as f32 }
        }
    };
    println!("{level}\nsigma  uniform  elu+1  m=64  m=256  m=1024  m=1024 FAVOR++");
    for (sigma, limits) in [
        (0.25, [0.065, 0.035]),
        (0.5, [f64::INFINITY, 0.25]),
        (0.75, [f64::INFINITY; 2]),
        (1.0, [f64::INFINITY; 2]),
    ] {
        let errors = [
            mean_uniform(sigma),
            mean(sigma, &|_, _| FeatureMap::Elu, false, false),
            mean(sigma, &favor(64), false, false),
            mean(sigma, &favor(256), false, false),
            mean(sigma, &favor(1024), false, false),
            mean(sigma, &optimal(1024), false, false),
        ];
        println!("{sigma:<6} {}", errors.map(|error| format!("{error:.3}")).join("  "));
        let [uniform, _, _, quarter, full, best] = errors;
        assert!(quarter <= limits[0] && full <= limits[1], "sigma {sigma}: {errors:?}");
        assert!(
            sigma > 0.25 || full < uniform && best < uniform,
            "sigma {sigma}: worse than the mean of values"
        );
        let [without, with] = [false, true].map(|window| mean(sigma, &favor(256), true, window));
        println!("       causal, m=256: {without:.3}; with an exact window: {with:.3}");
        assert!(with < without, "sigma {sigma}: an exact window helps");
    }
}

/// The error of the plain mean of all values.
fn mean_uniform(sigma: f32) -> f64 {
    let error = |seed: u64| {
        let case =
            Case { seed: seed + 1, sigma, head_dim: 64, v_dim: 64, map: positive(1, 64), ..Case::default() };
        let case = Case { q_len: 256, kv_len: 256, ..case };
        let operands = case.operands::<f32>();
        let column = |d: usize| operands.v.iter().skip(d).step_by(64).sum::<f32>() / 256.0;
        let mean: Vec<f32> = (0..64).map(column).collect();
        let rows: Vec<f32> = mean.iter().copied().cycle().take(256 * 64).collect();
        relative(&rows, &softmax(&case, &operands))
    };
    (0..DRAWS).map(error).sum::<f64>() / DRAWS as f64
}
