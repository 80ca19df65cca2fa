//! Exact weights inside the newest 64 positions, features before.

use super::algebra::{in_pieces, singly};
use super::case::{Case, positive};
use super::definition::definition;
use super::{difference, levels};
use lucid_attention::linear::{FeatureMap, LinearOptions, Norms, Projection};
use lucid_attention::{Inputs, Mask, View, attention};

fn cases() -> impl Iterator<Item = Case> {
    let options = LinearOptions { exact_window: true, ..LinearOptions::default() };
    let base =
        Case { batch: 2, heads: [4, 2], q_len: 200, kv_len: 200, causal: true, options, ..Case::default() };
    let directions = || Projection::orthogonal(40, 16, Norms::Chi, 3).unwrap();
    let maps = [
        positive(40, 16),
        FeatureMap::Hyperbolic(directions()),
        FeatureMap::Optimal { projection: directions(), a: -0.08 },
    ];
    maps.into_iter().flat_map(move |map| {
        let base = Case { map, ..base.clone() };
        [base.clone(), Case { sigma: 4.0, ..base.clone() }, Case { kv_lens: Some(vec![130, 64]), ..base }]
    })
}

#[test]
fn windows_are_the_definition() {
    for case in cases() {
        let operands = case.operands::<f32>();
        let expected = definition(&case, &operands);
        let tolerance = if case.sigma > 1.0 { 1e-3 } else { 2e-5 }; // exponents of hundreds
        for level in levels() {
            let off = difference(&case.run(level, &operands), &expected);
            assert!(off <= tolerance, "{level}: off by {off}, {case:?}");
            if case.kv_lens.is_none() {
                let plan = case.plan(level);
                for pieces in [singly(200), vec![0..63, 63..64, 64..150, 150..200], vec![0..10, 10..200]] {
                    let off = difference(&in_pieces(&case, &plan, &operands, &pieces).0, &expected);
                    assert!(off <= tolerance, "{level}, pieces: off by {off}, {case:?}");
                }
            }
        }
    }
}

/// Within the first window it is attention itself.
#[test]
fn the_first_window_is_attention() {
    for case in cases().filter(|case| case.kv_lens.is_none()) {
        let case = Case { batch: 1, q_len: 64, kv_len: 64, ..case };
        let operands = case.operands::<f32>();
        let inputs = Inputs::new(
            View::new(&operands.q, case.q_shape()).unwrap(),
            View::new(&operands.k, case.k_shape()).unwrap(),
            View::new(&operands.v, case.v_shape()).unwrap(),
        );
        let expected: Vec<f64> =
            attention(&inputs.mask(Mask::causal())).unwrap().into_iter().map(f64::from).collect();
        for level in levels() {
            let off = difference(&case.run(level, &operands), &expected);
            assert!(off <= 1e-5, "{level}: off by {off}, {case:?}");
        }
    }
}
