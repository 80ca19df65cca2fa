//! Fading keys: retention and gated linear attention.

use super::algebra::{in_pieces, singly};
use super::case::{Case, Decay};
use super::definition::{definition, maps};
use super::{bits, difference, levels};
use lucid_attention::linear::{FeatureMap, LinearOptions};

fn cases() -> impl Iterator<Item = Case> {
    let base = Case { batch: 2, heads: [4, 2], q_len: 150, kv_len: 150, causal: true, ..Case::default() };
    let sums = LinearOptions { normalize: false, ..base.options };
    let sums = Case { map: FeatureMap::Identity, options: sums, ..base.clone() };
    let decays = [Decay::PerHead, Decay::PerToken];
    let plain = maps(16, 30).into_iter().filter(|map| {
        !matches!(map, FeatureMap::Positive(_) | FeatureMap::Hyperbolic(_) | FeatureMap::Optimal { .. })
    });
    let normalized = plain.map(move |map| Case { map, ..base.clone() });
    normalized
        .chain([sums])
        .flat_map(move |case| decays.map(|decay| Case { decay: Some(decay), ..case.clone() }))
}

/// In blocks and token by token, the definition.
#[test]
fn both_forms_are_the_definition() {
    for case in cases() {
        let lens = Some(vec![150, 90]);
        for case in [case.clone(), Case { kv_lens: lens, ..case }] {
            let operands = case.operands::<f32>();
            let expected = definition(&case, &operands);
            for level in levels() {
                let off = difference(&case.run(level, &operands), &expected);
                assert!(off <= 3e-5, "{level}: off by {off}, {case:?}");
                if case.kv_lens.is_none() {
                    let plan = case.plan(level);
                    for pieces in [singly(150), vec![0..63, 63..64, 64..150]] {
                        let off = difference(&in_pieces(&case, &plan, &operands, &pieces).0, &expected);
                        assert!(off <= 3e-5, "{level}, pieces: off by {off}, {case:?}");
                    }
                }
            }
        }
    }
}

/// Decays so fast that their inverse is no `f32`: only exponents of at most 0 are ever taken.
#[test]
fn fast_decays() {
    for case in cases() {
        let mut operands = case.operands::<f32>();
        operands.per_head.iter_mut().chain(&mut operands.per_token).for_each(|x| *x *= 200.0);
        let expected = definition(&case, &operands);
        for level in levels() {
            let off = difference(&case.run(level, &operands), &expected);
            assert!(off <= 2e-3, "{level}: off by {off}, {case:?}"); // differences of thousands
        }
    }
}

/// The earlier of two states fades by what the later one has seen.
#[test]
fn merged_states_fade() {
    for case in cases() {
        let operands = case.operands::<f32>();
        for level in levels() {
            let plan = case.plan(level);
            let (expected, whole) = in_pieces(&case, &plan, &operands, &[0..100, 100..150]);
            let (_, mut first) = in_pieces(&case, &plan, &operands, std::slice::from_ref(&(0..100)));
            let (_, last) = in_pieces(&case, &plan, &operands, std::slice::from_ref(&(100..150)));
            first.merge(&last).unwrap();
            assert!(expected.iter().all(|x| x.is_finite()));
            let numbers = |state: &lucid_attention::linear::LinearState| {
                let mut numbers = vec![0.0; state.saved_len()];
                state.save(&mut numbers, &mut [0; 2]).unwrap();
                numbers.split_off(4) // the map's fingerprint
            };
            let wide: Vec<f64> = numbers(&whole).into_iter().map(f64::from).collect();
            let largest = wide.iter().fold(1.0f64, |max, x| max.max(x.abs()));
            let off = difference(&numbers(&first), &wide);
            assert!(off <= 1e-5 * largest, "{level}: off by {off} of {largest}, {case:?}");
        }
    }
}

/// A gate that is shut: of what came before nothing is seen, not even NaN, wherever it is shut and in whatever pieces.
#[test]
fn shut_gates_forget() {
    for case in cases().filter(|case| case.decay == Some(Decay::PerToken)) {
        let mut operands = case.operands::<f32>();
        let shut = [0, 1, 40, 41, 63, 64, 100];
        for head in operands.per_token.chunks_exact_mut(150) {
            // So is a gate that leaves less than an `f32` can be.
            let values = [f32::NEG_INFINITY, -1e9, -200.0].into_iter().cycle();
            shut.into_iter().zip(values).for_each(|(token, value)| head[token] = value);
        }
        let expected = definition(&case, &operands);
        let mut poisoned = operands.clone();
        for (list, dim) in [(&mut poisoned.k, 16), (&mut poisoned.v, 8)] {
            list.chunks_exact_mut(150 * dim).for_each(|head| head[..100 * dim].fill(f32::NAN));
        }
        for level in levels() {
            let out = case.run(level, &operands);
            let off = difference(&out, &expected);
            assert!(off <= 3e-5, "{level}: off by {off}, {case:?}");
            let plan = case.plan(level);
            for pieces in [singly(150), vec![0..63, 63..64, 64..150]] {
                let off = difference(&in_pieces(&case, &plan, &operands, &pieces).0, &expected);
                assert!(off <= 3e-5, "{level}, pieces: off by {off}, {case:?}");
            }
            let blind = case.run(level, &poisoned);
            for (got, expected) in blind.chunks_exact(150 * 8).zip(out.chunks_exact(150 * 8)) {
                assert_eq!(bits(&got[800..]), bits(&expected[800..]), "{level}, {case:?}");
            }
            // A later state that forgot leaves nothing of the earlier one.
            let (_, mut earlier) = in_pieces(&case, &plan, &poisoned, std::slice::from_ref(&(0..90)));
            let (_, later) = in_pieces(&case, &plan, &operands, std::slice::from_ref(&(90..150)));
            earlier.merge(&later).unwrap();
            let [merged, later] = [&earlier, &later].map(|state| {
                let mut numbers = vec![0.0; state.saved_len()];
                state.save(&mut numbers, &mut [0; 2]).unwrap();
                bits(&numbers)
            });
            assert_eq!(merged, later, "{level}, {case:?}");
        }
    }
}

/// Every gate shut: a row is its own value.
#[test]
fn heads_without_memory() {
    let case = Case { map: FeatureMap::Elu, causal: true, decay: Some(Decay::PerHead), ..Case::default() };
    let mut operands = case.operands::<f32>();
    operands.per_head.fill(f32::NEG_INFINITY);
    let own: Vec<f64> = operands.v.iter().map(|&x| f64::from(x)).collect();
    for level in levels() {
        let off = difference(&case.run(level, &operands), &own);
        assert!(off <= 1e-6, "{level}: off by {off}");
    }
}
