//! Tokenizers: Hugging Face directories ([`Tokenizer::from_dir`]), and small ones made here
//! ([`make`]).

mod files;
mod make;

pub use make::{Make, make};

use crate::chat::Template;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// For each token, the byte range of the text that it covers.
pub type Offsets = Vec<(usize, usize)>;

/// A tokenizer with what belongs to it in a Hugging Face directory.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Directory it was read from: its files are carried through untouched.
    dir: PathBuf,
    template: Option<Template>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    /// Ids that end a generation: `eos_token` and those of `generation_config.json`, ascending.
    eos_ids: Vec<u32>,
    /// Special ids, ascending.
    special: Vec<u32>,
    vocab_size: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Tokenizer({}, {} tokens)",
            self.dir.display(),
            self.vocab_size
        )
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja` (or the template inside `tokenizer_config.json`) and the end ids of
    /// `generation_config.json`. Only the first is required.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        files::read(dir)
    }

    /// Token ids of a text; `special`: add what the post-processor adds (BOS, say). Special
    /// tokens spelled out in the text become those tokens, as in transformers.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = (self.inner.encode_fast(text, special))
            .map_err(|e| Error::Tokenizer(format!("cannot encode a text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids, and for each the byte range of the text that it covers (an empty range for
    /// tokens that the post-processor adds).
    pub fn encode_offsets(&self, text: &str, special: bool) -> Result<(Vec<u32>, Offsets)> {
        let encoding = (self.inner.encode(text, special))
            .map_err(|e| Error::Tokenizer(format!("cannot encode a text: {e}")))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Text of token ids; `skip_special` leaves special tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(Error::Tokenizer(format!(
                "token id {id} is not in the vocabulary of {} tokens of {}",
                self.vocab_size,
                self.dir.display()
            )));
        }
        (self.inner.decode(ids, skip_special))
            .map_err(|e| Error::Tokenizer(format!("cannot decode tokens: {e}")))
    }

    /// Ids that end a generation, ascending: `eos_token` and those of `generation_config.json`
    /// (without one, of `config.json`).
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// What stands for text that the vocabulary has no token for, where that is a token of its own:
    /// GPT-2's family names its end token here, which says nothing.
    pub fn unk(&self) -> Option<u32> {
        let others = [self.eos, self.bos, self.pad];
        self.unk.filter(|_| !others.contains(&self.unk))
    }

    /// Largest token id + 1, added tokens included: the least vocabulary a model needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token as it stands in the vocabulary (not decoded).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// The chat template, or the error that says how to get one.
    pub fn template(&self) -> Result<&Template> {
        self.template.as_ref().ok_or_else(|| {
            Error::Template(format!(
                "{} has none, but the data holds messages; add chat_template.jinja there or give \
                 plain text",
                self.dir.display()
            ))
        })
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// An error where a token id lies outside a model's vocabulary of `rows` embeddings.
    pub fn check_fits(&self, rows: usize) -> Result<()> {
        if self.vocab_size <= rows {
            return Ok(());
        }
        let last = self.vocab_size as u32 - 1;
        let token = self.id_to_token(last).unwrap_or_default();
        Err(Error::Tokenizer(format!(
            "{} has {} tokens (the last is {last} '{token}'), but the model's vocab_size is {rows}; \
             use the tokenizer that belongs to the model",
            self.dir.display(),
            self.vocab_size
        )))
    }

    /// Copies the tokenizer's files (and chat template) byte for byte into another directory.
    pub fn copy_files(&self, to: &Path) -> Result<()> {
        files::copy(&self.dir, to)
    }
}
