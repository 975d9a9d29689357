//! What a rank does: meets the others of its mesh, then trains case after case.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use arch::Mesh;
use parallel::Groups;
use serde::{Deserialize, Serialize};
use tch::Kind;
use train::{Checkpointing, Optimizer, OptimizerConfig, Policy, PolicyConfig, Replay, Unit};

use crate::cases::{self, Algorithm};

/// How long a rank waits for the others: longer than any case takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// One case: a model, an algorithm and a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Case {
    pub model: Model,
    pub algorithm: Algorithm,
    /// fp64 rather than fp32.
    pub double: bool,
    /// Units in the batch.
    pub batch: usize,
    /// Steps of SGD.
    pub steps: u64,
}

/// The models, by what is special about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Model {
    /// Tied embeddings, 4 query heads on 2 key and value heads, norms on both; 61 words.
    Tied,
    /// 3 heads, an LM matrix of its own.
    Odd,
    /// Biases.
    Biased,
    /// [`Model::Tied`] with 4 layers.
    Deep,
    /// Three of five experts beside a layer with an MLP; tied. SFT in fp32 balances their load, GRPO
    /// replays their routing.
    Experts,
}

/// How a mesh computes; all of it placement.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Placement {
    pub microbatch_tokens: usize,
    pub head_chunk: Option<usize>,
    pub selective: bool,
}

/// A rank's part of a mesh's cases.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub rank: usize,
    pub axes: Axes,
    pub placement: Placement,
    /// `cpu`, or `cuda` for one GPU that all ranks share.
    pub device: String,
    /// Where rank 0 listens.
    pub port: u16,
    /// Model directories, by model.
    pub models: BTreeMap<Model, PathBuf>,
    pub cases: Vec<Case>,
}

/// A [`Mesh`] as data.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Axes {
    pub dp_replicate: usize,
    pub dp_shard: usize,
    pub ep: usize,
    pub cp: usize,
    pub tp: usize,
    pub pp: usize,
    pub pp_chunks: usize,
    pub sp: bool,
}

/// A part of a gradient.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    /// First index and size by dimension.
    pub start: Vec<usize>,
    pub size: Vec<usize>,
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// What a rank saw of a case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    pub grad_norm: f64,
    /// What this rank owns of the first step's gradient.
    pub grads: Vec<Part>,
    pub metrics: BTreeMap<String, f64>,
    pub losses: Vec<f64>,
    pub logprobs: Vec<Vec<Vec<f32>>>,
    /// Rows and kept rows of this rank's microbatches of the first step.
    pub batches: Vec<(usize, usize)>,
    /// Calls and bytes of the first step, by group and collective.
    pub traffic: BTreeMap<String, (u64, u64)>,
}

impl Case {
    /// Whether the loss evens out the load of experts.
    pub fn balances(&self) -> bool {
        self.model == Model::Experts && self.algorithm == Algorithm::Sft && !self.double
    }
}

impl Model {
    pub const ALL: [Model; 5] = [
        Model::Tied,
        Model::Odd,
        Model::Biased,
        Model::Deep,
        Model::Experts,
    ];

    pub fn config(self) -> arch::ModelConfig {
        match self {
            Model::Tied => cases::tied(),
            Model::Odd => cases::untied(),
            Model::Biased => cases::biased(),
            Model::Deep => cases::tied_of(4),
            Model::Experts => experts(),
        }
    }
}

impl Axes {
    pub fn mesh(self) -> Mesh {
        Mesh {
            dp_replicate: self.dp_replicate,
            dp_shard: self.dp_shard,
            ep: self.ep,
            cp: self.cp,
            tp: self.tp,
            pp: self.pp,
            pp_chunks: self.pp_chunks,
            sp: self.sp,
        }
    }
}

fn experts() -> arch::ModelConfig {
    arch::ModelConfig::from_json(
        r#"{"model_type": "qwen3_moe", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
        "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
        "mlp_only_layers": [1], "norm_topk_prob": false, "max_position_embeddings": 256,
        "rope_theta": 10000.0, "initializer_range": 0.15, "tie_word_embeddings": true}"#,
    )
    .expect("a good configuration")
}

/// The batch of a case, with the routing to replay where the case has one.
fn units(case: &Case, seed: u64) -> Vec<Unit> {
    let mut units = cases::units(case.algorithm, case.batch, seed);
    if case.model == Model::Experts && case.algorithm == Algorithm::Grpo {
        let experts = experts().experts.expect("a model with experts");
        for unit in &mut units {
            let route = |tokens: &[u32]| {
                let ids = tokens.iter().flat_map(|&token| {
                    (0..experts.choices())
                        .map(move |i| (token as usize + i / experts.per_token + i) as u16)
                });
                ids.map(|id| id % experts.count as u16).collect()
            };
            unit.replay = Some(Replay {
                prefix: route(&unit.prefix),
                branches: unit.branches.iter().map(|b| route(&b.tokens)).collect(),
            });
        }
    }
    units
}

/// Runs the cases in order.
pub fn run(job: Job) -> Vec<Seen> {
    torch::threads::set(1);
    let mesh = job.axes.mesh();
    // all ranks share the first GPU, if that is where they compute
    let device = train::device(&job.device, 0).expect("a device");
    let groups = Groups::join(mesh, job.rank, "127.0.0.1", job.port, DEADLINE, device);
    let groups = groups.expect("joined");
    let seen = job.cases.iter().map(|case| {
        let dir = &job.models[&case.model];
        let config = PolicyConfig {
            device,
            kind: if case.double {
                Kind::Double
            } else {
                Kind::Float
            },
            microbatch_tokens: job.placement.microbatch_tokens,
            head_chunk: job.placement.head_chunk,
            checkpointing: match job.placement.selective {
                true => Checkpointing::Selective,
                false => Checkpointing::None,
            },
            router_aux_loss_coef: if case.balances() { 0.1 } else { 0.0 },
            ..PolicyConfig::default()
        };
        let policy = Policy::load(dir, config, groups.clone()).expect("a policy");
        train(policy, case)
    });
    let seen = seen.collect();
    groups.world.barrier("end").expect("all there");
    seen
}

/// What this rank owns of the gradients.
fn parts(policy: &Policy) -> Vec<Part> {
    let owned = policy
        .table()
        .iter()
        .filter(|h| h.owner && !h.shard.is_empty());
    let part = |h: &arch::Held| {
        let name = &h.def.name;
        let grad = policy
            .grads()
            .get(name)
            .expect("every parameter has a gradient");
        let flat = grad.to_kind(Kind::Double).contiguous().view([-1]);
        Part {
            name: name.clone(),
            start: h.shard.start.clone(),
            size: h.shard.size.clone(),
            shape: h.def.shape.clone(),
            values: Vec::try_from(flat).expect("numbers"),
        }
    };
    owned.map(part).collect()
}

/// Rows computed and rows kept by microbatch, for units of one branch.
fn batches(policy: &Policy, units: &[Unit]) -> Vec<(usize, usize)> {
    let plan = policy.plan(units);
    let mine = &plan.ranks[policy.groups().data.rank()];
    let rows = |unit: &Unit| {
        let mask = &unit.branches[0].mask;
        let last = mask.iter().rposition(|&m| m).unwrap_or(0);
        (unit.prefix.len() + last, unit.masked())
    };
    let sizes = mine.iter().map(|indices| {
        let each = indices.iter().map(|&i| rows(&units[i]));
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    sizes.collect()
}

/// One unclipped gradient, then a loss curve.
fn train(mut policy: Policy, case: &Case) -> Seen {
    let sgd = OptimizerConfig::Sgd {
        momentum: 0.0,
        weight_decay: 0.0,
    };
    let mut optimizer = Optimizer::new(sgd, None);
    let mut first = None;
    let mut losses = Vec::new();
    for step in 0..case.steps {
        let units = units(case, 50 + step % 4);
        let loss = cases::loss(case.algorithm, &units);
        policy.groups().counts().reset();
        let got = policy.accumulate(&units, &loss).expect("a step");
        let traffic = policy.groups().counts().all();
        let grads = first.is_none().then(|| parts(&policy));
        let stats = policy.apply(&mut optimizer, 0.05).expect("finite");
        losses.push(got.loss);
        if let Some(grads) = grads {
            let batches = batches(&policy, &units);
            first = Some((stats.grad_norm, grads, got.metrics.0, (traffic, batches)));
        }
    }
    let (grad_norm, grads, metrics, (traffic, batches)) = first.expect("a step");
    let units = units(case, 77);
    Seen {
        grad_norm,
        grads,
        metrics,
        batches,
        traffic: traffic
            .into_iter()
            .map(|((group, collective), n)| (format!("{group} {collective}"), (n.calls, n.bytes)))
            .collect(),
        losses,
        logprobs: policy.logprobs(&units).expect("log-probabilities"),
    }
}
