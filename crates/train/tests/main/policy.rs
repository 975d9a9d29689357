//! Updates: the optimizers' formulas, clipping, the guard, bf16 compute over fp32 masters.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use train::{Branch, Error, LossOut, Meter, Optimizer, OptimizerConfig, PolicyConfig, Unit};

use crate::cases::{self, Algorithm, ratio};

fn double() -> PolicyConfig {
    PolicyConfig {
        kind: Kind::Double,
        ..PolicyConfig::default()
    }
}

fn copy(policy: &train::Policy) -> BTreeMap<String, Tensor> {
    policy
        .masters()
        .iter()
        .map(|(name, t)| (name.to_owned(), t.copy()))
        .collect()
}

fn grads(policy: &train::Policy) -> BTreeMap<String, Tensor> {
    policy
        .grads()
        .iter()
        .map(|(name, t)| (name.to_owned(), t.copy()))
        .collect()
}

#[test]
fn adamw_follows_its_formula_and_spares_norms_and_biases() {
    let model = cases::biased();
    let units = cases::units(Algorithm::Sft, 5, 3);
    let loss = cases::loss(Algorithm::Sft, &units);
    let mut policy = cases::policy(&model, double());
    let (beta1, beta2, eps, weight_decay, lr) = (0.8, 0.95, 1e-6, 0.3, 0.01);
    let config = OptimizerConfig::AdamW {
        beta1,
        beta2,
        eps,
        weight_decay,
    };
    let mut optimizer = Optimizer::new(config, None);
    let mut want = copy(&policy);
    let mut m: BTreeMap<String, Tensor> = want
        .iter()
        .map(|(n, t)| (n.clone(), t.zeros_like()))
        .collect();
    let mut v: BTreeMap<String, Tensor> = want
        .iter()
        .map(|(n, t)| (n.clone(), t.zeros_like()))
        .collect();
    for step in 1..=3 {
        policy.accumulate(&units, &loss).expect("a step");
        for (name, g) in grads(&policy) {
            let decay = if name.contains("norm") || name.ends_with("bias") {
                0.0
            } else {
                weight_decay
            };
            let (m, v) = (
                m.get_mut(&name).expect("known"),
                v.get_mut(&name).expect("known"),
            );
            *m = &*m * beta1 + &g * (1.0 - beta1);
            *v = &*v * beta2 + &g * &g * (1.0 - beta2);
            let mhat = &*m / (1.0 - f64::powi(beta1, step));
            let vhat = &*v / (1.0 - f64::powi(beta2, step));
            let w = want.get_mut(&name).expect("known");
            *w = &*w * (1.0 - lr * decay) - mhat / (vhat.sqrt() + eps) * lr;
        }
        policy.apply(&mut optimizer, lr).expect("finite");
    }
    for (name, t) in policy.masters().iter() {
        assert!(
            ratio(t, &want[name]) < 1e-12,
            "{name}: {:e}",
            ratio(t, &want[name])
        );
    }
}

#[test]
fn sgd_follows_its_formula_and_clipping_bounds_the_norm() {
    let model = cases::tied();
    let units = cases::units(Algorithm::Dpo, 4, 3);
    let loss = cases::loss(Algorithm::Dpo, &units);
    let mut policy = cases::policy(&model, double());
    let config = OptimizerConfig::Sgd {
        momentum: 0.5,
        weight_decay: 0.0,
    };
    let mut optimizer = Optimizer::new(config, Some(0.01));
    let mut want = copy(&policy);
    let mut velocity: BTreeMap<String, Tensor> = want
        .iter()
        .map(|(n, t)| (n.clone(), t.zeros_like()))
        .collect();
    for _ in 0..3 {
        policy.accumulate(&units, &loss).expect("a step");
        let grads = grads(&policy);
        let squares: f64 = grads
            .values()
            .map(|g| (g * g).sum(Kind::Double).double_value(&[]))
            .sum();
        for (name, g) in grads {
            let v = velocity.get_mut(&name).expect("known");
            *v = &*v * 0.5 + g * (0.01 / squares.sqrt());
            let w = want.get_mut(&name).expect("known");
            *w = &*w - &*v * 0.1;
        }
        let stats = policy.apply(&mut optimizer, 0.1).expect("finite");
        assert!((stats.grad_norm - squares.sqrt()).abs() < 1e-12 * squares.sqrt());
        assert!((stats.clip - 0.01 / squares.sqrt()).abs() < 1e-12);
    }
    for (name, t) in policy.masters().iter() {
        assert!(ratio(t, &want[name]) < 1e-12, "{name}");
    }
}

#[test]
fn a_bad_gradient_changes_nothing_is_counted_and_in_a_row_ends_training() {
    let model = cases::tied();
    let units = cases::units(Algorithm::Sft, 3, 3);
    let good = cases::loss(Algorithm::Sft, &units);
    let bad = |t: &train::Tokens| {
        let loss = t.logp.sum(t.logp.kind()) * f64::NAN;
        Ok(LossOut {
            loss,
            metrics: vec![],
        })
    };
    let mut policy = cases::policy(
        &model,
        PolicyConfig {
            skip_limit: 2,
            ..PolicyConfig::default()
        },
    );
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), Some(1.0));
    for round in 1..=2 {
        let before = copy(&policy);
        let version = policy.weights().version;
        policy.accumulate(&units, &bad).expect("a step");
        let stats = policy.apply(&mut optimizer, 0.1).expect("skipped");
        assert!(stats.skipped && stats.grad_norm.is_nan());
        assert_eq!(stats.skipped_total, round);
        assert_eq!(policy.weights().version, version);
        assert!(
            policy
                .masters()
                .iter()
                .all(|(name, t)| t.equal(&before[name]))
        );
        policy.accumulate(&units, &good).expect("a step");
        assert!(!policy.apply(&mut optimizer, 0.1).expect("finite").skipped);
        assert!(policy.weights().version > version);
        assert_eq!(optimizer.updates(), round);
    }
    policy.accumulate(&units, &bad).expect("a step");
    policy.apply(&mut optimizer, 0.1).expect("skipped");
    policy.accumulate(&units, &bad).expect("a step");
    let error = policy.apply(&mut optimizer, 0.1).expect_err("two in a row");
    assert!(
        matches!(
            error,
            Error::Diverged {
                skipped: 2,
                limit: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn bf16_compute_is_close_and_its_masters_collect_what_bf16_would_lose() {
    let model = cases::tied();
    let units = cases::units(Algorithm::Sft, 8, 3);
    let loss = cases::loss(Algorithm::Sft, &units);
    let mut exact = cases::policy(&model, PolicyConfig::default());
    let mut half = cases::policy(
        &model,
        PolicyConfig {
            kind: Kind::BFloat16,
            ..PolicyConfig::default()
        },
    );
    let a = exact.accumulate(&units, &loss).expect("a step");
    let b = half.accumulate(&units, &loss).expect("a step");
    assert!(
        (a.loss - b.loss).abs() < 0.02 * a.loss,
        "{} {}",
        a.loss,
        b.loss
    );
    for (name, grad) in half.grads().iter() {
        assert_eq!(grad.kind(), Kind::Float, "{name}");
        let off = ratio(&grad, &exact.grads().get(name).expect("the same names"));
        assert!(off < 0.1, "{name} {off}");
    }
    // a step far below bf16's resolution, many times
    let before = half.masters().get("model.norm.weight").copy();
    let compute = half.weights().get("model.norm.weight").copy();
    let mut optimizer = Optimizer::new(
        OptimizerConfig::Sgd {
            momentum: 0.0,
            weight_decay: 0.0,
        },
        None,
    );
    half.apply(&mut optimizer, 1e-4).expect("finite");
    let moved = ratio(half.masters().get("model.norm.weight"), &before);
    assert!(moved > 0.0 && moved < 1e-3, "{moved}");
    assert!(half.weights().get("model.norm.weight").equal(&compute));
    half.accumulate(&units, &loss).expect("a step");
    half.apply(&mut optimizer, 10.0).expect("finite");
    for (name, master) in half.masters().iter() {
        let compute = half.weights().get(name);
        assert_eq!(compute.kind(), Kind::BFloat16);
        assert!(compute.equal(&master.to_kind(Kind::BFloat16)), "{name}");
    }
}

#[test]
fn units_that_cannot_be_computed_are_refused_by_name() {
    let model = cases::tied();
    let policy = cases::policy(&model, PolicyConfig::default());
    let unit = |prefix: Vec<u32>, tokens: Vec<u32>, mask: Vec<bool>| Unit {
        prefix,
        branches: vec![Branch { tokens, mask }],
        ..Unit::default()
    };
    for (bad, says) in [
        (
            unit(vec![1], vec![2, 3], vec![true]),
            "a mask of 1 entries for 2 tokens",
        ),
        (unit(vec![], vec![2], vec![true]), "nothing comes before it"),
        (
            unit(vec![1], vec![61], vec![true]),
            "token id 61 in a vocabulary of 61",
        ),
        (
            unit(vec![1; 250], vec![2; 7], vec![true; 7]),
            "257 tokens in a context of 256",
        ),
    ] {
        let good = unit(vec![1], vec![2], vec![true]);
        let error = policy.logprobs(&[good, bad]).expect_err(says).to_string();
        assert!(
            error.starts_with("unit 1, branch 0: ") && error.contains(says),
            "{error}"
        );
    }
    let kind = Kind::Half;
    let refused = train::Policy::new(
        model.clone(),
        cases::weights(&model, Kind::Float),
        "".into(),
        PolicyConfig {
            kind,
            ..PolicyConfig::default()
        },
        train::Groups::solo(),
    );
    assert!(refused.is_err());
}

#[test]
fn work_counts_a_shared_prefix_once() {
    let model = cases::tied();
    let units = cases::units(Algorithm::Dpo, 3, 3);
    let loss = cases::loss(Algorithm::Dpo, &units);
    let mut policy = cases::policy(&model, PolicyConfig::default());
    let got = policy.accumulate(&units, &loss).expect("a step");
    let tokens: usize = units.iter().map(Unit::tokens).sum();
    assert_eq!(got.work.tokens, tokens as u64);
    let least = 6.0 * policy.decoder().config.matmul_params() as f64 * tokens as f64;
    assert!(got.work.flops > least && got.work.flops < 2.0 * least);
    let peak = got.work.flops * 2.0;
    let meter = Meter {
        peak: peak.into(),
        ranks: 2,
    };
    let rates = meter.rates(got.work, 0.5);
    assert_eq!(
        rates[0],
        ("performance/tokens_per_sec", tokens as f64 / 0.5)
    );
    assert!((rates[2].1 - 0.5).abs() < 1e-12);
    // a step faster than the peak is the peak from then on
    assert_eq!(meter.rates(got.work, 0.125)[2].1, 1.0);
    assert!((meter.rates(got.work, 0.5)[2].1 - 0.25).abs() < 1e-12);
}
