//! Tensor storage: version counters, and memory given back without losing the tensor's identity.

use tch::Tensor;

use crate::{Error, ffi};

/// The autograd version counter: goes up with every in-place change, shared by views.
pub fn version(tensor: &Tensor) -> u64 {
    // SAFETY: a live handle.
    unsafe { ffi::rt_tensor_version(ffi::raw(tensor)) }
}

/// Gives the storage below `tensor` new memory of `bytes`, of undefined content; 0 frees it while
/// views keep their shape. Reading a tensor whose storage is too small is undefined, so only an
/// owner of all views may call this.
pub fn resize(tensor: &Tensor, bytes: usize) -> Result<(), Error> {
    // SAFETY: a live handle.
    ffi::check(unsafe { ffi::rt_storage_resize(ffi::raw(tensor), bytes) })
}
