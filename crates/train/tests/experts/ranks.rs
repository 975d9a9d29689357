//! Experts on several ranks: threads over Gloo give what one rank gives.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use arch::mesh::Mesh;
use arch::{ModelConfig, Slice};
use tch::{Device, Kind, Tensor};
use train::{Checkpointing, Groups, PolicyConfig};

use crate::cases::{self, Algorithm};
use crate::models::{mixtral, qwen};

/// What a rank saw of one batch.
struct Seen {
    loss: f64,
    metrics: BTreeMap<String, f64>,
    /// This rank's slices.
    grads: BTreeMap<String, (Slice, Vec<f64>)>,
    logprobs: Vec<f32>,
}

fn flat(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.contiguous().flatten(0, -1)).expect("numbers")
}

fn step(model: &ModelConfig, config: &PolicyConfig, count: usize, groups: Rc<Groups>) -> Seen {
    let units = cases::units(Algorithm::Grpo, count, 31);
    let loss = cases::loss(Algorithm::Grpo, &units);
    let mut policy = cases::policy_of(model, config.clone(), groups);
    let got = policy.accumulate(&units, &loss).expect("a step");
    let slices = policy.table().iter();
    let slices: BTreeMap<_, _> = slices.map(|h| (&h.def.name, h.shard.clone())).collect();
    let mine = |(name, t): (&str, Tensor)| {
        let name = name.to_owned();
        (name.clone(), (slices[&name].clone(), flat(&t)))
    };
    Seen {
        loss: got.loss,
        metrics: got.metrics.0,
        grads: policy.grads().iter().map(mine).collect(),
        logprobs: policy.logprobs(&units).expect("values").concat().concat(),
    }
}

/// Every rank's result, each rank a thread.
fn on(mesh: Mesh, model: &ModelConfig, config: &PolicyConfig, count: usize) -> Vec<Seen> {
    let port = parallel::free_port().expect("a free port");
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..mesh.size())
            .map(|rank| {
                scope.spawn(move || {
                    let wait = Duration::from_secs(60);
                    let groups = Groups::join(mesh, rank, "127.0.0.1", port, wait, Device::Cpu)
                        .expect("groups");
                    step(model, config, count, groups)
                })
            })
            .collect();
        ranks
            .into_iter()
            .map(|r| r.join().expect("a rank"))
            .collect()
    })
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn experts_on_ranks_give_what_one_rank_gives() {
    let mesh = |ep, dp_shard| Mesh {
        ep,
        dp_shard,
        ..Mesh::solo()
    };
    // five experts on two ranks are three and two; one unit leaves all ranks but one without rows
    for (model, mesh, count, checkpointing) in [
        (mixtral(), mesh(2, 1), 7, Checkpointing::None),
        (qwen(), mesh(2, 1), 1, Checkpointing::Full),
        (qwen(), mesh(4, 1), 5, Checkpointing::Selective),
        (mixtral(), mesh(2, 2), 6, Checkpointing::Full),
    ] {
        let config = PolicyConfig {
            kind: Kind::Double,
            microbatch_tokens: 40,
            router_aux_loss_coef: 0.1,
            checkpointing,
            ..PolicyConfig::default()
        };
        let alone = step(&model, &config, count, Groups::solo());
        for (rank, seen) in on(mesh, &model, &config, count).into_iter().enumerate() {
            let what = format!("{} {mesh} rank {rank}", model.family.model_type);
            assert!((seen.loss - alone.loss).abs() < 1e-10, "{what}");
            for (name, (slice, got)) in seen.grads {
                let (whole, want) = &alone.grads[&name];
                let shape: Vec<i64> = whole.size.iter().map(|&n| n as i64).collect();
                let whole = Tensor::from_slice(want).view(shape.as_slice());
                let part = flat(&model::weights::narrow(&whole, &slice));
                let off: Vec<f64> = got.iter().zip(&part).map(|(a, b)| a - b).collect();
                let off = norm(&off) / norm(want);
                assert!(off < 1e-9, "{what}: {name} is off by {off:e}");
            }
            for (name, want) in &alone.metrics {
                assert!((seen.metrics[name] - want).abs() < 1e-9, "{what}: {name}");
            }
            for (a, b) in seen.logprobs.iter().zip(&alone.logprobs) {
                assert!((a - b).abs() < 1e-6, "{what}");
            }
        }
    }
}
