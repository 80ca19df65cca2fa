//! I8: keys cut into parts of every size, whose results `merge` joins in any order.
//!
//! What a merge may be off, with u = 2^-24, d the distance of the two LSEs and 1.25 ULP for `exp`: a weight by u |d| + 3.5 u, the
//! sum of both and quotients by as much again and u, product and addition by u each: for a sum of terms |w O| of size A at most
//! u (2 |d| + 11) A. The LSE by u (|d| + 9 + |LSE|). What LSEs were off before changes later weights by as much, and
//! their sum: twice that much of A.

use crate::bounds::certified;
use crate::common::cases::*;
use crate::common::guard::announce;
use crate::common::process::at_every_level;
use lucid_attention::{Inputs, Level, View, ViewMut, merge};

const U: f64 = 1.0 / (1u64 << 24) as f64;

/// What merges one after another, and the formula in `f64`, may be off: outputs relative to the size of their terms, and LSEs.
fn drift(merges: usize, distance: f64, lse: f64) -> [f64; 2] {
    let step = |[out, off]: [f64; 2], _: usize| {
        [out + U * (2.0 * distance + 11.0) + 2.0 * off, off + U * (distance + 9.0 + lse)]
    };
    let formula = 1e-14;
    (0..merges).fold([formula, formula * (1.0 + lse)], step).map(|x| x * 1.01)
}

fn join(shape: [usize; 4], into: &mut Results<f32>, other: &Results<f32>) {
    let out = ViewMut::new(&mut into.out, shape).expect("an output");
    let other_out = View::new(&other.out, shape).expect("an output");
    merge(out, &mut into.lse, other_out, &other.lse).expect("parts that fit");
}

/// Neighbours first, then neighbours of those: returns how many merges any of them took part in, at most.
fn in_pairs(shape: [usize; 4], parts: &[Results<f32>]) -> (Results<f32>, usize) {
    let mut parts = parts.to_vec();
    let mut rounds = 0;
    while parts.len() > 1 {
        let pairs = parts.chunks(2).map(|pair| {
            let mut joined = pair[0].clone();
            pair[1..].iter().for_each(|other| join(shape, &mut joined, other));
            joined
        });
        parts = pairs.collect();
        rounds += 1;
    }
    (parts.swap_remove(0), rounds)
}

/// Parts, joined from first to last.
fn in_turn<'a>(shape: [usize; 4], mut parts: impl Iterator<Item = &'a Results<f32>>) -> Results<f32> {
    let mut joined = parts.next().expect("a part").clone();
    parts.for_each(|part| join(shape, &mut joined, part));
    joined
}

/// Asserts that a joint result is that of the formula.
fn assert_joint(got: &Results<f32>, parts: &[Results<f32>], v_dim: usize, merges: usize, what: &str) {
    for (row, &lse) in got.lse.iter().enumerate() {
        let of_parts: Vec<f64> = parts.iter().map(|part| f64::from(part.lse[row])).collect();
        let sum: f64 = of_parts.iter().map(|lse| lse.exp()).sum();
        let [low, high] = of_parts
            .iter()
            .fold([f64::INFINITY, sum.ln()], |[low, high], &lse| [low.min(lse), high.max(lse)]);
        let [drift_of_out, drift_of_lse] = drift(merges, high - low, low.abs().max(high.abs()));
        let off = (f64::from(lse) - sum.ln()).abs();
        assert!(off <= drift_of_lse, "{what}, row {row}: LSE {lse:e} is off by {off:e} of {drift_of_lse:e}");
        for at in row * v_dim..(row + 1) * v_dim {
            let terms =
                parts.iter().zip(&of_parts).map(|(part, lse)| f64::from(part.out[at]) * lse.exp() / sum);
            let (exact, size) =
                terms.fold((0.0, 0.0), |(exact, size), term| (exact + term, size + term.abs()));
            let off = (f64::from(got.out[at]) - exact).abs();
            let most = drift_of_out * size;
            assert!(off <= most, "{what}, element {at}: {} is off by {off:e} of {most:e}", got.out[at]);
        }
    }
}

fn cases() -> [Case; 2] {
    let of = |kv_len| Case { seed: 9, heads: [2, 1], q_len: 3, kv_len, v_dim: 11, ..Case::default() };
    [40, 37].map(|kv_len| of(kv_len).possible())
}

/// Calls of so many keys each.
fn in_parts(
    operands: &Operands<f32, f32>,
    kv_len: usize,
    size: usize,
) -> impl Iterator<Item = Inputs<'_, f32, f32>> {
    (0..kv_len).step_by(size).map(move |first| {
        let keys = first..kv_len.min(first + size);
        let (k, v) = (slice(&operands.k, keys.clone()), slice(&operands.v, keys));
        operands.inputs_with(operands.q.view(), k, v)
    })
}

#[test]
fn parts_are_certified() {
    for case in cases() {
        let _announced = announce(&case);
        let operands = case.operands::<f32, f32>(Place::Heap);
        for size in 1..=case.kv_len {
            for part in in_parts(&operands, case.kv_len, size) {
                certified(&part, &format!("a part of {size} keys"));
            }
        }
    }
}

/// `merge` takes no level: this runs at the detected one, [`at_levels`] has the others.
#[test]
fn parts_of_every_size() {
    let level = Level::detect().expect("a level");
    for case in cases() {
        let kv_len = case.kv_len;
        let _announced = announce(&case);
        let operands = case.operands::<f32, f32>(Place::Heap);
        let shape = operands.inputs().output_shape();
        for size in 1..=kv_len {
            let parts: Vec<_> =
                in_parts(&operands, kv_len, size).map(|part| run(&part, &Ask::all(level))).collect();
            let what = |order: &str| format!("{level}, {kv_len} keys in parts of {size}, {order}");
            let (merges, v_dim) = (parts.len() - 1, case.v_dim);
            let got = in_turn(shape, parts.iter());
            assert_joint(&got, &parts, v_dim, merges, &what("from first to last"));
            let got = in_turn(shape, parts.iter().rev());
            assert_joint(&got, &parts, v_dim, merges, &what("from last to first"));
            let (got, rounds) = in_pairs(shape, &parts);
            assert_joint(&got, &parts, v_dim, rounds, &what("in pairs"));
        }
    }
}

#[test]
fn at_levels() {
    at_every_level(&["splits::parts_of_every_size", "algebra::merging_parts"]);
}
