//! Fading keys: retention and gated linear attention.

use super::algebra::{in_pieces, singly};
use super::case::{Case, Decay};
use super::definition::{definition, maps};
use super::{difference, levels};
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
                numbers
            };
            let wide: Vec<f64> = numbers(&whole).into_iter().map(f64::from).collect();
            let largest = wide.iter().fold(1.0f64, |max, x| max.max(x.abs()));
            let off = difference(&numbers(&first), &wide);
            assert!(off <= 1e-5 * largest, "{level}: off by {off} of {largest}, {case:?}");
        }
    }
}
