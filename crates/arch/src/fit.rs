//! Which meshes a model fits on, and which of them is best.
//!
//! **The rule.** Of all meshes whose ranks each stay within their memory, that with the shortest
//! estimated step wins. Estimates within 3% of the shortest count as equal; among these the mesh
//! with the fewest axes wins, then the one that keeps more activations, then the one that needs
//! least memory. The estimate orders meshes; it promises no speed.
//!
//! The step of a data rank is `m` microbatches of `N` rows each, and
//!
//! ```text
//! step     = m (pp + m - 1) / m (max(compute, fsdp) + tp + cp + ep) + replicate
//! compute  = N flops_per_token (3 + again) / (tp cp pp) / (PEAK EFFICIENCY)
//! fsdp     = (2 b + 4) P (s - 1) / s / bandwidth       two gathers and a reduce-scatter
//! tp       = 4 (2 - keep all) .. passes over N h b (tp - 1) / tp x 2 a layer / bandwidth
//! cp       = 3 x keys and values of N (cp - 1) rows a layer / bandwidth
//! ep       = 4 x N k h b (ep - 1) / ep a layer with experts / bandwidth
//! replicate = 2 x 4 P' (r - 1) / r / bandwidth          an all-reduce of gradients a step
//! ```
//!
//! where `P` are the elements that a rank gathers and `P'` those it stores, `s` and `r` the ranks of
//! the groups, and `again` is the share of the forward that is computed a second time: 1 with full
//! activation checkpointing, the MLPs' share with selective. A group talks over the links inside a
//! machine while the ranks that it spans fit one, else over the network. Volumes are those of ring
//! collectives (Thakur et al. 2005, doi 10.1177/1094342005051521).

use crate::ModelConfig;
use crate::memory::{Keep, Load, Memory, Rollout, Table};
use crate::mesh::{Axis, Mesh};
use std::collections::HashMap;

/// bf16 matrix arithmetic of an H100 or H200 SXM, floating-point operations a second.
const PEAK: f64 = 989e12;
/// Share of it that large matrix products reach in training.
const EFFICIENCY: f64 = 0.45;
/// Bytes a second between GPUs of one machine (NVLink 4, one way, as collectives reach it).
const LINK: f64 = 350e9;
/// Bytes a second between machines for each GPU (400 Gb/s, as collectives reach it).
const NETWORK: f64 = 40e9;
/// Estimates so close count as equal.
const EQUAL: f64 = 1.03;

/// What there is to run on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// GPUs in all.
    pub gpus: usize,
    /// Bytes that a rank may use of each: what is left by the driver, libraries and collectives.
    pub bytes: u64,
    /// GPUs that share a machine.
    pub node: usize,
}

/// What a step is, apart from how it is placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    /// Bytes of a compute element.
    pub element: usize,
    /// Rows of a microbatch.
    pub rows: usize,
    /// Tokens of a step over all ranks.
    pub step_tokens: usize,
    /// Tokens of a sequence, by which attention's cost is counted.
    pub sequence: usize,
    /// Rows of logits at a time.
    pub head_chunk: usize,
    /// Tensors that the optimizer keeps for each parameter.
    pub moments: usize,
    /// Masters and moments lie in CPU memory.
    pub offload: bool,
    /// Operators are fused.
    pub fused: bool,
    /// Bytes of keys and values, and sequences sampled for at once, of each rank's rollout.
    pub rollout: Option<(u64, usize)>,
}

/// A placement.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// How the ranks are arranged.
    pub mesh: Mesh,
    /// What forward keeps.
    pub keep: Keep,
    /// Ranks that share a copy of the weights in rollouts; 0 without rollouts.
    pub rollout_tp: usize,
    /// The most that a rank needs.
    pub memory: Memory,
    /// Estimated seconds of a step.
    pub seconds: f64,
}

/// The best placement, or how far off all of them are.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// By the rule, with how many placements fit.
    Best(Box<Fit>, usize),
    /// None fits: the one that needs least memory.
    None(Box<Fit>),
}

impl Job {
    /// What a rank computes on a mesh, where `rollout` is `tp` and `ep` of its rollouts.
    pub fn load(&self, mesh: &Mesh, keep: Keep, rollout: (usize, usize)) -> Load {
        let data = mesh.data_size();
        Load {
            element: self.element,
            rows: self.rows,
            microbatches: self.step_tokens.div_ceil(self.rows * data).max(1),
            keep,
            head_chunk: self.head_chunk,
            moments: self.moments,
            reshard: true,
            offload: self.offload,
            fused: self.fused,
            rollout: self.rollout.map(|(cache, sequences)| Rollout {
                tp: rollout.0,
                ep: rollout.1,
                cache,
                sequences,
            }),
        }
    }
}

/// The best placement of a job on a machine.
pub fn choose(table: &Table, machine: &Machine, job: &Job) -> Choice {
    let mut fits: Vec<Fit> = Vec::new();
    let mut least: Option<Fit> = None;
    let flops = table.config.flops_per_token(job.sequence);
    let rollouts: &[usize] = if job.rollout.is_some() {
        &[1, 2, 4, 8]
    } else {
        &[0]
    };
    for mesh in meshes(table.config, machine) {
        for keep in [Keep::All, Keep::Selective, Keep::Boundaries] {
            // the fewest ranks to a rollout's copy that do
            let ranks = rollouts
                .iter()
                .copied()
                .filter(|r| *r <= 1 || machine.gpus.is_multiple_of(*r));
            for rollout_tp in ranks {
                let load = job.load(&mesh, keep, (rollout_tp, 1));
                let memory = table.worst(&mesh, &load);
                let fit = Fit {
                    mesh,
                    keep,
                    rollout_tp,
                    memory,
                    seconds: seconds(table, &mesh, machine, flops, &load),
                };
                let peak = memory.peak();
                if least.as_ref().is_none_or(|l| l.memory.peak() > peak) {
                    least = Some(fit.clone());
                }
                if peak <= machine.bytes {
                    fits.push(fit);
                    break;
                }
            }
        }
    }
    let shortest = fits.iter().map(|f| f.seconds).fold(f64::INFINITY, f64::min);
    let count = fits.len();
    let axes = |m: &Mesh| {
        crate::mesh::AXES
            .iter()
            .filter(|a| m.along(**a) > 1)
            .count()
    };
    let best = fits
        .into_iter()
        .filter(|f| f.seconds <= shortest * EQUAL)
        .min_by_key(|f| (axes(&f.mesh), f.keep as u8, f.memory.peak()));
    match (best, least) {
        (Some(best), _) => Choice::Best(Box::new(best), count),
        (None, Some(least)) => Choice::None(Box::new(least)),
        // one rank is always a mesh
        (None, None) => unreachable!("a machine has at least one GPU"),
    }
}

/// All meshes of a machine's GPUs that can carry the model. Tensor parallelism stays inside a
/// machine.
fn meshes(config: &ModelConfig, machine: &Machine) -> Vec<Mesh> {
    let mut out = Vec::new();
    let mut carried = HashMap::new();
    let of = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let gpus = machine.gpus;
    for tp in of(gpus).filter(|tp| *tp <= machine.node) {
        for cp in of(gpus / tp) {
            for ep in of(gpus / tp / cp) {
                for pp in of(gpus / tp / cp / ep) {
                    let data = gpus / tp / cp / ep / pp;
                    for dp_shard in of(data) {
                        let mesh = Mesh {
                            dp_replicate: data / dp_shard,
                            dp_shard,
                            ep,
                            cp,
                            tp,
                            pp,
                            ..Mesh::solo()
                        };
                        // only these axes can be refused
                        let carries = carried
                            .entry((tp, ep, pp))
                            .or_insert_with(|| mesh.check(config).is_ok());
                        if *carries {
                            out.push(mesh);
                        }
                    }
                }
            }
        }
    }
    out
}

/// Bytes a second within a group along `axes`, by the ranks that it spans.
fn bandwidth(mesh: &Mesh, machine: &Machine, axes: &[Axis]) -> f64 {
    let group = mesh.group(0, axes);
    let span = group.last().map_or(1, |last| last + 1);
    if span <= machine.node { LINK } else { NETWORK }
}

/// Estimated seconds of a step, by the formulas above.
/// `flops` are those of the forward for a token.
fn seconds(table: &Table, mesh: &Mesh, machine: &Machine, flops: f64, load: &Load) -> f64 {
    let config = table.config;
    let (b, n) = (load.element as f64, (load.rows.div_ceil(mesh.cp)) as f64);
    let m = load.microbatches as f64;
    let layers = config.layers as f64 / mesh.pp as f64;
    let again = match load.keep {
        Keep::All => 0.0,
        Keep::Selective => {
            let [attention, mlp] = table.layer_elements();
            mlp / (attention + mlp)
        }
        Keep::Boundaries => 1.0,
    };
    let forward = load.rows as f64 * flops;
    let split = (mesh.tp * mesh.cp * mesh.pp) as f64;
    let compute = forward * (3.0 + again) / split / (PEAK * EFFICIENCY);

    let over = |parts: usize, axes: &[Axis]| {
        (parts - 1) as f64 / parts as f64 / bandwidth(mesh, machine, axes)
    };
    let shards = crate::mesh::DENSE_SHARD;
    let parts = mesh.place(0, shards).1;
    let fsdp = (2.0 * b + 4.0) * table.gathered_elements(mesh) as f64 * over(parts, shards);
    let passes = if load.keep == Keep::All { 4.0 } else { 6.0 };
    let rows = n * config.hidden_size as f64 * b;
    let tp = layers * passes * 2.0 * rows * over(mesh.tp, &[Axis::Tp]);
    let kv = 2.0 * (config.kv_heads * config.head_dim) as f64 * b;
    let cp = layers * 3.0 * kv * n * mesh.cp as f64 * over(mesh.cp, &[Axis::Cp]);
    let ep = match &config.experts {
        Some(e) => layers * 4.0 * rows * e.per_token as f64 * over(mesh.ep, &[Axis::Ep]),
        None => 0.0,
    };
    let stored = table.memory(mesh, 0, load).gradients as f64;
    let replicate = 2.0 * stored * over(mesh.dp_replicate, &[Axis::Replicate]);
    (mesh.pp as f64 + m - 1.0) * (compute.max(fsdp) + tp + cp + ep) + replicate
}
