//! The checker itself: it has to find what is wrong, name it, and not be so generous that nothing is.

mod common;

use common::cases::*;
use half::bf16;
use lucid_attention::certify::{self, Bound, Certificate};
use lucid_attention::{AttentionError, Dropout, Inputs, Level, Mask, QueryStart, Ragged, View, reference};

/// Something of everything.
fn case() -> Case {
    let rules = Rules { causal: true, sinks: true, start: Some(Start::At(3)), ..Rules::NONE };
    Case { batch: 2, heads: [4, 2], q_len: 5, kv_len: 40, rules, ..Case::default() }
}

fn check(inputs: &Inputs<'_, f32, f32>, results: &Results<f32>, bound: &Bound) -> Certificate {
    let out = View::new(&results.out, inputs.output_shape()).expect("contiguous");
    certify::check(inputs, &out, Some(&results.lse), bound).expect("operands that fit")
}

/// Each output and LSE in turn, moved a little.
#[test]
fn finds_and_names_any_wrong_number() {
    let operands = case().operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let shape = inputs.output_shape();
    for level in levels() {
        let bound = Bound::exact(level);
        let right = run(&inputs, &Ask::all(level));
        let certificate = check(&inputs, &right, &bound);
        assert!(certificate.holds(), "{level}: {:?}", certificate.violation);
        assert_eq!((certificate.elements, certificate.uncertified_rows), (right.out.len(), 0), "{level}");
        for at in 0..right.out.len() {
            let mut wrong = right.clone();
            wrong.out[at] += 1e-4 * (1.0 + wrong.out[at].abs());
            let certificate = check(&inputs, &wrong, &bound);
            let element = [at / 8 / 5 / 4, at / 8 / 5 % 4, at / 8 % 5, at % 8];
            assert_eq!(certificate.worst.element, element, "{level} {shape:?}: the one that was moved");
            assert!(certificate.worst.ratio > 1.0 && certificate.violations == 1, "{level}, {element:?}");
            let violation = certificate.verdict().expect_err("one is wrong");
            assert!(violation.to_string().starts_with(&format!("out{element:?}")), "{violation}");
        }
        for at in 0..right.lse.len() {
            let mut wrong = right.clone();
            wrong.lse[at] += 1e-4 * (1.0 + wrong.lse[at].abs());
            let certificate = check(&inputs, &wrong, &bound);
            assert_eq!(certificate.worst_lse.element, [at / 20, at / 5 % 4, at % 5, 0], "{level}");
            assert!(certificate.worst_lse.ratio > 1.0 && !certificate.holds(), "{level}");
            assert!(certificate.worst.ratio <= 1.0, "{level}: the output is right");
        }
    }
}

/// What has to be exact has no other value next to it.
#[test]
fn exact_values_are_asked_for() {
    let (q, k, v) = ([1.0f32; 3], [1.0f32, 2.0], [3.0f32, f32::INFINITY]);
    let view = |data, tokens| View::new(data, [1, 1, tokens, 1]).expect("a column");
    let inputs = Inputs::new(view(&q, 3), view(&k, 2), view(&v, 2));
    // Row 0 sees no key, row 1 the first, row 2 both.
    let inputs = inputs.mask(Mask::causal()).q_start(QueryStart::BottomRight);
    let right = Results {
        out: vec![0.0, 3.0, f32::INFINITY],
        lse: vec![f32::NEG_INFINITY, 1.0, 2.3132617],
        ..Results::default()
    };
    let bound = Bound::exact(Level::Portable);
    let holds = |results: &Results<f32>| check(&inputs, results, &bound).holds();
    assert!(holds(&right), "{:?}", check(&inputs, &right, &bound).violation);
    let wrong = |at: usize, out: f32| {
        let mut wrong = right.clone();
        wrong.out[at] = out;
        !holds(&wrong)
    };
    assert!(wrong(0, -0.0) && wrong(0, f32::NAN) && wrong(0, f32::MIN_POSITIVE / 2.0), "no key: +0");
    assert!(wrong(1, f32::NAN) && wrong(1, f32::INFINITY), "a number");
    assert!(wrong(2, f32::NEG_INFINITY) && wrong(2, 3.0) && wrong(2, f32::MAX), "an infinite value");
    for lse in [f32::INFINITY, f32::NAN, -88.0] {
        let mut results = right.clone();
        results.lse[0] = lse;
        assert!(!holds(&results), "no key: LSE -inf, not {lse}");
        let certificate = check(&inputs, &results, &bound);
        assert_eq!(certificate.worst_lse.ratio, f64::INFINITY, "nothing else is right");
    }
    let nan = Inputs::new(view(&[f32::NAN; 3], 3), view(&k, 2), view(&v, 2));
    let of_nan = |x: f32| Results { out: vec![x; 3], lse: vec![x; 3], ..Results::default() };
    assert!(check(&nan, &of_nan(f32::NAN), &bound).holds(), "NaN stays visible");
    assert!(check(&nan, &of_nan(-f32::NAN), &bound).holds(), "whatever its sign");
    assert_eq!(check(&nan, &of_nan(0.0), &bound).violations, 6, "a NaN query is not zeros");
}

/// Rows that no bound holds for are counted, and held to the hull of their values.
#[test]
fn uncertified_rows_are_counted() {
    let (q, k, v) = ([1e18f32], [1e18f32, -1e18, 1e18], [1.0f32, 50.0, 2.0]);
    let view = |data, tokens| View::new(data, [1, 1, tokens, 1]).expect("a column");
    let inputs = Inputs::new(view(&q, 1), view(&k, 3), view(&v, 3)).scale(1.0);
    let bound = Bound::exact(Level::Portable);
    let of = |x: f32| Results { out: vec![x], lse: vec![1e36], ..Results::default() };
    for (x, holds) in [(1.5, true), (1.0, true), (50.0, true), (50.1, false), (0.9, false), (f32::NAN, false)]
    {
        let certificate = check(&inputs, &of(x), &bound);
        assert_eq!(certificate.uncertified_rows, 1, "logits of 1e36");
        assert_eq!(certificate.holds(), holds, "{x}: {:?}", certificate.violation);
    }
}

/// The bound is that of a few roundings where logits are small: a larger one would prove nothing.
#[test]
fn the_bound_is_tight() {
    let case = Case { kv_len: 256, head_dim: 64, v_dim: 16, q_len: 9, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    for level in levels() {
        let results = run(&inputs, &Ask::all(level));
        let certificate = check(&inputs, &results, &Bound::exact(level));
        let worst = certificate.worst;
        assert!(worst.ratio > 1e-3, "{level}: {worst:?} comes nowhere near its bound");
        assert!(worst.bound < 2000.0 * 2f64.powi(-24), "{level}: {worst:?}");
        assert!(certificate.worst_statistical.ratio > worst.ratio, "{level}: {certificate:?}");
        assert!(certificate.worst_statistical.bound < worst.bound, "{level}: {certificate:?}");
    }
}

/// Dropout multiplies weights, and its mask is part of the call.
#[test]
fn dropout_is_part_of_the_call() {
    for level in levels() {
        let operands = case().operands::<f32, f32>(Place::Heap);
        let dropout = Dropout { rate: 0.4, seed: 9 };
        let inputs = operands.inputs().dropout(dropout);
        let results = run(&inputs, &Ask::all(level));
        let bound = Bound::exact(level);
        assert!(check(&inputs, &results, &bound).holds(), "{level}");
        let other = operands.inputs().dropout(Dropout { seed: 10, ..dropout });
        assert!(!check(&other, &results, &bound).holds(), "{level}: another mask");
        assert!(!check(&operands.inputs(), &results, &bound).holds(), "{level}: no mask");
    }
}

/// In a ragged batch an element is found where the output has it, and its sequence is named.
#[test]
fn ragged_elements_are_named() {
    let (x, v) = ([0.5f32; 7], [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let view = |data| View::new(data, [1, 1, 7, 1]).expect("a column");
    let bounds = [0, 2, 3, 7];
    let inputs =
        Inputs::new(view(&x), view(&x), view(&v)).ragged(Ragged { q_bounds: &bounds, kv_bounds: &bounds });
    let results = run(&inputs, &Ask::all(Level::Portable));
    let bound = Bound::exact(Level::Portable);
    assert!(check(&inputs, &results, &bound).holds(), "as computed");
    let mut wrong = results.clone();
    wrong.out[5] = 5.6;
    let worst = check(&inputs, &wrong, &bound).worst;
    assert_eq!((worst.sequence, worst.element), (2, [0, 0, 5, 0]), "{worst:?}");
}

/// The bf16 tier's bound is one over rounded operands, and has room for its weights but not for those of f8.
#[test]
fn the_bound_of_the_bf16_tier() {
    let operands = Case { head_dim: 15, ..case() }.operands::<f32, f32>(Place::Heap);
    let rounded = |operand: &Operand<f32>| -> Vec<f32> {
        operand.gather().iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
    };
    let [q, k, v] = [&operands.q, &operands.k, &operands.v].map(rounded);
    let of = |data, shape| View::new(data, shape).expect("contiguous");
    let inputs = operands.inputs();
    let [q, k, v] = [of(&q, operands.q.shape), of(&k, operands.k.shape), of(&v, operands.v.shape)];
    let answer = reference::attention(&operands.inputs_with(q, k, v)).expect("operands that fit");
    let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect();
    let ideal = Results { out: narrow(&answer.out), lse: narrow(&answer.lse), ..Results::default() };
    let certificate = check(&inputs, &ideal, &Bound::bf16_dot());
    assert!(certificate.holds() && certificate.worst.ratio < 0.01, "{certificate:?}");
    assert!(!check(&inputs, &ideal, &Bound::exact(Level::Portable)).holds(), "of operands as they are");
    let mut wrong = ideal.clone();
    wrong.out.iter_mut().for_each(|x| *x += 0.05);
    let certificate = check(&inputs, &wrong, &Bound::bf16_dot());
    assert_eq!(certificate.violations, wrong.out.len(), "{certificate:?}");
}

/// Operands that do not fit are errors, not panics.
#[test]
fn what_does_not_fit_is_an_error() {
    let operands = case().operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let results = run(&inputs, &Ask::all(Level::Portable));
    let bound = Bound::exact(Level::Portable);
    let [batch, heads, tokens, dim] = inputs.output_shape();
    let other = View::new(&results.out, [batch, heads, dim, tokens]).expect("as many");
    let error = certify::check(&inputs, &other, None, &bound).expect_err("another shape");
    assert!(matches!(error, AttentionError::Shape { operand: "out", .. }), "{error}");
    let out = View::new(&results.out, inputs.output_shape()).expect("contiguous");
    let error = certify::check(&inputs, &out, Some(&results.lse[1..]), &bound).expect_err("one too few");
    let expected = AttentionError::Shape { operand: "lse", axis: "elements", expected: 40, got: 39 };
    assert_eq!(error, expected);
    let error = certify::check(&inputs.sinks(&[]), &out, None, &bound).expect_err("no sinks");
    assert!(matches!(error, AttentionError::Shape { operand: "sinks", .. }), "{error}");
}

/// Certificates add up.
#[test]
fn certificates_merge() {
    let operands = case().operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let right = run(&inputs, &Ask::all(Level::Portable));
    let mut wrong = right.clone();
    wrong.out[7] = 99.0;
    let bound = Bound::exact(Level::Portable);
    let [right, wrong] = [right, wrong].map(|results| check(&inputs, &results, &bound));
    let mut both = right.clone();
    both.merge(&wrong);
    assert_eq!((both.elements, both.violations), (2 * right.elements, 1));
    assert_eq!((both.worst, &both.violation), (wrong.worst, &wrong.violation));
    assert_eq!(both.worst_lse, right.worst_lse);
    both.uncertified_rows = 3;
    both.merge(&both.clone());
    assert_eq!((both.uncertified_rows, both.violations), (6, 2));
}
