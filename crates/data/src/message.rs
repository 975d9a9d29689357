//! One message of a conversation: a JSON object with at least a `role`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// All fields are kept as written (`reasoning_content`, `tool_calls`, ..): templates read them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(pub Map<String, Value>);

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        let mut map = Map::new();
        map.insert("role".into(), role.into());
        map.insert("content".into(), Value::String(content.into()));
        Message(map)
    }

    pub fn user(content: impl Into<String>) -> Message {
        Message::new("user", content)
    }

    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new("assistant", content)
    }

    /// The role, or `""` where there is none (datasets refuse such messages).
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or("")
    }

    /// The text of the content: a string, or the joined text parts of a list of parts.
    pub fn text(&self) -> String {
        match self.0.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts
                .iter()
                .filter_map(|part| part.get("text").and_then(Value::as_str))
                .collect(),
            _ => String::new(),
        }
    }
}
