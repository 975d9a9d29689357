//! The model's arithmetic on CPU tensors, row by row.

use super::Number;
use super::gemm::{self, Shared};
#[cfg(target_arch = "x86_64")]
use super::packed::Packed;
use super::pointwise;
use super::pool::Pool;
use half::bf16;
#[cfg(target_arch = "x86_64")]
use kernels::cpu::gemm::{Product, multiply};
use kernels::elem::Elem;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// Elements below which a job is not worth a second thread.
const SMALL: usize = 4096;

/// [`model::Ops`] for float and bfloat16 CPU tensors without gradients.
pub struct RowOps {
    pool: RefCell<Pool>,
    scratch: RefCell<gemm::Scratch>,
    #[cfg(target_arch = "x86_64")]
    packed: RefCell<Packed>,
}

/// A tensor's elements.
///
/// # Panics
/// If it is not a contiguous CPU tensor of `E`'s kind.
pub fn elements<E: Elem>(t: &Tensor) -> &[E] {
    check::<E>(t);
    // SAFETY: contiguous, of this kind, and alive as long as the borrow; nobody writes to it.
    unsafe { std::slice::from_raw_parts(t.data_ptr().cast(), t.numel()) }
}

/// A fresh tensor's elements.
pub fn elements_mut<E: Elem>(t: &mut Tensor) -> &mut [E] {
    check::<E>(t);
    // SAFETY: contiguous, of this kind, and nobody else has a fresh tensor.
    unsafe { std::slice::from_raw_parts_mut(t.data_ptr().cast(), t.numel()) }
}

fn check<E: Elem>(t: &Tensor) {
    assert!(
        t.kind().elt_size_in_bytes() == size_of::<E>()
            && t.device() == Device::Cpu
            && t.is_contiguous(),
        "the CPU path runs on contiguous CPU tensors"
    );
}

impl RowOps {
    /// Computes on this many threads.
    pub fn new(threads: usize) -> Self {
        Self {
            pool: RefCell::new(Pool::new(threads)),
            scratch: RefCell::default(),
            #[cfg(target_arch = "x86_64")]
            packed: RefCell::default(),
        }
    }

    /// Whether tensors of this kind can be computed here.
    pub fn takes(kind: Kind, device: Device) -> bool {
        device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16)
    }

    /// The threads, for other work on the same rows.
    pub fn pool(&self) -> std::cell::RefMut<'_, Pool> {
        self.pool.borrow_mut()
    }

    /// Cuts `rows` rows of `size` elements into pieces and calls `work` with each range of rows.
    fn rows(&self, rows: usize, size: usize, work: impl Fn(std::ops::Range<usize>) + Sync) {
        let mut pool = self.pool();
        let pieces = if rows * size < SMALL {
            1
        } else {
            (2 * pool.threads()).min(rows)
        };
        let each = rows.div_ceil(pieces.max(1)).max(1);
        pool.run(rows.div_ceil(each), |i| {
            work(i * each..((i + 1) * each).min(rows))
        });
    }

    fn norm<E: Elem>(&self, x: &Tensor, weight: &Tensor, eps: f64, y: &mut Tensor) {
        let (x, w, y) = (
            elements::<E>(x),
            elements::<E>(weight),
            elements_mut::<E>(y),
        );
        let size = w.len();
        let out = Shared(y.as_mut_ptr());
        self.rows(x.len() / size, size, |r| {
            // SAFETY: pieces are disjoint ranges of rows.
            let y = unsafe {
                std::slice::from_raw_parts_mut(out.get().add(r.start * size), r.len() * size)
            };
            pointwise::rms_norm(&x[r.start * size..r.end * size], w, eps as f32, y);
        });
    }

    fn turn<E: Elem>(&self, x: &Tensor, cos: &Tensor, sin: &Tensor, y: &mut Tensor) {
        let (rows, half) = (cos.size()[0] as usize, cos.size()[1] as usize);
        let (x, y) = (elements::<E>(x), elements_mut::<E>(y));
        let (cos, sin) = (elements::<f32>(cos), elements::<f32>(sin));
        let size = x.len() / rows.max(1);
        let out = Shared(y.as_mut_ptr());
        self.rows(rows, size, |range| {
            for r in range {
                // SAFETY: pieces are disjoint rows.
                let y = unsafe { std::slice::from_raw_parts_mut(out.get().add(r * size), size) };
                let at = r * half..(r + 1) * half;
                pointwise::rope(&x[r * size..(r + 1) * size], &cos[at.clone()], &sin[at], y);
            }
        });
    }

    fn gated<E: Elem>(&self, gate: &Tensor, up: &Tensor, y: &mut Tensor) {
        let (gate, up, y) = (elements::<E>(gate), elements::<E>(up), elements_mut::<E>(y));
        let out = Shared(y.as_mut_ptr());
        const SIZE: usize = 1024;
        let len = gate.len();
        self.rows(len.div_ceil(SIZE), SIZE, |r| {
            let r = r.start * SIZE..(r.end * SIZE).min(len);
            // SAFETY: pieces are disjoint ranges.
            let y = unsafe { std::slice::from_raw_parts_mut(out.get().add(r.start), r.len()) };
            pointwise::swiglu(&gate[r.clone()], &up[r], y);
        });
    }

    fn shares<E: Elem>(&self, x: &Tensor, y: &mut Tensor) {
        let size = x.size()[1] as usize;
        let (x, y) = (elements::<E>(x), elements_mut::<f32>(y));
        let out = Shared(y.as_mut_ptr());
        self.rows(x.len() / size.max(1), size, |r| {
            let r = r.start * size..r.end * size;
            // SAFETY: pieces are disjoint ranges of rows.
            let y = unsafe { std::slice::from_raw_parts_mut(out.get().add(r.start), r.len()) };
            pointwise::softmax(&x[r], size, y);
        });
    }

    fn products<E: Number>(
        &self,
        x: &Tensor,
        maps: &[(&Tensor, Option<&Tensor>)],
        results: &mut [Tensor],
    ) {
        let mut pool = self.pool();
        let x = elements::<E>(x);
        #[cfg(target_arch = "x86_64")]
        {
            let mut packed = self.packed.borrow_mut();
            if maps.iter().all(|(w, _)| packed.ensure::<E>(&mut pool, w)) {
                let mut products = Vec::with_capacity(maps.len());
                for ((weight, bias), y) in maps.iter().zip(results) {
                    products.push(Product {
                        panels: packed.get(weight),
                        bias: bias.map(elements::<E>),
                        y: elements_mut::<E>(y),
                    });
                }
                let mut team = |count: usize, work: &(dyn Fn(usize) + Sync)| pool.run(count, work);
                return multiply(&mut team, x, &mut products);
            }
        }
        let mut scratch = self.scratch.borrow_mut();
        for ((weight, bias), y) in maps.iter().zip(results) {
            let matrix = gemm::Matrix {
                w: elements::<E>(weight),
                bias: bias.map(elements::<E>),
                n: weight.size()[0] as usize,
                k: weight.size()[1] as usize,
            };
            gemm::linear(&mut pool, &mut scratch, matrix, x, elements_mut::<E>(y));
        }
    }
}

impl model::Ops for RowOps {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
        let _kernel = trace::kernel("rms_norm").with("elements", x.numel());
        let x = x.contiguous();
        let mut y = x.empty_like();
        match x.kind() {
            Kind::BFloat16 => self.norm::<bf16>(&x, weight, eps, &mut y),
            _ => self.norm::<f32>(&x, weight, eps, &mut y),
        }
        y
    }

    fn rope(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor) {
        let _kernel = trace::kernel("rope").with("elements", q.numel() + k.numel());
        let turn = |x: &Tensor| {
            let x = x.contiguous();
            let mut y = x.empty_like();
            match x.kind() {
                Kind::BFloat16 => self.turn::<bf16>(&x, cos, sin, &mut y),
                _ => self.turn::<f32>(&x, cos, sin, &mut y),
            }
            y
        };
        (turn(q), turn(k))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        let _kernel = trace::kernel("swiglu").with("elements", gate.numel());
        let (gate, up) = (gate.contiguous(), up.contiguous());
        let mut y = gate.empty_like();
        match gate.kind() {
            Kind::BFloat16 => self.gated::<bf16>(&gate, &up, &mut y),
            _ => self.gated::<f32>(&gate, &up, &mut y),
        }
        y
    }

    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        self.linears(x, &[(weight, bias)]).remove(0)
    }

    /// As one job of the pool.
    fn linears(&self, x: &Tensor, maps: &[(&Tensor, Option<&Tensor>)]) -> Vec<Tensor> {
        let _kernel = trace::kernel("linear")
            .with("rows", x.size()[0])
            .with("out", maps.iter().map(|(w, _)| w.size()[0]).sum::<i64>())
            .with("in", x.size()[1]);
        let x = x.contiguous();
        let size = |w: &Tensor| [x.size()[0], w.size()[0]];
        let empty = |(w, _): &(&Tensor, _)| Tensor::empty(size(w), (x.kind(), Device::Cpu));
        let mut results: Vec<Tensor> = maps.iter().map(empty).collect();
        match x.kind() {
            Kind::BFloat16 => self.products::<bf16>(&x, maps, &mut results),
            _ => self.products::<f32>(&x, maps, &mut results),
        }
        results
    }

    fn softmax(&self, x: &Tensor) -> Tensor {
        let _kernel = trace::kernel("softmax").with("rows", x.size()[0]);
        let x = x.contiguous();
        let mut y = Tensor::empty(x.size(), (Kind::Float, Device::Cpu));
        match x.kind() {
            Kind::BFloat16 => self.shares::<bf16>(&x, &mut y),
            _ => self.shares::<f32>(&x, &mut y),
        }
        y
    }
}
