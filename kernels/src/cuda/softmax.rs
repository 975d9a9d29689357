//! Log-probability of one token a row and entropy from a chunk of logits, and back (`softmax.cu`).

use tch::{Kind, Tensor};

use super::check::{Check, FLOATS, kind_name, width};
use super::launch::{Args, Launch};
use super::source::SOFTMAX;
use super::{Error, Machine};

const THREADS: u32 = 512;

/// What the forward gives, by row, in fp32.
#[derive(Debug)]
pub struct Values {
    /// log p(target) `[rows]`.
    pub logp: Tensor,
    /// Entropy in nats `[rows]`, if asked for.
    pub entropy: Option<Tensor>,
    /// Logarithm of the softmax's denominator `[rows]`.
    pub lse: Tensor,
}

/// Of `logits` `[rows, n]` times `by`, at `targets` `[rows]` (int64, each below `n`: the caller sees to it).
///
/// # Errors
/// Tensors that do not fit, or the machine's.
pub fn forward(
    machine: &dyn Machine,
    logits: &Tensor,
    targets: &Tensor,
    by: f64,
    entropy: bool,
) -> Result<Values, Error> {
    let check = Check::new("softmax_forward", machine);
    let (rows, n) = sizes(&check, logits, targets)?;
    let column = || machine.empty(&[rows], Kind::Float);
    let values = Values {
        logp: column(),
        entropy: entropy.then(column),
        lse: column(),
    };
    if rows > 0 {
        let (_, odd) = width(n, &[logits]);
        machine.launch(&Launch {
            file: &SOFTMAX,
            kernel: format!("softmax_forward_{}{odd}", kind_name(logits.kind())),
            grid: [rows as u32, 1, 1],
            threads: THREADS,
            shared: 3 * 32 * 4,
            args: Args::default()
                .tensor(logits)
                .tensor(targets)
                .tensor(&values.logp)
                .optional(values.entropy.as_ref())
                .tensor(&values.lse)
                .int(n)
                .float(by),
        })?;
    }
    Ok(values)
}

/// The logits' gradient, written over them, from those of the log-probabilities and, if the entropy was asked for, of
/// the entropies, `[rows]` fp32.
///
/// # Errors
/// Tensors that do not fit, or the machine's.
pub fn backward(
    machine: &dyn Machine,
    logits: &mut Tensor,
    targets: &Tensor,
    by: f64,
    values: &Values,
    d_logp: &Tensor,
    d_entropy: Option<&Tensor>,
) -> Result<(), Error> {
    let check = Check::new("softmax_backward", machine);
    let (rows, n) = sizes(&check, logits, targets)?;
    check.tensor("lse", &values.lse, &[Kind::Float], &[rows])?;
    check.tensor("d_logp", d_logp, &[Kind::Float], &[rows])?;
    let entropy = match d_entropy {
        None => None,
        Some(d) => {
            check.tensor("d_entropy", d, &[Kind::Float], &[rows])?;
            let Some(entropy) = &values.entropy else {
                return Err(check.refuse(
                    "there is a gradient of the entropy, which the forward was not asked for"
                        .into(),
                ));
            };
            check.tensor("entropy", entropy, &[Kind::Float], &[rows])?;
            Some(entropy)
        }
    };
    if rows > 0 {
        let (_, odd) = width(n, &[logits]);
        machine.launch(&Launch {
            file: &SOFTMAX,
            kernel: format!("softmax_backward_{}{odd}", kind_name(logits.kind())),
            grid: [rows as u32, 1, 1],
            threads: THREADS,
            shared: 0,
            args: Args::default()
                .tensor(logits)
                .tensor(targets)
                .tensor(&values.lse)
                .optional(entropy)
                .tensor(d_logp)
                .optional(d_entropy)
                .int(n)
                .float(by),
        })?;
    }
    Ok(())
}

fn sizes(check: &Check, logits: &Tensor, targets: &Tensor) -> Result<(i64, i64), Error> {
    check.tensor("logits", logits, &FLOATS, &[-1, -1])?;
    let (rows, n) = (logits.size()[0], logits.size()[1]);
    check.tensor("targets", targets, &[Kind::Int64], &[rows])?;
    check.int("rows", rows)?;
    check.int("vocabulary", n)?;
    if n == 0 && rows > 0 {
        return Err(check.refuse(format!("logits have shape [{rows}, 0]: there is no token")));
    }
    Ok((rows, n))
}
