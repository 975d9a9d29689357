//! Rotary embedding of queries and keys (`rope.cu`).

use tch::{Kind, Tensor};

use super::check::{Check, FLOATS, kind_name, width};
use super::launch::{Args, Launch};
use super::source::ROPE;
use super::{Error, Machine};

/// Turns `q` `[rows, heads, d]` and `k` `[rows, kv_heads, d]`, of one kind, by the angles whose cosines and sines
/// `[rows, d/2]` are given in fp32; back with `inverse`, which is the gradient.
///
/// # Errors
/// Tensors that do not fit, or the machine's.
pub fn turn(
    machine: &dyn Machine,
    q: &Tensor,
    k: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    inverse: bool,
) -> Result<(Tensor, Tensor), Error> {
    let check = Check::new("rope", machine);
    let kind = q.kind();
    check.tensor("q", q, &FLOATS, &[-1, -1, -1])?;
    let (rows, heads, d) = (q.size()[0], q.size()[1], q.size()[2]);
    check.tensor("k", k, &[kind], &[rows, -1, d])?;
    if d % 2 != 0 {
        return Err(check.refuse(format!(
            "heads have {d} elements: pairs need an even number"
        )));
    }
    let half = d / 2;
    check.tensor("cos", cos, &[Kind::Float], &[rows, half])?;
    check.tensor("sin", sin, &[Kind::Float], &[rows, half])?;
    let kv_heads = k.size()[1];
    let grid = check.int("rows", rows)?;
    check.int("elements of a row", (heads + kv_heads) * d)?;
    let (to_q, to_k) = (
        machine.empty(&q.size(), kind),
        machine.empty(&k.size(), kind),
    );
    if rows > 0 && (heads + kv_heads) * d > 0 {
        let (_, odd) = width(half, &[q, k, &to_q, &to_k]);
        machine.launch(&Launch {
            file: &ROPE,
            kernel: format!("rope_{}{odd}", kind_name(kind)),
            grid: [grid, 1, 1],
            threads: 256,
            shared: 0,
            args: Args::default()
                .tensor(q)
                .tensor(k)
                .tensor(cos)
                .tensor(sin)
                .tensor(&to_q)
                .tensor(&to_k)
                .int(heads)
                .int(kv_heads)
                .int(half)
                .float(if inverse { -1.0 } else { 1.0 }),
        })?;
    }
    Ok((to_q, to_k))
}
