//! A compiled chat template, rendered as transformers' `apply_chat_template` renders it.

use super::python;
use crate::dataset::Extra;
use crate::error::{Error, Result};
use crate::message::Message;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, State};
use regex::Regex;
use serde_json::{Map, Value as Json};
use std::ops::Range;

/// Noncharacters that mark `{% generation %}` in rendered text; no message may hold them.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';
/// Stands for text under study in [`super::spans`].
pub(super) const PROBE: char = '\u{fdd2}';

/// A compiled chat template with the special tokens it may print.
pub struct Template {
    env: Environment<'static>,
    /// `bos_token`, `eos_token`, ..
    named: Map<String, Json>,
    tool_use: bool,
    marked: bool,
    /// Texts of tokens that end a generation.
    pub(super) ends: Vec<String>,
    /// Texts of special tokens.
    pub(super) special: Vec<String>,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Template(marked: {})", self.marked)
    }
}

impl Template {
    /// Compiles a template; `tool_use` is taken instead where a conversation has tools. `named`:
    /// the special tokens by name, visible to the template. `ends` and `special`: texts of the
    /// tokens that end a generation and of all special tokens, which tell where a turn ends.
    pub fn new(
        source: &str,
        tool_use: Option<&str>,
        named: Map<String, Json>,
        ends: Vec<String>,
        special: Vec<String>,
    ) -> Result<Template> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::Template(describe(&e)))?;
        env.set_syntax(syntax);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(python::method);
        env.add_filter("tojson", python::tojson);
        env.add_function("strftime_now", |format: &str| python::strftime_now(format));
        env.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        env.add_function("__generation", generation);
        let compile = |env: &mut Environment<'static>, name: &'static str, source: &str| {
            env.add_template_owned(name, unmark(source))
                .map_err(|e| Error::Template(format!("does not compile: {}", describe(&e))))
        };
        compile(&mut env, "default", source)?;
        if let Some(source) = tool_use {
            compile(&mut env, "tool_use", source)?;
        }
        Ok(Template {
            env,
            named,
            tool_use: tool_use.is_some(),
            marked: generation_tag().is_match(source),
            ends,
            special,
        })
    }

    /// Whether the template says itself what the assistant writes (`{% generation %}`).
    pub(super) fn marked(&self) -> bool {
        self.marked
    }

    /// The text of a conversation, as `apply_chat_template(tokenize=False)` gives it.
    pub fn render(
        &self,
        messages: &[Message],
        extra: &Extra,
        generation_prompt: bool,
    ) -> Result<String> {
        refuse_markers(messages, extra)?;
        Ok(self.render_marked(messages, extra, generation_prompt)?.0)
    }

    /// The text and the byte ranges of what `{% generation %}` encloses. Unlike [`render`], takes
    /// messages that hold [`PROBE`].
    pub(super) fn render_marked(
        &self,
        messages: &[Message],
        extra: &Extra,
        generation_prompt: bool,
    ) -> Result<(String, Vec<Range<usize>>)> {
        if messages.is_empty() {
            return Err(Error::Template("a conversation needs a message".into()));
        }
        let messages: Vec<Json> = messages.iter().map(normalised).collect();
        let mut context = self.named.clone();
        context.extend(extra.template.clone());
        context.insert("messages".into(), Json::Array(messages));
        context.insert("tools".into(), extra.tools.clone().unwrap_or(Json::Null));
        context.entry("documents").or_insert(Json::Null);
        context.insert("add_generation_prompt".into(), generation_prompt.into());
        let name = match &extra.tools {
            Some(_) if self.tool_use => "tool_use",
            _ => "default",
        };
        let text = (self.env.get_template(name))
            .and_then(|template| template.render(Value::from(Serde(&context))))
            .map_err(|e| Error::Template(describe(&e)))?;
        split_marks(&text)
    }
}

/// The body of `{% generation %}`, between marks.
fn generation(state: &mut State, kwargs: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let caller: Value = kwargs.get("caller")?;
    let body = caller.call(state, &[])?;
    Ok(Value::from_safe_string(format!("{OPEN}{body}{CLOSE}")))
}

fn generation_tag() -> Regex {
    Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("a valid pattern")
}

/// `{% generation %}` is transformers' own tag: a call block here, as it is there.
fn unmark(source: &str) -> String {
    generation_tag()
        .replace_all(source, |found: &regex::Captures| {
            let inner = match found.get(2) {
                Some(_) => "endcall",
                None => "call __generation()",
            };
            format!("{{%{} {inner} {}%}}", &found[1], &found[3])
        })
        .into_owned()
}

/// A message as the template sees it: fields that are null are absent, and reasoning is under
/// `reasoning_content` whatever name it came with (transformers 5).
fn normalised(message: &Message) -> Json {
    let mut map: Map<String, Json> = (message.0.iter())
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|name| map.get(*name).cloned());
    if let Some(reasoning) = reasoning {
        let mut aliased = Map::new();
        aliased.insert("thinking".into(), reasoning.clone());
        aliased.extend(map);
        aliased.insert("reasoning_content".into(), reasoning);
        map = aliased;
    }
    Json::Object(map)
}

fn split_marks(marked: &str) -> Result<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let (mut spans, mut open) = (Vec::new(), None);
    for c in marked.chars() {
        match c {
            OPEN => open = Some(text.len()),
            CLOSE => spans.extend(open.take().map(|start| start..text.len())),
            c => text.push(c),
        }
    }
    spans.retain(|span: &Range<usize>| !span.is_empty());
    Ok((text, spans))
}

/// Marks inside the data would be taken for the template's.
pub(super) fn refuse_markers(messages: &[Message], extra: &Extra) -> Result<()> {
    fn holds(value: &Json) -> bool {
        match value {
            Json::String(text) => text.contains([OPEN, CLOSE, PROBE]),
            Json::Array(items) => items.iter().any(holds),
            Json::Object(map) => map.values().any(holds),
            _ => false,
        }
    }
    let bad = messages.iter().any(|m| m.0.values().any(holds))
        || extra.tools.as_ref().is_some_and(holds)
        || extra.template.values().any(holds);
    if bad {
        return Err(Error::Template(
            "a message holds one of the noncharacters U+FDD0 to U+FDD2; remove them from the data"
                .into(),
        ));
    }
    Ok(())
}

/// The innermost cause with its line: what `raise_exception` said, say.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().unwrap_or("failed").to_string();
    let kind = error.kind();
    let what = if kind == ErrorKind::InvalidOperation {
        what
    } else {
        format!("{kind}: {what}")
    };
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}
