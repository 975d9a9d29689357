//! A rank that may not hold the unsharded state and full logits trains the model in shards.

use std::time::Duration;

use arch::{Mesh, ModelConfig};
use model::Weights;
use tch::{Device, Kind};
use train::{
    Branch, Checkpointing, Groups, Optimizer, OptimizerConfig, Policy, PolicyConfig, Unit,
};

use crate::ranks::{self, Rank};

/// Rows of one unit, and so of a microbatch.
const ROWS: usize = 512;

fn model() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"model_type": "qwen3", "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 12, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 64,
        "max_position_embeddings": 1024, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true}"#,
    )
    .expect("a good configuration")
}

/// Parameters, gradients and two moments, and the logits of a microbatch, all fp32.
fn unsharded() -> (u64, u64) {
    let logits = (ROWS * model().vocab_size * 4) as u64;
    (model().param_count() * 16, logits)
}

fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text
        .lines()
        .find(|l| l.starts_with(field))
        .expect("the field");
    let kilobytes = line.split_whitespace().nth(1).expect("a number");
    kilobytes.parse::<u64>().expect("a number") * 1024
}

/// Trains two steps under the limit; `alone` is one rank that has everything.
pub fn rank(rank: &Rank, alone: bool) {
    let groups = if alone {
        Groups::solo()
    } else {
        let mesh = Mesh {
            dp_shard: 2,
            ..Mesh::solo()
        };
        rank.join(0, mesh, Duration::from_secs(120))
            .expect("on the mesh")
    };
    // what code, stacks and libtorch itself take is not the model's
    let _ = tch::Tensor::ones([64, 64], (Kind::Float, Device::Cpu))
        .matmul(&tch::Tensor::ones([64, 64], (Kind::Float, Device::Cpu)));
    let (state, logits) = unsharded();
    let limit = status("VmData:") + (state + logits) * 90 / 100;
    let limits = libc::rlimit {
        rlim_cur: limit,
        rlim_max: limit,
    };
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limits) }, 0);

    let config = PolicyConfig {
        checkpointing: Checkpointing::Full,
        microbatch_tokens: ROWS,
        head_chunk: Some(64),
        ..PolicyConfig::default()
    };
    let mut policy = Policy::load(&rank.dir.join("model"), config, groups).expect("it fits");
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), Some(1.0));
    let unit = |i: usize| Unit {
        prefix: vec![],
        branches: vec![Branch {
            tokens: (0..ROWS)
                .map(|t| ((t * 7 + i * 13) % 4096) as u32)
                .collect(),
            mask: (0..ROWS).map(|t| t > 0).collect(),
        }],
        ..Unit::default()
    };
    let units: Vec<Unit> = (0..2).map(unit).collect();
    let tokens: usize = units.iter().map(Unit::masked).sum();
    let mut losses = Vec::new();
    for _ in 0..2 {
        let coefficient = -1.0 / tokens as f64;
        let done = policy.accumulate_known(&units, &|_, _, _| coefficient, None);
        losses.push(done.expect("it fits").loss);
        policy.apply(&mut optimizer, 1e-3).expect("finite");
    }
    let bytes = policy.state_bytes(&optimizer).total();
    rank.leave("limited", &(losses, bytes));
}

#[test]
fn a_rank_that_cannot_hold_the_model_trains_its_shard() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("model");
    std::fs::create_dir_all(&path).expect("a directory");
    let weights = Weights::init(&model(), 1, Kind::Float, Device::Cpu).expect("fits here");
    weights
        .save(&model(), &path, model::save::SaveOptions::default())
        .expect("saved");
    drop(weights);
    ranks::finish(ranks::start("limited", 2, 1, dir.path()));
    let (state, logits) = unsharded();
    let mut all = Vec::new();
    for rank in 0..2 {
        let (losses, bytes): (Vec<f64>, u64) = ranks::left(dir.path(), "limited", rank);
        println!(
            "rank {rank}: losses {losses:?}, {bytes} bytes of state; whole {state} + logits {logits}"
        );
        assert!(losses[1] < losses[0]);
        assert!(bytes * 100 < state * 55);
        all.push(losses);
    }
    assert_eq!(all[0], all[1]);
    let alone = ranks::start("limited-alone", 1, 0, dir.path());
    for mut rank in alone {
        assert!(
            !rank.wait().expect("ended").success(),
            "the limit must be too low for one rank"
        );
    }
}
