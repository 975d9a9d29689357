//! Tokens that are read one forward late are the tokens that are read at once.

use rollout::{Request, Rollout, RolloutConfig, Sample, Sampling, Stats};
use tch::Kind;

use crate::common::{golden, model, requests};

/// Both ways of reading: samples, as they came out of steps, and what was done.
fn both(
    make: impl Fn(RolloutConfig) -> (Vec<Sample>, Stats),
    sizes: &RolloutConfig,
) -> [(Vec<Sample>, Stats); 2] {
    [false, true].map(|late| {
        make(RolloutConfig {
            late: Some(late),
            ..sizes.clone()
        })
    })
}

#[test]
fn no_sample_shows_when_its_tokens_were_read() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let (decoder, weights) = model(kind);
        let (mut preempted, mut further) = (0, 0);
        for (cache_tokens, max_rows, max_sequences) in [
            (8192, 1024, 256),
            (112, 1024, 256),
            (400, 6, 256),
            (112, 6, 5),
            (400, 1024, 1),
        ] {
            let sizes = RolloutConfig {
                cache_tokens,
                max_rows,
                max_sequences,
                eos: vec![11, 50],
                ..RolloutConfig::default()
            };
            let run = |config| {
                let mut rollout = Rollout::new(&decoder, &weights, config).unwrap();
                let samples = rollout.run_all(requests(30)).unwrap();
                assert!(rollout.is_idle());
                // whatever is left of the last forward is nobody's
                let again = rollout.run_all(requests(3)).unwrap();
                assert!(again == samples[..again.len()]);
                (samples, rollout.stats())
            };
            let [(at_once, stats), (late, later)] = both(run, &sizes);
            assert!(late == at_once, "{kind:?} {sizes:?}");
            assert_eq!(
                later.sampled, stats.sampled,
                "what nobody reads is not counted"
            );
            preempted += later.preempted;
            further += later.rows.saturating_sub(stats.rows);
        }
        assert!(
            preempted > 0,
            "sequences gave way while their tokens were not read"
        );
        assert!(
            further > 0,
            "sequences that ended were computed one token further"
        );
    }
}

#[test]
fn stops_are_found_one_forward_late() {
    let (decoder, weights, tokenizer) = golden();
    let request = |id: u64, stop: &[&str], stop_tokens: &[u32]| Request {
        id,
        prompt: vec![5, 6, 7 + id as u32],
        samples: 5,
        sampling: Sampling {
            max_tokens: 40,
            seed: 3,
            stop: stop.iter().map(|&s| s.to_owned()).collect(),
            stop_tokens: stop_tokens.to_vec(),
            ..Sampling::default()
        },
    };
    let run = |config| {
        let mut rollout = Rollout::new(&decoder, &weights, config)
            .unwrap()
            .with_tokenizer(&tokenizer);
        let all = vec![
            request(0, &["e"], &[]),
            request(1, &[], &[17, 40, 99]),
            request(2, &[], &[]),
        ];
        (rollout.run_all(all).unwrap(), rollout.stats())
    };
    let [(at_once, _), (late, _)] = both(run, &RolloutConfig::default());
    assert!(late == at_once);
    let stopped = late
        .iter()
        .filter(|s| s.finish == rollout::Finish::Stop)
        .count();
    assert!(stopped > 0 && stopped < 15, "{stopped} of 15 stopped");
}

/// Requests that come while others run see nothing of it either.
#[test]
fn requests_may_come_at_any_step() {
    let (decoder, weights) = model(Kind::Float);
    let run = |config| {
        let mut rollout = Rollout::new(&decoder, &weights, config).unwrap();
        let (mut done, mut more) = (Vec::new(), requests(12).into_iter());
        for request in more.by_ref().take(3) {
            rollout.submit(request).unwrap();
        }
        while !rollout.is_idle() {
            done.extend(rollout.step().unwrap());
            if let Some(request) = more.next() {
                rollout.submit(request).unwrap();
            }
        }
        assert!(more.next().is_none(), "all came");
        done.sort_by_key(|s| (s.request, s.sample));
        (done, rollout.stats())
    };
    let sizes = RolloutConfig {
        cache_tokens: 400,
        ..RolloutConfig::default()
    };
    let [(at_once, _), (late, _)] = both(run, &sizes);
    assert!(late == at_once);
}
