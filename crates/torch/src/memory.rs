//! Bytes of CPU tensors, counted as libtorch takes and gives them back: what a plan of memory is
//! measured against, whatever else the process holds. And freed memory, kept in the process.

use tch::Device;

use crate::stream::place;
use crate::{Error, ffi};

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

/// The most bytes of a device's tensors that lived at once since the last call, by its allocator.
///
/// # Errors
/// A device without an allocator of its own, such as the CPU.
pub fn device_peak(device: Device) -> Result<u64, Error> {
    let (kind, index) = place(device)?;
    let mut out = 0;
    // SAFETY: `out` is written on success.
    ffi::check(unsafe { ffi::rt_memory_device_peak(kind, index, &mut out) })?;
    Ok(u64::try_from(out).unwrap_or(0))
}

/// Has the C library keep freed memory for the next tensor instead of returning it to the system,
/// which would hand it out again page by page: a training step takes and frees the same hundreds
/// of megabytes as the one before. Call before the first tensor.
pub fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets parameters of malloc.
    unsafe {
        // the largest that malloc takes: bigger tensors are mapped, and unmapped when freed
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}
