//! Calls that contradict themselves or their plan.

use super::*;

/// Operands against the plan and one another.
#[test]
fn operands() {
    let strided = |shape| View::with_strides(&NUMBERS, shape, [1, 1, 1, 2]).unwrap();
    let (q, k, v) = (view(Q), view(K), view(V));
    let table = [
        (Inputs::new(view([2, 3, 3, 8]), k, v), shape("q", "q_heads", 4, 3)),
        (Inputs::new(view([2, 4, 3, 7]), k, v), shape("q", "head_dim", 8, 7)),
        (Inputs::new(q, view([1, 2, 5, 8]), v), shape("k", "batch", 2, 1)),
        (Inputs::new(q, view([2, 4, 5, 4]), v), shape("k", "kv_heads", 2, 4)),
        (Inputs::new(q, view([2, 2, 5, 7]), v), shape("k", "head_dim", 8, 7)),
        (Inputs::new(q, k, view([3, 2, 5, 6])), shape("v", "batch", 2, 3)),
        (Inputs::new(q, k, view([2, 1, 5, 6])), shape("v", "kv_heads", 2, 1)),
        (Inputs::new(q, k, view([2, 2, 4, 6])), shape("v", "kv_len", 5, 4)),
        (Inputs::new(q, k, view([2, 2, 5, 8])), shape("v", "v_dim", 6, 8)),
        (Inputs::new(strided(Q), k, v), Stride { operand: "q", got: 2 }),
        (Inputs::new(q, strided(K), v), Stride { operand: "k", got: 2 }),
        (Inputs::new(q, k, strided(V)), Stride { operand: "v", got: 2 }),
        (
            Inputs::new(repeat([2, 4, MAX, 8]), k, v),
            TooLarge { operand: "q", axis: "q_len", limit: 3, got: MAX },
        ),
        (
            Inputs::new(q, repeat([2, 2, 6, 8]), repeat([2, 2, 6, 6])),
            TooLarge { operand: "k", axis: "kv_len", limit: 5, got: 6 },
        ),
    ];
    assert_refused(&table);
}

/// Asserts that the plan for [`inputs`] refuses each.
#[track_caller]
fn assert_refused(table: &[(Inputs<'_, f32, f32>, AttentionError)]) {
    for (inputs, expected) in table {
        assert_error(run(&plan(), inputs, &ALL), expected);
        assert_error(plan().explain(inputs), expected);
        assert!(
            attention(inputs).is_err() || matches!(expected, Shape { .. } | TooLarge { .. }),
            "{expected}"
        );
    }
}

/// Masks, positions and what else shapes scores.
#[test]
fn options() {
    let with = |mask: Mask<'static>| inputs().mask(mask).q_start(QueryStart::TopLeft);
    let intervals = Intervals::new([1, 4, 2], &[0; 9], &[]).unwrap();
    let start = |starts| inputs().q_start(QueryStart::PerSequence(starts));
    let missing = QueryStartMissing { q_len: 3, kv_len: 5 };
    let long = TooLarge { operand: "kv_lens", axis: "kv_len", limit: 5, got: MAX };
    let ascending = "ascending boundaries";
    let table = [
        (with(Mask::NONE.kv_lens(&[5])), shape("kv_lens", "entries", 2, 1)),
        (with(Mask::NONE.kv_lens(&[5, MAX])), long),
        (with(Mask::prefix_lm(&[])), shape("prefix", "entries", 2, 0)),
        (with(Mask::NONE.documents(&[0, 3, 2])), value("mask.documents", ascending, "[0, 3, 2]")),
        (with(Mask::NONE.last_n_keys(0)), value("mask.last_n_keys", "at least 1 key", "0")),
        (with(Mask::NONE.intervals(intervals)), shape("mask.intervals", "q_len", 3, 2)),
        (
            with(Mask::NONE.allowed(View::new(&YES, [1, 1, 3, 4]).unwrap())),
            shape("mask.allowed", "kv_len", 5, 4),
        ),
        (start(&[0; 3]), shape("q_start", "entries", 2, 3)),
        (inputs().mask(Mask::causal()), missing.clone()),
        (inputs().mask(Mask::NONE.window(Some(MAX), None)), missing.clone()),
        (inputs().mask(Mask::NONE.documents(&[])), missing.clone()),
        (inputs().alibi(&[0.5; 4]), missing),
        (inputs().alibi(&[0.5; 3]).q_start(QueryStart::At(0)), shape("alibi", "q_heads", 4, 3)),
        (inputs().sinks(&[0.5; 5]), shape("sinks", "q_heads", 4, 5)),
        (inputs().bias(view([2, 3, 1, 1])), shape("bias", "q_heads", 4, 3)),
    ];
    assert_refused(&table);
}

#[test]
fn ragged_batches() {
    let one = Inputs::new(view([1, 4, 3, 8]), view([1, 2, 5, 8]), view([1, 2, 5, 6]));
    let ragged = |q_bounds, kv_bounds| one.ragged(Ragged { q_bounds, kv_bounds });
    let counts = "cumulative counts that ascend from 0 to the operand's tokens";
    let panels = KeyPanels::from_rows(view([1, 2, 5, 8]), 5).unwrap();
    let in_panels = Inputs::new(view([1, 4, 3, 8]), &panels, view([1, 2, 5, 6]));
    let table = [
        (
            inputs().ragged(Ragged { q_bounds: &[0, 3], kv_bounds: &[0, 5] }),
            shape("ragged batch", "batch", 1, 2),
        ),
        (ragged(&[], &[0, 5]), value("q_bounds", counts, "[] for 3 tokens")),
        (ragged(&[0, MAX, 3], &[0, 5, 5]), value("q_bounds", counts, format!("[0, {MAX}, 3] for 3 tokens"))),
        (ragged(&[1, 3], &[0, 5]), value("q_bounds", counts, "[1, 3] for 3 tokens")),
        (ragged(&[0, 3], &[0, 4]), value("kv_bounds", counts, "[0, 4] for 5 tokens")),
        (ragged(&[0, 3], &[0, 2, 5]), shape("kv_bounds", "entries", 2, 3)),
        (
            ragged(&[0, 1, 3], &[0, 2, 5]).mask(Mask::NONE.kv_lens(&[2, 4])),
            TooLarge { operand: "kv_lens", axis: "kv_len", limit: 3, got: 4 },
        ),
        (ragged(&[0, 3], &[0, 5]).mask(Mask::causal()), QueryStartMissing { q_len: 3, kv_len: 5 }),
        (
            in_panels.ragged(Ragged { q_bounds: &[0, 3], kv_bounds: &[0, 5] }),
            Conflict {
                operand: "ragged batch",
                other: "KeyPanels",
                reason: "panels count keys from the start of the cache; hold one KeyPanels per sequence",
            },
        ),
    ];
    assert_refused(&table);
}

/// NaN, infinities and zeros for numbers that must not be.
#[test]
fn scales_and_caps() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let expected = value("scale", "a number from -2.3e38 to 2.3e38", scale.to_string());
        assert_refused(&[(inputs().scale(scale), expected)]);
    }
    for cap in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, 1e-31, 1e31] {
        let expected = value("softcap", "a number from 1e-30 to 1e30", cap.to_string());
        assert_refused(&[(inputs().softcap(cap), expected)]);
    }
    for legal in [inputs().scale(0.0), inputs().scale(-2e38), inputs().softcap(1e-30), inputs().softcap(1e30)]
    {
        run(&plan(), &legal, &ALL).unwrap();
    }
}

#[test]
fn outputs() {
    let scores = |shape| Ask { scores: Some((shape, [60, 15, 5, 1])), ..ALL };
    let below = "indices below the number there are";
    let table = [
        (Ask { out: Q, ..ALL }, shape("out", "dim", 6, 8)),
        (Ask { out: [1, 4, 3, 6], ..ALL }, shape("out", "batch", 2, 1)),
        (Ask { out: [2, 2, 3, 6], ..ALL }, shape("out", "heads", 4, 2)),
        (Ask { out: [2, 4, 4, 6], ..ALL }, shape("out", "tokens", 3, 4)),
        (Ask { out_strides: Some([144, 36, 12, 2]), ..ALL }, Stride { operand: "out", got: 2 }),
        (Ask { lse: Some(0), ..ALL }, shape("lse", "elements", 24, 0)),
        (Ask { row_max: Some(25), ..ALL }, shape("row_max", "elements", 24, 25)),
        (scores([2, 4, 3, 4]), shape("scores", "dim", 5, 4)),
        (scores([2, 1, 3, 5]), shape("scores", "heads", 4, 1)),
        (Ask { heads: Some(&[1, 1, 0]), ..scores([2, 4, 3, 5]) }, shape("scores", "heads", 3, 4)),
        (Ask { heads: Some(&[3, 4]), ..scores([2, 2, 3, 5]) }, value("scores.heads", below, "4 of 4")),
        (
            Ask { rows: Some(&[MAX]), ..scores([2, 4, 1, 5]) },
            value("scores.rows", below, format!("{MAX} of 3")),
        ),
        (Ask { scores: Some(([2, 4, 3, 5], [120, 30, 10, 2])), ..ALL }, Stride { operand: "scores", got: 2 }),
    ];
    for (ask, expected) in &table {
        assert_error(run(&plan(), &inputs(), ask), expected);
    }
    let unsorted = Ask { heads: Some(&[3, 0, 3]), rows: Some(&[2, 2, 0]), ..scores([2, 3, 3, 5]) };
    run(&plan(), &inputs(), &unsorted).unwrap();
}

#[test]
fn the_reference_refuses_too() {
    let (q, k, v) = (view(Q), view(K), view(V));
    let ragged = Ragged { q_bounds: &[0, 2], kv_bounds: &[0, 5] };
    let refused = [
        Inputs::new(view([2, 4, 3, 7]), k, v),
        Inputs::new(q, view([2, 3, 5, 8]), v),
        Inputs::new(q, k, view([2, 2, 4, 6])),
        Inputs::new(repeat([2, 4, MAX, 8]), k, v).q_start(QueryStart::BottomRight),
        inputs().mask(Mask::causal()),
        inputs().mask(Mask::NONE.kv_lens(&[5, 6])),
        inputs().mask(Mask::prefix_lm(&[1; 3])).q_start(QueryStart::At(0)),
        inputs().q_start(QueryStart::PerSequence(&[])),
        inputs().alibi(&[]).q_start(QueryStart::At(0)),
        inputs().sinks(&[0.0]),
        inputs().bias(view([2, 4, 3, 4])),
        inputs().ragged(ragged),
        Inputs::new(view([1, 4, 3, 8]), view([1, 2, 5, 8]), view([1, 2, 5, 6])).ragged(ragged),
    ];
    for inputs in &refused {
        assert_names_its_fields(&reference::attention(inputs).unwrap_err());
        assert_names_its_fields(&reference::scores(inputs, ScoreStage::Raw).unwrap_err());
    }
}
