//! Choice of tokens from logits on the device (`sample.cu`).

use tch::{Kind, Tensor};

use super::check::{Check, FLOATS, kind_name};
use super::launch::{Args, Launch};
use super::source::SAMPLE;
use super::{Error, Machine};

/// Tokens that whole-numbered probabilities have room for.
const VOCABULARY: i64 = 1 << 19;
/// Bytes of the source's `Shared`.
const SHARED: u32 = 8 * (256 + 32 + 1) + 8 + 4 * 32;

/// What to choose, each `[picks]`.
#[derive(Debug)]
pub struct Picks<'a> {
    /// Row of the logits, int32.
    pub rows: &'a Tensor,
    /// One over the temperature, fp32; 0 takes the first of the most likely.
    pub by: &'a Tensor,
    /// Keep so many of the most likely, int32; 0 keeps all.
    pub top_k: &'a Tensor,
    /// Of these keep the fewest that reach this share, fp32; 1 keeps all.
    pub top_p: &'a Tensor,
    /// Uniform bits, int64.
    pub draws: &'a Tensor,
}

/// What was chosen, each `[picks]`.
#[derive(Debug)]
pub struct Chosen {
    /// Tokens, int32; -1 where logits are not numbers.
    pub tokens: Tensor,
    /// Log-probabilities under softmax(logits / temperature), unfiltered, fp32.
    pub logprobs: Tensor,
}

/// Chooses a token for each pick from `logits` `[rows, n]`.
///
/// # Errors
/// Tensors that do not fit, or the machine's.
pub fn choose(machine: &dyn Machine, logits: &Tensor, picks: &Picks) -> Result<Chosen, Error> {
    let check = Check::new("sample", machine);
    check.tensor("logits", logits, &FLOATS, &[-1, -1])?;
    let n = logits.size()[1];
    let count = picks.rows.numel() as i64;
    check.tensor("rows", picks.rows, &[Kind::Int], &[count])?;
    check.tensor("by", picks.by, &[Kind::Float], &[count])?;
    check.tensor("top_k", picks.top_k, &[Kind::Int], &[count])?;
    check.tensor("top_p", picks.top_p, &[Kind::Float], &[count])?;
    check.tensor("draws", picks.draws, &[Kind::Int64], &[count])?;
    if n == 0 || n > VOCABULARY {
        return Err(check.unsupported(format!("{n} tokens: from 1 to {VOCABULARY}")));
    }
    let chosen = Chosen {
        tokens: machine.empty(&[count], Kind::Int),
        logprobs: machine.empty(&[count], Kind::Float),
    };
    let grid = check.int("picks", count)?;
    if count > 0 {
        machine.launch(&Launch {
            file: &SAMPLE,
            kernel: format!("sample_{}", kind_name(logits.kind())),
            grid: [grid, 1, 1],
            threads: 512,
            shared: SHARED,
            args: Args::default()
                .tensor(logits)
                .tensor(picks.rows)
                .tensor(picks.by)
                .tensor(picks.top_k)
                .tensor(picks.top_p)
                .tensor(picks.draws)
                .tensor(&chosen.tokens)
                .tensor(&chosen.logprobs)
                .int(n),
        })?;
    }
    Ok(chosen)
}
