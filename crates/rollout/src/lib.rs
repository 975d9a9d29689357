//! Generation from the policy's own weights: continuous batching over a paged KV cache.
//!
//! ```text
//! submit(Request) -> scheduler (which rows next) -> engine (one forward of those rows) -> sampler -> Sample
//!                         |                              |
//!                      blocks (who owns which)       store (the keys and values in them)
//! ```
//!
//! A completion has the same bits alone and in any batch on CPU: every operation computes a row
//! from that row alone (see [`cpu`]), every draw is keyed by (seed, request, sample, position),
//! and the engine knows no other coupling between rows.

mod error;
mod request;

pub use error::Error;
pub use request::{Finish, Request, Sample, Sampling};

use data::Tokenizer;
use model::{Decoder, Weights};

/// Sizes of a rollout. They change speed and memory, never a completion.
#[derive(Debug, Clone)]
pub struct RolloutConfig {
    /// Most rows (prompt tokens being computed plus sequences being extended) of one forward.
    pub max_rows: usize,
    /// Most sequences being extended at once.
    pub max_sequences: usize,
    /// Tokens whose keys and values the cache holds; 0 takes as many as fit in 1 GiB.
    pub cache_tokens: usize,
    /// Tokens that end a completion unless `ignore_eos`.
    pub eos: Vec<u32>,
    /// Threads of the CPU path; 0 takes libtorch's number.
    pub threads: usize,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { max_rows: 1024, max_sequences: 256, cache_tokens: 0, eos: Vec::new(), threads: 0 }
    }
}

/// Generates from `weights` as they are; it borrows them, so they cannot be updated meanwhile.
pub struct Rollout<'m> {
    decoder: &'m Decoder,
    weights: &'m Weights,
    tokenizer: Option<&'m Tokenizer>,
    config: RolloutConfig,
}

impl<'m> Rollout<'m> {
    /// A rollout with a cache of its own.
    pub fn new(decoder: &'m Decoder, weights: &'m Weights, config: RolloutConfig) -> Result<Self, Error> {
        Ok(Self { decoder, weights, tokenizer: None, config })
    }

    /// The tokenizer that stop strings are found with.
    pub fn with_tokenizer(mut self, tokenizer: &'m Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// Queues a request.
    pub fn submit(&mut self, request: Request) -> Result<(), Error> {
        let _ = (request, &self.decoder, &self.weights, &self.config);
        todo!()
    }

    /// One forward; returns the completions that ended with it.
    pub fn step(&mut self) -> Result<Vec<Sample>, Error> {
        todo!()
    }

    /// Runs the requests to their ends; samples in the order of the requests, then of samples.
    pub fn run_all(&mut self, requests: Vec<Request>) -> Result<Vec<Sample>, Error> {
        let _ = requests;
        todo!()
    }
}

pub mod episodes;
