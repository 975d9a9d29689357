//! What tch lacks, over a small C++ bridge (`cxx/`): autograd nodes whose backward is Rust,
//! vector-Jacobian products, c10d process groups over Gloo, the fused optimizer, and facts about
//! the libtorch at hand.
//!
//! | module | what |
//! |---|---|
//! | [`attention`] | flash attention over sequences laid end to end |
//! | [`autograd`] | [`autograd::node`], [`autograd::vjp`] |
//! | [`dist`] | [`dist::Store`], [`dist::Gloo`] |
//! | [`cuda`] | loading `libtorch_cuda` at run time, so that one binary serves CPU and GPU |
//! | [`fused`] | multi-tensor AdamW |
//! | [`memory`] | bytes of CPU tensors and of a device's, counted; freed memory, kept |
//! | [`observe`] | a look at operators while they run |
//! | [`storage`] | version counters, storage resize |
//! | [`stream`] | streams of a device, and events on them |

pub mod attention;
pub mod autograd;
pub mod cuda;
pub mod dist;
mod ffi;
pub mod fused;
pub mod memory;
pub mod observe;
pub mod storage;
pub mod stream;
pub mod threads;

/// An error that libtorch or the bridge reported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("libtorch: {0}")]
    Libtorch(String),
    #[error("text with a NUL byte cannot name a {0}")]
    Nul(&'static str),
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        let first = text
            .split("\nException raised from")
            .next()
            .unwrap_or(&text);
        Error::Libtorch(first.trim().to_owned())
    }
}

/// The version of the libtorch that this was built against, such as `2.11.0`.
pub fn version() -> String {
    // SAFETY: returns an owned text.
    ffi::take_text(unsafe { ffi::rt_version() })
}

/// The instruction set that libtorch's CPU kernels use here: `DEFAULT`, `AVX2` or `AVX512`.
/// Results may differ between them, so it is part of a result's numerics.
pub fn instruction_set() -> String {
    // SAFETY: returns an owned text.
    ffi::take_text(unsafe { ffi::rt_cpu_capability() })
}
