//! Metrics of a model: on an environment's held-out tasks accuracy, pass@k, cons@k, mean length
//! and truncation rate, overall and per task kind; on rows of data perplexity, on preference rows
//! the share of pairs whose chosen completion is the likelier one. Every estimate has a 95%
//! confidence interval. All completions are an artifact.
//!
//! The report is `report.json`: `{"metrics": {name: value}, "intervals": {name: [low, high]},
//! "counts": {name: n}}`; metrics of one task kind are named `<environment>/<metric>`.

use std::collections::BTreeMap;

use data::Tokenizer;
use data::env::{CORRECT, Environment, Split};
use data::example::Counts;
use rollout::Sampling;
use serde_json::json;
use spec::kinds::Overlong;
use spec::kinds::evaluate::Evaluate;
use train::{Policy, Unit};

use crate::failure::{Failure, Result, at};
use crate::play::{self, Played, Prompt};
use crate::report::Metrics;
use crate::score;
use crate::serving::Serving;
use crate::stage::{Done, Lines, Stage};
use crate::stats::{self, Estimate};
use crate::training;

/// Tasks that are played and written at a time.
const PART: usize = 512;

pub fn run(stage: &Stage) -> Result<Done> {
    let with: Evaluate = stage.with()?;
    let tokenizer = stage.tokenizer("model")?;
    let policy = training::scorer(stage, stage.input("model")?, with.dtype)?;
    tokenizer.check_fits(policy.decoder().config.vocab_size)?;
    let mut report = Report::default();
    if with.environment.is_empty() {
        // an artifact of this stage all the same: no completions
        if stage.gang.leads() {
            Lines::create(stage.output("completions")?, "completions.jsonl")?.finish()?;
        }
        rows(stage, &with, &policy, &tokenizer, &mut report)?;
    } else {
        tasks(stage, &with, &policy, &tokenizer, &mut report)?;
    }
    if stage.gang.leads() {
        report.write(stage.output("report")?)?;
    }
    Ok(Done::Finished(report.metrics))
}

/// Estimates by name.
#[derive(Default)]
struct Report {
    metrics: Metrics,
    intervals: BTreeMap<String, [f64; 2]>,
    counts: BTreeMap<String, usize>,
}

impl Report {
    fn add(&mut self, name: String, estimate: Option<Estimate>) {
        if let Some(Estimate { value, low, high }) = estimate {
            self.intervals.insert(name.clone(), [low, high]);
            self.metrics.insert(name, value);
        }
    }

    fn write(&self, dir: &std::path::Path) -> Result<()> {
        let path = dir.join("report.json");
        let text = json!({
            "metrics": self.metrics,
            "intervals": self.intervals,
            "counts": self.counts,
        });
        std::fs::write(&path, format!("{text:#}\n")).map_err(at(&path))
    }
}

/// All samples of one task.
struct Task {
    environment: String,
    /// The canonical answer of each sample and whether it is right. Samples without an answer
    /// never agree with another.
    answers: Vec<(String, bool)>,
    lengths: Vec<usize>,
    truncated: usize,
}

fn tasks(
    stage: &Stage,
    with: &Evaluate,
    policy: &Policy,
    tokenizer: &Tokenizer,
    report: &mut Report,
) -> Result<()> {
    let environment = play::environment(stage, &with.environment)?;
    let count = match with.examples {
        0 => environment.len(Split::Test).ok_or_else(|| {
            Failure::config(
                format!("environment '{}' has no end of tasks", environment.name()),
                "say how many to grade: `examples = 256`",
            )
        })?,
        n => n,
    };
    let sampling = Sampling {
        max_tokens: with.max_tokens as usize,
        temperature: with.temperature,
        top_p: with.top_p,
        top_k: with.top_k as usize,
        stop: with.stop.clone(),
        seed: with.seed,
        ..Sampling::default()
    };
    let samples = with.samples as usize;
    let draw = play::Draw {
        samples,
        sampling: &sampling,
        routes: false,
    };
    let mut lines = match stage.gang.leads() {
        true => Some(Lines::create(
            stage.output("completions")?,
            "completions.jsonl",
        )?),
        false => None,
    };
    let serving = Serving::new(stage, policy)?;
    let mut graded = Vec::new();
    let mut failed = 0;
    let ids: Vec<u64> = (0..count).collect();
    for part in ids.chunks(PART) {
        let prompts = part
            .iter()
            .map(|id| {
                Ok(Prompt {
                    id: *id,
                    task: environment.task(Split::Test, *id, with.seed)?,
                })
            })
            .collect::<Result<Vec<Prompt>>>()?;
        let env = &*environment;
        let played = play::play(&serving, tokenizer, env, &prompts, &draw)?;
        for (prompt, played) in prompts.iter().zip(played.chunks(samples)) {
            if let Some(lines) = &mut lines {
                for one in played {
                    lines.push(&line(prompt, one))?;
                }
            }
            // a grade that is missing is no wrong answer: the task leaves the report
            match played.iter().find_map(|one| one.failure.as_ref()) {
                Some(why) => {
                    stage
                        .report
                        .warn(format!("task {}: the environment failed: {why}", prompt.id));
                    failed += 1;
                }
                None => graded.push(grade(&*environment, prompt, played)),
            }
        }
        stage
            .report
            .progress(part.last().map_or(0, |id| id + 1), count);
    }
    if let Some(lines) = lines {
        lines.finish()?;
    }
    if graded.is_empty() {
        return Err(Failure::failed(
            "W0404",
            format!("the environment failed on all {failed} tasks"),
            "its messages are above",
        ));
    }
    summarise(&graded, &with.k, report);
    report.counts.insert("failed".into(), failed);
    Ok(())
}

fn line(prompt: &Prompt, played: &Played) -> serde_json::Value {
    let rewards: serde_json::Map<String, serde_json::Value> = played
        .rewards
        .iter()
        .flatten()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({
        "index": prompt.id,
        "sample": played.sample,
        "environment": played.environment,
        "task": prompt.task.id,
        "messages": prompt.task.messages,
        "completions": played.completions,
        "tokens": played.tokens,
        "rewards": rewards,
        "finish_reason": if played.truncated { "length" } else { "stop" },
        "failure": played.failure,
    })
}

fn grade(environment: &dyn Environment, prompt: &Prompt, played: &[Played]) -> Task {
    let answers = played.iter().map(|one| {
        let last = one.completions.last().map_or("", String::as_str);
        let answer = environment
            .canonical(&prompt.task, last)
            .unwrap_or_else(|| format!("\0no answer of sample {}", one.sample));
        (answer, one.reward(CORRECT) >= 1.0)
    });
    Task {
        environment: prompt.task.environment.clone(),
        answers: answers.collect(),
        lengths: played.iter().map(Played::sampled).collect(),
        truncated: played.iter().filter(|one| one.truncated).count(),
    }
}

/// Overall, and per task kind.
fn summarise(graded: &[Task], k: &[u64], report: &mut Report) {
    let mut kinds: BTreeMap<String, Vec<&Task>> = BTreeMap::new();
    for task in graded {
        kinds
            .entry(format!("{}/", task.environment))
            .or_default()
            .push(task);
    }
    kinds.insert(String::new(), graded.iter().collect());
    for (prefix, tasks) in kinds {
        let mut add = |metric: &str, of: &dyn Fn(&Task) -> f64| {
            let values: Vec<f64> = tasks.iter().map(|task| of(task)).collect();
            report.add(format!("{prefix}{metric}"), stats::mean(&values));
        };
        let right = |task: &Task| task.answers.iter().filter(|(_, right)| *right).count();
        let samples = |task: &Task| task.answers.len() as f64;
        add("accuracy", &|task| right(task) as f64 / samples(task));
        for k in k.iter().map(|k| *k as usize) {
            add(&format!("pass@{k}"), &|task| {
                stats::pass_at_k(task.answers.len(), right(task), k)
            });
            add(&format!("cons@{k}"), &|task| {
                f64::from(u8::from(stats::cons_at_k(&task.answers, k)))
            });
        }
        add("mean_length", &|task| {
            task.lengths.iter().sum::<usize>() as f64 / samples(task)
        });
        add("truncation_rate", &|task| {
            task.truncated as f64 / samples(task)
        });
        report.counts.insert(format!("{prefix}tasks"), tasks.len());
    }
}

/// Perplexity, or preference accuracy, of rows of data.
fn rows(
    stage: &Stage,
    with: &Evaluate,
    policy: &Policy,
    tokenizer: &Tokenizer,
    report: &mut Report,
) -> Result<()> {
    let data = stage.dataset("data")?.ok_or_else(|| {
        Failure::config(
            "nothing to evaluate on",
            "give `environment`, or an input `data`",
        )
    })?;
    let count = match with.examples {
        0 => data.len(),
        n => data.len().min(n as usize),
    };
    let limits = score::limits(policy, with.max_length, Overlong::Truncate);
    let mut counts = Counts::default();
    let mut sequences = Vec::new();
    let mut preferred = Vec::new();
    let all: Vec<usize> = (0..count).collect();
    for part in all.chunks(PART) {
        let mut units: Vec<Unit> = Vec::new();
        for row in part {
            units.extend(score::trained(
                &data.record(*row)?,
                tokenizer,
                &limits,
                &mut counts,
            )?);
        }
        for branches in policy.logprobs(&units)? {
            let sum = |branch: &[f32]| branch.iter().map(|lp| f64::from(*lp)).sum::<f64>();
            match &branches[..] {
                [chosen, rejected] => {
                    preferred.push(f64::from(u8::from(sum(chosen) > sum(rejected))));
                }
                others => sequences.extend(others.iter().map(|one| (-sum(one), one.len()))),
            }
        }
        stage
            .report
            .progress(part.last().map_or(0, |row| row + 1) as u64, count as u64);
    }
    report.add("perplexity".into(), stats::perplexity(&sequences));
    report.add("preference_accuracy".into(), stats::mean(&preferred));
    report.counts.insert("rows".into(), count);
    report
        .counts
        .insert("truncated".into(), counts.truncated as usize);
    report
        .counts
        .insert("tokens".into(), sequences.iter().map(|(_, n)| n).sum());
    Ok(())
}
