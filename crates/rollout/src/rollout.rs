//! The engine as its users see it: requests in, samples out.

use crate::blocks::BLOCK;
use crate::engine::Engine;
use crate::peers::Peers;
use crate::sampler::{Chosen, Pick};
use crate::scheduler::{Round, Scheduler};
use crate::sequence::{Arrival, Sequence};
use crate::store::KvCache;
use crate::{Error, Request, Sample, Sampling};
use data::Tokenizer;
use model::{Decoder, Weights};
use std::ops::Range;
use std::rc::Rc;

/// Sizes of a rollout. They change speed and memory, never a completion.
#[derive(Debug, Clone)]
pub struct RolloutConfig {
    /// Most rows (prompt tokens being computed plus sequences being extended) of one forward.
    pub max_rows: usize,
    /// Most sequences being computed at once.
    pub max_sequences: usize,
    /// Tokens whose keys and values a cache holds; 0 takes as many as fit in 512 MiB
    /// (on a GPU 8 GiB).
    pub cache_tokens: usize,
    /// Tokens that end a completion unless `ignore_eos`.
    pub eos: Vec<u32>,
    /// Threads of the CPU path; 0 takes libtorch's number.
    pub threads: usize,
    /// Plain libtorch operators on the CPU too, as on other devices: slower, and a completion may
    /// then depend, in its last bits, on its batch.
    pub plain: bool,
    /// Whether samples carry the experts that their tokens went to.
    pub routes: bool,
    /// Whether a forward starts before the host has read the tokens of the one before, which it then takes where they
    /// lie; a sequence that ends is computed one token further, and that is dropped. None: on a GPU. Samples that
    /// carry experts are read at once.
    pub late: Option<bool>,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            max_rows: 1024,
            max_sequences: 256,
            cache_tokens: 0,
            eos: Vec::new(),
            threads: 0,
            plain: false,
            routes: false,
            late: None,
        }
    }
}

/// What a rollout did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Forwards.
    pub steps: u64,
    /// Rows computed.
    pub rows: u64,
    /// Tokens sampled.
    pub sampled: u64,
    /// Prompt tokens found in the cache instead of computed.
    pub reused: u64,
    /// Times that a sequence gave up its blocks and was computed again.
    pub preempted: u64,
}

/// Generates from `weights` as they are. It borrows them; a change through a shared tensor while
/// sequences are pending is found and refused.
pub struct Rollout<'m> {
    decoder: &'m Decoder,
    weights: &'m Weights,
    tokenizer: Option<&'m Tokenizer>,
    config: RolloutConfig,
    engine: Engine,
    cache: KvCache,
    scheduler: Scheduler,
    /// Whether a forward starts before the tokens of the one before are read.
    late: bool,
    /// The forward whose tokens are not read yet.
    flying: Option<Flight>,
    arrivals: u64,
    stats: Stats,
}

/// A forward that was given to the device.
struct Flight {
    round: Round,
    ends: Vec<End>,
    chosen: Chosen,
}

/// A sequence for which a forward chose a token, or one for each of its samples.
struct End {
    arrival: Arrival,
    /// Where it ran.
    at: usize,
    samples: usize,
}

impl<'m> Rollout<'m> {
    /// A rollout with a cache of its own.
    ///
    /// # Errors
    /// If the weights cannot be generated from.
    pub fn new(
        decoder: &'m Decoder,
        weights: &'m Weights,
        config: RolloutConfig,
    ) -> Result<Self, Error> {
        let cache = KvCache::new(&decoder.config, weights, &config)?;
        Self::with_cache(decoder, weights, config, cache)
    }

    /// A rollout whose model lies on several ranks: `weights` are this one's part. All peers are
    /// given the same requests in the same order, and all get all samples.
    ///
    /// # Errors
    /// If the weights cannot be generated from.
    pub fn among(
        decoder: &'m Decoder,
        weights: &'m Weights,
        mut config: RolloutConfig,
        peers: Peers,
    ) -> Result<Self, Error> {
        // a cache of the same size on all, so that all schedule alike
        let kv_heads = peers.kv_heads(&decoder.config);
        config.cache_tokens = KvCache::tokens_for(&decoder.config, weights, &config, kv_heads);
        let cache = KvCache::new(&decoder.config, weights, &config)?;
        Self::start(decoder, weights, config, cache, peers)
    }

    /// A rollout that uses the memory of `cache`, and its prefixes if they came from these very
    /// values of the weights.
    ///
    /// # Errors
    /// If the cache was made for another shape, kind or device.
    pub fn with_cache(
        decoder: &'m Decoder,
        weights: &'m Weights,
        config: RolloutConfig,
        cache: KvCache,
    ) -> Result<Self, Error> {
        Self::start(decoder, weights, config, cache, Peers::alone())
    }

    fn start(
        decoder: &'m Decoder,
        weights: &'m Weights,
        config: RolloutConfig,
        mut cache: KvCache,
        peers: Peers,
    ) -> Result<Self, Error> {
        cache.serve(&decoder.config, weights, &config)?;
        let threads = if config.threads == 0 {
            torch::threads::get()
        } else {
            config.threads
        };
        let engine = tch::no_grad(|| Engine::new(decoder, weights, threads, peers));
        let scheduler = Scheduler::new(config.max_rows, config.max_sequences);
        // what a host must look at after each forward, it waits for anyway
        let late = config.late.unwrap_or(engine.is_gpu()) && !config.routes;
        Ok(Self {
            decoder,
            weights,
            tokenizer: None,
            config,
            engine,
            cache,
            scheduler,
            late,
            flying: None,
            arrivals: 0,
            stats: Stats::default(),
        })
    }

    /// Computes by the kernels of this machine.
    #[cfg(test)]
    pub(crate) fn on(mut self, machine: &'static dyn kernels::cuda::Machine) -> Self {
        self.engine.machine = Some(machine);
        self
    }

    /// The cache, for the next rollout; what is pending is dropped.
    pub fn into_cache(mut self) -> KvCache {
        self.scheduler.clear(&mut self.cache.blocks);
        self.cache
    }

    /// The tokenizer that stop strings are found with.
    pub fn with_tokenizer(mut self, tokenizer: &'m Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// The version that samples are stamped with.
    pub fn weights_version(&self) -> u64 {
        self.weights.version
    }

    /// Most tokens of one sequence: what the model's positions and the cache allow.
    pub fn max_length(&self) -> usize {
        self.decoder.config.max_positions.min(self.cache.tokens())
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        Stats {
            reused: self.scheduler.reused,
            preempted: self.scheduler.preempted,
            ..self.stats
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// A request that can never be served, by what is wrong with it; nothing is queued then.
    pub fn submit(&mut self, request: Request) -> Result<(), Error> {
        let samples = 0..request.samples;
        self.submit_tagged(request, samples, 0)
    }

    /// Queues some of a request's samples, known to the submitter by `tag`.
    pub(crate) fn submit_tagged(
        &mut self,
        request: Request,
        samples: Range<usize>,
        tag: usize,
    ) -> Result<(), Error> {
        self.check(&request)?;
        self.arrivals += 1;
        self.scheduler
            .add(Sequence::new(Rc::new(request), samples, self.arrivals, tag));
        Ok(())
    }

    /// One forward; returns the samples that ended with it, in order of arrival.
    ///
    /// # Errors
    /// Weights that changed meanwhile, logits that are not numbers, a tokenizer that fails. What
    /// was pending is dropped then.
    pub fn step(&mut self) -> Result<Vec<Sample>, Error> {
        Ok(self
            .step_tagged()?
            .into_iter()
            .map(|(_, sample)| sample)
            .collect())
    }

    /// [`Rollout::step`] with the tags of the samples.
    pub(crate) fn step_tagged(&mut self) -> Result<Vec<(usize, Sample)>, Error> {
        let mut done = self.advance()?;
        done.sort_by_key(|s| s.arrival);
        Ok(done.into_iter().map(|s| (s.tag, self.sample(s))).collect())
    }

    /// Runs everything that is queued, and `requests`, to the end; samples in the order of the
    /// requests, then of samples.
    ///
    /// # Errors
    /// As [`Rollout::submit`] and [`Rollout::step`].
    pub fn run_all(&mut self, requests: Vec<Request>) -> Result<Vec<Sample>, Error> {
        requests.iter().try_for_each(|r| self.check(r))?;
        for request in requests {
            self.submit(request)?;
        }
        let mut done = Vec::new();
        while !self.is_idle() {
            done.extend(self.advance()?);
        }
        done.sort_by_key(|s| s.arrival);
        Ok(done.into_iter().map(|s| self.sample(s)).collect())
    }

    /// Whether nothing is queued.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Drops everything that is queued.
    pub fn clear(&mut self) {
        self.flying = None;
        self.scheduler.clear(&mut self.cache.blocks);
    }

    fn advance(&mut self) -> Result<Vec<Sequence>, Error> {
        let done = self.try_advance();
        if done.is_err() {
            self.clear();
        }
        done
    }

    /// Starts the next forward, if there is one, and ends the one before; the two are the same where tokens are read at
    /// once.
    fn try_advance(&mut self) -> Result<Vec<Sequence>, Error> {
        if self.is_idle() {
            return Ok(Vec::new());
        }
        self.cache.check(self.weights)?;
        let started = self.start_forward()?;
        let mut done = match self.flying.take() {
            Some(before) => self.read(before)?,
            None => Vec::new(),
        };
        if let Some(flight) = started {
            self.scheduler
                .advance(&flight.round, &mut self.cache.blocks);
            self.append(&flight);
            match self.late {
                true => self.flying = Some(flight),
                false => done.extend(self.read(flight)?),
            }
        }
        Ok(done)
    }

    /// Gives the device the next forward and the choice of a token for every sample at its end.
    fn start_forward(&mut self) -> Result<Option<Flight>, Error> {
        let scheduling = trace::phase("schedule");
        let round = self.scheduler.schedule(&mut self.cache.blocks);
        if round.is_empty() {
            return Ok(None);
        }
        for &(from, to) in &round.copies {
            self.cache.copy(from, to);
        }
        let ends: Vec<(usize, usize)> = round.ends(&self.scheduler.running).collect();
        drop(scheduling);

        let rows: Vec<usize> = ends.iter().map(|e| e.0).collect();
        let record = self.cache.routes.record();
        let before = self.flying.as_ref().map(|flight| &flight.chosen);
        let (engine, store) = (&mut self.engine, &self.cache.store);
        let forward = round.seen();
        let logits =
            tch::no_grad(|| engine.forward(store, (&round.batch, before), &rows, &record))?;
        drop(forward);
        self.cache.routes.keep(&round.batch, record);
        let running = &self.scheduler.running;
        let picks: Vec<(usize, Pick)> = ends
            .iter()
            .enumerate()
            .flat_map(|(row, &(_, at))| {
                let s = &running[at];
                let pick = move |sample| Pick {
                    sampling: &s.request.sampling,
                    request: s.request.id,
                    sample,
                    position: s.tokens.len(),
                };
                s.samples.clone().map(move |sample| (row, pick(sample)))
            })
            .collect();
        let sampling = trace::phase("sample").with("tokens", picks.len());
        let chosen = self.engine.choose(&logits, &picks);
        drop(sampling);
        let ends = ends.iter().map(|&(_, at)| End {
            at,
            arrival: running[at].arrival,
            samples: running[at].samples.len(),
        });
        let ends = ends.collect();
        self.stats.steps += 1;
        self.stats.rows += round.batch.rows.len() as u64;
        Ok(Some(Flight {
            round,
            ends,
            chosen,
        }))
    }

    /// Appends the tokens that a forward chose, not read yet, and splits groups.
    fn append(&mut self, flight: &Flight) {
        let mut place = 0;
        for end in &flight.ends {
            let mut append = |s: &mut Sequence| {
                s.tokens.push(0);
                s.unread = Some(place);
                place += 1;
            };
            match self.scheduler.find(end.arrival, end.at) {
                // it ended with the forward before: what was chosen for it is nobody's
                None => place += end.samples,
                Some(at) if end.samples == 1 => append(&mut self.scheduler.running[at]),
                Some(at) => self.scheduler.fork(at, &mut self.cache.blocks, &mut append),
            }
        }
    }

    /// Reads the tokens that a forward chose, and collects what ended with them.
    fn read(&mut self, flight: Flight) -> Result<Vec<Sequence>, Error> {
        let reading = trace::phase("read");
        let choices = flight.chosen.read();
        drop(reading);
        let _ending = trace::phase("append");
        let (tokenizer, eos, kind) = (self.tokenizer, &self.config.eos, self.weights.kind());
        for s in self.scheduler.unread() {
            let place = s.unread.take();
            let choice = place.and_then(|place| choices[place]);
            let position = s.tokens.len() - 1;
            let choice = choice.ok_or_else(|| Error::NotFinite {
                request: s.request.id,
                position,
                kind: format!("{kind:?}").to_lowercase(),
            })?;
            s.tokens[position] = choice.token;
            s.logprobs.push(choice.logprob);
            self.stats.sampled += 1;
            let text_stop = ends_in_stop(tokenizer, &s.request.sampling, s.completion())?;
            s.settle(eos, text_stop);
        }
        let routes = &self.cache.routes;
        let keep = |s: &mut Sequence| s.routes = routes.of(&s.table, s.computed);
        Ok(self.scheduler.take_finished(&mut self.cache.blocks, keep))
    }

    fn sample(&self, s: Sequence) -> Sample {
        Sample {
            request: s.request.id,
            sample: s.samples.start,
            tokens: s.completion().to_vec(),
            logprobs: s.logprobs,
            routes: s.routes,
            finish: s.finish.unwrap_or(crate::Finish::Length),
            weights_version: self.weights.version,
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let id = request.id;
        request.sampling.check()?;
        if request.prompt.is_empty() {
            return Err(Error::EmptyPrompt { request: id });
        }
        if request.samples == 0 {
            return Err(Error::NoSamples { request: id });
        }
        let vocab = self.decoder.config.vocab_size;
        if let Some(&token) = request.prompt.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Token {
                request: id,
                token,
                vocab,
            });
        }
        if !request.sampling.stop.is_empty() && self.tokenizer.is_none() {
            return Err(Error::NoTokenizer { request: id });
        }
        let prompt = request.prompt.len();
        let len = prompt.saturating_add(request.sampling.max_tokens);
        let limit = self.decoder.config.max_positions;
        if len > limit {
            return Err(Error::TooLong {
                request: id,
                len,
                prompt,
                limit,
            });
        }
        let limit = self.cache.tokens();
        if len.next_multiple_of(BLOCK) > limit {
            return Err(Error::CacheTooSmall {
                request: id,
                len,
                limit,
            });
        }
        Ok(())
    }
}

/// Whether the text of a completion holds a stop string that its last token completed.
fn ends_in_stop(
    tokenizer: Option<&Tokenizer>,
    sampling: &Sampling,
    completion: &[u32],
) -> Result<bool, Error> {
    let Some(tokenizer) = tokenizer.filter(|_| !sampling.stop.is_empty()) else {
        return Ok(false);
    };
    // a token is a byte of text at least; the few more are for those that are less (half a
    // character, a space that decoding drops at the beginning)
    let longest = sampling.stop.iter().map(String::len).max().unwrap_or(0) + 8;
    let text = tokenizer
        .decode(
            &completion[completion.len().saturating_sub(longest)..],
            false,
        )
        .map_err(|e| Error::Tokenizer(e.to_string()))?;
    Ok(sampling
        .stop
        .iter()
        .any(|stop| text.contains(stop.as_str())))
}

/// The text of a completion: special tokens left out, cut before the first stop string.
///
/// # Errors
/// The tokenizer's.
pub fn text(tokenizer: &Tokenizer, sampling: &Sampling, tokens: &[u32]) -> Result<String, Error> {
    let mut text = tokenizer
        .decode(tokens, true)
        .map_err(|e| Error::Tokenizer(e.to_string()))?;
    if let Some(at) = sampling
        .stop
        .iter()
        .filter_map(|stop| text.find(stop.as_str()))
        .min()
    {
        text.truncate(at);
    }
    Ok(text)
}
