//! What sums, shifts, permutations, scalings and roundings of operands do to results.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{SEEDS, for_normal_cases, normal};
use lucid_attention::certify::{self, Bound};
use lucid_attention::{Element, View, ViewMut, merge};

/// A copy with other values.
pub(crate) fn mapped<T: Element, U: Element>(
    operand: &Operand<T>,
    map: impl Fn([usize; 4], T) -> U,
) -> Operand<U> {
    let value = |index| map(index, operand.at(index));
    Operand::new(operand.shape, operand.strides, Place::Heap, U::from_f32(f32::NAN), value)
}

/// I1: weights sum to 1, none is negative.
#[test]
fn rows_sum_to_one() {
    for_normal_cases(|level, case, operands| {
        let ones = mapped(&operands.v, |_, _| 1.0);
        let inputs = operands.inputs_with(operands.q.view(), operands.k.view(), ones.view());
        let out = run(&inputs, &Ask::at(level)).out;
        let tolerance = (case.kv_len + 10) as f32 * f32::EPSILON;
        assert_close(&out, &vec![1.0; out.len()], tolerance, &format!("{level}: V = 1"));

        let shape = [1, 2, case.kv_len, case.kv_len];
        let strides = [0, 0, case.kv_len, 1];
        let units =
            Operand::new(shape, strides, Place::Heap, 0.0, |[_, _, t, d]| f32::from(u8::from(t == d)));
        let inputs = operands.inputs_with(operands.q.view(), operands.k.view(), units.view());
        let weights = run(&inputs, &Ask::at(level)).out;
        assert!(weights.iter().all(|&p| p >= 0.0), "{level}: a negative weight");
        let sums: Vec<f32> = weights.chunks(case.kv_len).map(|row| row.iter().sum()).collect();
        assert_close(&sums, &vec![1.0; sums.len()], 2.0 * tolerance, &format!("{level}: sums of weights"));
    });
}

/// I2: adding to all logits of a row changes LSE and maximum by as much and the output not at all.
#[test]
fn shifts_cancel() {
    for_normal_cases(|level, _, operands| {
        let before = run(&operands.inputs(), &Ask::all(level));
        for shift in [1.0f32, -64.0, 1024.0] {
            let bias = [shift];
            let inputs = operands.inputs().bias(View::new(&bias, [1; 4]).expect("a bias"));
            let got = run(&inputs, &Ask::all(level));
            let tolerance = shift.abs().max(1.0) * 4e-6;
            assert_close(&got.out, &before.out, tolerance, &format!("{level}, shift {shift}: out"));
            let moved = |all: &[f32]| all.iter().map(|x| x + shift).collect::<Vec<f32>>();
            assert_close(&got.lse, &moved(&before.lse), 1e-5, &format!("{level}, shift {shift}: lse"));
            assert_close(
                &got.row_max,
                &moved(&before.row_max),
                1e-5,
                &format!("{level}, shift {shift}: max"),
            );
        }
    });
}

/// I8: parts over any partition of the keys merge to the whole; (0, -inf) is the identity.
#[test]
fn merging_parts() {
    for_normal_cases(|level, case, operands| {
        let whole = run(&operands.inputs(), &Ask::all(level));
        let rng = &mut Rng::new(case.seed);
        let shape = operands.inputs().output_shape();
        let mut bounds = [0, rng.between(0..=case.kv_len), rng.between(0..=case.kv_len), case.kv_len];
        bounds.sort_unstable();
        let part = |start: usize, end: usize| {
            let (k, v) = (slice(&operands.k, start..end), slice(&operands.v, start..end));
            run(&operands.inputs_with(operands.q.view(), k, v), &Ask::all(level))
        };
        let parts: Vec<_> = bounds.windows(2).map(|pair| part(pair[0], pair[1])).collect();
        let join = |into: &Results<f32>, other: &Results<f32>| {
            let mut joined = into.clone();
            let out = ViewMut::new(&mut joined.out, shape).expect("an output");
            let other_out = View::new(&other.out, shape).expect("an output");
            merge(out, &mut joined.lse, other_out, &other.lse).expect("parts that fit");
            joined
        };
        let left = join(&join(&parts[0], &parts[1]), &parts[2]);
        let right = join(&parts[0], &join(&parts[1], &parts[2]));
        let swapped = join(&parts[2], &join(&parts[1], &parts[0]));
        for (what, got) in [("left first", left), ("right first", right), ("swapped", swapped)] {
            assert_close(&got.out, &whole.out, 4e-6, &format!("{level}, {what}, {bounds:?}: out"));
            assert_close(&got.lse, &whole.lse, 4e-6, &format!("{level}, {what}, {bounds:?}: lse"));
        }
        let empty = part(0, 0);
        for (what, got) in [("right", join(&whole, &empty)), ("left", join(&empty, &whole))] {
            assert_same(&got.out, &whole.out, &format!("{level}: identity on the {what}: out"));
            assert_same(&got.lse, &whole.lse, &format!("{level}: identity on the {what}: lse"));
        }
        let nothing = join(&empty, &empty);
        assert_same(&nothing.out, &empty.out, &format!("{level}: nothing and nothing: out"));
        assert_same(&nothing.lse, &empty.lse, &format!("{level}: nothing and nothing: lse"));
    });
}

/// I11: the order of keys does not matter but for roundings; that of queries, heads and batches not at all.
#[test]
fn permutations() {
    for_normal_cases(|level, case, operands| {
        let before = run(&operands.inputs(), &Ask::at(level)).out;
        let reversed = |operand: &Operand<f32>, axis: usize| {
            mapped(operand, |mut index, _| {
                index[axis] = operand.shape[axis] - 1 - index[axis];
                operand.at(index)
            })
        };
        let of = |q: &Operand<f32>, k: &Operand<f32>, v: &Operand<f32>| {
            run(&operands.inputs_with(q.view(), k.view(), v.view()), &Ask::at(level)).out
        };
        let got = of(&operands.q, &reversed(&operands.k, 2), &reversed(&operands.v, 2));
        assert_close(&got, &before, 4e-6, &format!("{level}: keys reversed"));
        let got = of(&reversed(&operands.q, 3), &reversed(&operands.k, 3), &operands.v);
        assert_close(&got, &before, 1e-5, &format!("{level}: features reversed (I14)"));

        let row = |index: usize| &before[index * case.v_dim..][..case.v_dim];
        let got = of(&reversed(&operands.q, 2), &operands.k, &operands.v);
        let rows = (0..4).flat_map(|h| (0..case.q_len).rev().map(move |i| h * case.q_len + i));
        let expected: Vec<f32> = rows.flat_map(|index| row(index).to_vec()).collect();
        assert_same(&got, &expected, &format!("{level}: queries reversed"));
        let got = of(&reversed(&operands.q, 1), &reversed(&operands.k, 1), &reversed(&operands.v, 1));
        let rows = (0..4).rev().flat_map(|h| (0..case.q_len).map(move |i| h * case.q_len + i));
        let expected: Vec<f32> = rows.flat_map(|index| row(index).to_vec()).collect();
        assert_same(&got, &expected, &format!("{level}: heads reversed"));
    });
}

/// I12: each key twice leaves the output and adds ln 2 to the LSE.
#[test]
fn duplicated_keys() {
    for_normal_cases(|level, _, operands| {
        let before = run(&operands.inputs(), &Ask::all(level));
        let twice = |operand: &Operand<f32>| {
            let [batch, heads, tokens, dim] = operand.shape;
            let shape = [batch, heads, 2 * tokens, dim];
            Operand::new(shape, contiguous(shape), Place::Heap, f32::NAN, |[b, h, t, d]| {
                operand.at([b, h, t % tokens, d])
            })
        };
        let (k, v) = (twice(&operands.k), twice(&operands.v));
        let got = run(&operands.inputs_with(operands.q.view(), k.view(), v.view()), &Ask::all(level));
        assert_close(&got.out, &before.out, 4e-6, &format!("{level}: out"));
        let raised: Vec<f32> = before.lse.iter().map(|lse| lse + std::f32::consts::LN_2).collect();
        assert_close(&got.lse, &raised, 4e-6, &format!("{level}: lse"));
    });
}

/// I13: powers of two pass through; sums of values are sums of outputs. I14: and from queries to the scale.
#[test]
fn scaling() {
    for_normal_cases(|level, case, operands| {
        let of = |v: &Operand<f32>| {
            run(&operands.inputs_with(operands.q.view(), operands.k.view(), v.view()), &Ask::at(level)).out
        };
        let before = of(&operands.v);
        for factor in [0.25f32, 1024.0, -2.0] {
            let expected: Vec<f32> = before.iter().map(|x| x * factor).collect();
            let got = of(&mapped(&operands.v, |_, x| x * factor));
            assert_same(&got, &expected, &format!("{level}: V times {factor}"));

            let q = mapped(&operands.q, |_, x| x * factor);
            let scale = 1.0 / (case.head_dim as f32).sqrt();
            let inputs = operands.inputs_with(q.view(), operands.k.view(), operands.v.view());
            let got = run(&inputs.scale(scale / factor), &Ask::at(level)).out;
            assert_same(&got, &before, &format!("{level}: q times {factor}"));
        }
        let other = mapped(&operands.v, |[_, h, t, d], _| ((h + 3 * t + 7 * d) % 11) as f32 - 5.0);
        let sum = mapped(&operands.v, |index, x| x + other.at(index));
        let parts: Vec<f32> = before.iter().zip(of(&other)).map(|(a, b)| a + b).collect();
        assert_close(&of(&sum), &parts, 1e-5, &format!("{level}: a sum of values"));
    });
}

/// I14: the order of dimensions does not matter but for roundings: the bound of one order holds for any.
#[test]
fn permuted_dimensions() {
    for_normal_cases(|level, case, operands| {
        let last = case.head_dim - 1;
        let permuted = |[b, h, t, d]: [usize; 4]| [b, h, t, if d % 2 == 0 { last - d / 2 } else { d / 2 }];
        let q = mapped(&operands.q, |index, _| operands.q.at(permuted(index)));
        let k = mapped(&operands.k, |index, _| operands.k.at(permuted(index)));
        let inputs = operands.inputs_with(q.view(), k.view(), operands.v.view());
        let got = run(&inputs, &Ask::all(level));
        let out = View::new(&got.out, inputs.output_shape()).expect("contiguous");
        let certificate = certify::check(&operands.inputs(), &out, Some(&got.lse), &Bound::exact(level));
        let verdict = certificate.expect("operands that fit").verdict();
        verdict.unwrap_or_else(|wrong| panic!("{level}: {wrong}"));
    });
}

/// I15: an output lies between the smallest and the largest value.
#[test]
fn outputs_lie_in_the_hull_of_the_values() {
    for (seed, values) in (0..SEEDS).flat_map(|seed| VALUES.map(|values| (seed, values))) {
        if matches!(values, Values::Huge | Values::Overflow) {
            continue;
        }
        let case = Case { values, ..normal(seed) };
        let _announced = announce(&case);
        let operands = case.operands::<f32, f32>(Place::Heap);
        for level in levels() {
            let out = run(&operands.inputs(), &Ask::at(level)).out;
            for_each_index([1, 4, case.q_len, case.v_dim], |[_, h, i, d]| {
                let x = out[(h * case.q_len + i) * case.v_dim + d];
                let column = (0..case.kv_len).map(|t| operands.v.at([0, h / 2, t, d]));
                let hull = column
                    .fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)]);
                let size = hull[0].abs().max(hull[1].abs());
                let slack = (case.kv_len + 20) as f32 * f32::EPSILON * size + 2e-45;
                let inside = hull[0] - slack <= x && x <= hull[1] + slack;
                assert!(inside, "{level}: {x:e} at {:?} outside {hull:?}", [h, i, d]);
            });
        }
    }
}
