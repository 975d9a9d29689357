//! [`Spans`]: attention over a packed batch, by the CPU kernel where it applies.

use model::{Attend, AttendSpec, Error, Layout, Packed};
use tch::{Device, Tensor};

/// Attention over a [`Layout`]: the CPU kernel for f32 and bf16 on a machine that has AVX-512,
/// [`Packed`] for all else. Differentiable.
#[derive(Debug)]
pub struct Spans {
    #[cfg(target_arch = "x86_64")]
    kernel: Option<avx512::Kernel>,
    other: Packed,
}

impl Spans {
    /// For a layout's rows on a device and the padding after them, `rows` in all.
    ///
    /// # Errors
    /// A layout that breaks its rules or has more rows.
    pub fn new(layout: &Layout, rows: usize, device: Device) -> Result<Self, Error> {
        Ok(Self {
            other: Packed::padded(layout, rows, device)?,
            #[cfg(target_arch = "x86_64")]
            kernel: avx512::Kernel::new(layout, rows),
        })
    }
}

impl Attend for Spans {
    fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttendSpec,
    ) -> Tensor {
        #[cfg(target_arch = "x86_64")]
        if let Some(out) = self
            .kernel
            .as_ref()
            .and_then(|kernel| kernel.attend(q, k, v, spec))
        {
            return out;
        }
        self.other.attend(layer, q, k, v, spec)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::rc::Rc;

    use half::bf16;
    use model::{AttendSpec, Layout};
    use tch::{Kind, Tensor};
    use torch::autograd::record;

    use crate::cpu::attention::{Family, Piece, Shape, backward, forward};
    use crate::cpu::simd::{Cell, available};
    use crate::ops::{empty, kernel_kind, read, write};

    /// A layout as the kernel takes it.
    #[derive(Debug)]
    pub struct Kernel {
        families: Rc<Vec<Family>>,
        rows: usize,
        /// Some row belongs to no span.
        uncovered: bool,
    }

    impl Kernel {
        /// For a layout that has been checked; `None` where the kernel does not run.
        pub fn new(layout: &Layout, rows: usize) -> Option<Self> {
            let covered: usize = layout.spans.iter().map(|s| s.len).sum();
            available().then(|| Self {
                families: Rc::new(families(layout)),
                rows,
                uncovered: covered < rows,
            })
        }

        /// `None` for tensors that the kernel does not take.
        pub fn attend(
            &self,
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            spec: &AttendSpec,
        ) -> Option<Tensor> {
            match kernel_kind(&[q, k, v])? {
                Kind::BFloat16 if bf16::available() => Some(self.attend_as::<bf16>(q, k, v, spec)),
                Kind::Float => Some(self.attend_as::<f32>(q, k, v, spec)),
                _ => None,
            }
        }

        fn attend_as<E: Cell>(
            &self,
            q: &Tensor,
            k: &Tensor,
            v: &Tensor,
            spec: &AttendSpec,
        ) -> Tensor {
            let size = q.size();
            let _kernel = trace::kernel("attention").with("rows", size[0]);
            assert_eq!(
                size[0] as usize, self.rows,
                "queries have as many rows as the layout"
            );
            let shape = Shape {
                heads: size[1] as usize,
                kv_heads: k.size()[1] as usize,
                d: size[2] as usize,
                scale: spec.scale as f32,
                window: spec.window,
            };
            let fresh = |like: &Tensor, uncovered: bool| match uncovered {
                true => like.zeros_like(),
                false => empty(like),
            };
            let inputs = [q, k, v];
            let [q, k, v] = inputs.map(|t| t.detach().contiguous());
            let mut o = fresh(&q, self.uncovered);
            let mut stats = Tensor::empty([size[0], size[1], 2], (Kind::Float, q.device()));
            forward::<E>(
                &self.families,
                &shape,
                [read(&q), read(&k), read(&v)],
                write(&mut o),
                write(&mut stats),
            );
            let (families, uncovered, result) =
                (Rc::clone(&self.families), self.uncovered, o.detach());
            record(&inputs, o, move |d_o| {
                let _kernel = trace::kernel("attention_backward").with("rows", d_o.size()[0]);
                let mut dq = fresh(&q, uncovered);
                let [mut dk, mut dv] =
                    [&k, &v].map(|t| Tensor::zeros(t.size(), (Kind::Float, t.device())));
                backward::<E>(
                    &families,
                    &shape,
                    [read(&q), read(&k), read(&v)],
                    (read(&result), read(&stats)),
                    read(&d_o.contiguous()),
                    write(&mut dq),
                    [write(&mut dk), write(&mut dv)],
                );
                vec![
                    Some(dq),
                    Some(dk.to_kind(k.kind())),
                    Some(dv.to_kind(v.kind())),
                ]
            })
        }
    }

    /// Every span that is no one's branch, with its branches.
    fn families(layout: &Layout) -> Vec<Family> {
        let mut families: Vec<Family> = Vec::new();
        let mut family_of = vec![0; layout.spans.len()];
        for (i, span) in layout.spans.iter().enumerate() {
            let own = span.start..span.start + span.len;
            let before = span.prefix.map_or(0..0, |p| {
                let p = layout.spans[p];
                p.start..p.start + p.len
            });
            family_of[i] = match span.prefix {
                Some(p) => family_of[p],
                None => {
                    families.push(Family::new());
                    families.len() - 1
                }
            };
            if span.len > 0 {
                families[family_of[i]].push(Piece {
                    offset: before.len(),
                    queries: own.clone(),
                    keys: [before, own],
                });
            }
        }
        families
    }
}
