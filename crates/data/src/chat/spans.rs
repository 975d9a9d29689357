//! Where the assistant's turns lie in a rendered conversation.
//!
//! The whole conversation is rendered once and that text is what gets tokenised. A template that
//! marks them (`{% generation %}`) says where the turns are. For any other, the same conversation
//! is rendered again with one message's strings replaced by a probe character: where the two
//! texts differ is where that message stands, whatever the template does to other turns (leaving
//! out earlier reasoning, say). A turn starts after the generation prompt that precedes it and
//! ends after its end-of-turn token.

use super::Rendered;
use super::template::{PROBE, Template};
use crate::dataset::Extra;
use crate::error::Result;
use crate::message::Message;
use serde_json::{Map, Value};
use std::ops::Range;

impl Template {
    /// The whole conversation and its assistant spans: what the model itself writes, from the
    /// end of the generation prompt to the end-of-turn token, both of messages `first` and after.
    pub fn render_spans(
        &self,
        messages: &[Message],
        extra: &Extra,
        first: usize,
    ) -> Result<Rendered> {
        super::template::refuse_markers(messages, extra)?;
        let (text, mut marks) = self.render_marked(messages, extra, false)?;
        let study = Study {
            template: self,
            extra,
        };
        if self.marked() {
            if first > 0 {
                let from = study.end_before(messages, first, &text);
                marks.retain(|span| span.start >= from);
            }
            return Ok(Rendered { text, spans: marks });
        }
        let mut spans: Vec<Range<usize>> = Vec::new();
        for at in first..messages.len() {
            if messages[at].role() == "assistant"
                && let Some(span) = study.turn(messages, at, &text)
                && !span.is_empty()
            {
                let from = spans.last().map_or(0, |last| last.end);
                spans.push(span.start.max(from)..span.end.max(from));
            }
        }
        spans.retain(|span| !span.is_empty());
        Ok(Rendered { text, spans })
    }

    /// The text after an assistant's turn: `(end, rest)`, the end-of-turn text that the model
    /// writes itself, and what follows it up to the next generation prompt.
    pub(super) fn after_turn(
        &self,
        observation: &[Message],
        extra: &Extra,
    ) -> Result<(String, String)> {
        super::template::refuse_markers(observation, extra)?;
        let probe = PROBE.to_string();
        let mut messages = vec![Message::user("?"), Message::assistant(probe)];
        let study = Study {
            template: self,
            extra,
        };
        let (alone, _) = self.render_marked(&messages, extra, false)?;
        let tail = |text: &str| match text.rfind(PROBE) {
            Some(at) => text[at + PROBE.len_utf8()..].to_string(),
            None => String::new(),
        };
        let alone = tail(&alone);
        let end = study.end_of_turn(&alone).to_string();
        messages.extend_from_slice(observation);
        let (whole, _) = self.render_marked(&messages, extra, true)?;
        let rest = tail(&whole);
        match rest.strip_prefix(&end) {
            Some(rest) => Ok((end.clone(), rest.to_string())),
            None => Ok((String::new(), rest)),
        }
    }
}

struct Study<'a> {
    template: &'a Template,
    extra: &'a Extra,
}

impl Study<'_> {
    /// The byte range of message `at` in `text`, the rendering of `messages`: from the first to
    /// the last byte that changes when its strings do. `None` where it leaves no trace.
    fn region(&self, messages: &[Message], at: usize, text: &str) -> Option<Range<usize>> {
        let mut region: Option<Range<usize>> = None;
        for variant in variants(&messages[at]) {
            let mut probed = messages.to_vec();
            probed[at] = variant;
            // A template may refuse a probe (an argument it parses, say): others remain.
            let Ok((other, _)) = self.template.render_marked(&probed, self.extra, false) else {
                continue;
            };
            if other == text {
                continue;
            }
            let (start, end) = difference(text, &other);
            region = Some(match region {
                Some(region) => region.start.min(start)..region.end.max(end),
                None => start..end,
            });
        }
        region
    }

    /// Where the message before `at` ends in `text`; 0 where none before leaves a trace.
    fn end_before(&self, messages: &[Message], at: usize, text: &str) -> usize {
        (0..at)
            .rev()
            .find_map(|i| self.region(messages, i, text))
            .map_or(0, |region| region.end)
    }

    /// The span of assistant message `at`.
    fn turn(&self, messages: &[Message], at: usize, text: &str) -> Option<Range<usize>> {
        let region = self.region(messages, at, text)?;
        let start = self.start(messages, at, text).unwrap_or(region.start);
        let end = region.end + self.end_length(messages, at, text, region.end);
        Some(start.min(end)..end)
    }

    /// Where the model begins to write message `at`: after what stands between the message before
    /// it and the end of the generation prompt, when that message is the last.
    fn start(&self, messages: &[Message], at: usize, text: &str) -> Option<usize> {
        let before = at.checked_sub(1)?;
        let head = &messages[..at];
        let render = |prompt| self.template.render_marked(head, self.extra, prompt);
        let (with, without) = (render(true).ok()?.0, render(false).ok()?.0);
        let from = self.region(head, before, &without)?.end;
        let until = self.region(messages, before, text)?.end;
        let prompt = &with[shared_prefix(&with, &without)..];
        let lead = with.get(from..)?;
        let shared = shared_prefix(lead, &text[until..]);
        if shared == lead.len() {
            return Some(until + shared);
        }
        // A finished turn may lack the end of the generation prompt (an empty reasoning block),
        // but not its first special token; then the model begins after a line or a token of it.
        let special = |text: &str| -> Option<usize> {
            let ends = (self.template.special.iter())
                .filter_map(|token| text.find(token.as_str()).map(|at| at + token.len()));
            ends.min()
        };
        let least = lead.len().checked_sub(prompt.len())? + special(prompt)?;
        let whole = |at: &usize| {
            let (head, _) = lead.split_at(*at);
            head.ends_with('\n')
                || self
                    .template
                    .special
                    .iter()
                    .any(|t| head.ends_with(t.as_str()))
        };
        (least..=shared)
            .rev()
            .filter(|&at| lead.is_char_boundary(at))
            .find(whole)
            .map(|at| until + at)
    }

    /// Bytes of the end-of-turn text after message `at`, whose region ends at `end`.
    fn end_length(&self, messages: &[Message], at: usize, text: &str, end: usize) -> usize {
        let rest = &text[end..];
        // What follows the message when nothing comes after it is its end of turn.
        let suffix = if at + 1 == messages.len() {
            Some(rest.to_string())
        } else {
            let head = &messages[..=at];
            let alone = self.template.render_marked(head, self.extra, false).ok();
            alone.and_then(|(alone, _)| {
                let region = self.region(head, at, &alone)?;
                Some(alone[region.end..].to_string())
            })
        };
        let Some(suffix) = suffix else {
            return 0;
        };
        let marker = self.end_of_turn(&suffix);
        if rest.starts_with(marker) {
            return marker.len();
        }
        // The template ends an earlier turn otherwise: its first end token, if any.
        (self.template.ends.iter())
            .filter_map(|token| rest.find(token.as_str()).map(|at| at + token.len()))
            .min()
            .unwrap_or(0)
    }

    /// The part of the text after a turn that the model writes: through its last end token, else
    /// through its last special token, else all of it.
    fn end_of_turn<'s>(&self, suffix: &'s str) -> &'s str {
        let through = |tokens: &[String]| {
            (tokens.iter())
                .filter_map(|token| suffix.rfind(token.as_str()).map(|at| at + token.len()))
                .max()
        };
        let end = through(&self.template.ends).or_else(|| through(&self.template.special));
        &suffix[..end.unwrap_or(suffix.len())]
    }
}

/// The message with its content replaced by the probe; and with every string replaced (tool
/// calls, reasoning), where there are others.
fn variants(message: &Message) -> Vec<Message> {
    let mut content = message.clone();
    let slot = content.0.entry("content").or_insert(Value::Null);
    match slot {
        Value::Array(_) => probe_strings(slot),
        _ => *slot = PROBE.to_string().into(),
    }
    let bare = message.0.get("content").is_none_or(|value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    });
    let mut all = message.clone();
    probe_fields(&mut all.0);
    match (all == *message, bare) {
        // Only an empty content: where a content would stand is where the turn is.
        (true, _) => vec![content],
        // A content that was absent stays so: templates choose between it and tool calls.
        (false, true) => vec![all],
        (false, false) if all == content => vec![content],
        (false, false) => vec![content, all],
    }
}

/// Fields that name or link rather than say something.
const STRUCTURE: [&str; 5] = ["role", "type", "id", "tool_call_id", "name"];

fn probe_fields(map: &mut Map<String, Value>) {
    for (name, value) in map.iter_mut() {
        if !STRUCTURE.contains(&name.as_str()) {
            probe_strings(value);
        } else if name == "name" && value.is_string() {
            // A function's name is said by the model; a speaker's is not, but stands in its turn.
            *value = PROBE.to_string().into();
        }
    }
}

fn probe_strings(value: &mut Value) {
    match value {
        Value::String(text) if !text.is_empty() => *value = PROBE.to_string().into(),
        Value::Array(items) => items.iter_mut().for_each(probe_strings),
        Value::Object(map) => probe_fields(map),
        _ => {}
    }
}

/// The range of `text` that `other` does not share, by longest common prefix and suffix.
fn difference(text: &str, other: &str) -> (usize, usize) {
    let start = shared_prefix(text, other);
    let (a, b) = (&text.as_bytes()[start..], &other.as_bytes()[start..]);
    let suffix = (a.iter().rev())
        .zip(b.iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let mut end = text.len() - suffix;
    while !text.is_char_boundary(end) {
        end += 1;
    }
    (start, end)
}

/// Bytes of the longest common prefix, whole characters.
fn shared_prefix(a: &str, b: &str) -> usize {
    let (x, y) = (a.as_bytes(), b.as_bytes());
    let shared = x.iter().zip(y).take_while(|(x, y)| x == y).count();
    a.floor_char_boundary(shared)
}
