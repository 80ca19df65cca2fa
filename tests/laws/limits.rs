//! Rows without keys, logits that leave the range of `f32`, operands that are not finite.

use crate::common::cases::*;
use crate::plain;
use lucid_attention::DType::F16;
use lucid_attention::{Intervals, Mask, QueryStart, Span, View};

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
