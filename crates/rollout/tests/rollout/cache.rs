//! Sharing, pressure and versions of the KV cache never show in a sample.

use crate::common::{model, requests};
use rollout::{Error, Request, Rollout, RolloutConfig, Sample, Sampling};
use tch::Kind;

fn sizes(cache_tokens: usize) -> RolloutConfig {
    RolloutConfig {
        cache_tokens,
        ..RolloutConfig::default()
    }
}

#[test]
fn a_groups_prompt_is_computed_once() {
    let (decoder, weights) = model(Kind::Float);
    let prompt: Vec<u32> = (0..45).map(|i| i * 3 % 97).collect();
    let sampling = Sampling {
        max_tokens: 20,
        ignore_eos: true,
        ..Sampling::default()
    };
    let request = |samples| Request {
        id: 4,
        prompt: prompt.clone(),
        samples,
        sampling: sampling.clone(),
    };
    let mut rollout = Rollout::new(&decoder, &weights, sizes(4096)).unwrap();
    let group = rollout.run_all(vec![request(8)]).unwrap();
    assert_eq!(
        rollout.stats().rows,
        45 + 8 * 19,
        "the prompt once, then one row a token"
    );

    // unshared: a longer and longer group is computed afresh, its last sample being the new one
    for n in 1..=8 {
        let mut fresh = Rollout::new(&decoder, &weights, sizes(4096)).unwrap();
        assert_eq!(fresh.run_all(vec![request(n)]).unwrap(), group[..n]);
    }
}

#[test]
fn pressure_queues_and_preempts_without_changing_samples() {
    let (decoder, weights) = model(Kind::Float);
    let mut roomy = Rollout::new(&decoder, &weights, sizes(8192)).unwrap();
    let expected = roomy.run_all(requests(30)).unwrap();
    assert_eq!(roomy.stats().preempted, 0);
    for tokens in [96, 112, 160, 400] {
        for max_rows in [1024, 6] {
            let config = RolloutConfig {
                max_rows,
                ..sizes(tokens)
            };
            let mut tight = Rollout::new(&decoder, &weights, config).unwrap();
            assert!(
                tight.run_all(requests(30)).unwrap() == expected,
                "{tokens} tokens, {max_rows} rows"
            );
            assert!(
                tokens > 200 || tight.stats().preempted > 0,
                "{tokens} tokens are no pressure"
            );
        }
    }
}

#[test]
fn prefixes_are_reused_across_requests_and_rollouts_but_not_across_weights() {
    let (decoder, mut weights) = model(Kind::Float);
    let sampling = Sampling {
        max_tokens: 40,
        ..Sampling::default()
    };
    let first = Request {
        id: 1,
        prompt: (0..50).collect(),
        samples: 1,
        sampling,
    };
    let continued = |s: &Sample| {
        let prompt = [first.prompt.as_slice(), &s.tokens, &[3, 1, 4, 1, 5]].concat();
        Request {
            id: 2,
            prompt,
            ..first.clone()
        }
    };
    let fresh = |weights: &model::Weights, r: Request| {
        Rollout::new(&decoder, weights, sizes(2048))
            .unwrap()
            .run_all(vec![r])
            .unwrap()
    };

    let mut rollout = Rollout::new(&decoder, &weights, sizes(2048)).unwrap();
    let turn = rollout.run_all(vec![first.clone()]).unwrap().remove(0);
    let second = continued(&turn);
    let expected = fresh(&weights, second.clone());
    assert!(rollout.run_all(vec![second.clone()]).unwrap() == expected);
    let reused = rollout.stats().reused;
    assert!(
        reused >= 80,
        "prompt and completion of the first turn are found: {reused}"
    );

    // the next rollout of the same weights finds them too
    let cache = rollout.into_cache();
    let mut rollout = Rollout::with_cache(&decoder, &weights, sizes(2048), cache).unwrap();
    assert!(rollout.run_all(vec![second.clone()]).unwrap() == expected);
    assert!(rollout.stats().reused >= reused);

    // other values of the same weights, changed in place: nothing is found
    let cache = rollout.into_cache();
    let name = "model.layers.0.self_attn.k_proj.weight";
    tch::no_grad(|| {
        let _ = weights.get(name).shallow_clone().g_mul_scalar_(1.5);
    });
    weights.version += 1;
    let mut rollout = Rollout::with_cache(&decoder, &weights, sizes(2048), cache).unwrap();
    let changed = rollout.run_all(vec![second.clone()]).unwrap();
    assert_eq!(rollout.stats().reused, 0);
    assert_eq!(changed[0].weights_version, weights.version);
    assert!(
        changed == fresh(&weights, second.clone()) && changed[0].logprobs != expected[0].logprobs
    );

    // also when nobody raised the version, and for other tensors with the same version
    let cache = rollout.into_cache();
    tch::no_grad(|| {
        let _ = weights.get(name).shallow_clone().g_mul_scalar_(0.5);
    });
    let mut rollout = Rollout::with_cache(&decoder, &weights, sizes(2048), cache).unwrap();
    rollout.run_all(vec![second.clone()]).unwrap();
    assert_eq!(rollout.stats().reused, 0);
    let cache = rollout.into_cache();
    let (_, mut other) = model(Kind::Float);
    other.version = weights.version;
    let mut rollout = Rollout::with_cache(&decoder, &other, sizes(2048), cache).unwrap();
    rollout.run_all(vec![second]).unwrap();
    assert_eq!(rollout.stats().reused, 0);
}

#[test]
fn weights_that_change_during_a_rollout_are_refused() {
    let (decoder, weights) = model(Kind::Float);
    let mut rollout = Rollout::new(&decoder, &weights, sizes(2048)).unwrap();
    rollout.submit(requests(2).remove(1)).unwrap();
    rollout.step().unwrap();
    tch::no_grad(|| {
        let _ = weights
            .get("model.norm.weight")
            .shallow_clone()
            .g_mul_scalar_(2.0);
    });
    let error = rollout.step().unwrap_err();
    assert!(matches!(error, Error::WeightsChanged { .. }), "{error}");
    assert!(rollout.is_idle());
}

#[test]
fn requests_that_cannot_be_served_are_refused_by_name() {
    let (decoder, weights) = model(Kind::Float);
    let mut rollout = Rollout::new(&decoder, &weights, sizes(64)).unwrap();
    let good = Request {
        id: 9,
        prompt: vec![1, 2],
        samples: 1,
        sampling: Sampling {
            max_tokens: 4,
            ..Sampling::default()
        },
    };
    let with = |f: &dyn Fn(&mut Request)| {
        let mut r = good.clone();
        f(&mut r);
        r
    };
    let cases = [
        (with(&|r| r.prompt.clear()), "empty prompt"),
        (with(&|r| r.samples = 0), "0 samples"),
        (with(&|r| r.prompt.push(97)), "token 97"),
        (with(&|r| r.sampling.max_tokens = 600), "512 positions"),
        (
            with(&|r| r.sampling.max_tokens = 90),
            "the 64 that the cache holds",
        ),
        (with(&|r| r.sampling.max_tokens = 0), "max_tokens = 0"),
        (with(&|r| r.sampling.temperature = -1.0), "temperature = -1"),
        (
            with(&|r| r.sampling.temperature = f64::NAN),
            "temperature = NaN",
        ),
        (with(&|r| r.sampling.top_p = 0.0), "top_p = 0"),
        (
            with(&|r| r.sampling.stop = vec!["x".into()]),
            "no tokenizer",
        ),
        (with(&|r| r.sampling.stop = vec!["".into()]), "stop = \"\""),
    ];
    for (request, part) in cases {
        let error = rollout
            .run_all(vec![good.clone(), request])
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "'{error}' should speak of '{part}'");
        assert!(rollout.is_idle(), "nothing is queued");
    }
    assert_eq!(rollout.run_all(vec![good]).unwrap().len(), 1);
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let (decoder, weights) = model(Kind::Float);
    tch::no_grad(|| {
        let _ = weights
            .get("model.norm.weight")
            .shallow_clone()
            .fill_(f64::NAN);
    });
    let mut rollout = Rollout::new(&decoder, &weights, sizes(2048)).unwrap();
    let error = rollout.run_all(requests(3)).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    assert!(rollout.is_idle());
}
