//! A softmax over logits of which one element's log-probability and the entropy are wanted:
//! the CPU's or the GPU's kernel where it applies, libtorch elsewhere. No graph is recorded.

use tch::{Device, Kind, Tensor};

use crate::cuda::ops::done;
use crate::cuda::{self, Machine};

/// What a softmax over rows of logits gives.
#[derive(Debug)]
pub struct Softmax {
    /// log p(target) `[n]`, in the accumulation kind.
    pub logp: Tensor,
    /// Entropy in nats `[n]`, if asked for.
    pub entropy: Option<Tensor>,
    /// What backward needs again: by the CPU's kernel `[n, 2]`, by the GPU's the logarithm of the
    /// normaliser `[n]`, else that `[n, 1]`.
    stats: Tensor,
}

impl Softmax {
    /// Of `logits` `[n, vocabulary]` times `by`, at `targets` `[n]` (int64). `kind` is the
    /// accumulation kind.
    pub fn new(logits: &Tensor, targets: &Tensor, by: f64, entropy: bool, kind: Kind) -> Self {
        let _no_grad = tch::no_grad_guard();
        #[cfg(target_arch = "x86_64")]
        if let Some(element) = avx512::takes(logits, kind) {
            return avx512::forward(element, logits, targets, by, entropy);
        }
        if let Some(machine) = gpu(logits, kind) {
            let logits = logits.contiguous();
            return Self::launched(machine, &logits, targets, by, entropy);
        }
        let z = scaled(logits, by, kind);
        let normal = z.logsumexp([-1i64].as_slice(), true);
        let lsm = z - &normal;
        let logp = lsm
            .gather(-1, &targets.unsqueeze(-1), false)
            .squeeze_dim(-1);
        let entropy = entropy.then(|| {
            let plogp = lsm.exp().g_mul_(&lsm);
            plogp
                .sum_dim_intlist([-1i64].as_slice(), false, kind)
                .neg_()
        });
        Self {
            logp,
            entropy,
            stats: normal,
        }
    }

    /// By the kernel of a machine.
    fn launched(
        machine: &dyn Machine,
        logits: &Tensor,
        targets: &Tensor,
        by: f64,
        entropy: bool,
    ) -> Self {
        let targets = targets.contiguous();
        let values = done(cuda::softmax::forward(
            machine, logits, &targets, by, entropy,
        ));
        Self {
            logp: values.logp,
            entropy: values.entropy,
            stats: values.lse,
        }
    }

    /// Gradient of the logits, in their kind, from those of the log-probabilities and, if it has
    /// one, of the entropy, which must have been asked for. Uses up the logits' memory.
    pub fn backward(
        &self,
        mut logits: Tensor,
        targets: &Tensor,
        by: f64,
        d_logp: &Tensor,
        d_entropy: Option<&Tensor>,
    ) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let kind = self.logp.kind();
        #[cfg(target_arch = "x86_64")]
        if let Some(element) = avx512::takes(&logits, kind) {
            avx512::backward(element, self, &mut logits, targets, by, d_logp, d_entropy);
            return logits;
        }
        if let Some(machine) = gpu(&logits, kind) {
            let mut logits = logits.contiguous();
            let (targets, d_logp) = (targets.contiguous(), d_logp.contiguous());
            let d_entropy = d_entropy.map(Tensor::contiguous);
            let values = cuda::softmax::Values {
                logp: self.logp.shallow_clone(),
                entropy: self.entropy.as_ref().map(Tensor::shallow_clone),
                lse: self.stats.shallow_clone(),
            };
            done(cuda::softmax::backward(
                machine,
                &mut logits,
                &targets,
                by,
                &values,
                &d_logp,
                d_entropy.as_ref(),
            ));
            return logits;
        }
        let mut lsm = scaled(&logits, by, kind) - &self.stats;
        let d_logp = (d_logp * by).unsqueeze(-1);
        let mut d_logits = match (d_entropy, &self.entropy) {
            (Some(d_entropy), Some(entropy)) => {
                let p = lsm.exp();
                let factor = (lsm + entropy.unsqueeze(-1)) * (d_entropy * by).unsqueeze(-1);
                -(p * (factor + &d_logp))
            }
            _ => lsm.exp_().g_mul_(&-&d_logp),
        };
        d_logits
            .scatter_add_(-1, &targets.unsqueeze(-1), &d_logp)
            .to_kind(logits.kind())
    }
}

/// The GPU that has a kernel for these logits.
fn gpu(logits: &Tensor, kind: Kind) -> Option<&'static dyn Machine> {
    let fits = kind == Kind::Float && cuda::FLOATS.contains(&logits.kind());
    cuda::machine(logits.device()).filter(|_| fits)
}

fn scaled(logits: &Tensor, by: f64, kind: Kind) -> Tensor {
    let z = logits.to_kind(kind);
    if by == 1.0 { z } else { z * by }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::cpu::{simd, softmax};
    use crate::ops::{kernel_kind, read, write};
    use half::bf16;

    /// The logits' kind if the kernel takes it.
    pub fn takes(logits: &Tensor, kind: Kind) -> Option<Kind> {
        let fits = simd::available() && kind == Kind::Float && logits.is_contiguous();
        kernel_kind(&[logits]).filter(|_| fits)
    }

    pub fn forward(
        element: Kind,
        logits: &Tensor,
        targets: &Tensor,
        by: f64,
        entropy: bool,
    ) -> Softmax {
        let rows = logits.size()[0];
        let _kernel = trace::kernel("softmax").with("rows", rows);
        let empty = |size: &[i64]| Tensor::empty(size, (Kind::Float, Device::Cpu));
        let (mut logp, mut stats) = (empty(&[rows]), empty(&[rows, 2]));
        let mut entropies = empty(&[if entropy { rows } else { 0 }]);
        let targets = targets.contiguous();
        let run = match element {
            Kind::BFloat16 => forward_as::<bf16>,
            _ => forward_as::<f32>,
        };
        run(
            logits,
            &targets,
            by as f32,
            [&mut logp, &mut entropies, &mut stats],
        );
        Softmax {
            logp,
            entropy: entropy.then_some(entropies),
            stats,
        }
    }

    fn forward_as<E: simd::Lanes>(
        logits: &Tensor,
        targets: &Tensor,
        by: f32,
        [logp, entropy, stats]: [&mut Tensor; 3],
    ) {
        softmax::forward::<E>(
            read(logits),
            integers(targets),
            by,
            write(logp),
            write(entropy),
            write(stats),
        );
    }

    pub fn backward(
        element: Kind,
        of: &Softmax,
        logits: &mut Tensor,
        targets: &Tensor,
        by: f64,
        d_logp: &Tensor,
        d_entropy: Option<&Tensor>,
    ) {
        let _kernel = trace::kernel("softmax_backward").with("rows", logits.size()[0]);
        let (targets, d_logp) = (targets.contiguous(), d_logp.contiguous());
        let d_entropy = d_entropy.map(Tensor::contiguous);
        let known = softmax::Known {
            targets: integers(&targets),
            stats: read(&of.stats),
            entropy: of.entropy.as_ref().map_or(&[], read),
            by: by as f32,
        };
        let (g, h) = (read(&d_logp), d_entropy.as_ref().map_or(&[][..], read));
        match element {
            Kind::BFloat16 => softmax::backward::<bf16>(write(logits), known, g, h),
            _ => softmax::backward::<f32>(write(logits), known, g, h),
        }
    }

    fn integers(t: &Tensor) -> &[i64] {
        assert!(t.kind() == Kind::Int64 && t.device() == Device::Cpu && t.is_contiguous());
        if t.numel() == 0 {
            return &[];
        }
        // SAFETY: contiguous, of this kind, and borrowed.
        unsafe { std::slice::from_raw_parts(t.data_ptr().cast(), t.numel()) }
    }
}
