//! The softmax kernel, values and gradients, against autograd over libtorch's log-softmax in f64.

use kernels::Softmax;
use tch::{Device, Kind, Tensor};
use torch::autograd::vjp;

fn wave(shape: &[i64], step: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    ((Tensor::arange(n, (Kind::Double, Device::Cpu)) * step).sin() * 3.0).reshape(shape)
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (a - &b).norm().double_value(&[]) / b.norm().double_value(&[]).max(1e-30)
}

#[test]
fn values_and_gradients_are_those_of_autograd() {
    for (rows, n) in [(1, 2), (3, 17), (0, 5), (130, 660), (2, 5000)] {
        for (kind, limit) in [
            (Kind::Double, 1e-13),
            (Kind::Float, 1e-6),
            (Kind::BFloat16, 4e-3),
        ] {
            let logits = wave(&[rows, n], 12.9898).to_kind(kind);
            let options = (Kind::Int64, Device::Cpu);
            let targets = (Tensor::arange(rows, options) * 7).remainder(n);
            for (by, entropy) in [(1.0, false), (0.7, true)] {
                let exact = logits.to_kind(Kind::Double).set_requires_grad(true);
                let lsm = (&exact * by).log_softmax(-1, None);
                let logp = lsm
                    .gather(-1, &targets.unsqueeze(-1), false)
                    .squeeze_dim(-1);
                let h = -(lsm.exp() * &lsm).sum_dim_intlist([-1i64].as_slice(), false, None);
                let (dg, dh) = (wave(&[rows], 0.7), wave(&[rows], 0.3));
                let dh = if entropy { dh } else { dh * 0.0 };
                let want = vjp(&[&logp, &h], &[&dg, &dh], &[&exact], false).unwrap();

                let sums = if kind == Kind::Double {
                    kind
                } else {
                    Kind::Float
                };
                let soft = Softmax::new(&logits, &targets, by, entropy, sums);
                let (dg, dh) = (dg.to_kind(sums), dh.to_kind(sums));
                let got = soft.backward(logits.copy(), &targets, by, &dg, entropy.then_some(&dh));
                let case = format!("{rows} {n} {kind:?} {by}");
                assert!(off(&soft.logp, &logp.detach()) < 1e-6, "{case}");
                if let Some(found) = &soft.entropy {
                    assert!(off(found, &h.detach()) < 1e-6, "{case}: entropy");
                }
                let want = want[0].as_ref().expect("a gradient");
                assert_eq!(got.kind(), kind);
                let off = off(&got, want);
                assert!(off < limit, "{case}: gradient off by {off}");
            }
        }
    }
}

#[test]
fn what_is_no_number_shows() {
    for (bad, at) in [(f64::NAN, 0), (f64::NAN, 29), (f64::INFINITY, 3)] {
        let logits = wave(&[2, 30], 0.3).to_kind(Kind::Float);
        let _ = logits.get(1).get(at).fill_(bad);
        let targets = Tensor::from_slice(&[4i64, 5]);
        let soft = Softmax::new(&logits, &targets, 1.0, true, Kind::Float);
        assert!(soft.logp.double_value(&[0]).is_finite());
        assert!(soft.logp.double_value(&[1]).is_nan(), "{bad} at {at}");
    }
}
