//! libtorch's intra-op threads. The count is part of a result's numerics.

use std::any::Any;
use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use crate::ffi;

/// Sets the number of threads that one operator may use. Call before the first operator.
pub fn set(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// The number of threads that one operator may use.
pub fn get() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Runs `body` over parts of `0..n`, of at least `grain` but for the last, on libtorch's intra-op
/// threads: a second pool would fight with their spinning. How `0..n` is cut depends on the
/// number of threads, so a result must not depend on the cuts.
pub fn parallel_for(n: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
    let job = Job {
        body,
        panic: Mutex::new(None),
    };
    // SAFETY: `job` outlives the call, which returns when all parts are done.
    unsafe {
        ffi::rt_parallel_for(
            n as i64,
            grain.max(1) as i64,
            (&raw const job).cast_mut().cast(),
            call,
        );
    }
    if let Some(panic) = job.panic.into_inner().unwrap_or_else(|e| e.into_inner()) {
        resume_unwind(panic);
    }
}

struct Job<'a> {
    body: &'a (dyn Fn(Range<usize>) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

unsafe extern "C" fn call(state: *mut c_void, begin: i64, end: i64) {
    // SAFETY: `parallel_for` passes a `Job` that outlives the call.
    let job = unsafe { &*state.cast::<Job>() };
    // A panic must not unwind through OpenMP.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| {
        (job.body)(begin as usize..end as usize)
    })) {
        *job.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
    }
}
