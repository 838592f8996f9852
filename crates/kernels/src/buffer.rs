//! Zeroed memory that begins at a cache line, so that no vector load of a whole register spans two.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Allocations of as many bytes are worth large pages.
const LARGE: usize = 8 << 20;

/// `f32` values on whole cache lines.
///
/// Pages are taken from the system when they are first touched, by whichever thread touches them.
pub struct Buffer {
    /// Start of the allocation, which is aligned as `f32` are: the allocator hands out fresh pages without clearing
    /// them only below its own alignment.
    allocation: NonNull<f32>,
    layout: Layout,
    /// `f32` from there to the first cache line.
    offset: usize,
    len: usize,
}

// SAFETY: the buffer owns its memory, as a `Vec` does.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zeros; `None` when the system refuses the memory.
    pub fn zeroed(len: usize) -> Option<Buffer> {
        let slack = LINE / size_of::<f32>();
        let layout = Layout::array::<f32>(len.checked_add(slack)?).ok()?;
        // SAFETY: the layout has a size: there is slack.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }.cast::<f32>())?;
        let offset = allocation.as_ptr().align_offset(LINE).min(slack);
        if layout.size() >= LARGE {
            ask_for_large_pages(allocation, layout.size());
        }
        Some(Buffer { allocation, layout, offset, len })
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `offset + len` lies inside the allocation, which is zeroed or written.
        unsafe { std::slice::from_raw_parts(self.allocation.as_ptr().add(self.offset), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as for `deref`; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.allocation.as_ptr().add(self.offset), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nothing borrows it any more.
        unsafe { dealloc(self.allocation.as_ptr().cast(), self.layout) }
    }
}

/// Asks the system to back `bytes` from `start` with large pages: a hint, which fewer page faults and fewer misses of
/// the translation buffer repay.
#[cfg(target_os = "linux")]
fn ask_for_large_pages(start: NonNull<f32>, bytes: usize) {
    const PAGE: usize = 4096;
    let skip = start.as_ptr().cast::<u8>().align_offset(PAGE);
    if skip < bytes {
        // SAFETY: the range lies inside our own allocation, and the advice changes no byte of it. A refusal is harmless.
        unsafe {
            let first = start.as_ptr().cast::<u8>().add(skip);
            libc::madvise(first.cast(), (bytes - skip) / PAGE * PAGE, libc::MADV_HUGEPAGE);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages(_: NonNull<f32>, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_cache_line_and_hold_zeros() {
        for len in [0, 1, 15, 16, 1000, 1 << 20] {
            let mut buffer = Buffer::zeroed(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % LINE, 0);
            assert!(buffer.iter().all(|value| *value == 0.0));
            buffer.fill(1.0);
        }
        assert!(Buffer::zeroed(usize::MAX / 4).is_none() && Buffer::zeroed(usize::MAX).is_none());
    }
}
