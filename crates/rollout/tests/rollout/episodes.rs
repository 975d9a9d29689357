//! Multi-turn episodes.

use crate::common::golden;
use data::env::{Environment, Split, Step, Task, Turn};
use data::{Error, Message};
use rollout::episodes::{Episode, Limits, Outcome, run};
use rollout::{Finish, Request, Rollout, RolloutConfig, Sampling};

/// Answers every completion with its length until the third; fails on task "broken", and for
/// samples of task "fragile" whose text has an even length.
struct Echo;

impl Environment for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn task(&self, _: Split, index: u64, _: u64) -> data::Result<Task> {
        Ok(Task {
            id: ["plain", "broken", "fragile"][index as usize % 3].into(),
            environment: "echo".into(),
            messages: vec![Message::user(format!("task {index}"))],
            state: serde_json::Value::Null,
        })
    }

    fn step(&self, task: &Task, turns: &[Turn], completion: &str) -> data::Result<Step> {
        if task.id == "broken" || task.id == "fragile" && completion.len().is_multiple_of(2) {
            return Err(Error::Template("the sandbox is gone".into()));
        }
        let done = turns.len() == 2;
        Ok(Step {
            observation: if done {
                vec![]
            } else {
                vec![Message::user(format!("{} bytes", completion.len()))]
            },
            rewards: vec![
                ("length".into(), completion.len() as f64),
                ("turn".into(), 1.0),
            ],
            done,
        })
    }

    fn max_turns(&self) -> usize {
        3
    }
}

#[test]
fn turns_continue_what_was_sampled() {
    let (decoder, weights, tokenizer) = golden();
    let config = RolloutConfig {
        eos: tokenizer.eos_ids().to_vec(),
        ..RolloutConfig::default()
    };
    let new = || {
        Rollout::new(&decoder, &weights, config.clone())
            .unwrap()
            .with_tokenizer(&tokenizer)
    };
    let sampling = Sampling {
        max_tokens: 40,
        seed: 2,
        ..Sampling::default()
    };
    let task = |i| Echo.task(Split::Train, i, 0).unwrap();
    let episodes: Vec<_> = [(70, 0), (71, 1), (72, 2), (73, 3)]
        .map(|(id, i)| Episode {
            id,
            environment: &Echo,
            task: task(i),
            samples: 6,
        })
        .into();
    let extra = Default::default();
    let mut rollout = new();
    let played = run(
        &mut rollout,
        &tokenizer,
        &extra,
        &episodes,
        &sampling,
        &Limits::default(),
    )
    .unwrap();
    assert!(
        rollout.stats().reused > 0,
        "a turn begins with the cache of the last"
    );
    assert_eq!(played.len(), 24);
    let mut ended = [0, 0];
    for (i, t) in played.iter().enumerate() {
        assert_eq!((t.episode, t.sample), (70 + i as u64 / 6, i % 6));
        assert_eq!(
            t.prompt,
            tokenizer
                .chat_prompt(&episodes[i / 6].task.messages, &extra)
                .unwrap()
        );
        assert_eq!(t.tokens.len(), t.mask.len());
        assert_eq!(t.logprobs.len(), t.mask.iter().filter(|&&m| m).count());
        if let Outcome::Failed(why) = &t.outcome {
            assert!(
                why.contains("sandbox")
                    && ["broken", "fragile"].contains(&episodes[i / 6].task.id.as_str())
            );
            continue;
        }
        assert_eq!(t.turns.len(), 3);
        let lengths: usize = t.turns.iter().map(|turn| turn.completion.len()).sum();
        let rewards = vec![
            ("length".to_string(), lengths as f64),
            ("turn".to_string(), 3.0),
        ];
        assert_eq!(t.outcome, Outcome::Rewarded(rewards));

        // each turn, asked for alone with the tokens so far, gives the same bits
        let (mut at, mut logprobs) = (0, t.logprobs.as_slice());
        for turn in &t.turns {
            let prompt = [t.prompt.as_slice(), &t.tokens[..at]].concat();
            let request = Request {
                id: t.episode,
                prompt,
                samples: t.sample + 1,
                sampling: sampling.clone(),
            };
            let alone = new().run_all(vec![request]).unwrap().pop().unwrap();
            let end = at + alone.tokens.len();
            assert_eq!(t.tokens[at..end], alone.tokens);
            assert!(t.mask[at..end].iter().all(|&m| m));
            assert_eq!(logprobs[..alone.tokens.len()], alone.logprobs);
            logprobs = &logprobs[alone.tokens.len()..];
            // then the observation as the template has it
            let more = t.mask[end..].iter().take_while(|&&m| !m).count();
            let said = tokenizer.decode(&t.tokens[end..end + more], false).unwrap();
            let stopped = alone.finish == Finish::Stop;
            ended[usize::from(stopped)] += 1;
            if let Some(message) = turn.observation.first() {
                let close = if stopped { "" } else { "<|im_end|>" };
                let text = message.text();
                assert_eq!(
                    said,
                    format!("{close}\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
                );
            } else {
                assert_eq!(more, 0);
            }
            at = end + more;
        }
        assert_eq!(at, t.tokens.len());
    }
    let failed = |id: u64| {
        played
            .iter()
            .filter(|t| t.episode == id && matches!(t.outcome, Outcome::Failed(_)))
            .count()
    };
    assert_eq!((failed(70), failed(71)), (0, 6));
    assert!((1..6).contains(&failed(72)), "{} failed alone", failed(72));
    assert!(ended[0] > 0, "completions cut by length occur: {ended:?}");
}

#[test]
fn limits_cut_episodes_short_and_say_so() {
    let (decoder, weights, tokenizer) = golden();
    let mut rollout = Rollout::new(&decoder, &weights, RolloutConfig::default())
        .unwrap()
        .with_tokenizer(&tokenizer);
    let task = Echo.task(Split::Train, 0, 0).unwrap();
    let episodes = [Episode {
        id: 1,
        environment: &Echo,
        task,
        samples: 3,
    }];
    let sampling = Sampling {
        max_tokens: 30,
        ..Sampling::default()
    };
    let extra = Default::default();
    let mut play = |limits: Limits| {
        run(
            &mut rollout,
            &tokenizer,
            &extra,
            &episodes,
            &sampling,
            &limits,
        )
    };
    for t in play(Limits {
        max_turns: 2,
        max_length: 0,
    })
    .unwrap()
    {
        assert_eq!(t.turns.len(), 2);
    }
    let prompt = play(Limits::default()).unwrap()[0].prompt.len();
    for t in play(Limits {
        max_turns: 0,
        max_length: prompt + 40,
    })
    .unwrap()
    {
        assert!(t.prompt.len() + t.tokens.len() <= prompt + 40);
        assert_eq!((t.turns.len(), t.finish), (1, Finish::Length));
        assert!(
            t.mask.iter().all(|&m| m),
            "an observation that nobody answers is left out"
        );
        assert!(matches!(t.outcome, Outcome::Rewarded(_)));
    }
    let error = play(Limits {
        max_turns: 0,
        max_length: prompt,
    })
    .unwrap_err();
    assert!(error.to_string().contains("leaves none"), "{error}");
}
