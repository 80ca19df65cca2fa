//! Calls of which anything may be wrong: what they write, and that an error leaves it alone and says what is wrong.

use lucid_attention::AttentionError::{self, *};
use lucid_attention::{Inputs, Outputs, Plan, ScoreStage, Scores, ViewMut};
use std::fmt::Debug;

pub(crate) const MAX: usize = usize::MAX;

pub(crate) static NUMBERS: [f32; 256] = [0.5; 256];
pub(crate) static YES: [bool; 256] = [true; 256];

/// What a call writes, prefilled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) out: [usize; 4],
    pub(crate) out_strides: Option<[usize; 4]>,
    pub(crate) lse: Option<usize>,
    pub(crate) row_max: Option<usize>,
    pub(crate) scores: Option<([usize; 4], [usize; 4])>,
    pub(crate) heads: Option<&'a [usize]>,
    pub(crate) rows: Option<&'a [usize]>,
}

/// A signalling NaN: no computation leaves it behind.
pub(crate) const UNTOUCHED: f32 = f32::from_bits(0x7fa0_1234);

pub(crate) fn untouched(values: &[f32]) -> bool {
    values.iter().all(|x| x.to_bits() == UNTOUCHED.to_bits())
}

/// Everything that was written; `out` first.
pub(crate) type Written = [Vec<f32>; 4];

/// Runs a call; asserts that an error names what is wrong and leaves all outputs as they were.
pub(crate) fn run(
    plan: &Plan,
    inputs: &Inputs<'_, f32, f32>,
    ask: &Ask<'_>,
) -> Result<Written, AttentionError> {
    let filled = |size: usize| vec![UNTOUCHED; size.min(4096)];
    let mut written =
        [filled(4096), filled(ask.lse.unwrap_or(0)), filled(ask.row_max.unwrap_or(0)), filled(4096)];
    let result = plan.workspace().and_then(|mut workspace| {
        let outputs = ask.outputs(&mut written)?;
        plan.run(inputs, outputs, &mut workspace)
    });
    if let Err(error) = result {
        assert_names_its_fields(&error);
        assert!(written.iter().all(|values| untouched(values)), "written in spite of: {error}");
        return Err(error);
    }
    Ok(written)
}

impl Ask<'_> {
    fn outputs<'a>(&'a self, written: &'a mut Written) -> Result<Outputs<'a, f32>, AttentionError> {
        let [out, lse, row_max, scores] = written;
        let mut outputs = Outputs::new(match self.out_strides {
            Some(strides) => ViewMut::with_strides(out, self.out, strides)?,
            None => ViewMut::new(out, self.out)?,
        });
        if self.lse.is_some() {
            outputs = outputs.lse(lse);
        }
        if self.row_max.is_some() {
            outputs = outputs.row_max(row_max);
        }
        if let Some((shape, strides)) = self.scores {
            let all = Scores::new(ScoreStage::Biased, ViewMut::with_strides(scores, shape, strides)?);
            let some = self.heads.into_iter().fold(all, |scores, heads| scores.heads(heads));
            outputs = outputs.scores(self.rows.into_iter().fold(some, |scores, rows| scores.rows(rows)));
        }
        Ok(outputs)
    }
}

/// The message holds the operand, what was expected and what came.
#[track_caller]
pub(crate) fn assert_names_its_fields(error: &AttentionError) {
    let message = error.to_string();
    let named = |field: &dyn Debug| {
        let field = format!("{field:?}").replace('"', "");
        assert!(message.contains(&field), "\"{message}\" does not name {field}");
    };
    let fields: &[&dyn Debug] = match error {
        Shape { operand, axis, expected, got } => &[operand, axis, expected, got],
        TooLarge { operand, axis, limit, got } => &[operand, axis, limit, got],
        BufferTooShort { operand, expected, got } => &[operand, expected, got],
        Overlap { operand, shape, strides } => &[operand, shape, strides],
        Stride { operand, got } => &[operand, got],
        SizeOverflow { operand } => &[operand],
        Value { operand, expected, got } => &[operand, expected, got],
        QueryStartMissing { q_len, kv_len } => &[q_len, kv_len],
        Conflict { operand, other, reason } => &[operand, other, reason],
        Workspace { part, expected, got } => &[part, expected, got],
        UnknownLevel { name } => &[name],
        LevelUnavailable { level } | Bf16DotUnavailable { level } => &[level],
        Cancelled { complete, rows } => &[complete, rows],
        OutOfMemory { what, bytes } => &[what, bytes],
        other => panic!("a variant that this test does not know: {other:?}"),
    };
    fields.iter().for_each(|field| named(*field));
}
