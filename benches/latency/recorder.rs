//! Times of single calls, and their percentiles.

use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The most calls of a run.
const MOST: usize = 1 << 22;

/// Runs calls for a while and keeps the time of each.
pub(crate) struct Recorder {
    time: Duration,
    /// Nanoseconds. Written to its full length once, so that a run meets no fresh page.
    samples: Vec<u64>,
}

impl Recorder {
    pub(crate) fn new(time: Duration) -> Self {
        Self { time, samples: vec![1; MOST] }
    }

    /// Times `call` again and again, after a tenth of the time for warming up; sleeps before each if there is a `pause`.
    pub(crate) fn record(&mut self, pause: Option<Duration>, mut call: impl FnMut()) -> Summary {
        self.run(self.time / 10, pause, &mut call);
        self.run(self.time, pause, &mut call);
        self.samples.sort_unstable();
        Summary::of(&self.samples)
    }

    fn run(&mut self, time: Duration, pause: Option<Duration>, call: &mut impl FnMut()) {
        self.samples.clear();
        let start = Instant::now();
        loop {
            if let Some(pause) = pause {
                std::thread::sleep(pause);
            }
            let before = Instant::now();
            call();
            let after = Instant::now();
            self.samples.push((after - before).as_nanos() as u64);
            if after - start >= time || self.samples.len() == MOST {
                break;
            }
        }
    }
}

/// What is told of a run; microseconds.
pub(crate) struct Summary {
    samples: usize,
    p50: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Summary {
    /// Of at least one sample, in nanoseconds, ascending. A percentile is the smallest sample that so many do not exceed.
    fn of(sorted: &[u64]) -> Self {
        let count = sorted.len();
        let at = |permille: usize| sorted[(count * permille).div_ceil(1000) - 1] as f64 / 1e3;
        Self { samples: count, p50: at(500), p99: at(990), p99_9: at(999), max: at(1000) }
    }

    pub(crate) fn line(&self, id: &str) -> String {
        let Self { samples, p50, p99, p99_9, max } = self;
        format!("{id:<62} {samples:>8} {p50:>10.2} {p99:>10.2} {p99_9:>10.2} {max:>10.2}")
    }

    pub(crate) fn json(&self, id: &str) -> Value {
        let Self { samples, p50, p99, p99_9, max } = self;
        json!({ "id": id, "samples": samples, "p50_us": p50, "p99_us": p99, "p99_9_us": p99_9, "max_us": max })
    }
}
