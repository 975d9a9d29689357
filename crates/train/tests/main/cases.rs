//! Small models, batches of units, and the three algorithms' losses over them.

use std::path::PathBuf;
use std::rc::Rc;

use arch::ModelConfig;
use model::Weights;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use train::loss::dpo::{self, Pairs};
use train::loss::grpo::{self, Batch, Counts, Objective};
use train::loss::{Rows, sft};
use train::{Branch, Error, Groups, LossOut, Policy, PolicyConfig, Tokens, Unit};

pub const VOCABULARY: u32 = 61;

/// Tied embeddings, query and key norms, grouped heads.
pub fn tied() -> ModelConfig {
    tied_of(2)
}

/// The same of this many layers.
pub fn tied_of(layers: usize) -> ModelConfig {
    ModelConfig::from_json(
        &r#"{"model_type": "qwen3", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 10, "max_position_embeddings": 256, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "initializer_range": 0.05, "tie_word_embeddings": true}"#
            .replace("LAYERS", &layers.to_string()),
    )
    .expect("a good configuration")
}

/// An LM matrix of its own.
pub fn untied() -> ModelConfig {
    three_layers("llama")
}

/// Biases. fp64 only: softmax ignores what all keys share, so the gradient of a key bias is a small
/// difference, of which fp32 keeps 2e-6 in any order of additions.
pub fn biased() -> ModelConfig {
    three_layers("qwen2")
}

fn three_layers(family: &str) -> ModelConfig {
    ModelConfig::from_json(
        &r#"{"model_type": "FAMILY", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
        "initializer_range": 0.05, "tie_word_embeddings": false}"#
            .replace("FAMILY", family),
    )
    .expect("a good configuration")
}

pub fn weights(model: &ModelConfig, kind: Kind) -> Weights {
    let weights = Weights::init(model, 3, kind, Device::Cpu).expect("fits in memory");
    // norms of one and biases of zero would hide mistakes
    tch::no_grad(|| {
        for (name, tensor) in weights.iter().filter(|(_, t)| t.dim() == 1) {
            let n = tensor.numel();
            let wave: Vec<f64> = (0..n)
                .map(|i| (i as f64 * 0.7 + name.len() as f64).sin())
                .collect();
            let wave = Tensor::from_slice(&wave).to_kind(kind);
            let mut tensor = tensor.shallow_clone();
            let _ = tensor.g_add_(&(wave * 0.1));
        }
    });
    weights
}

pub fn policy(model: &ModelConfig, config: PolicyConfig) -> Policy {
    policy_of(model, config, Groups::solo())
}

pub fn policy_of(model: &ModelConfig, config: PolicyConfig, groups: Rc<Groups>) -> Policy {
    // such small operators only wait for a second thread
    torch::threads::set(1);
    let kind = if config.kind == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    Policy::new(
        model.clone(),
        weights(model, kind),
        PathBuf::new(),
        config,
        groups,
    )
    .expect("a good policy")
}

/// A reproducible stream of small numbers.
pub struct Stream(pub u64);

impl Stream {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    /// Low ids are frequent, so that gradients do not cancel over tokens.
    fn tokens(&mut self, n: u64) -> Vec<u32> {
        (0..n)
            .map(|_| {
                let draws = [(); 4].map(|()| self.below(VOCABULARY.into()));
                draws.into_iter().min().unwrap_or(0) as u32
            })
            .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    Sft,
    Dpo,
    Grpo,
}

pub const ALGORITHMS: [Algorithm; 3] = [Algorithm::Sft, Algorithm::Dpo, Algorithm::Grpo];

/// Units of uneven lengths as this algorithm has them.
pub fn units(algorithm: Algorithm, count: usize, seed: u64) -> Vec<Unit> {
    let mut stream = Stream(seed);
    (0..count)
        .map(|i| unit(algorithm, i, &mut stream))
        .collect()
}

fn unit(algorithm: Algorithm, index: usize, stream: &mut Stream) -> Unit {
    match algorithm {
        Algorithm::Sft => {
            let n = 2 + stream.below(24);
            let tokens = stream.tokens(n);
            // gaps in the mask, and tokens after the last masked one
            let mask =
                (0..n).map(|i| i > 0 && i + 1 < n.max(3) && !(i + index as u64).is_multiple_of(3));
            Unit {
                branches: vec![Branch {
                    tokens,
                    mask: mask.collect(),
                }],
                ..Unit::default()
            }
        }
        Algorithm::Dpo | Algorithm::Grpo => {
            let (n, branches) = (
                1 + stream.below(12),
                if algorithm == Algorithm::Dpo { 2 } else { 4 },
            );
            let prefix = stream.tokens(n);
            let branches = (0..branches).map(|b| {
                let n = 1 + stream.below(9);
                let mut mask = vec![true; n as usize];
                if algorithm == Algorithm::Grpo && b == 2 {
                    // an observation in the middle; sometimes a branch with nothing to learn from
                    let from = (index % 3).min(mask.len());
                    mask[from..].fill(false);
                }
                Branch {
                    tokens: stream.tokens(n),
                    mask,
                }
            });
            let branches = branches.collect();
            Unit {
                prefix,
                branches,
                replay: None,
            }
        }
    }
}

pub type Loss = Box<dyn Fn(&Tokens) -> Result<LossOut, Error>>;

/// A recorded number for a token: what a reference or a rollout said.
fn recorded(purpose: u64, unit: usize, branch: usize, i: usize) -> f64 {
    let mut stream = Stream(purpose * 1_000_003 + (unit * 10_007 + branch * 101 + i) as u64);
    stream.below(7);
    stream.below(1000) as f64 / 1000.0
}

fn per_token(tokens: &Tokens, value: impl Fn(usize, usize, usize) -> f64) -> Tensor {
    let mut out = Vec::new();
    for span in tokens.units {
        for (branch, range) in span.branches.iter().enumerate() {
            out.extend((0..range.len()).map(|i| value(span.unit, branch, i)));
        }
    }
    Tensor::from_slice(&out).to_kind(tokens.logp.kind())
}

/// The algorithm's real loss, normalised by the counts of all `units`.
pub fn loss(algorithm: Algorithm, units: &[Unit]) -> Loss {
    let tokens: usize = units.iter().map(Unit::masked).sum();
    let pairs = units.len();
    let sequences = units.iter().map(|u| u.branches.len()).sum();
    match algorithm {
        Algorithm::Sft => Box::new(move |t| {
            Ok(LossOut {
                loss: sft::nll(&t.logp, tokens),
                metrics: vec![("tokens", t.logp.size()[0] as f64)],
            })
        }),
        Algorithm::Dpo => Box::new(move |t| {
            let reference = per_token(t, |u, b, i| -4.0 + recorded(1, u, b, i));
            let spans: Vec<_> = t
                .units
                .iter()
                .map(|u| (u.branches[0].clone(), u.branches[1].clone()))
                .collect();
            let p = Pairs::new(&t.logp, Some(&reference), &spans, Device::Cpu);
            let params = dpo::Params {
                beta: 0.3,
                label_smoothing: 0.0,
                gamma: 0.0,
            };
            let each = dpo::sigmoid(&p, &params);
            let loss = each.sum(each.kind()) / pairs as f64;
            Ok(LossOut {
                loss,
                metrics: vec![("pairs", spans.len() as f64)],
            })
        }),
        Algorithm::Grpo => Box::new(move |t| {
            let old = per_token(t, |u, b, i| -4.1 + 0.4 * recorded(2, u, b, i));
            let generated = old.shallow_clone();
            let reference = per_token(t, |u, b, i| -4.2 + 0.4 * recorded(3, u, b, i));
            let advantage = per_token(t, |u, b, _| 2.0 * recorded(4, u, b, 0) - 0.5);
            let spans: Vec<_> = t
                .units
                .iter()
                .flat_map(|u| u.branches.iter().cloned())
                .collect();
            let rows = Rows::new(&spans, Device::Cpu);
            let batch = Batch {
                lp: &t.logp,
                old: &old,
                generated: &generated,
                reference: Some(&reference),
                advantage: &advantage,
                sequences: &rows,
            };
            let objective = Objective {
                term: grpo::clip,
                correction: grpo::uncorrected,
                reduction: grpo::mean_of_means,
                kl: Some((grpo::k3, 0.05)),
                params: grpo::Params {
                    clip_low: 0.2,
                    clip_high: 0.2,
                    clip_dual: 3.0,
                    correction_low: 0.5,
                    correction_high: 2.0,
                },
            };
            let counts = Counts {
                tokens,
                sequences,
                max_tokens: 16,
            };
            let loss = grpo::loss(&objective, &batch, &counts);
            Ok(LossOut {
                loss,
                metrics: vec![("sequences", spans.len() as f64)],
            })
        }),
    }
}

/// `|a - b| / |b|`.
pub fn ratio(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(a.to_kind(Kind::Double) - b.to_kind(Kind::Double))) / norm(b)
}
