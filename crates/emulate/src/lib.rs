//! A GPU for tests, on the host: the kernels' own CUDA C++ sources, compiled as C++, every block's threads run one after
//! the other between barriers. It shows that a kernel computes what it should from what it may read, in any order of
//! threads and blocks; not that it is fast, and nothing of a GPU's own rounding of `exp`.
//!
//! A launch fails that reads or writes outside of a tensor or of its shared memory (both lie beside pages that cannot be
//! touched), or whose threads do not all come to a barrier, shuffle or vote. Memory of undefined content is NaN.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use kernels::cuda::launch::Launch;
use kernels::cuda::{Error, Machine};
use tch::{Device, Kind, Tensor};

unsafe extern "C" {
    fn emulate_memory(
        bytes: usize,
        at_end: c_int,
        whole: *mut *mut c_void,
        size: *mut usize,
    ) -> *mut c_void;
    fn emulate_launch(
        name: *const c_char,
        grid: *const u32,
        threads: u32,
        shared: u32,
        args: *mut *mut c_void,
        count: c_int,
        order: u32,
    ) -> *mut c_char;
}

/// Which side of a tensor is guarded exactly; the other has up to a page of NaN first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Accesses past the end are found.
    End,
    /// Accesses before the beginning are found.
    Start,
}

/// A machine that runs kernels on the host's memory. Tensors that it makes are never given back.
#[derive(Debug)]
pub struct Emulator {
    guard: Guard,
    /// In which order threads and blocks run: 0 from first to last, 1 from last to first, else shuffled by this seed.
    order: u32,
}

impl Emulator {
    /// A machine for the life of the process.
    pub fn leak(guard: Guard, order: u32) -> &'static Emulator {
        Box::leak(Box::new(Self { guard, order }))
    }
}

impl Machine for Emulator {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn empty(&self, size: &[i64], kind: Kind) -> Tensor {
        let count: i64 = size.iter().product();
        let bytes = count as usize * kind.elt_size_in_bytes();
        let (mut whole, mut mapped) = (std::ptr::null_mut(), 0);
        // SAFETY: writes what would be needed to give the memory back.
        let at = unsafe {
            emulate_memory(
                bytes,
                (self.guard == Guard::End).into(),
                &mut whole,
                &mut mapped,
            )
        };
        assert!(!at.is_null(), "the system has no memory for {bytes} bytes");
        let mut strides = vec![1; size.len()];
        for i in (1..size.len()).rev() {
            strides[i - 1] = strides[i] * size[i].max(1);
        }
        // SAFETY: memory of this size for the life of the process.
        unsafe { Tensor::from_blob(at.cast(), size, &strides, kind, Device::Cpu) }
    }

    fn run(&self, launch: &Launch) -> Result<(), Error> {
        // the emulator's state is the process's
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = CString::new(launch.kernel.as_str()).expect("names have no NUL");
        let mut args = launch.args.pointers();
        // SAFETY: a text, three numbers, and as many arguments as said; a kernel that takes others says so.
        let problem = unsafe {
            emulate_launch(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.threads,
                launch.shared,
                args.as_mut_ptr(),
                args.len() as c_int,
                self.order,
            )
        };
        if problem.is_null() {
            return Ok(());
        }
        // SAFETY: a text from strdup, freed once.
        let what = unsafe {
            let what = CStr::from_ptr(problem).to_string_lossy().into_owned();
            libc::free(problem.cast());
            what
        };
        Err(Error::Driver {
            kernel: launch.kernel.clone(),
            what,
        })
    }
}
