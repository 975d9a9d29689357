//! The kernels' sources, in the binary.

/// A source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct File {
    /// Its name in `kernels/cuda`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! files {
    ($($id:ident = $name:literal),* $(,)?) => {
        $(#[doc = concat!("`", $name, "`")]
        pub static $id: File = File { name: $name, text: include_str!(concat!("../../cuda/", $name)) };)*
    };
}

files! {
    COMMON = "common.cuh",
    ADAMW = "adamw.cu",
    PAGED_ATTENTION = "paged_attention.cu",
    RMS_NORM = "rms_norm.cu",
    ROPE = "rope.cu",
    SAMPLE = "sample.cu",
    SOFTMAX = "softmax.cu",
    SWIGLU = "swiglu.cu",
}

/// All that are compiled; each includes [`COMMON`].
pub static ALL: [&File; 7] = [
    &ADAMW,
    &PAGED_ATTENTION,
    &RMS_NORM,
    &ROPE,
    &SAMPLE,
    &SOFTMAX,
    &SWIGLU,
];
