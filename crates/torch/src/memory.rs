//! Bytes of CPU tensors, counted as libtorch takes and gives them back: what a plan of memory is
//! measured against, whatever else the process holds.

use crate::ffi;

/// Counts from now on. Tensors that exist already stay uncounted, and so does their end.
pub fn count() {
    // SAFETY: libtorch keeps a pointer to a static allocator.
    unsafe { ffi::rt_memory_count() }
}

/// Bytes of the tensors that live now.
pub fn live() -> u64 {
    // SAFETY: reads a counter.
    u64::try_from(unsafe { ffi::rt_memory_live() }).unwrap_or(0)
}

/// The most bytes that lived at once since the last call.
pub fn peak() -> u64 {
    // SAFETY: reads and sets a counter.
    u64::try_from(unsafe { ffi::rt_memory_peak() }).unwrap_or(0)
}
