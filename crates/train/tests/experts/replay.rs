//! Replayed routing: tokens go where they are told, and only there.

use arch::ModelConfig;
use tch::Kind;
use train::{Policy, PolicyConfig, Replay, Unit};

use crate::cases::{self, Algorithm};
use crate::models::{mixtral, qwen};

fn policy(model: &ModelConfig, tokens: usize, share_prefix: bool) -> Policy {
    let config = PolicyConfig {
        kind: Kind::Double,
        microbatch_tokens: tokens,
        share_prefix,
        ..PolicyConfig::default()
    };
    cases::policy(model, config)
}

/// Ids from `from` on, a different set for each token and layer.
fn told(units: &[Unit], model: &ModelConfig, from: usize) -> Vec<Unit> {
    let experts = model.experts.as_ref().expect("experts");
    let layers = experts.choices() / experts.per_token;
    let ids = |tokens: &[u32], place: usize| -> Vec<u16> {
        let of = |(i, token): (usize, &u32)| {
            let start = from + place + i + *token as usize;
            (0..layers).flat_map(move |layer| {
                let expert = move |j| ((start * (layer + 1) + j) % experts.count) as u16;
                (0..experts.per_token).map(expert)
            })
        };
        tokens.iter().enumerate().flat_map(of).collect()
    };
    let mut units = units.to_vec();
    for unit in &mut units {
        let branches = unit.branches.iter();
        unit.replay = Some(Replay {
            prefix: ids(&unit.prefix, 0),
            branches: branches
                .map(|b| ids(&b.tokens, unit.prefix.len()))
                .collect(),
        });
    }
    units
}

#[test]
fn what_is_told_holds_however_rows_are_laid_out() {
    for model in [mixtral(), qwen()] {
        for algorithm in [Algorithm::Sft, Algorithm::Grpo] {
            let units = cases::units(algorithm, 6, 9);
            let first = told(&units, &model, 0);
            let values = |tokens, share, units: &[Unit]| {
                let policy = policy(&model, tokens, share);
                policy.logprobs(units).expect("values").concat().concat()
            };
            let off = |a: &[f32], b: &[f32]| {
                let each = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                each.fold(0f32, f32::max)
            };
            let (want, free) = (values(4096, true, &first), values(4096, true, &units));
            assert!(off(&want, &free) > 1e-3, "the routers would have chosen so");
            assert!(off(&want, &values(4096, true, &told(&units, &model, 1))) > 1e-3);
            for (tokens, share) in [(30, true), (4096, false), (1, false)] {
                assert!(off(&want, &values(tokens, share, &first)) < 1e-6);
            }
            // gradients reach the router at the ids told, and only those experts
            let mut policy = policy(&model, 50, true);
            let loss = cases::loss(algorithm, &first);
            policy.accumulate(&first, &loss).expect("a step");
            let norm = policy.grads().norm().expect("alone");
            assert!(norm.is_finite() && norm > 0.0);
        }
    }
}

#[test]
fn one_expert_alone_gets_all_and_the_others_nothing() {
    let mut model = mixtral();
    let experts = model.experts.as_mut().expect("experts");
    experts.per_token = 1;
    let mut units = cases::units(Algorithm::Sft, 3, 2);
    for unit in &mut units {
        unit.replay = Some(Replay {
            prefix: vec![],
            branches: vec![vec![2; unit.branches[0].tokens.len() * 2]],
        });
    }
    let mut policy = policy(&model, 50, true);
    policy
        .accumulate_known(&units, &|_, _, _| 1.0, None)
        .expect("a step");
    for (name, grad) in policy
        .grads()
        .iter()
        .filter(|(name, _)| name.contains("experts"))
    {
        let zero = grad.norm().double_value(&[]) == 0.0;
        assert_eq!(zero, !name.contains("experts.2."), "{name}");
    }
}

#[test]
fn a_replay_that_does_not_fit_is_refused() {
    let model = qwen();
    let units = told(&cases::units(Algorithm::Grpo, 2, 3), &model, 0);
    let refused = |model: &ModelConfig, change: &dyn Fn(&mut Vec<Unit>)| {
        let mut units = units.clone();
        change(&mut units);
        let error = policy(model, 50, true).logprobs(&units).err();
        error.expect("refused").to_string()
    };
    let replay = |units: &mut Vec<Unit>, change: &dyn Fn(&mut Replay)| {
        change(units[1].replay.as_mut().expect("told"));
    };
    for (change, says) in [
        (
            &(|u: &mut Vec<Unit>| u[1].replay = None) as &dyn Fn(&mut Vec<Unit>),
            "some units of the batch replay their routing and some do not",
        ),
        (
            &|u| replay(u, &|r| r.prefix.truncate(3)),
            "3 expert ids for",
        ),
        (
            &|u| replay(u, &|r| r.branches.iter_mut().for_each(|b| b.truncate(1))),
            "1 expert ids for",
        ),
        (
            &|u| replay(u, &|r| r.branches.truncate(1)),
            "a routing to replay for 1 branches of 4",
        ),
        (
            &|u| replay(u, &|r| r.prefix[0] = 5),
            "expert 5 of a layer that has 5",
        ),
    ] {
        let error = refused(&model, change);
        assert!(error.contains(says), "{error}\nwanted: {says}");
    }
    let dense = refused(&cases::tied(), &|_| {});
    assert!(dense.contains("the model has no experts"), "{dense}");
}
