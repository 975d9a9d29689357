//! Chat templates, rendered as Hugging Face transformers renders them, and which tokens of a
//! conversation the assistant wrote.

mod python;
mod spans;
mod template;

pub use template::Template;

use crate::dataset::Extra;
use crate::error::{Error, Result};
use crate::message::Message;
use crate::tokenizer::Tokenizer;
use std::ops::Range;

/// Which tokens of a conversation enter the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// Every assistant turn.
    #[default]
    Assistant,
    /// The last assistant turn.
    Last,
    /// Every token.
    All,
}

/// A rendered conversation and where its assistant turns lie in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub text: String,
    /// Byte ranges of the assistant turns (what the model writes: content and end of turn).
    pub spans: Vec<Range<usize>>,
}

/// A tokenised conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    pub tokens: Vec<u32>,
    /// Tokens that enter the loss (never the first: nothing precedes it).
    pub mask: Vec<bool>,
}

impl Tokenizer {
    /// Tokens of a prompt: the conversation with the generation prompt.
    pub fn chat_prompt(&self, messages: &[Message], extra: &Extra) -> Result<Vec<u32>> {
        let text = self.template()?.render(messages, extra, true)?;
        self.encode(&text, false)
    }

    /// Tokens of a whole conversation with its loss mask. Rendered whole and tokenised once.
    pub fn chat(&self, messages: &[Message], extra: &Extra, train_on: TrainOn) -> Result<Chat> {
        self.chat_from(messages, extra, train_on, 0)
    }

    /// As [`Tokenizer::chat`], with only messages `first` and after entering the loss.
    pub fn chat_from(
        &self,
        messages: &[Message],
        extra: &Extra,
        train_on: TrainOn,
        first: usize,
    ) -> Result<Chat> {
        let template = self.template()?;
        let Rendered { text, mut spans } = template.render_spans(messages, extra, first)?;
        match train_on {
            TrainOn::Assistant => {}
            TrainOn::Last => spans = spans.pop().into_iter().collect(),
            TrainOn::All => spans = std::iter::once(0..text.len()).collect(),
        }
        if spans.is_empty() {
            return Err(Error::Template(
                "the conversation has no assistant turn to train on; add one or set train_on = \
                 \"all\""
                    .into(),
            ));
        }
        let (tokens, offsets) = self.encode_offsets(&text, false)?;
        let mask = mask(&offsets, &spans);
        Ok(Chat { tokens, mask })
    }

    /// Tokens to append after a sampled completion so that the conversation goes on: what is left
    /// of the end of the assistant's turn, the observation, and the generation prompt. `stopped`:
    /// the completion's tokens end with an end-of-turn token (which is then not added again).
    pub fn chat_observation(
        &self,
        observation: &[Message],
        extra: &Extra,
        stopped: bool,
    ) -> Result<Vec<u32>> {
        let (end, rest) = self.template()?.after_turn(observation, extra)?;
        let text = if stopped { rest } else { end + &rest };
        self.encode(&text, false)
    }
}

/// A token is in where it shares a byte with a span, as transformers has it.
pub(crate) fn mask(offsets: &[(usize, usize)], spans: &[Range<usize>]) -> Vec<bool> {
    let mut next = 0;
    let mut mask: Vec<bool> = (offsets.iter())
        .map(|&(start, end)| {
            while next < spans.len() && spans[next].end <= start {
                next += 1;
            }
            next < spans.len() && start < end && end > spans[next].start
        })
        .collect();
    if let Some(first) = mask.first_mut() {
        *first = false;
    }
    mask
}
