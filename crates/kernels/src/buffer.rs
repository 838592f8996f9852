//! Zeroed memory that begins at a cache line, so that no vector load of a whole register spans two.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a cache line.
const LINE: usize = 64;

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

/// Memory for a worker.
///
/// # Panics
/// The system refuses it.
pub(crate) fn worker(len: usize) -> Buffer {
    Buffer::zeroed(len).expect("memory for a worker's scratch")
}

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
