//! L3 to L5: random features as estimates of the softmax's kernel. Seeds are fixed, so are the results.

use super::Rng;
use super::case::{Case, positive};
use super::levels;
use lucid_attention::linear::{Estimate, FeatureMap, Norms, Projection, estimate};
use lucid_attention::{AttentionError, View};

fn dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(&a, b)| f64::from(a) * b).sum()
}

fn square(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// A feature's product over the exact kernel: its mean has to be 1. With `A`, that of FAVOR++.
fn ratio(direction: &[f32], z: &[f64], a: f64) -> f64 {
    let dim = z.len() as f64;
    let root = (1.0 - 4.0 * a).sqrt();
    let length = direction.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    (dim / 2.0 * (1.0 - 4.0 * a).ln() + 2.0 * a * length + root * dot(direction, z) - square(z) / 2.0).exp()
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
    for dim in [16, 64] {
        let features = 160 * 1024;
        let projection = Projection::orthogonal(features, dim, Norms::Chi, 11).unwrap();
        for length in [0.5, 1.0] {
            for z in directions(dim, length) {
                // Features of a block are not independent, blocks are.
                let blocks = projection.rows().chunks_exact(dim * dim);
                let means: Vec<f64> = blocks
                    .map(|block| {
                        block.chunks_exact(dim).map(|row| ratio(row, &z, 0.0)).sum::<f64>() / dim as f64
                    })
                    .collect();
                let count = means.len() as f64;
                let mean = means.iter().sum::<f64>() / count;
                let variance = means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0);
                let error = (variance / count).sqrt();
                assert!(error <= 0.004, "d = {dim}, |z| = {length}: too few features, {error}");
                let off = (mean - 1.0).abs();
                assert!(off < 4.0 * error, "d = {dim}, |z| = {length}: off by {off}, s.e. {error}");
            }
        }
    }
}

/// Mean squared relative error of an entry from `features` features, over many draws.
fn variance(draws: u64, z: &[f64], a: f64, draw: impl Fn(u64) -> Projection) -> f64 {
    let error = |seed| {
        let projection = draw(seed);
        let rows = projection.rows().chunks_exact(z.len());
        let mean = rows.map(|row| ratio(row, z, a)).sum::<f64>() / projection.features() as f64;
        (mean - 1.0).powi(2)
    };
    (0..draws).map(error).sum::<f64>() / draws as f64
}

/// L4.
#[test]
fn variances_are_those_of_the_formulas() {
    let (dim, features, draws) = (16, 16, 20_000);
    let iid = |seed| Projection::gaussian(features, dim, seed).unwrap();
    let orthogonal = |seed| Projection::orthogonal(features, dim, Norms::Chi, seed).unwrap();
    for length in [0.5, 1.0] {
        for z in directions(dim, length) {
            let formula = Estimate { mean_square: square(&z), head_dim: dim, features };
            let found = variance(draws, &z, 0.0, iid);
            let ratio = found / formula.positive().powi(2);
            assert!((0.85..=1.15).contains(&ratio), "|z| = {length}: {ratio} of the formula");
            let blocks = variance(draws, &z, 0.0, orthogonal);
            assert!(blocks <= found, "|z| = {length}: orthogonal {blocks}, independent {found}");

            let a = formula.best_a();
            let optimal = variance(draws, &z, a, iid);
            let ratio = optimal / formula.optimal(a).powi(2);
            assert!((0.85..=1.15).contains(&ratio), "|z| = {length}, A = {a}: {ratio} of the formula");
            assert!(optimal <= found, "|z| = {length}: FAVOR++ {optimal}, FAVOR+ {found}");
        }
    }
    // The hyperbolic form: two features for each of half as many directions.
    for z in directions(dim, 1.0) {
        let formula = Estimate { mean_square: 1.0, head_dim: dim, features };
        let minus: Vec<f64> = z.iter().map(|z| -z).collect();
        let found = (0..draws).map(|seed| {
            let projection = Projection::gaussian(features / 2, dim, seed).unwrap();
            let rows = projection.rows().chunks_exact(dim);
            let sum = rows.map(|row| ratio(row, &z, 0.0) + ratio(row, &minus, 0.0)).sum::<f64>();
            (sum / features as f64 - 1.0).powi(2)
        });
        let ratio = found.sum::<f64>() / draws as f64 / formula.hyperbolic().powi(2);
        assert!((0.85..=1.15).contains(&ratio), "hyperbolic: {ratio} of the formula");
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
    let level = *levels().last().unwrap();
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
    println!("sigma  uniform  elu+1  m=64  m=256  m=1024  m=1024 FAVOR++");
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
