//! AdamW over many tensors in one launch, and the gradients' norm (`adamw.cu`).

use tch::{Kind, Tensor};

use super::check::{Check, aligned};
use super::launch::{Args, Launch};
use super::source::ADAMW;
use super::{Error, Machine};

/// Elements of a block, as the source has it.
const ELEMENTS: i64 = 4096;
/// Words of a line of the table.
const LINE: usize = 8;
const THREADS: u32 = 256;

/// A parameter and its state. fp32, of one shape; changed in place.
#[derive(Debug)]
pub struct Slot<'a> {
    /// The master weights.
    pub master: &'a Tensor,
    /// Their gradient.
    pub grad: &'a Tensor,
    /// First moment.
    pub first: &'a Tensor,
    /// Second moment.
    pub second: &'a Tensor,
    /// The compute weights, bf16, written with the masters' new values.
    pub weight: Option<&'a Tensor>,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// Where the tensors of an update lie, on the device. Good while they live and none of them moves.
#[derive(Debug)]
pub struct Table {
    lines: Tensor,
    /// What was on the lines, to see whether they still hold.
    words: Vec<i64>,
    tensors: i64,
    blocks: i64,
}

impl Table {
    /// A table of these parameters; those without elements are left out.
    ///
    /// # Errors
    /// Tensors that do not fit.
    pub fn new(machine: &dyn Machine, slots: &[Slot]) -> Result<Self, Error> {
        let (words, blocks) = lines(machine, slots)?;
        Ok(Self {
            lines: Tensor::from_slice(&words).to_device(machine.device()),
            tensors: (words.len() / LINE) as i64,
            words,
            blocks,
        })
    }

    /// Makes the table one of these parameters, which copies to the device only where something moved.
    ///
    /// # Errors
    /// Tensors that do not fit.
    pub fn update(&mut self, machine: &dyn Machine, slots: &[Slot]) -> Result<(), Error> {
        if lines(machine, slots)?.0 != self.words {
            *self = Self::new(machine, slots)?;
        }
        Ok(())
    }
}

fn lines(machine: &dyn Machine, slots: &[Slot]) -> Result<(Vec<i64>, i64), Error> {
    let check = Check::new("adamw", machine);
    let (mut words, mut blocks) = (Vec::with_capacity(slots.len() * LINE), 0);
    for slot in slots {
        let size = slot.master.size();
        check.tensor("master", slot.master, &[Kind::Float], &size)?;
        check.tensor("grad", slot.grad, &[Kind::Float], &size)?;
        check.tensor("first moment", slot.first, &[Kind::Float], &size)?;
        check.tensor("second moment", slot.second, &[Kind::Float], &size)?;
        if let Some(weight) = slot.weight {
            check.tensor("weight", weight, &[Kind::BFloat16], &size)?;
        }
        let n = slot.master.numel() as i64;
        if n == 0 {
            continue;
        }
        let at = |t: &Tensor| t.data_ptr() as i64;
        words.extend([
            at(slot.master),
            at(slot.grad),
            at(slot.first),
            at(slot.second),
            slot.weight.map_or(0, at),
            n,
            i64::from(slot.decays),
            blocks,
        ]);
        blocks += (n + ELEMENTS - 1) / ELEMENTS;
    }
    check.int("blocks", blocks)?;
    Ok((words, blocks))
}

/// One step: `p -= lr (decay p + m^ / (sqrt(v^) + eps))`. `count` is 1 for the first step. Gradients are multiplied by
/// `scale`.
///
/// # Errors
/// A count of 0, or the machine's.
pub fn step(
    machine: &dyn Machine,
    table: &Table,
    scale: f64,
    with: torch::fused::AdamW,
    count: u64,
) -> Result<(), Error> {
    let check = Check::new("adamw", machine);
    if count == 0 {
        return Err(check.refuse("steps are counted from 1".into()));
    }
    if table.blocks == 0 {
        return Ok(());
    }
    let correction = |beta: f64| 1.0 - beta.powf(count as f64);
    machine.launch(&Launch {
        file: &ADAMW,
        kernel: "adamw".into(),
        grid: [table.blocks as u32, 1, 1],
        threads: THREADS,
        shared: 0,
        args: Args::default()
            .tensor(&table.lines)
            .int(table.tensors)
            .float(scale)
            .float(with.lr)
            .float(with.beta1)
            .float(with.beta2)
            .float(with.eps)
            .float(with.weight_decay)
            .float(with.lr / correction(with.beta1))
            .float(correction(with.beta2).sqrt()),
    })
}

/// The sum of the squares of all gradients of a table, `[1]` fp64, on the device.
///
/// # Errors
/// The machine's.
pub fn squares(machine: &dyn Machine, table: &Table) -> Result<Tensor, Error> {
    if table.blocks == 0 {
        return Ok(Tensor::zeros([1], (Kind::Double, machine.device())));
    }
    let sums = machine.empty(&[table.blocks], Kind::Float);
    machine.launch(&Launch {
        file: &ADAMW,
        kernel: "squares".into(),
        grid: [table.blocks as u32, 1, 1],
        threads: THREADS,
        shared: 128,
        args: Args::default()
            .tensor(&table.lines)
            .int(table.tensors)
            .tensor(&sums),
    })?;
    let total = machine.empty(&[1], Kind::Double);
    debug_assert!(aligned(&total, 8));
    machine.launch(&Launch {
        file: &ADAMW,
        kernel: "squares_total".into(),
        grid: [1, 1, 1],
        threads: THREADS,
        shared: 8 * THREADS,
        args: Args::default()
            .tensor(&sums)
            .tensor(&total)
            .int(table.blocks),
    })?;
    Ok(total)
}
