//! Operands on huge pages, as a service that cares keeps its cache, and as [`KeyPanels`] does for itself.
//!
//! [`KeyPanels`]: lucid_attention::KeyPanels

/// The size of a huge page.
const HUGE: usize = 2 << 20;

/// `count` defaults in memory on huge pages, where the system has them.
pub(crate) fn filled<T: Copy + Default>(count: usize) -> Vec<T> {
    let mut values = Vec::<T>::with_capacity(count);
    advise(values.as_mut_ptr().cast(), count * size_of::<T>());
    values.resize(count, T::default());
    values
}

/// A large vector is a mapping of its own, and not touched yet: what lies inside it may come as huge pages.
#[cfg(target_os = "linux")]
fn advise(start: *mut u8, bytes: usize) {
    let skipped = start.align_offset(HUGE);
    let pages = bytes.saturating_sub(skipped) / HUGE;
    if pages > 0 {
        // SAFETY: the range lies inside the vector; the advice changes no contents.
        unsafe { libc::madvise(start.add(skipped).cast(), pages * HUGE, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: *mut u8, _bytes: usize) {}
