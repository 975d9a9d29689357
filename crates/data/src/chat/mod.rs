//! Chat templates, rendered as Hugging Face transformers renders them.

use crate::dataset::Extra;
use crate::error::Result;
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

/// A compiled chat template with the special tokens it may print.
pub struct Template {
    // compiled environment
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
    /// Tokens that enter the loss.
    pub mask: Vec<bool>,
}

impl Template {
    /// The text of a conversation, as `apply_chat_template(tokenize=False)` gives it.
    pub fn render(&self, _messages: &[Message], _extra: &Extra, _generation_prompt: bool) -> Result<String> {
        todo!()
    }

    /// The whole conversation and its assistant spans.
    pub fn render_spans(&self, _messages: &[Message], _extra: &Extra) -> Result<Rendered> {
        todo!()
    }
}

impl Tokenizer {
    /// Tokens of a prompt: the conversation with the generation prompt.
    pub fn chat_prompt(&self, _messages: &[Message], _extra: &Extra) -> Result<Vec<u32>> {
        todo!()
    }

    /// Tokens of a whole conversation with its loss mask; tokenised once.
    pub fn chat(&self, _messages: &[Message], _extra: &Extra, _train_on: TrainOn) -> Result<Chat> {
        todo!()
    }

    /// Tokens to append after a sampled completion so that the conversation goes on: what is left
    /// of the end of the assistant's turn, the observation, and the generation prompt. `stopped`:
    /// the completion's tokens end with an end-of-turn token (which is then not added again).
    pub fn chat_observation(&self, _observation: &[Message], _extra: &Extra, _stopped: bool) -> Result<Vec<u32>> {
        todo!()
    }
}
