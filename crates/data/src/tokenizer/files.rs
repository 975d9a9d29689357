//! A tokenizer's files in a Hugging Face directory.

use super::Tokenizer;
use crate::chat::Template;
use crate::error::{Error, Result, quote};
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;
use tokenizers::AddedToken;

/// Every file that can belong to a tokenizer; those present are carried through.
const FILES: [&str; 14] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
];
/// Further templates by name (`tool_use.jinja`).
const TEMPLATES: &str = "additional_chat_templates";

/// Named special tokens that a template sees, as transformers' `special_tokens_map`.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

pub fn read(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    if !path.exists() {
        let hint = if dir.join("tokenizer.model").exists() || dir.join("vocab.json").exists() {
            "; save the tokenizer with transformers' save_pretrained to get one"
        } else {
            "; a model directory needs its tokenizer's files"
        };
        return Err(Error::file(dir, format!("no tokenizer.json here{hint}")));
    }
    let bytes = fs::read(&path).map_err(Error::io(&path))?;
    let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| {
        Error::file(
            &path,
            format!("not a tokenizer that the tokenizers library reads: {e}"),
        )
    })?;
    // Lengths are the recipe's to say, never the file's.
    let unlimited = inner.with_truncation(None).map(|_| ());
    unlimited.map_err(|e| Error::file(&path, e.to_string()))?;
    inner.with_padding(None);

    let config = object(&dir.join("tokenizer_config.json"))?;
    let map = object(&dir.join("special_tokens_map.json"))?;
    add_configured(&mut inner, &config, dir)?;

    let mut named = Map::new();
    for name in NAMED {
        if let Some(token) = content(config.get(name)).or_else(|| content(map.get(name))) {
            named.insert(name.into(), token.into());
        }
    }
    let id = |name: &str| {
        let token = named.get(name).and_then(Value::as_str)?;
        inner.token_to_id(token)
    };
    let (bos, eos, pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
    let unk = id("unk_token");
    let added = inner.get_added_tokens_decoder();
    let mut special: Vec<u32> = (added.iter())
        .filter(|(_, token)| token.special)
        .map(|(&id, _)| id)
        .collect();
    special.sort_unstable();
    let eos_ids = eos_ids(dir, eos)?;
    let texts = |ids: &[u32]| {
        ids.iter()
            .filter_map(|&id| added.get(&id).map(|t| t.content.clone()))
            .collect()
    };
    let ends = (eos_ids.iter())
        .filter_map(|&id| inner.id_to_token(id))
        .collect();
    let template = template(dir, &config, named, ends, texts(&special))?;
    let vocab_size = (inner.get_vocab(true).into_values())
        .max()
        .map_or(0, |id| id as usize + 1);
    if vocab_size == 0 {
        return Err(Error::file(&path, "the vocabulary is empty"));
    }
    Ok(Tokenizer {
        inner,
        template,
        eos_ids,
        dir: dir.to_path_buf(),
        bos,
        eos,
        pad,
        unk,
        special,
        vocab_size,
    })
}

/// A JSON object, empty where there is no file.
fn object(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let bytes = fs::read(path).map_err(Error::io(path))?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::file(
            path,
            format!("must hold a JSON object, got {}", quote(&other)),
        )),
        Err(e) => Err(Error::file(path, format!("not valid JSON: {e}"))),
    }
}

/// A token written as a string or as `{"content": ".."}`.
fn content(token: Option<&Value>) -> Option<String> {
    match token? {
        Value::String(text) => Some(text.clone()),
        Value::Object(map) => Some(map.get("content")?.as_str()?.to_string()),
        _ => None,
    }
}

/// Adds tokens that only `tokenizer_config.json` knows, in order of their ids, as transformers.
fn add_configured(
    inner: &mut tokenizers::Tokenizer,
    config: &Map<String, Value>,
    dir: &Path,
) -> Result<()> {
    let Some(Value::Object(added)) = config.get("added_tokens_decoder") else {
        return Ok(());
    };
    let mut missing: Vec<(u32, AddedToken)> = Vec::new();
    for (id, token) in added {
        let (Ok(id), Some(text)) = (id.parse(), content(Some(token))) else {
            continue;
        };
        if inner.token_to_id(&text).is_none() {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
            let token = AddedToken::from(text, flag("special"))
                .single_word(flag("single_word"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .normalized(flag("normalized"));
            missing.push((id, token));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        let text = token.content.clone();
        inner
            .add_tokens([token])
            .map_err(|e| Error::Tokenizer(e.to_string()))?;
        let got = inner.token_to_id(&text);
        if got != Some(id) {
            return Err(Error::file(
                dir.join("tokenizer_config.json"),
                format!(
                    "added token '{text}' should have id {id} but tokenizer.json makes it {}; the \
                     two files do not belong together",
                    got.map_or("nothing".into(), |id| id.to_string())
                ),
            ));
        }
    }
    Ok(())
}

fn eos_ids(dir: &Path, eos: Option<u32>) -> Result<Vec<u32>> {
    let generation = dir.join("generation_config.json");
    let path = if generation.exists() {
        generation
    } else {
        dir.join("config.json")
    };
    let mut ids: Vec<u32> = eos.into_iter().collect();
    let mut push = |value: &Value| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => {
            ids.push(id);
            Ok(())
        }
        None => Err(Error::file(
            &path,
            format!("eos_token_id must be token ids, got {}", quote(value)),
        )),
    };
    match object(&path)?.get("eos_token_id") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => list.iter().try_for_each(push)?,
        Some(value) => push(value)?,
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The template of the directory: `chat_template.jinja`, else `chat_template` in
/// `tokenizer_config.json` (a string, or a list of named ones of which `default` and `tool_use`
/// count), else none.
fn template(
    dir: &Path,
    config: &Map<String, Value>,
    named: Map<String, Value>,
    ends: Vec<String>,
    special: Vec<String>,
) -> Result<Option<Template>> {
    let read = |path: &Path| fs::read_to_string(path).map_err(Error::io(path));
    let (mut default, mut tools) = (None, None);
    match config.get("chat_template") {
        Some(Value::String(text)) => default = Some(text.clone()),
        Some(Value::Array(list)) => {
            for item in list {
                let field = |name: &str| item.get(name).and_then(Value::as_str);
                match (field("name"), field("template")) {
                    (Some("default"), Some(text)) => default = Some(text.to_string()),
                    (Some("tool_use"), Some(text)) => tools = Some(text.to_string()),
                    _ => {}
                }
            }
        }
        _ => {}
    }
    let file = dir.join("chat_template.jinja");
    if file.exists() {
        default = Some(read(&file)?);
    }
    let file = dir.join(TEMPLATES).join("tool_use.jinja");
    if file.exists() {
        tools = Some(read(&file)?);
    }
    let Some(default) = default else {
        return Ok(None);
    };
    Template::new(&default, tools.as_deref(), named, ends, special)
        .map(Some)
        .map_err(|e| Error::file(dir, e.to_string()))
}

pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::io(to))?;
    for name in FILES {
        let (source, target) = (from.join(name), to.join(name));
        if source.is_file() {
            fs::copy(&source, &target).map_err(Error::io(&target))?;
        }
    }
    let (source, target) = (from.join(TEMPLATES), to.join(TEMPLATES));
    if source.is_dir() {
        fs::create_dir_all(&target).map_err(Error::io(&target))?;
        for entry in fs::read_dir(&source).map_err(Error::io(&source))? {
            let entry = entry.map_err(Error::io(&source))?;
            if entry.path().is_file() {
                let target = target.join(entry.file_name());
                fs::copy(entry.path(), &target).map_err(Error::io(&target))?;
            }
        }
    }
    Ok(())
}
