//! What is asked of a rollout and what comes back.

use crate::Error;

/// A prompt and how many completions of it (a group) to sample.
#[derive(Debug, Clone)]
pub struct Request {
    /// Names the request in its samples, and keys its random draws: two requests with the same
    /// id, sampling and prompt give the same completions.
    pub id: u64,
    /// Prompt tokens; at least one.
    pub prompt: Vec<u32>,
    /// Completions wanted; at least one. The prompt is computed once for all of them.
    pub samples: usize,
    /// How to sample.
    pub sampling: Sampling,
}

/// How tokens are chosen and when a completion ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Most tokens of one completion; at least one.
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the most likely token (the lowest id among equals).
    pub temperature: f64,
    /// Keeps the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    pub top_p: f64,
    /// Keeps this many most likely tokens, applied before `top_p`; 0 keeps all.
    pub top_k: usize,
    /// A completion ends when its text contains one of these. Needs a tokenizer.
    pub stop: Vec<String>,
    /// A completion ends with one of these tokens, besides the model's end-of-sequence tokens.
    pub stop_tokens: Vec<u32>,
    /// Go on after an end-of-sequence token (`stop` and `stop_tokens` still hold).
    pub ignore_eos: bool,
    /// Keys the draws together with the request's id, the sample and the token's position.
    pub seed: u64,
}

impl Default for Sampling {
    /// 256 tokens at temperature 1 from the whole distribution, seed 0.
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses values that mean nothing, naming the first one found.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |what: &'static str, value: String, fix: &'static str| {
            Err(Error::Sampling { what, value, fix })
        };
        if self.max_tokens == 0 {
            return bad("max_tokens", "0".into(), "1 or more");
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad("temperature", self.temperature.to_string(), "0 or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", self.top_p.to_string(), "above 0 and at most 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return bad("stop", "\"\"".into(), "strings that are not empty");
        }
        Ok(())
    }
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// An end-of-sequence token, a stop token or a stop string; it is part of `tokens`.
    Stop,
    /// `max_tokens` were sampled.
    Length,
}

/// One completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The request's id.
    pub request: u64,
    /// Which of the request's samples, from 0.
    pub sample: usize,
    /// What was sampled, the stop token (or the tokens of the stop string) included.
    pub tokens: Vec<u32>,
    /// For each token its log-probability under softmax(logits / temperature), unfiltered by
    /// `top_p` and `top_k`; at temperature 0 under softmax(logits).
    pub logprobs: Vec<f32>,
    /// Under [`RolloutConfig::routes`](crate::RolloutConfig::routes), for a model with experts: the
    /// experts that every token of prompt and completion but the last went to, token by token, for
    /// each the choices of the layers with experts in ascending order. Else empty.
    pub routes: Vec<u16>,
    /// Why it ended.
    pub finish: Finish,
    /// The version of the weights that every token came from.
    pub weights_version: u64,
}
