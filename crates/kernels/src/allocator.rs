//! What the C library's allocator keeps of memory that was freed.

/// Keeps all threads' memory in one heap, for the whole process; to be called before there are others.
///
/// glibc makes heaps of their own for threads, of which [`give_back_freed`] could not give back all. No part of a computation
/// asks for memory often enough to wait for others there.
pub fn keep_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a number inside the allocator, under its own lock. A refusal leaves everything as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that was freed, and that the allocator keeps for what is asked for next, back to the system.
///
/// glibc keeps blocks of up to 32 MiB once it has seen one of their size freed. That saves the next work its page faults, and
/// is worth undoing only where what comes next asks for other sizes within a budget. Other allocators keep little.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes the allocator's own locks and touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}
