//! The segments' arithmetic by emulated kernels, with gradients, against libtorch in fp64.

use kernels::CudaOps;
use model::{Libtorch, Ops};
use tch::{Device, Kind, Tensor};
use torch::autograd::vjp;

use crate::support::{KINDS, close, machines, noise};

/// Outputs and gradients by both.
fn compare(kind: Kind, inputs: &[Tensor], f: impl Fn(&dyn Ops, &[Tensor]) -> Tensor) {
    let ours = CudaOps::new(machines()[2]);
    let run = |ops: &dyn Ops, to: Kind| {
        let device = if to == Kind::Double {
            Device::Cpu
        } else {
            machines()[2].device()
        };
        let leaf = |t: &Tensor| {
            t.to_kind(kind)
                .to_kind(to)
                .to_device(device)
                .copy()
                .set_requires_grad(true)
        };
        let leaves: Vec<Tensor> = inputs.iter().map(leaf).collect();
        let y = f(ops, &leaves);
        let dy = noise(&y.size(), 9)
            .to_kind(Kind::BFloat16)
            .to_kind(to)
            .to_device(device);
        let refs: Vec<&Tensor> = leaves.iter().collect();
        let grads = vjp(&[&y], &[&dy], &refs, false).unwrap();
        std::iter::once(y.detach())
            .chain(grads.into_iter().map(Option::unwrap))
            .collect::<Vec<_>>()
    };
    for (ours, exact) in run(&ours, kind).iter().zip(run(&Libtorch, Kind::Double)) {
        assert_eq!(ours.kind(), kind);
        close("output or gradient", ours, &exact);
    }
}

#[test]
fn arithmetic_and_gradients_agree_with_libtorch() {
    for kind in KINDS {
        let w = noise(&[24], 2) * 0.2 + 1.0;
        compare(kind, &[noise(&[5, 3, 24], 1), w], |ops, t| {
            ops.rms_norm(&t[0], &t[1], 1e-5)
        });
        let angles = noise(&[5, 12], 3);
        compare(
            kind,
            &[noise(&[5, 4, 24], 4), noise(&[5, 2, 24], 5)],
            |ops, t| {
                let to = if t[0].kind() == Kind::Double {
                    Kind::Double
                } else {
                    Kind::Float
                };
                let angles = angles.to_kind(Kind::Double).to_device(t[0].device());
                let (q, k) = ops.rope(
                    &t[0],
                    &t[1],
                    &angles.cos().to_kind(to),
                    &angles.sin().to_kind(to),
                );
                Tensor::cat(&[q, k], 1)
            },
        );
        compare(
            kind,
            &[noise(&[7, 20], 6) * 3.0, noise(&[7, 20], 7)],
            |ops, t| ops.swiglu(&t[0], &t[1]),
        );
        // a view that is not contiguous
        compare(kind, &[noise(&[20, 7], 6), noise(&[20, 7], 7)], |ops, t| {
            ops.swiglu(&t[0].tr(), &t[1].tr())
        });
    }
}

#[test]
fn what_no_kernel_is_made_for_goes_to_libtorch() {
    let ours = CudaOps::new(machines()[0]);
    let device = machines()[0].device();
    let (x, w) = (
        noise(&[3, 8], 1).to_device(device),
        noise(&[8], 2).to_device(device),
    );
    assert!(
        ours.rms_norm(&x, &w, 1e-6)
            .equal(&Libtorch.rms_norm(&x, &w, 1e-6))
    );
    assert!(ours.swiglu(&x, &x).equal(&Libtorch.swiglu(&x, &x)));
    let long = [noise(&[1, 10300], 1), noise(&[10300], 2)]
        .map(|t| t.to_kind(Kind::Float).to_device(device));
    assert!(
        ours.rms_norm(&long[0], &long[1], 1e-6)
            .equal(&Libtorch.rms_norm(&long[0], &long[1], 1e-6))
    );
}

#[test]
fn a_sum_and_its_norm_in_one_pass_have_the_bits_of_two() {
    for (machine, kind) in [(0, Kind::Float), (1, Kind::BFloat16), (2, Kind::BFloat16)] {
        let ours = CudaOps::new(machines()[machine]);
        // narrow rows, odd ones, and rows of a block
        for n in [24, 37, 1536] {
            let to = |t: Tensor| t.to_kind(kind).to_device(machines()[machine].device());
            let (x, added) = (to(noise(&[5, n], 1) * 3.0), to(noise(&[5, n], 2)));
            let w = to(noise(&[n], 3));
            let (sum, normed) = ours.add_rms_norm(&x, &added, &w, 1e-6);
            assert!(sum.equal(&(&x + &added)), "{kind:?} {n}");
            assert!(normed.equal(&ours.rms_norm(&sum, &w, 1e-6)), "{kind:?} {n}");

            // where a graph is wanted there is one
            let x = x.set_requires_grad(true);
            let (with, normed) = ours.add_rms_norm(&x, &added, &w, 1e-6);
            assert!(with.requires_grad() && normed.requires_grad() && with.equal(&sum));
        }
    }
}
