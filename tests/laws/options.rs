//! Every option changes something, except at its limit.

use crate::common::cases::*;
use crate::for_normal_cases;
use lucid_attention::sparse::{BlockGrid, BlockLayout, BlockMask};
use lucid_attention::{Dropout, Inputs, Intervals, Mask, QueryStart, Ragged, Span, View};

/// I19: options at their limits are no options.
#[test]
fn options_at_their_limits() {
    for_normal_cases(|level, case, operands| {
        let start = QueryStart::At(case.kv_len as i64 / 2);
        let inputs = operands.inputs().q_start(start);
        let all = |inputs: &Inputs<'_, f32, f32>| run(inputs, &Ask::all(level));
        let agree = |inputs: &Inputs<'_, f32, f32>, expected: &Results<f32>, what: &str| {
            assert_equal(&all(inputs), expected, &format!("{level}, {what}"));
        };
        let far = case.kv_len + case.q_len;
        let none = all(&inputs);
        let causal = all(&inputs.mask(Mask::causal()));
        agree(&inputs.mask(Mask::causal().window(Some(far), None)), &causal, "a wide window");
        agree(&inputs.mask(Mask::NONE.last_n_keys(far)), &causal, "the last of all keys");
        agree(&inputs.mask(Mask::NONE.window(Some(far), Some(far))), &none, "a window on both sides");
        agree(&inputs.mask(Mask::prefix_lm(&[0])), &causal, "no prefix");
        agree(&inputs.mask(Mask::prefix_lm(&[case.kv_len])), &none, "a prefix of everything");
        agree(&inputs.mask(Mask::NONE.kv_lens(&[case.kv_len])), &none, "full lengths");
        agree(&inputs.mask(Mask::NONE.documents(&[0, 2 * far])), &none, "one document");
        let yes = [true];
        let dense = View::new(&yes, [1; 4]).expect("a mask");
        agree(&inputs.mask(Mask::NONE.allowed(dense)), &none, "everything allowed");
        let everything = BlockLayout::from_blocks(BlockGrid::square(2 * far, 16), |_, _| true);
        let everything = BlockMask::from(everything.expect("a layout"));
        agree(&inputs.mask(Mask::NONE.blocks(&everything)), &none, "every block");
        let zero = [0.0f32];
        agree(&inputs.bias(View::new(&zero, [1; 4]).expect("a bias")), &none, "a bias of 0");
        agree(&inputs.alibi(&[0.0; 4]), &none, "slopes of 0");
        agree(&inputs.sinks(&[f32::NEG_INFINITY; 4]), &none, "sinks of -inf");
        agree(&inputs.dropout(Dropout { rate: 0.0, seed: 1 }), &none, "a dropout of 0");
        agree(&inputs.scale(1.0 / (case.head_dim as f32).sqrt()), &none, "the default scale");
        let (q_bounds, kv_bounds) = ([0, case.q_len], [0, case.kv_len]);
        let ragged = Ragged { q_bounds: &q_bounds, kv_bounds: &kv_bounds };
        agree(&inputs.ragged(ragged), &none, "one sequence");
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
    let diagonal = BlockLayout::from_blocks(BlockGrid::square(8, 2), |row, column| row == column);
    let blocks = BlockMask::from(diagonal.expect("a layout"));
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
        ("blocks", base, base.mask(Mask::NONE.blocks(&blocks))),
        ("allowed", base, base.mask(Mask::NONE.allowed(dense))),
        ("bias", base, base.bias(View::new(&number, shape).expect("a bias"))),
        ("bias in f16", base, base.bias(View::new(&half, shape).expect("a bias"))),
        ("bias in bf16", base, base.bias(View::new(&brain, shape).expect("a bias"))),
        ("alibi", base, base.alibi(&[0.5, 0.25])),
        ("slopes of heads", base.alibi(&[0.5, 0.5]), base.alibi(&[0.5, 0.25])),
        ("q_start of alibi", base.alibi(&[0.5; 2]), base.alibi(&[0.5; 2]).q_start(QueryStart::At(4))),
        ("sinks", base, base.sinks(&[0.0, 0.0])),
        ("dropout", base, base.dropout(Dropout { rate: 0.5, seed: 1 })),
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

/// Of two windows the narrower side counts, whichever comes first.
#[test]
fn windows_compose() {
    let case = Case { q_len: 30, kv_len: 30, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let both = Mask::NONE.window(Some(2), Some(5)).window(Some(7), Some(3));
    let reversed = Mask::NONE.window(Some(7), Some(3)).window(Some(2), Some(5));
    let open = Mask::NONE.window(Some(2), None).window(None, Some(3)).window(None, None);
    for level in levels() {
        let of = |mask| run(&inputs.mask(mask), &Ask::all(level));
        let expected = of(Mask::NONE.window(Some(2), Some(3)));
        for (what, mask) in [("in order", both), ("reversed", reversed), ("open sides", open)] {
            assert_equal(&of(mask), &expected, &format!("{level}, {what}"));
        }
    }
}
