//! Norm, rotary embedding and gated activation.

use kernels::cuda::{rms_norm, rope, swiglu};
use tch::{Kind, Tensor};
use torch::autograd::vjp;

use crate::support::{KINDS, close, exact, given, leaf, machines, noise};

const EPS: f64 = 1e-6;

/// By plain tensor code in fp64: the sum, and its norm.
fn plain_norm(x: &Tensor, r: Option<&Tensor>, w: &Tensor) -> (Tensor, Tensor) {
    let h = r.map_or_else(|| x * 1.0, |r| x + r);
    let mean = h.square().mean_dim([-1i64].as_slice(), true, Kind::Double);
    let y = &h * (mean + EPS).rsqrt() * w;
    (h, y)
}

#[test]
fn rms_norm_with_and_without_the_residual() {
    let sizes: [&[i64]; 9] = [
        // of a row of one nothing is left of the gradient but rounding
        &[1, 3],
        &[3, 7],
        &[17, 128],
        &[9, 5, 24],
        &[41, 1000],
        &[5, 1024],
        &[3, 1025],
        &[4, 4096],
        &[2, 10240],
    ];
    for (s, size) in sizes.into_iter().enumerate() {
        for kind in KINDS {
            for residual in [false, true] {
                let machine = machines()[(s + usize::from(residual)) % 3];
                let n = size[size.len() - 1];
                let (x, xd) = given(machine, &noise(size, 1), kind);
                let (w, wd) = given(machine, &(noise(&[n], 2) * 0.3 + 1.0), kind);
                let (dy, dyd) = given(machine, &noise(size, 3), kind);
                let both = residual.then(|| {
                    (
                        given(machine, &noise(size, 4), kind),
                        given(machine, &noise(size, 5), kind),
                    )
                });
                let r = both.as_ref().map(|((r, _), _)| r);
                let ours = rms_norm::forward(machine, &x, r, &w, EPS).unwrap();

                // the sum is rounded to its kind before it is normed
                let rd = both.as_ref().map(|((_, rd), _)| rd);
                let (h, _) = plain_norm(&xd, rd, &wd);
                let h = leaf(&h.to_kind(kind).to_kind(Kind::Double));
                let wd = leaf(&wd);
                let (_, y) = plain_norm(&h, None, &wd);
                close("y", &ours.y, &y);
                match (&ours.sum, residual) {
                    (Some(sum), true) => assert!(exact(sum).equal(&h.detach())),
                    (None, false) => (),
                    _ => panic!("a sum where there is a residual, and only there"),
                }
                let wanted = vjp(&[&y], &[&dyd], &[&h, &wd], false).unwrap();
                let d_sum = both.as_ref().map(|(_, (d, _))| d);
                let normed = ours.sum.as_ref().unwrap_or(&x);
                let (dx, dw) =
                    rms_norm::backward(machine, normed, &w, &ours.rstd, &dy, d_sum).unwrap();
                let mut exact_dx = wanted[0].as_ref().unwrap().copy();
                if let Some((_, (_, d))) = &both {
                    exact_dx += d;
                }
                close("dx", &dx, &exact_dx);
                close("dw", &dw, wanted[1].as_ref().unwrap());
            }
        }
    }
}

#[test]
fn the_norm_of_many_rows_sums_the_weights_gradient_over_all_blocks() {
    // more rows than the backward's blocks have warps
    let machine = machines()[0];
    let size = [9000, 16];
    for kind in KINDS {
        let (x, xd) = given(machine, &noise(&size, 1), kind);
        let (w, wd) = given(machine, &(noise(&[16], 2) * 0.3 + 1.0), kind);
        let (dy, dyd) = given(machine, &noise(&size, 3), kind);
        let ours = rms_norm::forward(machine, &x, None, &w, EPS).unwrap();
        let (dx, dw) = rms_norm::backward(machine, &x, &w, &ours.rstd, &dy, None).unwrap();
        let (xd, wd) = (leaf(&xd), leaf(&wd));
        let (_, y) = plain_norm(&xd, None, &wd);
        let exact = vjp(&[&y], &[&dyd], &[&xd, &wd], false).unwrap();
        close("dx", &dx, exact[0].as_ref().unwrap());
        close("dw", &dw, exact[1].as_ref().unwrap());
    }
}

#[test]
fn rope_there_and_back() {
    let sizes = [
        (1, 1, 1, 2),
        (3, 5, 1, 18),
        (7, 8, 2, 64),
        (5, 3, 3, 128),
        (2, 24, 8, 16),
    ];
    for (s, (rows, heads, kv_heads, d)) in sizes.into_iter().enumerate() {
        for kind in KINDS {
            let machine = machines()[s % 3];
            let (q, qd) = given(machine, &noise(&[rows, heads, d], 1), kind);
            let (k, kd) = given(machine, &noise(&[rows, kv_heads, d], 2), kind);
            let angles = noise(&[rows, d / 2], 3);
            let (cos, cosd) = given(machine, &angles.cos(), Kind::Float);
            let (sin, sind) = given(machine, &angles.sin(), Kind::Float);
            let plain = |x: &Tensor, sign: f64| {
                let (a, b) = (x.narrow(2, 0, d / 2), x.narrow(2, d / 2, d / 2));
                let (c, s) = (cosd.unsqueeze(1), sind.unsqueeze(1) * sign);
                Tensor::cat(&[&a * &c - &b * &s, &b * &c + &a * &s], 2)
            };
            for inverse in [false, true] {
                let sign = if inverse { -1.0 } else { 1.0 };
                let (to_q, to_k) = rope::turn(machine, &q, &k, (&cos, &sin), inverse).unwrap();
                close("q", &to_q, &plain(&qd, sign));
                close("k", &to_k, &plain(&kd, sign));
            }
        }
    }
}

#[test]
fn swiglu_both_ways() {
    for (s, size) in [[1, 1], [3, 7], [61, 96], [8, 1000], [1, 8]]
        .into_iter()
        .enumerate()
    {
        for kind in KINDS {
            let machine = machines()[s % 3];
            // far to both sides, where the sigmoid is 0 and 1
            let (g, gd) = given(machine, &(noise(&size, 1) * 20.0), kind);
            let (u, ud) = given(machine, &noise(&size, 2), kind);
            let (dy, dyd) = given(machine, &noise(&size, 3), kind);
            let (gd, ud) = (leaf(&gd), leaf(&ud));
            let y = &gd * gd.sigmoid() * &ud;
            close("y", &swiglu::forward(machine, &g, &u).unwrap(), &y);
            let exact = vjp(&[&y], &[&dyd], &[&gd, &ud], false).unwrap();
            let (dg, du) = swiglu::backward(machine, &g, &u, &dy).unwrap();
            close("dg", &dg, exact[0].as_ref().unwrap());
            close("du", &du, exact[1].as_ref().unwrap());
        }
    }
}

#[test]
fn no_row_is_no_launch() {
    let machine = machines()[0];
    let options = (Kind::Float, machine.device());
    let (x, w) = (Tensor::zeros([0, 8], options), Tensor::ones([8], options));
    let ours = rms_norm::forward(machine, &x, Some(&x), &w, EPS).unwrap();
    assert_eq!(ours.y.size(), [0, 8]);
    let (dx, dw) = rms_norm::backward(machine, &x, &w, &ours.rstd, &x, None).unwrap();
    assert_eq!(
        (dx.size(), dw.abs().max().double_value(&[])),
        (vec![0, 8], 0.0)
    );
    assert_eq!(swiglu::forward(machine, &x, &x).unwrap().size(), [0, 8]);
    let (q, t) = (x.view([0, 1, 8]), x.narrow(1, 0, 4).contiguous());
    assert_eq!(
        rope::turn(machine, &q, &q, (&t, &t), false)
            .unwrap()
            .0
            .size(),
        [0, 1, 8]
    );
}
