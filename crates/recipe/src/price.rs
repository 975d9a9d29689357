//! What training stages need, before they start: bytes of a rank and FLOPs of a step, from the
//! recipe and the model's config.json alone.

use arch::fit::{self, Choice, Job, Machine};
use arch::memory::{Keep, Memory, Table};
use arch::mesh::AXES;
use arch::{ExpertSizes, Mesh, ModelConfig, Sizes};
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
    /// `tp` and `ep` of its rollouts, where the recipe says them.
    told: Option<(usize, usize)>,
}

/// The training stages of a plan; one whose model is not known yet says why.
pub fn training(plan: &Plan) -> Vec<(String, Result<Priced, String>)> {
    let stages = plan.order.iter().map(|planned| &planned.stage);
    stages
        .filter_map(|stage| Some((stage, job(stage)?)))
        .map(|(stage, job)| {
            let priced = model_of(&plan.recipe, stage);
            let priced = priced.and_then(|config| Priced::new(stage, config, job));
            (stage.name.clone(), priced)
        })
        .collect()
}

impl Priced {
    /// Refuses a placement that cannot carry the model.
    fn new(stage: &Stage, config: ModelConfig, job: Job) -> Result<Priced, String> {
        let resources = &stage.placement.resources;
        let asked = resources.rollout_mesh.as_ref();
        let priced = Priced {
            stage: stage.name.clone(),
            job,
            mesh: mesh(resources),
            keep: keep(resources.activation_checkpointing),
            told: asked.map(|m| (m.tp as usize, m.ep as usize)),
            config,
        };
        let refused = |e: arch::Error| e.to_string();
        priced.mesh.check(&priced.config).map_err(refused)?;
        let rollout = priced.mesh.generating(priced.told, &priced.config);
        rollout.map_err(|e| refused(e).replace("mesh.", "rollout_mesh."))?;
        Ok(priced)
    }

    /// Bytes of the rank that needs most.
    pub fn memory(&self) -> Memory {
        self.placed(&Table::new(&self.config), &self.mesh, self.keep, &self.job)
    }

    /// The same for another placement.
    fn placed(&self, table: &Table, mesh: &Mesh, keep: Keep, job: &Job) -> Memory {
        let rollout = mesh.generating(self.told, &self.config);
        // what was told has been checked, and the ranks are the same
        let rollout = rollout.map_or((1, 1), |m| (m.tp, m.ep));
        table.worst(mesh, &job.load(mesh, keep, rollout))
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
            self.placed(&table, mesh, keep, job).peak() <= bytes
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
        let [selective, full] = [Keep::Selective, Keep::Boundaries]
            .map(|keep| format!("activation_checkpointing = \"{}\"", Checkpointing(keep)));
        let changes = [
            (selective, self.mesh, Keep::Selective, self.job),
            (full.clone(), self.mesh, Keep::Boundaries, self.job),
            (
                format!("microbatch_tokens = {}", half.rows),
                self.mesh,
                self.keep,
                half,
            ),
            (axes(&sharded), sharded, self.keep, self.job),
            (
                format!("{}, {full}", axes(&sharded)),
                sharded,
                Keep::Boundaries,
                self.job,
            ),
            ("offload = true".to_owned(), self.mesh, self.keep, offload),
        ];
        for (text, mesh, keep, job) in changes {
            if fits(&mesh, keep, &job) {
                return text;
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
    let checkpointing = format!("activation_checkpointing = \"{}\"", Checkpointing(keep));
    match mesh.size() {
        1 => checkpointing,
        _ => format!("{}, {checkpointing}", axes(mesh)),
    }
}

/// A mesh of several ranks as a recipe's `resources` say it.
fn axes(mesh: &Mesh) -> String {
    let sizes = AXES.iter().map(|axis| (axis.name(), mesh.along(*axis)));
    let mut axes: Vec<String> = sizes
        .filter(|(_, n)| *n > 1)
        .map(|(name, n)| format!("{name} = {n}"))
        .collect();
    if mesh.pp_chunks > 1 {
        axes.push(format!("pp_chunks = {}", mesh.pp_chunks));
    }
    if mesh.tp > 1 && !mesh.sp {
        axes.push("sp = false".to_owned());
    }
    format!("mesh = {{ {} }}", axes.join(", "))
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
    Mesh {
        dp_replicate: m.dp_replicate as usize,
        dp_shard: m.dp_shard as usize,
        ep: m.ep as usize,
        cp: m.cp as usize,
        tp: m.tp as usize,
        pp: m.pp as usize,
        pp_chunks: m.pp_chunks as usize,
        sp: m.sp,
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
            // cells differ in what they train on, not in size
            Some(Reference::Choice(choice)) => {
                stage = &recipe.stages[&choice.candidates[0].stage];
            }
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
        experts: (with.experts > 0).then_some(ExpertSizes {
            count: with.experts as usize,
            per_token: with.experts_per_token as usize,
            intermediate_size: with.expert_size as usize,
        }),
        extra: serde_json::Map::new(),
    };
    let vocabulary = (with.vocab_size as usize).max(tokens).max(1);
    sizes
        .config(vocabulary, None, None, None)
        .map_err(|e| e.to_string())
}
