//! States: saved, restored, merged, attended to.

use super::algebra::{in_pieces, singly};
use super::case::{Case, Operands};
use super::definition::{definition, maps};
use super::{bits, difference, levels};
use lucid_attention::linear::{
    FeatureMap, LinearInputs, LinearOptions, LinearPlan, LinearState, Norms, Projection,
};
use lucid_attention::{AttentionError, Level, Problem, View, ViewMut};
use std::ops::Range;

fn cases() -> impl Iterator<Item = Case> {
    let base = Case { batch: 2, heads: [4, 2], q_len: 150, kv_len: 150, v_dim: 20, ..Case::default() };
    let window = LinearOptions { exact_window: true, ..base.options };
    let window = Case { options: window, ..base.clone() };
    maps(16, 30).into_iter().map(move |map| Case { map, ..base.clone() }).chain([window])
}

/// The keys and values of some tokens, taken into a state.
fn absorbed(
    case: &Case,
    plan: &LinearPlan,
    operands: &Operands<f32>,
    pieces: &[Range<usize>],
) -> LinearState {
    let mut state = plan.state(case.batch).unwrap();
    for tokens in pieces {
        let view = |data, [batch, heads, len, dim]: [usize; 4]| {
            let strides = [heads * len * dim, len * dim, dim, 1];
            View::with_strides(data, [batch, heads, tokens.len(), dim], strides).unwrap()
        };
        let none = View::new(&operands.q[..0], [case.batch, case.heads[0], 0, case.head_dim]).unwrap();
        let k = view(&operands.k[tokens.start * case.head_dim..], case.k_shape());
        let v = view(&operands.v[tokens.start * case.v_dim..], case.v_shape());
        plan.absorb(&LinearInputs::new(none, k, v), &mut state, &mut plan.workspace().unwrap()).unwrap();
    }
    state
}

fn attended(case: &Case, plan: &LinearPlan, operands: &Operands<f32>, state: &LinearState) -> Vec<f32> {
    let mut out = vec![f32::NAN; case.out_shape().iter().product()];
    let q = View::new(&operands.q, case.q_shape()).unwrap();
    let view = ViewMut::new(&mut out, case.out_shape()).unwrap();
    plan.attend(q, view, state, &mut plan.workspace().unwrap()).unwrap();
    out
}

fn saved(state: &LinearState) -> Vec<f32> {
    let mut numbers = vec![0.0; state.saved_len()];
    state.save(&mut numbers, &mut vec![0; state.batch()]).unwrap();
    numbers
}

/// Keys taken in at once, singly or in parts that are merged: all queries see all keys.
#[test]
fn absorbed_and_merged_states_are_the_definition() {
    for case in cases().filter(|case| !case.options.exact_window) {
        let operands = case.operands::<f32>();
        let expected = definition(&case, &operands);
        for level in levels() {
            let plan = case.plan(level);
            let whole = absorbed(&case, &plan, &operands, std::slice::from_ref(&(0..150)));
            let by_token = absorbed(&case, &plan, &operands, &singly(150));
            let mut merged = plan.state(2).unwrap();
            for tokens in [0..40, 40..40, 40..149, 149..150] {
                merged.merge(&absorbed(&case, &plan, &operands, &[tokens])).unwrap();
            }
            for state in [whole, by_token, merged] {
                assert_eq!(state.lens(), [150; 2]);
                let off = difference(&attended(&case, &plan, &operands, &state), &expected);
                assert!(off <= 2e-5, "{level}: off by {off}, {case:?}");
            }
        }
    }
}

/// Taking keys in and attending to their queries leave the same behind, with a window too.
#[test]
fn absorbed_keys_are_extended_ones() {
    for case in cases() {
        let case = Case { causal: true, ..case };
        let operands = case.operands::<f32>();
        for level in levels() {
            let plan = case.plan(level);
            let (_, extended) = in_pieces(&case, &plan, &operands, &[0..77, 77..150]);
            let absorbed = absorbed(&case, &plan, &operands, &[0..50, 50..150]);
            let [expected, got] =
                [&extended, &absorbed].map(|state| attended(&case, &plan, &operands, state));
            let off = difference(&got, &expected.into_iter().map(f64::from).collect::<Vec<_>>());
            assert!(off <= 2e-5, "{level}: off by {off}, {case:?}");
        }
    }
}

/// What was saved continues with the same bits.
#[test]
fn restored_states_continue() {
    for case in cases() {
        let case = Case { causal: true, ..case };
        let operands = case.operands::<f32>();
        for level in levels() {
            let plan = case.plan(level);
            let (_, state) = in_pieces(&case, &plan, &operands, std::slice::from_ref(&(0..100)));
            let mut numbers = vec![f32::NAN; state.saved_len()];
            let mut lens = vec![0; 2];
            state.save(&mut numbers, &mut lens).unwrap();
            assert!(numbers.iter().all(|x| !x.is_nan()), "all numbers are written");
            let mut restored = plan.state(2).unwrap();
            restored.restore(&numbers, &lens).unwrap();
            assert_eq!(restored.lens(), [100; 2]);
            let [expected, got] =
                [&state, &restored].map(|state| bits(&attended(&case, &plan, &operands, state)));
            assert_eq!(got, expected, "{level}, {case:?}");
            let mut again = vec![0.0; numbers.len()];
            restored.save(&mut again, &mut lens).unwrap();
            assert_eq!(bits(&again), bits(&numbers), "{level}: saved twice, {case:?}");
            restored.reset();
            assert!(bits(&attended(&case, &plan, &operands, &restored)).iter().all(|&x| x == 0), "no token");
        }
    }
}

/// Sums of another map's features are refused by name: other directions of the same sizes, another kind, another scale.
#[test]
fn states_belong_to_a_map() {
    let case = Case { causal: true, ..Case::default() };
    let (plan, operands) = (case.plan(Level::Portable), case.operands::<f32>());
    let projection = |seed| Projection::orthogonal(32, 16, Norms::Chi, seed).unwrap();
    let scaled = LinearOptions { scale: Some(0.3), ..case.options };
    let others = [
        Case { map: FeatureMap::Positive(projection(8)), ..case.clone() },
        Case { map: FeatureMap::Optimal { projection: projection(7), a: 0.0 }, ..case.clone() },
        Case { options: scaled, ..case.clone() },
    ];
    let names = |error: AttentionError, named: &str| {
        let text = error.to_string();
        assert!(text.starts_with(named) && text.contains("projection"), "{text}");
    };
    let mut own = in_pieces(&case, &plan, &operands, std::slice::from_ref(&(0..100))).1;
    let before = saved(&own);
    for other in others {
        let theirs_plan = other.plan(Level::Portable);
        let mut theirs = in_pieces(&other, &theirs_plan, &operands, std::slice::from_ref(&(0..100))).1;
        names(own.merge(&theirs).unwrap_err(), "later");
        names(own.restore(&saved(&theirs), &[100]).unwrap_err(), "numbers");
        assert_eq!((bits(&saved(&own)), own.lens()), (bits(&before), &[100][..]), "as before");

        let mut out = vec![1.0f32; 800];
        let mut workspace = plan.workspace().unwrap();
        let inputs = case.inputs(&operands);
        let view = ViewMut::new(&mut out, case.out_shape()).unwrap();
        names(plan.extend(&inputs, view, &mut theirs, &mut workspace).unwrap_err(), "state");
        names(plan.absorb(&inputs, &mut theirs, &mut workspace).unwrap_err(), "state");
        let q = View::new(&operands.q, case.q_shape()).unwrap();
        let view = ViewMut::new(&mut out, case.out_shape()).unwrap();
        names(plan.attend(q, view, &theirs, &mut workspace).unwrap_err(), "state");
        assert!(out.iter().all(|&x| x == 1.0), "nothing is written");
    }
    // Another plan of the same map and directions will do.
    own.merge(&case.plan(Level::Portable).state(1).unwrap()).unwrap();
    let mut other = case.plan(Level::Portable).state(1).unwrap();
    other.restore(&before, &[100]).unwrap();
}

/// Merging is done at the plan's level: with the bits that a call of the plan gets from the same splits of keys.
#[test]
fn merged_at_the_level_of_the_plan() {
    let case = Case { q_len: 1, kv_len: 2500, sigma: 2.0, ..Case::default() };
    let operands = case.operands::<f32>();
    for level in levels() {
        let plan = case.plan(level);
        let mut merged = plan.state(1).unwrap();
        for split in [0..1024, 1024..2048, 2048..2500] {
            merged.merge(&absorbed(&case, &plan, &operands, &[split])).unwrap();
        }
        let got = bits(&attended(&case, &plan, &operands, &merged));
        assert_eq!(got, bits(&case.run(level, &operands)), "{level}");
    }
}

/// Its size does not depend on what it has seen, and a step never reads more.
#[test]
fn states_do_not_grow() {
    let case = Case::default();
    let plan = case.plan(Level::Portable);
    let operands = case.operands::<f32>();
    let state = absorbed(&case, &plan, &operands, &vec![0..100; 30]);
    assert_eq!(state.lens(), [3000]);
    assert_eq!(state.bytes(), plan.state(1).unwrap().bytes());
    assert_eq!(state.saved_len(), 4 + 32 * 8 + 2 * 32 + 1);
}

/// Refused calls change nothing.
#[test]
fn refused() {
    let case = Case { causal: true, ..Case::default() };
    let (plan, operands) = (case.plan(Level::Portable), case.operands::<f32>());
    let state = || in_pieces(&case, &plan, &operands, std::slice::from_ref(&(0..100))).1;
    let saved = |state: &LinearState| bits(&saved(state));
    let mut own = state();
    let before = saved(&own);
    let other = Case { map: FeatureMap::Elu, ..case.clone() };
    let others = [plan.state(2).unwrap(), other.plan(Level::Portable).state(1).unwrap()];
    for other in &others {
        assert!(matches!(own.merge(other), Err(AttentionError::Shape { operand: "later", .. })));
    }
    let length = before.len();
    assert!(own.restore(&vec![0.0; length + 1], &[1]).is_err());
    assert!(own.restore(&vec![0.0; length], &[1, 2]).is_err());
    assert!(own.save(&mut vec![0.0; length - 1], &mut [0]).is_err());

    let mut out = vec![1.0f32; 800];
    let mut workspace = plan.workspace().unwrap();
    let inputs = Case { causal: false, ..case.clone() };
    let refused = inputs.inputs(&operands);
    let view = ViewMut::new(&mut out, case.out_shape()).unwrap();
    let error = plan.extend(&refused, view, &mut own, &mut workspace);
    assert!(matches!(error, Err(AttentionError::Value { operand: "inputs", .. })), "{error:?}");
    let mut wrong = plan.state(3).unwrap();
    let view = ViewMut::new(&mut out, case.out_shape()).unwrap();
    let error = plan.extend(&case.inputs(&operands), view, &mut wrong, &mut workspace);
    assert!(matches!(error, Err(AttentionError::Shape { operand: "state", .. })), "{error:?}");
    assert!(out.iter().all(|&x| x == 1.0) && saved(&own) == before && own.lens() == [100]);

    // As many numbers, of a state of other sizes.
    let [saved_by, other] = [(6, 7), (8, 5)].map(|(head_dim, v_dim)| {
        let problem = Problem { v_dim, ..Problem::new(1, head_dim, 10, 10) };
        LinearPlan::new(&problem, &FeatureMap::Elu).unwrap().state(1).unwrap()
    });
    let mut numbers = vec![0.0; saved_by.saved_len()];
    saved_by.save(&mut numbers, &mut [0]).unwrap();
    let mut other = other;
    assert_eq!(numbers.len(), other.saved_len());
    assert!(other.restore(&numbers, &[0]).is_err(), "sums of other sizes");

    let mut window = case.clone();
    window.options.exact_window = true;
    let plan = window.plan(Level::Portable);
    let mut own = plan.state(1).unwrap();
    let error = own.merge(&plan.state(1).unwrap());
    assert!(matches!(error, Err(AttentionError::Conflict { other: "exact_window", .. })), "{error:?}");
}
