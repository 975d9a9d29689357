//! The parameter table: names, shapes, places, sharding rules and initial values.

use crate::ModelConfig;
use crate::experts::Experts;

/// Name of the embedding.
pub const EMBED: &str = "model.embed_tokens.weight";
/// Name of the LM matrix when it is not tied.
pub const LM_HEAD: &str = "lm_head.weight";
/// Name of the final norm's weight.
pub const NORM: &str = "model.norm.weight";

/// One parameter. The name is Hugging Face's, the only name it has anywhere.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamDef {
    /// Hugging Face tensor name.
    pub name: String,
    /// Sizes; a matrix is `[out, in]`.
    pub shape: Vec<usize>,
    /// Segment that uses it; the LM matrix belongs to none and carries `segment_count()`.
    pub segment: usize,
    /// What it is.
    pub role: Role,
    /// How tensor parallelism cuts it.
    pub shard: Shard,
    /// The expert that it belongs to; expert parallelism gives each expert to one place on `ep`.
    pub expert: Option<usize>,
    /// Its fresh value.
    pub init: Init,
    /// Whether weight decay applies: matrices only.
    pub decay: bool,
}

impl ParamDef {
    /// Elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The token embedding.
    Embed,
    /// A norm's weight.
    Norm,
    /// A projection matrix.
    Linear,
    /// A projection's bias.
    Bias,
    /// The LM matrix, when not tied.
    Head,
}

/// How tensor parallelism cuts a parameter, and with that which part of its gradient a rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shard {
    /// Rows of the output, query heads whole.
    Heads,
    /// Rows of the output, key and value heads whole; ranks that share a head hold it alike, each
    /// with its own queries' part of the gradient.
    KvHeads,
    /// Rows of the output.
    Column,
    /// Columns of the input, cut as the rows of the matrix before it.
    Row(Cut),
    /// Rows of the vocabulary.
    Vocab,
    /// Whole everywhere, and applied to the residual stream: the gradient is a part of the sum
    /// over `tp` only where the rows are split (sequence parallelism).
    Replicate,
    /// Whole everywhere, and applied between a column-cut and a row-cut matrix: the gradient is
    /// always a part of the sum over `tp`.
    Inside,
}

/// What the columns of a row-cut matrix are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Query heads.
    Heads,
    /// The rows of a [`Shard::Column`] matrix.
    Column,
}

/// A fresh value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean zero and this standard deviation.
    Normal(f64),
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
}

impl ModelConfig {
    /// All parameters, in the order of the segments and, within one, in the order its forward
    /// takes them. The LM matrix comes last, unless it is tied.
    pub fn params(&self) -> Vec<ParamDef> {
        let mut table = Table {
            config: self,
            out: Vec::with_capacity(self.layers * 12 + 3),
        };
        table.push(
            0,
            EMBED.into(),
            vec![self.vocab_size, self.hidden_size],
            Role::Embed,
            Shard::Vocab,
        );
        for layer in 0..self.layers {
            table.attention(layer);
            match self.experts_of(layer) {
                Some(experts) => table.experts(layer, experts),
                None => table.mlp(layer),
            }
        }
        table.norm(
            self.segment_count() - 1,
            NORM.into(),
            self.hidden_size,
            Shard::Replicate,
        );
        if !self.tie_embeddings {
            table.push(
                self.segment_count(),
                LM_HEAD.into(),
                vec![self.vocab_size, self.hidden_size],
                Role::Head,
                Shard::Vocab,
            );
        }
        table.out
    }
}

struct Table<'a> {
    config: &'a ModelConfig,
    out: Vec<ParamDef>,
}

impl Table<'_> {
    fn attention(&mut self, layer: usize) {
        let c = self.config;
        let segment = 1 + 2 * layer;
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let (q, kv, d) = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.head_dim);
        self.norm(
            segment,
            at("input_layernorm.weight"),
            c.hidden_size,
            Shard::Replicate,
        );
        for (part, rows, shard) in [
            ("q", q, Shard::Heads),
            ("k", kv, Shard::KvHeads),
            ("v", kv, Shard::KvHeads),
        ] {
            self.linear(
                segment,
                at(&format!("self_attn.{part}_proj")),
                [rows, c.hidden_size],
                shard,
                c.qkv_bias,
            );
        }
        self.linear(
            segment,
            at("self_attn.o_proj"),
            [c.hidden_size, q],
            Shard::Row(Cut::Heads),
            c.o_bias,
        );
        if c.qk_norm {
            for part in ["q_norm", "k_norm"] {
                let name = at(&format!("self_attn.{part}.weight"));
                self.norm(segment, name, d, Shard::Inside);
            }
        }
    }

    fn mlp(&mut self, layer: usize) {
        let c = self.config;
        let segment = 2 + 2 * layer;
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let (h, m) = (c.hidden_size, c.intermediate_size);
        self.norm(
            segment,
            at("post_attention_layernorm.weight"),
            h,
            Shard::Replicate,
        );
        self.linear(
            segment,
            at("mlp.gate_proj"),
            [m, h],
            Shard::Column,
            c.mlp_bias,
        );
        self.linear(
            segment,
            at("mlp.up_proj"),
            [m, h],
            Shard::Column,
            c.mlp_bias,
        );
        self.linear(
            segment,
            at("mlp.down_proj"),
            [h, m],
            Shard::Row(Cut::Column),
            c.mlp_bias,
        );
    }

    /// Norm, router, then gate, up and down of each expert.
    fn experts(&mut self, layer: usize, experts: &Experts) {
        let (h, m) = (self.config.hidden_size, experts.intermediate_size);
        let segment = 2 + 2 * layer;
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let names = experts.names;
        self.norm(
            segment,
            at("post_attention_layernorm.weight"),
            h,
            Shard::Replicate,
        );
        let router = [experts.count, h];
        self.linear(segment, at(names.router), router, Shard::Inside, false);
        for expert in 0..experts.count {
            let first = self.out.len();
            for (part, shape, shard) in [
                (names.gate, [m, h], Shard::Column),
                (names.up, [m, h], Shard::Column),
                (names.down, [h, m], Shard::Row(Cut::Column)),
            ] {
                let name = at(&format!("{}.{expert}.{part}", names.experts));
                self.linear(segment, name, shape, shard, false);
            }
            for def in &mut self.out[first..] {
                def.expert = Some(expert);
            }
        }
    }

    fn linear(
        &mut self,
        segment: usize,
        name: String,
        shape: [usize; 2],
        shard: Shard,
        bias: bool,
    ) {
        // A bias follows its output: cut with columns, whole where the columns are summed.
        let bias_shard = match shard {
            Shard::Row(_) => Shard::Replicate,
            cut => cut,
        };
        self.push(
            segment,
            format!("{name}.weight"),
            shape.to_vec(),
            Role::Linear,
            shard,
        );
        if bias {
            self.push(
                segment,
                format!("{name}.bias"),
                vec![shape[0]],
                Role::Bias,
                bias_shard,
            );
        }
    }

    fn norm(&mut self, segment: usize, name: String, size: usize, shard: Shard) {
        self.push(segment, name, vec![size], Role::Norm, shard);
    }

    fn push(&mut self, segment: usize, name: String, shape: Vec<usize>, role: Role, shard: Shard) {
        let init = match role {
            Role::Norm => Init::Ones,
            Role::Bias => Init::Zeros,
            _ => Init::Normal(self.config.init_std),
        };
        self.out.push(ParamDef {
            name,
            shape,
            segment,
            role,
            shard,
            expert: None,
            init,
            decay: matches!(role, Role::Embed | Role::Linear | Role::Head),
        });
    }
}
