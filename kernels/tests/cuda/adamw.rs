//! AdamW over many tensors, and the gradients' norm.

use kernels::cuda::adamw::{Slot, Table, squares, step};
use tch::{Kind, Tensor};
use torch::fused::AdamW;

use crate::support::{close, given, machines, noise};

const WITH: AdamW = AdamW {
    lr: 3e-3,
    beta1: 0.9,
    beta2: 0.99,
    weight_decay: 0.1,
    eps: 1e-8,
};

struct Param {
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    weight: Option<Tensor>,
    exact: [Tensor; 4],
    decays: bool,
}

#[test]
fn three_steps_over_tensors_of_odd_sizes() {
    for machine in machines() {
        let sizes: [&[i64]; 7] = [&[1], &[3, 5], &[4096], &[0], &[5000], &[64, 129], &[8193]];
        let mut params: Vec<Param> = sizes
            .iter()
            .enumerate()
            .map(|(i, size)| {
                let seed = 10 * i as u64;
                let make = |x: Tensor| given(machine, &x, Kind::Float);
                let (p, pd) = make(noise(size, seed));
                let (g, gd) = make(noise(size, seed + 1) * 0.1);
                let (m, md) = make(noise(size, seed + 2) * 0.05);
                let (v, vd) = make(noise(size, seed + 3).square() * 0.01);
                Param {
                    weight: (i % 2 == 0).then(|| p.to_kind(Kind::BFloat16)),
                    exact: [pd, gd, md, vd],
                    decays: i % 3 != 0,
                    p,
                    g,
                    m,
                    v,
                }
            })
            .collect();
        let slots: Vec<Slot> = params
            .iter()
            .map(|x| Slot {
                master: &x.p,
                grad: &x.g,
                first: &x.m,
                second: &x.v,
                weight: x.weight.as_ref(),
                decays: x.decays,
            })
            .collect();
        let table = Table::new(machine, &slots).unwrap();
        let total = squares(machine, &table).unwrap();
        let exact: f64 = params
            .iter()
            .map(|x| x.exact[1].square().sum(Kind::Double).double_value(&[]))
            .sum();
        let apart = (total.double_value(&[0]) - exact).abs() / exact;
        assert!(apart < 1e-6, "{apart}");
        for count in 1..=3 {
            let by = if count == 2 { 0.5 } else { 1.0 };
            step(machine, &table, by, WITH, count).unwrap();
            for x in &mut params {
                let [p, g, m, v] = &mut x.exact;
                let g = &*g * by;
                let decay = if x.decays { WITH.weight_decay } else { 0.0 };
                *p *= 1.0 - WITH.lr * decay;
                *m = &*m * WITH.beta1 + &g * (1.0 - WITH.beta1);
                *v = &*v * WITH.beta2 + g.square() * (1.0 - WITH.beta2);
                let m_hat = &*m / (1.0 - WITH.beta1.powi(count as i32));
                let v_hat = &*v / (1.0 - WITH.beta2.powi(count as i32));
                *p -= m_hat / (v_hat.sqrt() + WITH.eps) * WITH.lr;
            }
        }
        for x in params.iter().filter(|x| x.p.numel() > 0) {
            for (what, ours, exact) in [
                ("p", &x.p, &x.exact[0]),
                ("m", &x.m, &x.exact[2]),
                ("v", &x.v, &x.exact[3]),
            ] {
                close(what, ours, exact);
            }
            if let Some(weight) = &x.weight {
                assert!(
                    weight.equal(&x.p.to_kind(Kind::BFloat16)),
                    "the weights are the masters, rounded"
                );
            }
        }
    }
}

#[test]
fn a_table_follows_tensors_that_moved() {
    let machine = machines()[0];
    let make = |seed| given(machine, &noise(&[9], seed), Kind::Float).0;
    let (p, m, v) = (make(1), make(2), make(3).square());
    let slot = |grad| Slot {
        master: &p,
        grad,
        first: &m,
        second: &v,
        weight: None,
        decays: false,
    };
    let (one, other) = (make(4), make(5) * 3.0);
    let mut table = Table::new(machine, &[slot(&one)]).unwrap();
    let norm = |table: &Table| squares(machine, table).unwrap().double_value(&[0]);
    let sum = |t: &Tensor| t.square().sum(Kind::Double).double_value(&[]);
    assert!((norm(&table) - sum(&one)).abs() < 1e-5);
    table.update(machine, &[slot(&other)]).unwrap();
    assert!((norm(&table) - sum(&other)).abs() < 1e-4);
    let none = Table::new(machine, &[]).unwrap();
    assert_eq!(norm(&none), 0.0);
    step(machine, &none, 1.0, WITH, 1).unwrap();
}
