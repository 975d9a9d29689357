//! What can go wrong in a rollout.

/// An error of the rollout engine. No variant leaves the engine unusable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sampling value that means nothing.
    #[error("{what} = {value} cannot be sampled with: {what} must be {fix}")]
    Sampling {
        what: &'static str,
        value: String,
        fix: &'static str,
    },
    /// A request without prompt tokens.
    #[error("request {request} has an empty prompt: give at least one token")]
    EmptyPrompt { request: u64 },
    /// A request for no samples.
    #[error("request {request} asks for 0 samples: ask for at least one")]
    NoSamples { request: u64 },
    /// A prompt token that the model has no embedding for.
    #[error(
        "token {token} of request {request} is outside the model's vocabulary of {vocab}: the tokenizer does not fit the model"
    )]
    Token {
        request: u64,
        token: u32,
        vocab: usize,
    },
    /// Longer than the model's positions.
    #[error(
        "request {request} may reach {len} tokens ({prompt} of prompt + max_tokens), more than the model's {limit} positions: lower max_tokens or shorten the prompt"
    )]
    TooLong {
        request: u64,
        len: usize,
        prompt: usize,
        limit: usize,
    },
    /// Longer than the whole cache.
    #[error(
        "request {request} may reach {len} tokens, more than the {limit} that the cache holds: raise cache_tokens or lower max_tokens"
    )]
    CacheTooSmall {
        request: u64,
        len: usize,
        limit: usize,
    },
    /// A prompt that fills the length it may have.
    #[error(
        "the prompt of episode {request} has {prompt} tokens, which leaves none of {limit} for a completion: shorten it or raise max_length"
    )]
    NoRoom {
        request: u64,
        prompt: usize,
        limit: usize,
    },
    /// Episodes want a rollout of their own.
    #[error("the rollout has other requests pending: run them to their end before episodes")]
    Busy,
    /// Stop strings need text, and text needs a tokenizer.
    #[error(
        "request {request} has stop strings but the rollout has no tokenizer: give it one with `with_tokenizer`"
    )]
    NoTokenizer { request: u64 },
    /// The weights changed while sequences were being generated from them.
    #[error(
        "weights changed during a rollout (version {expected} at its start, {found} now): finish or drop the rollout before updating the weights"
    )]
    WeightsChanged { expected: u64, found: u64 },
    /// A sample came from other weights than the ones it is to be used with.
    #[error(
        "sample {sample} of request {request} came from weights version {found}, not {expected}: sample again"
    )]
    Version {
        request: u64,
        sample: usize,
        expected: u64,
        found: u64,
    },
    /// A cache whose shape does not fit the decoder.
    #[error("a cache made for {made} cannot serve {asked}: make a new one")]
    CacheShape { made: String, asked: String },
    /// Logits that are not numbers: the weights are damaged.
    #[error(
        "request {request}: the logits at position {position} are not finite: the weights hold NaN or infinity, or overflowed in {kind}"
    )]
    NotFinite {
        request: u64,
        position: usize,
        kind: String,
    },
    /// A model that cannot be made.
    #[error("model: {0}")]
    Model(String),
    /// Text could not be made from tokens, or tokens from text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A conversation the template cannot render as a continuation.
    #[error("chat template: {0}")]
    Template(String),
    /// A rank that holds a part of the model.
    #[error(transparent)]
    Parallel(#[from] parallel::Error),
}
