//! The engine's gradients equal plain autograd's, however the batch is placed.

use arch::ModelConfig;
use model::{Decoder, Layout};
use parallel::{Engine, Grads, Inside, Microbatch, Moe, Whole};
use tch::{Kind, Tensor};
use train::{Checkpointing, Entropy, LossOut, Policy, PolicyConfig};

use crate::cases::{self, ALGORITHMS, Algorithm, ratio};
use crate::plain::{self, Plain};

/// Placements: each changes rounding at most.
fn placements(kind: Kind) -> Vec<PolicyConfig> {
    let base = PolicyConfig {
        kind,
        microbatch_tokens: 4096,
        ..PolicyConfig::default()
    };
    vec![
        base.clone(),
        PolicyConfig {
            checkpointing: Checkpointing::Full,
            ..base.clone()
        },
        PolicyConfig {
            checkpointing: Checkpointing::Selective,
            ..base.clone()
        },
        PolicyConfig {
            share_prefix: false,
            ..base.clone()
        },
        PolicyConfig {
            head_chunk: Some(5),
            ..base.clone()
        },
        // accumulation: several microbatches, then one per unit
        PolicyConfig {
            microbatch_tokens: 70,
            ..base.clone()
        },
        PolicyConfig {
            microbatch_tokens: 1,
            checkpointing: Checkpointing::Full,
            head_chunk: Some(1),
            ..base.clone()
        },
        PolicyConfig {
            microbatch_tokens: 33,
            share_prefix: false,
            head_chunk: Some(7),
            ..base
        },
    ]
}

fn compare(policy: &Policy, got_loss: f64, plain: &Plain, tolerance: f64, what: &str) {
    let off = (got_loss - plain.loss).abs();
    assert!(
        off <= tolerance * plain.loss.abs().max(1.0),
        "{what}: loss {got_loss}, {}",
        plain.loss
    );
    assert_eq!(policy.grads().iter().count(), plain.grads.len(), "{what}");
    for (name, grad) in policy.grads().iter() {
        let off = ratio(&grad, &plain.grads[name]);
        assert!(
            off <= tolerance,
            "{what}: gradient of {name} is off by {off:e}"
        );
    }
}

fn equals_plain(models: &[ModelConfig], kind: Kind, tolerance: f64) {
    for model in models {
        for algorithm in ALGORITHMS {
            let units = cases::units(algorithm, 20, 12);
            let loss = cases::loss(algorithm, &units);
            let plain = plain::gradients(model, &cases::weights(model, kind), &units, 1.0, &loss);
            for config in placements(kind) {
                let what = format!("{} {algorithm:?} {config:?}", model.family.model_type);
                let mut policy = cases::policy(model, config);
                let got = policy.accumulate(&units, &loss).expect(&what);
                compare(&policy, got.loss, &plain, tolerance, &what);
            }
        }
    }
}

#[test]
fn gradients_equal_plain_autograd_in_fp32() {
    equals_plain(&[cases::tied(), cases::untied()], Kind::Float, 1e-6);
}

#[test]
fn gradients_equal_plain_autograd_in_fp64() {
    equals_plain(
        &[cases::tied(), cases::untied(), cases::biased()],
        Kind::Double,
        1e-10,
    );
}

/// Gradients by name, of a walk over segments cut at these indices.
fn walk_in_pieces(engine: &Engine, batch: &Microbatch, cuts: &[usize]) -> (Tensor, Grads) {
    let mut edges = vec![0];
    edges.extend(cuts);
    edges.push(engine.decoder.segments.len());
    let mut boundary = batch.tokens.shallow_clone();
    let mut walks = Vec::new();
    for edge in edges.windows(2) {
        assert_eq!(boundary.size()[0], engine.boundary_rows(edge[0], batch));
        let range = edge[0]..edge[1];
        let walk = engine.forward_range(range.clone(), boundary.shallow_clone(), batch);
        let walk = walk.expect("a forward");
        let plain = engine
            .infer_range(range, boundary, batch)
            .expect("the same");
        assert!(plain.equal(walk.output()));
        boundary = walk.output().shallow_clone();
        walks.push(walk);
    }
    let params = engine.decoder.config.params().into_iter();
    let shape = |s: &[usize]| s.iter().map(|&n| n as i64).collect();
    let params = params.map(|p| (p.name, shape(&p.shape)));
    let mut grads = Grads::new(params, Kind::Float, boundary.device());
    let mut d = Some(&boundary * 0.3 - 0.1);
    for walk in walks.into_iter().rev() {
        let d_output = d.expect("only token ids have no gradient");
        d = walk.backward(d_output, &mut grads).expect("a backward");
    }
    assert!(d.is_none());
    (boundary, grads)
}

#[test]
fn ranges_of_segments_give_the_bits_of_all_at_once() {
    for model in [cases::tied(), cases::untied()] {
        let weights = cases::weights(&model, Kind::Float);
        let decoder = Decoder::new(model);
        let batch = Microbatch {
            tokens: Tensor::from_slice(&[5i64, 1, 7, 7, 0, 3, 2, 9, 4]),
            layout: Layout::sequences(&[4, 3, 2]),
            keep: Some(Tensor::from_slice(&[1i64, 1, 6, 8])),
            routes: None,
        };
        for checkpointing in [
            Checkpointing::None,
            Checkpointing::Selective,
            Checkpointing::Full,
        ] {
            let engine = Engine {
                decoder: &decoder,
                parameters: &Whole(&weights),
                ops: &kernels::Fused,
                inside: &Inside::solo(),
                checkpointing,
                moe: &Moe::default(),
            };
            let (want, whole) = walk_in_pieces(&engine, &batch, &[]);
            let last = decoder.segments.len() - 1;
            for cuts in (1..=last)
                .map(|c| vec![c])
                .chain([vec![1, 2, last], vec![3, 3]])
            {
                let (got, pieces) = walk_in_pieces(&engine, &batch, &cuts);
                assert!(got.equal(&want), "{cuts:?}");
                assert_eq!(pieces.iter().count(), whole.iter().count());
                for (name, grad) in pieces.iter() {
                    let want = whole.get(name).expect("the same parameters");
                    assert!(grad.equal(&want), "{cuts:?}: {name}");
                }
            }
        }
    }
}

#[test]
fn entropy_and_temperature_are_differentiated() {
    let model = cases::tied();
    let units = cases::units(Algorithm::Grpo, 4, 5);
    let loss = |t: &train::Tokens| {
        let each = &t.logp * 0.3 + &t.entropy * &t.entropy * 0.2;
        Ok(LossOut {
            loss: each.sum(each.kind()),
            metrics: vec![],
        })
    };
    let weights = cases::weights(&model, Kind::Double);
    let plain = plain::gradients(&model, &weights, &units, 0.7, &loss);
    for head_chunk in [None, Some(3)] {
        let mut policy = cases::policy(
            &model,
            PolicyConfig {
                kind: Kind::Double,
                temperature: 0.7,
                entropy: Entropy::Differentiable,
                head_chunk,
                ..PolicyConfig::default()
            },
        );
        let got = policy.accumulate(&units, &loss).expect("a step");
        compare(&policy, got.loss, &plain, 1e-10, "entropy");
    }
}

#[test]
fn known_coefficients_give_the_same_gradients_in_one_pass() {
    let model = cases::tied();
    let units = cases::units(Algorithm::Grpo, 6, 9);
    let coefficient = |u: usize, b: usize, i: usize| ((u * 7 + b * 3 + i) as f64).sin() * 0.1;
    let loss = |t: &train::Tokens| {
        let mut c = Vec::new();
        for span in t.units {
            for (b, range) in span.branches.iter().enumerate() {
                c.extend((0..range.len()).map(|i| coefficient(span.unit, b, i)));
            }
        }
        let c = tch::Tensor::from_slice(&c).to_kind(t.logp.kind());
        Ok(LossOut {
            loss: (&t.logp * c).sum(t.logp.kind()),
            metrics: vec![],
        })
    };
    for head_chunk in [None, Some(4)] {
        let config = PolicyConfig {
            head_chunk,
            kind: Kind::Double,
            ..PolicyConfig::default()
        };
        let mut two = cases::policy(&model, config.clone());
        let a = two.accumulate(&units, &loss).expect("a step");
        let mut one = cases::policy(&model, config);
        let observe = |t: &train::Tokens| {
            Ok(vec![(
                "entropy",
                t.entropy.sum(Kind::Double).double_value(&[]),
            )])
        };
        let b = one
            .accumulate_known(&units, &coefficient, Some(&observe))
            .expect("a step");
        assert!((a.loss - b.loss).abs() < 1e-12);
        assert!(b.metrics.get("entropy") > 0.0);
        for (name, grad) in one.grads().iter() {
            let off = ratio(&grad, &two.grads().get(name).expect("the same names"));
            assert!(off < 1e-13, "{name} {off:e}");
        }
    }
}

#[test]
fn logprobs_are_those_of_training_and_of_plain_autograd() {
    for model in [cases::tied(), cases::untied()] {
        for algorithm in ALGORITHMS {
            let units = cases::units(algorithm, 6, 21);
            let loss = cases::loss(algorithm, &units);
            let weights = cases::weights(&model, Kind::Float);
            let plain = plain::gradients(&model, &weights, &units, 1.0, &loss);
            for config in placements(Kind::Float) {
                let mut policy = cases::policy(&model, config);
                let got = policy.logprobs(&units).expect("log-probabilities");
                for (unit, values) in units.iter().zip(&got) {
                    let counts: Vec<usize> = values.iter().map(Vec::len).collect();
                    let masked: Vec<usize> = unit.branches.iter().map(|b| b.masked()).collect();
                    assert_eq!(counts, masked);
                }
                let flat: Vec<f32> = got.iter().flatten().flatten().copied().collect();
                for (a, b) in flat.iter().zip(&plain.logp) {
                    assert!((f64::from(*a) - b).abs() < 2e-5, "{a} {b}");
                }
                // with old = logprobs, the ratio in training is exactly one
                let exact = |t: &train::Tokens| {
                    for span in t.units {
                        for (branch, range) in span.branches.iter().enumerate() {
                            for (i, at) in range.clone().enumerate() {
                                let trained = t.logp.double_value(&[at as i64]) as f32;
                                let recorded = got[span.unit][branch][i];
                                assert_eq!(trained.to_bits(), recorded.to_bits());
                            }
                        }
                    }
                    Ok(LossOut {
                        loss: t.logp.sum(t.logp.kind()),
                        metrics: vec![],
                    })
                };
                policy.accumulate(&units, &exact).expect("a step");
            }
        }
    }
}
