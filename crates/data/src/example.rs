//! Rows to training examples: tokens with a loss mask, preference pairs, chunks of text.

use crate::chat::{self, Chat, TrainOn};
use crate::dataset::{Content, Extra, Record, Row};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::tokenizer::{Offsets, Tokenizer};

/// What happens to an example longer than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// An error that names the row.
    #[default]
    Error,
    /// Cut at the end, and counted.
    Truncate,
    /// Left out, and counted.
    Drop,
}

/// How long examples may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In tokens; of a pair, for each branch with its prefix.
    pub max_length: usize,
    pub overlong: Overlong,
}

/// A sequence: `mask[i]` says that log p(tokens[i] | what precedes) enters the loss. Nothing
/// precedes a sequence's first token, so it is never masked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub tokens: Vec<u32>,
    pub mask: Vec<bool>,
}

/// A preference pair: a shared prefix, of which nothing enters the loss, and two branches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub prefix: Vec<u32>,
    pub chosen: Example,
    pub rejected: Example,
}

/// What was kept, cut and left out, for the metrics: no row disappears silently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Examples given, truncated ones included.
    pub kept: u64,
    pub truncated: u64,
    pub dropped: u64,
}

/// The examples of a supervised row: one, or none where it was dropped as overlong, or the
/// consecutive chunks of a plain text longer than `max_length` (nothing of which is lost).
///
/// Plain prompt and completion are joined and tokenised once, with the end token appended, and
/// only the completion enters the loss (with `TrainOn::All`, the prompt too).
pub fn sft(
    record: &Record,
    tokenizer: &Tokenizer,
    train_on: TrainOn,
    limits: &Limits,
    counts: &mut Counts,
) -> Result<Vec<Example>> {
    let place = &record.place;
    let row = record.parse()?;
    let example = match row {
        Row::Text(text) => {
            let tokens = plain(tokenizer, &text)?.0;
            let mut chunks: Vec<Example> = tokens
                .chunks(limits.max_length.max(2))
                .map(|chunk| Example {
                    tokens: chunk.to_vec(),
                    mask: all_but_first(chunk.len()),
                })
                .collect();
            // A last chunk of one token predicts nothing.
            chunks.retain(|chunk| chunk.tokens.len() > 1);
            if chunks.is_empty() {
                return Err(Error::row(place, "the text is empty; remove the row"));
            }
            counts.kept += chunks.len() as u64;
            return Ok(chunks);
        }
        Row::Tokens { tokens, mask } => {
            check_tokens(&tokens, tokenizer, place)?;
            let mut mask = match mask {
                Some(mask) if train_on != TrainOn::All => mask,
                _ => all_but_first(tokens.len()),
            };
            mask[0] = false;
            Example { tokens, mask }
        }
        Row::Messages { messages, extra } => {
            conversation(tokenizer, &messages, &extra, train_on, 0, place)?
        }
        Row::PromptCompletion {
            prompt,
            completion,
            extra,
        } => match (prompt, completion) {
            (Content::Text(prompt), Content::Text(completion)) => {
                continuation(tokenizer, &prompt, &completion, train_on == TrainOn::All)?
            }
            (prompt, completion) => {
                let (mut messages, completion) = (as_messages(prompt), as_messages(completion));
                let first = messages.len();
                messages.extend(completion);
                conversation(tokenizer, &messages, &extra, train_on, first, place)?
            }
        },
        row @ (Row::Preference { .. } | Row::Prompt { .. }) => {
            return Err(Error::row(
                place,
                format!(
                    "{} cannot be trained on as a supervised example; give messages, or prompt \
                     and completion, or text, or tokens",
                    row.kind()
                ),
            ));
        }
    };
    if !example.mask.contains(&true) {
        return Err(Error::row(
            place,
            "no token of this row enters the loss; remove it or set train_on = \"all\"",
        ));
    }
    Ok(fit(example, limits, counts, place)?.into_iter().collect())
}

/// A preference row as a pair; none where it was dropped as overlong. Both branches are tokenised
/// as whole conversations; the prefix is what their tokens share, at most the prompt.
pub fn preference(
    record: &Record,
    tokenizer: &Tokenizer,
    limits: &Limits,
    counts: &mut Counts,
) -> Result<Option<Pair>> {
    let place = &record.place;
    let (prompt, chosen, rejected, extra) = match record.parse()? {
        Row::Preference {
            prompt,
            chosen,
            rejected,
            extra,
        } => (prompt, chosen, rejected, extra),
        other => {
            return Err(Error::row(
                place,
                format!(
                    "{} is not a preference row; give prompt, chosen and rejected",
                    other.kind()
                ),
            ));
        }
    };
    let branch = |completion: &Content| -> Result<Example> {
        let example = match (&prompt, completion) {
            (Content::Text(prompt), Content::Text(completion)) => {
                continuation(tokenizer, prompt, completion, false)?
            }
            (prompt, completion) => {
                let mut messages = as_messages(prompt.clone());
                let first = messages.len();
                messages.extend(as_messages(completion.clone()));
                conversation(
                    tokenizer,
                    &messages,
                    &extra,
                    TrainOn::Assistant,
                    first,
                    place,
                )?
            }
        };
        if !example.mask.contains(&true) {
            return Err(Error::row(
                place,
                "an answer of this preference row has no tokens; remove the row",
            ));
        }
        Ok(example)
    };
    let (mut chosen, mut rejected) = (branch(&chosen)?, branch(&rejected)?);
    let longest = chosen.tokens.len().max(rejected.tokens.len());
    if longest > limits.max_length {
        match limits.overlong {
            Overlong::Error => return Err(too_long(place, longest, limits)),
            Overlong::Drop => {
                counts.dropped += 1;
                return Ok(None);
            }
            Overlong::Truncate => {
                for branch in [&mut chosen, &mut rejected] {
                    branch.tokens.truncate(limits.max_length);
                    branch.mask.truncate(limits.max_length);
                }
                // Cut down to the prompt, or to what both have in common, it prefers nothing.
                let empty = |branch: &Example| !branch.mask.contains(&true);
                if empty(&chosen) || empty(&rejected) || chosen == rejected {
                    counts.dropped += 1;
                    return Ok(None);
                }
                counts.truncated += 1;
            }
        }
    }
    counts.kept += 1;
    let first = |branch: &Example| branch.mask.iter().position(|&m| m).unwrap_or(0);
    let most = first(&chosen).min(first(&rejected));
    let shared = (chosen.tokens[..most].iter())
        .zip(&rejected.tokens[..most])
        .take_while(|(a, b)| a == b)
        .count();
    let prefix = chosen.tokens[..shared].to_vec();
    for branch in [&mut chosen, &mut rejected] {
        branch.tokens.drain(..shared);
        branch.mask.drain(..shared);
    }
    Ok(Some(Pair {
        prefix,
        chosen,
        rejected,
    }))
}

/// The prompt tokens of a row for `generate`: `prompt` (plain, or messages), `tokens`, or
/// `messages` (without what the last assistant message says, where the conversation ends in one).
pub fn prompt(record: &Record, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let place = &record.place;
    let at = |e| at_place(e, place);
    let (content, extra) = match record.parse()? {
        Row::Tokens { tokens, .. } => {
            check_tokens(&tokens, tokenizer, place)?;
            return Ok(tokens);
        }
        Row::Text(text) => (Content::Text(text), Extra::default()),
        Row::Messages { messages, extra } => (Content::Messages(messages), extra),
        Row::Prompt { prompt, extra }
        | Row::PromptCompletion { prompt, extra, .. }
        | Row::Preference { prompt, extra, .. } => (prompt, extra),
    };
    let tokens = match content {
        Content::Text(text) => tokenizer.encode(&text, true)?,
        Content::Messages(mut messages) => {
            if messages.len() > 1 && messages.last().is_some_and(|m| m.role() == "assistant") {
                messages.pop();
            }
            tokenizer.chat_prompt(&messages, &extra).map_err(at)?
        }
    };
    if tokens.is_empty() {
        return Err(Error::row(
            place,
            "the prompt is empty; give at least one token",
        ));
    }
    Ok(tokens)
}

fn as_messages(content: Content) -> Vec<Message> {
    match content {
        Content::Messages(messages) => messages,
        Content::Text(text) => vec![Message::user(text)],
    }
}

fn all_but_first(len: usize) -> Vec<bool> {
    (0..len).map(|i| i > 0).collect()
}

fn too_long(place: &str, tokens: usize, limits: &Limits) -> Error {
    Error::TooLong {
        place: place.to_string(),
        tokens,
        max_length: limits.max_length,
    }
}

/// A template's or tokenizer's error with the row that caused it.
fn at_place(error: Error, place: &str) -> Error {
    match error {
        e @ (Error::Template(_) | Error::Tokenizer(_)) => Error::row(place, e.to_string()),
        other => other,
    }
}

fn check_tokens(tokens: &[u32], tokenizer: &Tokenizer, place: &str) -> Result<()> {
    match tokens
        .iter()
        .find(|&&id| id as usize >= tokenizer.vocab_size())
    {
        None => Ok(()),
        Some(id) => Err(Error::row(
            place,
            format!(
                "token {id} is not in the vocabulary of {} tokens; the row was made with another \
                 tokenizer",
                tokenizer.vocab_size()
            ),
        )),
    }
}

/// Tokens of a plain text with its end token, and the byte range of each.
fn plain(tokenizer: &Tokenizer, text: &str) -> Result<(Vec<u32>, Offsets)> {
    let (mut tokens, mut offsets) = tokenizer.encode_offsets(text, true)?;
    if let Some(eos) = tokenizer.eos()
        && tokens.last() != Some(&eos)
    {
        tokens.push(eos);
        offsets.push((text.len(), text.len() + 1));
    }
    Ok((tokens, offsets))
}

/// Plain prompt and completion as one text; the completion and the end token enter the loss.
fn continuation(
    tokenizer: &Tokenizer,
    prompt: &str,
    completion: &str,
    all: bool,
) -> Result<Example> {
    let text = format!("{prompt}{completion}");
    let (tokens, offsets) = plain(tokenizer, &text)?;
    let from = if all { 0 } else { prompt.len() };
    let span = from..text.len() + 1;
    let mut mask = chat::mask(&offsets, &[span]);
    // An end token that the tokenizer itself adds covers no text, but ends the completion.
    if let (Some(last), Some(token)) = (mask.last_mut(), tokens.last())
        && tokenizer.eos() == Some(*token)
        && tokens.len() > 1
    {
        *last = true;
    }
    Ok(Example { tokens, mask })
}

fn conversation(
    tokenizer: &Tokenizer,
    messages: &[Message],
    extra: &Extra,
    train_on: TrainOn,
    first: usize,
    place: &str,
) -> Result<Example> {
    let Chat { tokens, mask } = tokenizer
        .chat_from(messages, extra, train_on, first)
        .map_err(|e| at_place(e, place))?;
    Ok(Example { tokens, mask })
}

fn fit(
    mut example: Example,
    limits: &Limits,
    counts: &mut Counts,
    place: &str,
) -> Result<Option<Example>> {
    let tokens = example.tokens.len();
    if tokens > limits.max_length {
        match limits.overlong {
            Overlong::Error => return Err(too_long(place, tokens, limits)),
            Overlong::Drop => {
                counts.dropped += 1;
                return Ok(None);
            }
            Overlong::Truncate => {
                example.tokens.truncate(limits.max_length);
                example.mask.truncate(limits.max_length);
                if !example.mask.contains(&true) {
                    counts.dropped += 1;
                    return Ok(None);
                }
                counts.truncated += 1;
            }
        }
    }
    counts.kept += 1;
    Ok(Some(example))
}
