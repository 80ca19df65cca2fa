//! Rows without keys, logits that leave the range of `f32`, operands that are not finite.

use crate::common::cases::*;
use crate::plain;
use lucid_attention::DType::F16;
use lucid_attention::{Intervals, Mask, QueryStart, Span, View};
#[cfg(feature = "rayon")]
use lucid_attention::{Plan, PlanOptions, Problem};

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

/// Rule A.3 again: tiles and splits of nothing but overflowed logits weigh nothing beside later keys.
#[test]
fn overflow_before_the_first_logit() {
    for level in levels() {
        for before in [1, 256, 300, 1024, 1500] {
            let k = [&vec![-9.0; before][..], &[0.0, 0.0]].concat();
            let v = [&vec![7.0; before][..], &[1.0, 2.0]].concat();
            for bias in [None, Some(0.0)].map(|bias| bias.map(|bias| [bias])) {
                let mut inputs = plain(&[1e38], &k, &v).scale(1.0);
                if let Some(bias) = &bias {
                    inputs = inputs.bias(View::new(bias, [1; 4]).expect("a bias"));
                }
                let got = run(&inputs, &Ask::all(level));
                let what = format!("{level}, after {before} keys, bias {bias:?}");
                assert_eq!((got.out[0], got.row_max[0]), (1.5, 0.0), "{what}");
                assert_close(&got.lse, &[2f32.ln()], 1e-6, &what);
            }
        }
    }
}

/// I3 for a split: one without keys for a row changes no bit of it, not even the sign of a zero.
#[test]
fn splits_without_keys() {
    // Where a multiply-add rounds once, 0 + exp(-2) v is -0.
    let tiny = -f32::from_bits(1);
    let (mut k, mut v) = (vec![7.0; 1500], vec![7.0; 1500]);
    (k[0], v[0], k[1], v[1]) = (2.0, 0.0, 0.0, tiny);
    let span = |start, end| Span { start, end };
    // The first row has no key in the second split, which the second row visits.
    let spans = [span(0, 2), span(0, 2), span(1400, 1401)];
    let list = Intervals::new([1, 1, 2], &[0, 1, 3], &spans).expect("spans");
    let inputs = plain(&[1.0, 1.0], &k, &v).scale(1.0).mask(Mask::NONE.intervals(list));
    for level in levels() {
        let short = plain(&[1.0], &k[..2], &v[..2]).scale(1.0);
        let expected = run(&short, &Ask::all(level));
        assert_eq!(expected.out[0].is_sign_negative(), level.is_fused(), "{level}: {:?}", expected.out);
        let got = run(&inputs, &Ask::all(level));
        assert_same(&got.out[..1], &expected.out, &format!("{level}: out"));
        assert_same(&got.lse[..1], &expected.lse, &format!("{level}: lse"));
    }
}

/// The same for splits that run side by side: they have no keys of a row, or all of a row's splits have none.
#[cfg(feature = "rayon")]
#[test]
fn splits_side_by_side_without_keys() {
    let case = Case { heads: [1, 1], q_len: 3, kv_len: 16 << 10, head_dim: 64, v_dim: 64, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    // No key at all; some in the fifth split of sixteen; some in the first and in the last.
    let spans = [(5000, 5010), (3, 8), (16_000, 16_001)].map(|(start, end)| Span { start, end });
    let list = Intervals::new([1, 1, 3], &[0, 0, 1, 3], &spans).expect("spans");
    let inputs = operands.inputs().mask(Mask::NONE.intervals(list));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().expect("a pool");
    for level in levels() {
        let alone = run(&inputs, &Ask::all(level));
        let together = pool.install(|| {
            let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
            let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
            assert!(plan.explain(&inputs).expect("operands that fit").splits > 1, "{level}: side by side");
            run(&inputs, &Ask { threads: 4, ..Ask::all(level) })
        });
        assert_equal(&together, &alone, &format!("{level}, side by side"));
        assert!(together.out[..64].iter().all(|x| x.to_bits() == 0), "{level}: {:?}", &together.out[..64]);
        assert_eq!(together.lse[0], f32::NEG_INFINITY, "{level}");
    }
}

/// A bias of NaN removes nothing: it shows in the rows whose mask leaves the key.
#[test]
fn a_bias_of_nan_shows() {
    let bias = [0.0, f32::NAN, 0.0, 0.0];
    let bias = View::new(&bias, [1, 1, 2, 2]).expect("a bias");
    let inputs = plain(&[1.0, 1.0], &[1.0, 1.0], &[3.0, 5.0]).bias(bias);
    for level in levels() {
        let got = run(&inputs, &Ask::all(level));
        assert!(got.out[0].is_nan() && got.lse[0].is_nan(), "{level}: {:?}", got);
        assert_eq!(got.out[1], 4.0, "{level}: the other row");
        let causal = inputs.mask(Mask::causal());
        assert_eq!(run(&causal, &Ask::at(level)).out, [3.0, 4.0], "{level}: removed");
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

/// Rows of an operand that lie more than 2^31 elements apart.
#[test]
#[cfg(target_pointer_width = "64")]
fn rows_far_apart() {
    let far = 1 << 31;
    // Zeros: pages that nobody writes to take no memory.
    let mut allowed = vec![false; far + 3];
    (allowed[0], allowed[far + 2]) = (true, true);
    let allowed = View::with_strides(&allowed, [1, 1, 2, 3], [0, 0, far, 1]).expect("a mask");
    let inputs = plain(&[1.0, 2.0], &[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]).mask(Mask::NONE.allowed(allowed));
    for level in levels() {
        assert_eq!(run(&inputs, &Ask::at(level)).out, [4.0, 6.0], "{level}");
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
