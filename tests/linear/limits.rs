//! Numbers at the end of the range, and denominators that vanish.

use super::case::{Case, positive};
use super::definition::{definition, maps};
use super::{bits, difference, levels};
use lucid_attention::linear::{FeatureMap, LinearOptions};

/// Norms up to a thousand times `sqrt(head_dim)`; constant and one-hot operands; features that underflow.
#[test]
fn finite_numbers_give_finite_numbers() {
    for map in maps(16, 40) {
        for causal in [false, true] {
            for sigma in [1e-30, 1.0, 20.0, 100.0, 1000.0] {
                let case = Case { sigma, causal, map: map.clone(), v_dim: 4, ..Case::default() };
                let mut operands = case.operands::<f32>();
                for kind in 0..3 {
                    for (index, x) in operands.q.iter_mut().chain(&mut operands.k).enumerate() {
                        match kind {
                            0 => {}
                            1 => *x = sigma,
                            _ => *x = if index % 16 == index / 16 % 16 { sigma * 4.0 } else { 0.0 },
                        }
                    }
                    for level in levels() {
                        let out = case.run(level, &operands);
                        let fine = out.iter().all(|x| x.abs() <= 4.0);
                        assert!(fine, "{level}, kind {kind}: {out:?}, {case:?}");
                    }
                }
            }
        }
    }
}

/// With norms where features by themselves would all underflow, rows are still the definition's.
#[test]
fn features_far_below_the_range_of_f32() {
    for causal in [false, true] {
        // |k|² / sqrt(d) is some 16 * 100 / 4 = 400: exp(-200) is no f32.
        let case = Case { sigma: 10.0, causal, map: positive(32, 16), ..Case::default() };
        let operands = case.operands::<f32>();
        let expected = definition(&case, &operands);
        for level in levels() {
            let off = difference(&case.run(level, &operands), &expected);
            assert!(off <= 1e-3, "{level}: off by {off}"); // exponents of some 500 are known to 2^-15
        }
    }
}

/// A row whose features all are 0 has no weight: +0, as without keys. No epsilon makes up for it.
#[test]
fn rows_without_weight_are_zero() {
    let map = FeatureMap::Relu { projection: None, epsilon: 0.0 };
    for causal in [false, true] {
        let case = Case { map: map.clone(), causal, ..Case::default() };
        let mut operands = case.operands::<f32>();
        operands.q[5 * 16..6 * 16].fill(-1.0);
        for level in levels() {
            let out = case.run(level, &operands);
            assert!(bits(&out[5 * 8..6 * 8]).iter().all(|&x| x == 0), "{level}: {:?}", &out[40..48]);
            let off = difference(&out, &definition(&case, &operands));
            assert!(off <= 2e-5, "{level}: off by {off}");
        }
        // An epsilon gives it weight.
        let map = FeatureMap::Relu { projection: None, epsilon: 1e-3 };
        let case = Case { map, ..case };
        let out = case.run(levels()[0], &operands);
        assert!(out[40..48].iter().any(|&x| x != 0.0));
    }
}

/// Where no query or no key or no value is, there is nothing to do.
#[test]
fn empty_calls() {
    for causal in [false, true] {
        for (batch, heads, q_len, v_dim) in
            [(0, [2, 1], 5, 4), (1, [0, 0], 5, 4), (1, [2, 1], 0, 4), (1, [2, 1], 5, 0)]
        {
            let kv_len = if causal { q_len } else { 5 };
            let case = Case { batch, heads, q_len, kv_len, v_dim, causal, ..Case::default() };
            assert!(case.run(levels()[0], &case.operands::<f32>()).is_empty());
        }
    }
    let case = Case { kv_len: 0, ..Case::default() };
    for level in levels() {
        let out = case.run(level, &case.operands::<f32>());
        assert!(bits(&out).iter().all(|&x| x == 0), "{level}: no key, +0");
    }
}

/// A norm beyond the range of `f32` is never a finite wrong number.
#[test]
fn norms_that_overflow_give_nan() {
    let case = Case { options: LinearOptions::default(), ..Case::default() };
    let mut operands = case.operands::<f32>();
    operands.k.fill(1e25);
    for level in levels() {
        assert!(case.run(level, &operands).iter().all(|x| x.is_nan()), "{level}");
    }
}
