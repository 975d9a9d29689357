//! Log-probability and entropy of logits, and back.

use kernels::cuda::softmax;
use tch::{Kind, Tensor};
use torch::autograd::vjp;

use crate::support::{KINDS, close, given, ints, leaf, machines, noise};

/// By plain tensor code in fp64: log p(target) and entropy.
fn plain(logits: &Tensor, targets: &Tensor, by: f64) -> (Tensor, Tensor) {
    let lsm = (logits * by).log_softmax(-1, Kind::Double);
    let logp = lsm.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    (
        logp,
        -(lsm.exp() * lsm).sum_dim_intlist([1i64].as_slice(), false, Kind::Double),
    )
}

#[test]
fn values_and_gradients_agree_with_log_softmax() {
    let cases = [
        (1, 1, 1.0),
        (3, 7, 1.0),
        (5, 660, 0.7),
        (4, 5000, 1.3),
        (3, 4099, 1.0),
        (2, 20001, 2.0),
    ];
    for (c, (rows, n, by)) in cases.into_iter().enumerate() {
        for kind in KINDS {
            for with_entropy in [false, true] {
                let machine = machines()[c % 3];
                let (mut logits, exact_logits) =
                    given(machine, &(noise(&[rows, n], 1) * 5.0 + 3.0), kind);
                let ids: Vec<i64> = (0..rows).map(|r| (r * 7919 + 5) % n).collect();
                let targets = ints(machine, &ids, Kind::Int64);
                let exact_logits = leaf(&exact_logits);
                let (logp, entropy) = plain(&exact_logits, &Tensor::from_slice(&ids), by);
                let values =
                    softmax::forward(machine, &logits, &targets, by, with_entropy).unwrap();
                if n > 1 {
                    close("logp", &values.logp, &logp);
                    if let Some(ours) = &values.entropy {
                        close("entropy", ours, &entropy);
                    }
                }
                assert_eq!(values.entropy.is_some(), with_entropy);
                let (d_logp, d_logp64) = given(machine, &noise(&[rows], 2), Kind::Float);
                let (d_entropy, d_entropy64) = given(machine, &noise(&[rows], 3), Kind::Float);
                let d = with_entropy.then_some(&d_entropy);
                let d_entropy64 = d_entropy64 * f64::from(with_entropy);
                let exact = vjp(
                    &[&logp, &entropy],
                    &[&d_logp64, &d_entropy64],
                    &[&exact_logits],
                    false,
                );
                let exact = exact.unwrap().remove(0).unwrap();
                softmax::backward(machine, &mut logits, &targets, by, &values, &d_logp, d).unwrap();
                if n > 1 {
                    close("logits' gradient", &logits, &exact);
                } else {
                    assert!(logits.abs().max().double_value(&[]) < 1e-6);
                }
            }
        }
    }
}

#[test]
fn logits_far_apart_lose_nothing() {
    let machine = machines()[0];
    // ascending, so that every step raises the maximum; and one token that has all
    let up = Tensor::arange(4000, (Kind::Double, tch::Device::Cpu)) * 0.05 - 120.0;
    let spike = Tensor::zeros([4000], (Kind::Double, tch::Device::Cpu)) - 90.0;
    let _ = spike.narrow(0, 1234, 1).fill_(80.0);
    let both = Tensor::stack(&[up, spike], 0);
    let (logits, exact) = given(machine, &both, Kind::Float);
    let ids = [17i64, 1234];
    let targets = ints(machine, &ids, Kind::Int64);
    let values = softmax::forward(machine, &logits, &targets, 1.0, true).unwrap();
    let (logp, entropy) = plain(&exact, &Tensor::from_slice(&ids), 1.0);
    close("logp", &values.logp.narrow(0, 0, 1), &logp.narrow(0, 0, 1));
    close(
        "entropy",
        &values.entropy.as_ref().unwrap().narrow(0, 0, 1),
        &entropy.narrow(0, 0, 1),
    );
    assert_eq!(values.logp.double_value(&[1]), 0.0);
    assert!(values.entropy.unwrap().double_value(&[1]).abs() < 1e-30);
}

#[test]
fn a_masked_logit_has_no_part_and_a_nan_shows() {
    let machine = machines()[1];
    let x = noise(&[2, 700], 1);
    let _ = x.narrow(0, 0, 1).narrow(1, 0, 650).fill_(f64::NEG_INFINITY);
    let _ = x.narrow(0, 1, 1).narrow(1, 699, 1).fill_(f64::NAN);
    let (mut logits, _) = given(machine, &x, Kind::Float);
    let targets = ints(machine, &[660, 0], Kind::Int64);
    let values = softmax::forward(machine, &logits, &targets, 1.0, true).unwrap();
    let rest = x
        .narrow(0, 0, 1)
        .narrow(1, 650, 50)
        .to_kind(Kind::Float)
        .to_kind(Kind::Double);
    let (logp, entropy) = plain(&rest, &Tensor::from_slice(&[10i64]), 1.0);
    close("logp", &values.logp.narrow(0, 0, 1), &logp);
    close(
        "entropy",
        &values.entropy.as_ref().unwrap().narrow(0, 0, 1),
        &entropy,
    );
    assert!(values.logp.double_value(&[1]).is_nan());
    let ones = Tensor::ones([2], (Kind::Float, machine.device()));
    softmax::backward(
        machine,
        &mut logits,
        &targets,
        1.0,
        &values,
        &ones,
        Some(&ones),
    )
    .unwrap();
    let first = logits.narrow(0, 0, 1);
    assert_eq!(first.narrow(1, 0, 650).abs().max().double_value(&[]), 0.0);
    assert!(first.isfinite().all().int64_value(&[]) == 1);
}
