//! Calls as the targets make them, and what they ask of those that are refused.

use crate::Tally;
use crate::common::cases::CANARY;
use lucid_attention::{AttentionError, Inputs, Level, Outputs, Plan, PlanOptions, Problem, ViewMut};

/// Output and LSE; an error leaves both as they were.
pub(crate) fn call(
    inputs: &Inputs<'_, f32, f32>,
    level: Level,
    threads: usize,
) -> Result<(Vec<f32>, Vec<f32>), AttentionError> {
    let options = PlanOptions {
        level: Some(level),
        max_threads: Some(threads),
        // Nothing here is large enough by itself.
        spread_from_microseconds: (threads > 1).then_some(0),
        ..PlanOptions::default()
    };
    let plan = Plan::with_options(&Problem::of(inputs), &options)?;
    let shape = inputs.output_shape();
    let mut out = vec![CANARY; shape.iter().product()];
    let mut lse = vec![CANARY; shape[..3].iter().product()];
    let outputs = Outputs::new(ViewMut::new(&mut out, shape)?).lse(&mut lse);
    let result = plan.run(inputs, outputs, &mut plan.workspace()?);
    let untouched = |values: &[f32]| values.iter().all(|x| x.to_bits() == CANARY.to_bits());
    assert!(result.is_ok() || untouched(&out) && untouched(&lse), "written in spite of {result:?}");
    result.map(|()| (out, lse))
}

/// Asserts that an error names one of the operands that are wrong.
#[track_caller]
pub(crate) fn refused(error: &AttentionError, wrong: &[&str], tally: &mut Tally) {
    let message = error.to_string();
    let named = wrong.iter().any(|operand| message.starts_with(&format!("{operand}: ")));
    assert!(named, "\"{message}\" names none of {wrong:?}, which are wrong");
    tally.refused += 1;
}
