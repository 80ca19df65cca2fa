//! Numbers that must not show where they are not attended, and must where they are.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{cases, plain, with_types};
use lucid_attention::{Element, Mask, View, reference};

/// Which tokens of K each query row attends.
pub(crate) struct Attended {
    /// `[batch, q_heads, q_len, kv_len]`.
    tokens: Vec<bool>,
    shape: [usize; 4],
}

impl Attended {
    pub(crate) fn new<Q: Element, T: Element>(operands: &Operands<Q, T>) -> Self {
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
    pub(crate) fn at(&self, row: usize, [b, g, token]: [usize; 3], group: usize) -> bool {
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

/// Asserts that poison shows at most where it `touched(row, column)`, and there if it is NaN.
#[track_caller]
fn assert_local<Q: Element>(
    got: &[Q],
    before: &[Q],
    columns: usize,
    what: &str,
    poison: f32,
    touched: impl Fn(usize, usize) -> bool,
) {
    for (at, (&got, &before)) in got.iter().zip(before).enumerate() {
        let (row, column) = (at / columns, at % columns);
        let (x, was) = (got.to_f32(), before.to_f32());
        let holds = if touched(row, column) { x.is_nan() || !poison.is_nan() } else { same(got, before) };
        assert!(holds, "{what}: row {row}, column {column} became {x:e}, was {was:e}");
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
                    let touched = |row: usize, _: usize| attended.at(row, token, group);
                    type Part<Q, T> = (&'static str, fn(&mut Operands<Q, T>) -> &mut Operand<T>);
                    let parts: [Part<Q, T>; 2] = [("K", |all| &mut all.k), ("V", |all| &mut all.v)];
                    for (name, part) in parts {
                        let saved = set_row(part(&mut operands), token, T::from_f32(poison));
                        let got = run(&operands.inputs(), &Ask::at(level)).out;
                        row_mut(part(&mut operands), token).copy_from_slice(&saved);
                        let what = format!("{level}, {poison} at {name}{token:?}");
                        assert_local(&got, &before, case.v_dim, &what, poison, touched);
                    }
                }
                // One element of V: one column.
                let token = [0, rng.between(0..=case.heads[1] - 1), rng.between(0..=case.kv_len - 1)];
                let column = rng.between(0..=case.v_dim - 1);
                let saved = row_mut(&mut operands.v, token)[column];
                row_mut(&mut operands.v, token)[column] = T::from_f32(f32::NAN);
                let got = run(&operands.inputs(), &Ask::at(level)).out;
                row_mut(&mut operands.v, token)[column] = saved;
                let touched = |row, d| d == column && attended.at(row, token, group);
                let what = format!("{level}, NaN in column {column} of V{token:?}");
                assert_local(&got, &before, case.v_dim, &what, f32::NAN, touched);
            }
        });
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
                let nan = f32::NAN;
                assert_local(&got.out, &before.out, case.v_dim, &format!("{what}: out"), nan, changed);
                assert_local(&got.lse, &before.lse, 1, &format!("{what}: lse"), nan, changed);
                assert_local(&got.row_max, &before.row_max, 1, &format!("{what}: row_max"), nan, changed);
            }
        });
    }
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
                    assert_equal(&got, &expected, &format!("{level}, {poison}"));
                }
            }
        });
    }
}

/// Fills a row of an operand; returns what it held.
fn set_row<T: Copy>(operand: &mut Operand<T>, token: [usize; 3], value: T) -> Vec<T> {
    let row = row_mut(operand, token);
    let saved = row.to_vec();
    row.fill(value);
    saved
}

fn row_mut<T: Copy>(operand: &mut Operand<T>, token: [usize; 3]) -> &mut [T] {
    let at: usize = (0..3).map(|axis| token[axis] * operand.strides[axis]).sum();
    &mut operand.data[at..][..operand.shape[3]]
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
        assert_equal(&dirty, &clean, level.name());
    }
}
