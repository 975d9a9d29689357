//! Where completions end: stop strings, stop tokens, end of sequence, length.

use crate::common::golden;
use rollout::{Finish, Request, Rollout, RolloutConfig, Sampling, text};

#[test]
fn stop_strings_are_found_across_tokens() {
    let (decoder, weights, tokenizer) = golden();
    let new = || {
        Rollout::new(&decoder, &weights, RolloutConfig::default())
            .unwrap()
            .with_tokenizer(&tokenizer)
    };
    let sampling = Sampling {
        max_tokens: 60,
        seed: 3,
        ..Sampling::default()
    };
    let request = |stop: &[String]| Request {
        id: 0,
        prompt: vec![5, 6, 7],
        samples: 12,
        sampling: Sampling {
            stop: stop.to_vec(),
            ..sampling.clone()
        },
    };
    let free = new().run_all(vec![request(&[])]).unwrap();
    let decode = |tokens: &[u32]| tokenizer.decode(tokens, false).unwrap();

    // two ASCII letters that meet at a token boundary somewhere
    let stop = free
        .iter()
        .flat_map(|s| s.tokens.windows(2))
        .find_map(|pair| {
            let (a, b) = (decode(&pair[..1]), decode(&pair[1..]));
            let (x, y) = (a.chars().last()?, b.chars().next()?);
            let whole = format!("{x}{y}");
            (x.is_ascii_alphabetic() && y.is_ascii_alphabetic() && decode(pair).contains(&whole))
                .then_some(whole)
        })
        .expect("a pair of letters");
    let stopped = new()
        .run_all(vec![request(std::slice::from_ref(&stop))])
        .unwrap();
    let mut cut = 0;
    for (s, free) in stopped.iter().zip(&free) {
        // an oracle: decode every beginning in full
        let end = (1..=free.tokens.len()).find(|&n| decode(&free.tokens[..n]).contains(&stop));
        let expected = end.unwrap_or(free.tokens.len());
        assert_eq!(s.tokens, free.tokens[..expected], "sample {}", s.sample);
        assert_eq!(
            s.finish == Finish::Stop,
            end.is_some() || free.finish == Finish::Stop
        );
        let with = request(std::slice::from_ref(&stop)).sampling;
        assert!(!text(&tokenizer, &with, &s.tokens).unwrap().contains(&stop));
        cut += usize::from(end.is_some());
    }
    assert!(
        cut > 0 && cut < 12,
        "{cut} of 12 met the stop string {stop:?}"
    );
}

#[test]
fn stop_tokens_and_eos_end_a_completion_and_belong_to_it() {
    let (decoder, weights, _) = golden();
    let sampling = Sampling {
        max_tokens: 50,
        seed: 8,
        ignore_eos: true,
        ..Sampling::default()
    };
    let run = |sampling: Sampling, eos: Vec<u32>| {
        let config = RolloutConfig {
            eos,
            ..RolloutConfig::default()
        };
        let mut rollout = Rollout::new(&decoder, &weights, config).unwrap();
        rollout
            .run_all(vec![Request {
                id: 0,
                prompt: vec![9],
                samples: 1,
                sampling,
            }])
            .unwrap()
            .remove(0)
    };
    let free = run(sampling.clone(), vec![]);
    assert_eq!((free.tokens.len(), free.finish), (50, Finish::Length));
    let end = free.tokens[20];
    let first = free.tokens.iter().position(|&t| t == end).unwrap();
    let cases = [
        (
            Sampling {
                ignore_eos: false,
                ..sampling.clone()
            },
            vec![end],
        ),
        (
            Sampling {
                stop_tokens: vec![end],
                ..sampling.clone()
            },
            vec![],
        ),
    ];
    for (sampling, eos) in cases {
        let cut = run(sampling, eos);
        assert_eq!(
            (cut.tokens.as_slice(), cut.finish),
            (&free.tokens[..=first], Finish::Stop)
        );
    }
    assert_eq!(run(sampling, vec![end]).tokens, free.tokens, "ignored");
}
