//! CUDA at run time. The linker drops `libtorch_cuda.so`, so one binary starts anywhere; where a
//! GPU build of libtorch lies, loading the library registers its kernels.

use std::ffi::{CStr, CString, c_char, c_int};

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
            CStr::from_ptr(e).to_string_lossy().into_owned()
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

/// The PCI bus id of a device, such as `0000:3b:00.0`: the same for all processes of a machine,
/// however `CUDA_VISIBLE_DEVICES` numbers its devices.
pub fn bus_id(index: usize) -> Result<String, String> {
    type BusId = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    // SAFETY: a look-up by name in what is loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"cudaDeviceGetPCIBusId".as_ptr()) };
    if found.is_null() {
        return Err("the CUDA runtime is not loaded".into());
    }
    // SAFETY: `cudaError_t cudaDeviceGetPCIBusId(char*, int, int)` of the CUDA runtime.
    let ask: BusId = unsafe { std::mem::transmute(found) };
    let mut text = [0 as c_char; 32];
    // SAFETY: at most the text's length is written, ending in NUL.
    match unsafe { ask(text.as_mut_ptr(), 32, index as c_int) } {
        // SAFETY: ends in NUL.
        0 => Ok(unsafe { CStr::from_ptr(text.as_ptr()) }
            .to_string_lossy()
            .into_owned()),
        code => Err(format!("CUDA device {index}: error {code}")),
    }
}
