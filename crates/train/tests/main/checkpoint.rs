//! A restored run goes on as the uninterrupted one, bit for bit.

use std::path::Path;

use tch::Kind;
use train::{CheckpointState, Optimizer, OptimizerConfig, Policy, PolicyConfig};

use crate::cases::{self, Algorithm};

fn config(kind: Kind) -> PolicyConfig {
    PolicyConfig {
        kind,
        microbatch_tokens: 60,
        skip_limit: 3,
        ..PolicyConfig::default()
    }
}

fn step(policy: &mut Policy, optimizer: &mut Optimizer, at: u64) {
    let units = cases::units(Algorithm::Dpo, 5, 100 + at);
    let loss = cases::loss(Algorithm::Dpo, &units);
    policy.accumulate(&units, &loss).expect("a step");
    policy.apply(optimizer, 0.01).expect("finite");
}

fn same(a: &Policy, b: &Policy) -> bool {
    let equal = |a: &model::Weights, b: &model::Weights| {
        a.iter()
            .all(|(name, t)| t.kind() == b.get(name).kind() && t.equal(b.get(name)))
    };
    equal(a.masters(), b.masters()) && equal(a.weights(), b.weights())
}

#[test]
fn a_restored_run_equals_the_uninterrupted_one() {
    let model = cases::tied();
    let sgd = OptimizerConfig::Sgd {
        momentum: 0.9,
        weight_decay: 0.1,
    };
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
        for optimizer in [OptimizerConfig::default(), sgd] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut policy = cases::policy(&model, config(kind));
            let mut opt = Optimizer::new(optimizer, Some(1.0));
            (0..2).for_each(|at| step(&mut policy, &mut opt, at));
            let state = CheckpointState {
                step: 2,
                cursor: 10,
                extra: serde_json::json!({"kept": [1, 0.1]}),
            };
            policy
                .save_checkpoint(dir.path(), &opt, &state)
                .expect("written");
            (2..5).for_each(|at| step(&mut policy, &mut opt, at));

            let mut again = cases::policy(&model, config(kind));
            let mut opt = Optimizer::new(optimizer, Some(1.0));
            let version = again.weights().version;
            assert_eq!(
                again.load_checkpoint(dir.path(), &mut opt).expect("read"),
                state
            );
            assert!(again.weights().version > version);
            assert_eq!(opt.updates(), 2);
            assert!(!same(&policy, &again));
            (2..5).for_each(|at| step(&mut again, &mut opt, at));
            assert!(same(&policy, &again), "{kind:?} {optimizer:?}");
        }
    }
}

fn refused(
    dir: &Path,
    model: &arch::ModelConfig,
    optimizer: OptimizerConfig,
    kind: Kind,
) -> String {
    let mut policy = cases::policy(model, config(kind));
    let untouched = cases::policy(model, config(kind));
    let mut optimizer = Optimizer::new(optimizer, None);
    let error = policy
        .load_checkpoint(dir, &mut optimizer)
        .expect_err("refused")
        .to_string();
    assert!(same(&policy, &untouched) && optimizer.updates() == 0);
    error
}

#[test]
fn what_does_not_belong_is_refused_and_changes_nothing() {
    let model = cases::tied();
    let dir = tempfile::tempdir().expect("a directory");
    let mut policy = cases::policy(&model, config(Kind::Float));
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), None);
    step(&mut policy, &mut optimizer, 0);
    let state = CheckpointState::default();
    policy
        .save_checkpoint(dir.path(), &optimizer, &state)
        .expect("written");
    let adamw = OptimizerConfig::default();
    let sgd = OptimizerConfig::Sgd {
        momentum: 0.0,
        weight_decay: 0.0,
    };
    let at = dir.path();
    assert!(
        refused(at, &cases::untied(), adamw, Kind::Float).contains("another model: 'model_type'")
    );
    assert!(refused(at, &model, sgd, Kind::Float).contains("optimizer AdamW"));
    assert!(refused(at, &model, adamw, Kind::BFloat16).contains("dtype Float"));
    for name in [
        "optimizer-0.safetensors",
        "weights-0.safetensors",
        "state.json",
    ] {
        let path = at.join(name);
        let bytes = std::fs::read(&path).expect("written");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("cut short");
        assert!(
            refused(at, &model, adamw, Kind::Float).contains(name),
            "{name}"
        );
        std::fs::remove_file(&path).expect("there");
        assert!(
            refused(at, &model, adamw, Kind::Float).contains(name),
            "{name}"
        );
        std::fs::write(&path, &bytes).expect("restored");
    }
    policy
        .load_checkpoint(at, &mut optimizer)
        .expect("whole again");
}

#[test]
fn an_exported_directory_loads_as_the_same_policy() {
    let model = cases::tied();
    let (source, out) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("one"),
    );
    std::fs::write(source.path().join("tokenizer.json"), "{}").expect("written");
    let collective = train::Groups::solo();
    let weights = cases::weights(&model, Kind::Float);
    let source = source.path().to_owned();
    let mut policy = Policy::new(
        model.clone(),
        weights,
        source,
        config(Kind::Float),
        collective.clone(),
    )
    .expect("good");
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), None);
    step(&mut policy, &mut optimizer, 0);
    policy.export(out.path(), None).expect("written");
    assert!(out.path().join("tokenizer.json").exists());
    let again = Policy::load(out.path(), config(Kind::Float), collective).expect("read");
    assert!(same(&policy, &again));
}
