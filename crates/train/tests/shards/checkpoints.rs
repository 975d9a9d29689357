//! A checkpoint saved on any mesh resumes on any other with the same bytes; on the same mesh a
//! resumed run goes on as if it had not stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arch::{Mesh, ModelConfig};
use tch::Kind;
use train::{CheckpointState, Groups, Optimizer, OptimizerConfig, Policy, PolicyConfig};

use crate::cases::{self, Algorithm};
use crate::ranks::{self, Rank};

const RANKS: usize = 8;

/// Meshes of the model without experts, then those of the one with.
fn meshes() -> Vec<Mesh> {
    let mut all = dense();
    let one = Mesh::solo();
    all.extend([
        Mesh { ep: 2, ..one },
        Mesh { ep: 4, ..one },
        Mesh {
            dp_shard: 2,
            ep: 2,
            ..one
        },
        Mesh {
            tp: 2,
            ep: 2,
            ..one
        },
        Mesh { dp_shard: 3, ..one },
    ]);
    all
}

fn has_experts(mesh: usize) -> bool {
    mesh >= dense().len()
}

fn dense() -> Vec<Mesh> {
    let one = Mesh::solo();
    vec![
        Mesh::replicated(2),
        Mesh { dp_shard: 2, ..one },
        Mesh { dp_shard: 3, ..one },
        Mesh { dp_shard: 4, ..one },
        Mesh {
            dp_replicate: 2,
            dp_shard: 2,
            ..one
        },
        Mesh { tp: 2, ..one },
        Mesh {
            tp: 4,
            sp: false,
            ..one
        },
        Mesh { cp: 2, ..one },
        Mesh { pp: 2, ..one },
        Mesh {
            pp: 2,
            pp_chunks: 2,
            ..one
        },
        Mesh {
            dp_shard: 2,
            tp: 2,
            ..one
        },
        Mesh {
            pp: 2,
            tp: 2,
            dp_shard: 2,
            ..one
        },
        Mesh {
            cp: 2,
            dp_replicate: 2,
            dp_shard: 2,
            ..one
        },
    ]
}

/// Five experts beside a layer with an MLP; tied.
fn experts() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"model_type": "qwen3_moe", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
        "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
        "mlp_only_layers": [1], "norm_topk_prob": false, "max_position_embeddings": 256,
        "rope_theta": 10000.0, "initializer_range": 0.15, "tie_word_embeddings": true}"#,
    )
    .expect("a good configuration")
}

fn policy(has_experts: bool, groups: std::rc::Rc<Groups>) -> Policy {
    let model = if has_experts {
        experts()
    } else {
        cases::tied()
    };
    let config = PolicyConfig {
        kind: Kind::BFloat16,
        ..PolicyConfig::default()
    };
    cases::policy_of(&model, config, groups)
}

/// Where one process saved what a mesh starts from.
fn solo(mesh: usize) -> &'static str {
    if has_experts(mesh) {
        "solo-experts"
    } else {
        "solo"
    }
}

fn optimizer() -> Optimizer {
    Optimizer::new(OptimizerConfig::default(), Some(1.0))
}

fn step(policy: &mut Policy, optimizer: &mut Optimizer, seed: u64) {
    let units = cases::units(Algorithm::Sft, 5, seed);
    let loss = cases::loss(Algorithm::Sft, &units);
    policy.accumulate(&units, &loss).expect("a step");
    policy.apply(optimizer, 0.01).expect("finite");
}

fn save(policy: &Policy, optimizer: &Optimizer, dir: &Path) {
    std::fs::create_dir_all(dir).expect("a directory");
    let state = CheckpointState {
        step: 3,
        ..CheckpointState::default()
    };
    policy
        .save_checkpoint(dir, optimizer, &state)
        .expect("saved");
}

/// All files of a checkpoint.
fn bytes(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("a checkpoint");
    let read = |e: std::io::Result<std::fs::DirEntry>| {
        let e = e.expect("an entry");
        let name = e.file_name().to_string_lossy().into_owned();
        (name, std::fs::read(e.path()).expect("a file"))
    };
    entries.map(read).collect()
}

/// Which pairs this run tries: every mesh after the one before it, from and to two fixed ones, and
/// one pair by chance; with experts all.
fn pairs(seed: u64) -> Vec<(usize, usize)> {
    let n = dense().len();
    let mut out: Vec<(usize, usize)> = (0..n).map(|i| (i, (i + 1) % n)).collect();
    for hub in [3, 11] {
        out.extend((0..n).map(|i| (hub, i)));
        out.extend((0..n).map(|i| (i, hub)));
    }
    out.push((seed as usize % n, (seed / 97) as usize % n));
    let with = n..meshes().len();
    out.extend(with.clone().flat_map(|a| with.clone().map(move |b| (a, b))));
    out.sort_unstable();
    out.dedup();
    out
}

pub fn rank(rank: &Rank) {
    let deadline = Duration::from_secs(120);
    let seed = std::fs::read_to_string(rank.dir.join("seed")).expect("a seed");
    let seed = seed.parse().expect("a number");
    let groups: Vec<_> = meshes()
        .into_iter()
        .enumerate()
        .map(|(turn, mesh)| rank.join(turn, mesh, deadline))
        .collect();
    let at = |name: String| rank.dir.join(name);
    for (i, groups) in groups.iter().enumerate() {
        let Some(groups) = groups else { continue };
        let (mut policy, mut optimizer) = (policy(has_experts(i), groups.clone()), optimizer());
        let state = policy.load_checkpoint(&at(solo(i).into()), &mut optimizer);
        assert_eq!(state.expect("loaded").step, 3);
        save(&policy, &optimizer, &at(format!("mesh{i}")));
    }
    for (from, to) in pairs(seed) {
        // rank 0 is on every mesh and waits for the last of the first in save_checkpoint
        let Some(groups) = &groups[to] else { continue };
        groups.world.barrier("pair").expect("all there");
        let (mut policy, mut optimizer) = (policy(has_experts(to), groups.clone()), optimizer());
        wait_for(&at(format!("mesh{from}/state.json")));
        let loaded = policy.load_checkpoint(&at(format!("mesh{from}")), &mut optimizer);
        loaded.expect("loaded");
        save(&policy, &optimizer, &at(format!("pair{from}-{to}")));
    }
    // resumed, or not, on the same mesh
    for i in [1, 2, 4] {
        let Some(groups) = &groups[i] else { continue };
        let (mut policy, mut optimizer) = (policy(false, groups.clone()), optimizer());
        for seed in 0..4 {
            step(&mut policy, &mut optimizer, seed);
            if seed == 1 {
                save(&policy, &optimizer, &at(format!("half{i}")));
            }
        }
        save(&policy, &optimizer, &at(format!("whole{i}")));
        groups.world.barrier("half").expect("all there");
        let (mut policy, mut optimizer) = (self::policy(false, groups.clone()), self::optimizer());
        let half = policy.load_checkpoint(&at(format!("half{i}")), &mut optimizer);
        half.expect("loaded");
        for seed in 2..4 {
            step(&mut policy, &mut optimizer, seed);
        }
        save(&policy, &optimizer, &at(format!("resumed{i}")));
        let dir = at(format!("export{i}"));
        std::fs::create_dir_all(&dir).expect("a directory");
        policy.export(&dir, None).expect("exported");
    }
}

/// Another mesh's ranks write it.
fn wait_for(file: &Path) {
    let start = std::time::Instant::now();
    let whole = |text: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&text).is_ok();
    while !std::fs::read(file).is_ok_and(whole) {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{}",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn any_mesh_resumes_what_any_other_saved_byte_for_byte() {
    let dir = tempfile::tempdir().expect("a directory");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let seed = u64::from(now.subsec_nanos());
    println!("seed {seed}");
    std::fs::write(dir.path().join("seed"), seed.to_string()).expect("written");
    for i in [0, dense().len()] {
        let (mut policy, mut optimizer) = (policy(has_experts(i), Groups::solo()), optimizer());
        for seed in 0..3 {
            step(&mut policy, &mut optimizer, seed);
        }
        save(&policy, &optimizer, &dir.path().join(solo(i)));
    }
    ranks::finish(ranks::start(
        "checkpoints",
        RANKS,
        meshes().len(),
        dir.path(),
    ));

    for (i, mesh) in meshes().into_iter().enumerate() {
        // back to one process: the same weights and moments
        let want = bytes(&dir.path().join(solo(i)));
        let (mut policy, mut optimizer) = (policy(has_experts(i), Groups::solo()), optimizer());
        let from = dir.path().join(format!("mesh{i}"));
        policy
            .load_checkpoint(&from, &mut optimizer)
            .expect("loaded");
        let back = dir.path().join(format!("back{i}"));
        save(&policy, &optimizer, &back);
        assert!(bytes(&back) == want, "{mesh}: not what was saved");
    }
    for (from, to) in pairs(seed) {
        let pair = bytes(&dir.path().join(format!("pair{from}-{to}")));
        let want = bytes(&dir.path().join(format!("mesh{to}")));
        assert_eq!(
            pair.keys().collect::<Vec<_>>(),
            want.keys().collect::<Vec<_>>()
        );
        assert!(
            pair == want,
            "{} to {} (seed {seed})",
            meshes()[from],
            meshes()[to]
        );
    }
    for i in [1, 2, 4] {
        let at = |name: &str| dir.path().join(format!("{name}{i}"));
        assert!(
            bytes(&at("resumed")) == bytes(&at("whole")),
            "{}: resumed differs",
            meshes()[i]
        );
        assert!(bytes(&at("half")) != bytes(&at("whole")));
        // what all ranks export together is what one process exports of the checkpoint
        let (mut policy, mut optimizer) = (policy(false, Groups::solo()), optimizer());
        policy
            .load_checkpoint(&at("whole"), &mut optimizer)
            .expect("loaded");
        let alone = dir.path().join(format!("alone{i}"));
        std::fs::create_dir_all(&alone).expect("a directory");
        policy.export(&alone, None).expect("exported");
        assert!(bytes(&alone) == bytes(&at("export")), "{}", meshes()[i]);
    }
}
