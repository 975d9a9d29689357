//! A `config.json` for a fresh model.

use crate::{Error, Family, ModelConfig, families};
use serde_json::{Map, Value, json};

/// The sizes of a fresh model; the `init` stage's own part of its configuration.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Family: `llama`, `qwen2`, `qwen3`, `mistral`, `mixtral`, `qwen3_moe`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Size of a head; absent is `hidden_size / num_attention_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Whether the LM matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Experts, of a family that has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertSizes>,
    /// Any other key of the family's `config.json`, as it stands there.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
}

/// The sizes of a fresh model's experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSizes {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a row goes to.
    pub per_token: usize,
    /// Width of an expert's MLP.
    pub intermediate_size: usize,
}

impl Sizes {
    /// The configuration of a fresh model for a tokenizer of `vocab_size` ids. `bos`, `eos` and
    /// `pad` are that tokenizer's special ids.
    ///
    /// # Errors
    /// Experts where the family has none, or none where it has some; as [`ModelConfig::from_json`] on
    /// what is written.
    pub fn config(
        &self,
        vocab_size: usize,
        bos: Option<u32>,
        eos: Option<u32>,
        pad: Option<u32>,
    ) -> Result<ModelConfig, Error> {
        let family = families::find(&self.model_type).ok_or_else(|| Error::Unsupported {
            key: "model_type".into(),
            value: format!("\"{}\"", self.model_type),
            help: families::known(),
        })?;
        let heads = self.num_attention_heads;
        let head_dim = self
            .head_dim
            .or_else(|| (heads > 0).then(|| self.hidden_size / heads));
        let base = json!({
            "architectures": [family.architecture],
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "dtype": "float32",
            "eos_token_id": eos,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": pad,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            // absent would mean 4096 to mistral
            "sliding_window": null,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "vocab_size": vocab_size,
        });
        let Value::Object(mut map) = base else {
            return Err(Error::Json("not an object".into()));
        };
        for (key, value) in &self.extra {
            map.insert(key.clone(), value.clone());
        }
        for (key, value) in self.expert_keys(family)? {
            map.insert(key.to_owned(), value);
        }
        let config = ModelConfig::from_json(&Value::Object(map).to_string())?;
        match (&self.experts, &config.experts) {
            (Some(asked), Some(made)) if asked.intermediate_size != made.intermediate_size => {
                Err(Error::Experts {
                    problem: format!(
                        "expert_size = {}, but experts of {} are as wide as intermediate_size = {}",
                        asked.intermediate_size, self.model_type, self.intermediate_size
                    ),
                    help: "leave it out",
                })
            }
            _ => Ok(config),
        }
    }

    fn expert_keys(&self, family: &Family) -> Result<Vec<(&'static str, Value)>, Error> {
        let refuse = |problem: String, help| Err(Error::Experts { problem, help });
        match (&self.experts, family.expert_keys) {
            (None, None) => Ok(Vec::new()),
            (Some(sizes), Some(keys)) => Ok(keys(sizes)),
            (Some(sizes), None) => refuse(
                format!(
                    "experts = {}, but {} has no experts",
                    sizes.count, self.model_type
                ),
                "leave it out, or use the family qwen3_moe or mixtral",
            ),
            (None, Some(_)) => refuse(
                format!(
                    "{} has experts, but it is not said how many",
                    self.model_type
                ),
                "say how many a layer has: `experts = 8`",
            ),
        }
    }
}

impl ModelConfig {
    /// The text of `config.json`: what was read, with `dtype` in place of the old one if given
    /// (`float32`, `bfloat16`, `float16`).
    pub fn to_json(&self, dtype: Option<&str>) -> String {
        let mut map = self.raw.clone();
        if let Some(dtype) = dtype {
            // transformers before 5 wrote `torch_dtype`
            let key = if map.contains_key("torch_dtype") && !map.contains_key("dtype") {
                "torch_dtype"
            } else {
                "dtype"
            };
            map.insert(key.into(), dtype.into());
        }
        // an object of JSON values always prints
        let mut text = serde_json::to_string_pretty(&Value::Object(map)).unwrap_or_default();
        text.push('\n');
        text
    }
}
