//! Plays episodes of environments with the policy: messages in, completions and rewards out.
//!
//! A trajectory's tokens are what was sampled, never tokenised again: after each completion the
//! observation is rendered by the chat template and appended. So the next turn begins with the
//! keys and values of the last one, which the cache still holds.

use crate::{Error, Finish, Request, Rollout, Sample, Sampling, text};
use data::Tokenizer;
use data::dataset::Extra;
use data::env::{Environment, Task, Turn};

/// One task to be played `samples` times (a group).
pub struct Episode<'e> {
    /// Names the episode in its trajectories and keys its random draws; differs between episodes.
    pub id: u64,
    /// Where the task comes from; a mix of environments is a mix of episodes.
    pub environment: &'e dyn Environment,
    /// The task.
    pub task: Task,
    /// Trajectories wanted.
    pub samples: usize,
}

/// Limits of an episode besides those of its environment.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Most completions of one trajectory; 0 is the environment's own limit.
    pub max_turns: usize,
    /// Most tokens of prompt, completions and observations together; 0 is what model and cache
    /// can hold.
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
    /// As [`Sample::routes`], of prompt and tokens.
    pub routes: Vec<u16>,
    /// Completions and what the environment answered, in order.
    pub turns: Vec<Turn>,
    /// How the last completion ended; `Length` also where [`Limits::max_length`] left no room for
    /// another turn.
    pub finish: Finish,
    /// Rewards, or why there are none.
    pub outcome: Outcome,
    /// The version of the weights that every completion came from.
    pub weights_version: u64,
}

/// Plays all episodes, turns of different episodes batched together; trajectories come back in
/// the order of the episodes, then of samples. `extra` goes to the chat template.
///
/// An environment that fails in a step fails that trajectory only.
///
/// # Errors
/// What stops the whole rollout: bad sampling values, a template that cannot render the messages,
/// a prompt that leaves no room for a completion, and what [`Rollout::step`] finds.
pub fn run(
    rollout: &mut Rollout,
    tokenizer: &Tokenizer,
    extra: &Extra,
    episodes: &[Episode],
    sampling: &Sampling,
    limits: &Limits,
) -> Result<Vec<Trajectory>, Error> {
    if !rollout.is_idle() {
        return Err(Error::Busy);
    }
    let played = Driver::new(rollout, tokenizer, extra, episodes, sampling, limits)?.play();
    if played.is_err() {
        rollout.clear();
    }
    played
}

struct Driver<'a, 'm> {
    rollout: &'a mut Rollout<'m>,
    tokenizer: &'a Tokenizer,
    extra: &'a Extra,
    episodes: &'a [Episode<'a>],
    sampling: &'a Sampling,
    max_turns: usize,
    max_length: usize,
    /// By episode, then sample; requests carry the episode's index while they run.
    trajectories: Vec<Vec<Trajectory>>,
}

impl<'a, 'm> Driver<'a, 'm> {
    fn new(
        rollout: &'a mut Rollout<'m>,
        tokenizer: &'a Tokenizer,
        extra: &'a Extra,
        episodes: &'a [Episode<'a>],
        sampling: &'a Sampling,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let or = |limit: usize, default: usize| if limit == 0 { default } else { limit };
        let trajectories = episodes
            .iter()
            .map(|episode| {
                let prompt = tokenizer
                    .chat_prompt(&episode.task.messages, extra)
                    .map_err(|e| Error::Template(e.to_string()))?;
                let empty = |sample| Trajectory {
                    episode: episode.id,
                    sample,
                    prompt: prompt.clone(),
                    tokens: Vec::new(),
                    mask: Vec::new(),
                    logprobs: Vec::new(),
                    routes: Vec::new(),
                    turns: Vec::new(),
                    finish: Finish::Length,
                    outcome: Outcome::Rewarded(Vec::new()),
                    weights_version: rollout.weights_version(),
                };
                Ok((0..episode.samples).map(empty).collect())
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            max_turns: or(limits.max_turns, usize::MAX),
            max_length: or(limits.max_length, usize::MAX).min(rollout.max_length()),
            rollout,
            tokenizer,
            extra,
            episodes,
            sampling,
            trajectories,
        })
    }

    fn play(mut self) -> Result<Vec<Trajectory>, Error> {
        for (index, episode) in self.episodes.iter().enumerate() {
            if episode.samples > 0 {
                let prompt = self.trajectories[index][0].prompt.clone();
                let room = self.max_length.saturating_sub(prompt.len());
                if room == 0 {
                    return Err(Error::NoRoom {
                        request: episode.id,
                        prompt: prompt.len(),
                        limit: self.max_length,
                    });
                }
                self.ask(index, prompt, 0..episode.samples)?;
            }
        }
        while !self.rollout.is_idle() {
            for sample in self.rollout.step_tagged()? {
                self.take(sample)?;
            }
        }
        Ok(self.trajectories.into_iter().flatten().collect())
    }

    /// Queues the next completion of these samples.
    fn ask(
        &mut self,
        index: usize,
        prompt: Vec<u32>,
        samples: std::ops::Range<usize>,
    ) -> Result<(), Error> {
        let room = self.max_length - prompt.len();
        let sampling = Sampling {
            max_tokens: self.sampling.max_tokens.min(room),
            ..self.sampling.clone()
        };
        let request = Request {
            id: self.episodes[index].id,
            prompt,
            samples: samples.len(),
            sampling,
        };
        self.rollout.submit_tagged(request, samples, index)
    }

    /// Appends a completion, lets the environment answer, and asks for the next one.
    fn take(&mut self, (index, sample): (usize, Sample)) -> Result<(), Error> {
        let episode = &self.episodes[index];
        let trajectory = &mut self.trajectories[index][sample.sample];
        if sample.weights_version != trajectory.weights_version {
            return Err(Error::Version {
                request: episode.id,
                sample: sample.sample,
                expected: trajectory.weights_version,
                found: sample.weights_version,
            });
        }
        let completion = text(self.tokenizer, self.sampling, &sample.tokens)?;
        trajectory
            .mask
            .resize(trajectory.mask.len() + sample.tokens.len(), true);
        trajectory.tokens.extend(&sample.tokens);
        trajectory.logprobs.extend(&sample.logprobs);
        // of the whole sequence, so those of earlier turns are among them
        trajectory.routes = sample.routes;
        trajectory.finish = sample.finish;

        let graded = trace::phase("environment");
        let step = episode
            .environment
            .step(&episode.task, &trajectory.turns, &completion);
        drop(graded);
        let step = match step {
            Ok(step) => step,
            Err(e) => {
                trajectory.outcome = Outcome::Failed(e.to_string());
                trajectory.turns.push(Turn {
                    completion,
                    observation: Vec::new(),
                });
                return Ok(());
            }
        };
        if let Outcome::Rewarded(rewards) = &mut trajectory.outcome {
            for (name, value) in step.rewards {
                match rewards.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += value,
                    None => rewards.push((name, value)),
                }
            }
        }
        trajectory.turns.push(Turn {
            completion,
            observation: step.observation.clone(),
        });
        let turns = self.max_turns.min(episode.environment.max_turns());
        if step.done || trajectory.turns.len() >= turns {
            return Ok(());
        }

        let last = sample.tokens.last().copied().unwrap_or_default();
        let ended_turn = self.tokenizer.eos_ids().contains(&last);
        let observation = self
            .tokenizer
            .chat_observation(&step.observation, self.extra, ended_turn)
            .map_err(|e| Error::Template(e.to_string()))?;
        let length = trajectory.prompt.len() + trajectory.tokens.len() + observation.len();
        if length >= self.max_length {
            trajectory.finish = Finish::Length;
            return Ok(());
        }
        trajectory
            .mask
            .resize(trajectory.mask.len() + observation.len(), false);
        trajectory.tokens.extend(observation);
        let prompt = [trajectory.prompt.as_slice(), &trajectory.tokens].concat();
        self.ask(index, prompt, sample.sample..sample.sample + 1)
    }
}
