//! What training stages need, before they start: bytes of a rank and FLOPs of a step, from the
//! recipe and the model's config.json alone.

use arch::fit::{self, Choice, Job, Machine};
use arch::memory::{Keep, Memory, Table};
use arch::{Mesh, ModelConfig, Sizes};
use spec::kinds::init::{Init, Tokenizer};
use spec::kinds::{self, Dtype, Optimizer};
use spec::placement::{ActivationCheckpointing, Resources};
use spec::{Plan, Recipe, Reference, SourceSpec, Stage};
use std::fmt;
use std::path::Path;

/// Prompts of an environment are counted as this many tokens.
const PROMPT: usize = 512;
/// A rollout's keys and values, and the sequences it samples for at once, where nothing else is
/// said.
const ROLLOUT: (u64, usize) = (512 << 20, 256);

/// A training stage.
pub struct Priced {
    pub stage: String,
    pub config: ModelConfig,
    pub job: Job,
    /// As the recipe places it.
    pub mesh: Mesh,
    pub keep: Keep,
    pub rollout_tp: usize,
}

/// The training stages of a plan; one whose model is not known yet says why.
pub fn training(plan: &Plan) -> Vec<(String, Result<Priced, String>)> {
    let stages = plan.order.iter().map(|planned| &planned.stage);
    stages
        .filter_map(|stage| Some((stage, job(stage)?)))
        .map(|(stage, job)| {
            let priced = model_of(&plan.recipe, stage).map(|config| Priced {
                stage: stage.name.clone(),
                config,
                job,
                mesh: mesh(&stage.placement.resources),
                keep: keep(stage.placement.resources.activation_checkpointing),
                rollout_tp: usize::from(job.rollout.is_some()),
            });
            (stage.name.clone(), priced)
        })
        .collect()
}

impl Priced {
    /// Bytes of the rank that needs most.
    pub fn memory(&self) -> Memory {
        let load = self.job.load(&self.mesh, self.keep, self.rollout_tp);
        Table::new(&self.config).worst(&self.mesh, &load)
    }

    /// Floating-point operations of a full step over all ranks.
    pub fn step_flops(&self) -> f64 {
        let per_token = self.config.train_flops_per_token(self.job.sequence);
        per_token * self.job.step_tokens as f64
    }

    /// The least that makes the stage fit, as a recipe says it.
    pub fn smallest_change(&self, bytes: u64) -> String {
        let table = Table::new(&self.config);
        let fits = |mesh: &Mesh, keep: Keep, job: &Job| {
            let load = job.load(mesh, keep, self.rollout_tp);
            table.worst(mesh, &load).peak() <= bytes
        };
        let ranks = self.mesh.size();
        let sharded = Mesh {
            dp_shard: self.mesh.dp_shard * self.mesh.dp_replicate,
            dp_replicate: 1,
            ..self.mesh
        };
        let half = Job {
            rows: (self.job.rows / 2).max(self.job.sequence.min(self.job.rows)),
            ..self.job
        };
        let offload = Job {
            offload: true,
            ..self.job
        };
        let changes: [(&str, Mesh, Keep, Job); 6] = [
            (
                "activation_checkpointing = \"selective\"",
                self.mesh,
                Keep::Selective,
                self.job,
            ),
            (
                "activation_checkpointing = \"full\"",
                self.mesh,
                Keep::Boundaries,
                self.job,
            ),
            ("MICROBATCH", self.mesh, self.keep, half),
            ("MESH", sharded, self.keep, self.job),
            (
                "MESH, activation_checkpointing = \"full\"",
                sharded,
                Keep::Boundaries,
                self.job,
            ),
            ("offload = true", self.mesh, self.keep, offload),
        ];
        for (text, mesh, keep, job) in changes {
            if fits(&mesh, keep, &job) {
                return text
                    .replace("MICROBATCH", &format!("microbatch_tokens = {}", half.rows))
                    .replace(
                        "MESH",
                        &format!("mesh = {{ dp_shard = {} }}", sharded.dp_shard),
                    );
            }
        }
        let mut gpus = ranks;
        while gpus <= 4096 {
            if let Choice::Best(fit, _) = fit::choose(&table, &machine(gpus, bytes), &self.job) {
                return format!("ranks = {gpus}, {}", placement(&fit.mesh, fit.keep));
            }
            gpus *= 2;
        }
        "use GPUs with more memory".to_owned()
    }
}

/// GPUs with what is left of their memory.
pub fn machine(gpus: usize, bytes: u64) -> Machine {
    Machine {
        gpus,
        bytes,
        node: 8,
    }
}

/// A placement as a recipe's `resources` say it.
pub fn placement(mesh: &Mesh, keep: Keep) -> String {
    let axes = [
        ("dp_replicate", mesh.dp_replicate),
        ("dp_shard", mesh.dp_shard),
        ("ep", mesh.ep),
        ("cp", mesh.cp),
        ("tp", mesh.tp),
        ("pp", mesh.pp),
    ];
    let axes: Vec<String> = axes
        .iter()
        .filter(|(_, n)| *n > 1)
        .map(|(name, n)| format!("{name} = {n}"))
        .collect();
    let mut text = if axes.is_empty() {
        String::new()
    } else {
        format!("mesh = {{ {} }}, ", axes.join(", "))
    };
    text += &format!("activation_checkpointing = \"{}\"", Checkpointing(keep));
    text
}

/// What forward keeps, by the recipe's word.
pub struct Checkpointing(pub Keep);

impl fmt::Display for Checkpointing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Keep::All => "none",
            Keep::Selective => "selective",
            Keep::Boundaries => "full",
        })
    }
}

/// What a training stage computes in a step; `None` for other stages.
fn job(stage: &Stage) -> Option<Job> {
    let (training, sequence, sequences, rollout) = match stage.kind.name {
        "sft" => {
            let with: kinds::sft::Sft = kinds::from_value(&stage.with).ok()?;
            (with.training(), with.max_length as usize, 1, None)
        }
        "dpo" => {
            let with: kinds::dpo::Dpo = kinds::from_value(&stage.with).ok()?;
            (with.training(), with.max_length as usize, 2, None)
        }
        "grpo" => {
            let with: kinds::grpo::Grpo = kinds::from_value(&stage.with).ok()?;
            let sequence = PROMPT + with.max_tokens as usize;
            (
                with.training(),
                sequence,
                with.group_size as usize,
                Some(ROLLOUT),
            )
        }
        _ => return None,
    };
    let resources = &stage.placement.resources;
    Some(Job {
        element: match training.dtype {
            Dtype::Fp32 => 4,
            Dtype::Bf16 => 2,
        },
        rows: resources.microbatch_tokens as usize,
        step_tokens: training.batch_size as usize * sequences * sequence,
        sequence,
        head_chunk: resources.head_chunk as usize,
        moments: match training.optimizer {
            Optimizer::Adamw => 2,
            Optimizer::Sgd => 0,
        },
        offload: resources.offload,
        fused: true,
        rollout,
    })
}

fn mesh(resources: &Resources) -> Mesh {
    let m = &resources.mesh;
    let [dp_replicate, dp_shard, ep, cp, tp, pp] =
        [m.dp_replicate, m.dp_shard, m.ep, m.cp, m.tp, m.pp].map(|n| n.max(1) as usize);
    Mesh {
        dp_replicate,
        dp_shard,
        ep,
        cp,
        tp,
        pp,
        ..Mesh::solo()
    }
}

fn keep(checkpointing: ActivationCheckpointing) -> Keep {
    match checkpointing {
        ActivationCheckpointing::None => Keep::All,
        ActivationCheckpointing::Selective => Keep::Selective,
        ActivationCheckpointing::Full => Keep::Boundaries,
    }
}

/// The configuration of a stage's model, found by following its input to where it comes from.
/// Training and conversion change no size.
fn model_of(recipe: &Recipe, stage: &Stage) -> Result<ModelConfig, String> {
    let mut stage = stage;
    loop {
        if stage.kind.name == "init" {
            return fresh(stage);
        }
        let input = ["config", "model"]
            .iter()
            .find_map(|n| stage.inputs.get(*n));
        match input.and_then(|references| references.first()) {
            Some(Reference::Source(name)) => return source(recipe, name),
            // the plan has no circles
            Some(Reference::Stage { stage: above, .. }) => stage = &recipe.stages[above],
            None => return Err(format!("what stage '{}' makes is not known", stage.name)),
        }
    }
}

fn source(recipe: &Recipe, name: &str) -> Result<ModelConfig, String> {
    let spec = &recipe.sources[name].from;
    let read = |dir: &Path| ModelConfig::from_dir(dir).map_err(|e| e.to_string());
    match runner::at_hand(recipe, name) {
        Some(dir) => read(&dir),
        None => Err(match spec {
            SourceSpec::Hf { repo, .. } => format!(
                "'{repo}' is not here yet; its config.json is enough: hf download {repo} config.json"
            ),
            other => format!("{other} is not here yet"),
        }),
    }
}

/// A fresh model's configuration. How many tokens a trained or character tokenizer has is known
/// when it is made; it is small beside the rest.
fn fresh(stage: &Stage) -> Result<ModelConfig, String> {
    let with: Init = kinds::from_value(&stage.with).map_err(|e| e.to_string())?;
    let tokens = match with.tokenizer {
        Tokenizer::Char => with.alphabet.chars().count(),
        Tokenizer::Byte => 256,
        Tokenizer::Bpe => 0,
    };
    let mut extra = serde_json::Map::new();
    if with.experts > 0 {
        // under the names of both families; each reads its own
        for count in ["num_experts", "num_local_experts"] {
            extra.insert(count.to_owned(), with.experts.into());
        }
        extra.insert(
            "num_experts_per_tok".to_owned(),
            with.experts_per_token.into(),
        );
        extra.insert("moe_intermediate_size".to_owned(), with.expert_size.into());
    }
    let sizes = Sizes {
        model_type: with.family.clone(),
        hidden_size: with.hidden_size as usize,
        intermediate_size: with.intermediate_size as usize,
        num_hidden_layers: with.layers as usize,
        num_attention_heads: with.heads as usize,
        num_key_value_heads: with.kv_heads as usize,
        head_dim: Some(with.head_dim as usize),
        max_position_embeddings: with.max_positions as usize,
        tie_word_embeddings: with.tie_embeddings,
        extra,
    };
    let vocabulary = (with.vocab_size as usize).max(tokens).max(1);
    sizes
        .config(vocabulary, None, None, None)
        .map_err(|e| e.to_string())
}
