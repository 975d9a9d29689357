//! The balance loss beside transformers, and the same however a batch is cut.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arch::ModelConfig;
use model::Weights;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use train::{Branch, Checkpointing, Groups, Policy, PolicyConfig, Unit};

use crate::cases::{self, Algorithm};
use crate::models::{mixtral, qwen, ratio};

#[derive(Deserialize)]
struct Expected {
    sequences: Vec<Vec<u32>>,
    balance: Balance,
}

#[derive(Deserialize)]
struct Balance {
    loss: f64,
    grad_norm: BTreeMap<String, f64>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/models")
        .join(name)
}

/// Sequences of which every token after the first is predicted.
fn units(sequences: &[Vec<u32>]) -> Vec<Unit> {
    let unit = |tokens: &Vec<u32>| Unit {
        branches: vec![Branch {
            mask: (0..tokens.len()).map(|i| i > 0).collect(),
            tokens: tokens.clone(),
        }],
        ..Unit::default()
    };
    sequences.iter().map(unit).collect()
}

#[test]
fn loss_and_gradient_are_those_of_transformers() {
    for name in ["mixtral", "qwen3-moe", "qwen3-moe-sparse-step"] {
        let text = std::fs::read_to_string(golden(name).join("expected.json")).expect("a fixture");
        let want: Expected = serde_json::from_str(&text).expect("a fixture");
        let config = ModelConfig::from_dir(&golden(name)).expect("a configuration");
        let weights =
            Weights::load(&golden(name), &config, Kind::Double, Device::Cpu).expect("weights");
        let coefficient = 0.5;
        let mut policy = Policy::new(
            config,
            weights,
            PathBuf::new(),
            PolicyConfig {
                kind: Kind::Double,
                router_aux_loss_coef: coefficient,
                microbatch_tokens: 50,
                ..PolicyConfig::default()
            },
            Groups::solo(),
        )
        .expect("a policy");
        let got = policy
            .accumulate_known(&units(&want.sequences), &|_, _, _| 0.0, None)
            .expect("a step");
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
        assert!(
            near(got.metrics.get("train/aux_loss"), want.balance.loss),
            "{name}"
        );
        assert!(near(got.loss, coefficient * want.balance.loss), "{name}");
        assert_eq!(got.balance, got.loss, "{name}");
        for (param, norm) in &want.balance.grad_norm {
            let grad = policy.grads().get(param).expect("a parameter");
            let grad = grad.norm().double_value(&[]) / coefficient;
            // experts of the last layer have no part in it
            assert!(
                near(grad, *norm) || (grad == 0.0 && *norm == 0.0),
                "{name} {param}: {grad} beside {norm}"
            );
        }
    }
}

/// Loss, metrics and gradients of one batch.
type Step = (f64, BTreeMap<String, f64>, Vec<(String, Tensor)>);

fn step(model: &ModelConfig, algorithm: Algorithm, config: PolicyConfig) -> Step {
    let units = cases::units(algorithm, 9, 4);
    let loss = cases::loss(algorithm, &units);
    let mut policy = cases::policy(model, config);
    let got = policy.accumulate(&units, &loss).expect("a step");
    let grads = policy.grads().iter();
    let grads = grads.map(|(name, grad)| (name.to_owned(), grad.copy()));
    let metrics = got.metrics.0.into_iter();
    let experts = metrics.filter(|(name, _)| name.contains("expert") || name.contains("aux"));
    (got.loss, experts.collect(), grads.collect())
}

#[test]
fn it_does_not_depend_on_how_a_batch_is_cut() {
    for model in [mixtral(), qwen()] {
        for algorithm in [Algorithm::Sft, Algorithm::Grpo] {
            let config = |tokens, share_prefix, checkpointing| PolicyConfig {
                kind: Kind::Double,
                router_aux_loss_coef: 0.3,
                microbatch_tokens: tokens,
                share_prefix,
                checkpointing,
                ..PolicyConfig::default()
            };
            let whole = step(&model, algorithm, config(4096, true, Checkpointing::None));
            assert_eq!(whole.1.len(), 3, "{:?}", whole.1);
            let off = PolicyConfig {
                router_aux_loss_coef: 0.0,
                ..config(4096, true, Checkpointing::None)
            };
            let without = step(&model, algorithm, off);
            assert!((whole.0 - without.0 - 0.3 * whole.1["train/aux_loss"]).abs() < 1e-9);
            for config in [
                config(40, true, Checkpointing::Full),
                config(1, false, Checkpointing::Selective),
            ] {
                let cut = step(&model, algorithm, config);
                assert!((cut.0 - whole.0).abs() < 1e-9, "{} {}", cut.0, whole.0);
                for (name, value) in &whole.1 {
                    assert!((cut.1[name] - value).abs() < 1e-9, "{name}");
                }
                let pairs = whole.2.iter().zip(&cut.2).zip(&without.2);
                let mut pulled = false;
                for (((name, want), (_, got)), (_, without)) in pairs {
                    let off = ratio(got, want);
                    assert!(off < 1e-9, "{name}: {off:e}");
                    pulled |= ratio(without, want) > 1e-3;
                }
                assert!(pulled, "the loss has no gradient");
            }
        }
    }
}

#[test]
fn a_model_without_experts_has_no_load_to_balance() {
    let config = PolicyConfig {
        router_aux_loss_coef: 0.01,
        ..PolicyConfig::default()
    };
    let model = cases::tied();
    let weights = cases::weights(&model, Kind::Float);
    let policy = Policy::new(model, weights, PathBuf::new(), config, Groups::solo());
    let error = policy.err().expect("refused").to_string();
    assert!(
        error.contains("router_aux_loss_coef is 0.01, but this qwen3 has no experts"),
        "{error}"
    );
}
