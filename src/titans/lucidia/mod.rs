//! The variants MAC, MAG and MAL of Lucidia's orchestrator: focus modes, hints, outputs and metrics as there.
//!
//! | variant | when | attends | gives |
//! |---|---|---|---|
//! | [`Mac`] | after the memory answered `y` | q over keys and ys | `y_final = ρ y + (1 - ρ) ŷ` |
//! | [`Mag`] | before the memory's update | q over keys and keys | gates α, θ, η of the update, by [`Gates`] |
//! | [`Mal`] | before the memory's update | q over keys and values | the update's value, `v' = (1 - b) v + b ṽ`; its key stays |
//!
//! What each focus sets, unless a hint says otherwise; `n` is the length of the history, `T` the temperature, `i` a step's
//! place among the `m` that are attended to, 0 the oldest:
//!
//! | focus | MAC: `T` | added to logits | steps | `ρ` | MAG: steps | `T` | `s_α, s_θ, s_η` | MAL: steps | `T` | `b` |
//! |---|---|---|---|---|---|---|---|---|---|---|
//! | default | 1 | | newest 20 | 0 | 20 | 1 | 1, 1, 1 | 15 | 1 | 0.5 |
//! | recency | 0.8 | `0.7 i/m` | newest max(10, n/2) | 0.2 | 15 | 0.7 | 1.2, 1.3, 0.9 | 10 | 0.7 | 0.6 |
//! | relevance | 1.2 | divided by their deviation, if variance > 1 | | 0 | 25 | 1.2 | 0.8, 1.1, 0.95 | 20 | 1.2 | 0.3 |
//! | emotional | 1.5 | `0.4 (1 - i/m)` | | 0 | 25 | 1.3 | 0.6, 1.4, 0.8 | 25 | 1.5 | 0.2 |
//! | broad | 2 | `0.6 (1 - i/m)` | | 0 | all | 1.5 | 0.7, 0.9, 1 | all | 1.8 | 0.1 |
//! | balance | 1 | `0.3 i/m` | newest max(15, n/1.5) | 0.3 | 20 | 1 | 1, 1, 0.9 | 15 | 1 | 0.5 |
//!
//! MAC never sees more than the newest [`MacOptions::max_history`] steps. A limit that a hint sets under relevance,
//! emotional or broad takes every `⌊n / limit⌋`-th step, the newest among them, `limit` in all; otherwise limits keep the newest. In MAC the bias is
//! added to what is already divided by `T`: its strength does not depend on the temperature.
//!
//! # What is different, and why
//!
//! The original has faults that its tests, made of mocks, do not see. By number:
//!
//! 1. Its MAC calls the history with an argument that is not there and reads two lists as pairs, so it never changes `y`.
//!    Here the compiler sees to both.
//! 2. Its MAC never makes its attention, and takes the layer's output for scores. Here a variant is made of its attention,
//!    and the values that it sums are the ys.
//! 3. Its engine looks for an output of another name and reports a success of its own invention. Here the metrics say what was done.
//! 4. Its MAG waits for a field of the reply that no server sends, so gates are never set. Here [`Gates`] gives three
//!    numbers or an error.
//! 5. Configuration is passed by names that nobody reads. Here fields are typed, and unknown ones are an error.
//! 6. Vectors of other sizes are padded and cut silently, or fail at each call. Here sizes are checked once, when a variant
//!    is made ([`InputPolicies`](crate::module::InputPolicies) may allow more, and the metrics say so).
//! 7. A step is stored before it attends, so it attends to itself, and MAC's is stored twice. Here
//!    [`CurrentStep`] makes both impossible.
//! 8. Its comments call `b` the original's share, where it is the attended one's, as here; a limit is a fraction, which fails
//!    (here it is rounded down); MAG and MAL divide the query by `T`, which is another thing where projections have biases
//!    (here the logits, or the query by [`TemperatureOn::Query`]).
//! 9. Attention, gates and the projection after MAL are random, never trained or saved. Here all are the caller's, read and
//!    saved by name; without a projection there is none. `θ'` may exceed 1 there; here it is clamped as `α'` and `η'` are,
//!    unless [`MagOptions::clamp_theta`] says no.
//! 10. Updates once came before the variants that shape them, and a training step zeroes the memory. What a memory does is
//!     not part of this crate; the order is that of the table above.
//!
//! A limit of 0 means all steps there, and a subsample may leave out the newest: neither is so here.

mod gates;
mod hints;
mod mac;
mod mag;
mod mal;

pub use gates::{DenseGates, GateValues, Gates};
pub use hints::{Focus, GateModifiers, Hints, MacHints, MacMode, MagHints, MalHints, TemperatureOn};
pub use mac::{Mac, MacMetrics, MacOptions};
pub use mag::{Mag, MagMetrics, MagOptions};
pub use mal::{Blend, Mal, MalMetrics, MalOptions};

use super::attention::{Ask, Rows};
use super::{CurrentStep, StepDims};
use crate::error::{AttentionError, check_size};
use crate::module::workspace::{Buffer, reserve};

/// Steps of a history that are attended to.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    first: usize,
    step: usize,
    count: usize,
}

impl Chosen {
    /// The newest of `n`.
    fn newest(n: usize, limit: usize) -> Self {
        let count = n.min(limit);
        Self { first: n - count, step: 1, count }
    }

    /// Evenly spread over `n`, the newest among them.
    fn spread(n: usize, limit: usize) -> Self {
        if n <= limit {
            return Self::newest(n, n);
        }
        let step = n / limit;
        Self { first: n - 1 - (limit - 1) * step, step, count: limit }
    }

    fn rows<'a>(&self, matrix: &'a [f32], dim: usize) -> Rows<'a> {
        Rows { data: &matrix[self.first * dim..], dim, step: self.step, count: self.count }
    }
}

/// Checks that a step has the sizes that a variant was made for.
fn check_dims(expected: StepDims, step: &CurrentStep<'_>) -> Result<(), AttentionError> {
    let got = step.dims();
    check_size("key", "dim", expected.key, got.key)?;
    check_size("value", "dim", expected.value, got.value)?;
    check_size("query", "dim", expected.query, got.query)?;
    check_size("y", "dim", expected.y, got.y)
}

/// A call with a temperature, which divides the logits or, as in the original, the query.
fn with_temperature<'a>(
    ask: Ask<'a>,
    (temperature, on): (f32, TemperatureOn),
    scratch: &'a mut Buffer,
) -> Result<Ask<'a>, AttentionError> {
    match on {
        TemperatureOn::Logits => Ok(Ask { logit_scale: 1.0 / temperature, ..ask }),
        TemperatureOn::Query => {
            let query = reserve(scratch, ask.query.len())?;
            query.iter_mut().zip(ask.query).for_each(|(scaled, &q)| *scaled = q / temperature);
            if query.iter().any(|scaled| !scaled.is_finite()) {
                let (operand, expected) =
                    ("temperature", "one that leaves the query finite when it is divided");
                return Err(AttentionError::Value { operand, expected, got: temperature.to_string() });
            }
            Ok(Ask { query, logit_scale: 1.0, ..ask })
        }
    }
}
