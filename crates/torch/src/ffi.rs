//! The C functions of `cxx/`. Tensors cross as `at::Tensor*`, which is what tch's `C_tensor*` is.

use std::ffi::{CStr, c_char, c_int, c_void};

pub type Raw = *mut c_void;

pub type Backward = unsafe extern "C" fn(
    state: *mut c_void,
    grad_outputs: *mut Raw,
    n_out: usize,
    grad_inputs: *mut Raw,
    n_in: usize,
) -> *mut c_char;

/// What names a stream: c10's three numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamId {
    id: i64,
    device: i32,
    kind: i32,
}

unsafe extern "C" {
    pub fn rt_node(
        inputs: *const Raw,
        n_in: usize,
        outputs: *mut Raw,
        n_out: usize,
        state: *mut c_void,
        call: Backward,
        drop: unsafe extern "C" fn(*mut c_void),
    ) -> *mut c_char;
    pub fn rt_flash_forward(
        q: Raw,
        k: Raw,
        v: Raw,
        ends_q: Raw,
        ends_k: Raw,
        max_q: i64,
        max_k: i64,
        scale: f64,
        window: i64,
        results: *mut Raw,
    ) -> *mut c_char;
    pub fn rt_flash_backward(
        grad: Raw,
        q: Raw,
        k: Raw,
        v: Raw,
        kept: *const Raw,
        ends_q: Raw,
        ends_k: Raw,
        max_q: i64,
        max_k: i64,
        scale: f64,
        window: i64,
        results: *mut Raw,
    ) -> *mut c_char;
    pub fn rt_memory_device_peak(kind: i32, index: i32, out: *mut i64) -> *mut c_char;
    pub fn rt_memory_count();
    pub fn rt_memory_live() -> i64;
    pub fn rt_memory_peak() -> i64;

    pub fn rt_grad_enabled() -> c_int;
    pub fn rt_vjp(
        outputs: *const Raw,
        grads: *const Raw,
        n_out: usize,
        inputs: *const Raw,
        n_in: usize,
        retain: c_int,
        result: *mut Raw,
    ) -> *mut c_char;

    pub fn rt_store_new(
        host: *const c_char,
        port: u16,
        is_server: c_int,
        world: i64,
        timeout_ms: i64,
        out: *mut Raw,
    ) -> *mut c_char;
    pub fn rt_store_free(store: Raw);
    pub fn rt_store_share(store: Raw) -> Raw;
    pub fn rt_store_set(store: Raw, key: *const c_char, value: *const c_char) -> *mut c_char;
    pub fn rt_store_get(store: Raw, key: *const c_char, out: *mut *mut c_char) -> *mut c_char;
    pub fn rt_gloo_new(
        store: Raw,
        name: *const c_char,
        hostname: *const c_char,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        out: *mut Raw,
    ) -> *mut c_char;
    pub fn rt_gloo_free(group: Raw);
    pub fn rt_gloo_all_reduce(group: Raw, tensor: Raw, max: c_int) -> *mut c_char;
    pub fn rt_gloo_broadcast(group: Raw, tensor: Raw, root: c_int) -> *mut c_char;
    pub fn rt_gloo_all_gather(group: Raw, out: Raw, input: Raw) -> *mut c_char;
    pub fn rt_gloo_all_gather_start(
        group: Raw,
        out: Raw,
        input: Raw,
        work: *mut Raw,
    ) -> *mut c_char;
    pub fn rt_gloo_reduce_scatter_start(
        group: Raw,
        out: Raw,
        input: Raw,
        work: *mut Raw,
    ) -> *mut c_char;
    pub fn rt_work_wait(work: Raw) -> *mut c_char;
    pub fn rt_work_free(work: Raw);
    pub fn rt_gloo_reduce_scatter(group: Raw, out: Raw, input: Raw) -> *mut c_char;
    pub fn rt_gloo_all_to_all(
        group: Raw,
        out: Raw,
        input: Raw,
        out_rows: *const i64,
        in_rows: *const i64,
        n: usize,
    ) -> *mut c_char;
    pub fn rt_gloo_send(group: Raw, tensor: Raw, to: c_int, tag: c_int) -> *mut c_char;
    pub fn rt_gloo_send_start(
        group: Raw,
        tensor: Raw,
        to: c_int,
        tag: c_int,
        work: *mut Raw,
    ) -> *mut c_char;
    pub fn rt_gloo_recv(group: Raw, tensor: Raw, from: c_int, tag: c_int) -> *mut c_char;
    pub fn rt_gloo_barrier(group: Raw) -> *mut c_char;

    pub fn rt_device_select(kind: i32, index: i32) -> *mut c_char;
    pub fn rt_stream_current(kind: i32, index: i32, out: *mut StreamId) -> *mut c_char;
    pub fn rt_stream_side(kind: i32, index: i32, out: *mut StreamId) -> *mut c_char;
    pub fn rt_stream_native(stream: *const StreamId, out: *mut *mut c_void) -> *mut c_char;
    pub fn rt_stream_record(stream: *const StreamId, timed: c_int, out: *mut Raw) -> *mut c_char;
    pub fn rt_stream_wait(stream: *const StreamId, event: Raw) -> *mut c_char;
    pub fn rt_event_ended(event: Raw, out: *mut c_int) -> *mut c_char;
    pub fn rt_event_synchronize(event: Raw) -> *mut c_char;
    pub fn rt_event_between(from: Raw, to: Raw, out: *mut f64) -> *mut c_char;
    pub fn rt_event_free(event: Raw);

    pub fn rt_observe_start(
        begun: extern "C" fn(),
        ended: extern "C" fn(*const c_char),
    ) -> *mut c_char;
    pub fn rt_observe_stop();

    pub fn rt_fused_adamw(
        params: *const Raw,
        grads: *const Raw,
        m: *const Raw,
        v: *const Raw,
        steps: *const Raw,
        n: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    pub fn rt_parallel_for(
        n: i64,
        grain: i64,
        state: *mut c_void,
        body: unsafe extern "C" fn(*mut c_void, i64, i64),
    );
    pub fn rt_tensor_version(tensor: Raw) -> u64;
    pub fn rt_storage_resize(tensor: Raw, bytes: usize) -> *mut c_char;
    pub fn rt_cpu_capability() -> *mut c_char;
    pub fn rt_version() -> *mut c_char;
}

/// Takes over a malloc'ed text of the bridge.
pub fn take_text(text: *mut c_char) -> String {
    // SAFETY: the bridge hands over a NUL-terminated malloc'ed text, freed here once.
    unsafe {
        let out = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        out
    }
}

/// The first paragraph of a libtorch exception: what follows is a C++ stack trace.
pub fn check(error: *mut c_char) -> Result<(), crate::Error> {
    if error.is_null() {
        return Ok(());
    }
    let text = take_text(error);
    let first = text
        .split("\nException raised from")
        .next()
        .unwrap_or(&text);
    Err(crate::Error::Libtorch(first.trim().to_owned()))
}

pub fn raw(tensor: &tch::Tensor) -> Raw {
    tensor.as_ptr().cast_mut().cast()
}

pub fn raws(tensors: &[&tch::Tensor]) -> Vec<Raw> {
    tensors.iter().map(|t| raw(t)).collect()
}

/// Takes over a tensor that the bridge allocated.
///
/// # Safety
/// `tensor` is an owned `at::Tensor*` that nothing else frees.
pub unsafe fn own(tensor: Raw) -> tch::Tensor {
    // SAFETY: by the contract above.
    unsafe { tch::Tensor::from_ptr(tensor.cast()) }
}
