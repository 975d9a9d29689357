//! [`Fused`]: the segments' arithmetic by fused kernels, with gradients through Rust autograd
//! nodes; libtorch where a kernel does not apply (another device or kind).

use half::bf16;
use model::{Attend, Error, Layout, Libtorch, Ops};
use tch::{Device, Kind, Tensor};
use torch::autograd::record;

use crate::cpu::{rms_norm, rope, swiglu};
use crate::cuda::{self, CudaOps};
use crate::elem::Elem;
use crate::{Flash, Spans};

/// Fused kernels for f32 and bf16: on CPU those of [`crate::cpu`], on a GPU [`CudaOps`]. [`Libtorch`] for all else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fused;

impl Ops for Fused {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
        match kernel_kind(&[x, weight]) {
            Some(Kind::BFloat16) => rms_norm_on::<bf16>(x, weight, eps as f32),
            Some(_) => rms_norm_on::<f32>(x, weight, eps as f32),
            None => elsewhere(x, |ops| ops.rms_norm(x, weight, eps)),
        }
    }

    fn rope(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor) {
        match kernel_kind(&[q, k]) {
            Some(Kind::BFloat16) if cos.kind() == Kind::Float => {
                (rope_on::<bf16>(q, cos, sin), rope_on::<bf16>(k, cos, sin))
            }
            Some(Kind::Float) if cos.kind() == Kind::Float => {
                (rope_on::<f32>(q, cos, sin), rope_on::<f32>(k, cos, sin))
            }
            _ => elsewhere(q, |ops| ops.rope(q, k, cos, sin)),
        }
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        match kernel_kind(&[gate, up]) {
            Some(Kind::BFloat16) => swiglu_on::<bf16>(gate, up),
            Some(_) => swiglu_on::<f32>(gate, up),
            None => elsewhere(gate, |ops| ops.swiglu(gate, up)),
        }
    }

    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        #[cfg(target_arch = "x86_64")]
        if linear::fits(x, weight, bias) {
            return linear::run(x, weight, bias);
        }
        Libtorch.linear(x, weight, bias)
    }

    fn packed(
        &self,
        layout: &Layout,
        rows: usize,
        device: Device,
    ) -> Result<Box<dyn Attend>, Error> {
        Ok(match cuda::machine(device) {
            Some(_) => Box::new(Flash::new(layout, rows, device)?),
            None => Box::new(Spans::new(layout, rows, device)?),
        })
    }
}

/// Off the CPU, or in another kind: by GPU kernels where there are any, else by libtorch.
fn elsewhere<T>(x: &Tensor, f: impl Fn(&dyn Ops) -> T) -> T {
    match cuda::machine(x.device()) {
        Some(machine) => f(&CudaOps::new(machine)),
        None => f(&Libtorch),
    }
}

/// The kind that all have, if a CPU kernel takes it.
pub(crate) fn kernel_kind(tensors: &[&Tensor]) -> Option<Kind> {
    let kind = tensors[0].kind();
    let fits = matches!(kind, Kind::Float | Kind::BFloat16)
        && tensors
            .iter()
            .all(|t| t.kind() == kind && t.device() == Device::Cpu);
    fits.then_some(kind)
}

fn rms_norm_on<E: Elem>(x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
    let _kernel = trace::kernel("rms_norm").with("elements", x.numel());
    let (xs, ws) = (x.detach().contiguous(), weight.detach().contiguous());
    let mut y = empty(&xs);
    rms_norm::forward(read::<E>(&xs), read::<E>(&ws), eps, write::<E>(&mut y));
    record(&[x, weight], y, move |dy| {
        let _kernel = trace::kernel("rms_norm_backward").with("elements", dy.numel());
        let (mut dx, mut dw) = (empty(&xs), ws.to_kind(Kind::Float).empty_like());
        let dy = dy.contiguous();
        rms_norm::backward(
            read::<E>(&xs),
            read::<E>(&ws),
            eps,
            read::<E>(&dy),
            write::<E>(&mut dx),
            write::<f32>(&mut dw),
        );
        vec![Some(dx), Some(dw.to_kind(ws.kind()))]
    })
}

fn rope_on<E: Elem>(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let d = x.size()[2] as usize;
    let (cos, sin) = (cos.contiguous(), sin.contiguous());
    let turn = move |x: &Tensor, inverse: bool| {
        let name = if inverse { "rope_backward" } else { "rope" };
        let _kernel = trace::kernel(name).with("elements", x.numel());
        let x = x.contiguous();
        let mut y = empty(&x);
        let turn = rope::Turn {
            cos: read::<f32>(&cos),
            sin: read::<f32>(&sin),
            d,
            inverse,
        };
        rope::turn(read::<E>(&x), turn, write::<E>(&mut y));
        y
    };
    let y = turn(&x.detach(), false);
    record(&[x], y, move |dy| vec![Some(turn(&dy, true))])
}

fn swiglu_on<E: Elem>(gate: &Tensor, up: &Tensor) -> Tensor {
    let _kernel = trace::kernel("swiglu").with("elements", gate.numel());
    let (g, u) = (gate.detach().contiguous(), up.detach().contiguous());
    let mut y = empty(&g);
    swiglu::forward(read::<E>(&g), read::<E>(&u), write::<E>(&mut y));
    record(&[gate, up], y, move |dy| {
        let _kernel = trace::kernel("swiglu_backward").with("elements", dy.numel());
        let (mut dg, mut du, dy) = (empty(&g), empty(&u), dy.contiguous());
        swiglu::backward(
            read::<E>(&g),
            read::<E>(&u),
            read::<E>(&dy),
            write::<E>(&mut dg),
            write::<E>(&mut du),
        );
        vec![Some(dg), Some(du)]
    })
}

/// `dy w`: the gradient of a linear layer's input `[m, k]` from that of its output `[m, n]` and the
/// weight `[n, k]`, without a graph.
pub fn input_gradient(dy: &Tensor, weight: &Tensor) -> Tensor {
    #[cfg(target_arch = "x86_64")]
    if linear::fits(dy, weight, None) {
        return linear::input_gradient(&dy.contiguous(), &weight.contiguous());
    }
    dy.matmul(weight)
}

/// `dy^T x`: the gradient of a linear layer's weight `[n, k]` from those of its output `[m, n]` and
/// its input `[m, k]`, without a graph.
pub fn weight_gradient(dy: &Tensor, x: &Tensor) -> Tensor {
    #[cfg(target_arch = "x86_64")]
    if linear::fits(dy, x, None) {
        return linear::weight_gradient(&dy.contiguous(), &x.contiguous());
    }
    dy.tr().matmul(x)
}

#[cfg(target_arch = "x86_64")]
mod linear {
    use super::*;
    use crate::cpu::{gemm, simd};

    /// With fewer rows packing the weights costs more than the faster product gains.
    const LEAST_ROWS: i64 = 64;

    pub fn fits(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> bool {
        let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
        simd::available()
            && kernel_kind(&tensors) == Some(Kind::Float)
            && x.dim() == 2
            && x.size()[0] >= LEAST_ROWS
            && x.numel() * weight.numel() > 0
    }

    pub fn run(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let size = size(weight);
        let _kernel = product("linear", x.size()[0], size);
        let (xs, ws) = (x.detach().contiguous(), weight.detach().contiguous());
        let bs = bias.map(|b| b.detach().contiguous());
        let mut y = Tensor::empty([xs.size()[0], ws.size()[0]], (Kind::Float, Device::Cpu));
        let b = bs.as_ref().map(read::<f32>);
        gemm::forward(read(&xs), read(&ws), b, size, write(&mut y));
        let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
        let wanted: Vec<bool> = inputs.iter().map(|t| t.requires_grad()).collect();
        record(&inputs, y, move |dy| {
            let dy = dy.contiguous();
            let dx = wanted[0].then(|| input_gradient(&dy, &ws));
            let dw = wanted[1].then(|| weight_gradient(&dy, &xs));
            let db = wanted[2..].iter().map(|wanted| {
                wanted.then(|| dy.sum_dim_intlist([0i64].as_slice(), false, Kind::Float))
            });
            [dx, dw].into_iter().chain(db).collect()
        })
    }

    pub fn input_gradient(dy: &Tensor, weight: &Tensor) -> Tensor {
        let [n, k] = size(weight);
        let _kernel = product("linear_input_gradient", dy.size()[0], [n, k]);
        let mut dx = Tensor::empty([dy.size()[0], k as i64], (Kind::Float, Device::Cpu));
        gemm::input_gradient(read(dy), read(weight), [n, k], write(&mut dx));
        dx
    }

    pub fn weight_gradient(dy: &Tensor, x: &Tensor) -> Tensor {
        let size = [dy.size()[1], x.size()[1]];
        let mut dw = Tensor::empty(size, (Kind::Float, Device::Cpu));
        let size = size.map(|n| n as usize);
        let _kernel = product("linear_weight_gradient", dy.size()[0], size);
        gemm::weight_gradient(read(dy), read(x), size, write(&mut dw));
        dw
    }

    /// A product of `rows` rows with a weight `[n, k]`, seen.
    fn product(name: &'static str, rows: i64, [n, k]: [usize; 2]) -> trace::Span {
        let seen = trace::kernel(name).with("rows", rows);
        seen.with("out", n).with("in", k)
    }

    fn size(weight: &Tensor) -> [usize; 2] {
        [weight.size()[0] as usize, weight.size()[1] as usize]
    }
}

pub(crate) fn empty(like: &Tensor) -> Tensor {
    Tensor::empty(like.size(), (like.kind(), like.device()))
}

/// The elements of a contiguous CPU tensor whose kind is `E`'s.
pub(crate) fn read<E: Elem>(t: &Tensor) -> &[E] {
    debug_assert!(t.is_contiguous() && t.kind().elt_size_in_bytes() == size_of::<E>());
    if t.numel() == 0 {
        return &[];
    }
    // SAFETY: contiguous, of this element type (callers dispatch on the kind), and borrowed.
    unsafe { std::slice::from_raw_parts(t.data_ptr().cast::<E>(), t.numel()) }
}

/// As [`read`], of a tensor that nothing else refers to.
pub(crate) fn write<E: Elem>(t: &mut Tensor) -> &mut [E] {
    debug_assert!(t.is_contiguous() && t.kind().elt_size_in_bytes() == size_of::<E>());
    if t.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `read`; fresh from `empty`, so unshared.
    unsafe { std::slice::from_raw_parts_mut(t.data_ptr().cast::<E>(), t.numel()) }
}
