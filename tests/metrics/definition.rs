//! Every row against the definition in `f64`, on the probabilities as the call itself returns them, and on those of the
//! reference.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{ALL, measure, with_types};
use lucid_attention::{Element, Inputs, MetricsOptions, RowMetrics, ScoreStage, reference};

/// The metrics of a row by their definition.
#[derive(Debug)]
struct Definition {
    keys: usize,
    total: f64,
    entropy: f64,
    max: f64,
    distance: f64,
    first_mass: f64,
    below: usize,
    top_mass: f64,
    undefined: bool,
}

/// Of the probabilities `p` of a row's keys.
fn define(row: &reference::Row<'_>, p: &[f64], options: &MetricsOptions) -> Definition {
    let threshold = options.sparsity.map_or(0.0, f64::from);
    let attended = || row.scores.iter().zip(p).filter(|(score, _)| score.attended);
    let sum = |f: &dyn Fn(usize, f64) -> f64| p.iter().enumerate().map(|(key, &p)| f(key, p)).sum();
    let mut descending: Vec<f64> = p.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    Definition {
        keys: attended().count(),
        total: sum(&|_, p| p),
        entropy: sum(&|_, p| if p > 0.0 { -p * p.ln() } else { 0.0 }),
        max: p.iter().fold(0.0, |max, &p| max.max(p)),
        distance: attended().map(|(score, p)| score.distance * p).sum(),
        first_mass: sum(&|key, p| if key < options.first_keys.unwrap_or(0) { p } else { 0.0 }),
        below: attended().filter(|&(_, &p)| p < threshold).count(),
        top_mass: descending.iter().take(options.top_k.unwrap_or(0)).sum(),
        undefined: attended().any(|(_, p)| p.is_nan()),
    }
}

#[track_caller]
fn assert_near(got: f32, want: f64, what: &str) {
    // Relative, but for the entropy of rows with all but one key next to nothing: a sum of 1 + x is rounded.
    let close = (f64::from(got) - want).abs() <= 1e-5 * want.max(0.1);
    assert!(close, "{what}: {got:e}, expected {want:e}");
}

/// Holds a row against its definition; `exact` where the probabilities are the same to the bit.
#[track_caller]
fn assert_row(got: &RowMetrics, want: &Definition, exact: bool, what: &str) {
    assert_eq!(got.keys, want.keys, "{what}: keys");
    assert_eq!(got.is_undefined(), want.undefined, "{what}: {got:?}, expected {want:?}");
    if want.undefined {
        let numbers = [got.total, got.effective_keys, got.max_probability];
        let asked = [got.distance, got.first_mass, got.top_mass].map(|x| x.expect("asked for"));
        let [distance, first, _] = asked;
        assert!(numbers.iter().chain(&[asked[2]]).all(|x| x.is_nan()), "{what}: {got:?}");
        assert!(distance.is_nan() && first.is_nan(), "{what}: {got:?}");
        return;
    }
    assert_near(got.total, want.total, &format!("{what}: total"));
    assert_near(got.entropy, want.entropy, &format!("{what}: entropy"));
    let effective = if want.keys == 0 { 0.0 } else { want.entropy.exp() };
    assert_near(got.effective_keys, effective, &format!("{what}: effective keys"));
    assert_near(got.max_probability, want.max, &format!("{what}: the largest"));
    assert_near(got.distance.expect("asked for"), want.distance, &format!("{what}: distance"));
    assert_near(got.first_mass.expect("asked for"), want.first_mass, &format!("{what}: first keys"));
    assert_near(got.top_mass.expect("asked for"), want.top_mass, &format!("{what}: top mass"));
    let mean = if want.keys == 0 { 0.0 } else { want.total / want.keys as f64 };
    assert_near(got.mean_score(), mean, &format!("{what}: mean score"));
    if exact {
        assert_eq!(got.below_threshold, Some(want.below), "{what}: keys below the threshold");
        let share = if want.keys == 0 { 0.0 } else { want.below as f32 / want.keys as f32 };
        assert_eq!(got.sparsity(), Some(share), "{what}: their share");
    }
}

/// Holds a call against the definition, in every tier of every level.
fn check<Q: Element, T: Element>(case: &Case, inputs: &Inputs<'_, Q, T>, options: MetricsOptions) {
    let [batch, q_heads, q_len, _] = inputs.q().shape();
    let kv_len = inputs.k().shape()[2];
    let well_conditioned = matches!(case.values, Values::Spread(1.0) | Values::Ties);
    for tier in tiers() {
        let got = measure(inputs, tier, 1, options);
        let expected = run(inputs, &Ask { bf16_dot: tier.1, ..Ask::all(tier.0).scores(ScoreStage::Softmax) });
        assert_same(&got.out, &expected.out, &format!("{tier:?}: the output with metrics"));
        assert_same(&got.lse, &expected.lse, &format!("{tier:?}: LSE with metrics"));
        assert_same(&got.probabilities, &expected.scores, &format!("{tier:?}: probabilities with metrics"));
        assert_eq!(got.metrics.rows().len(), batch * q_heads * q_len);
        reference::for_each_row(inputs, |row| {
            let [b, h, i] = row.index;
            let at = (b * q_heads + h) * q_len + i;
            let metrics = &got.metrics.rows()[at];
            let p = &got.probabilities[at * kv_len..][..row.scores.len()];
            let p: Vec<f64> = p.iter().map(|&p| f64::from(p)).collect();
            let what = format!("{tier:?}, row {:?}", row.index);
            assert_row(metrics, &define(row, &p, &options), true, &what);
            if !case.rules.ragged {
                assert_eq!(metrics.all_keys, kv_len, "{what}: all keys");
            }
            if well_conditioned && !tier.1 && !metrics.is_undefined() {
                let max =
                    row.scores.iter().filter(|s| s.attended).map(|s| s.logit()).fold(f64::MIN, f64::max);
                let max = row.sink.map_or(max, |sink| max.max(sink));
                let weight = |s: &reference::Score| if s.attended { (s.logit() - max).exp() } else { 0.0 };
                let sum: f64 = row.scores.iter().map(weight).sum::<f64>()
                    + row.sink.map_or(0.0, |sink| (sink - max).exp());
                let p: Vec<f64> =
                    row.scores.iter().map(|s| if s.attended { weight(s) / sum } else { 0.0 }).collect();
                assert_row(metrics, &define(row, &p, &options), false, &format!("{what}, the reference"));
            }
        })
        .expect("operands that fit");
    }
}

fn check_case(case: Case, options: MetricsOptions) {
    let case = case.possible();
    let _announced = announce(&case);
    with_types!(case.types, Q, T => {
        let operands = case.operands::<Q, T>(Place::AtEnd);
        check(&case, &operands.inputs(), options);
    });
}

/// Every mask and every other option, alone and in pairs; types and layouts take turns.
#[test]
fn rules() {
    let options = Rules::OPTIONS;
    let pairs = (0..options.len()).flat_map(|a| (0..=a).map(move |b| (a, b)));
    for (index, (a, b)) in pairs.enumerate() {
        let (q_len, kv_len) = [(9, 40), (30, 30), (1, 300), (14, 70), (3, 1100), (1, 40)][index % 6];
        let (types, storage) = (TYPES[index % TYPES.len()], STORAGES[index % STORAGES.len()]);
        let mut case =
            Case { types, heads: [4, 2], q_len, kv_len, storage, batch: 1 + index % 2, ..Case::default() };
        case = Case { seed: index as u64, head_dim: 11, v_dim: 18, ..case };
        options[a](&mut case.rules);
        options[b](&mut case.rules);
        check_case(case, ALL);
    }
}

/// Every family of numbers, with maxima that rise in every tile, large logits, and logits that overflow.
#[test]
fn values() {
    for (index, values) in VALUES.into_iter().enumerate() {
        for (at, rules) in Rules::FEW.into_iter().enumerate() {
            for (q_len, kv_len) in [(5, 90), (2, 2500)] {
                let seed = (index * 10 + at) as u64;
                let case = Case { seed, values, rules, q_len, kv_len, heads: [2, 1], ..Case::default() };
                check_case(Case { types: TYPES[(index + at) % TYPES.len()], ..case }, ALL);
            }
        }
    }
}

/// Logits from a few to 1e6.
#[test]
fn large_logits() {
    for (seed, spread) in [0.1, 3.0, 30.0, 300.0, 1e4, 1e6].into_iter().enumerate() {
        let case = Case { seed: seed as u64, q_len: 12, kv_len: 2100, ..Case::default() };
        check_case(Case { values: Values::Spread(spread), ..case }, ALL);
    }
}

/// Thresholds at probabilities that occur, and lists of any length.
#[test]
fn options_of_every_size() {
    for top_k in [1, 2, 16, 17, 63, 64] {
        for first_keys in [1, 15, 16, 17, 255, 256, 257, 5000] {
            let threshold = 1.0 / first_keys as f32;
            let options = MetricsOptions {
                sparsity: Some(threshold),
                top_k: Some(top_k),
                first_keys: Some(first_keys),
                ..ALL
            };
            for values in [Values::Equal, Values::Spread(3.0), Values::Increasing] {
                check_case(
                    Case { values, kv_len: 600, q_len: 3, seed: top_k as u64, ..Case::default() },
                    options,
                );
            }
        }
    }
    // All keys alike: exactly the threshold is not below it.
    let case = Case { values: Values::Equal, kv_len: 64, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    for (threshold, share) in [(1.0 / 64.0, 0.0), (1.01 / 64.0, 1.0)] {
        let options = MetricsOptions { sparsity: Some(threshold), ..MetricsOptions::default() };
        for tier in tiers() {
            let got = measure(&operands.inputs(), tier, 1, options);
            assert_eq!(got.metrics.overall().sparsity(), Some(share), "{tier:?}: below {threshold}");
        }
    }
}

/// Drawn at random, a little of everything.
#[test]
fn random() {
    for seed in 0..150 {
        check_case(Case::random(seed + 77_000), ALL);
    }
}
