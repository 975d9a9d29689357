//! Small models and microbatches that do not divide.

use std::collections::BTreeMap;

use arch::ModelConfig;
use arch::mesh::Mesh;
use arch::slice::Held;
use model::{Decoder, Layout, Libtorch, Segment, Weights};
use parallel::{Checkpointing, Engine, Error, Grads, Inside, Microbatch, Moe, Parameters, Routes};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// A model, a microbatch and how to compute it.
pub struct Case {
    name: String,
    pub config: ModelConfig,
    pub kind: Kind,
    layout: Layout,
    keep: Option<Vec<i64>>,
    checkpointing: Checkpointing,
}

/// What ranks give together.
#[derive(Serialize, Deserialize)]
pub struct Seen {
    pub output: Vec<f64>,
    pub grads: BTreeMap<String, Vec<f64>>,
}

const BASE: &str = r#"{"vocab_size": 61, "hidden_size": 24, "intermediate_size": 37,
    "num_hidden_layers": 2, "max_position_embeddings": 256, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6, "initializer_range": 0.08, MORE}"#;

fn config(more: &str) -> ModelConfig {
    ModelConfig::from_json(&BASE.replace("MORE", more)).expect("a good configuration")
}

/// Tied, norms of heads, two key heads, an odd size of heads' halves.
fn tied() -> ModelConfig {
    config(
        r#""model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 10, "tie_word_embeddings": true"#,
    )
}

/// Three heads, every bias.
fn biased(heads: usize) -> ModelConfig {
    config(&format!(
        r#""model_type": "llama", "num_attention_heads": {heads}, "num_key_value_heads": {heads},
        "head_dim": 6, "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": false"#
    ))
}

/// A window that cuts, six heads on two.
fn windowed() -> ModelConfig {
    config(
        r#""model_type": "mistral", "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 4, "sliding_window": 5, "tie_word_embeddings": false"#,
    )
}

/// Experts of a width that does not divide, of which most rows reach few.
fn experts() -> ModelConfig {
    config(
        r#""model_type": "qwen3_moe", "num_attention_heads": 4, "num_key_value_heads": 4,
        "head_dim": 6, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 11,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "tie_word_embeddings": false"#,
    )
}

type Rows = (&'static str, Layout, Option<Vec<i64>>);

fn batches() -> Vec<Rows> {
    let mut branches = Layout::default();
    let prefix = branches.push(7, None);
    for n in [6, 1, 9, 0] {
        branches.push(n, Some(prefix));
    }
    vec![
        ("one sequence", Layout::sequences(&[23]), None),
        (
            "packed",
            Layout::sequences(&[7, 1, 13, 2]),
            Some(vec![0, 3, 4, 9, 10, 19, 20, 21]),
        ),
        (
            "branches",
            branches,
            // a prefix's last row predicts the first token of each branch
            Some(vec![6, 7, 8, 6, 6, 14, 15, 22]),
        ),
        ("first row kept", Layout::sequences(&[12]), Some(vec![0])),
        ("one row", Layout::sequences(&[1]), None),
        ("two of one", Layout::sequences(&[1, 1]), Some(vec![1])),
        ("empty", Layout::default(), None),
    ]
}

/// What a mesh is tried on.
pub fn all(mesh: &Mesh) -> Vec<Case> {
    let heads = if mesh.tp == 4 { 5 } else { 3 };
    let mut out = Vec::new();
    let (none, selective, full) = (
        Checkpointing::None,
        Checkpointing::Selective,
        Checkpointing::Full,
    );
    for (model, config, kind, checkpointing) in [
        ("tied", tied(), Kind::Double, none),
        ("tied", tied(), Kind::Float, selective),
        ("tied", tied(), Kind::Double, full),
        ("biased", biased(heads), Kind::Float, none),
        ("windowed", windowed(), Kind::Double, selective),
        ("experts", experts(), Kind::Double, none),
        ("experts", experts(), Kind::Double, full),
    ] {
        for (rows, layout, keep) in batches() {
            out.push(Case {
                name: format!("{model}, {rows}, {kind:?}, {checkpointing:?}"),
                config: config.clone(),
                kind,
                layout,
                keep,
                checkpointing,
            });
        }
    }
    out
}

/// A rank's parts of whole weights.
struct Parts {
    kind: Kind,
    tensors: BTreeMap<String, Tensor>,
}

impl Parameters for Parts {
    fn kind(&self) -> Kind {
        self.kind
    }
    fn gather(&self, segment: &Segment) -> Result<Vec<Tensor>, Error> {
        let names = segment.params.iter();
        Ok(names.map(|n| self.tensors[n].shallow_clone()).collect())
    }
    fn release(&self, _: &Segment) {}
}

/// Deterministic values that look random.
fn wave(size: &[i64], salt: f64, kind: Kind) -> Tensor {
    let n: i64 = size.iter().product();
    (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898 + salt)
        .sin()
        .view(size)
        .to_kind(kind)
}

impl Case {
    fn batch(&self) -> Microbatch {
        let rows = self.layout.rows() as i64;
        let ids = (0..rows).map(|i| (i * i * 7 + 3 * i + 60) % 61);
        Microbatch {
            tokens: Tensor::from_slice(&ids.collect::<Vec<_>>()),
            layout: self.layout.clone(),
            keep: self.keep.as_ref().map(|k| Tensor::from_slice(k)),
            routes: self.routes(rows),
        }
    }

    /// Where every row goes in each layer, whatever its router says: rows must not be mixed up.
    fn routes(&self, rows: i64) -> Option<Routes> {
        let experts = self.config.experts.as_ref()?;
        let count = experts.count as i64;
        let ids = (0..rows).flat_map(|row| {
            let layers = 0..self.config.layers as i64;
            layers.flat_map(move |layer| {
                let first = (row * row + layer) % count;
                [first, (first + 1 + row % 3) % count]
            })
        });
        let ids = Tensor::from_slice(&ids.collect::<Vec<_>>());
        Some(Routes {
            ids: Some(ids.view([rows, experts.choices() as i64])),
            weight: Tensor::ones([rows], (Kind::Double, Device::Cpu)),
        })
    }

    /// Rows that come out.
    pub fn kept(&self) -> i64 {
        let rows = self.layout.rows();
        self.keep.as_ref().map_or(rows, Vec::len) as i64
    }

    fn parts(&self, held: &[Held]) -> Parts {
        let whole = Weights::init(&self.config, 3, self.kind, Device::Cpu).expect("fits");
        let part = |h: &Held| {
            let mut part = whole.get(&h.def.name).shallow_clone();
            if part.dim() == 1 {
                // norms of one and biases of zero would hide mistakes
                part += wave(&whole.get(&h.def.name).size(), 0.4, self.kind) * 0.1;
            }
            for (dim, (&start, &size)) in h.local.start.iter().zip(&h.local.size).enumerate() {
                part = part.narrow(dim as i64, start as i64, size as i64);
            }
            (h.def.name.clone(), part.contiguous())
        };
        Parts {
            kind: self.kind,
            tensors: held.iter().map(part).collect(),
        }
    }

    /// This rank's kept rows, their output, and its gradients of a fixed weighting of them. Of the
    /// gradient that goes in, the tensor-parallel ranks have parts of the sum.
    pub fn run(
        &self,
        inside: &Inside,
        held: &[Held],
        place: usize,
        places: usize,
    ) -> (Option<Tensor>, Tensor, Grads) {
        let (parts, batch) = (self.parts(held), self.batch());
        let decoder = Decoder::new(self.config.clone());
        let engine = Engine {
            decoder: &decoder,
            parameters: &parts,
            ops: &Libtorch,
            inside,
            checkpointing: self.checkpointing,
            moe: &Moe::default(),
        };
        let own = inside.own(&batch);
        let walk = engine.forward(&batch).expect("a forward");
        let output = walk.output().shallow_clone();
        let inferred = engine.infer(&batch).expect("the same");
        assert!(inferred.equal(&output), "{}", self.name);
        let d = wave(&[self.kept(), output.size()[1]], 0.9, self.kind);
        let d = own
            .as_ref()
            .map_or(d.shallow_clone(), |own| d.index_select(0, own));
        let part = (1 + place) as f64 / (places * (places + 1) / 2) as f64;
        let shape = |s: &[usize]| s.iter().map(|&n| n as i64).collect();
        let shapes = held
            .iter()
            .map(|h| (h.def.name.clone(), shape(&h.local.size)));
        let mut grads = Grads::new(shapes, self.kind, Device::Cpu);
        walk.backward(d * part, &mut grads).expect("a backward");
        (own, output, grads)
    }

    /// Equal by norm ratio.
    pub fn compare(&self, got: &Seen, want: &Seen) {
        let tolerance = match self.kind {
            Kind::Double => 1e-11,
            _ => 1e-5,
        };
        let off = ratio(&got.output, &want.output);
        assert!(off <= tolerance, "{}: output is off by {off:e}", self.name);
        assert_eq!(got.grads.len(), want.grads.len());
        let embedded = &want.grads["model.embed_tokens.weight"];
        let any = embedded.iter().any(|&v| v != 0.0);
        assert_eq!(any, self.layout.rows() > 0, "{}", self.name);
        for (name, want) in &want.grads {
            // softmax ignores what all keys share: a key bias has no gradient but rounding
            let floor = if name.ends_with("k_proj.bias") {
                1e-3
            } else {
                0.0
            };
            let off = ratio_above(&got.grads[name], want, floor);
            assert!(
                off <= tolerance,
                "{}: gradient of {name} is off by {off:e}",
                self.name
            );
        }
    }
}

fn ratio(a: &[f64], b: &[f64]) -> f64 {
    ratio_above(a, b, 0.0)
}

/// `|a - b| / |b|`, where what `b` is measured by is `floor` at least; 0 where both are nothing.
fn ratio_above(a: &[f64], b: &[f64], floor: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    let size = norm(&mut b.iter().copied()).max(floor);
    if off == 0.0 { 0.0 } else { off / size }
}

/// All numbers of a tensor.
pub fn flat(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.to_kind(Kind::Double).flatten(0, -1)).expect("numbers")
}
