//! The arithmetic of a segment that may be done by libtorch or by our own kernels.

use crate::{Attend, Error, Layout, Packed};
use tch::{Device, Kind, Tensor};

/// Arithmetic of a segment. Every method is differentiable in all its tensors, except the
/// rotary tables, and keeps the kind of its first argument unless it says otherwise.
pub trait Ops {
    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension; `weight` `[size]`.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Tensor;

    /// `x + added`, and the [`Ops::rms_norm`] of that sum.
    fn add_rms_norm(
        &self,
        x: &Tensor,
        added: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> (Tensor, Tensor) {
        let sum = x + added;
        let normed = self.rms_norm(&sum, weight, eps);
        (sum, normed)
    }

    /// Rotates queries `[rows, heads, d]` and keys `[rows, kv_heads, d]`: element `i` and
    /// `i + d/2` of a head are a pair, turned by the row's angle `i`. `cos` and `sin` are
    /// `[rows, d/2]`, single precision (double for double queries).
    fn rope(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor);

    /// `silu(gate) * up`, all `[rows, intermediate]`.
    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor;

    /// `x weight^T + bias`; `x` `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`.
    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor;

    /// Several linear maps of the same rows, each a weight and a bias.
    fn linears(&self, x: &Tensor, maps: &[(&Tensor, Option<&Tensor>)]) -> Vec<Tensor> {
        let one = |(weight, bias): &(&Tensor, Option<&Tensor>)| self.linear(x, weight, *bias);
        maps.iter().map(one).collect()
    }

    /// Softmax over the last dimension, in single precision (double for double `x`).
    fn softmax(&self, x: &Tensor) -> Tensor {
        x.softmax(-1, table_kind(x.kind()))
    }

    /// Attention over a layout's rows on `device` and the padding after them, `rows` in all,
    /// differentiable.
    ///
    /// # Errors
    /// A layout that breaks its rules or has more rows.
    fn packed(
        &self,
        layout: &Layout,
        rows: usize,
        device: Device,
    ) -> Result<Box<dyn Attend>, Error> {
        Ok(Box::new(Packed::padded(layout, rows, device)?))
    }
}

/// [`Ops`] by plain libtorch, on any device and in any floating kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct Libtorch;

impl Ops for Libtorch {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
        x.rms_norm(weight.size(), Some(weight), eps)
    }

    fn rope(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor) {
        let (cos, sin) = (cos.unsqueeze(1), sin.unsqueeze(1));
        let turn = |x: &Tensor| {
            let kind = x.kind();
            let half = x.size()[2] / 2;
            let wide = x.to_kind(cos.kind());
            let (a, b) = (wide.narrow(2, 0, half), wide.narrow(2, half, half));
            Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin], 2).to_kind(kind)
        };
        (turn(q), turn(k))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        gate.silu() * up
    }

    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        x.linear(weight, bias)
    }
}

/// The kind in which rotary tables and probabilities are kept for a compute kind.
pub(crate) fn table_kind(kind: Kind) -> Kind {
    match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}
