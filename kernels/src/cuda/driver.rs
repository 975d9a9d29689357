//! The machine that is a GPU: the CUDA driver through cudarc, on libtorch's context and current stream.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::sys;
use tch::Device;
use torch::stream::Stream;

use super::compile;
use super::launch::Launch;
use super::{Error, Machine};

/// Who computes what has a kernel of ours on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Our kernels; where they cannot be had (no NVRTC) libtorch, which is said once.
    Auto,
    /// libtorch's operators.
    Libtorch,
}

/// What `RECIPE_KERNELS` says: `auto` (also where it is not set) or `libtorch`. Placement: it changes rounding and speed,
/// and numerics record what was used.
///
/// # Errors
/// Another value.
pub fn choice() -> Result<Choice, String> {
    match std::env::var("RECIPE_KERNELS").as_deref() {
        Err(_) | Ok("" | "auto") => Ok(Choice::Auto),
        Ok("libtorch") => Ok(Choice::Libtorch),
        Ok(other) => Err(format!("RECIPE_KERNELS={other}: use auto or libtorch")),
    }
}

/// The machine for tensors on `device`, unless libtorch's operators are to be used there.
pub fn machine(device: Device) -> Option<&'static dyn Machine> {
    const MOST: usize = 64;
    static GPUS: [OnceLock<Option<Gpu>>; MOST] = [const { OnceLock::new() }; MOST];
    let Device::Cuda(index) = device else {
        return None;
    };
    let gpu = GPUS.get(index)?.get_or_init(|| {
        if choice() == Ok(Choice::Libtorch) {
            return None;
        }
        // a kernel is compiled here, so that what is missing shows before anything depends on it
        let gpu = Gpu::new(index).and_then(|gpu| {
            gpu.function(&super::source::SWIGLU, "swiglu_forward_f32")?;
            Ok(gpu)
        });
        gpu.map_err(|why| eprintln!("libtorch's operators instead of our kernels: {why}"))
            .ok()
    });
    gpu.as_ref().map(|gpu| gpu as &dyn Machine)
}

/// One GPU.
struct Gpu {
    device: Device,
    context: usize,
    /// Compute capability, 90 for 9.0.
    arch: u32,
    /// Handles of loaded modules by source, and of kernels by name.
    modules: Mutex<HashMap<&'static str, usize>>,
    kernels: Mutex<HashMap<String, usize>>,
}

impl Gpu {
    fn new(index: usize) -> Result<Self, Error> {
        // SAFETY: looks for the library; every other call comes after this one found it.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Missing("the CUDA driver is not here".into()));
        }
        let failed = |code| check("the CUDA driver", code);
        let (mut device, mut context) = (0, std::ptr::null_mut());
        let (mut major, mut minor) = (0, 0);
        use sys::CUdevice_attribute_enum::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        // SAFETY: each writes one value. The primary context is libtorch's, and is kept for the process's life.
        unsafe {
            failed(sys::cuInit(0))?;
            failed(sys::cuDeviceGet(&mut device, index as i32))?;
            failed(sys::cuDeviceGetAttribute(&mut major, MAJOR, device))?;
            failed(sys::cuDeviceGetAttribute(&mut minor, MINOR, device))?;
            failed(sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
        }
        Ok(Self {
            device: Device::Cuda(index),
            context: context as usize,
            arch: (major * 10 + minor) as u32,
            modules: Mutex::default(),
            kernels: Mutex::default(),
        })
    }

    /// Makes the device's context the calling thread's: autograd's threads are not ours.
    fn enter(&self) -> Result<(), Error> {
        let mut now = std::ptr::null_mut();
        // SAFETY: writes one handle; the context is retained.
        unsafe {
            check("the CUDA driver", sys::cuCtxGetCurrent(&mut now))?;
            if now as usize != self.context {
                check(
                    "the CUDA driver",
                    sys::cuCtxSetCurrent(self.context as sys::CUcontext),
                )?;
            }
        }
        Ok(())
    }

    fn function(
        &self,
        file: &'static super::source::File,
        kernel: &str,
    ) -> Result<sys::CUfunction, Error> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&found) = kernels.get(kernel) {
            return Ok(found as sys::CUfunction);
        }
        self.enter()?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(file.name) {
            Some(&module) => module as sys::CUmodule,
            None => {
                let code = compile::cubin(file, self.arch, compile::directory().as_deref())?;
                let mut module = std::ptr::null_mut();
                // SAFETY: a whole cubin; kept for the process's life.
                check(file.name, unsafe {
                    sys::cuModuleLoadData(&mut module, code.as_ptr().cast())
                })?;
                modules.insert(file.name, module as usize);
                module
            }
        };
        let name = CString::new(kernel).expect("names have no NUL");
        let mut function = std::ptr::null_mut();
        // SAFETY: a live module and a text.
        check(kernel, unsafe {
            sys::cuModuleGetFunction(&mut function, module, name.as_ptr())
        })?;
        kernels.insert(kernel.to_owned(), function as usize);
        Ok(function)
    }
}

impl Machine for Gpu {
    fn device(&self) -> Device {
        self.device
    }

    fn run(&self, launch: &Launch) -> Result<(), Error> {
        let function = self.function(launch.file, &launch.kernel)?;
        let stream = Stream::current(self.device).and_then(Stream::native);
        let stream = stream.map_err(|e| Error::Driver {
            kernel: launch.kernel.clone(),
            what: e.to_string(),
        })?;
        self.enter()?;
        let mut args = launch.args.pointers();
        let [x, y, z] = launch.grid;
        // SAFETY: the wrapper has checked that the arguments fit the kernel of this name.
        let code = unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                launch.shared,
                stream.cast(),
                args.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(&launch.kernel, code)
    }
}

fn check(kernel: &str, code: sys::CUresult) -> Result<(), Error> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::Driver {
        kernel: kernel.to_owned(),
        what: format!("{code:?}"),
    })
}
