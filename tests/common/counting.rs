//! A global allocator that counts.
#![allow(dead_code, reason = "not every test asks for everything")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        BYTES.fetch_add(layout.size(), Ordering::SeqCst);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::SeqCst);
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

/// Bytes that are allocated and not freed.
pub(crate) fn held() -> usize {
    BYTES.load(Ordering::SeqCst)
}

/// Holds a size that something says it has against what it holds, `before` it was made having been held already: but for a
/// few kilobytes of lists and numbers, and of the test harness.
#[track_caller]
pub(crate) fn assert_holds(said: usize, before: usize, what: &str) {
    let got = held().saturating_sub(before);
    assert!(said.abs_diff(got) <= 4096, "{what}: says {said} bytes, holds {got}");
}
