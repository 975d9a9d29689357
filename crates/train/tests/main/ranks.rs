//! Two processes over Gloo give what one rank gives. The test binary starts itself as ranks.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::rc::Rc;
use std::time::Duration;

use arch::Mesh;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use train::{Error, Gloo, Groups, LossOut, Optimizer, OptimizerConfig, PolicyConfig, Tokens};

use crate::cases::{self, ALGORITHMS, Algorithm};

const OUT: &str = "RECIPE_TEST_RANK_OUT";
const STEPS: u64 = 20;

/// What a rank saw of one case.
#[derive(Serialize, Deserialize)]
struct Seen {
    grad_norm: f64,
    grads: BTreeMap<String, Vec<f64>>,
    metrics: BTreeMap<String, f64>,
    losses: Vec<f64>,
    logprobs: Vec<Vec<Vec<f32>>>,
    weights: BTreeMap<String, Vec<f64>>,
}

fn config(kind: Kind) -> PolicyConfig {
    PolicyConfig {
        kind,
        microbatch_tokens: 60,
        ..PolicyConfig::default()
    }
}

fn sgd() -> Optimizer {
    Optimizer::new(
        OptimizerConfig::Sgd {
            momentum: 0.0,
            weight_decay: 0.0,
        },
        None,
    )
}

fn flat(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).flatten(0, -1)).expect("numbers")
}

/// One unclipped gradient, then a loss curve; a batch of one unit leaves a rank with nothing.
fn train(algorithm: Algorithm, kind: Kind, batch: usize, groups: Rc<Groups>) -> Seen {
    let mut policy = cases::policy_of(&cases::tied(), config(kind), groups);
    let mut optimizer = sgd();
    let mut seen = None;
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let units = cases::units(algorithm, batch, 50 + step % 4);
        let loss = cases::loss(algorithm, &units);
        let got = policy.accumulate(&units, &loss).expect("a step");
        let grads = policy
            .grads()
            .iter()
            .map(|(name, t)| (name.to_owned(), flat(&t)))
            .collect();
        let stats = policy.apply(&mut optimizer, 0.05).expect("finite");
        losses.push(got.loss);
        seen.get_or_insert((stats.grad_norm, grads, got.metrics.0));
    }
    let (grad_norm, grads, metrics) = seen.expect("a step");
    let units = cases::units(algorithm, batch, 77);
    Seen {
        grad_norm,
        grads,
        metrics,
        losses,
        logprobs: policy.logprobs(&units).expect("log-probabilities"),
        weights: policy
            .masters()
            .iter()
            .map(|(name, t)| (name.to_owned(), flat(t)))
            .collect(),
    }
}

/// A NaN on one rank alone: both skip. Returns what this rank's step said.
fn nan_on_one(groups: Rc<Groups>) -> (bool, u64) {
    let mut policy = cases::policy_of(&cases::tied(), config(Kind::Float), groups);
    let units = cases::units(Algorithm::Sft, 2, 1);
    let loss = |t: &Tokens| -> Result<LossOut, Error> {
        let bad = t.units.iter().any(|u| u.unit == 0);
        let scale = if bad { f64::NAN } else { 1.0 };
        Ok(LossOut {
            loss: t.logp.sum(t.logp.kind()) * scale,
            metrics: vec![],
        })
    };
    policy.accumulate(&units, &loss).expect("a step");
    let stats = policy.apply(&mut sgd(), 0.1).expect("skipped");
    (stats.skipped, stats.skipped_total)
}

fn cases_of() -> Vec<(Algorithm, Kind, usize)> {
    let mut out = Vec::new();
    for algorithm in ALGORITHMS {
        out.extend([
            (algorithm, Kind::Float, 7),
            (algorithm, Kind::Double, 5),
            (algorithm, Kind::Float, 1),
        ]);
    }
    out
}

/// Not a test of its own: a rank, when started as one.
#[test]
fn rank() {
    let Ok(out) = std::env::var(OUT) else { return };
    let number = |name: &str| std::env::var(name).expect(name).parse::<u16>().expect(name);
    let (rank, size) = (number("RANK").into(), number("WORLD_SIZE").into());
    torch::threads::set(1);
    let deadline = Duration::from_secs(60);
    let port = number("MASTER_PORT");
    let mesh = Mesh::replicated(size);
    let groups =
        Groups::join(mesh, rank, "127.0.0.1", port, deadline, Device::Cpu).expect("joined");
    let seen: Vec<Seen> = cases_of()
        .into_iter()
        .map(|(algorithm, kind, batch)| train(algorithm, kind, batch, groups.clone()))
        .collect();
    let skipped = nan_on_one(groups.clone());
    let text = serde_json::to_vec(&(seen, skipped)).expect("plain data");
    std::fs::write(Path::new(&out).join(format!("{rank}.json")), text).expect("written");
    groups.world.barrier("end").expect("all there");
}

fn start(out: &Path, rank: usize, size: usize, port: u16) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["ranks::rank", "--exact", "--nocapture", "--test-threads=1"])
        .env(OUT, out)
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", size.to_string())
        .env("MASTER_PORT", port.to_string())
        .spawn()
        .expect("started")
}

#[test]
fn two_ranks_give_one_ranks_gradients_norm_and_loss_curve() {
    let dir = tempfile::tempdir().expect("a directory");
    let port = parallel::free_port().expect("a port");
    let ranks: Vec<Child> = (0..2)
        .map(|rank| start(dir.path(), rank, 2, port))
        .collect();
    let solo: Vec<Seen> = cases_of()
        .into_iter()
        .map(|(algorithm, kind, batch)| train(algorithm, kind, batch, Groups::solo()))
        .collect();
    for mut rank in ranks {
        assert!(rank.wait().expect("ended").success());
    }
    let read = |rank: usize| -> (Vec<Seen>, (bool, u64)) {
        let text = std::fs::read(dir.path().join(format!("{rank}.json"))).expect("written");
        serde_json::from_slice(&text).expect("plain data")
    };
    let (zero, one) = (read(0), read(1));
    assert_eq!((zero.1, one.1), ((true, 1), (true, 1)));
    for (i, case) in cases_of().into_iter().enumerate() {
        let (a, b, want) = (&zero.0[i], &one.0[i], &solo[i]);
        assert_eq!(
            a.grad_norm.to_bits(),
            b.grad_norm.to_bits(),
            "{case:?}: ranks disagree"
        );
        assert!(a.weights == b.weights && a.losses == b.losses && a.logprobs == b.logprobs);
        assert_eq!(a.metrics, want.metrics, "{case:?}");
        let tolerance = if case.1 == Kind::Double { 1e-10 } else { 1e-6 };
        let off = (a.grad_norm - want.grad_norm).abs() / want.grad_norm;
        assert!(
            off <= tolerance,
            "{case:?}: gradient norm is off by {off:e}"
        );
        for (name, grad) in &a.grads {
            let (grad, want) = (
                Tensor::from_slice(grad),
                Tensor::from_slice(&want.grads[name]),
            );
            let off = cases::ratio(&grad, &want);
            assert!(
                off <= tolerance,
                "{case:?}: gradient of {name} is off by {off:e}"
            );
        }
        assert_eq!(a.losses.len(), STEPS as usize);
        let (first, last) = (want.losses[0], want.losses[STEPS as usize - 4]);
        assert!(
            (first - last).abs() > 1e-3,
            "{case:?}: the curve must move: {:?}",
            want.losses
        );
        for (got, want) in a.losses.iter().zip(&want.losses) {
            assert!(
                (got - want).abs() <= 1e-5 * want.abs().max(1.0),
                "{case:?}: {got} {want}"
            );
        }
        for (got, want) in a
            .logprobs
            .iter()
            .flatten()
            .flatten()
            .zip(want.logprobs.iter().flatten().flatten())
        {
            assert!((got - want).abs() < 1e-4, "{case:?}: {got} {want}");
        }
    }
}

#[test]
fn a_rank_that_is_alone_says_who_what_and_where_at_the_deadline() {
    let port = parallel::free_port().expect("a port");
    let started = std::time::Instant::now();
    let joined = Gloo::join(0, 2, "127.0.0.1", port, Duration::from_secs(1));
    let error = joined.err().expect("nobody else comes").to_string();
    assert!(
        error.starts_with("rank 0 of 2: join failed in phase 'start': "),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(20));
}
