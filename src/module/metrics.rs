//! Metrics of a module: running totals of its calls, which may run side by side, and the room that a call needs.

use crate::error::AttentionError;
use crate::metrics::{Metrics, MetricsOptions};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// [`Metrics`] of all calls, without rows.
#[derive(Debug)]
pub(crate) struct RunningMetrics {
    options: MetricsOptions,
    totals: Mutex<Metrics>,
}

impl RunningMetrics {
    pub(crate) fn new(options: MetricsOptions, q_heads: usize) -> Result<Self, AttentionError> {
        Ok(Self { options, totals: Mutex::new(Metrics::new(options, q_heads, 0)?) })
    }

    pub(crate) fn options(&self) -> &MetricsOptions {
        &self.options
    }

    /// A copy of the totals.
    pub(crate) fn get(&self) -> Metrics {
        self.lock().clone()
    }

    pub(crate) fn reset(&self) {
        self.lock().reset();
    }

    /// Adds the rows of a call.
    pub(crate) fn add(&self, call: &Metrics, q_len: usize) {
        self.lock().add_rows(call.rows(), q_len);
    }

    /// Held for additions only: nobody waits for a call's work.
    fn lock(&self) -> MutexGuard<'_, Metrics> {
        // Additions do not panic; if one did, what it added is still numbers.
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a call's metrics go, if the module or the caller wants them: `given`, or else `place`, with room for `rows`.
pub(crate) fn target<'m>(
    running: Option<&RunningMetrics>,
    given: Option<&'m mut Metrics>,
    place: &'m mut Option<Metrics>,
    [q_heads, rows]: [usize; 2],
) -> Result<Option<&'m mut Metrics>, AttentionError> {
    let Some(RunningMetrics { options, .. }) = running else { return Ok(given) };
    if let Some(given) = given {
        if given.options() == options {
            return Ok(Some(given));
        }
        return Err(AttentionError::Conflict {
            operand: "metrics",
            other: "the module's of other options",
            reason: "a call is measured once, for both",
        });
    }
    let metrics = match place.take() {
        Some(metrics) if metrics.options() == options && metrics.heads().len() == q_heads => metrics,
        _ => Metrics::new(*options, q_heads, 0)?,
    };
    let metrics = place.insert(metrics);
    metrics.reserve(rows)?;
    Ok(Some(metrics))
}
