//! Aligned, zeroed buffers: the only memory the crate allocates for kernels.
//!
//! Large ones ask the kernel for huge pages (`madvise` on Linux), which is worth a fifth of the DRAM bandwidth that
//! decode lives on. The advice is only that: a system that refuses it changes nothing but speed.

use crate::error::AttentionError;
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// A cache line, and the widest vector.
pub(crate) const ALIGN_BYTES: usize = 64;

/// The size of a huge page on the systems that have them.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A fixed-size slice of plain numbers, 64-byte aligned, zeroed at creation.
pub(crate) struct AlignedBuf<T: Zeroed> {
    data: NonNull<T>,
    len: usize,
    layout: Layout,
}

/// Types for which all-zero bytes are a value.
///
/// # Safety
/// - The type has no padding, no invalid bit pattern and no destructor.
pub(crate) unsafe trait Zeroed: Copy + 'static {}
// SAFETY: plain numbers (`half`'s types are transparent over `u16`).
unsafe impl Zeroed for f32 {}
// SAFETY: as above.
unsafe impl Zeroed for u16 {}
// SAFETY: as above.
unsafe impl Zeroed for half::f16 {}
// SAFETY: as above.
unsafe impl Zeroed for half::bf16 {}
// SAFETY: an array of them has no padding either.
unsafe impl Zeroed for [half::bf16; 2] {}

// SAFETY: an `AlignedBuf` owns its memory as a `Box<[T]>` does, and numbers may be moved and shared freely.
unsafe impl<T: Zeroed + Send> Send for AlignedBuf<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroed + Sync> Sync for AlignedBuf<T> {}

impl<T: Zeroed> AlignedBuf<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`AttentionError::OutOfMemory`], also when the size does not fit an address.
    pub(crate) fn zeroed(what: &'static str, len: usize) -> Result<Self, AttentionError> {
        let bytes = len.saturating_mul(size_of::<T>());
        let error = || AttentionError::OutOfMemory { what, bytes };
        let align = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { ALIGN_BYTES };
        let layout = Layout::from_size_align(bytes, align).map_err(|_| error())?;
        if bytes == 0 {
            return Ok(Self { data: NonNull::dangling(), len: 0, layout });
        }
        // SAFETY: the layout's size is not 0.
        let data = NonNull::new(unsafe { alloc(layout) }).ok_or_else(error)?.cast::<T>();
        advise_huge_pages(data.cast(), layout);
        // SAFETY: `data` points to `bytes` writable bytes, aligned for `T` (64 is at least any number's alignment).
        unsafe { data.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { data, len, layout })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl<T: Zeroed> Default for AlignedBuf<T> {
    /// Nothing.
    fn default() -> Self {
        let layout = Layout::new::<[T; 0]>();
        Self { data: NonNull::dangling(), len: 0, layout }
    }
}

impl<T: Zeroed> std::ops::Deref for AlignedBuf<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `data` points to `len` initialised values (dangling and aligned if there are none) that live as
        // long as `self`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Zeroed> std::ops::DerefMut for AlignedBuf<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T: Zeroed> Drop for AlignedBuf<T> {
    fn drop(&mut self) {
        if self.layout.size() != 0 {
            // SAFETY: allocated in `zeroed` with this layout, and not freed before.
            unsafe { dealloc(self.data.as_ptr().cast(), self.layout) };
        }
    }
}

impl<T: Zeroed + std::fmt::Debug> std::fmt::Debug for AlignedBuf<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} values)", self.len)
    }
}

/// Asks for huge pages under a fresh allocation that is aligned to them.
#[cfg(target_os = "linux")]
fn advise_huge_pages(data: NonNull<u8>, layout: Layout) {
    if layout.align() < HUGE_PAGE_BYTES {
        return;
    }
    // SAFETY: the range is the allocation itself, page-aligned; this advice changes no contents. The tail that does
    // not fill a page is left out.
    unsafe {
        libc::madvise(data.as_ptr().cast(), layout.size() & !(HUGE_PAGE_BYTES - 1), libc::MADV_HUGEPAGE)
    };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_data: NonNull<u8>, _layout: Layout) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_aligned_and_sized() {
        for len in [0, 1, 1000, 2 << 20] {
            let buf = AlignedBuf::<f32>::zeroed("test", len).unwrap();
            assert_eq!(buf.len(), len, "length");
            assert!(buf.iter().all(|&x| x == 0.0), "zeroed");
            assert!(len == 0 || buf.as_ptr().addr().is_multiple_of(ALIGN_BYTES), "aligned");
        }
    }

    #[test]
    fn a_size_that_does_not_fit_is_an_error() {
        let error = AlignedBuf::<f32>::zeroed("test", usize::MAX).unwrap_err();
        assert!(matches!(error, AttentionError::OutOfMemory { what: "test", .. }), "{error}");
    }
}
