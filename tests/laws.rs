//! Laws that attention obeys whatever the numbers, and rules for numbers that are none; on every level.
//!
//! The exact ones hold bit for bit, the others within roundings. Where the law is about ways of making the same call, it
//! is in `determinism.rs`.

mod common;

use common::cases::*;
use common::guard::announce;
use lucid_attention::DType::{F16, F32};
use lucid_attention::{
    Element, Inputs, Intervals, Level, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart, Ragged, Span,
    View, ViewMut, merge, reference,
};

/// A few hundred cases: all pairs of options, with types and layouts taking turns.
fn cases() -> impl Iterator<Item = Case> {
    let options = Rules::OPTIONS;
    let pairs = (0..options.len()).flat_map(move |a| (0..=a).map(move |b| (a, b)));
    pairs.enumerate().map(move |(index, (a, b))| {
        let (q_len, kv_len) = [(9, 40), (30, 30), (1, 300), (14, 70)][index % 4];
        let storage = [Storage::HeadMajor, Storage::Gaps, Storage::TokenMajor][index % 3];
        let types = TYPES[index % TYPES.len()];
        let mut case = Case { types, heads: [4, 2], q_len, kv_len, storage, ..Case::default() };
        case = Case { seed: index as u64, head_dim: 11, v_dim: 18, batch: 1 + index % 2, ..case };
        options[a](&mut case.rules);
        options[b](&mut case.rules);
        case.possible()
    })
}

/// Which tokens of K each query row attends.
struct Attended {
    /// `[batch, q_heads, q_len, kv_len]`.
    tokens: Vec<bool>,
    shape: [usize; 4],
}

impl Attended {
    fn new<Q: Element, T: Element>(operands: &Operands<Q, T>) -> Self {
        let inputs = operands.inputs();
        let [batch, q_heads, q_len, _] = inputs.output_shape();
        let shape = [batch, q_heads, q_len, inputs.k().shape()[2]];
        let mut tokens = vec![false; shape.iter().product()];
        reference::for_each_row(&inputs, |row| {
            let [b, h, i] = row.index;
            let first = if operands.rules.ragged { operands.kv_bounds[row.sequence] } else { 0 };
            let at = ((b * q_heads + h) * q_len + i) * shape[3] + first;
            for (token, score) in tokens[at..].iter_mut().zip(row.scores) {
                *token = score.attended;
            }
        })
        .expect("operands that fit");
        Self { tokens, shape }
    }

    /// Whether row `row` (of all) attends token `token` of batch `b` and KV head `g`.
    fn at(&self, row: usize, [b, g, token]: [usize; 3], group: usize) -> bool {
        let [_, q_heads, q_len, kv_len] = self.shape;
        let same = row / q_len / q_heads == b && row / q_len % q_heads / group == g;
        same && self.tokens[row * kv_len + token]
    }

    fn is_empty(&self, row: usize) -> bool {
        !self.tokens[row * self.shape[3]..][..self.shape[3]].contains(&true)
    }

    fn rows(&self) -> usize {
        self.shape[..3].iter().product()
    }
}

/// Asserts that the elements for which `changed(row, column)` holds are NaN, all others as they were.
#[track_caller]
fn assert_nan_where<Q: Element>(
    got: &[Q],
    before: &[Q],
    v_dim: usize,
    what: &str,
    changed: impl Fn(usize, usize) -> bool,
) {
    for (at, (got, before)) in got.iter().zip(before).enumerate() {
        let (row, column) = (at / v_dim, at % v_dim);
        let (got, before) = (got.to_f32(), before.to_f32());
        if changed(row, column) {
            assert!(got.is_nan(), "{what}: row {row}, column {column} is {got:e}, expected NaN");
        } else {
            let same = got.to_bits() == before.to_bits() || got.is_nan() && before.is_nan();
            assert!(same, "{what}: row {row}, column {column} became {got:e}, was {before:e}");
        }
    }
}

/// I4, I5, rule A.2: what a key or value holds shows in the rows that attend it, and nowhere else.
#[test]
fn poison_stays_where_it_is_attended() {
    for case in cases() {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let mut operands = case.operands::<Q, T>(Place::Heap);
            let attended = Attended::new(&operands);
            let group = case.heads[0] / case.heads[1];
            let rng = &mut Rng::new(case.seed);
            for level in levels() {
                let before = run(&operands.inputs(), &Ask::at(level)).out;
                for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38] {
                    let token = [
                        rng.between(0..=case.batch - 1),
                        rng.between(0..=case.heads[1] - 1),
                        rng.between(0..=case.kv_len - 1),
                    ];
                    let what = format!("{level}, {poison} at {token:?}");
                    let saved = set_row(&mut operands.k, token, T::from_f32(poison));
                    let got = run(&operands.inputs(), &Ask::at(level)).out;
                    restore_row(&mut operands.k, token, &saved);
                    let touched = |row: usize, _: usize| attended.at(row, token, group);
                    if poison.is_nan() {
                        assert_nan_where(&got, &before, case.v_dim, &format!("{what} of K"), touched);
                    } else {
                        assert_unchanged_unless(&got, &before, case.v_dim, &format!("{what} of K"), touched);
                    }

                    let saved = set_row(&mut operands.v, token, T::from_f32(poison));
                    let got = run(&operands.inputs(), &Ask::at(level)).out;
                    restore_row(&mut operands.v, token, &saved);
                    if poison.is_nan() {
                        assert_nan_where(&got, &before, case.v_dim, &format!("{what} of V"), touched);
                    } else {
                        assert_unchanged_unless(&got, &before, case.v_dim, &format!("{what} of V"), touched);
                    }
                }
                // One element of V: one column.
                let token = [0, rng.between(0..=case.heads[1] - 1), rng.between(0..=case.kv_len - 1)];
                let column = rng.between(0..=case.v_dim - 1);
                let saved = row_mut(&mut operands.v, token)[column];
                row_mut(&mut operands.v, token)[column] = T::from_f32(f32::NAN);
                let got = run(&operands.inputs(), &Ask::at(level)).out;
                row_mut(&mut operands.v, token)[column] = saved;
                assert_nan_where(&got, &before, case.v_dim, &format!("{level}, NaN in V{token:?}"), |row, d| {
                    d == column && attended.at(row, token, group)
                });
            }
        });
    }
}

#[track_caller]
fn assert_unchanged_unless<Q: Element>(
    got: &[Q],
    before: &[Q],
    v_dim: usize,
    what: &str,
    touched: impl Fn(usize, usize) -> bool,
) {
    for (at, (got, before)) in got.iter().zip(before).enumerate() {
        let (row, column) = (at / v_dim, at % v_dim);
        let (got, before) = (got.to_f32(), before.to_f32());
        let same = got.to_bits() == before.to_bits() || got.is_nan() && before.is_nan();
        assert!(
            same || touched(row, column),
            "{what}: row {row}, column {column} became {got:e}, was {before:e}"
        );
    }
}

/// Fills a row of an operand; returns what it held.
fn set_row<T: Copy>(operand: &mut Operand<T>, token: [usize; 3], value: T) -> Vec<T> {
    let row = row_mut(operand, token);
    let saved = row.to_vec();
    row.fill(value);
    saved
}

fn restore_row<T: Copy>(operand: &mut Operand<T>, token: [usize; 3], saved: &[T]) {
    row_mut(operand, token).copy_from_slice(saved);
}

fn row_mut<T: Copy>(operand: &mut Operand<T>, token: [usize; 3]) -> &mut [T] {
    let at: usize = (0..3).map(|axis| token[axis] * operand.strides[axis]).sum();
    &mut operand.data[at..][..operand.shape[3]]
}

/// All removed keys and values at once: NaN, infinite, huge, or of the other sign. Not a bit of O, LSE or maxima.
#[test]
fn removed_keys_are_never_touched() {
    for case in cases() {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let clean = case.operands::<Q, T>(Place::Heap);
            let attended = Attended::new(&clean);
            let group = case.heads[0] / case.heads[1];
            let unseen = |token: [usize; 3]| !(0..attended.rows()).any(|row| attended.at(row, token, group));
            let mut dirty = case.operands::<Q, T>(Place::Heap);
            for poison in [f32::NAN, f32::INFINITY, -1e38, -0.0] {
                for_each_index([case.batch, case.heads[1], case.kv_len, 1], |[b, g, t, _]| {
                    if unseen([b, g, t]) {
                        set_row(&mut dirty.k, [b, g, t], T::from_f32(poison));
                        set_row(&mut dirty.v, [b, g, t], T::from_f32(poison));
                    }
                });
                for level in levels() {
                    let expected = run(&clean.inputs(), &Ask::all(level));
                    let got = run(&dirty.inputs(), &Ask::all(level));
                    assert_same(&got.out, &expected.out, &format!("{level}, {poison}: out"));
                    assert_same(&got.lse, &expected.lse, &format!("{level}, {poison}: lse"));
                    assert_same(&got.row_max, &expected.row_max, &format!("{level}, {poison}: row_max"));
                }
            }
        });
    }
}

/// A removed value does not even turn -0 into +0.
#[test]
fn the_sign_of_a_removed_value_does_not_show() {
    // The first key's weight is 1 and its value 0; the second's product underflows, which a fused multiply-add onto +0
    // makes -0. The rest is removed.
    let (q, k) = ([1.0f32], [1.0f32, 0.0, 0.5, 0.5]);
    let allowed = [true, true, false, false];
    for level in levels() {
        let expected = if level.is_fused() { -0.0f32 } else { 0.0 };
        for removed in [5.0, -5.0, 0.0, -0.0, f32::NAN] {
            let v = [0.0f32, -1e-45, removed, removed];
            let inputs = plain(&q, &k, &v).scale(1.0);
            let dense = View::new(&allowed, [1, 1, 1, 4]).expect("a mask");
            for mask in [Mask::NONE.allowed(dense), Mask::NONE.kv_lens(&[2])] {
                let out = run(&inputs.mask(mask), &Ask::at(level)).out;
                let same = out[0].to_bits() == expected.to_bits();
                assert!(same, "{level}, removed {removed}: got {:?}, expected {expected:?}", out[0]);
            }
        }
    }
}

/// Queries and keys of size 1, values of size 1.
fn plain<'a>(q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Inputs<'a, f32, f32> {
    let view = |data: &'a [f32]| View::new(data, [1, 1, data.len(), 1]).expect("a column");
    Inputs::new(view(q), view(k), view(v))
}

/// NaN in a dense bias matters only where the mask leaves the key.
#[test]
fn a_removed_bias_is_never_touched() {
    let (q, k, v) = ([0.5f32, -0.5], [1.0f32, 2.0, 3.0, 4.0], [1.0f32, 2.0, 3.0, 4.0]);
    let clean = [0.1f32, 0.2, 0.0, 0.0, 0.3, 0.4, 0.5, 0.0];
    let dirty = [0.1f32, 0.2, f32::NAN, f32::INFINITY, 0.3, 0.4, 0.5, f32::NAN];
    let allowed = [true, true, false, false, true, true, true, false];
    let mask = Mask::NONE.allowed(View::new(&allowed, [1, 1, 2, 4]).expect("a mask"));
    for level in levels() {
        let [clean, dirty] = [&clean, &dirty].map(|bias| {
            let bias = View::new(&bias[..], [1, 1, 2, 4]).expect("a bias");
            run(&plain(&q, &k, &v).mask(mask).bias(bias), &Ask::all(level))
        });
        assert_same(&dirty.out, &clean.out, &format!("{level}: out"));
        assert_same(&dirty.lse, &clean.lse, &format!("{level}: lse"));
    }
}

/// I5: NaN in a query is its own row's business, unless that has no key.
#[test]
fn a_query_of_nan_is_its_own_row() {
    for case in cases() {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let mut operands = case.operands::<Q, T>(Place::Heap);
            let attended = Attended::new(&operands);
            let rng = &mut Rng::new(case.seed);
            for level in levels() {
                let before = run(&operands.inputs(), &Ask::all(level));
                let [b, h, i] = [
                    rng.between(0..=case.batch - 1),
                    rng.between(0..=case.heads[0] - 1),
                    rng.between(0..=case.q_len - 1),
                ];
                let d = rng.between(0..=case.head_dim - 1);
                let saved = row_mut(&mut operands.q, [b, h, i])[d];
                row_mut(&mut operands.q, [b, h, i])[d] = Q::from_f32(f32::NAN);
                let got = run(&operands.inputs(), &Ask::all(level));
                row_mut(&mut operands.q, [b, h, i])[d] = saved;
                let own = (b * case.heads[0] + h) * case.q_len + i;
                let changed = |row: usize, _: usize| row == own && !attended.is_empty(row);
                let what = format!("{level}, NaN in q{:?}", [b, h, i, d]);
                assert_nan_where(&got.out, &before.out, case.v_dim, &format!("{what}: out"), changed);
                assert_nan_where(&got.lse, &before.lse, 1, &format!("{what}: lse"), changed);
                assert_nan_where(&got.row_max, &before.row_max, 1, &format!("{what}: row_max"), changed);
            }
        });
    }
}

/// I3: every way of leaving no key, whatever the operands hold.
#[test]
fn rows_without_keys() {
    let number = [f32::NAN, 1.0, f32::INFINITY];
    let (q, k, v) = (number, number, number);
    let never = [false];
    let below = [f32::NEG_INFINITY];
    let offsets = [0, 0, 0, 0];
    let masks = [
        ("kv_lens", Mask::NONE.kv_lens(&[0])),
        ("allowed", Mask::NONE.allowed(View::new(&never, [1; 4]).expect("a mask"))),
        ("causal", Mask::causal()),
        ("window", Mask::NONE.window(None, Some(2))),
        ("documents", Mask::NONE.documents(&[0, 3])),
        ("intervals", Mask::NONE.intervals(Intervals::new([1, 1, 3], &offsets, &[]).expect("no spans"))),
    ];
    let inputs = plain(&q, &k, &v).q_start(QueryStart::At(-9));
    let mut ways: Vec<_> = masks.map(|(name, mask)| (name, inputs.mask(mask))).into();
    ways.push(("bias", inputs.bias(View::new(&below, [1; 4]).expect("a bias"))));
    ways.push(("no keys", plain(&q, &[], &[]).q_start(QueryStart::TopLeft)));
    for level in levels() {
        for (name, inputs) in &ways {
            for inputs in [*inputs, inputs.sinks(&[0.5]), inputs.softcap(2.0), inputs.alibi(&[0.5])] {
                let got = run(&inputs, &Ask::all(level));
                let zero = got.out.iter().all(|x| x.to_bits() == 0);
                assert!(zero, "{level}, {name}: {:?} instead of +0", got.out);
                assert_eq!(got.lse, [f32::NEG_INFINITY; 3], "{level}, {name}: lse");
                assert_eq!(got.row_max, [f32::NEG_INFINITY; 3], "{level}, {name}: row_max");
            }
        }
    }
}

/// Rule A.3 on logits that leave the range of f32 and on operands that are not finite.
#[test]
fn overflow() {
    // Times log2 e it is still finite: what overflows is the logit.
    let big = 1e38f32;
    let nan = f32::NAN;
    let inf = f32::INFINITY;
    // Query, keys, values, output.
    let cases = [
        ("one logit is +inf", big, [1.0, 9.0], [1.0, 2.0], nan),
        ("one logit is -inf", big, [-9.0, 0.0], [1.0, 2.0], 2.0),
        ("all logits are -inf", big, [-9.0, -8.0], [1.0, 2.0], nan),
        ("+inf and -inf", big, [9.0, -9.0], [1.0, 2.0], nan),
        ("a key is NaN", 1.0, [nan, 0.0], [1.0, 2.0], nan),
        ("a key is inf", 1.0, [inf, 0.0], [1.0, 2.0], nan),
        ("a key is -inf", 1.0, [-inf, 0.0], [1.0, 2.0], 2.0),
        ("a value is inf", 0.0, [1.0, 1.0], [inf, 2.0], inf),
        ("a value is inf and its weight 0", 1.0, [-1000.0, 0.0], [inf, 2.0], nan),
        ("values are inf and -inf", 0.0, [1.0, 1.0], [inf, -inf], nan),
    ];
    for level in levels() {
        for (what, q, k, v, expected) in &cases {
            // The same far into the second tile, and in another split, after keys that are removed.
            for before in [0, 20, 300, 1500] {
                let pad = |tail: &[f32]| [&vec![7.0; before][..], tail].concat();
                let (k, v) = (pad(&k[..]), pad(&v[..]));
                let spans = [Span { start: before, end: before + 2 }];
                let list = Intervals::new([1, 1, 1], &[0, 1], &spans).expect("a span");
                let q = [*q];
                let inputs = plain(&q, &k, &v).scale(1.0).mask(Mask::NONE.intervals(list));
                let got = run(&inputs, &Ask::all(level));
                let what = format!("{level}, {what}, after {before} keys");
                assert_same(&got.out, &[*expected], &what);
                if what.contains("logits are -inf") {
                    assert!(got.lse[0].is_nan(), "{what}: lse {}", got.lse[0]);
                    assert!(got.row_max[0].is_nan(), "{what}: row_max {}", got.row_max[0]);
                    let got = run(&inputs.sinks(&[0.0]), &Ask::at(level));
                    assert_same(&got.out, &[nan], &format!("{what}, with a sink"));
                }
            }
        }
    }
}

/// Sinks that are not finite, and one that dwarfs all scores.
#[test]
fn sinks_at_the_limits() {
    let (q, k, v) = ([1.0f32], [0.0f32, 0.0], [2.0f32, 4.0]);
    for level in levels() {
        let out = |sink: f32| run(&plain(&q, &k, &v).sinks(&[sink]), &Ask::at(level)).out[0];
        assert_eq!(out(f32::NEG_INFINITY), 3.0, "{level}: a sink of -inf is none");
        assert_eq!(out(0.0), 2.0, "{level}: a sink like the keys");
        assert_eq!(out(1e30), 0.0, "{level}: a sink above all");
        assert!(out(f32::NAN).is_nan(), "{level}: a sink of NaN");
        assert!(out(f32::INFINITY).is_nan(), "{level}: a sink of +inf");
    }
}

/// A well-conditioned case with random operands.
fn normal(seed: u64) -> Case {
    let rng = &mut Rng::new(seed);
    let case = Case { seed, head_dim: rng.between(1..=40), v_dim: rng.between(1..=40), ..Case::default() };
    Case { heads: [4, 2], q_len: rng.between(1..=9), kv_len: rng.between(1..=400), ..case }
}

const SEEDS: u64 = 60;

/// Calls `check` with a level and a well-conditioned case's operands.
fn for_normal_cases(check: impl Fn(Level, &Case, &Operands<f32, f32>)) {
    for case in (0..SEEDS).map(normal) {
        let _announced = announce(&case);
        let operands = case.operands::<f32, f32>(Place::Heap);
        for level in levels() {
            check(level, &case, &operands);
        }
    }
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let close = got == expected || (got - expected).abs() <= tolerance * (1.0 + expected.abs());
        assert!(close, "{what}: element {at} is {got:e}, expected about {expected:e}");
    }
}

/// A copy with other values.
fn mapped(operand: &Operand<f32>, map: impl Fn([usize; 4], f32) -> f32) -> Operand<f32> {
    let view = operand.view();
    let value = |index| map(index, *view.get(index).expect("an index inside"));
    Operand::new(operand.shape, operand.strides, Place::Heap, f32::NAN, value)
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
            let view = operand.view();
            let from = |mut index: [usize; 4]| {
                index[axis] = operand.shape[axis] - 1 - index[axis];
                *view.get(index).expect("an index inside")
            };
            Operand::new(operand.shape, operand.strides, Place::Heap, f32::NAN, from)
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
            let view = operand.view();
            let strides = [0, 2 * tokens * dim, dim, 1];
            let shape = [batch, heads, 2 * tokens, dim];
            Operand::new(shape, strides, Place::Heap, f32::NAN, |[b, h, t, d]| {
                *view.get([b, h, t % tokens, d]).expect("an index inside")
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
        let sum = mapped(&operands.v, |index, x| x + other.view().get(index).expect("an index inside"));
        let parts: Vec<f32> = before.iter().zip(of(&other)).map(|(a, b)| a + b).collect();
        assert_close(&of(&sum), &parts, 1e-5, &format!("{level}: a sum of values"));
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
        let v = operands.v.view();
        for level in levels() {
            let out = run(&operands.inputs(), &Ask::at(level)).out;
            for_each_index([1, 4, case.q_len, case.v_dim], |[_, h, i, d]| {
                let x = out[(h * case.q_len + i) * case.v_dim + d];
                let column = (0..case.kv_len).map(|t| *v.get([0, h / 2, t, d]).expect("an index inside"));
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

/// I16: narrow storage changes nothing but the roundings of operands and of the result.
#[test]
fn storage_rounds_once() {
    for case in cases() {
        let _announced = announce(&case);
        let in_f32 = Case { types: [F32, F32], ..case }.operands::<f32, f32>(Place::Heap);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let (q, k, v) = (widened(&operands.q), widened(&operands.k), widened(&operands.v));
            let inputs = in_f32.inputs_with(q.view(), k.view(), v.view());
            for level in levels() {
                let wide = run(&inputs, &Ask::all(level));
                let narrow = run(&operands.inputs(), &Ask::all(level));
                let rounded: Vec<Q> = wide.out.iter().map(|&x| Q::from_f32(x)).collect();
                assert_same(&narrow.out, &rounded, &format!("{level}: out"));
                assert_same(&narrow.lse, &wide.lse, &format!("{level}: lse"));
            }
        });
    }
}

fn widened<T: Element>(operand: &Operand<T>) -> Operand<f32> {
    let view = operand.view();
    let value = |index| view.get(index).expect("an index inside").to_f32();
    Operand::new(operand.shape, operand.strides, Place::Heap, f32::NAN, value)
}

/// I18: what a workspace did before does not show.
#[test]
fn used_workspaces() {
    let problem =
        Problem { q_heads: 4, kv_heads: 2, head_dim: 11, v_dim: 18, max_q_len: 40, max_kv_len: 400 };
    for level in levels() {
        let options = PlanOptions { level: Some(level), max_threads: Some(2), ..PlanOptions::default() };
        let plan = Plan::with_options(&problem, &options).expect("a plan");
        let mut workspace = plan.workspace().expect("memory");
        let nan = Case { heads: [4, 2], q_len: 40, kv_len: 400, head_dim: 11, v_dim: 18, ..Case::default() };
        let nan = nan.operands::<f32, f32>(Place::Heap);
        let poison = [f32::NAN];
        let nan = nan.inputs().bias(View::new(&poison, [1; 4]).expect("a bias"));
        let mut nothing = vec![0.0; 4 * 40 * 18];
        for case in cases() {
            let _announced = announce(&case);
            let out = ViewMut::new(&mut nothing, [1, 4, 40, 18]).expect("an output");
            plan.run(&nan, Outputs::new(out), &mut workspace).expect("operands that fit");
            with_types!(case.types, Q, T => {
                let operands = case.operands::<Q, T>(Place::Heap);
                let expected = run(&operands.inputs(), &Ask::at(level)).out;
                let mut got = vec![Q::from_f32(f32::NAN); expected.len()];
                let out = ViewMut::new(&mut got, operands.inputs().output_shape()).expect("an output");
                plan.run(&operands.inputs(), Outputs::new(out), &mut workspace).expect("operands that fit");
                assert_same(&got, &expected, &format!("{level}: after a call full of NaN"));
            });
        }
    }
}

/// I19: options at their limits are no options.
#[test]
fn options_at_their_limits() {
    for_normal_cases(|level, case, operands| {
        let start = QueryStart::At(case.kv_len as i64 / 2);
        let inputs = operands.inputs().q_start(start);
        let all = |inputs: &Inputs<'_, f32, f32>| run(inputs, &Ask::all(level));
        let same = |a: &Results<f32>, b: &Results<f32>, what: &str| {
            assert_same(&a.out, &b.out, &format!("{level}, {what}: out"));
            assert_same(&a.lse, &b.lse, &format!("{level}, {what}: lse"));
        };
        let far = case.kv_len + case.q_len;
        let none = all(&inputs);
        let causal = all(&inputs.mask(Mask::causal()));
        same(&all(&inputs.mask(Mask::causal().window(Some(far), None))), &causal, "a wide window");
        same(&all(&inputs.mask(Mask::NONE.last_n_keys(far))), &causal, "the last of all keys");
        same(&all(&inputs.mask(Mask::NONE.window(Some(far), Some(far)))), &none, "a window on both sides");
        same(&all(&inputs.mask(Mask::prefix_lm(&[0]))), &causal, "no prefix");
        same(&all(&inputs.mask(Mask::prefix_lm(&[case.kv_len]))), &none, "a prefix of everything");
        same(&all(&inputs.mask(Mask::NONE.kv_lens(&[case.kv_len]))), &none, "full lengths");
        same(&all(&inputs.mask(Mask::NONE.documents(&[0, 2 * far]))), &none, "one document");
        let yes = [true];
        let dense = View::new(&yes, [1; 4]).expect("a mask");
        same(&all(&inputs.mask(Mask::NONE.allowed(dense))), &none, "everything allowed");
        let zero = [0.0f32];
        same(&all(&inputs.bias(View::new(&zero, [1; 4]).expect("a bias"))), &none, "a bias of 0");
        same(&all(&inputs.alibi(&[0.0; 4])), &none, "slopes of 0");
        same(&all(&inputs.sinks(&[f32::NEG_INFINITY; 4])), &none, "sinks of -inf");
        same(&all(&inputs.scale(1.0 / (case.head_dim as f32).sqrt())), &none, "the default scale");
        let (q_bounds, kv_bounds) = ([0, case.q_len], [0, case.kv_len]);
        let ragged = Ragged { q_bounds: &q_bounds, kv_bounds: &kv_bounds };
        same(&all(&inputs.ragged(ragged)), &none, "one sequence");
        assert_close(&all(&inputs.softcap(1e6)).out, &none.out, 1e-5, &format!("{level}: a far softcap"));
    });
}

/// Rule A.11: no option is accepted and ignored.
#[test]
fn options_bind() {
    let case = Case { heads: [2, 1], q_len: 8, kv_len: 8, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    let base = operands.inputs();
    let causal = base.mask(Mask::causal());
    let some: Vec<bool> = (0..8).map(|key| key != 3).collect();
    let dense = View::new(&some, [1, 1, 1, 8]).expect("a mask");
    let number = [0.5f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let half = number.map(half::f16::from_f32);
    let brain = number.map(half::bf16::from_f32);
    let shape = [1, 1, 1, 8];
    let offsets: Vec<usize> = (0..=8).collect();
    let spans = [Span { start: 1, end: 7 }; 8];
    let intervals = Intervals::new([1, 1, 8], &offsets, &spans).expect("spans");
    let ragged = Ragged { q_bounds: &[0, 3, 8], kv_bounds: &[0, 4, 8] };
    let window = base.mask(Mask::NONE.window(Some(2), Some(2)));
    let toggled = [
        ("scale", base, base.scale(0.1)),
        ("softcap", base, base.softcap(0.5)),
        ("another softcap", base.softcap(0.5), base.softcap(0.7)),
        ("causal", base, causal),
        ("q_start", causal, causal.q_start(QueryStart::At(-2))),
        ("q_start per sequence", causal, causal.q_start(QueryStart::PerSequence(&[3]))),
        (
            "bottom right",
            causal.mask(Mask::causal().kv_lens(&[5])),
            causal.mask(Mask::causal().kv_lens(&[5])).q_start(QueryStart::BottomRight),
        ),
        ("window left", base, base.mask(Mask::NONE.window(Some(2), None))),
        ("window right", base, base.mask(Mask::NONE.window(None, Some(2)))),
        ("a wider window left", window, base.mask(Mask::NONE.window(Some(3), Some(2)))),
        ("a wider window right", window, base.mask(Mask::NONE.window(Some(2), Some(3)))),
        ("q_start of a window", window, window.q_start(QueryStart::At(1))),
        ("last_n_keys", causal, base.mask(Mask::NONE.last_n_keys(3))),
        ("another last_n_keys", base.mask(Mask::NONE.last_n_keys(2)), base.mask(Mask::NONE.last_n_keys(3))),
        ("prefix", causal, base.mask(Mask::prefix_lm(&[5]))),
        ("another prefix", base.mask(Mask::prefix_lm(&[4])), base.mask(Mask::prefix_lm(&[5]))),
        ("kv_lens", base, base.mask(Mask::NONE.kv_lens(&[6]))),
        ("documents", base, base.mask(Mask::NONE.documents(&[0, 3, 8]))),
        ("intervals", base, base.mask(Mask::NONE.intervals(intervals))),
        ("allowed", base, base.mask(Mask::NONE.allowed(dense))),
        ("bias", base, base.bias(View::new(&number, shape).expect("a bias"))),
        ("bias in f16", base, base.bias(View::new(&half, shape).expect("a bias"))),
        ("bias in bf16", base, base.bias(View::new(&brain, shape).expect("a bias"))),
        ("alibi", base, base.alibi(&[0.5, 0.25])),
        ("slopes of heads", base.alibi(&[0.5, 0.5]), base.alibi(&[0.5, 0.25])),
        ("q_start of alibi", base.alibi(&[0.5; 2]), base.alibi(&[0.5; 2]).q_start(QueryStart::At(4))),
        ("sinks", base, base.sinks(&[0.0, 0.0])),
        ("sinks of heads", base.sinks(&[0.0, 0.0]), base.sinks(&[0.0, 1.0])),
        ("ragged", base, base.ragged(ragged)),
        (
            "ragged positions",
            causal.q_start(QueryStart::TopLeft),
            causal.q_start(QueryStart::TopLeft).ragged(ragged),
        ),
    ];
    for level in levels() {
        for (what, off, on) in &toggled {
            let [off, on] = [off, on].map(|inputs| run(inputs, &Ask::all(level)));
            assert_ne!(on.out, off.out, "{level}: {what} changes nothing");
        }
        // Every part of a composed mask binds.
        type Part = (&'static str, fn(Mask<'static>) -> Mask<'static>);
        let parts: [Part; 4] = [
            ("right", |mask| mask.window(None, Some(1))),
            ("left", |mask| mask.window(Some(2), None)),
            ("kv_lens", |mask| mask.kv_lens(&[6])),
            ("documents", |mask| mask.documents(&[2, 8])),
        ];
        let composed = |left_out: usize| {
            let kept = parts.iter().enumerate().filter(|&(part, _)| part != left_out);
            let mask = kept.fold(Mask::NONE, |mask, (_, (_, add))| add(mask));
            run(&base.mask(mask.allowed(dense)), &Ask::at(level)).out
        };
        for (part, (name, _)) in parts.iter().enumerate() {
            assert_ne!(
                composed(part),
                composed(parts.len()),
                "{level}: {name} in a composed mask changes nothing"
            );
        }
    }
}

/// Large logits in narrow storage: f16 operands are summed in f32.
#[test]
fn narrow_operands_do_not_overflow() {
    for level in levels() {
        let case = Case { types: [F16, F16], head_dim: 128, values: Values::Overflow, ..Case::default() };
        let operands = case.operands::<half::f16, half::f16>(Place::Heap);
        let out = run(&operands.inputs(), &Ask::all(level));
        assert!(out.out.iter().all(|x| x.is_finite()), "{level}: {:?}", out.out);
        assert!(out.lse.iter().all(|x| x.is_finite()), "{level}: {:?}", out.lse);
    }
}
