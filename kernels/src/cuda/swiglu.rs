//! Gated activation, forward and backward (`swiglu.cu`).

use tch::Tensor;

use super::check::{Check, FLOATS, kind_name, width};
use super::launch::{Args, Launch};
use super::source::SWIGLU;
use super::{Error, Machine};

const THREADS: i64 = 256;

/// `silu(gate) * up`, of one kind and shape.
///
/// # Errors
/// Tensors that do not fit, or the machine's.
pub fn forward(machine: &dyn Machine, gate: &Tensor, up: &Tensor) -> Result<Tensor, Error> {
    let check = Check::new("swiglu_forward", machine);
    let size = gate.size();
    check.tensor("gate", gate, &FLOATS, &size)?;
    check.tensor("up", up, &[gate.kind()], &size)?;
    let y = machine.empty(&size, gate.kind());
    launch(&check, &[gate, up, &y])?;
    Ok(y)
}

/// Gradients of `gate` and `up` from that of the result.
///
/// # Errors
/// Tensors that do not fit, or the machine's.
pub fn backward(
    machine: &dyn Machine,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Tensor), Error> {
    let check = Check::new("swiglu_backward", machine);
    let (size, kind) = (gate.size(), gate.kind());
    check.tensor("gate", gate, &FLOATS, &size)?;
    check.tensor("up", up, &[kind], &size)?;
    check.tensor("dy", dy, &[kind], &size)?;
    let (dg, du) = (machine.empty(&size, kind), machine.empty(&size, kind));
    launch(&check, &[gate, up, dy, &dg, &du])?;
    Ok((dg, du))
}

/// Over all elements of tensors of one size.
fn launch(check: &Check, tensors: &[&Tensor]) -> Result<(), Error> {
    let n = tensors[0].numel() as i64;
    if n == 0 {
        return Ok(());
    }
    let (v, odd) = width(n, tensors);
    let blocks = check.int("blocks", (n / v + THREADS - 1) / THREADS)?;
    let args = tensors
        .iter()
        .fold(Args::default(), |args, t| args.tensor(t));
    check.machine.launch(&Launch {
        file: &SWIGLU,
        kernel: format!("{}_{}{odd}", check.kernel, kind_name(tensors[0].kind())),
        grid: [blocks, 1, 1],
        threads: THREADS as u32,
        shared: 0,
        args: args.long(n),
    })
}
