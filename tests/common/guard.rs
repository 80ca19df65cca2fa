//! Memory that ends (or begins) where touching one byte more is a fault, and a way to learn whose fault it was.
//!
//! ```text
//!  PROT_NONE | .......... values | PROT_NONE        new_at_end: reading past the end faults
//!  PROT_NONE | values .......... | PROT_NONE        new_at_start: reading before the start faults
//! ```
#![cfg(unix)]

use std::cell::RefCell;
use std::fmt::Debug;
use std::io::Error;
use std::ops::{Deref, DerefMut};
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::Once;

/// A slice flush against an inaccessible page.
#[derive(Debug)]
pub struct Guarded<T> {
    /// The whole mapping, guard pages included.
    base: *mut u8,
    mapped: usize,
    values: *mut T,
    len: usize,
}

// SAFETY: it owns its memory, as a `Box<[T]>` does.
unsafe impl<T: Send> Send for Guarded<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Guarded<T> {}

impl<T: Copy> Guarded<T> {
    /// A copy whose last element is followed by an inaccessible page.
    pub fn new_at_end(values: &[T]) -> Self {
        Self::new(values, true)
    }

    /// A copy whose first element is preceded by an inaccessible page.
    pub fn new_at_start(values: &[T]) -> Self {
        Self::new(values, false)
    }

    fn new(values: &[T], at_end: bool) -> Self {
        let bytes = size_of_val(values);
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).expect("a page size");
        let inner = bytes.next_multiple_of(page).max(page);
        let mapped = inner + 2 * page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping, wherever there is room; nothing of ours lies there.
        let base = unsafe { libc::mmap(null_mut(), mapped, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "mmap of {mapped} bytes: {}", Error::last_os_error());
        let base = base.cast::<u8>();
        // SAFETY: the `inner` bytes after the first page lie inside the mapping.
        let failed =
            unsafe { libc::mprotect(base.add(page).cast(), inner, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(failed, 0, "mprotect of {inner} bytes: {}", Error::last_os_error());
        let offset = if at_end { inner - bytes } else { 0 };
        // SAFETY: in bounds. It is aligned for `T`: pages are, and `bytes` is a multiple of the size of `T`.
        let start = unsafe { base.add(page + offset) }.cast::<T>();
        // SAFETY: both are valid for that many elements and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), start, values.len()) };
        Self { base, mapped, values: start, len: values.len() }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, which nobody can refer to any more.
        let failed = unsafe { libc::munmap(self.base.cast(), self.mapped) };
        debug_assert_eq!(failed, 0, "munmap: {}", Error::last_os_error());
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` filled `len` elements from there on, and they live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.values, self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.values, self.len) }
    }
}

thread_local! {
    /// What the thread is at, to be printed when it faults.
    static CURRENT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Says what the thread is going to do. If it then panics or touches a guard page, that is printed to standard error.
pub fn announce(what: &impl Debug) -> Announced {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    CURRENT.with_borrow_mut(|current| *current = format!("failed in {what:?}\n"));
    Announced(())
}

/// Prints what was announced when a panic drops it.
#[must_use = "prints when it is dropped in a panic"]
#[derive(Debug)]
pub struct Announced(());

impl Drop for Announced {
    fn drop(&mut self) {
        if std::thread::panicking() {
            CURRENT.with_borrow(|current| eprint!("{current}"));
        }
    }
}

fn install() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: `report` has the signature of a handler and calls only what a handler may (`write`, `signal`).
        unsafe { libc::signal(signal, report as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Prints what was announced, then lets the fault happen again and kill the process.
extern "C" fn report(signal: libc::c_int) {
    let print = |text: &str| {
        // SAFETY: the bytes are valid; 2 is standard error.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    };
    print("\na guard page was touched: ");
    let _ = CURRENT.try_with(|current| {
        if let Ok(current) = current.try_borrow() {
            print(&current);
        }
    });
    // SAFETY: restores the default.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[test]
fn holds_its_values() {
    let values: Vec<u16> = (0..5000).collect();
    for guarded in [Guarded::new_at_end(&values), Guarded::new_at_start(&values)] {
        assert_eq!(*guarded, *values, "the copy differs");
    }
    let empty = Guarded::<f32>::new_at_end(&[]);
    assert!(empty.is_empty() && empty.as_ptr() != without_provenance_mut(0), "no elements at a real address");
}
