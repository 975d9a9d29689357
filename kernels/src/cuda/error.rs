//! What can go wrong with a kernel.

/// Why a kernel was not launched, or not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A tensor that does not fit the kernel; nothing was launched.
    #[error("{kernel}: {what}")]
    Argument {
        /// The kernel's name.
        kernel: &'static str,
        /// The tensor, what it is, and what it must be.
        what: String,
    },
    /// A size that the kernel is not made for; libtorch does it.
    #[error("{kernel} is not made for {what}")]
    Unsupported {
        /// The kernel's name.
        kernel: &'static str,
        /// The size, and the kernel's limit.
        what: String,
    },
    /// NVRTC or the CUDA driver is not here.
    #[error("{0}")]
    Missing(String),
    /// A source that does not compile, with NVRTC's log.
    #[error("{file} does not compile for sm_{arch}:\n{log}")]
    Compile {
        /// The source's name.
        file: &'static str,
        /// Compute capability, as 90 for 9.0.
        arch: u32,
        /// What NVRTC says.
        log: String,
    },
    /// The CUDA driver refused.
    #[error("{kernel}: {what}")]
    Driver {
        /// The kernel's name.
        kernel: String,
        /// The driver's words.
        what: String,
    },
}
