//! Each kernel, forward and backward, against plain libtorch in f64 on odd sizes.

use kernels::Fused;
use model::{Libtorch, Ops};
use tch::{Device, Kind, Tensor};
use torch::autograd::vjp;

fn wave(shape: &[i64], step: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    ((Tensor::arange(n, (Kind::Double, Device::Cpu)) * step).sin() * 2.0).reshape(shape)
}

/// |a - b| / |b| in f64.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (a - &b).norm().double_value(&[]) / b.norm().double_value(&[]).max(1e-30)
}

/// Runs `f` by libtorch in f64 and by the kernels in `kind` on the same (rounded) values, and
/// compares outputs and all gradients.
fn compare(kind: Kind, inputs: &[Tensor], f: impl Fn(&dyn Ops, &[Tensor]) -> Tensor) {
    let limit = if kind == Kind::BFloat16 { 1e-2 } else { 3e-6 };
    let rounded: Vec<Tensor> = inputs.iter().map(|t| t.to_kind(kind)).collect();
    let run = |ops: &dyn Ops, kind: Kind| {
        let leaves: Vec<Tensor> = rounded
            .iter()
            .map(|t| t.to_kind(kind).copy().set_requires_grad(true))
            .collect();
        let y = f(ops, &leaves);
        let dy = wave(&y.size(), 0.7).to_kind(Kind::BFloat16).to_kind(kind);
        let refs: Vec<&Tensor> = leaves.iter().collect();
        let grads = vjp(&[&y], &[&dy], &refs, false).unwrap();
        let mut out = vec![y.detach()];
        out.extend(grads.into_iter().map(Option::unwrap));
        out
    };
    for (i, (ours, exact)) in run(&Fused, kind)
        .iter()
        .zip(run(&Libtorch, Kind::Double))
        .enumerate()
    {
        assert_eq!(ours.kind(), kind);
        let d = distance(ours, &exact);
        assert!(d < limit, "{kind:?}, output {i}: {d}");
    }
}

#[test]
fn rms_norm() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (rows, d) in [(1, 1), (3, 7), (700, 20), (513, 256), (2, 4096)] {
            let x = wave(&[rows, d], 0.37);
            compare(kind, &[x, wave(&[d], 0.11) + 1.5], |ops, t| {
                ops.rms_norm(&t[0], &t[1], 1e-6)
            });
        }
        let (q, w) = (wave(&[5, 3, 18], 0.3), wave(&[18], 0.2) + 1.5);
        compare(kind, &[q, w], |ops, t| ops.rms_norm(&t[0], &t[1], 1e-5));
    }
}

#[test]
fn rope() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (rows, heads, d) in [(1, 1, 2), (3, 5, 18), (300, 8, 32)] {
            let angles = wave(&[rows, d / 2], 0.05);
            let tables = |kind: Kind| {
                let kind = if kind == Kind::Double {
                    kind
                } else {
                    Kind::Float
                };
                (angles.cos().to_kind(kind), angles.sin().to_kind(kind))
            };
            let x = wave(&[rows, heads, d], 0.37);
            compare(kind, &[x], |ops, t| {
                let (cos, sin) = tables(t[0].kind());
                let (q, k) = ops.rope(&t[0], &t[0], &cos, &sin);
                q + k * 2.0
            });
        }
    }
}

#[test]
fn swiglu() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for shape in [[1, 1], [3, 7], [301, 96], [64, 1000]] {
            let (g, u) = (wave(&shape, 0.37) * 4.0, wave(&shape, 0.13));
            compare(kind, &[g, u], |ops, t| ops.swiglu(&t[0], &t[1]));
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let x = wave(&[3000, 64], 0.37)
        .to_kind(Kind::Float)
        .set_requires_grad(true);
    let w = wave(&[64], 0.11)
        .to_kind(Kind::Float)
        .set_requires_grad(true);
    let run = |threads: usize| {
        torch::threads::set(threads);
        let y = Fused.rms_norm(&x, &w, 1e-6);
        let g = vjp(&[&y], &[&y.detach()], &[&x, &w], false).unwrap();
        (y.detach(), g)
    };
    let (one, two) = (run(1), run(2));
    assert!(one.0.equal(&two.0));
    for (a, b) in one.1.iter().zip(&two.1) {
        assert!(a.as_ref().unwrap().equal(b.as_ref().unwrap()));
    }
}

#[test]
fn nothing_is_recorded_without_gradients() {
    let x = wave(&[4, 8], 0.3)
        .to_kind(Kind::Float)
        .set_requires_grad(true);
    let w = wave(&[8], 0.3).to_kind(Kind::Float);
    assert!(Fused.rms_norm(&x, &w, 1e-6).requires_grad());
    assert!(!tch::no_grad(|| Fused.rms_norm(&x, &w, 1e-6)).requires_grad());
    let empty = Tensor::zeros([0, 8], (Kind::Float, Device::Cpu));
    assert_eq!(Fused.rms_norm(&empty, &w, 1e-6).size(), [0, 8]);
}

#[test]
fn linear() {
    for (rows, n, k) in [
        (64, 1, 1),
        (65, 3, 7),
        (300, 20, 33),
        (131, 660, 100),
        (700, 130, 300),
        (97, 65, 513),
    ] {
        // large steps look random: sums of a wave would cancel
        let (x, w) = (wave(&[rows, k], 12.9898), wave(&[n, k], 78.233));
        compare(Kind::Float, &[x, w], |ops, t| {
            ops.linear(&t[0], &t[1], None)
        });
        let (x, w) = (wave(&[rows, k], 37.719), wave(&[n, k], 93.989));
        let b = wave(&[n], 1.3);
        compare(Kind::Float, &[x, w, b], |ops, t| {
            ops.linear(&t[0], &t[1], Some(&t[2]))
        });
    }
}

#[test]
fn a_row_of_a_product_has_the_same_bits_in_any_company() {
    let (x, w) = (wave(&[200, 70], 12.9898), wave(&[90, 70], 78.233));
    let (x, w) = (x.to_kind(Kind::Float), w.to_kind(Kind::Float));
    let all = Fused.linear(&x, &w, None);
    for (from, rows) in [(0, 64), (1, 67), (130, 70)] {
        let some = Fused.linear(&x.narrow(0, from, rows), &w, None);
        assert!(some.equal(&all.narrow(0, from, rows)));
    }
}
