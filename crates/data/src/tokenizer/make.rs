//! Small tokenizers of our own, written as a directory that transformers loads.

use super::Tokenizer;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper};

/// How a tokenizer is made by an `init` stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Make {
    /// Byte-level BPE trained on texts, `vocab_size` tokens in all (special ones and the 256
    /// bytes included); digits are tokens of their own.
    Bpe { vocab_size: usize },
    /// One token per character of `alphabet`; where it is empty, per character of the texts.
    /// Other characters become `<|unk|>`.
    Chars { alphabet: String },
    /// One token per byte.
    Bytes,
}

/// Special tokens, ids from 0. One token opens a turn and one ends it, so a conversation costs a
/// tiny model two tokens a turn.
const PAD: &str = "<|pad|>";
const END: &str = "<|end|>";
const UNK: &str = "<|unk|>";
const SPECIAL: [&str; 7] = [
    PAD,
    END,
    UNK,
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
];

/// The chat template of tokenizers made here; marks what the assistant says for transformers'
/// `return_assistant_tokens_mask`.
const TEMPLATE: &str = "\
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
        {{- raise_exception('unknown role: ' + message.role) -}}
    {%- endif -%}
    {{- '<|' + message.role + '|>' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}{{- message.content + '<|end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message.content + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
";

/// Makes a tokenizer and writes it as a Hugging Face directory into `dir` (`tokenizer.json`,
/// `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja`). Equal texts give
/// equal bytes.
pub fn make(
    how: &Make,
    texts: &mut (dyn Iterator<Item = Result<String>> + Send),
    dir: &Path,
) -> Result<Tokenizer> {
    let tokenizer = match how {
        Make::Bpe { vocab_size } => bpe(*vocab_size, texts)?,
        Make::Chars { alphabet } => chars(alphabet, texts)?,
        Make::Bytes => bytes(),
    };
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1_000_000_000u64,
    });
    let special = json!({"eos_token": END, "pad_token": PAD, "unk_token": UNK});
    for (name, value) in [
        ("tokenizer.json", &tokenizer),
        ("tokenizer_config.json", &config),
        ("special_tokens_map.json", &special),
    ] {
        let text = format!("{value:#}\n");
        write(&dir.join(name), &text)?;
    }
    write(&dir.join("chat_template.jinja"), TEMPLATE)?;
    Tokenizer::from_dir(dir)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::io(path))
}

/// `tokenizer.json` around a model.
fn document(model: Value, pre_tokenizer: Value, decoder: Value) -> Value {
    let added: Vec<Value> = (SPECIAL.iter().enumerate())
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": decoder,
        "model": model,
    })
}

/// Special tokens first, then the others in order.
fn vocabulary(tokens: impl IntoIterator<Item = char>) -> Map<String, Value> {
    let special = SPECIAL.iter().map(|token| token.to_string());
    (special.chain(tokens.into_iter().map(String::from)))
        .enumerate()
        .map(|(id, token)| (token, id.into()))
        .collect()
}

fn chars(
    alphabet: &str,
    texts: &mut (dyn Iterator<Item = Result<String>> + Send),
) -> Result<Value> {
    let mut characters: BTreeSet<char> = alphabet.chars().collect();
    if characters.is_empty() {
        for text in texts {
            characters.extend(text?.chars());
        }
    }
    if characters.is_empty() {
        return Err(Error::Tokenizer(
            "a character tokenizer needs an alphabet or texts to take one from; both are empty"
                .into(),
        ));
    }
    let model = json!({"type": "WordLevel", "vocab": vocabulary(characters), "unk_token": UNK});
    let each = json!({
        "type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false,
    });
    Ok(document(model, each, json!({"type": "Fuse"})))
}

/// ByteLevel as data: `regex` splits words as GPT-2 does.
fn byte_level(regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex,
    })
}

fn bytes() -> Value {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": false, "vocab": vocabulary(alphabet), "merges": [],
    });
    document(model, byte_level(false), byte_level(false))
}

fn bpe(
    vocab_size: usize,
    texts: &mut (dyn Iterator<Item = Result<String>> + Send),
) -> Result<Value> {
    let least = 256 + SPECIAL.len();
    if vocab_size < least {
        return Err(Error::Tokenizer(format!(
            "vocab_size = {vocab_size} is too small for a byte-level BPE; it needs at least \
             {least} (256 bytes and {} special tokens)",
            SPECIAL.len()
        )));
    }
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIAL.map(|t| AddedToken::from(t, true)).to_vec())
        .build();
    let mut inner = tokenizers::Tokenizer::new(BPE::default());
    inner.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, true)),
    ]))));
    // The trainer takes plain strings: an unreadable text ends the stream and is reported after.
    let (mut failed, mut any) = (None, false);
    let good = std::iter::from_fn(|| match texts.next()? {
        Ok(text) => {
            any = true;
            Some(text)
        }
        Err(e) => {
            failed = Some(e);
            None
        }
    });
    let wrong = |e: tokenizers::Error| Error::Tokenizer(format!("cannot train the BPE: {e}"));
    let mut model = tokenizers::models::TrainerWrapper::BpeTrainer(trainer);
    inner.train(&mut model, good).map_err(wrong)?;
    if let Some(e) = failed {
        return Err(e);
    }
    if !any {
        return Err(Error::Tokenizer(
            "a BPE tokenizer needs texts to train on, got none".into(),
        ));
    }
    let text = inner.to_string(false).map_err(wrong)?;
    let trained: Value = serde_json::from_str(&text)
        .map_err(|e| Error::Tokenizer(format!("cannot read back the BPE: {e}")))?;
    let pre = json!({
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(true)],
    });
    Ok(document(trained["model"].clone(), pre, byte_level(true)))
}
