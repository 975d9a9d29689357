//! Plays episodes of environments with the policy: messages in, completions and rewards out.

use crate::{Error, Finish, Rollout, Sampling};
use data::Tokenizer;
use data::env::{Environment, Task};

/// One task to be played `samples` times (a group).
pub struct Episode<'e> {
    /// Names the episode in its trajectories and keys its random draws.
    pub id: u64,
    /// Where the task comes from; a mix of environments is a mix of episodes.
    pub environment: &'e dyn Environment,
    /// The task.
    pub task: Task,
    /// Trajectories wanted.
    pub samples: usize,
}

/// Limits of an episode besides those of its environment.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most completions of one trajectory.
    pub max_turns: usize,
    /// Most tokens of prompt, completions and observations together.
    pub max_length: usize,
}

/// How an episode came out.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Reward by named component, summed over the turns.
    Rewarded(Vec<(String, f64)>),
    /// The environment failed: there is no reward, and zero would be a lie.
    Failed(String),
}

/// One played episode.
#[derive(Debug, Clone)]
pub struct Trajectory {
    /// The episode's id.
    pub episode: u64,
    /// Which trajectory of the group, from 0.
    pub sample: usize,
    /// The first prompt.
    pub prompt: Vec<u32>,
    /// Everything after the first prompt: completions as sampled, observations as rendered.
    pub tokens: Vec<u32>,
    /// For each of `tokens`: did the policy sample it? Only these train.
    pub mask: Vec<bool>,
    /// Log-probability of each token that the policy sampled, in order (one per true of `mask`).
    pub logprobs: Vec<f32>,
    /// The text of each completion, in order.
    pub completions: Vec<String>,
    /// How the last completion ended; `Length` also when `Limits` cut the episode short.
    pub finish: Finish,
    /// Rewards, or why there are none.
    pub outcome: Outcome,
    /// The version of the weights that every completion came from.
    pub weights_version: u64,
}

/// Plays all episodes, turns of different episodes batched together; trajectories come back in
/// the order of the episodes, then of samples.
pub fn run(
    rollout: &mut Rollout,
    tokenizer: &Tokenizer,
    episodes: &[Episode],
    sampling: &Sampling,
    limits: &Limits,
) -> Result<Vec<Trajectory>, Error> {
    let _ = (rollout, tokenizer, episodes, sampling, limits);
    todo!()
}
