//! CUDA at run time. The linker drops `libtorch_cuda.so`, so one binary starts anywhere; where a
//! GPU build of libtorch lies, loading the library registers its kernels.

use std::ffi::CString;

/// Loads `libtorch_cuda.so` if the dynamic loader finds it. Call before the first tensor.
/// Says why not where it could not be loaded (no GPU build, or its CUDA libraries are missing).
pub fn load() -> Result<(), String> {
    let name = CString::new("libtorch_cuda.so").expect("no NUL");
    // SAFETY: dlopen of a library by name; handle kept for the life of the process.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror returns a static text or null.
    let why = unsafe {
        let e = libc::dlerror();
        if e.is_null() {
            "unknown reason".into()
        } else {
            std::ffi::CStr::from_ptr(e).to_string_lossy().into_owned()
        }
    };
    Err(why)
}

/// Whether a CUDA device can be used. False until [`load`] succeeded.
pub fn available() -> bool {
    tch::Cuda::is_available()
}

/// How many CUDA devices are visible.
pub fn device_count() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}
