//! The whole check of a case, for tests and fuzzing: every level against the model bit for bit, the model against the
//! certified bound.

use super::cases::*;
use super::guard::announce;
use super::model::Model;
use crate::with_types;
use lucid_attention::certify::{self, Bound, Certificate};
use lucid_attention::{Element, Inputs, Level, ScoreStage, View};

/// Every stage of scores, in order.
pub const STAGES: [ScoreStage; 4] =
    [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Biased, ScoreStage::Softmax];

/// Takes turns.
pub fn turn<T: Copy>(list: &[T], index: usize) -> T {
    list[index % list.len()]
}

/// Holds every level against the model, and the model against the bound. Returns how it stands to the bound, without and
/// with fused multiply-add.
pub fn verify(case: Case) -> [Certificate; 2] {
    let case = case.possible();
    let _announced = announce(&case);
    with_types!(case.types, Q, T => verify_as::<Q, T>(&case))
}

fn verify_as<Q: Element, T: Element>(case: &Case) -> [Certificate; 2] {
    let at_end = case.operands::<Q, T>(Place::AtEnd);
    let at_start = case.operands::<Q, T>(Place::AtStart);
    let stage = turn(&STAGES, case.seed as usize);
    let mut checked = [Certificate::default(), Certificate::default()];
    // The answer with and without fused multiply-add.
    let mut answers: [Option<(Model, Vec<Q>)>; 2] = [None, None];
    for level in levels() {
        let fused = usize::from(level.is_fused());
        let (model, out) = answers[fused].get_or_insert_with(|| {
            let model = Model::new(&at_end.inputs(), level, Some(stage));
            let out: Vec<Q> = model.out.iter().map(|&x| Q::from_f32(x)).collect();
            checked[fused] = check_bound(&at_end.inputs(), &out, &model.lse, level);
            (model, out)
        });
        let ask = Ask { storage: case.storage, place: Place::AtEnd, ..Ask::all(level).scores(stage) };
        let got = run(&at_end.inputs(), &ask);
        assert_same(&got.out, out, &format!("{level}: out"));
        assert_same(&got.lse, &model.lse, &format!("{level}: lse"));
        assert_same(&got.row_max, &model.row_max, &format!("{level}: row_max"));
        assert_same(&got.scores, &model.scores, &format!("{level}: scores, {stage:?}"));
        let got = run(&at_start.inputs(), &Ask { place: Place::AtStart, ..Ask::at(level) });
        assert_same(&got.out, out, &format!("{level}: out with nothing else asked for"));
    }
    checked
}

fn check_bound<Q: Element, T: Element>(
    inputs: &Inputs<'_, Q, T>,
    out: &[Q],
    lse: &[f32],
    level: Level,
) -> Certificate {
    let view = View::new(out, inputs.output_shape()).expect("a contiguous output");
    let certificate =
        certify::check(inputs, &view, Some(lse), &Bound::exact(level)).expect("operands that fit");
    if let Err(violation) = certificate.verdict() {
        panic!("fused {}: {violation}", level.is_fused());
    }
    certificate
}
