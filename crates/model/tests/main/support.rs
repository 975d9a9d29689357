//! Fixtures made by transformers, and the few lines of head that the tests need.

use arch::ModelConfig;
use model::decoder::tokens;
use model::{Context, Decoder, Layout, Libtorch, Packed, Weights};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

pub const MODELS: &[&str] = &[
    "llama-bias-sharded",
    "llama-linear",
    "mistral-window",
    "mixtral",
    "qwen2-window",
    "qwen2-yarn",
    "qwen3-bf16",
    "qwen3-moe",
    "qwen3-moe-sparse-step",
    "qwen3-tied",
];

#[derive(Deserialize)]
pub struct Expected {
    pub sequences: Vec<Vec<u32>>,
    pub logprobs: Vec<Vec<f64>>,
    pub prefix_sequences: Vec<Shared>,
    pub greedy: Vec<Greedy>,
    pub grad_norm: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
pub struct Shared {
    pub prefix: Vec<u32>,
    pub branches: Vec<Vec<u32>>,
    pub logprobs: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
pub struct Greedy {
    pub tokens: Vec<u32>,
    pub completion: Vec<u32>,
}

pub fn dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/models")
        .join(name)
}

pub fn expected(name: &str) -> Expected {
    let text = std::fs::read_to_string(dir(name).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub struct Model {
    pub decoder: Decoder,
    pub weights: Weights,
}

impl Model {
    pub fn load(name: &str, kind: Kind) -> Self {
        let config = ModelConfig::from_dir(&dir(name)).unwrap();
        let weights = Weights::load(&dir(name), &config, kind, Device::Cpu).unwrap();
        Self {
            decoder: Decoder::new(config),
            weights,
        }
    }

    /// `[rows, hidden]` of the rows of a layout.
    pub fn hidden(&self, ids: &[u32], layout: &Layout) -> Tensor {
        let packed = Packed::new(layout, Device::Cpu).unwrap();
        let positions = Tensor::from_slice(&layout.positions());
        let kind = self.weights.kind();
        let ctx = Context::new(&self.decoder, &positions, kind, &packed, &Libtorch);
        self.decoder
            .forward(&self.weights, &tokens(ids, Device::Cpu), &ctx)
    }

    /// Log-probability of `targets[i]` after row `rows[i]`.
    pub fn logprobs(&self, hidden: &Tensor, rows: &[usize], targets: &[u32]) -> Tensor {
        let rows: Vec<i64> = rows.iter().map(|&r| r as i64).collect();
        let head = self.weights.get(self.decoder.lm_head_name());
        hidden
            .index_select(0, &Tensor::from_slice(&rows))
            .matmul(&head.tr())
            .log_softmax(-1, None)
            .gather(1, &tokens(targets, Device::Cpu).unsqueeze(1), false)
            .squeeze_dim(1)
    }

    /// Log-probabilities of every sequence's tokens after its first, packed in the order given
    /// with `gap` rows of no sequence after each.
    pub fn score(&self, sequences: &[&[u32]], gap: usize) -> Vec<Vec<f64>> {
        let mut layout = Layout::default();
        let (mut ids, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for s in sequences {
            let start = ids.len();
            layout.spans.push(model::Span {
                start,
                len: s.len(),
                prefix: None,
            });
            ids.extend_from_slice(s);
            rows.extend((start..ids.len()).take(s.len() - 1));
            targets.extend_from_slice(&s[1..]);
            ids.resize(ids.len() + gap, 5);
        }
        ids.truncate(layout.rows());
        let lp = self.logprobs(&self.hidden(&ids, &layout), &rows, &targets);
        let mut all = Vec::<f64>::try_from(lp.to_kind(Kind::Double))
            .unwrap()
            .into_iter();
        sequences
            .iter()
            .map(|s| all.by_ref().take(s.len() - 1).collect())
            .collect()
    }
}

/// Largest difference of two lists of lists of the same shape.
pub fn worst(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut worst = 0f64;
    for (x, y) in a.iter().zip(b) {
        assert_eq!(x.len(), y.len());
        for (x, y) in x.iter().zip(y) {
            assert!(x.is_finite() && y.is_finite());
            worst = worst.max((x - y).abs());
        }
    }
    worst
}
