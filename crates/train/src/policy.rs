//! The policy: a decoder with weights that are trained, sharded over no one yet: every rank holds
//! all of it and computes its share of each batch.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use arch::experts::Experts;
use arch::{ModelConfig, Role};
use model::{Decoder, Ops, Weights};
use parallel::{
    Checkpointing, Collective, Engine, Gradients, Grads, Groups, Inside, Load, Moe, Walk, Whole,
};
use tch::{Device, Kind, Tensor};

use crate::balance;
use crate::head::{Head, Input, Pull, Pulled, accumulation};
use crate::lay::{self, Laid, Owned};
use crate::metrics::{Flops, Work};
use crate::optimizer::Param;
use crate::{Error, LossOut, Optimizer, Plan, Sums, Tokens, Unit};

/// Whether the entropy of each predicting distribution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Entropy {
    /// No: [`Tokens::entropy`] is empty.
    Off,
    /// Yes, as a constant of the loss.
    #[default]
    Detached,
    /// Yes, and the loss may pull on it.
    Differentiable,
}

/// How a policy computes. Nothing here but `kind`, `temperature` and `router_aux_loss_coef` changes
/// the mathematics.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// Compute kind: fp32, bf16 (with fp32 masters) or fp64.
    pub kind: Kind,
    /// Where.
    pub device: Device,
    /// What forward keeps for backward.
    pub checkpointing: Checkpointing,
    /// Rows per microbatch.
    pub microbatch_tokens: usize,
    /// Rows per chunk of the head; `None` chooses by memory.
    pub head_chunk: Option<usize>,
    /// Log-probabilities are of softmax(logits / temperature).
    pub temperature: f64,
    /// Weight of the loss that balances the load of experts; 0 is off.
    pub router_aux_loss_coef: f64,
    /// Compute a unit's prefix once for all its branches.
    pub share_prefix: bool,
    /// What [`Tokens::entropy`] holds.
    pub entropy: Entropy,
    /// Steps with a NaN or infinite gradient, in a row, after which training stops.
    pub skip_limit: u64,
    /// Whether weight decay applies to embeddings and the LM matrix too.
    pub decay_embeddings: bool,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        PolicyConfig {
            kind: Kind::Float,
            device: Device::Cpu,
            checkpointing: Checkpointing::None,
            microbatch_tokens: 8192,
            head_chunk: None,
            temperature: 1.0,
            router_aux_loss_coef: 0.0,
            share_prefix: true,
            entropy: Entropy::Detached,
            skip_limit: 10,
            decay_embeddings: true,
        }
    }
}

/// What one accumulation over a batch gave, equal on all ranks.
#[derive(Debug, Clone, Default)]
pub struct Accumulated {
    /// The batch's loss, [`Accumulated::balance`] included.
    pub loss: f64,
    /// The weighted part of it that balances the load of experts.
    pub balance: f64,
    /// Sums of the closure's metrics.
    pub metrics: Sums,
    /// Tokens and FLOPs.
    pub work: Work,
}

/// What one update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Factor that clipping applied.
    pub clip: f64,
    /// The gradient was NaN or infinite: weights and optimizer are as before.
    pub skipped: bool,
    /// Steps skipped so far.
    pub skipped_total: u64,
}

/// Counts of steps skipped for a bad gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Skips {
    pub in_a_row: u64,
    pub total: u64,
}

/// Looks at the values of a microbatch and returns metrics, which add up.
pub type Observe<'a> = dyn Fn(&Tokens) -> Result<Vec<(&'static str, f64)>, Error> + 'a;

/// Turns a microbatch's hidden states into the gradients of the head's inputs.
type PullHead<'a> = dyn FnMut(&Policy, &Walk, &Laid, &mut Sums) -> Result<Pulled, Error> + 'a;

/// A decoder with trained weights.
pub struct Policy {
    pub(crate) decoder: Decoder,
    /// Compute weights; what rollouts read.
    pub(crate) weights: Weights,
    /// fp32 masters under bf16 compute; otherwise the compute weights are the masters.
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
    /// Reads a Hugging Face directory. Every rank reads it whole.
    pub fn load(dir: &Path, config: PolicyConfig, groups: Rc<Groups>) -> Result<Policy, Error> {
        let model = ModelConfig::from_dir(dir).map_err(model::Error::from)?;
        let weights = Weights::load(dir, &model, accumulation(config.kind), config.device)?;
        Policy::new(model, weights, dir.to_owned(), config, groups)
    }

    /// A policy over these master weights (fp32; fp64 for fp64 compute), on the configuration's
    /// device. `source` is the directory whose other files [`Policy::export`] carries along.
    pub fn new(
        model: ModelConfig,
        masters: Weights,
        source: PathBuf,
        config: PolicyConfig,
        groups: Rc<Groups>,
    ) -> Result<Policy, Error> {
        if !matches!(config.kind, Kind::Float | Kind::BFloat16 | Kind::Double) {
            return Err(Error::Config(format!(
                "compute kind {:?} cannot train: use fp32 or bf16",
                config.kind
            )));
        }
        if !(config.temperature > 0.0 && config.temperature.is_finite()) {
            return Err(Error::Config(format!(
                "temperature {} scales no log-probabilities: use one above 0",
                config.temperature
            )));
        }
        if config.router_aux_loss_coef != 0.0 && model.experts.is_none() {
            return Err(Error::Config(format!(
                "router_aux_loss_coef is {}, but this {} has no experts: leave it out",
                config.router_aux_loss_coef, model.family.model_type
            )));
        }
        let kind = accumulation(config.kind);
        if masters.kind() != kind {
            return Err(Error::Config(format!(
                "master weights are {:?}: load them as {kind:?}",
                masters.kind()
            )));
        }
        let inside = Inside::new(
            groups.cp.clone(),
            groups.tp.clone(),
            groups.mesh.sp,
            model.vocab_size,
        );
        let params = model.params();
        let shape = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect();
        let grads = Grads::new(
            params.iter().map(|p| (p.name.clone(), shape(&p.shape))),
            kind,
            config.device,
        );
        let decays = params
            .into_iter()
            .map(|p| {
                let embedding = matches!(p.role, Role::Embed | Role::Head);
                (p.name, p.decay && (config.decay_embeddings || !embedding))
            })
            .collect();
        let (weights, masters) = if config.kind == kind {
            (masters, None)
        } else {
            (masters.copy_as(config.kind)?, Some(masters))
        };
        let decoder = Decoder::new(model);
        let mine = arch::slice::experts(&decoder.config, groups.ep.size(), groups.ep.rank());
        let defs = decoder.config.params().into_iter();
        let apart: HashSet<String> = defs
            .filter(|p| p.expert.is_some_and(|e| !mine.contains(&e)))
            .map(|p| p.name)
            .collect();
        Ok(Policy {
            held: decoder.holding(|name| !apart.contains(name)),
            decoder,
            weights,
            masters,
            skips: Skips::default(),
            source,
            grads,
            decays,
            ops: Box::new(kernels::Fused),
            moe: Moe::across(groups.ep.clone()),
            config,
            groups,
            inside,
        })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The compute weights, as of the last update.
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

    /// Gradients of the last accumulation, summed over ranks; unclipped until
    /// [`Policy::apply`].
    pub fn grads(&self) -> &Grads {
        &self.grads
    }

    /// fp32 (fp64) weights that updates change.
    pub fn masters(&self) -> &Weights {
        self.masters.as_ref().unwrap_or(&self.weights)
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
        let whole = Whole(&self.weights);
        let engine = self.engine(&whole);
        for indices in self.my_microbatches(units) {
            let laid = self.lay(units, &indices);
            let hidden = engine.infer(&laid.batch)?;
            if laid.rows == 0 {
                continue;
            }
            let owned = self.owned(&laid);
            let targets = owned.take(&laid.targets);
            let scored = self
                .head()
                .score(self.head_input(&hidden, &targets), false, false)?;
            let logp = owned.gather(vec![scored.logp])?;
            // of the ranks that share a microbatch one gives its values
            if !self.speaks() {
                continue;
            }
            let values: Vec<f32> = to_vec(&logp[0])?;
            for span in &laid.units {
                let mut at = first[span.unit];
                for range in &span.branches {
                    flat[at..at + range.len()].copy_from_slice(&values[range.clone()]);
                    at += range.len();
                }
            }
        }
        if self.groups.data.size() > 1 && total > 0 {
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
        self.walk_batch(units, &mut |policy, walk, laid, sums| {
            let entropy = policy.config.entropy;
            let owned = policy.owned(laid);
            let targets = owned.take(&laid.targets);
            let input = policy.head_input(walk.output(), &targets);
            let scored = policy.head().score(input, entropy != Entropy::Off, true)?;
            let tokens = policy.leaves(&owned.gather(scored.values())?, laid);
            let out = tch::with_grad(|| loss(&tokens))?;
            sums.add(LOSS, out.loss.double_value(&[]));
            for (name, value) in out.metrics {
                sums.add(name, value);
            }
            let pulled: Vec<Tensor> = pull(&out.loss, &tokens)?
                .iter()
                .map(|pull| owned.take(pull))
                .collect();
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
        self.walk_batch(units, &mut |policy, walk, laid, sums| {
            let owned = policy.owned(laid);
            let targets = owned.take(&laid.targets);
            let input = policy.head_input(walk.output(), &targets);
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
        let grad_norm = self.grads.norm();
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
        stats.clip = optimizer.clip(&mut self.grads, grad_norm);
        let masters = self.masters.as_ref().unwrap_or(&self.weights);
        let params = masters
            .iter()
            .filter_map(|(name, master)| {
                let grad = self.grads.get(name)?;
                Some(Param {
                    name,
                    master: master.shallow_clone(),
                    grad,
                    decay: self.decays[name],
                })
            })
            .collect();
        optimizer.step(params, lr)?;
        self.publish();
        Ok(stats)
    }

    /// Brings the compute weights up to the masters, under a new version.
    pub(crate) fn publish(&mut self) {
        let _no_grad = tch::no_grad_guard();
        if let Some(masters) = &self.masters {
            for (name, master) in masters.iter() {
                self.weights.get(name).shallow_clone().copy_(master);
            }
        }
        self.weights.touch();
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
        let done = self.microbatches(units, &mut grads, &mut sums, head);
        self.grads = grads;
        // other forwards balance nothing
        self.moe.set_pull(None);
        self.moe.set_every_row(false);
        done?;
        self.grads.reduce(&*self.groups.world)?;
        if !self.speaks() {
            sums = Sums::default();
        }
        sums.reduce(&*self.groups.world)?;
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
            let whole = Whole(&self.weights);
            let engine = self.engine(&whole);
            for indices in self.my_microbatches(units) {
                let _ = engine.infer(&self.lay(units, &indices).batch)?;
            }
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

    fn microbatches(
        &self,
        units: &[Unit],
        grads: &mut Grads,
        sums: &mut Sums,
        head: &mut PullHead,
    ) -> Result<(), Error> {
        let whole = Whole(&self.weights);
        let engine = self.engine(&whole);
        for indices in self.my_microbatches(units) {
            let laid = self.lay(units, &indices);
            let walk = engine.forward(&laid.batch)?;
            let d_hidden = if laid.rows == 0 {
                walk.output().zeros_like()
            } else {
                let pulled = head(self, &walk, &laid, sums)?;
                grads.add(self.decoder.lm_head_name(), pulled.weight)?;
                pulled.hidden
            };
            walk.backward(d_hidden, grads)?;
        }
        Ok(())
    }

    fn check(&self, units: &[Unit]) -> Result<(), Error> {
        lay::check(units, &self.decoder.config)
    }

    fn my_microbatches(&self, units: &[Unit]) -> Vec<Vec<usize>> {
        self.plan(units).ranks.swap_remove(self.groups.data.rank())
    }

    fn lay(&self, units: &[Unit], indices: &[usize]) -> Laid {
        let (c, experts) = (&self.config, self.decoder.config.experts.as_ref());
        lay::lay(units, indices, c.share_prefix, c.device, experts)
    }

    fn engine<'a>(&'a self, parameters: &'a Whole<'a>) -> Engine<'a> {
        Engine {
            decoder: &self.held,
            parameters,
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

    fn head_input<'a>(&'a self, hidden: &'a Tensor, targets: &'a Tensor) -> Input<'a> {
        let weight = self.weights.get(self.decoder.lm_head_name());
        Input {
            hidden,
            weight,
            targets,
        }
    }

    /// Which tokens of a microbatch are this rank's.
    fn owned(&self, laid: &Laid) -> Owned<'_> {
        Owned::new(self.inside.own(&laid.batch), laid, &*self.groups.cp)
    }

    /// Whether this rank gives the values of a microbatch that it shares with others.
    fn speaks(&self) -> bool {
        self.groups.cp.rank() == 0 && self.groups.tp.rank() == 0
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
