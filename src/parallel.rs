//! The only place that knows about threads: a queue of numbered tasks, worked off by a few workers.
//!
//! Workers are `rayon::join` branches on the pool of the caller; they take tasks in order from one counter, so the
//! expensive ones should come first. Each owns a part of the caller's scratch. Nothing is spawned, allocated or
//! locked, and results do not depend on who took which task. Without the `rayon` feature there is one worker.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many workers can run at once from here, at most `limit`.
pub(crate) fn workers(limit: usize) -> usize {
    #[cfg(feature = "rayon")]
    let threads = rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    let threads = 1;
    threads.min(limit).max(1)
}

/// Calls `work(task, scratch)` once for each task in `0..tasks`, on as many workers as `scratches` holds.
pub(crate) fn for_each_task<S: Send>(
    tasks: usize,
    scratches: &mut [S],
    work: &(impl Fn(usize, &mut S) + Sync),
) {
    let next = AtomicUsize::new(0);
    fan_out(scratches, &|scratch| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            work(task, scratch);
        }
    });
}

/// Runs `work` once per scratch, side by side.
fn fan_out<S: Send>(scratches: &mut [S], work: &(impl Fn(&mut S) + Sync)) {
    match scratches {
        [] => {}
        [only] => work(only),
        many => {
            let (left, right) = many.split_at_mut(many.len() / 2);
            #[cfg(feature = "rayon")]
            rayon::join(|| fan_out(left, work), || fan_out(right, work));
            #[cfg(not(feature = "rayon"))]
            {
                fan_out(left, work);
                fan_out(right, work);
            }
        }
    }
}
