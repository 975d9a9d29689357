//! A whole update in a few launches on a GPU: the gradients' norm, clipping, AdamW and the bf16 compute weights.

use kernels::cuda::Machine;
use kernels::cuda::adamw::{Slot, Table, squares, step};
use tch::{Kind, Tensor};

use crate::Error;

/// The tensors of an update, on a machine that has the kernels for it.
pub(crate) struct Update {
    machine: &'static dyn Machine,
    table: Table,
}

impl Update {
    /// Of these parameters; `None` where one of them is not in fp32 (weights: bf16) on the machine.
    pub fn new(machine: &'static dyn Machine, slots: &[Slot]) -> Result<Option<Update>, Error> {
        let fits = |slot: &Slot| {
            let is = |t: &Tensor, kind| {
                t.kind() == kind && t.device() == machine.device() && t.is_contiguous()
            };
            let state = [slot.master, slot.grad, slot.first, slot.second];
            state.iter().all(|t| is(t, Kind::Float))
                && slot.weight.is_none_or(|t| is(t, Kind::BFloat16))
        };
        if !slots.iter().all(fits) {
            return Ok(None);
        }
        let table = Table::new(machine, slots)?;
        Ok(Some(Update { machine, table }))
    }

    /// The global norm of the gradients. Waits for the device: whether the step is made depends on it.
    pub fn norm(&self) -> Result<f64, Error> {
        let sum = squares(self.machine, &self.table)?;
        Ok(sum.double_value(&[0]).sqrt())
    }

    /// One step with gradients multiplied by `scale`; writes the compute weights too. `count` is 1 for the first.
    pub fn step(&self, scale: f64, with: torch::fused::AdamW, count: u64) -> Result<(), Error> {
        Ok(step(self.machine, &self.table, scale, with, count)?)
    }
}

#[cfg(test)]
mod tests {
    use emulate::{Emulator, Guard};
    use tch::Device;

    use super::*;
    use crate::optimizer::{Optimizer, OptimizerConfig, Param};

    fn wave(size: &[i64], step: f64) -> Tensor {
        let n: i64 = size.iter().product();
        ((Tensor::arange(n, (Kind::Float, Device::Cpu)) * step + 1.0).sin() * 2.0).reshape(size)
    }

    #[test]
    fn an_update_in_one_launch_is_that_of_the_optimizer() {
        let config = OptimizerConfig::AdamW {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.1,
        };
        let sizes: [&[i64]; 3] = [&[5, 7], &[4100], &[1]];
        let masters = || -> Vec<Tensor> { sizes.iter().map(|s| wave(s, 0.37)).collect() };
        let grads: Vec<Tensor> = sizes.iter().map(|s| wave(s, 0.11)).collect();
        let (ours, theirs) = (masters(), masters());
        let weights: Vec<Tensor> = ours.iter().map(|t| t.to_kind(Kind::BFloat16)).collect();
        let params = |of: &[Tensor], by: f64| -> Vec<Param<'static>> {
            let param = |i: usize, name: &'static str| Param {
                name,
                master: of[i].shallow_clone(),
                grad: &grads[i] * by,
                weight: Some(weights[i].shallow_clone()),
                decay: i != 2,
            };
            ["a", "b", "c"]
                .into_iter()
                .enumerate()
                .map(|(i, name)| param(i, name))
                .collect()
        };
        let machine = Emulator::leak(Guard::End, 7);
        let (mut one, mut other) = (
            Optimizer::new(config, Some(1.0)),
            Optimizer::new(config, Some(1.0)),
        );
        for _ in 0..3 {
            let launched = params(&ours, 1.0);
            let update = one
                .launched(machine, &launched)
                .unwrap()
                .expect("fp32 on the machine");
            let norm = update.norm().unwrap();
            let exact: f64 = grads
                .iter()
                .map(|g| g.square().sum(Kind::Double).double_value(&[]))
                .sum();
            assert!((norm / exact.sqrt() - 1.0).abs() < 1e-6);
            one.launch(&update, 0.01, one.clip(norm)).unwrap();
            other.step(params(&theirs, other.clip(norm)), 0.01).unwrap();
        }
        assert_eq!(one.updates(), other.updates());
        for ((a, b), w) in ours.iter().zip(&theirs).zip(&weights) {
            let apart = (a - b).norm() / b.norm();
            assert!(apart.double_value(&[]) < 1e-6);
            assert!(w.equal(&a.to_kind(Kind::BFloat16)));
        }
    }

    #[test]
    fn another_optimizer_or_kind_is_not_launched() {
        let machine = Emulator::leak(Guard::End, 0);
        let param = |kind| Param {
            name: "a",
            master: wave(&[3], 0.1).to_kind(kind),
            grad: wave(&[3], 0.2).to_kind(kind),
            weight: None,
            decay: true,
        };
        let sgd = OptimizerConfig::Sgd {
            momentum: 0.9,
            weight_decay: 0.0,
        };
        let launched = Optimizer::new(sgd, None).launched(machine, &[param(Kind::Float)]);
        assert!(launched.unwrap().is_none());
        let adamw = OptimizerConfig::default();
        let launched = Optimizer::new(adamw, None).launched(machine, &[param(Kind::Double)]);
        assert!(launched.unwrap().is_none());
    }
}
