//! Row kinds, told apart by their fields.

use crate::error::{Error, Result, quote};
use crate::message::Message;
use serde_json::{Map, Value};

/// Plain text, or messages of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Text(String),
    Messages(Vec<Message>),
}

/// What a row can be. `tools` and `template` (extra variables for the chat template, field
/// `chat_template_kwargs`) ride along where messages do.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// `{"messages": [..]}`
    Messages {
        messages: Vec<Message>,
        extra: Extra,
    },
    /// `{"prompt": .., "completion": ..}`, or `{"question", "answer"}` as one turn of messages.
    PromptCompletion {
        prompt: Content,
        completion: Content,
        extra: Extra,
    },
    /// `{"prompt": .., "chosen": .., "rejected": ..}`; without `prompt`, two whole conversations
    /// whose common messages are the prompt.
    Preference {
        prompt: Content,
        chosen: Content,
        rejected: Content,
        extra: Extra,
    },
    /// `{"prompt": ..}` alone: what `generate` continues.
    Prompt { prompt: Content, extra: Extra },
    /// `{"text": ".."}`
    Text(String),
    /// `{"tokens": [..]}`, with `mask` where the row gives one (same length).
    Tokens {
        tokens: Vec<u32>,
        mask: Option<Vec<bool>>,
    },
}

/// What the chat template sees beside the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extra {
    pub tools: Option<Value>,
    pub template: Map<String, Value>,
}

pub fn parse(_row: &Map<String, Value>, place: &str) -> Result<Row> {
    let _ = quote(&Value::Null);
    Err(Error::row(place, "todo"))
}
