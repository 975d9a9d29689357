//! A sequence being generated: a prompt, or one completion of it.

use crate::blocks::Chain;
use crate::{Finish, Request};
use std::ops::Range;
use std::rc::Rc;

/// When a request came, and which of its samples this is.
pub type Arrival = (u64, usize);

/// Tokens, how many of them the cache holds, and where.
#[derive(Clone)]
pub struct Sequence {
    /// What was asked for.
    pub request: Rc<Request>,
    /// The samples that it stands for: a whole group until its prompt is computed, then one.
    pub samples: Range<usize>,
    /// Whatever the submitter knows it by.
    pub tag: usize,
    /// Order of arrival: earlier ones are served first and give way last.
    pub arrival: Arrival,
    /// Prompt and completion.
    pub tokens: Vec<u32>,
    /// One per token of the completion.
    pub logprobs: Vec<f32>,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    /// Blocks of the cache.
    pub table: Vec<u32>,
    /// Chains of the leading full blocks that were published or found.
    pub chains: Vec<Chain>,
    /// Experts that its computed tokens went to; filled in when it ends.
    pub routes: Vec<u16>,
    /// Set while its last token is chosen but not read: where that is among the choices of the forward under way.
    /// Until it is read, the token stands as 0.
    pub unread: Option<usize>,
    /// Set with its last token.
    pub finish: Option<Finish>,
}

impl Sequence {
    /// The group of a request before anything is computed.
    pub fn new(request: Rc<Request>, samples: Range<usize>, arrival: u64, tag: usize) -> Self {
        Self {
            tag,
            arrival: (arrival, samples.start),
            samples,
            tokens: request.prompt.clone(),
            logprobs: Vec::new(),
            computed: 0,
            table: Vec::new(),
            chains: Vec::new(),
            routes: Vec::new(),
            unread: None,
            finish: None,
            request,
        }
    }

    /// Tokens sampled so far.
    pub fn completion(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }

    /// Tokens that a forward has yet to see.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether its last token is the last that it may have, though nobody has read it yet.
    pub fn is_over(&self) -> bool {
        self.unread.is_some() && self.completion().len() >= self.request.sampling.max_tokens
    }

    /// Finishes if its last token ends it. `text_stop`: the text holds a stop string now.
    pub fn settle(&mut self, eos: &[u32], text_stop: bool) {
        let sampling = &self.request.sampling;
        let stop = self.completion().last().is_some_and(|last| {
            sampling.stop_tokens.contains(last) || !sampling.ignore_eos && eos.contains(last)
        });
        if stop || text_stop {
            self.finish = Some(Finish::Stop);
        } else if self.completion().len() >= sampling.max_tokens {
            self.finish = Some(Finish::Length);
        }
    }
}
