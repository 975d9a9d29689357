//! Tokenizers: Hugging Face directories, and small ones trained or made here.

use crate::chat::Template;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// A tokenizer with what belongs to it in a Hugging Face directory.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Directory it was read from: its files are carried through untouched.
    dir: PathBuf,
    template: Option<Template>,
    bos: Option<(String, u32)>,
    eos: Option<(String, u32)>,
    pad: Option<(String, u32)>,
    /// Ids that end a generation: `eos_token` and those of `generation_config.json`, ascending.
    eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja` (or the template inside `tokenizer_config.json`) and the end ids of
    /// `generation_config.json`. Only the first is required.
    pub fn from_dir(_dir: &Path) -> Result<Tokenizer> {
        todo!()
    }

    /// Token ids of a text; `special`: add what the post-processor adds (BOS, say).
    pub fn encode(&self, _text: &str, _special: bool) -> Result<Vec<u32>> {
        todo!()
    }

    /// Token ids and the byte range of the text that each covers (added tokens: an empty range).
    pub fn encode_offsets(&self, _text: &str, _special: bool) -> Result<(Vec<u32>, Vec<(usize, usize)>)> {
        todo!()
    }

    /// Text of token ids; `skip_special` leaves special tokens out.
    pub fn decode(&self, _ids: &[u32], _skip_special: bool) -> Result<String> {
        todo!()
    }

    /// Ids that end a generation, ascending.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos.as_ref().map(|t| t.1)
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos.as_ref().map(|t| t.1)
    }

    pub fn pad(&self) -> Option<u32> {
        self.pad.as_ref().map(|t| t.1)
    }

    /// Largest token id + 1, added tokens included: the least vocabulary a model needs.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, _id: u32) -> bool {
        todo!()
    }

    /// The chat template, or the error that says how to get one.
    pub fn template(&self) -> Result<&Template> {
        self.template
            .as_ref()
            .ok_or_else(|| Error::Template(format!("none in {}", self.dir.display())))
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// An error where a token id lies outside the model's vocabulary of `rows` embeddings.
    pub fn check_fits(&self, _rows: usize) -> Result<()> {
        todo!()
    }

    /// Copies the tokenizer's files (and chat template) untouched into another model directory.
    pub fn copy_files(&self, _to: &Path) -> Result<()> {
        todo!()
    }
}

/// How a tokenizer is made by an `init` stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Make {
    /// Byte-level BPE trained on texts up to `vocab_size` (special tokens included).
    Bpe { vocab_size: usize },
    /// One token per character of `alphabet`; other characters become `<unk>`.
    Chars { alphabet: String },
    /// One token per byte: 256 and the special tokens.
    Bytes,
}

/// Makes a tokenizer and writes it as a Hugging Face directory into `dir` (tokenizer.json,
/// tokenizer_config.json, special_tokens_map.json, chat_template.jinja). `texts` is what a BPE
/// trains on and where characters missing from an empty alphabet come from.
pub fn make(_how: &Make, _texts: &mut dyn Iterator<Item = Result<String>>, _dir: &Path) -> Result<Tokenizer> {
    todo!()
}
