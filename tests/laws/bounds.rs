//! Laws that hold within roundings. The reference obeys them in `f64`, as a formula does, and says so here without a
//! kernel; results are certified on both sides. They are then off from each other by no more than both bounds.

use crate::algebra::mapped;
use crate::common::cases::*;
use crate::common::guard::announce;
use crate::normal;
use lucid_attention::certify::{self, Bound};
use lucid_attention::reference::{self, Answer};
use lucid_attention::{Inputs, Mask, View};

type Call<'a> = Inputs<'a, f32, f32>;

/// What sums of some hundred terms in `f64` may be off, relative to 1 or to their size.
const CLOSE: f64 = 1e-11;

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let close = got == expected || (got - expected).abs() <= CLOSE * (1.0 + expected.abs());
        assert!(close, "{what}: element {at} is {got:e}, by the law {expected:e}");
    }
}

fn answer(inputs: &Call<'_>) -> Answer {
    reference::attention(inputs).expect("operands that fit")
}

/// Asserts that results at every level are within their bounds.
pub(crate) fn certified(inputs: &Call<'_>, what: &str) {
    for level in levels() {
        let got = run(inputs, &Ask::all(level));
        let out = View::new(&got.out, inputs.output_shape()).expect("contiguous");
        let certificate = certify::check(inputs, &out, Some(&got.lse), &Bound::exact(level));
        let certificate = certificate.expect("operands that fit");
        certificate.verdict().unwrap_or_else(|wrong| panic!("{level}, {what}: {wrong}"));
        assert_eq!(certificate.uncertified_rows, 0, "{level}, {what}: rows without a bound");
    }
}

/// Asserts that the answer to `after` follows from those to `before`.
fn follows(what: &str, before: &[Call<'_>], after: &Call<'_>, law: impl Fn(&[Answer]) -> Answer) {
    let (expected, got) = (law(&before.iter().map(answer).collect::<Vec<_>>()), answer(after));
    assert_close(&got.out, &expected.out, &format!("{what}: out"));
    assert_close(&got.lse, &expected.lse, &format!("{what}: lse"));
    before.iter().chain([after]).for_each(|inputs| certified(inputs, what));
}

/// Calls `check` with well-conditioned operands, under masks and options in turn.
fn for_cases(rules: &[Rules], check: impl Fn(&Case, &Operands<f32, f32>)) {
    for seed in 0..30 {
        let case = Case { rules: rules[seed as usize % rules.len()], ..normal(seed) }.possible();
        let _announced = announce(&case);
        check(&case, &case.operands::<f32, f32>(Place::Heap));
    }
}

fn each(values: &[f64], change: impl Fn(f64) -> f64) -> Vec<f64> {
    values.iter().map(|&x| change(x)).collect()
}

/// Numbers whose sums are exact.
fn coarse(operand: &Operand<f32>) -> Operand<f32> {
    mapped(operand, |_, x| (x * 256.0).round() / 256.0)
}

/// I1: weights sum to 1, or there is none.
#[test]
fn rows_sum_to_one() {
    let rules: Vec<_> = Rules::FEW.into_iter().filter(|rules| !rules.sinks).collect();
    for_cases(&rules, |case, operands| {
        let ones = mapped(&operands.v, |_, _| 1.0);
        let after = operands.inputs_with(operands.q.view(), operands.k.view(), ones.view());
        follows("V = 1", &[operands.inputs()], &after, |before| {
            let of_row = |lse: &f64| vec![if *lse == f64::NEG_INFINITY { 0.0 } else { 1.0 }; case.v_dim];
            Answer { out: before[0].lse.iter().flat_map(of_row).collect(), ..before[0].clone() }
        });
    });
}

/// I2: what all logits of a row have in common moves the LSE and nothing else.
#[test]
fn shifts_cancel() {
    let rules: Vec<_> = Rules::FEW.into_iter().filter(|rules| rules.bias.is_none()).collect();
    for_cases(&rules, |_, operands| {
        for shift in [1.0f32, -64.0, 1024.0] {
            let bias = [shift];
            let after = operands.inputs().bias(View::new(&bias, [1; 4]).expect("a bias"));
            follows(&format!("shift {shift}"), &[operands.inputs()], &after, |before| Answer {
                lse: each(&before[0].lse, |lse| lse + f64::from(shift)),
                ..before[0].clone()
            });
        }
    });
}

/// I8: attention over parts of the keys makes up that over all of them.
#[test]
fn parts_make_up_the_whole() {
    for_cases(&[Rules::NONE], |case, operands| {
        let rng = &mut Rng::new(case.seed);
        let bounds = rng.bounds(3, case.kv_len);
        let part = |bounds: &[usize]| {
            let [k, v] = [&operands.k, &operands.v].map(|operand| slice(operand, bounds[0]..bounds[1]));
            operands.inputs_with(operands.q.view(), k, v)
        };
        let parts: Vec<_> = bounds.windows(2).map(part).collect();
        follows(&format!("parts {bounds:?}"), &parts, &operands.inputs(), |parts| {
            let mut whole = parts[0].clone();
            for row in 0..whole.lse.len() {
                let sum: f64 = parts.iter().map(|part| part.lse[row].exp()).sum();
                whole.lse[row] = sum.ln();
                for at in row * case.v_dim..(row + 1) * case.v_dim {
                    let terms = parts.iter().map(|part| part.out[at] * part.lse[row].exp() / sum);
                    whole.out[at] = terms.sum();
                }
            }
            whole
        });
    });
}

/// Which of a mask's cells stands at each place of a permuted one.
fn permuted<T: Copy>(mask: &Operand<T>, gap: T, index: impl Fn([usize; 4]) -> [usize; 4]) -> Operand<T> {
    Operand::new(mask.shape, mask.strides, Place::Heap, gap, |at| mask.at(index(at)))
}

/// I11: keys in any order, with their parts of a mask and a bias; queries in any order, to the bit.
#[test]
fn any_order() {
    for_cases(&[Rules::NONE], |case, operands| {
        let rng = &mut Rng::new(case.seed ^ 77);
        let mut shuffled = |len: usize| -> Vec<usize> {
            let mut order: Vec<usize> = (0..len).collect();
            (1..len).for_each(|at| order.swap(at, rng.between(0..=at)));
            order
        };
        let (keys, queries) = (shuffled(case.kv_len), shuffled(case.q_len));
        let shape = [1, 4, case.q_len, case.kv_len];
        let allowed = Operand::new(shape, contiguous(shape), Place::Heap, false, |_| rng.chance(0.7));
        let bias = Operand::new(shape, contiguous(shape), Place::Heap, 0.0, |_| rng.normal());
        let Operands { q, k, v, .. } = operands;
        let before = operands.inputs().mask(Mask::NONE.allowed(allowed.view())).bias(bias.view());

        let own = |[b, h, i, j]: [usize; 4]| [b, h, i, keys[j]];
        let token = |[b, h, t, d]: [usize; 4]| [b, h, keys[t], d];
        let (other_allowed, other_bias) = (permuted(&allowed, false, own), permuted(&bias, 0.0, own));
        let (other_k, other_v) = (permuted(k, 0.0, token), permuted(v, 0.0, token));
        let after = operands.inputs_with(q.view(), other_k.view(), other_v.view());
        let after = after.mask(Mask::NONE.allowed(other_allowed.view())).bias(other_bias.view());
        follows("keys in any order", &[before], &after, |before| before[0].clone());

        let row = |[b, h, i, j]: [usize; 4]| [b, h, queries[i], j];
        let (other_allowed, other_bias) = (permuted(&allowed, false, row), permuted(&bias, 0.0, row));
        let other_q = permuted(q, 0.0, row);
        let after = operands.inputs_with(other_q.view(), k.view(), v.view());
        let after = after.mask(Mask::NONE.allowed(other_allowed.view())).bias(other_bias.view());
        for level in levels() {
            let [before, after] = [before, after].map(|inputs| run(&inputs, &Ask::all(level)));
            for_each_index([1, 4, case.q_len, 1], |[_, h, i, _]| {
                let [to, from] = [i, queries[i]].map(|i| h * case.q_len + i);
                let of = |all: &Results<f32>, row: usize| all.out[row * case.v_dim..][..case.v_dim].to_vec();
                let what = format!("{level}: query {i} of head {h}");
                assert_same(&of(&after, to), &of(&before, from), &what);
                assert_same(&[after.lse[to]], &[before.lse[from]], &format!("{what}: lse"));
            });
        }
    });
}

/// I12: each key three times leaves the output and adds ln 3 to the LSE.
#[test]
fn repeated_keys() {
    for_cases(&[Rules::NONE], |case, operands| {
        let thrice = |operand: &Operand<f32>| {
            let [batch, heads, tokens, dim] = operand.shape;
            let shape = [batch, heads, 3 * tokens, dim];
            let value = |[b, h, t, d]: [usize; 4]| operand.at([b, h, t / 3, d]);
            Operand::new(shape, contiguous(shape), Place::Heap, 0.0, value)
        };
        let (k, v) = (thrice(&operands.k), thrice(&operands.v));
        // Positions are others then, which nothing here depends on.
        let after = operands.inputs_with(operands.q.view(), k.view(), v.view());
        follows(&format!("{} keys thrice", case.kv_len), &[operands.inputs()], &after, |before| Answer {
            lse: each(&before[0].lse, |lse| lse + 3f64.ln()),
            ..before[0].clone()
        });
    });
}

/// I13: outputs of sums of values are sums of outputs, under any mask.
#[test]
fn values_add() {
    for_cases(&Rules::FEW, |_, operands| {
        let first = coarse(&operands.v);
        let second = mapped(&operands.v, |[_, h, t, d], _| ((h + 3 * t + 7 * d) % 11) as f32 - 5.0);
        let sum = mapped(&first, |index, x| x + second.at(index));
        let after = operands.inputs_with(operands.q.view(), operands.k.view(), sum.view());
        let before =
            [&first, &second].map(|v| operands.inputs_with(operands.q.view(), operands.k.view(), v.view()));
        follows("a sum of values", &before, &after, |before| Answer {
            out: before[0].out.iter().zip(&before[1].out).map(|(a, b)| a + b).collect(),
            ..before[0].clone()
        });
    });
}

/// I14: a factor moves from keys to the scale, whatever it is that shapes scores afterwards.
#[test]
fn factors_of_keys() {
    for_cases(&Rules::FEW, |case, operands| {
        let k = mapped(&operands.k, |_, x| x * -4.0);
        let scale = 1.0 / (case.head_dim as f32).sqrt();
        let before = operands.inputs().scale(scale);
        let after = operands.inputs_with(operands.q.view(), k.view(), operands.v.view()).scale(scale / -4.0);
        follows("keys times -4", &[before], &after, |before| before[0].clone());
    });
}
