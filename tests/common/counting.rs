//! A global allocator that counts.
#![allow(dead_code, reason = "not every test asks for everything")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Bytes that this thread allocated, less those that it freed: they wrap where it frees what others allocated.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count_bytes(change: impl Fn(usize) -> usize) {
    // A thread that ends has nobody who asks.
    let _ = BYTES.try_with(|bytes| bytes.set(change(bytes.get())));
}

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        count_bytes(|bytes| bytes.wrapping_add(layout.size()));
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count_bytes(|bytes| bytes.wrapping_sub(layout.size()));
        // SAFETY: as the caller's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How often `work` allocates, the least of three times: the test harness has a thread of its own that may, too.
pub(crate) fn allocations(mut work: impl FnMut()) -> usize {
    let mut count = || {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        work();
        ALLOCATIONS.load(Ordering::SeqCst) - before
    };
    count().min(count()).min(count())
}

/// Bytes that this thread allocated and did not free.
pub(crate) fn held() -> usize {
    BYTES.get()
}

/// Holds a size that something says it has against what this thread allocated for it, `before` it was made having been held
/// already: but for a few kilobytes of lists and numbers.
#[track_caller]
pub(crate) fn assert_holds(said: usize, before: usize, what: &str) {
    let got = held().wrapping_sub(before);
    assert!(said.abs_diff(got) <= 4096, "{what}: says {said} bytes, holds {got}");
}
