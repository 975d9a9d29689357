//! Sharded training gives one process's gradients and curve, whatever is kept or given back; each
//! rank holds its part of the state only.

use std::rc::Rc;
use std::time::Duration;

use arch::Mesh;
use serde::{Deserialize, Serialize};
use tch::Kind;
use train::{Checkpointing, Groups, Optimizer, OptimizerConfig, PolicyConfig};

use crate::cases::{self, Algorithm};
use crate::ranks::{self, Rank};

const STEPS: u64 = 6;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seen {
    norms: Vec<f64>,
    losses: Vec<f64>,
    /// Parameters, gradients, optimizer.
    bytes: [usize; 3],
    /// Sums over this rank's shards after the last step, bit for bit.
    weights: Vec<u64>,
    logprobs: Vec<Vec<Vec<f32>>>,
    version: u64,
}

fn meshes() -> Vec<Mesh> {
    let shard = |dp_shard: usize| Mesh {
        dp_shard,
        ..Mesh::solo()
    };
    vec![
        Mesh::replicated(2),
        shard(2),
        shard(3),
        shard(4),
        Mesh {
            dp_replicate: 2,
            ..shard(2)
        },
    ]
}

#[derive(Clone, Copy)]
struct How {
    kind: Kind,
    reshard: bool,
    checkpointing: Checkpointing,
    adam: bool,
    tied: bool,
}

const PLAIN: How = How {
    kind: Kind::Float,
    reshard: true,
    checkpointing: Checkpointing::None,
    adam: false,
    tied: true,
};

fn ways() -> Vec<How> {
    vec![
        PLAIN,
        How {
            reshard: false,
            ..PLAIN
        },
        How {
            checkpointing: Checkpointing::Full,
            ..PLAIN
        },
        How {
            kind: Kind::Double,
            tied: false,
            ..PLAIN
        },
        How {
            adam: true,
            ..PLAIN
        },
        How {
            kind: Kind::BFloat16,
            adam: true,
            ..PLAIN
        },
    ]
}

fn train(how: How, groups: Rc<Groups>) -> Seen {
    let config = PolicyConfig {
        kind: how.kind,
        microbatch_tokens: 40,
        reshard: how.reshard,
        checkpointing: how.checkpointing,
        ..PolicyConfig::default()
    };
    let model = if how.tied {
        cases::tied()
    } else {
        cases::untied()
    };
    let mut policy = cases::policy_of(&model, config, groups);
    let optimizer = if how.adam {
        OptimizerConfig::default()
    } else {
        OptimizerConfig::Sgd {
            momentum: 0.0,
            weight_decay: 0.0,
        }
    };
    let mut optimizer = Optimizer::new(optimizer, None);
    let (mut norms, mut losses) = (vec![], vec![]);
    for step in 0..STEPS {
        // a batch of one unit leaves ranks with nothing
        let batch = if step == 2 { 1 } else { 5 };
        let units = cases::units(Algorithm::Sft, batch, 50 + step % 3);
        let loss = cases::loss(Algorithm::Sft, &units);
        let got = policy.accumulate(&units, &loss).expect("a step");
        let stats = policy.apply(&mut optimizer, 0.02).expect("finite");
        norms.push(stats.grad_norm);
        losses.push(got.loss);
    }
    let bytes = policy.state_bytes(&optimizer);
    let units = cases::units(Algorithm::Dpo, 3, 77);
    Seen {
        norms,
        losses,
        bytes: [bytes.parameters, bytes.gradients, bytes.optimizer],
        weights: policy
            .weights()
            .iter()
            .map(|(_, t)| t.sum(Kind::Double).double_value(&[]).to_bits())
            .collect(),
        logprobs: policy.logprobs(&units).expect("log-probabilities"),
        version: policy.weights().version,
    }
}

pub fn rank(rank: &Rank) {
    let mut seen: Vec<Option<Vec<Seen>>> = Vec::new();
    for (turn, mesh) in meshes().into_iter().enumerate() {
        let groups = rank.join(turn, mesh, Duration::from_secs(60));
        seen.push(groups.map(|groups| {
            let seen = ways().into_iter().map(|how| train(how, groups.clone()));
            let seen = seen.collect();
            groups.world.barrier("end").expect("all there");
            seen
        }));
    }
    rank.leave("state", &seen);
}

fn off(got: &[f64], want: &[f64]) -> f64 {
    let each = got.iter().zip(want).map(|(g, w)| (g - w).abs() / w.abs());
    each.fold(0.0, f64::max)
}

#[test]
fn shards_train_as_one_process_and_hold_their_part() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = ranks::start("state", 4, meshes().len(), dir.path());
    let solo: Vec<Seen> = ways()
        .into_iter()
        .map(|how| train(how, Groups::solo()))
        .collect();
    ranks::finish(started);
    let all: Vec<Vec<Option<Vec<Seen>>>> = (0..4)
        .map(|rank| ranks::left(dir.path(), "state", rank))
        .collect();
    for (turn, mesh) in meshes().into_iter().enumerate() {
        let ranks: Vec<&Vec<Seen>> = all.iter().filter_map(|r| r[turn].as_ref()).collect();
        assert_eq!(ranks.len(), mesh.size());
        for (i, how) in ways().into_iter().enumerate() {
            let want = &solo[i];
            let tolerance = match how.kind {
                Kind::Double => 1e-9,
                Kind::Float if how.adam => 1e-4,
                Kind::Float => 1e-5,
                _ => 3e-2,
            };
            for (rank, seen) in ranks.iter().enumerate() {
                let seen = &seen[i];
                assert_eq!(seen.norms, ranks[0][i].norms, "{mesh}: ranks disagree");
                assert_eq!(seen.losses, ranks[0][i].losses);
                assert_eq!(seen.logprobs, ranks[0][i].logprobs);
                assert_eq!(seen.version, want.version);
                let norms = off(&seen.norms, &want.norms);
                assert!(
                    norms <= tolerance,
                    "{mesh}, way {i}, rank {rank}: norms {norms:e}"
                );
                let losses = off(&seen.losses, &want.losses);
                assert!(losses <= tolerance, "{mesh}, way {i}: losses {losses:e}");
                let flat = |s: &Seen| -> Vec<f64> {
                    let each = s.logprobs.iter().flatten().flatten();
                    each.map(|&x| f64::from(x)).collect()
                };
                let logprobs = off(&flat(seen), &flat(want));
                assert!(
                    logprobs <= tolerance.max(1e-5),
                    "{mesh}, way {i}: {logprobs:e}"
                );
                // an Adam state of four equal tensors: parameters, gradients, two moments
                let total: usize = seen.bytes.iter().sum();
                let whole: usize = want.bytes.iter().sum();
                let part = total as f64 / whole as f64;
                let most = match mesh.dp_shard {
                    1 => 1.0,
                    4 => 0.30,
                    n => 1.15 / n as f64,
                };
                assert!(part <= most, "{mesh}, way {i}: {part} of the state");
                if mesh.dp_shard > 1 && how.adam {
                    assert!(part >= 1.0 / mesh.dp_shard as f64 * 0.6, "{mesh}: {part}");
                }
            }
            // what is kept or given back changes no bit
            if i == 1 || i == 2 {
                for seen in &ranks {
                    assert_eq!(seen[i].weights, seen[0].weights, "{mesh}, way {i}");
                    assert_eq!(seen[i].losses, seen[0].losses, "{mesh}, way {i}");
                }
            }
        }
        println!(
            "{mesh}: {:?} of {:?} bytes on rank 0",
            ranks[0][4].bytes, solo[4].bytes
        );
    }
}
