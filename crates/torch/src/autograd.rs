//! Autograd nodes whose backward is a Rust closure, and vector-Jacobian products.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use crate::{Error, ffi};

/// Gradients with respect to outputs in, gradients with respect to inputs out; `None` is zero.
pub type Backward = Box<dyn FnOnce(Vec<Option<Tensor>>) -> Vec<Option<Tensor>>>;

struct State {
    backward: Option<Backward>,
}

/// Whether operations are recorded on this thread, and one of `tensors` asks for it.
pub fn wanted(tensors: &[&Tensor]) -> bool {
    // SAFETY: reads a thread-local flag.
    (unsafe { ffi::rt_grad_enabled() }) != 0 && tensors.iter().any(|t| t.requires_grad())
}

/// Makes `outputs` (computed under `no_grad` from `inputs`) results of one autograd node.
///
/// The tensors returned share storage with `outputs` and carry the graph: walking back calls
/// `backward` once with one entry per output, and it returns one entry per input, of the
/// input's shape. What backward needs, it captures. A second walk through the node is an error.
pub fn node(
    inputs: &[&Tensor],
    outputs: Vec<Tensor>,
    backward: Backward,
) -> Result<Vec<Tensor>, Error> {
    let state = Box::into_raw(Box::new(State {
        backward: Some(backward),
    }));
    let ins = ffi::raws(inputs);
    let mut outs: Vec<ffi::Raw> = outputs.iter().map(ffi::raw).collect();
    // SAFETY: the handles live through the call; the node takes `state` over and frees it with
    // `drop_state`, also when construction fails.
    ffi::check(unsafe {
        ffi::rt_node(
            ins.as_ptr(),
            ins.len(),
            outs.as_mut_ptr(),
            outs.len(),
            state.cast(),
            call,
            drop_state,
        )
    })?;
    // SAFETY: on success every entry was replaced by an owned handle.
    Ok(outs.into_iter().map(|t| unsafe { ffi::own(t) }).collect())
}

/// Makes `y`, computed without a graph, a function of `inputs` where a graph is being recorded.
/// `backward` gives one gradient per input from that of `y`; it is not called where none arrives.
///
/// # Panics
/// Where libtorch cannot allocate a node, as its own operators would.
pub fn record(
    inputs: &[&Tensor],
    y: Tensor,
    backward: impl FnOnce(Tensor) -> Vec<Option<Tensor>> + 'static,
) -> Tensor {
    if !wanted(inputs) {
        return y;
    }
    let count = inputs.len();
    let node = node(
        inputs,
        vec![y],
        Box::new(move |mut grads| match grads.pop().flatten() {
            Some(dy) => backward(dy),
            None => (0..count).map(|_| None).collect(),
        }),
    );
    node.expect("libtorch records an autograd node").remove(0)
}

/// `torch.autograd.grad`: gradients of `sum_i <outputs[i], grads[i]>` with respect to `inputs`;
/// `None` where an input is not reached. Accumulates nothing into `.grad`.
pub fn vjp(
    outputs: &[&Tensor],
    grads: &[&Tensor],
    inputs: &[&Tensor],
    retain_graph: bool,
) -> Result<Vec<Option<Tensor>>, Error> {
    assert_eq!(outputs.len(), grads.len(), "one gradient for each output");
    let (ys, gs, xs) = (ffi::raws(outputs), ffi::raws(grads), ffi::raws(inputs));
    let mut result = vec![std::ptr::null_mut(); xs.len()];
    // SAFETY: the arrays have the lengths given; results are owned handles or null.
    ffi::check(unsafe {
        ffi::rt_vjp(
            ys.as_ptr(),
            gs.as_ptr(),
            ys.len(),
            xs.as_ptr(),
            xs.len(),
            retain_graph.into(),
            result.as_mut_ptr(),
        )
    })?;
    // SAFETY: as above.
    Ok(result
        .into_iter()
        .map(|t| (!t.is_null()).then(|| unsafe { ffi::own(t) }))
        .collect())
}

unsafe extern "C" fn drop_state(state: *mut c_void) {
    // SAFETY: made by Box::into_raw in `node`, freed by the node's destructor once.
    drop(unsafe { Box::from_raw(state.cast::<State>()) });
}

unsafe extern "C" fn call(
    state: *mut c_void,
    grad_outputs: *mut ffi::Raw,
    n_out: usize,
    grad_inputs: *mut ffi::Raw,
    n_in: usize,
) -> *mut c_char {
    // SAFETY: `state` outlives the node; the arrays have the given lengths and pass ownership.
    let (state, outs, ins) = unsafe {
        (
            &mut *state.cast::<State>(),
            std::slice::from_raw_parts(grad_outputs, n_out),
            std::slice::from_raw_parts_mut(grad_inputs, n_in),
        )
    };
    let grads: Vec<Option<Tensor>> = outs
        .iter()
        // SAFETY: non-null entries are owned handles.
        .map(|&t| (!t.is_null()).then(|| unsafe { ffi::own(t) }))
        .collect();
    let Some(backward) = state.backward.take() else {
        return text("a Rust autograd node was walked twice");
    };
    // A panic must not unwind through C++.
    let result = catch_unwind(AssertUnwindSafe(|| tch::no_grad(|| backward(grads))));
    match result {
        Ok(grads) if grads.len() == n_in => {
            for (slot, grad) in ins.iter_mut().zip(grads) {
                if let Some(grad) = grad {
                    *slot = ffi::raw(&grad);
                    std::mem::forget(grad);
                }
            }
            std::ptr::null_mut()
        }
        Ok(grads) => text(&format!(
            "backward returned {} gradients for {n_in} inputs",
            grads.len()
        )),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            text(&format!("backward panicked: {what}"))
        }
    }
}

fn text(what: &str) -> *mut c_char {
    let clean = what.replace('\0', " ");
    let c = std::ffi::CString::new(clean).unwrap_or_default();
    // SAFETY: strdup copies a NUL-terminated text; the bridge frees it.
    unsafe { libc::strdup(c.as_ptr()) }
}
