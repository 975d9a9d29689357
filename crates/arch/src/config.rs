//! A decoder's configuration: every field of `config.json` that changes the forward.

use crate::error::Error;
use crate::experts::Experts;
use crate::families::{self, Family};
use crate::reader::Reader;
use crate::rope::Rope;
use serde_json::{Map, Value};
use std::path::Path;

/// What a decoder computes, read from a Hugging Face `config.json`.
///
/// Sizes are counts of elements. A field that this program does not compute is refused while
/// reading, so a value of this type is always one that the forward honours in full.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The family's table.
    pub family: &'static Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP in layers without experts.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of a head, even; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the LM matrix is the embedding.
    pub tie_embeddings: bool,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub o_bias: bool,
    /// Biases on the MLP's three projections.
    pub mlp_bias: bool,
    /// RMS norms over each head of queries and keys.
    pub qk_norm: bool,
    /// Experts, in a decoder that has any.
    pub experts: Option<Experts>,
    /// Sliding window of each layer: a row sees itself and the `window - 1` rows before it.
    pub windows: Vec<Option<usize>>,
    /// Longest sequence, in tokens, for which the positions mean what they were trained to mean.
    pub max_positions: usize,
    /// Standard deviation of fresh matrices.
    pub init_std: f64,
    /// The whole object as it was read, carried through to what is written.
    pub raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// The first key that is missing, malformed, or asks for what is not supported.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        match serde_json::from_str(text) {
            Ok(Value::Object(raw)) => Self::from_map(raw),
            Ok(other) => Err(Error::Json(format!(
                "it holds {}",
                crate::families::kind_of(&other)
            ))),
            Err(e) => Err(Error::Json(e.to_string())),
        }
    }

    /// Reads `config.json` in a model directory.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`], with the file named.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        Self::from_json(&text).map_err(|e| Error::At {
            path,
            source: Box::new(e),
        })
    }

    fn from_map(raw: Map<String, Value>) -> Result<Self, Error> {
        let top = Reader::new(&raw, "?");
        let model_type = top.text("model_type")?.ok_or_else(|| Error::Unsupported {
            key: "model_type".into(),
            value: "absent".into(),
            help: families::known(),
        })?;
        let family = families::find(model_type)
            .ok_or_else(|| top.unsupported("model_type", families::known()))?;
        let r = Reader::new(&raw, model_type);
        refuse_what_changes_the_forward(&r, family)?;

        let hidden_size = r.need_size("hidden_size")?;
        let heads = r.need_size("num_attention_heads")?;
        let layers = r.need_size("num_hidden_layers")?;
        let kv_heads = match r.size("num_key_value_heads")? {
            Some(n) => n,
            None if r.has("num_key_value_heads") => heads,
            None => family.default_kv_heads.unwrap_or(heads),
        };
        if heads % kv_heads != 0 {
            return Err(r.wrong(
                "num_key_value_heads",
                &kv_heads.into(),
                &format!("a divisor of num_attention_heads ({heads})"),
            ));
        }
        let head_dim = match r.size("head_dim")? {
            Some(n) => n,
            None if !r.has("head_dim") && family.default_head_dim.is_some() => {
                family.default_head_dim.unwrap_or_default()
            }
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(r.wrong(
                    "hidden_size",
                    &hidden_size.into(),
                    &format!("a multiple of num_attention_heads ({heads}) when head_dim is absent"),
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(r.wrong("head_dim", &head_dim.into(), "an even number"));
        }
        let max_positions = r
            .size("max_position_embeddings")?
            .unwrap_or(family.default_max_positions);
        let rope = Rope::read(&r, head_dim, max_positions, family.default_rope_theta)?;
        let biases = (family.biases)(&r)?;
        let windows = (family.windows)(&r, layers)?;
        let experts = (family.experts)(&r, layers)?;
        Ok(Self {
            family,
            vocab_size: r.need_size("vocab_size")?,
            hidden_size,
            intermediate_size: r.need_size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            norm_eps: r
                .positive("rms_norm_eps")?
                .unwrap_or(family.default_norm_eps),
            rope,
            tie_embeddings: r.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: biases.qkv,
            o_bias: biases.o,
            mlp_bias: biases.mlp,
            qk_norm: family.qk_norm,
            experts,
            windows,
            max_positions,
            init_std: r.positive("initializer_range")?.unwrap_or(0.02),
            raw,
        })
    }

    /// Name of the LM matrix: the embedding's when tied.
    pub fn lm_head_name(&self) -> &'static str {
        if self.tie_embeddings {
            crate::params::EMBED
        } else {
            crate::params::LM_HEAD
        }
    }

    /// The experts of a layer, if it has any.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|e| e.layers[layer])
    }

    /// Segments of the decoder: embed, (attention, mlp) x layers, norm.
    pub fn segment_count(&self) -> usize {
        2 * self.layers + 2
    }
}

/// Refuses keys shared by all families whose values this program does not compute.
fn refuse_what_changes_the_forward(r: &Reader, family: &Family) -> Result<(), Error> {
    match r.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(_) => return Err(r.unsupported("hidden_act", "known: silu")),
    }
    if let Some(names) = r.texts("architectures")?
        && !names.contains(&family.architecture)
    {
        return Err(r.unsupported(
            "architectures",
            format!(
                "model_type '{}' means {}",
                family.model_type, family.architecture
            ),
        ));
    }
    if r.number("attention_dropout")?.unwrap_or(0.0) != 0.0 {
        return Err(r.unsupported("attention_dropout", "set it to 0.0"));
    }
    if r.value("quantization_config").is_some() {
        return Err(r.unsupported(
            "quantization_config",
            "give a model with fp32, bf16 or fp16 weights",
        ));
    }
    Ok(())
}
