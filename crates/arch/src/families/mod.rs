//! The decoder families: one file each, one line in [`FAMILIES`].
//!
//! All of them are a pre-norm decoder with rotary grouped-query attention and a SwiGLU MLP, or
//! several of which each row goes to a few (experts); a family's file says where it differs.

pub mod llama;
pub mod mistral;
pub mod mixtral;
pub mod qwen2;
pub mod qwen3;
pub mod qwen3_moe;

use crate::error::Error;
use crate::experts::Experts;
use crate::reader::Reader;
use crate::write::ExpertSizes;
use serde_json::Value;

/// Every family known, in the order they are listed to a user.
pub static FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &qwen3_moe::FAMILY,
];

/// What sets a family apart. Defaults are those of `transformers` for a key that is absent.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Name in `architectures`.
    pub architecture: &'static str,
    /// `num_key_value_heads` when the key is absent; `None` is the number of heads.
    pub default_kv_heads: Option<usize>,
    /// `head_dim` when the key is absent; `None` is `hidden_size / num_attention_heads`.
    pub default_head_dim: Option<usize>,
    /// `max_position_embeddings` when the key is absent.
    pub default_max_positions: usize,
    /// `rms_norm_eps` when the key is absent.
    pub default_norm_eps: f64,
    /// `rope_theta` when the key is absent.
    pub default_rope_theta: f64,
    /// Which projections have biases.
    pub biases: fn(&Reader) -> Result<Biases, Error>,
    /// Sliding window of each of the given number of layers.
    pub windows: fn(&Reader, usize) -> Result<Windows, Error>,
    /// RMS norm over each head of queries and keys.
    pub qk_norm: bool,
    /// Experts, for the given number of layers.
    pub experts: fn(&Reader, usize) -> Result<Option<Experts>, Error>,
    /// The keys of its own files for these sizes of experts; none where it has no experts.
    pub expert_keys: Option<ExpertKeys>,
}

/// Keys of `config.json` and their values.
pub type ExpertKeys = fn(&ExpertSizes) -> Vec<(&'static str, Value)>;

/// The sliding window of each layer, if it has one.
pub type Windows = Vec<Option<usize>>;

/// Which projections have biases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// Attention output.
    pub o: bool,
    /// Gate, up and down.
    pub mlp: bool,
}

/// The family of a `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    FAMILIES
        .iter()
        .find(|f| f.model_type == model_type)
        .copied()
}

/// "known: llama, qwen2, ..", for errors.
pub fn known() -> String {
    let names: Vec<_> = FAMILIES.iter().map(|f| f.model_type).collect();
    format!("known: {}", names.join(", "))
}

/// What sort of JSON value this is, in words.
pub(crate) fn kind_of(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// No layer has a window.
fn no_windows(_: &Reader, layers: usize) -> Result<Windows, Error> {
    Ok(vec![None; layers])
}

/// No layer has experts.
fn no_experts(_: &Reader, _: usize) -> Result<Option<Experts>, Error> {
    Ok(None)
}

/// Qwen's rule: `layer_types` if written, else the layers from `max_window_layers` on slide; only
/// with `use_sliding_window`.
fn qwen_windows(r: &Reader, layers: usize) -> Result<Windows, Error> {
    let window = if r.flag("use_sliding_window")?.unwrap_or(false) {
        match (r.size("sliding_window")?, r.has("sliding_window")) {
            (Some(n), _) => Some(n),
            (None, true) => None,
            (None, false) => Some(4096),
        }
    } else {
        None
    };
    let Some(types) = r.texts("layer_types")? else {
        let first = r.count("max_window_layers")?.unwrap_or(28);
        return Ok((0..layers).map(|l| window.filter(|_| l >= first)).collect());
    };
    if types.len() != layers {
        return Err(r.unsupported(
            "layer_types",
            format!("it must name each of the {layers} layers"),
        ));
    }
    types
        .iter()
        .map(|t| match (*t, window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(n)) => Ok(Some(n)),
            ("sliding_attention", None) => Err(r.unsupported(
                "layer_types",
                "sliding_attention needs use_sliding_window and sliding_window",
            )),
            _ => Err(r.unsupported("layer_types", "known: full_attention, sliding_attention")),
        })
        .collect()
}
