//! The token log-probability head: from hidden states to log p(target) and entropy, and back.
//!
//! Rows go through in chunks, so that logits `[rows, vocabulary]` never exist whole unless they
//! fit one chunk; backward computes a chunk's logits again from the hidden states. When all rows
//! fit one chunk they are kept instead of computed again. Where the coefficients of the
//! log-probabilities are known beforehand, one pass gives values and gradients ([`Head::fused`]).
//!
//! Where ranks share the vocabulary, each has the logits of its own rows of the LM matrix, and the
//! ranks exchange three or four numbers a row: the maximum, then the sum of exponentials, the
//! target's logit and, for the entropy, the logits' mean. All ranks see the same values.

use kernels::{Fused, Softmax};
use model::Ops;
use parallel::Collective;
use tch::{Device, Kind, Tensor};

use crate::Error;

#[cfg(test)]
mod tests;

/// Bytes of fp32 logits that a chunk may hold when the recipe gives no chunk size; on a GPU, whose
/// products want many rows and whose gradient of the LM matrix is written anew by each chunk, more.
const CHUNK_BYTES: usize = 64 << 20;
const CHUNK_BYTES_GPU: usize = 1 << 30;

/// How hidden states become log-probabilities.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    /// Logits are divided by it before the softmax.
    pub temperature: f64,
    /// Rows per chunk; `None` chooses by memory.
    pub chunk: Option<usize>,
    /// The whole vocabulary.
    pub vocabulary: usize,
    /// The ranks that share it, by [`arch::slice::even`].
    pub ranks: &'a dyn Collective,
}

/// What the head reads. No tensor carries a graph.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// `[n, hidden]`, compute kind.
    pub hidden: &'a Tensor,
    /// This rank's rows of the LM matrix, `[vocabulary, hidden]`, compute kind.
    pub weight: &'a Tensor,
    /// Token ids `[n]`, i64.
    pub targets: &'a Tensor,
}

/// Values by row.
pub(crate) struct Scored {
    /// log p(target) `[n]`, fp32 or fp64.
    pub logp: Tensor,
    /// Entropy in nats `[n]`, if asked for.
    pub entropy: Option<Tensor>,
    /// By chunk.
    known: Vec<Known>,
    /// [`Chunk::logits`], if asked for and all rows fit one chunk.
    kept: Option<Tensor>,
}

/// What backward needs of a chunk's softmax beside its logits.
enum Known {
    /// This rank has the whole vocabulary.
    Whole(Softmax),
    /// Ranks share it: the logarithm of the softmax's denominator `[n]`.
    Shared(Tensor),
}

impl Scored {
    /// Log-probabilities and, if asked for, entropies.
    pub fn values(&self) -> Vec<Tensor> {
        let entropy = self.entropy.iter();
        std::iter::once(&self.logp)
            .chain(entropy)
            .map(Tensor::shallow_clone)
            .collect()
    }
}

/// Gradients of the head's inputs.
pub(crate) struct Pulled {
    /// `[n, hidden]`, compute kind; this rank's part of a sum, where ranks share the vocabulary.
    pub hidden: Tensor,
    /// Of this rank's rows, `[vocabulary, hidden]`, accumulation kind.
    pub weight: Tensor,
}

/// Gradients with respect to the values.
#[derive(Clone, Copy)]
pub(crate) struct Pull<'a> {
    /// `[n]`.
    pub logp: &'a Tensor,
    /// `[n]`, if the entropy enters the loss.
    pub entropy: Option<&'a Tensor>,
}

/// The kind in which losses and gradients are accumulated: fp64 under fp64 compute, else fp32.
pub(crate) fn accumulation(compute: Kind) -> Kind {
    if compute == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    }
}

impl Head<'_> {
    fn chunk_rows(&self, device: Device) -> i64 {
        let bytes = match device {
            Device::Cuda(_) => CHUNK_BYTES_GPU,
            _ => CHUNK_BYTES,
        };
        // the same on all ranks, also where one more row of the LM matrix is on some
        let vocabulary = self.vocabulary.div_ceil(self.ranks.size());
        let rows = self
            .chunk
            .unwrap_or_else(|| (bytes / (4 * vocabulary.max(1))).max(64));
        rows.max(1) as i64
    }

    /// Values without gradients. `keep` holds on to the logits for [`Head::backward`] when all rows
    /// fit one chunk.
    pub fn score(&self, input: Input, entropy: bool, keep: bool) -> Result<Scored, Error> {
        let _no_grad = tch::no_grad_guard();
        let chunks = self.chunks(input);
        let mut values = Values::default();
        let mut kept = None;
        for &(at, len) in &chunks {
            let logits = values.push(self.softmax(&input.part(at, len), entropy)?);
            if keep && chunks.len() == 1 {
                kept = Some(logits);
            }
        }
        Ok(values.finish(kept))
    }

    /// Gradients of the inputs from those of the values of [`Head::score`], which has the entropy
    /// if there is a gradient of it.
    pub fn backward(&self, input: Input, scored: Scored, pull: Pull) -> Pulled {
        let _no_grad = tch::no_grad_guard();
        let mut sum = PullSum::default();
        let mut kept = scored.kept;
        for ((at, len), known) in self.chunks(input).into_iter().zip(&scored.known) {
            let part = input.part(at, len);
            let logits = kept.take().unwrap_or_else(|| match known {
                Known::Whole(_) => self.logits(&part),
                Known::Shared(normal) => self.scaled(&part) - normal.unsqueeze(-1),
            });
            let entropy = scored.entropy.as_ref().map(|x| x.narrow(0, at, len));
            self.pull_chunk(&part, logits, known, entropy, &pull.part(at, len), &mut sum);
        }
        sum.finish(input)
    }

    /// Values and gradients in one pass, for gradients known beforehand.
    pub fn fused(
        &self,
        input: Input,
        entropy: bool,
        pull: Pull,
    ) -> Result<(Scored, Pulled), Error> {
        let _no_grad = tch::no_grad_guard();
        let entropy = entropy || pull.entropy.is_some();
        let mut values = Values::default();
        let mut sum = PullSum::default();
        for (at, len) in self.chunks(input) {
            let part = input.part(at, len);
            let soft = self.softmax(&part, entropy)?;
            let of_chunk = soft.entropy.as_ref().map(Tensor::shallow_clone);
            let logits = values.push(soft);
            if let Some(known) = values.known.last() {
                let pull = pull.part(at, len);
                self.pull_chunk(&part, logits, known, of_chunk, &pull, &mut sum);
            }
        }
        Ok((values.finish(None), sum.finish(input)))
    }

    /// `(start, length)` of each chunk; one empty chunk when there is no row.
    fn chunks(&self, input: Input) -> Vec<(i64, i64)> {
        let rows = input.targets.size()[0];
        let step = self.chunk_rows(input.weight.device());
        if rows == 0 {
            return vec![(0, 0)];
        }
        (0..rows)
            .step_by(step as usize)
            .map(|at| (at, step.min(rows - at)))
            .collect()
    }

    /// Logits `[n, vocabulary]`, compute kind.
    fn logits(&self, part: &Part) -> Tensor {
        Fused.linear(&part.hidden, part.weight, None)
    }

    /// Logits over the temperature, accumulation kind.
    fn scaled(&self, part: &Part) -> Tensor {
        let mut logits = self.logits(part).to_kind(accumulation(part.weight.kind()));
        if self.temperature != 1.0 {
            logits = logits.g_div_scalar_(self.temperature);
        }
        logits
    }

    fn softmax(&self, part: &Part, entropy: bool) -> Result<Chunk, Error> {
        if self.ranks.size() > 1 {
            return self.softmax_across(part, self.scaled(part), entropy);
        }
        let (logits, by) = (self.logits(part), 1.0 / self.temperature);
        let kind = accumulation(part.weight.kind());
        let soft = Softmax::new(&logits, &part.targets, by, entropy, kind);
        Ok(Chunk {
            logits,
            logp: soft.logp.shallow_clone(),
            entropy: soft.entropy.as_ref().map(Tensor::shallow_clone),
            known: Known::Whole(soft),
        })
    }

    /// With z the logits less their maximum m over all ranks and s the sum of exp(z): the
    /// normaliser is m + log s, and the entropy log s - sum p z.
    fn softmax_across(
        &self,
        part: &Part,
        mut logits: Tensor,
        entropy: bool,
    ) -> Result<Chunk, Error> {
        let rows = logits.size()[0];
        let mut most = logits.amax([-1i64].as_slice(), false);
        if rows > 0 {
            self.ranks.all_reduce_max(&mut most, "softmax maximum")?;
        }
        let mut z = logits.g_sub_(&most.unsqueeze(-1));
        let (targets, here) = self.local(&part.targets);
        let mut exp = z.exp();
        let mut sums = vec![
            row_sums(&exp),
            at_target(&z, &targets) * here.to_kind(z.kind()),
        ];
        if entropy {
            sums.push(row_sums(&exp.g_mul_(&z)));
        }
        let mut sums = Tensor::stack(&sums, 0);
        if rows > 0 {
            self.ranks.all_reduce_sum(&mut sums, "softmax sums")?;
        }
        let log_sum = sums.get(0).log();
        Ok(Chunk {
            logp: sums.get(1) - &log_sum,
            entropy: entropy.then(|| &log_sum - sums.get(2) / sums.get(0)),
            logits: z.g_sub_(&log_sum.unsqueeze(-1)),
            known: Known::Shared(most + log_sum),
        })
    }

    /// Targets as columns of this rank's logits, and which of them are.
    fn local(&self, targets: &Tensor) -> (Tensor, Tensor) {
        let part = arch::slice::even(self.vocabulary, self.ranks.size(), self.ranks.rank());
        let (start, end) = (part.start as i64, part.end as i64);
        let here = targets.greater_equal(start).logical_and(&targets.less(end));
        ((targets - start) * here.to_kind(Kind::Int64), here)
    }

    /// One chunk of the backward; `logits` ([`Chunk::logits`]) are used up.
    fn pull_chunk(
        &self,
        part: &Part,
        logits: Tensor,
        known: &Known,
        entropy: Option<Tensor>,
        pull: &PartPull,
        sum: &mut PullSum,
    ) {
        let d_logits = match known {
            Known::Whole(soft) => {
                let (by, d_entropy) = (1.0 / self.temperature, pull.entropy.as_ref());
                soft.backward(logits, &part.targets, by, &pull.logp, d_entropy)
            }
            Known::Shared(_) => self.pull_shared(part, logits, entropy, pull),
        };
        sum.hidden
            .push(kernels::input_gradient(&d_logits, part.weight));
        sum.add_weight(&d_logits, &part.hidden);
    }

    /// Gradient of this rank's logits from its part of the log-softmax.
    ///
    /// With p = softmax, H = -sum p log p: d logp_t / d z_j = [j = t] - p_j and
    /// d H / d z_j = -p_j (log p_j + H), each divided by the temperature.
    fn pull_shared(
        &self,
        part: &Part,
        mut lsm: Tensor,
        entropy: Option<Tensor>,
        pull: &PartPull,
    ) -> Tensor {
        let scale = 1.0 / self.temperature;
        let logp = (&pull.logp * scale).unsqueeze(-1);
        let mut d_logits = match &pull.entropy {
            None => lsm.exp_().g_mul_(&-&logp),
            Some(d_entropy) => {
                let entropy = entropy.expect("scored with the entropy").unsqueeze(-1);
                let p = lsm.exp();
                let factor = (lsm + entropy) * (d_entropy * scale).unsqueeze(-1) + &logp;
                -(p * factor)
            }
        };
        let (targets, here) = self.local(&part.targets);
        let logp = &logp * here.to_kind(logp.kind()).unsqueeze(-1);
        d_logits
            .scatter_add_(-1, &targets.unsqueeze(-1), &logp)
            .to_kind(part.weight.kind())
    }
}

/// The softmax of a chunk.
struct Chunk {
    /// Logits in compute kind; where ranks share the vocabulary, this one's part of the log-softmax
    /// in accumulation kind.
    logits: Tensor,
    logp: Tensor,
    entropy: Option<Tensor>,
    known: Known,
}

fn at_target(x: &Tensor, targets: &Tensor) -> Tensor {
    x.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1)
}

fn row_sums(x: &Tensor) -> Tensor {
    x.sum_dim_intlist([-1i64].as_slice(), false, x.kind())
}

/// A chunk of the input.
struct Part<'a> {
    hidden: Tensor,
    targets: Tensor,
    weight: &'a Tensor,
}

/// A chunk of the gradients.
struct PartPull {
    logp: Tensor,
    entropy: Option<Tensor>,
}

impl<'a> Input<'a> {
    pub fn new(hidden: &'a Tensor, weight: &'a Tensor, targets: &'a Tensor) -> Input<'a> {
        Input {
            hidden,
            weight,
            targets,
        }
    }

    fn part(&self, at: i64, len: i64) -> Part<'a> {
        Part {
            hidden: self.hidden.narrow(0, at, len),
            targets: self.targets.narrow(0, at, len),
            weight: self.weight,
        }
    }
}

impl Pull<'_> {
    fn part(&self, at: i64, len: i64) -> PartPull {
        PartPull {
            logp: self.logp.narrow(0, at, len),
            entropy: self.entropy.map(|e| e.narrow(0, at, len)),
        }
    }
}

/// Values chunk by chunk.
#[derive(Default)]
struct Values {
    logp: Vec<Tensor>,
    entropy: Vec<Tensor>,
    known: Vec<Known>,
}

impl Values {
    /// Takes a chunk's values; gives back its logits.
    fn push(&mut self, chunk: Chunk) -> Tensor {
        self.logp.push(chunk.logp);
        self.entropy.extend(chunk.entropy);
        self.known.push(chunk.known);
        chunk.logits
    }

    fn finish(self, kept: Option<Tensor>) -> Scored {
        Scored {
            logp: join(self.logp),
            entropy: (!self.entropy.is_empty()).then(|| join(self.entropy)),
            known: self.known,
            kept,
        }
    }
}

/// Gradients chunk by chunk.
#[derive(Default)]
struct PullSum {
    hidden: Vec<Tensor>,
    weight: Option<Tensor>,
}

impl PullSum {
    /// Adds d_logits^T hidden to the LM matrix's gradient, in accumulation kind.
    fn add_weight(&mut self, d_logits: &Tensor, hidden: &Tensor) {
        let kind = accumulation(hidden.kind());
        match &mut self.weight {
            Some(sum) if kind == hidden.kind() => {
                let _ = sum.addmm_(&d_logits.tr(), hidden);
            }
            Some(sum) => {
                let _ = sum.g_add_(&d_logits.tr().matmul(hidden));
            }
            none => *none = Some(kernels::weight_gradient(d_logits, hidden).to_kind(kind)),
        }
    }

    fn finish(self, input: Input) -> Pulled {
        let kind = accumulation(input.weight.kind());
        let weight = self
            .weight
            .unwrap_or_else(|| Tensor::zeros(input.weight.size(), (kind, input.weight.device())));
        Pulled {
            hidden: join(self.hidden),
            weight,
        }
    }
}

/// Concatenates chunks; one chunk is taken as it is.
fn join(mut chunks: Vec<Tensor>) -> Tensor {
    if chunks.len() == 1 {
        chunks.swap_remove(0)
    } else {
        Tensor::cat(&chunks, 0)
    }
}
