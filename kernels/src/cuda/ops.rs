//! [`CudaOps`]: the segments' arithmetic by GPU kernels, with gradients through Rust autograd nodes; libtorch where a
//! kernel does not apply (another kind, a size that it is not made for).

use model::{Libtorch, Ops};
use tch::{Kind, Tensor};
use torch::autograd::record;

use super::check::FLOATS;
use super::{Error, Machine, rms_norm, rope, swiglu};

/// [`Ops`] by the kernels of one machine.
#[derive(Clone, Copy)]
pub struct CudaOps {
    machine: &'static dyn Machine,
}

impl CudaOps {
    /// On this machine's tensors.
    pub fn new(machine: &'static dyn Machine) -> Self {
        Self { machine }
    }

    /// Whether all are of the machine and of one kind that kernels are compiled for.
    fn takes(&self, tensors: &[&Tensor]) -> bool {
        let (kind, device) = (tensors[0].kind(), self.machine.device());
        let fits = |t: &&Tensor| t.kind() == kind && t.device() == device;
        FLOATS.contains(&kind) && tensors.iter().all(fits)
    }
}

impl Ops for CudaOps {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
        let n = weight.numel() as i64;
        if !self.takes(&[x, weight]) || !rms_norm::fits(n, x.kind()) {
            return Libtorch.rms_norm(x, weight, eps);
        }
        let machine = self.machine;
        let (xs, ws) = (x.detach().contiguous(), weight.detach().contiguous());
        let normed = done(rms_norm::forward(machine, &xs, None, &ws, eps));
        let rstd = normed.rstd;
        record(&[x, weight], normed.y, move |dy| {
            let dy = dy.contiguous();
            let (dx, dw) = done(rms_norm::backward(machine, &xs, &ws, &rstd, &dy, None));
            vec![Some(dx), Some(dw)]
        })
    }

    /// In one pass where no graph is recorded.
    fn add_rms_norm(
        &self,
        x: &Tensor,
        added: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> (Tensor, Tensor) {
        let n = weight.numel() as i64;
        let fits = self.takes(&[x, added, weight]) && rms_norm::fits(n, x.kind());
        if !fits || torch::autograd::wanted(&[x, added, weight]) {
            let sum = x + added;
            let normed = self.rms_norm(&sum, weight, eps);
            return (sum, normed);
        }
        let (xs, added, ws) = (x.contiguous(), added.contiguous(), weight.contiguous());
        let normed = done(rms_norm::forward(self.machine, &xs, Some(&added), &ws, eps));
        (normed.sum.expect("of two"), normed.y)
    }

    fn rope(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor) {
        let tables = cos.kind() == Kind::Float && cos.device() == self.machine.device();
        if !self.takes(&[q, k]) || !tables {
            return Libtorch.rope(q, k, cos, sin);
        }
        let machine = self.machine;
        let (cos, sin) = (cos.contiguous(), sin.contiguous());
        let (qs, ks) = (q.detach().contiguous(), k.detach().contiguous());
        let (to_q, to_k) = done(rope::turn(machine, &qs, &ks, (&cos, &sin), false));
        // each has a node of its own, which turns back its own gradient
        let back = |x: &Tensor, y: Tensor| {
            let (cos, sin) = (cos.shallow_clone(), sin.shallow_clone());
            record(&[x], y, move |dy| {
                let dy = dy.contiguous();
                let none = dy.narrow(1, 0, 0).contiguous();
                let turned = rope::turn(machine, &dy, &none, (&cos, &sin), true);
                vec![Some(done(turned).0)]
            })
        };
        (back(q, to_q), back(k, to_k))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        if !self.takes(&[gate, up]) {
            return Libtorch.swiglu(gate, up);
        }
        let machine = self.machine;
        let (g, u) = (gate.detach().contiguous(), up.detach().contiguous());
        let y = done(swiglu::forward(machine, &g, &u));
        record(&[gate, up], y, move |dy| {
            let (dg, du) = done(swiglu::backward(machine, &g, &u, &dy.contiguous()));
            vec![Some(dg), Some(du)]
        })
    }

    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        Libtorch.linear(x, weight, bias)
    }
}

/// A kernel's result. What fails here fails as libtorch's own operators do.
///
/// # Panics
/// With the error's text.
pub(crate) fn done<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}
