//! libtorch's intra-op threads. The count is part of a result's numerics.

/// Sets the number of threads that one operator may use. Call before the first operator.
pub fn set(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// The number of threads that one operator may use.
pub fn get() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}
