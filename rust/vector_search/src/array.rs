//! Arrays that lie in the heap or in a mapped file, aligned to a cache line either way.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use aios_arrow_storage::Mapping;

/// A cache line: a code never shares one with two others.
pub(crate) const ALIGNMENT: usize = 64;

/// Values of which every bit pattern is one, so that a file's bytes can be used as they are.
///
/// # Safety
/// Any bytes of the right size are a value of the type, and dropping it does nothing.
pub(crate) unsafe trait Plain: Send + Sync {}

// SAFETY: every bit pattern is a number.
unsafe impl Plain for u8 {}
// SAFETY: every bit pattern is a number.
unsafe impl Plain for u64 {}
// SAFETY: every bit pattern is a number, or one of many NaN.
unsafe impl Plain for f32 {}
// SAFETY: it has the layout of u32.
unsafe impl Plain for AtomicU32 {}

/// A fixed number of plain values.
pub(crate) struct Array<T: Plain> {
    start: NonNull<T>,
    len: usize,
    /// The map that it lies in; the heap where there is none.
    map: Option<Arc<Mapping>>,
}

// SAFETY: it owns its heap memory, or a part of a private map that no other array was given.
unsafe impl<T: Plain> Send for Array<T> {}
// SAFETY: as above; shared access only reads, but for atomics.
unsafe impl<T: Plain> Sync for Array<T> {}

impl<T: Plain> Array<T> {
    /// `len` zeros in the heap.
    pub(crate) fn zeros(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty; all zeros is a value of T.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast()) else { handle_alloc_error(layout) };
        Array { start, len, map: None }
    }

    /// The `len` values from byte `at` of a map; None where they do not fit or are not aligned.
    ///
    /// # Safety
    /// No other array covers these bytes.
    pub(crate) unsafe fn mapped(map: &Arc<Mapping>, at: usize, len: usize) -> Option<Self> {
        let end = at.checked_add(len.checked_mul(size_of::<T>())?)?;
        if end > map.bytes() || !at.is_multiple_of(ALIGNMENT) {
            return None;
        }
        // SAFETY: `at` lies within the map, which begins at a page.
        let start = NonNull::new(unsafe { map.address().add(at) }.cast())?;
        Some(Array { start, len, map: Some(Arc::clone(map)) })
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.max(1).checked_mul(size_of::<T>()).expect("callers cap the sizes of arrays");
        Layout::from_size_align(bytes, ALIGNMENT).expect("callers cap the sizes of arrays")
    }
}

impl<T: Plain> Deref for Array<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values lie at `start` while the array lives, in the heap or in the map it keeps; the map is
        // private, so that only this process writes there, and the array's owner answers for that.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Array<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; no other array covers the same bytes, and the map is writable.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Array<T> {
    fn drop(&mut self) {
        if self.map.is_none() {
            // SAFETY: it was allocated with this layout.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}
