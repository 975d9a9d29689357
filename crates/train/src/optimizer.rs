//! AdamW and SGD over fp32 (fp64) master weights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use kernels::cuda::Machine;
use kernels::cuda::adamw::Slot;

use crate::Error;
use crate::update::Update;

/// Which optimizer, and its constants. The learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// Decay of matrices per unit of learning rate; norms and biases have none.
        weight_decay: f64,
    },
    /// Stochastic gradient descent: `v = momentum v + g`, `p -= lr (v + weight_decay p)`.
    Sgd {
        /// 0 keeps no state.
        momentum: f64,
        /// As for AdamW.
        weight_decay: f64,
    },
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl OptimizerConfig {
    /// Names of the moments that it keeps after so many updates.
    pub(crate) fn moments(&self, updates: u64) -> Vec<String> {
        let names: &[&str] = match self {
            _ if updates == 0 => &[],
            OptimizerConfig::AdamW { .. } => &["first", "second"],
            OptimizerConfig::Sgd { momentum, .. } if *momentum != 0.0 => &["first"],
            OptimizerConfig::Sgd { .. } => &[],
        };
        names.iter().map(|name| (*name).to_owned()).collect()
    }
}

/// An optimizer with its state by Hugging Face name.
pub struct Optimizer {
    pub(crate) config: OptimizerConfig,
    pub(crate) grad_clip: Option<f64>,
    /// Updates made.
    pub(crate) updates: u64,
    /// First (SGD: only) and second moments.
    pub(crate) first: BTreeMap<String, Tensor>,
    pub(crate) second: BTreeMap<String, Tensor>,
}

/// A parameter as the optimizer sees it.
pub(crate) struct Param<'a> {
    pub name: &'a str,
    /// Changed in place.
    pub master: Tensor,
    pub grad: Tensor,
    /// Compute weights apart from the masters.
    pub weight: Option<Tensor>,
    /// Whether weight decay applies.
    pub decay: bool,
}

impl Optimizer {
    /// A fresh optimizer. `grad_clip` bounds the global gradient norm.
    pub fn new(config: OptimizerConfig, grad_clip: Option<f64>) -> Optimizer {
        Optimizer {
            config,
            grad_clip,
            updates: 0,
            first: BTreeMap::new(),
            second: BTreeMap::new(),
        }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// What gradients of this global norm are multiplied by, so that it is at most `grad_clip`.
    pub(crate) fn clip(&self, norm: f64) -> f64 {
        match self.grad_clip {
            Some(limit) if norm > limit => limit / norm,
            _ => 1.0,
        }
    }

    /// The update of these parameters by a machine's kernels; `None` where it has none for it.
    pub(crate) fn launched(
        &mut self,
        machine: &'static dyn Machine,
        params: &[Param],
    ) -> Result<Option<Update>, Error> {
        if !matches!(self.config, OptimizerConfig::AdamW { .. }) {
            return Ok(None);
        }
        self.make_moments(params);
        let slots: Vec<Slot> = params
            .iter()
            .map(|p| Slot {
                master: &p.master,
                grad: &p.grad,
                first: &self.first[p.name],
                second: &self.second[p.name],
                weight: p.weight.as_ref(),
                decays: p.decay,
            })
            .collect();
        Update::new(machine, &slots)
    }

    /// One update of all parameters of an [`Update`], gradients multiplied by `scale`.
    pub(crate) fn launch(&mut self, update: &Update, lr: f64, scale: f64) -> Result<(), Error> {
        let OptimizerConfig::AdamW {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config
        else {
            return Err(Error::Config("an update in one launch is AdamW's".into()));
        };
        self.updates += 1;
        let with = torch::fused::AdamW {
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
        };
        update.step(scale, with, self.updates)
    }

    fn make_moments(&mut self, params: &[Param]) {
        for p in params {
            for moments in [&mut self.first, &mut self.second] {
                if !moments.contains_key(p.name) {
                    moments.insert(p.name.to_owned(), p.master.zeros_like());
                }
            }
        }
    }

    /// One update of all parameters.
    pub(crate) fn step(&mut self, params: Vec<Param>, lr: f64) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        self.updates += 1;
        match self.config {
            OptimizerConfig::AdamW {
                beta1,
                beta2,
                eps,
                weight_decay,
            } => {
                let (decayed, plain): (Vec<_>, Vec<_>) = params.into_iter().partition(|p| p.decay);
                for (group, weight_decay) in [(decayed, weight_decay), (plain, 0.0)] {
                    self.adamw(
                        &group,
                        torch::fused::AdamW {
                            lr,
                            beta1,
                            beta2,
                            weight_decay,
                            eps,
                        },
                    )?;
                }
            }
            OptimizerConfig::Sgd {
                momentum,
                weight_decay,
            } => {
                for p in params {
                    self.sgd(p, lr, momentum, weight_decay);
                }
            }
        }
        Ok(())
    }

    fn adamw(&mut self, group: &[Param], with: torch::fused::AdamW) -> Result<(), Error> {
        self.make_moments(group);
        let masters: Vec<&Tensor> = group.iter().map(|p| &p.master).collect();
        let grads: Vec<&Tensor> = group.iter().map(|p| &p.grad).collect();
        let first: Vec<&Tensor> = group.iter().map(|p| &self.first[p.name]).collect();
        let second: Vec<&Tensor> = group.iter().map(|p| &self.second[p.name]).collect();
        let Some(any) = masters.first() else {
            return Ok(());
        };
        let step = Tensor::from(self.updates as f32).to_device(any.device());
        let steps = vec![&step; group.len()];
        Ok(torch::fused::adamw(
            &masters, &grads, &first, &second, &steps, with,
        )?)
    }

    fn sgd(&mut self, mut p: Param, lr: f64, momentum: f64, weight_decay: f64) {
        let mut update = if momentum == 0.0 {
            &p.grad * -lr
        } else {
            let velocity = self
                .first
                .entry(p.name.to_owned())
                .or_insert_with(|| p.grad.zeros_like());
            let _ = velocity.g_mul_scalar_(momentum).g_add_(&p.grad);
            &*velocity * -lr
        };
        if p.decay && weight_decay != 0.0 {
            update -= &p.master * (lr * weight_decay);
        }
        let _ = p.master.g_add_(&update);
    }
}
