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

/// What a row can be, by the fields it has (the first that fits, in this order; other fields are
/// left alone). `tools` and `chat_template_kwargs` ride along where messages do.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// `{"prompt": .., "chosen": .., "rejected": ..}`, plain or messages. Without `prompt`, or
    /// where the two are whole conversations, what they have in common is the prompt. Or
    /// `{"question", "chosen", "rejected"}`, which is one user message and two assistant ones.
    Preference {
        prompt: Content,
        chosen: Content,
        rejected: Content,
        extra: Extra,
    },
    /// `{"messages": [..]}`
    Messages {
        messages: Vec<Message>,
        extra: Extra,
    },
    /// `{"prompt": .., "completion": ..}`, plain or messages, or `{"question": "..", "answer":
    /// ".."}`, which is one user and one assistant message.
    PromptCompletion {
        prompt: Content,
        completion: Content,
        extra: Extra,
    },
    /// `{"tokens": [..]}`, with `mask` where the row gives one (same length).
    Tokens {
        tokens: Vec<u32>,
        mask: Option<Vec<bool>>,
    },
    /// `{"text": ".."}`
    Text(String),
    /// `{"prompt": ..}` alone: what `generate` continues.
    Prompt { prompt: Content, extra: Extra },
}

impl Row {
    /// The kind in the words of the documentation, for errors.
    pub fn kind(&self) -> &'static str {
        match self {
            Row::Preference { .. } => "a preference row",
            Row::Messages { .. } => "a messages row",
            Row::PromptCompletion { .. } => "a prompt and completion",
            Row::Tokens { .. } => "a tokens row",
            Row::Text(_) => "a text row",
            Row::Prompt { .. } => "a prompt without completion",
        }
    }
}

/// What the chat template sees beside the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extra {
    /// JSON schemas of tools (field `tools`; a string is read as JSON).
    pub tools: Option<Value>,
    /// Variables of the template (field `chat_template_kwargs`), such as `enable_thinking`.
    pub template: Map<String, Value>,
}

pub fn parse(row: &Map<String, Value>, place: &str) -> Result<Row> {
    let has = |field: &str| row.get(field).is_some_and(|v| !v.is_null());
    let reader = Reader { row, place };
    if has("chosen") || has("rejected") {
        return reader.preference();
    }
    if has("messages") {
        return Ok(Row::Messages {
            messages: reader.messages("messages")?,
            extra: reader.extra()?,
        });
    }
    if has("prompt") && has("completion") {
        let (prompt, completion) = (reader.content("prompt")?, reader.content("completion")?);
        if matches!(prompt, Content::Text(_)) != matches!(completion, Content::Text(_)) {
            return Err(reader.fail(
                "prompt and completion must both be text or both be lists of messages".into(),
            ));
        }
        return Ok(Row::PromptCompletion {
            prompt,
            completion,
            extra: reader.extra()?,
        });
    }
    if has("question") && has("answer") {
        return Ok(Row::PromptCompletion {
            prompt: Content::Messages(vec![Message::user(reader.text("question")?)]),
            completion: Content::Messages(vec![Message::assistant(reader.text("answer")?)]),
            extra: reader.extra()?,
        });
    }
    if has("tokens") {
        return reader.tokens();
    }
    if has("text") {
        return Ok(Row::Text(reader.text("text")?));
    }
    if has("prompt") {
        return Ok(Row::Prompt {
            prompt: reader.content("prompt")?,
            extra: reader.extra()?,
        });
    }
    let fields: Vec<&str> = row.keys().map(String::as_str).collect();
    Err(reader.fail(format!(
        "no kind of row has these fields: [{}]; give messages, or prompt and completion, or \
         prompt, chosen and rejected, or question and answer, or text, or tokens",
        fields.join(", ")
    )))
}

struct Reader<'a> {
    row: &'a Map<String, Value>,
    place: &'a str,
}

impl Reader<'_> {
    fn fail(&self, message: String) -> Error {
        Error::row(self.place, message)
    }

    fn wrong(&self, field: &str, value: &Value, want: &str) -> Error {
        self.fail(format!("{field} must be {want}, got {}", quote(value)))
    }

    fn get(&self, field: &str) -> &Value {
        self.row.get(field).unwrap_or(&Value::Null)
    }

    fn text(&self, field: &str) -> Result<String> {
        match self.get(field) {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong(field, other, "a string")),
        }
    }

    fn content(&self, field: &str) -> Result<Content> {
        match self.get(field) {
            Value::String(text) => Ok(Content::Text(text.clone())),
            Value::Array(_) => Ok(Content::Messages(self.messages(field)?)),
            other => Err(self.wrong(field, other, "a string or a list of messages")),
        }
    }

    fn messages(&self, field: &str) -> Result<Vec<Message>> {
        let Value::Array(items) = self.get(field) else {
            return Err(self.wrong(
                field,
                self.get(field),
                "a list of {\"role\": .., \"content\": ..}",
            ));
        };
        if items.is_empty() {
            return Err(self.fail(format!("{field} is empty; give at least one message")));
        }
        items
            .iter()
            .enumerate()
            .map(|(i, item)| self.message(&format!("{field}[{i}]"), item))
            .collect()
    }

    fn message(&self, name: &str, item: &Value) -> Result<Message> {
        let Value::Object(map) = item else {
            return Err(self.wrong(name, item, "an object with role and content"));
        };
        match map.get("role") {
            Some(Value::String(role)) if !role.is_empty() => {}
            Some(other) => {
                return Err(self.wrong(&format!("{name}.role"), other, "a role like \"user\""));
            }
            None => return Err(self.fail(format!("{name} has no role: {}", quote(item)))),
        }
        match map.get("content") {
            None | Some(Value::Null | Value::String(_) | Value::Array(_)) => {}
            Some(other) => {
                return Err(self.wrong(&format!("{name}.content"), other, "a string"));
            }
        }
        Ok(Message(map.clone()))
    }

    fn extra(&self) -> Result<Extra> {
        let tools = match self.get("tools") {
            Value::Null => None,
            tools @ Value::Array(_) => Some(tools.clone()),
            value @ Value::String(text) => match serde_json::from_str(text) {
                Ok(Value::Null) => None,
                Ok(tools @ Value::Array(_)) => Some(tools),
                _ => return Err(self.wrong("tools", value, "a list of JSON schemas")),
            },
            other => return Err(self.wrong("tools", other, "a list of JSON schemas")),
        };
        let template = match self.get("chat_template_kwargs") {
            Value::Null => Map::new(),
            Value::Object(map) => map.clone(),
            other => return Err(self.wrong("chat_template_kwargs", other, "an object")),
        };
        Ok(Extra { tools, template })
    }

    fn tokens(&self) -> Result<Row> {
        let list = |field: &str, want: &str| match self.get(field) {
            Value::Array(items) => Ok(items),
            other => Err(self.wrong(field, other, want)),
        };
        let tokens: Vec<u32> = list("tokens", "a list of token ids")?
            .iter()
            .map(|item| {
                let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
                id.ok_or_else(|| self.wrong("tokens", item, "token ids from 0 up"))
            })
            .collect::<Result<_>>()?;
        if tokens.is_empty() {
            return Err(self.fail("tokens is empty; give at least one token id".into()));
        }
        if self.get("mask").is_null() {
            return Ok(Row::Tokens { tokens, mask: None });
        }
        let mask: Vec<bool> = list("mask", "a list of booleans")?
            .iter()
            .map(|item| match item {
                Value::Bool(b) => Ok(*b),
                Value::Number(n) if n.as_u64() == Some(0) => Ok(false),
                Value::Number(n) if n.as_u64() == Some(1) => Ok(true),
                other => Err(self.wrong("mask", other, "booleans or 0 and 1")),
            })
            .collect::<Result<_>>()?;
        if mask.len() != tokens.len() {
            return Err(self.fail(format!(
                "mask has {} entries for {} tokens; give one per token",
                mask.len(),
                tokens.len()
            )));
        }
        Ok(Row::Tokens {
            tokens,
            mask: Some(mask),
        })
    }

    fn preference(&self) -> Result<Row> {
        for field in ["chosen", "rejected"] {
            if self.get(field).is_null() {
                return Err(self.fail(format!(
                    "a preference row needs chosen and rejected, {field} is missing"
                )));
            }
        }
        let extra = self.extra()?;
        if self.get("prompt").is_null() && self.get("question").is_string() {
            let message = |role, field| {
                let message = Message::new(role, self.text(field)?);
                Ok(Content::Messages(vec![message]))
            };
            let (chosen, rejected) = (
                message("assistant", "chosen")?,
                message("assistant", "rejected")?,
            );
            return self.unequal(message("user", "question")?, chosen, rejected, extra);
        }
        let (chosen, rejected) = (self.content("chosen")?, self.content("rejected")?);
        let prompt = match self.get("prompt") {
            Value::Null => None,
            _ => Some(self.content("prompt")?),
        };
        let (prompt, chosen, rejected) = match (prompt, chosen, rejected) {
            (Some(Content::Text(prompt)), Content::Text(chosen), Content::Text(rejected)) => (
                Content::Text(prompt),
                Content::Text(chosen),
                Content::Text(rejected),
            ),
            (None, Content::Text(chosen), Content::Text(rejected)) => {
                let shared = common_text(&chosen, &rejected);
                (
                    Content::Text(chosen[..shared].to_string()),
                    Content::Text(chosen[shared..].to_string()),
                    Content::Text(rejected[shared..].to_string()),
                )
            }
            (
                Some(Content::Messages(prompt)),
                Content::Messages(chosen),
                Content::Messages(rejected),
            ) => {
                let own = |branch: Vec<Message>| match branch.strip_prefix(prompt.as_slice()) {
                    Some(rest) if !rest.is_empty() => rest.to_vec(),
                    _ => branch,
                };
                let (chosen, rejected) = (own(chosen), own(rejected));
                (
                    Content::Messages(prompt),
                    Content::Messages(chosen),
                    Content::Messages(rejected),
                )
            }
            // Whole conversations, beside a plain prompt or none: what they share is the prompt.
            (
                None | Some(Content::Text(_)),
                Content::Messages(chosen),
                Content::Messages(rejected),
            ) => {
                let most = chosen.len().min(rejected.len()) - 1;
                let shared = (0..most).take_while(|&i| chosen[i] == rejected[i]).count();
                if shared == 0 {
                    return Err(self.fail(
                        "chosen and rejected share no message that could be the prompt; give \
                         prompt as a list of messages"
                            .into(),
                    ));
                }
                (
                    Content::Messages(chosen[..shared].to_vec()),
                    Content::Messages(chosen[shared..].to_vec()),
                    Content::Messages(rejected[shared..].to_vec()),
                )
            }
            _ => {
                return Err(self.fail(
                    "prompt, chosen and rejected must all be text or all be lists of messages"
                        .into(),
                ));
            }
        };
        self.unequal(prompt, chosen, rejected, extra)
    }

    fn unequal(
        &self,
        prompt: Content,
        chosen: Content,
        rejected: Content,
        extra: Extra,
    ) -> Result<Row> {
        if chosen == rejected {
            return Err(self.fail(
                "chosen and rejected are equal; a preference row must prefer one of two".into(),
            ));
        }
        Ok(Row::Preference {
            prompt,
            chosen,
            rejected,
            extra,
        })
    }
}

/// Byte length of the longest common prefix that ends before whitespace or at the start, so that
/// no word is split between prompt and completion.
fn common_text(a: &str, b: &str) -> usize {
    let mut at = 0;
    for ((i, x), y) in a.char_indices().zip(b.chars()) {
        if x.is_whitespace() {
            at = i;
        }
        if x != y {
            return at;
        }
    }
    at
}
