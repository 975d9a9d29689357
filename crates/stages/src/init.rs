//! A fresh model: a tokenizer made or trained here, a configuration of the family, and weights
//! that are a function of the seed.

use std::fs;
use std::path::Path;

use arch::{ExpertSizes, Sizes};
use data::dataset::{Content, Row};
use data::tokenizer::{self, Make};
use model::Weights;
use model::save::SaveOptions;
use serde_json::{Map, json};
use spec::kinds::init::{Init, Tokenizer};
use tch::{Device, Kind};

use crate::failure::{Result, at};
use crate::report::Metrics;
use crate::stage::{Done, Stage, store_dtype};

pub fn run(stage: &Stage) -> Result<Done> {
    if !stage.gang.leads() {
        return Ok(Done::Finished(Metrics::new()));
    }
    let with: Init = stage.with()?;
    let dir = stage.output("model")?;
    let tokenizer = tokenizer(stage, &with, dir)?;
    chat_template(&with.chat_template, dir)?;

    let vocab_size = (with.vocab_size as usize).max(tokenizer.vocab_size());
    let config = sizes(&with).config(
        vocab_size,
        tokenizer.bos(),
        tokenizer.eos(),
        tokenizer.pad(),
    )?;
    tokenizer.check_fits(config.vocab_size)?;
    let weights = Weights::init(&config, with.seed, Kind::Float, Device::Cpu)?;
    let options = SaveOptions {
        dtype: store_dtype(with.dtype),
        ..SaveOptions::default()
    };
    weights.save(&config, dir, options)?;
    let path = dir.join("generation_config.json");
    let generation = json!({
        "bos_token_id": tokenizer.bos(),
        "eos_token_id": tokenizer.eos(),
        "pad_token_id": tokenizer.pad(),
    });
    fs::write(&path, format!("{generation:#}\n")).map_err(at(&path))?;
    Ok(Done::Finished(Metrics::from([
        ("parameters".into(), config.param_count() as f64),
        ("vocabulary".into(), vocab_size as f64),
    ])))
}

/// The recipe's sizes as the family's configuration takes them.
fn sizes(with: &Init) -> Sizes {
    let mut extra = Map::new();
    extra.insert("rope_theta".into(), json!(with.rope_theta));
    extra.insert("rms_norm_eps".into(), json!(with.norm_eps));
    extra.insert("initializer_range".into(), json!(with.init_std));
    if with.sliding_window > 0 {
        extra.insert("sliding_window".into(), json!(with.sliding_window));
    }
    Sizes {
        model_type: with.family.clone(),
        hidden_size: with.hidden_size as usize,
        intermediate_size: with.intermediate_size as usize,
        num_hidden_layers: with.layers as usize,
        num_attention_heads: with.heads as usize,
        num_key_value_heads: with.kv_heads as usize,
        head_dim: Some(with.head_dim as usize),
        max_position_embeddings: with.max_positions as usize,
        tie_word_embeddings: with.tie_embeddings,
        experts: (with.experts > 0).then_some(ExpertSizes {
            count: with.experts as usize,
            per_token: with.experts_per_token as usize,
            intermediate_size: with.expert_size as usize,
        }),
        extra,
    }
}

/// Made, or trained on the texts of input `data`, and written to `dir`.
fn tokenizer(stage: &Stage, with: &Init, dir: &Path) -> Result<data::Tokenizer> {
    let how = match with.tokenizer {
        Tokenizer::Char => Make::Chars {
            alphabet: with.alphabet.clone(),
        },
        Tokenizer::Byte => Make::Bytes,
        Tokenizer::Bpe => Make::Bpe {
            vocab_size: with.vocab_size as usize,
        },
    };
    let dataset = stage.dataset("data")?;
    let mut texts = dataset
        .iter()
        .flat_map(|data| (0..data.len()).map(|row| text(data.row(row)?)));
    Ok(tokenizer::make(&how, &mut texts, dir)?)
}

/// All text of a row.
fn text(row: Row) -> data::Result<String> {
    let of = |content: &Content| match content {
        Content::Text(text) => text.clone(),
        Content::Messages(messages) => messages
            .iter()
            .map(|message| message.text())
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let parts = match row {
        Row::Preference {
            prompt,
            chosen,
            rejected,
            ..
        } => {
            vec![of(&prompt), of(&chosen), of(&rejected)]
        }
        Row::Messages { messages, .. } => vec![of(&Content::Messages(messages))],
        Row::PromptCompletion {
            prompt, completion, ..
        } => vec![of(&prompt), of(&completion)],
        Row::Text(text) => vec![text],
        Row::Prompt { prompt, .. } => vec![of(&prompt)],
        Row::Tokens { .. } => Vec::new(),
    };
    Ok(parts.join("\n"))
}

/// `default` keeps what was made with the tokenizer, `none` removes it, else it is the template.
fn chat_template(choice: &str, dir: &Path) -> Result<()> {
    let path = dir.join("chat_template.jinja");
    match choice {
        "default" => Ok(()),
        "none" => fs::remove_file(&path).map_err(at(&path)),
        text => {
            fs::write(&path, text).map_err(at(&path))?;
            // compiled here, so that a broken template fails this stage and not a later one
            data::Tokenizer::from_dir(dir)?;
            Ok(())
        }
    }
}
