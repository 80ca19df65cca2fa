//! The only place that knows about threads: numbered tasks, worked off by a few workers.
//!
//! ```text
//! tasks      0 1 2 3 4 5 | 6 7 8 9 10 11      one range per worker, neighbours stay together (they share keys)
//! worker 0   -------->                  then helps out elsewhere
//! worker 1                 -------->
//! ```
//!
//! Workers are `rayon::join` branches on the pool of the caller. Each takes its own range's tasks in order, then those
//! that are left in the others'. Nothing is spawned or allocated, nobody waits for a lock, and results do not depend on who took which
//! task. Each worker owns a part of the caller's scratch. Without the `rayon` feature there is one worker.

use crate::error::AttentionError;
use crate::tile;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ranges that tasks are dealt into, at most: more workers than this share.
const MAX_RANGES: usize = 64;

/// Parts that [`for_each_part`] deals out, at most.
pub(crate) const MAX_PARTS: usize = 64;

/// Options may ask for any number of threads but none.
pub(crate) fn check_max_threads(max_threads: Option<usize>) -> Result<(), AttentionError> {
    if max_threads == Some(0) {
        let got = "0".to_owned();
        return Err(AttentionError::Value { operand: "max_threads", expected: "at least 1", got });
    }
    Ok(())
}

/// Who works on something: the thread that asks for it, or several workers if it is work enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    max_threads: usize,
    /// Estimated nanoseconds on one thread from which on others help.
    from: f64,
}

impl Spread {
    /// As options say: as many threads as the pool has, from [`tile::SPREAD_NANOSECONDS`] on, unless they say otherwise.
    pub(crate) fn new(max_threads: Option<usize>, from_microseconds: Option<u64>) -> Self {
        let from = from_microseconds.map_or(tile::SPREAD_NANOSECONDS, |from| 1e3 * from as f64);
        Self { max_threads: max_threads.unwrap_or(usize::MAX), from }
    }

    /// Over so many threads at most.
    pub(crate) fn over(self, max_threads: usize) -> Self {
        Self { max_threads, ..self }
    }

    /// Between steps that are spread, and so have woken the others.
    pub(crate) fn awake(self) -> Self {
        Self { from: self.from.min(tile::AWAKE_NANOSECONDS), ..self }
    }

    pub(crate) fn max_threads(&self) -> usize {
        self.max_threads
    }

    /// Estimated microseconds from which on others help.
    pub(crate) fn least_microseconds(&self) -> f64 {
        self.from / 1e3
    }

    /// Whether so much work is for several, see [`tile::nanoseconds`].
    pub(crate) fn spreads(&self, nanoseconds: f64) -> bool {
        nanoseconds >= self.from
    }

    /// How many workers can be at it at once from here.
    pub(crate) fn workers(&self, nanoseconds: f64) -> usize {
        if self.spreads(nanoseconds) { workers(self.max_threads) } else { 1 }
    }
}

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

/// Makes a call whose steps are spread over the pool on one of its threads: from outside, each step alone would be handed
/// over and back, and put to sleep the thread that waits.
pub(crate) fn enter<R: Send>(call: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "rayon")]
    if rayon::current_thread_index().is_none() {
        return rayon::join(call, || ()).0;
    }
    call()
}

/// The same if several of its steps will be `spread`, which inside the pool nobody asks.
pub(crate) fn enter_if<R: Send>(spread: impl FnOnce() -> bool, call: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "rayon")]
    if rayon::current_thread_index().is_none() && spread() {
        return enter(call);
    }
    #[cfg(not(feature = "rayon"))]
    let _ = spread;
    call()
}

/// Calls `work(task, scratch)` once for each task in `0..tasks`, on as many workers as there are `scratches`.
pub(crate) fn for_each_task<S: Send>(
    tasks: usize,
    scratches: &mut [S],
    work: &(impl Fn(usize, &mut S) + Sync),
) {
    for_each_task_until(tasks, scratches, &|task, scratch: &mut S| {
        work(task, scratch);
        true
    });
}

/// Which tasks were begun: the first of each range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    tasks: usize,
    ranges: usize,
    /// The first task of each range that was not.
    next: [usize; MAX_RANGES],
}

impl Begun {
    /// The first tasks, in order.
    pub(crate) fn first(count: usize) -> Self {
        Self { tasks: usize::MAX, ranges: 1, next: [count; MAX_RANGES] }
    }

    /// Whether this one was.
    pub(crate) fn has(&self, task: usize) -> bool {
        let ranges = 0..self.ranges;
        let mut range = ranges.filter(|&range| task < bound(self.tasks, self.ranges, range + 1));
        range.next().is_some_and(|range| task < self.next[range])
    }
}

/// The first task of a range.
fn bound(tasks: usize, ranges: usize, range: usize) -> usize {
    (tasks as u128 * range as u128 / ranges as u128) as usize
}

/// As [`for_each_task`], but a worker whose `work` says false takes no other task.
pub(crate) fn for_each_task_until<S: Send>(
    tasks: usize,
    scratches: &mut [S],
    work: &(impl Fn(usize, &mut S) -> bool + Sync),
) -> Begun {
    if let [only] = scratches {
        let stopped = (0..tasks).find(|&task| !work(task, only));
        return Begun::first(stopped.map_or(tasks, |task| task + 1));
    }
    let ranges = scratches.len().clamp(1, MAX_RANGES);
    let bound = |range: usize| bound(tasks, ranges, range);
    let next: [AtomicUsize; MAX_RANGES] =
        std::array::from_fn(|range| AtomicUsize::new(bound(range.min(ranges))));
    fan_out(0, scratches, &|worker, scratch| {
        for range in (0..ranges).map(|offset| (worker + offset) % ranges) {
            loop {
                let task = next[range].fetch_add(1, Ordering::Relaxed);
                if task >= bound(range + 1) {
                    break;
                }
                if !work(task, scratch) {
                    return;
                }
            }
        }
    });
    Begun { tasks, ranges, next: next.map(AtomicUsize::into_inner) }
}

/// Calls `work` once for each part of something, at most [`MAX_PARTS`] parts, on as many workers.
///
/// As [`for_each_task`] for tasks that own what they write to: a task takes its part out of its place.
pub(crate) fn for_each_part<P: Send>(
    parts: impl Iterator<Item = P>,
    workers: usize,
    work: &(impl Fn(P) + Sync),
) {
    if workers <= 1 {
        parts.for_each(work);
    } else {
        deal_parts(parts, &mut [(); MAX_PARTS][..workers.min(MAX_PARTS)], &|part, ()| work(part));
    }
}

/// [`for_each_part`] on as many workers as there are `scratches`.
pub(crate) fn for_each_part_with<P: Send, S: Send>(
    parts: impl Iterator<Item = P>,
    scratches: &mut [S],
    work: &(impl Fn(P, &mut S) + Sync),
) {
    if let [only] = scratches {
        parts.for_each(|part| work(part, only));
    } else {
        deal_parts(parts, scratches, work);
    }
}

#[inline(never)] // its frame has room for all parts
fn deal_parts<P: Send, S: Send>(
    mut parts: impl Iterator<Item = P>,
    scratches: &mut [S],
    work: &(impl Fn(P, &mut S) + Sync),
) {
    let mut count = 0;
    let places: [Mutex<Option<P>>; MAX_PARTS] = std::array::from_fn(|_| {
        let part = parts.next();
        count += usize::from(part.is_some());
        Mutex::new(part)
    });
    assert!(parts.next().is_none(), "there is a place for every part");
    if count == 0 {
        return;
    }
    let workers = count.min(scratches.len());
    for_each_task(count, &mut scratches[..workers], &|task, scratch: &mut S| {
        // Each number is handed out once, so the place is never locked.
        let part = places[task].try_lock().expect("nobody else asks for it").take();
        work(part.expect("handed out once"), scratch);
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
