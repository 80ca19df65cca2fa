//! The most probable keys of rows, against the probabilities that the call returns.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::with_types;
use lucid_attention::{
    AttentionError, Element, Inputs, Outputs, Plan, PlanOptions, Problem, ScoreStage, Scores, TopKey,
    TopKeys, View, ViewMut, reference,
};

/// The `k` largest of a row's probabilities, by their definition.
fn define(row: &reference::Row<'_>, p: &[f32], k: usize) -> Vec<(Option<usize>, f32)> {
    let attended =
        row.scores.iter().zip(p).enumerate().filter(|(_, (score, p))| score.attended && !p.is_nan());
    let mut top: Vec<_> = attended.map(|(key, (_, &p))| (Some(key), p)).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    top.resize(k.max(top.len()), (None, 0.0));
    top.truncate(k);
    top
}

fn check<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>, k: usize) {
    let shape @ [batch, q_heads, q_len, _] = inputs.output_shape();
    let kv_len = inputs.k().shape()[2];
    // Every other head and row, backwards.
    let heads: Vec<usize> = (0..q_heads).rev().step_by(2).collect();
    let rows: Vec<usize> = (0..q_len).rev().step_by(2).collect();
    let chosen = batch * heads.len() * rows.len();
    for (level, bf16_dot) in tiers() {
        let options = PlanOptions { level: Some(level), bf16_dot, ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(inputs), &options).expect("a plan");
        let (mut out, mut alone) = (vec![Q::default(); shape.iter().product()], Vec::new());
        let mut probabilities = vec![f32::NAN; batch * q_heads * q_len * kv_len];
        let mut top = vec![TopKey::NONE; chosen * k];
        let scores_shape = [batch, q_heads, q_len, kv_len];
        let scores = ViewMut::new(&mut probabilities, scores_shape).expect("sized to its shape");
        let top_view =
            ViewMut::new(&mut top, [batch, heads.len(), rows.len(), k]).expect("sized to its shape");
        let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("sized to its shape"))
            .scores(Scores::new(ScoreStage::Softmax, scores))
            .top_keys(TopKeys::new(top_view).heads(&heads).rows(&rows));
        plan.run(inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");
        alone.resize(out.len(), Q::default());
        let outputs = Outputs::new(ViewMut::new(&mut alone, shape).expect("sized to its shape"));
        plan.run(inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");
        assert_same(&out, &alone, "the output with and without top keys");

        reference::for_each_row(inputs, |row| {
            let [b, h, i] = row.index;
            let at = (b * q_heads + h) * q_len + i;
            let place = |list: &[usize], of| list.iter().position(|&index| index == of);
            let (Some(head), Some(query)) = (place(&heads, h), place(&rows, i)) else { return };
            let p = &probabilities[at * kv_len..][..row.scores.len()];
            let got = &top[((b * heads.len() + head) * rows.len() + query) * k..][..k];
            let expected = define(row, p, k);
            let got: Vec<_> = got.iter().map(|top| (top.key(), top.probability())).collect();
            assert_eq!(got, expected, "{level}, bf16 dot {bf16_dot}, row {:?}", row.index);
        })
        .expect("operands that fit");
    }
}

/// Drawn at random, a little of everything: masks, ties, empty rows, rows that are NaN.
#[test]
fn random() {
    for seed in 0..120 {
        let case = Case::random(seed + 99_000).possible();
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::AtEnd);
            check(&operands.inputs(), [1, 3, 16, 300][seed as usize % 4]);
        });
    }
}

/// More keys than a tile, and than a split.
#[test]
fn long_rows() {
    for values in [Values::Spread(3.0), Values::Equal, Values::Increasing] {
        for rules in [Rules::NONE, Rules { allowed: Some(0.01), ..Rules::NONE }] {
            let case = Case { values, rules, q_len: 7, kv_len: 2100, heads: [2, 1], ..Case::default() };
            let operands = case.possible().operands::<f32, f32>(Place::Heap);
            check(&operands.inputs(), 20);
        }
    }
}

#[test]
fn errors() {
    let numbers = vec![0.5f32; 48];
    let view = View::new(&numbers, [1, 2, 3, 8]).expect("sized to its shape");
    let inputs = Inputs::new(view, view, view);
    let plan = Plan::new(&Problem::of(&inputs)).expect("a plan");
    let run = |shape: [usize; 4], heads: &[usize]| {
        let mut out = vec![f32::NAN; 48];
        let mut top = vec![TopKey::NONE; shape.iter().product()];
        let top_keys = TopKeys::new(ViewMut::new(&mut top, shape).expect("sized to its shape")).heads(heads);
        let outputs = Outputs::new(ViewMut::new(&mut out, [1, 2, 3, 8]).expect("sized to its shape"))
            .top_keys(top_keys);
        let result = plan.run(&inputs, outputs, &mut plan.workspace().expect("memory"));
        assert_eq!(result.is_err(), out[0].is_nan(), "an error writes nothing");
        result
    };
    assert_eq!(run([1, 2, 3, 4], &[0, 1]), Ok(()));
    assert_eq!(run([1, 1, 3, 0], &[1]), Ok(()));
    let (operand, expected) = ("top_keys.heads", "indices below the number there are");
    let got = "2 of 2".to_owned();
    assert_eq!(run([1, 2, 3, 4], &[0, 2]), Err(AttentionError::Value { operand, expected, got }));
    let (operand, axis, expected, got) = ("top_keys", "heads", 1, 2);
    assert_eq!(run([1, 2, 3, 4], &[0]), Err(AttentionError::Shape { operand, axis, expected, got }));
}
