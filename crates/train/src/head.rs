//! The token log-probability head: from hidden states to log p(target) and entropy, and back.
//!
//! Rows go through in chunks, so that logits `[rows, vocabulary]` never exist whole unless they
//! fit one chunk; backward computes a chunk's logits again from the hidden states. When all rows
//! fit one chunk its log-softmax is kept instead of computed again. Where the coefficients of the
//! log-probabilities are known beforehand, one pass gives values and gradients ([`Head::fused`]).

use tch::{Kind, Tensor};

/// Bytes of fp32 logits that a chunk may hold when the recipe gives no chunk size.
const CHUNK_BYTES: usize = 64 << 20;

/// How hidden states become log-probabilities.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// Logits are divided by it before the softmax.
    pub temperature: f64,
    /// Rows per chunk; `None` chooses by memory.
    pub chunk: Option<usize>,
}

/// What the head reads. No tensor carries a graph.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// `[n, hidden]`, compute kind.
    pub hidden: &'a Tensor,
    /// The LM matrix `[vocabulary, hidden]`, compute kind.
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
    /// Log-softmax `[n, vocabulary]`, if asked for and all rows fit one chunk.
    kept: Option<Tensor>,
}

/// Gradients of the head's inputs.
pub(crate) struct Pulled {
    /// `[n, hidden]`, compute kind.
    pub hidden: Tensor,
    /// `[vocabulary, hidden]`, accumulation kind.
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

impl Head {
    fn chunk_rows(&self, input: Input) -> i64 {
        let vocabulary = input.weight.size()[0] as usize;
        let rows = self
            .chunk
            .unwrap_or_else(|| (CHUNK_BYTES / (4 * vocabulary.max(1))).max(64));
        rows.max(1) as i64
    }

    /// Values without gradients. `keep` holds on to the log-softmax for [`Head::backward`] when
    /// all rows fit one chunk.
    pub fn score(&self, input: Input, entropy: bool, keep: bool) -> Scored {
        let _no_grad = tch::no_grad_guard();
        let chunks = self.chunks(input);
        let mut values = Values::default();
        let mut kept = None;
        for &(at, len) in &chunks {
            let part = input.part(at, len);
            let lsm = self.log_softmax(&part);
            values.read(&lsm, &part.targets, entropy);
            if keep && chunks.len() == 1 {
                kept = Some(lsm);
            }
        }
        values.finish(kept)
    }

    /// Gradients of the inputs from those of the values of [`Head::score`].
    pub fn backward(&self, input: Input, scored: Scored, pull: Pull) -> Pulled {
        let _no_grad = tch::no_grad_guard();
        let mut kept = scored.kept;
        let mut sum = PullSum::default();
        for (at, len) in self.chunks(input) {
            let part = input.part(at, len);
            let lsm = kept.take().unwrap_or_else(|| self.log_softmax(&part));
            self.pull_chunk(&part, lsm, &pull.part(at, len), &mut sum);
        }
        sum.finish(input)
    }

    /// Values and gradients in one pass, for gradients known beforehand.
    pub fn fused(&self, input: Input, entropy: bool, pull: Pull) -> (Scored, Pulled) {
        let _no_grad = tch::no_grad_guard();
        let mut values = Values::default();
        let mut sum = PullSum::default();
        for (at, len) in self.chunks(input) {
            let part = input.part(at, len);
            let lsm = self.log_softmax(&part);
            values.read(&lsm, &part.targets, entropy);
            self.pull_chunk(&part, lsm, &pull.part(at, len), &mut sum);
        }
        (values.finish(None), sum.finish(input))
    }

    /// `(start, length)` of each chunk; one empty chunk when there is no row.
    fn chunks(&self, input: Input) -> Vec<(i64, i64)> {
        let (rows, step) = (input.targets.size()[0], self.chunk_rows(input));
        if rows == 0 {
            return vec![(0, 0)];
        }
        (0..rows)
            .step_by(step as usize)
            .map(|at| (at, step.min(rows - at)))
            .collect()
    }

    fn log_softmax(&self, part: &Part) -> Tensor {
        let kind = accumulation(part.weight.kind());
        let mut logits = part
            .hidden
            .linear(part.weight, None::<Tensor>)
            .to_kind(kind);
        if self.temperature != 1.0 {
            logits = logits.g_div_scalar_(self.temperature);
        }
        logits.log_softmax(-1, kind)
    }

    /// One chunk of the backward; `lsm` is used up.
    ///
    /// With p = softmax, H = -sum p log p: d logp_t / d z_j = [j = t] - p_j and
    /// d H / d z_j = -p_j (log p_j + H), each divided by the temperature.
    fn pull_chunk(&self, part: &Part, mut lsm: Tensor, pull: &PartPull, sum: &mut PullSum) {
        let scale = 1.0 / self.temperature;
        let logp = (&pull.logp * scale).unsqueeze(-1);
        let mut d_logits = match &pull.entropy {
            None => lsm.exp_().g_mul_(&-&logp),
            Some(d_entropy) => {
                let p = lsm.exp();
                let entropy = -(&p * &lsm).sum_dim_intlist([-1i64].as_slice(), true, lsm.kind());
                let factor = (lsm + entropy) * (d_entropy * scale).unsqueeze(-1) + &logp;
                -(p * factor)
            }
        };
        let d_logits = d_logits.scatter_add_(-1, &part.targets.unsqueeze(-1), &logp);
        let d_logits = d_logits.to_kind(part.weight.kind());
        sum.hidden.push(d_logits.matmul(part.weight));
        sum.add_weight(&d_logits, &part.hidden);
    }
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
}

impl Values {
    fn read(&mut self, lsm: &Tensor, targets: &Tensor, entropy: bool) {
        self.logp.push(
            lsm.gather(-1, &targets.unsqueeze(-1), false)
                .squeeze_dim(-1),
        );
        if entropy {
            let plogp = lsm.exp().g_mul_(lsm);
            self.entropy.push(
                plogp
                    .sum_dim_intlist([-1i64].as_slice(), false, lsm.kind())
                    .neg_(),
            );
        }
    }

    fn finish(self, kept: Option<Tensor>) -> Scored {
        let entropy = (!self.entropy.is_empty()).then(|| join(self.entropy));
        Scored {
            logp: join(self.logp),
            entropy,
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
            none => *none = Some(d_logits.tr().matmul(hidden).to_kind(kind)),
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
