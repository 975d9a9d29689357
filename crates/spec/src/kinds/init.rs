//! `init`: a fresh Hugging Face style model from sizes, a tokenizer and a seed.

use super::training::config;
use super::{ArtifactKind, Config, Functions, Invalid, Kind, Port, StoreDtype, check};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How text becomes tokens in a fresh model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tokenizer {
    /// One token per character of `alphabet` (of the `data` input, where `alphabet` is empty).
    Char,
    /// One token per byte.
    Byte,
    /// Byte-level BPE of `vocab_size` tokens trained on the `data` input.
    Bpe,
}

config! {
    /// Sizes use Hugging Face's meaning; 0 where a default follows from other sizes.
    pub struct Init {
        /// Decoder family: `llama`, `qwen2`, `qwen3`, `mistral`, `mixtral` or `qwen3_moe`.
        pub family: String = String::new(),
        pub hidden_size: u64 = 0,
        /// 0: 4 x hidden_size.
        pub intermediate_size: u64 = 0,
        pub layers: u64 = 0,
        pub heads: u64 = 0,
        /// Key/value heads; 0: as many as `heads`.
        pub kv_heads: u64 = 0,
        /// 0: hidden_size / heads.
        pub head_dim: u64 = 0,
        /// How text becomes tokens.
        pub tokenizer: Tokenizer = Tokenizer::Byte,
        /// The characters of a `char` tokenizer, in token order.
        pub alphabet: String = String::new(),
        /// Rows of the embedding; 0: as many as the tokenizer has. Required for `bpe`.
        pub vocab_size: u64 = 0,
        /// Whether the embedding is also the output matrix.
        pub tie_embeddings: bool = true,
        /// Longest context in tokens.
        pub max_positions: u64 = 2048,
        pub rope_theta: f64 = 10_000.0,
        pub norm_eps: f64 = 1e-6,
        /// Attention window in tokens, for families that have one; 0 is none.
        pub sliding_window: u64 = 0,
        /// Experts of each layer, for families that have them.
        #[serde(skip_serializing_if = "is_zero")]
        pub experts: u64 = 0,
        /// Experts that a token goes to; 0: 2.
        #[serde(skip_serializing_if = "is_zero")]
        pub experts_per_token: u64 = 0,
        /// Width of an expert of `qwen3_moe`; 0: `intermediate_size`, which `mixtral` always takes.
        #[serde(skip_serializing_if = "is_zero")]
        pub expert_size: u64 = 0,
        /// Standard deviation of fresh weights.
        pub init_std: f64 = 0.02,
        /// `default` (one token opens a turn, one ends it), `none`, or the text of a Jinja template.
        pub chat_template: String = "default".to_owned(),
        /// Precision of the tensors written.
        pub dtype: StoreDtype = StoreDtype::Fp32,
        /// Seed of the weights.
        pub seed: u64 = 0,
    }
}

/// Leaves a size that is not given out of the key.
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Config for Init {
    fn finish(&mut self) -> Result<(), Invalid> {
        if self.family.is_empty() {
            return Err(Invalid::missing(
                "family",
                "name a decoder family: `family = \"qwen3\"`",
            ));
        }
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("layers", self.layers),
            ("heads", self.heads),
        ] {
            if value == 0 {
                return Err(Invalid::missing(
                    field,
                    format!("give the size of the model: `{field} = ..`, 1 or more"),
                ));
            }
        }
        if self.intermediate_size == 0 {
            self.intermediate_size = 4 * self.hidden_size;
        }
        if self.kv_heads == 0 {
            self.kv_heads = self.heads;
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Invalid::range(
                "kv_heads",
                self.kv_heads,
                &format!("a divisor of the {} heads", self.heads),
            ));
        }
        if self.head_dim == 0 {
            if !self.hidden_size.is_multiple_of(self.heads) {
                return Err(Invalid::range(
                    "heads",
                    self.heads,
                    &format!(
                        "a divisor of hidden_size {}, unless `head_dim` is given",
                        self.hidden_size
                    ),
                ));
            }
            self.head_dim = self.hidden_size / self.heads;
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Invalid::range(
                "head_dim",
                self.head_dim,
                "even, for rotary position embeddings",
            ));
        }
        if self.experts > 0 {
            if self.experts_per_token == 0 {
                self.experts_per_token = 2.min(self.experts);
            }
            if self.experts_per_token > self.experts {
                return Err(Invalid::range(
                    "experts_per_token",
                    self.experts_per_token,
                    &format!("at most the {} experts", self.experts),
                ));
            }
            if self.expert_size == 0 {
                self.expert_size = self.intermediate_size;
            }
        } else if self.experts_per_token > 0 || self.expert_size > 0 {
            return Err(Invalid::missing(
                "experts",
                "sizes of experts are given: say how many a layer has, `experts = 8`",
            ));
        }
        if self.tokenizer == Tokenizer::Bpe && self.vocab_size < 257 {
            return Err(Invalid::range(
                "vocab_size",
                self.vocab_size,
                "257 or more for a byte-level BPE tokenizer",
            ));
        }
        if self.tokenizer != Tokenizer::Char && !self.alphabet.is_empty() {
            return Err(Invalid::conflict(
                "alphabet",
                "'alphabet' is for tokenizer = \"char\" only",
                "remove it, or use the `char` tokenizer",
            ));
        }
        check::at_least("max_positions", self.max_positions, 2)?;
        check::positive("rope_theta", self.rope_theta)?;
        check::positive("norm_eps", self.norm_eps)?;
        check::positive("init_std", self.init_std)?;
        if self.dtype == StoreDtype::Keep {
            return Err(Invalid::range(
                "dtype",
                "\"keep\"",
                "fp32, fp16 or bf16: a fresh model has nothing to keep",
            ));
        }
        Ok(())
    }

    fn check_inputs(&self, inputs: &[&str]) -> Result<(), Invalid> {
        let data = inputs.contains(&"data");
        match self.tokenizer {
            Tokenizer::Bpe if !data => Err(Invalid {
                field: "tokenizer".to_owned(),
                message: "a 'bpe' tokenizer is trained, but there is no input 'data'".to_owned(),
                help: "add `in.data = \"source.NAME\"`, or use the `byte` tokenizer".to_owned(),
                code: crate::codes::MISSING_INPUT,
            }),
            Tokenizer::Char if !data && self.alphabet.is_empty() => Err(Invalid::missing(
                "alphabet",
                "a `char` tokenizer needs `alphabet = \"..\"`, or an input `data` to take it from",
            )),
            Tokenizer::Char if data && !self.alphabet.is_empty() => Err(Invalid::conflict(
                "alphabet",
                "both 'alphabet' and the input 'data' are given",
                "keep one: the tokenizer's characters come from it",
            )),
            Tokenizer::Byte if data => Err(Invalid::conflict(
                "tokenizer",
                "the input 'data' is not used by a 'byte' tokenizer",
                "remove the input, or use the `bpe` tokenizer",
            )),
            _ => Ok(()),
        }
    }
}

pub const KIND: Kind = Kind {
    name: "init",
    version: 1,
    doc: "a fresh model",
    inputs: &[Port::many(
        "data",
        ArtifactKind::Dataset,
        "text that the tokenizer is trained on",
    )
    .optional()],
    outputs: &[Port::one("model", ArtifactKind::Weights, "the fresh model")],
    open_inputs: false,
    trainer: true,
    accelerated: false,
    checkpoints: false,
    config: Functions::of::<Init>(),
};
