//! Episodes of an environment, played by all ranks together: each plays its share, and all get
//! every trajectory. What a trajectory holds does not depend on who played it.

use std::sync::Arc;

use data::Tokenizer;
use data::dataset::Extra;
use data::env::{self, Environment, Task};
use rollout::episodes::{self, Episode, Limits, Outcome};
use rollout::{Finish, RolloutConfig, Sampling};
use serde::{Deserialize, Serialize};
use spec::kinds::Environments;

use crate::failure::{Failure, Result};
use crate::serving::Serving;
use crate::stage::Stage;

/// A task to be played.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Keys the draws: equal ids, tasks and seeds give equal completions.
    pub id: u64,
    pub task: Task,
}

/// One trajectory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Played {
    pub id: u64,
    pub sample: usize,
    /// Name of the environment that the task belongs to.
    pub environment: String,
    /// The first prompt.
    pub prompt: Vec<u32>,
    /// Everything after it.
    pub tokens: Vec<u32>,
    /// Which of `tokens` the policy sampled.
    pub mask: Vec<bool>,
    /// Of each sampled token.
    pub logprobs: Vec<f32>,
    /// The experts that prompt and tokens went to, where that was asked for.
    #[serde(with = "crate::ids")]
    pub routes: Vec<u16>,
    /// The text of each completion.
    pub completions: Vec<String>,
    /// The last completion was cut.
    pub truncated: bool,
    /// By component; none where the environment failed.
    pub rewards: Option<Vec<(String, f64)>>,
    /// What the environment said when it failed.
    pub failure: Option<String>,
    /// Version of the weights it was sampled from.
    pub version: u64,
}

impl Played {
    /// The component of this name, 0 if there is none.
    pub fn reward(&self, component: &str) -> f64 {
        let parts = self.rewards.iter().flatten();
        parts
            .filter(|(name, _)| name == component)
            .map(|(_, value)| value)
            .sum()
    }

    /// Tokens that the policy sampled.
    pub fn sampled(&self) -> usize {
        self.logprobs.len()
    }
}

/// What the recipe's `environment` names, over the rows of input `data`.
pub fn environment(stage: &Stage, choice: &Environments) -> Result<Arc<dyn Environment>> {
    let config = serde_json::to_value(choice)
        .map_err(|e| Failure::config(format!("environment: {e}"), ""))?;
    Ok(env::build(&config, stage.dataset("data")?)?)
}

/// What is played of each prompt.
pub struct Draw<'a> {
    /// Trajectories.
    pub samples: usize,
    pub sampling: &'a Sampling,
    /// Whether they carry the experts that their tokens went to.
    pub routes: bool,
}

/// Plays trajectories of each prompt; in the order of the prompts, then of samples.
pub fn play(
    serving: &Serving,
    tokenizer: &Tokenizer,
    environment: &dyn Environment,
    prompts: &[Prompt],
    draw: &Draw,
) -> Result<Vec<Played>> {
    let Draw {
        samples, sampling, ..
    } = *draw;
    let config = RolloutConfig {
        eos: tokenizer.eos_ids().to_vec(),
        routes: draw.routes,
        ..RolloutConfig::default()
    };
    let mut rollout = serving.rollout(config)?.with_tokenizer(tokenizer);
    // the environment's own limits, and the model's
    let (extra, limits) = (Extra::default(), Limits::default());
    let mine: Vec<&Prompt> = serving.share(prompts).collect();
    let episodes: Vec<Episode> = mine
        .iter()
        .map(|prompt| Episode {
            id: prompt.id,
            environment,
            task: prompt.task.clone(),
            samples,
        })
        .collect();
    let played = episodes::run(
        &mut rollout,
        tokenizer,
        &extra,
        &episodes,
        sampling,
        &limits,
    )?;
    let played = played
        .into_iter()
        .enumerate()
        .map(|(i, trajectory)| {
            let (rewards, failure) = match trajectory.outcome {
                Outcome::Rewarded(rewards) => (Some(rewards), None),
                Outcome::Failed(why) => (None, Some(why)),
            };
            Played {
                id: trajectory.episode,
                sample: trajectory.sample,
                environment: mine[i / samples].task.environment.clone(),
                prompt: trajectory.prompt,
                tokens: trajectory.tokens,
                mask: trajectory.mask,
                logprobs: trajectory.logprobs,
                routes: trajectory.routes,
                completions: trajectory
                    .turns
                    .into_iter()
                    .map(|turn| turn.completion)
                    .collect(),
                truncated: trajectory.finish == Finish::Length,
                rewards,
                failure,
                version: trajectory.weights_version,
            }
        })
        .collect();
    let mut all = serving.gather(played, "trajectories")?;
    all.sort_by_key(|played| (played.id, played.sample));
    let version = serving.policy().weights().version;
    if let Some(stale) = all.iter().find(|played| played.version != version) {
        return Err(Failure::failed(
            "W0403",
            format!(
                "a completion came from weights version {}, the policy is at {version}",
                stale.version
            ),
            "this is a bug of the trainer: please report it",
        ));
    }
    Ok(all)
}
