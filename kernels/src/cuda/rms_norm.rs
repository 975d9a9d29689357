//! Root mean square norm of rows with the residual's addition before it, forward and backward (`rms_norm.cu`).

use tch::{Kind, Tensor};

use super::check::{Check, FLOATS, kind_name, width};
use super::launch::{Args, Launch};
use super::source::RMS_NORM;
use super::{Error, Machine};

const THREADS: u32 = 256;
/// Rows up to this size belong to a warp, others to a block.
const NARROW: i64 = 1024;
/// Blocks of the backward: a number of its own, so that the order of its sums does not depend on the device.
const BLOCKS: u32 = 528;
/// Shared memory that a block has without asking for more.
const SHARED: i64 = 48 << 10;

/// What the forward gives.
#[derive(Debug)]
pub struct Normed {
    /// The normed rows.
    pub y: Tensor,
    /// `x + residual`, where there is one.
    pub sum: Option<Tensor>,
    /// One over the root mean square `[rows]`, fp32.
    pub rstd: Tensor,
}

/// How a launch over rows of `n` elements is cut.
struct Cut {
    name: String,
    wide: bool,
    /// Shared memory of the backward, bytes.
    shared: i64,
}

impl Cut {
    fn new(kind: Kind, n: i64, tensors: &[&Tensor]) -> Self {
        let (v, odd) = width(n, tensors);
        let wide = n > NARROW;
        let (step, groups) = match wide {
            true => (i64::from(THREADS), 1),
            false => (32, i64::from(THREADS) / 32),
        };
        let slots = (n / v + step - 1) / step * step * v;
        Self {
            name: format!(
                "{}_{}{odd}",
                kind_name(kind),
                if wide { "wide" } else { "narrow" }
            ),
            wide,
            shared: 4 * (32 + groups * slots),
        }
    }

    fn rows_per_block(&self) -> u32 {
        if self.wide { 1 } else { THREADS / 32 }
    }
}

/// Rows and their size: the last dimension is a row.
fn rows_of(x: &Tensor, check: &Check) -> Result<(i64, i64), Error> {
    let n = x.size().last().copied().unwrap_or(0);
    if n == 0 {
        return Err(check.refuse(format!("x has shape {:?}: rows have no element", x.size())));
    }
    let rows = x.numel() as i64 / n;
    check.int("rows", rows)?;
    check.int("elements of a row", n)?;
    Ok((rows, n))
}

/// Norms `x` `[.., n]`, after `residual` of the same shape was added to it, by `weight` `[n]`; all of one kind.
///
/// # Errors
/// Tensors that do not fit, or the machine's.
pub fn forward(
    machine: &dyn Machine,
    x: &Tensor,
    residual: Option<&Tensor>,
    weight: &Tensor,
    eps: f64,
) -> Result<Normed, Error> {
    let check = Check::new("rms_norm_forward", machine);
    let (kind, size) = (x.kind(), x.size());
    check.tensor("x", x, &FLOATS, &size)?;
    let (rows, n) = rows_of(x, &check)?;
    check.tensor("weight", weight, &[kind], &[n])?;
    if let Some(r) = residual {
        check.tensor("residual", r, &[kind], &size)?;
    }
    let y = machine.empty(&size, kind);
    let sum = residual.map(|_| machine.empty(&size, kind));
    let rstd = machine.empty(&[rows], Kind::Float);
    if rows > 0 {
        let all: Vec<&Tensor> = [x, weight, &y]
            .into_iter()
            .chain(residual)
            .chain(&sum)
            .collect();
        let cut = Cut::new(kind, n, &all);
        machine.launch(&Launch {
            file: &RMS_NORM,
            kernel: format!("rms_norm_forward_{}", cut.name),
            grid: [(rows as u32).div_ceil(cut.rows_per_block()), 1, 1],
            threads: THREADS,
            shared: 128,
            args: Args::default()
                .tensor(x)
                .optional(residual)
                .tensor(weight)
                .optional(sum.as_ref())
                .tensor(&y)
                .tensor(&rstd)
                .int(rows)
                .int(n)
                .float(eps),
        })?;
    }
    Ok(Normed { y, sum, rstd })
}

/// Gradients of what was normed (`sum` of the forward, or `x`) and of `weight`, from that of `y` and, where the sum is
/// used elsewhere too, that of the sum, which is added.
///
/// # Errors
/// Tensors that do not fit, rows that do not fit shared memory, or the machine's.
pub fn backward(
    machine: &dyn Machine,
    normed: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    dy: &Tensor,
    d_sum: Option<&Tensor>,
) -> Result<(Tensor, Tensor), Error> {
    let check = Check::new("rms_norm_backward", machine);
    let (kind, size) = (normed.kind(), normed.size());
    check.tensor("normed", normed, &FLOATS, &size)?;
    let (rows, n) = rows_of(normed, &check)?;
    check.tensor("weight", weight, &[kind], &[n])?;
    check.tensor("rstd", rstd, &[Kind::Float], &[rows])?;
    check.tensor("dy", dy, &[kind], &size)?;
    if let Some(d) = d_sum {
        check.tensor("d_sum", d, &[kind], &size)?;
    }
    let dx = machine.empty(&size, kind);
    let all: Vec<&Tensor> = [normed, weight, dy, &dx].into_iter().chain(d_sum).collect();
    let cut = Cut::new(kind, n, &all);
    if !fits(n, kind) {
        return Err(check.unsupported(format!("rows of {n} elements: at most {LIMIT}")));
    }
    if rows == 0 {
        return Ok((dx, weight.zeros_like()));
    }
    let blocks = (rows as u32).div_ceil(cut.rows_per_block()).min(BLOCKS);
    let sums = machine.empty(&[i64::from(blocks), n], Kind::Float);
    machine.launch(&Launch {
        file: &RMS_NORM,
        kernel: format!("rms_norm_backward_{}", cut.name),
        grid: [blocks, 1, 1],
        threads: THREADS,
        shared: cut.shared as u32,
        args: Args::default()
            .tensor(normed)
            .tensor(weight)
            .tensor(rstd)
            .tensor(dy)
            .optional(d_sum)
            .tensor(&dx)
            .tensor(&sums)
            .int(rows)
            .int(n),
    })?;
    let dw = machine.empty(&[n], kind);
    machine.launch(&Launch {
        file: &RMS_NORM,
        kernel: format!("rms_norm_columns_{}", kind_name(kind)),
        grid: [(n as u32).div_ceil(32), 1, 1],
        threads: THREADS,
        shared: 4 * THREADS,
        args: Args::default()
            .tensor(&sums)
            .tensor(&dw)
            .int(i64::from(blocks))
            .int(n),
    })?;
    Ok((dx, dw))
}

/// The longest row that the backward's sums fit shared memory for, whatever its alignment.
const LIMIT: i64 = 10240;

/// Whether rows of this size and kind can be normed both ways.
pub fn fits(n: i64, kind: Kind) -> bool {
    const { assert!(4 * (32 + LIMIT) <= SHARED) };
    FLOATS.contains(&kind) && n > 0 && n <= LIMIT
}
