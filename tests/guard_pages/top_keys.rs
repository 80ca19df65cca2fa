//! Lists of the most probable keys, and lists of the heads and rows that are asked for.

use super::PLACES;
use crate::common::cases::*;
use crate::common::guard::announce;
use lucid_attention::{
    Element, Level, Outputs, Plan, PlanOptions, Problem, ScoreStage, Scores, TopKey, TopKeys, ViewMut,
};

type Found = (Vec<(Option<usize>, u32)>, Vec<f32>);

/// The `k` most probable keys, and the probabilities, of some heads and rows. What lies between lists is not written.
fn call<T: Element>(case: &Case, k: usize, level: Level, place: Place) -> Found {
    let operands = case.operands::<T, T>(place);
    let inputs = operands.inputs();
    let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
    let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
    let heads = Memory::new(vec![3, 1], place);
    let rows = Memory::new((0..case.q_len).rev().step_by(2).collect::<Vec<_>>(), place);
    let shape = [1, 2, rows.len(), k];
    let strides = [2 * rows.len() * (k + 2) + 5, rows.len() * (k + 2) + 3, k + 2, 1];
    let mut top = Operand::new(shape, strides, place, TopKey::NONE, |_| TopKey::NONE);
    let mut scores = Memory::new(vec![CANARY; 2 * rows.len() * case.kv_len], place);
    let mut out = Memory::new(vec![T::from_f32(CANARY); 4 * case.q_len * case.v_dim], place);
    let fits = "sized to its shape";
    let top_view = ViewMut::with_strides(&mut top.data, shape, strides).expect(fits);
    let scores_view = ViewMut::new(&mut scores, [1, 2, rows.len(), case.kv_len]).expect(fits);
    let outputs = Outputs::new(ViewMut::new(&mut out, inputs.output_shape()).expect(fits))
        .scores(Scores::new(ScoreStage::Softmax, scores_view).heads(&heads).rows(&rows))
        .top_keys(TopKeys::new(top_view).heads(&heads).rows(&rows));
    plan.run(&inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");
    let found = top.gather().iter().map(|top| (top.key(), top.probability().to_bits())).collect();
    for_each_index(shape, |index| {
        let at: usize = (0..4).map(|axis| index[axis] * strides[axis]).sum();
        top.data[at] = TopKey::NONE;
    });
    assert!(top.data.iter().all(TopKey::is_none), "a list goes on where it should have ended");
    (found, scores.to_vec())
}

fn every_size<T: Element>() {
    for level in levels() {
        for kv_len in (0..=70).chain([255, 256, 257, 300]) {
            let case = Case { heads: [4, 2], q_len: 5, kv_len, head_dim: 7, v_dim: 3, ..Case::default() };
            let case = Case { rules: Rules::CAUSAL, ..case }.possible();
            for k in [1, 3, 16, 17] {
                let expected = call::<T>(&case, k, level, Place::Heap);
                for place in PLACES {
                    let _announced = announce(&(level, case, k, place));
                    let got = call::<T>(&case, k, level, place);
                    assert_eq!(got.0, expected.0, "{level}, {kv_len} keys, {k} of them: lists");
                    assert_same(&got.1, &expected.1, &format!("{level}, {kv_len} keys: probabilities"));
                }
            }
        }
    }
}

#[test]
fn every_number_of_keys() {
    every_size::<f32>();
    every_size::<half::bf16>();
}
