//! Measured against planned bytes of a rank, on the CPU.
//!
//!     cargo run --release --workspace --example memory [OUT.jsonl [NAME..]]
//!
//! with names, only the configurations whose names contain one of them.
//! Each configuration runs two steps of plain fine-tuning on as many processes as its mesh has
//! ranks; the second step's highest number of tensor bytes (`torch::memory`) is compared with
//! `arch::memory`. One JSON line for each; exit code 1 if one is off by more than 15%, or if
//! dp_shard4 keeps more than 30% of one rank's state.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::Duration;

use arch::memory::{Keep, Load, Table};
use arch::{ExpertSizes, Mesh, ModelConfig, Sizes};
use model::Weights;
use model::save::SaveOptions;
use serde_json::{Value, json};
use tch::{Device, Kind};
use train::{
    Branch, Checkpointing, Groups, LossOut, Optimizer, OptimizerConfig, Policy, PolicyConfig, Unit,
};

const RANK: &str = "RECIPE_MEMORY_RANK";
const TOLERANCE: f64 = 0.15;

/// What is measured.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// The formulas were corrected before this case was first run, and not since.
    blind: bool,
    family: &'static str,
    tied: bool,
    mesh: Mesh,
    bf16: bool,
    keep: Keep,
    rows: usize,
    microbatches: usize,
    head_chunk: usize,
    vocabulary: usize,
    width: usize,
    layers: usize,
    /// Experts, experts to a row and their width.
    experts: Option<[usize; 3]>,
}

const BASE: Case = Case {
    name: "solo fp32",
    blind: false,
    family: "llama",
    tied: false,
    mesh: SOLO,
    bf16: false,
    keep: Keep::All,
    rows: 1024,
    microbatches: 1,
    head_chunk: 256,
    vocabulary: 24_000,
    width: 512,
    layers: 6,
    experts: None,
};

const SOLO: Mesh = Mesh::solo();

/// A vocabulary so large that its logits decide.
const WIDE: Case = Case {
    name: "vocabulary 151,936, whole logits",
    blind: true,
    vocabulary: 151_936,
    width: 256,
    layers: 2,
    head_chunk: 1024,
    ..BASE
};

/// Another family with other sizes: norms on queries and keys, tied embeddings.
const TIED: Case = Case {
    blind: true,
    family: "qwen3",
    tied: true,
    vocabulary: 40_000,
    width: 640,
    layers: 8,
    rows: 768,
    head_chunk: 100,
    ..BASE
};

fn cases() -> Vec<Case> {
    let on = |name, mesh| Case { name, mesh, ..BASE };
    let shards = |dp_shard| Mesh { dp_shard, ..SOLO };
    vec![
        BASE,
        Case {
            name: "solo fp32, full",
            keep: Keep::Boundaries,
            ..BASE
        },
        Case {
            name: "solo bf16, selective",
            bf16: true,
            keep: Keep::Selective,
            ..BASE
        },
        on("dp_shard2 fp32", shards(2)),
        on("dp_shard4 fp32", shards(4)),
        Case {
            bf16: true,
            keep: Keep::Boundaries,
            ..on("dp_shard4 bf16, full", shards(4))
        },
        on("tp2 fp32", Mesh { tp: 2, ..SOLO }),
        on("cp2 fp32", Mesh { cp: 2, ..SOLO }),
        Case {
            blind: true,
            microbatches: 4,
            ..on("pp2 fp32", Mesh { pp: 2, ..SOLO })
        },
        Case {
            blind: true,
            ..on(
                "hsdp 2x2 fp32",
                Mesh {
                    dp_replicate: 2,
                    ..shards(2)
                },
            )
        },
        WIDE,
        Case {
            name: "vocabulary 151,936, chunks of 64",
            head_chunk: 64,
            ..WIDE
        },
        Case {
            name: "qwen3 tied, dp_shard2 x tp2 bf16",
            mesh: Mesh { tp: 2, ..shards(2) },
            bf16: true,
            ..TIED
        },
        Case {
            name: "qwen3 tied, pp2 bf16, selective",
            mesh: Mesh { pp: 2, ..SOLO },
            bf16: true,
            keep: Keep::Selective,
            microbatches: 5,
            ..TIED
        },
        Case {
            name: "qwen2, cp2 x dp_shard2 fp32, full",
            family: "qwen2",
            mesh: Mesh { cp: 2, ..shards(2) },
            keep: Keep::Boundaries,
            microbatches: 2,
            ..TIED
        },
        Case {
            name: "qwen3_moe, ep2 fp32",
            family: "qwen3_moe",
            tied: false,
            mesh: Mesh { ep: 2, ..SOLO },
            vocabulary: 16_000,
            width: 512,
            layers: 4,
            experts: Some([16, 2, 320]),
            ..TIED
        },
        Case {
            name: "mixtral, dp_shard2 bf16, selective",
            family: "mixtral",
            tied: false,
            mesh: shards(2),
            bf16: true,
            keep: Keep::Selective,
            vocabulary: 16_000,
            width: 384,
            layers: 4,
            experts: Some([8, 2, 3 * 384]),
            microbatches: 2,
            ..TIED
        },
        Case {
            name: "mistral, hsdp 2x2 bf16, 3 microbatches",
            family: "mistral",
            tied: false,
            mesh: Mesh {
                dp_replicate: 2,
                ..shards(2)
            },
            bf16: true,
            vocabulary: 32_000,
            width: 512,
            microbatches: 3,
            ..TIED
        },
        Case {
            name: "llama, pp2 x dp_shard2 fp32, selective",
            family: "llama",
            mesh: Mesh { pp: 2, ..shards(2) },
            keep: Keep::Selective,
            vocabulary: 60_000,
            width: 512,
            layers: 6,
            rows: 512,
            microbatches: 3,
            ..TIED
        },
        Case {
            name: "qwen3, tp2 x cp2 fp32, full",
            mesh: Mesh {
                tp: 2,
                cp: 2,
                ..SOLO
            },
            keep: Keep::Boundaries,
            vocabulary: 30_000,
            rows: 1024,
            head_chunk: 512,
            ..TIED
        },
    ]
}

fn main() -> ExitCode {
    if let Ok(rank) = std::env::var(RANK) {
        let args: Vec<String> = std::env::args().collect();
        let (case, port) = (
            args[1].parse::<usize>().expect("a case"),
            args[2].parse().expect("a port"),
        );
        run(
            &cases()[case],
            Path::new(&args[3]),
            rank.parse().expect("a rank"),
            port,
        );
        return ExitCode::SUCCESS;
    }
    let mut out = std::env::args()
        .nth(1)
        .map(|path| std::fs::File::create(path).expect("a file that can be written"));
    let names: Vec<String> = std::env::args().skip(2).collect();
    let chosen = |case: &Case| names.is_empty() || names.iter().any(|n| case.name.contains(n));
    let mut wrong = false;
    let mut state = Vec::new();
    for (i, case) in cases().iter().enumerate().filter(|(_, c)| chosen(c)) {
        let line = compare(i, case);
        println!("{line}");
        if let Some(out) = &mut out {
            writeln!(out, "{line}").expect("written");
        }
        let off = line["off"].as_f64().unwrap_or(f64::INFINITY);
        wrong |= off.abs() > TOLERANCE;
        state.push((case.name, line["measured_state"].as_f64().unwrap_or(0.0)));
    }
    let of = |name| state.iter().find(|s| s.0 == name).map_or(f64::NAN, |s| s.1);
    let share = of("dp_shard4 fp32") / of("solo fp32");
    if !share.is_nan() {
        println!("{}", json!({ "dp_shard4_share_of_state": share }));
    }
    ExitCode::from(u8::from(wrong || share > 0.30))
}

fn config(case: &Case) -> ModelConfig {
    let sizes = Sizes {
        model_type: case.family.into(),
        hidden_size: case.width,
        intermediate_size: 3 * case.width,
        num_hidden_layers: case.layers,
        num_attention_heads: case.width / 64,
        num_key_value_heads: (case.width / 128).max(2),
        head_dim: Some(64),
        max_position_embeddings: 4096,
        tie_word_embeddings: case.tied,
        experts: case.experts.map(|[count, per_token, width]| ExpertSizes {
            count,
            per_token,
            intermediate_size: width,
        }),
        extra: serde_json::Map::new(),
    };
    sizes
        .config(case.vocabulary, None, None, None)
        .expect("sizes")
}

/// Runs a case on its ranks, and sets the one that needed most beside the plan.
fn compare(index: usize, case: &Case) -> Value {
    let config = config(case);
    let dir = tempfile::tempdir().expect("a folder");
    let weights = Weights::init(&config, 1, Kind::Float, Device::Cpu).expect("weights");
    let options = SaveOptions::default();
    weights.save(&config, dir.path(), options).expect("saved");
    drop(weights);
    let port = parallel::free_port().expect("a port");
    let ranks: Vec<_> = (0..case.mesh.size())
        .map(|rank| {
            Command::new(std::env::current_exe().expect("this program"))
                .args([index.to_string(), port.to_string()])
                .arg(dir.path())
                .env(RANK, rank.to_string())
                .env("OMP_NUM_THREADS", "1")
                .stdout(Stdio::piped())
                .spawn()
                .expect("a rank")
        })
        .collect();
    let mut seen: Vec<Value> = Vec::new();
    for rank in ranks {
        let out = rank.wait_with_output().expect("a rank's output");
        if out.status.success() {
            seen.push(serde_json::from_slice(&out.stdout).expect("JSON"));
        }
    }
    if seen.len() < case.mesh.size() {
        return json!({ "case": case.name, "failed": true });
    }
    let most = |field: &str| {
        seen.iter()
            .filter_map(|s| s[field].as_u64())
            .max()
            .unwrap_or(0)
    };
    let load = Load {
        element: if case.bf16 { 2 } else { 4 },
        rows: case.rows,
        microbatches: case.microbatches,
        keep: case.keep,
        head_chunk: case.head_chunk,
        moments: 2,
        reshard: true,
        offload: false,
        fused: true,
        rollout: None,
    };
    let plan = Table::new(&config).worst(&case.mesh, &load);
    json!({
        "case": case.name,
        "blind": case.blind,
        "mesh": case.mesh.to_string(),
        "parameters": config.param_count(),
        "measured_state": most("state"),
        "planned_state": plan.state(),
        "measured_peak": most("peak"),
        "planned_peak": plan.peak(),
        "off": plan.peak() as f64 / most("peak") as f64 - 1.0,
        "planned": {
            "gathered": plan.gathered,
            "activations": plan.activations,
            "logits": plan.logits,
        },
    })
}

/// One rank: two steps, of which the second is measured.
fn run(case: &Case, dir: &Path, rank: usize, port: u16) {
    torch::memory::count();
    torch::threads::set(1);
    let deadline = Duration::from_secs(120);
    let groups =
        Groups::join(case.mesh, rank, "127.0.0.1", port, deadline, Device::Cpu).expect("all ranks");
    let settings = PolicyConfig {
        kind: if case.bf16 {
            Kind::BFloat16
        } else {
            Kind::Float
        },
        checkpointing: match case.keep {
            Keep::All => Checkpointing::None,
            Keep::Selective => Checkpointing::Selective,
            Keep::Boundaries => Checkpointing::Full,
        },
        microbatch_tokens: case.rows,
        head_chunk: Some(case.head_chunk),
        ..PolicyConfig::default()
    };
    let mut policy = Policy::load(dir, settings, Rc::clone(&groups)).expect("a policy");
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), Some(1.0));
    let count = case.mesh.data_size() * case.microbatches;
    let units: Vec<Unit> = (0..count).map(|i| unit(case, i)).collect();
    let tokens: usize = units.iter().map(Unit::masked).sum();
    let mut step = |policy: &mut Policy| {
        let loss = |tokens_here: &train::Tokens| {
            Ok(LossOut {
                loss: -tokens_here.logp.sum(tokens_here.logp.kind()) / tokens as f64,
                metrics: Vec::new(),
            })
        };
        policy.accumulate(&units, &loss).expect("a step");
        policy.apply(&mut optimizer, 1e-4).expect("an update");
    };
    step(&mut policy);
    let state = torch::memory::live();
    torch::memory::peak();
    step(&mut policy);
    println!(
        "{}",
        json!({ "state": state, "peak": torch::memory::peak() })
    );
}

/// A sequence that fills a microbatch.
fn unit(case: &Case, index: usize) -> Unit {
    let tokens: Vec<u32> = (0..case.rows)
        .map(|i| ((i * 7919 + index * 104_729) % case.vocabulary) as u32)
        .collect();
    let mut mask = vec![true; tokens.len()];
    mask[0] = false;
    Unit {
        branches: vec![Branch { tokens, mask }],
        ..Unit::default()
    }
}
