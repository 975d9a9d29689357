//! The policy: a decoder with weights that are trained. Every rank of the mesh stores its slices of
//! them and computes its share of each batch; one rank alone stores them whole and copies nothing.

mod build;
mod config;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

use arch::Held;
use arch::experts::Experts;
use model::{Decoder, Ops, Weights};
use parallel::{Collective, Engine, Grads, Groups, Inside, Load, Moe, Sharded};
use tch::{Device, Kind, Tensor};

use crate::balance;
use crate::head::{Head, Input, Pull, Pulled, accumulation};
use crate::lay::{self, Laid, Owned};
use crate::metrics::Flops;
use crate::optimizer::Param;
use crate::update::Update;
use crate::walk::Batch;
use crate::{Error, LossOut, Optimizer, Plan, Sums, Tokens, Unit};

pub(crate) use config::Skips;
pub use config::{Accumulated, Entropy, PolicyConfig, StateBytes, StepStats};

/// Looks at the values of a microbatch and returns metrics, which add up.
pub type Observe<'a> = dyn Fn(&Tokens) -> Result<Vec<(&'static str, f64)>, Error> + 'a;

/// Turns a microbatch's hidden states and the LM matrix into their gradients.
type PullHead<'a> =
    dyn FnMut(&Policy, &Tensor, &Tensor, &Laid, &mut Sums) -> Result<Pulled, Error> + 'a;

/// A decoder with trained weights.
pub struct Policy {
    pub(crate) decoder: Decoder,
    /// What this rank has of each parameter, in the table's order.
    pub(crate) table: Vec<Held>,
    /// This rank's shards in compute kind, by segment.
    pub(crate) sharded: Sharded,
    /// The same tensors by name; what rollouts read.
    pub(crate) weights: Weights,
    /// fp32 masters under bf16 compute or in CPU memory; otherwise the compute weights are the
    /// masters.
    pub(crate) masters: Option<Weights>,
    pub(crate) skips: Skips,
    pub(crate) source: PathBuf,
    grads: Grads,
    decays: HashMap<String, bool>,
    config: PolicyConfig,
    /// The decoder as this rank runs it: with its own experts.
    held: Decoder,
    ops: Box<dyn Ops>,
    moe: Moe,
    groups: Rc<Groups>,
    /// The ranks that share a microbatch with this one.
    inside: Inside,
}

impl Policy {
    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// This rank's slices of the weights in compute kind, as of the last update: what
    /// [`Policy::table`] calls its shards; the whole weights where one rank trains alone.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// How it computes.
    pub fn config(&self) -> &PolicyConfig {
        &self.config
    }

    /// Changes what may change between calls (temperature, entropy, placement).
    pub fn config_mut(&mut self) -> &mut PolicyConfig {
        &mut self.config
    }

    /// The ranks that train together.
    pub fn collective(&self) -> &dyn Collective {
        &*self.groups.world
    }

    /// The mesh and this rank's groups on it.
    pub fn groups(&self) -> &Rc<Groups> {
        &self.groups
    }

    /// Gradients of this rank's slices from the last accumulation, summed over ranks; unclipped
    /// until [`Policy::apply`].
    pub fn grads(&self) -> &Grads {
        &self.grads
    }

    /// What this rank has of each parameter, in the table's order.
    pub fn table(&self) -> &[Held] {
        &self.table
    }

    /// fp32 (fp64) slices that updates change.
    pub fn masters(&self) -> &Weights {
        self.masters.as_ref().unwrap_or(&self.weights)
    }

    /// Bytes of this rank's state: parameters (compute weights, and masters where they are apart),
    /// gradients of the last accumulation, moments.
    pub fn state_bytes(&self, optimizer: &Optimizer) -> StateBytes {
        let masters = self.masters.iter().flat_map(Weights::iter);
        let parameters = self.weights.iter().chain(masters).map(|(_, t)| bytes(t));
        let moments = optimizer.first.values().chain(optimizer.second.values());
        StateBytes {
            parameters: parameters.sum(),
            gradients: self.grads.bytes(),
            optimizer: moments.map(bytes).sum(),
        }
    }

    /// Where these units would go.
    pub fn plan(&self, units: &[Unit]) -> Plan {
        let c = &self.config;
        Plan::new(
            units,
            self.groups.data.size(),
            c.microbatch_tokens,
            c.share_prefix,
        )
    }

    /// Log-probabilities by unit, branch and masked token, on every rank, by the plan and the
    /// forward of training, without a graph.
    pub fn logprobs(&self, units: &[Unit]) -> Result<Vec<Vec<Vec<f32>>>, Error> {
        let _no_grad = tch::no_grad_guard();
        self.check(units)?;
        let mut first = Vec::with_capacity(units.len());
        let mut total = 0;
        for unit in units {
            first.push(total);
            total += unit.masked();
        }
        // Every rank fills in its part of zeros, so the sum over ranks is exact.
        let mut flat = vec![0f32; total];
        let engine = self.engine();
        Batch::new(self, engine, units).infer(Some(&mut |hidden, matrix, laid| {
            let owned = self.owned(laid);
            let targets = owned.take(&laid.targets);
            let input = Input::new(hidden, matrix, &targets);
            let scored = self.head().score(input, false, false)?;
            let logp = owned.gather(vec![scored.logp])?;
            // of the ranks that share a microbatch one gives its values
            if !self.speaks() {
                return Ok(());
            }
            let values: Vec<f32> = to_vec(&logp[0])?;
            for span in &laid.units {
                let mut at = first[span.unit];
                for range in &span.branches {
                    flat[at..at + range.len()].copy_from_slice(&values[range.clone()]);
                    at += range.len();
                }
            }
            Ok(())
        }))?;
        if self.groups.size() > 1 && total > 0 {
            let mut all = Tensor::from_slice(&flat);
            self.groups
                .world
                .all_reduce_sum(&mut all, "log-probabilities")?;
            flat = to_vec(&all)?;
        }
        let mut values = flat.into_iter();
        let branch = |n: usize, values: &mut dyn Iterator<Item = f32>| values.take(n).collect();
        Ok(units
            .iter()
            .map(|u| {
                u.branches
                    .iter()
                    .map(|b| branch(b.masked(), &mut values))
                    .collect()
            })
            .collect())
    }

    /// Forward and backward over a batch: gradients of the sum of `loss` over microbatches and
    /// ranks. `units` are those of all ranks; the plan picks this rank's. `loss` sees each
    /// microbatch that has masked tokens.
    ///
    /// # Errors
    /// A unit that cannot be computed, a loss that fails, a rank that is gone.
    pub fn accumulate(
        &mut self,
        units: &[Unit],
        loss: &dyn Fn(&Tokens) -> Result<LossOut, Error>,
    ) -> Result<Accumulated, Error> {
        self.walk_batch(units, &mut |policy, hidden, matrix, laid, sums| {
            let entropy = policy.config.entropy;
            let owned = policy.owned(laid);
            let targets = owned.take(&laid.targets);
            let input = Input::new(hidden, matrix, &targets);
            let scored = policy.head().score(input, entropy != Entropy::Off, true)?;
            let tokens = policy.leaves(&owned.gather(scored.values())?, laid);
            let evaluating = trace::phase("loss").with("tokens", tokens.logp.numel());
            let out = tch::with_grad(|| loss(&tokens))?;
            sums.add(LOSS, out.loss.double_value(&[]));
            for (name, value) in out.metrics {
                sums.add(name, value);
            }
            let pulled: Vec<Tensor> = pull(&out.loss, &tokens)?
                .iter()
                .map(|pull| owned.take(pull))
                .collect();
            drop(evaluating);
            let pull = Pull {
                logp: &pulled[0],
                entropy: pulled.get(1),
            };
            Ok(policy.head().backward(input, scored, pull))
        })
    }

    /// As [`Policy::accumulate`] for a loss whose gradient is known beforehand: the sum over
    /// masked tokens of `coefficient(unit, branch, i) * logp`, i counting the branch's masked
    /// tokens. Values and gradients come from one pass of the head. `observe` sees the values of
    /// each microbatch and returns metrics.
    pub fn accumulate_known(
        &mut self,
        units: &[Unit],
        coefficient: &dyn Fn(usize, usize, usize) -> f64,
        observe: Option<&Observe>,
    ) -> Result<Accumulated, Error> {
        self.walk_batch(units, &mut |policy, hidden, matrix, laid, sums| {
            let owned = policy.owned(laid);
            let targets = owned.take(&laid.targets);
            let input = Input::new(hidden, matrix, &targets);
            let coefficients = policy.coefficients(laid, coefficient);
            let mine = owned.take(&coefficients);
            let entropy = observe.is_some() && policy.config.entropy != Entropy::Off;
            let pull = Pull {
                logp: &mine,
                entropy: None,
            };
            let (scored, pulled) = policy.head().fused(input, entropy, pull)?;
            let values = owned.gather(scored.values())?;
            sums.add(LOSS, values[0].dot(&coefficients).double_value(&[]));
            if let Some(observe) = observe {
                let _observing = trace::phase("loss").with("tokens", values[0].numel());
                let metrics = tch::no_grad(|| observe(&policy.leaves(&values, laid)))?;
                for (name, value) in metrics {
                    sums.add(name, value);
                }
            }
            Ok(pulled)
        })
    }

    /// Updates the weights with the gradients of the last accumulation.
    ///
    /// A NaN or infinite gradient norm leaves weights and optimizer as they are, on all ranks
    /// alike, as all hold the same sum.
    ///
    /// # Errors
    /// [`Error::Diverged`] when that happened `skip_limit` times in a row.
    pub fn apply(&mut self, optimizer: &mut Optimizer, lr: f64) -> Result<StepStats, Error> {
        let _optimizer = trace::phase("optimizer");
        let update = self.update(optimizer)?;
        let grad_norm = match &update {
            Some(update) if self.groups.world.size() == 1 => update.norm()?,
            _ => self.grads.norm()?,
        };
        let mut stats = StepStats {
            grad_norm,
            clip: 1.0,
            skipped: false,
            skipped_total: self.skips.total,
        };
        if !grad_norm.is_finite() {
            self.skips.in_a_row += 1;
            self.skips.total += 1;
            if self.skips.in_a_row >= self.config.skip_limit {
                return Err(Error::Diverged {
                    norm: grad_norm,
                    skipped: self.skips.in_a_row,
                    limit: self.config.skip_limit,
                });
            }
            stats.skipped = true;
            stats.skipped_total = self.skips.total;
            return Ok(stats);
        }
        self.skips.in_a_row = 0;
        stats.clip = optimizer.clip(grad_norm);
        match update {
            Some(update) => {
                optimizer.launch(&update, lr, stats.clip)?;
                self.touch()?;
            }
            None => {
                if stats.clip != 1.0 {
                    self.grads.scale(stats.clip);
                }
                optimizer.step(self.updated(), lr)?;
                self.publish()?;
            }
        }
        Ok(stats)
    }

    /// The update by a GPU's kernels, where the masters lie on one that has them.
    fn update(&self, optimizer: &mut Optimizer) -> Result<Option<Update>, Error> {
        match kernels::cuda::machine(self.masters().device()) {
            Some(machine) => optimizer.launched(machine, &self.updated()),
            None => Ok(None),
        }
    }

    /// What an update changes: this rank's parameters that got a gradient.
    fn updated(&self) -> Vec<Param<'_>> {
        let apart = self.masters.is_some();
        self.masters()
            .iter()
            .filter(|(_, master)| master.numel() > 0)
            .filter_map(|(name, master)| {
                let grad = self.grads.get(name)?;
                Some(Param {
                    name,
                    master: master.shallow_clone(),
                    grad: grad.to_device(master.device()),
                    weight: apart.then(|| self.weights.get(name).shallow_clone()),
                    decay: self.decays[name],
                })
            })
            .collect()
    }

    /// Brings the compute weights up to the masters, under a new version.
    pub(crate) fn publish(&mut self) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        if let Some(masters) = &self.masters {
            for (name, master) in masters.iter() {
                self.weights.get(name).shallow_clone().copy_(master);
            }
        }
        self.touch()
    }

    /// Marks the compute weights as those of a new version.
    fn touch(&mut self) -> Result<(), Error> {
        self.weights.touch();
        Ok(self.sharded.updated()?)
    }

    /// Runs this rank's microbatches; `head` turns hidden states into their gradient.
    fn walk_batch(&mut self, units: &[Unit], head: &mut PullHead) -> Result<Accumulated, Error> {
        self.check(units)?;
        self.grads.clear();
        let mut sums = Sums::default();
        sums.add(LOSS, 0.0);
        self.balance(units)?;
        // taken out while the policy is read
        let mut grads = self.grads.take();
        let done = Batch::new(self, self.engine(), units)
            .train(&mut grads, &mut |hidden, matrix, laid| {
                head(self, hidden, matrix, laid, &mut sums)
            });
        self.grads = grads;
        // other forwards balance nothing
        self.moe.set_pull(None);
        self.moe.set_every_row(false);
        done?;
        let reducing = trace::phase("reduce");
        self.grads.reduce()?;
        if !self.speaks() {
            sums = Sums::default();
        }
        sums.reduce(&*self.groups.world)?;
        drop(reducing);
        let mut balance = 0.0;
        if let Some(experts) = &self.decoder.config.experts {
            let load = self.expert_load(experts)?;
            balance = self.config.router_aux_loss_coef * balance::loss(&load, experts);
            for (name, value) in balance::metrics(&load, experts) {
                sums.add(name, value);
            }
        }
        let loss = sums.0.remove(LOSS).unwrap_or(0.0) + balance;
        let work = Flops::new(&self.decoder.config).work(units);
        Ok(Accumulated {
            loss,
            balance,
            metrics: sums,
            work,
        })
    }

    /// Where a loss balances the load of experts, counts the batch's choices, on which its
    /// gradient depends.
    fn balance(&mut self, units: &[Unit]) -> Result<(), Error> {
        let Some(experts) = self.decoder.config.experts.clone() else {
            return Ok(());
        };
        // what other calls saw
        let _ = self.moe.take_load(&experts);
        let coefficient = self.config.router_aux_loss_coef;
        self.moe.set_pull(None);
        self.moe.set_every_row(coefficient > 0.0);
        if coefficient > 0.0 {
            Batch::new(self, self.engine(), units).infer(None)?;
            let load = self.expert_load(&experts)?;
            // every tensor-parallel rank adds its part to the router's gradient, all of them equal
            let factor = coefficient / self.groups.mesh.tp as f64;
            self.moe
                .set_pull(Some(balance::pull(&load, &experts, factor)));
        }
        Ok(())
    }

    /// What routers chose since the last call, over all ranks.
    fn expert_load(&self, experts: &Experts) -> Result<Load, Error> {
        let load = self.moe.take_load(experts);
        // tensor-parallel ranks see the same rows
        let counts = self.groups.tp.rank() == 0;
        balance::reduce(load, experts, &*self.groups.world, counts)
    }

    /// Segments by piece, of all pipeline stages.
    pub(crate) fn pieces(&self) -> Vec<Range<usize>> {
        let mesh = &self.groups.mesh;
        arch::stages::stages(&self.decoder.config, mesh.pp, mesh.pp_chunks)
    }

    fn check(&self, units: &[Unit]) -> Result<(), Error> {
        lay::check(units, &self.decoder.config)
    }

    pub(crate) fn my_microbatches(&self, units: &[Unit]) -> Vec<Vec<usize>> {
        self.plan(units).ranks.swap_remove(self.groups.data.rank())
    }

    pub(crate) fn lay(&self, units: &[Unit], indices: &[usize]) -> Laid {
        let (c, experts) = (&self.config, self.decoder.config.experts.as_ref());
        lay::lay(units, indices, c.share_prefix, c.device, experts)
    }

    fn engine(&self) -> Engine<'_> {
        Engine {
            decoder: &self.held,
            parameters: &self.sharded,
            ops: &*self.ops,
            inside: &self.inside,
            checkpointing: self.config.checkpointing,
            moe: &self.moe,
        }
    }

    fn head(&self) -> Head<'_> {
        Head {
            temperature: self.config.temperature,
            chunk: self.config.head_chunk,
            vocabulary: self.decoder.config.vocab_size,
            ranks: &*self.groups.tp,
        }
    }

    /// Which tokens of a microbatch are this rank's.
    fn owned(&self, laid: &Laid) -> Owned<'_> {
        Owned::new(self.inside.own(&laid.batch), laid, &*self.groups.cp)
    }

    /// Whether this rank gives the values of a microbatch that it shares with others.
    fn speaks(&self) -> bool {
        let Groups { cp, tp, pp, .. } = &*self.groups;
        cp.rank() == 0 && tp.rank() == 0 && pp.rank() + 1 == pp.size()
    }

    /// Leaves for the loss closure, of log-probabilities and, if computed, entropies.
    fn leaves<'a>(&self, values: &[Tensor], laid: &'a Laid) -> Tokens<'a> {
        let logp = &values[0];
        let entropy = match values.get(1) {
            Some(entropy) => entropy.detach(),
            None => Tensor::zeros([0], (logp.kind(), logp.device())),
        };
        let pulls = self.config.entropy == Entropy::Differentiable && values.len() > 1;
        Tokens {
            logp: logp.detach().set_requires_grad(true),
            entropy: entropy.set_requires_grad(pulls),
            units: &laid.units,
        }
    }

    fn coefficients(
        &self,
        laid: &Laid,
        coefficient: &dyn Fn(usize, usize, usize) -> f64,
    ) -> Tensor {
        let mut values = Vec::with_capacity(laid.targets.size()[0] as usize);
        for span in &laid.units {
            for (branch, range) in span.branches.iter().enumerate() {
                values.extend((0..range.len()).map(|i| coefficient(span.unit, branch, i)));
            }
        }
        let kind = accumulation(self.config.kind);
        Tensor::from_slice(&values)
            .to_kind(kind)
            .to_device(self.config.device)
    }
}

/// Name under which the loss travels among the metrics.
const LOSS: &str = "\0loss";

/// Gradients of the loss with respect to the leaves that require one.
fn pull(loss: &Tensor, tokens: &Tokens) -> Result<Vec<Tensor>, Error> {
    let mut leaves = vec![&tokens.logp];
    if tokens.entropy.requires_grad() {
        leaves.push(&tokens.entropy);
    }
    if !loss.requires_grad() {
        return Ok(leaves.iter().map(|l| l.zeros_like()).collect());
    }
    let pulled = torch::autograd::vjp(&[loss], &[&loss.ones_like()], &leaves, false)?;
    Ok(pulled
        .into_iter()
        .zip(leaves)
        .map(|(grad, leaf)| grad.unwrap_or_else(|| leaf.zeros_like()))
        .collect())
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

fn to_vec(values: &Tensor) -> Result<Vec<f32>, Error> {
    let flat = values
        .to_kind(Kind::Float)
        .to_device(Device::Cpu)
        .contiguous();
    let mut out = vec![0f32; flat.numel()];
    flat.f_copy_data(&mut out, flat.numel())
        .map_err(torch::Error::from)?;
    Ok(out)
}
