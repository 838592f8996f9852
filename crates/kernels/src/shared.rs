//! One output written by many tasks, each in places of its own.

use std::marker::PhantomData;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// A mutable slice whose disjoint parts are lent to several threads at once.
pub(crate) struct SharedOutput<'a, E = f32> {
    start: *mut E,
    len: usize,
    owner: PhantomData<&'a mut [E]>,
}

// SAFETY: the parts handed out are disjoint by the contract of `part`, and their elements may move between threads.
unsafe impl<E: Send> Sync for SharedOutput<'_, E> {}
// SAFETY: as for `Sync`; the value is only a borrowed slice.
unsafe impl<E: Send> Send for SharedOutput<'_, E> {}

impl<'a, E> SharedOutput<'a, E> {
    pub(crate) fn new(output: &'a mut [E]) -> Self {
        SharedOutput { start: output.as_mut_ptr(), len: output.len(), owner: PhantomData }
    }

    /// Asks for the cache lines of `offset..offset + len`, a hint that reads nothing.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: usize, len: usize) {
        prefetch_lines(self.start.wrapping_add(offset), len.min(self.len.saturating_sub(offset)));
    }

    /// The elements `offset..offset + len`.
    ///
    /// # Safety
    /// No two parts that overlap may be alive at the same time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // the point of the type; the contract stands above
    pub(crate) unsafe fn part(&self, offset: usize, len: usize) -> &mut [E] {
        assert!(offset <= self.len && len <= self.len - offset, "part {offset}+{len} of {}", self.len);
        // SAFETY: the range lies inside the slice (checked above) and is not aliased (the caller's contract).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}

/// Asks for the cache lines of `values`, a hint that reads nothing.
#[inline(always)]
pub(crate) fn prefetch<E>(values: &[E]) {
    prefetch_lines(values.as_ptr(), values.len());
}

/// As [`prefetch`], for `len` elements from `start` on, wherever that is.
#[inline(always)]
pub(crate) fn prefetch_lines<E>(start: *const E, len: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let mut offset = 0;
        while offset < len * size_of::<E>() {
            // SAFETY: every CPU of this architecture has the instruction, and it may be given any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.cast::<i8>().wrapping_add(offset)) };
            offset += LINE;
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, len);
}
