//! Completions of given prompts: one line per completion, `{"index", "sample", "tokens",
//! "logprobs", "text", "finish_reason"}`, in the order of the prompts, then of samples.

use data::example;
use rollout::{Request, RolloutConfig, Sampling};
use serde::{Deserialize, Serialize};
use spec::kinds::generate::Generate;

use crate::failure::{Failure, Result};
use crate::report::Metrics;
use crate::serving::Serving;
use crate::stage::{Done, Lines, Stage};
use crate::training;

/// Prompts that are sampled, gathered and written at a time.
const PART: usize = 1024;

/// One line of the output.
#[derive(Serialize, Deserialize)]
struct Completion {
    index: u64,
    sample: usize,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    text: String,
    finish_reason: rollout::Finish,
}

pub fn run(stage: &Stage) -> Result<Done> {
    let with: Generate = stage.with()?;
    let tokenizer = stage.tokenizer("model")?;
    let policy = training::scorer(stage, stage.input("model")?, with.dtype)?;
    tokenizer.check_fits(policy.decoder().config.vocab_size)?;
    let prompts = stage
        .dataset("prompts")?
        .ok_or_else(|| Failure::data("input 'prompts' is missing", "give `in.prompts = ..`"))?;
    let sampling = Sampling {
        max_tokens: with.max_tokens as usize,
        temperature: with.temperature,
        top_p: with.top_p,
        top_k: with.top_k as usize,
        stop: with.stop.clone(),
        ignore_eos: with.ignore_eos,
        seed: with.seed,
        ..Sampling::default()
    };
    let config = RolloutConfig {
        eos: tokenizer.eos_ids().to_vec(),
        ..RolloutConfig::default()
    };
    let serving = Serving::new(stage, &policy)?;
    let mut rollout = serving.rollout(config)?.with_tokenizer(&tokenizer);

    let mut lines = match stage.gang.leads() {
        true => Some(Lines::create(
            stage.output("completions")?,
            "completions.jsonl",
        )?),
        false => None,
    };
    let (mut tokens, mut cut, mut count) = (0usize, 0usize, 0usize);
    for first in (0..prompts.len()).step_by(PART) {
        let rows: Vec<usize> = (first..prompts.len().min(first + PART)).collect();
        let requests = serving
            .share(&rows)
            .map(|row| {
                let prompt = example::prompt(&prompts.record(*row)?, &tokenizer)?;
                Ok(Request {
                    id: *row as u64,
                    prompt,
                    samples: with.n as usize,
                    sampling: sampling.clone(),
                })
            })
            .collect::<Result<Vec<Request>>>()?;
        let mut completions = Vec::new();
        for sample in rollout.run_all(requests)? {
            completions.push(Completion {
                index: sample.request,
                sample: sample.sample,
                text: rollout::text(&tokenizer, &sampling, &sample.tokens)?,
                tokens: sample.tokens,
                logprobs: sample.logprobs,
                finish_reason: sample.finish,
            });
        }
        let mut all = serving.gather(completions, "completions")?;
        all.sort_by_key(|completion| (completion.index, completion.sample));
        for completion in &all {
            count += 1;
            tokens += completion.tokens.len();
            cut += usize::from(completion.finish_reason == rollout::Finish::Length);
            if let Some(lines) = &mut lines {
                lines.push(completion)?;
            }
        }
        stage
            .report
            .progress((first + rows.len()) as u64, prompts.len() as u64);
    }
    if let Some(lines) = lines {
        lines.finish()?;
    }
    let n = count.max(1) as f64;
    Ok(Done::Finished(Metrics::from([
        ("completions".into(), count as f64),
        ("mean_length".into(), tokens as f64 / n),
        ("truncation_rate".into(), cut as f64 / n),
    ])))
}
