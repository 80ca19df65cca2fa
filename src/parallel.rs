//! The only place that knows about threads: numbered tasks, worked off by a few workers.
//!
//! ```text
//! tasks      0 1 2 3 4 5 | 6 7 8 9 10 11      one range per worker, neighbours stay together (they share keys)
//! worker 0   -------->                  then helps out elsewhere
//! worker 1                 -------->
//! ```
//!
//! Workers are `rayon::join` branches on the pool of the caller. Each takes its own range's tasks in order, then those
//! that are left in the others'. Nothing is spawned, allocated or locked, and results do not depend on who took which
//! task. Each worker owns a part of the caller's scratch. Without the `rayon` feature there is one worker.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Ranges that tasks are dealt into, at most: more workers than this share.
const MAX_RANGES: usize = 64;

/// How many workers can run at once from here, at most `limit`.
///
/// To ask outside any pool starts rayon's global one, so for a limit of 1 nobody asks.
pub(crate) fn workers(limit: usize) -> usize {
    #[cfg(feature = "rayon")]
    let threads = if limit > 1 { rayon::current_num_threads() } else { 1 };
    #[cfg(not(feature = "rayon"))]
    let threads = 1;
    threads.min(limit).max(1)
}

/// How many workers to expect, found without starting a thread: outside any pool as many as there are processors, which
/// is the size that rayon's global pool has unless told otherwise.
pub(crate) fn expected_workers() -> usize {
    #[cfg(feature = "rayon")]
    if rayon::current_thread_index().is_none() {
        // Asking the system reads files.
        static PROCESSORS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        return *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, Into::into));
    }
    workers(usize::MAX)
}

/// Calls `work(task, scratch)` once for each task in `0..tasks`, on as many workers as there are `scratches`.
pub(crate) fn for_each_task<S: Send>(
    tasks: usize,
    scratches: &mut [S],
    work: &(impl Fn(usize, &mut S) + Sync),
) {
    if let [only] = scratches {
        (0..tasks).for_each(|task| work(task, only));
        return;
    }
    let ranges = scratches.len().clamp(1, MAX_RANGES);
    let bound = |range: usize| (tasks as u128 * range as u128 / ranges as u128) as usize;
    let next: [AtomicUsize; MAX_RANGES] =
        std::array::from_fn(|range| AtomicUsize::new(bound(range.min(ranges))));
    fan_out(0, scratches, &|worker, scratch| {
        for range in (0..ranges).map(|offset| (worker + offset) % ranges) {
            loop {
                let task = next[range].fetch_add(1, Ordering::Relaxed);
                if task >= bound(range + 1) {
                    break;
                }
                work(task, scratch);
            }
        }
    });
}

/// Runs `work` once per scratch, side by side.
fn fan_out<S: Send>(first: usize, scratches: &mut [S], work: &(impl Fn(usize, &mut S) + Sync)) {
    match scratches {
        [] => {}
        [only] => work(first, only),
        many => {
            let middle = many.len() / 2;
            let (left, right) = many.split_at_mut(middle);
            join(|| fan_out(first, left, work), || fan_out(first + middle, right, work));
        }
    }
}

#[cfg(feature = "rayon")]
fn join(left: impl FnOnce() + Send, right: impl FnOnce() + Send) {
    rayon::join(left, right);
}

#[cfg(not(feature = "rayon"))]
fn join(left: impl FnOnce(), right: impl FnOnce()) {
    left();
    right();
}
