//! Models with experts: the same bits in any batch, and choices that training can replay.

use arch::ModelConfig;
use model::decoder::tokens as ids;
use model::{Context, Decoder, Layout, Libtorch, Packed, Routing, Weights};
use rollout::{Rollout, RolloutConfig, Sample};
use tch::{Device, Kind, Tensor};

use crate::common::requests;

fn models(kind: Kind) -> Vec<(Decoder, Weights)> {
    let shared = r#""vocab_size": 97, "hidden_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "initializer_range": 0.3,
        "intermediate_size": 36"#;
    [
        format!(
            r#"{{"model_type": "qwen3_moe", {shared}, "num_experts": 11, "num_experts_per_tok": 3,
            "moe_intermediate_size": 20, "mlp_only_layers": [1], "norm_topk_prob": true}}"#
        ),
        format!(r#"{{"model_type": "mixtral", {shared}, "num_local_experts": 4}}"#),
    ]
    .iter()
    .map(|text| {
        let config = ModelConfig::from_json(text).expect("a good configuration");
        let weights = Weights::init(&config, 7, kind, Device::Cpu).expect("fresh weights");
        (Decoder::new(config), weights)
    })
    .collect()
}

fn sizes(max_rows: usize, max_sequences: usize, threads: usize) -> RolloutConfig {
    RolloutConfig {
        max_rows,
        max_sequences,
        threads,
        cache_tokens: 8192,
        routes: true,
        ..RolloutConfig::default()
    }
}

fn bits(s: &Sample) -> (u64, usize, Vec<u32>, Vec<u32>, Vec<u16>) {
    (
        s.request,
        s.sample,
        s.tokens.clone(),
        s.logprobs.iter().map(|p| p.to_bits()).collect(),
        s.routes.clone(),
    )
}

#[test]
fn bits_and_choices_are_the_same_alone_and_in_any_batch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (decoder, weights) in models(kind) {
            let choices = decoder.config.experts.as_ref().expect("experts").choices();
            let alone: Vec<_> = requests(18)
                .into_iter()
                .flat_map(|r| {
                    let prompt = r.prompt.len();
                    let mut rollout =
                        Rollout::new(&decoder, &weights, sizes(1024, 256, 1)).unwrap();
                    let samples = rollout.run_all(vec![r]).unwrap();
                    for s in &samples {
                        // of every token but the last
                        assert_eq!(s.routes.len(), (prompt + s.tokens.len() - 1) * choices);
                    }
                    samples
                })
                .map(|s| bits(&s))
                .collect();
            // few rows, few blocks: chunks of prompts, and sequences that are computed again
            for (max_rows, max_sequences, threads, cache_tokens) in [
                (1024, 256, 2, 8192),
                (1, 1, 1, 8192),
                (7, 256, 3, 8192),
                (33, 9, 2, 128),
            ] {
                let sizes = RolloutConfig {
                    cache_tokens,
                    ..sizes(max_rows, max_sequences, threads)
                };
                let mut rollout = Rollout::new(&decoder, &weights, sizes).unwrap();
                let together = rollout.run_all(requests(18)).unwrap();
                for (s, alone) in together.iter().zip(&alone) {
                    assert!(
                        bits(s) == *alone,
                        "{} {kind:?} rows {max_rows} request {}",
                        decoder.config.family.model_type,
                        s.request
                    );
                }
                // found in the cache now, choices included
                let again = rollout.run_all(requests(18)).unwrap();
                assert!(again.iter().map(bits).eq(together.iter().map(bits)));
            }
        }
    }
}

#[test]
fn choices_are_kept_only_where_they_are_asked_for() {
    let (decoder, weights) = models(Kind::Float).remove(0);
    let mut rollout = Rollout::new(&decoder, &weights, RolloutConfig::default()).unwrap();
    let samples = rollout.run_all(requests(3)).unwrap();
    assert!(samples.iter().all(|s| s.routes.is_empty()));
    let (decoder, weights) = crate::common::model(Kind::Float);
    let mut rollout = Rollout::new(&decoder, &weights, sizes(64, 8, 1)).unwrap();
    let samples = rollout.run_all(requests(3)).unwrap();
    assert!(samples.iter().all(|s| s.routes.is_empty()));
}

/// Sends rows where a sample's went.
struct Replayed<'a>(&'a Decoder, &'a Sample);

impl Routing for Replayed<'_> {
    fn replay(&self, layer: usize) -> Option<Tensor> {
        let experts = self.0.config.experts_of(layer)?;
        let wide: Vec<i64> = self.1.routes.iter().map(|id| i64::from(*id)).collect();
        let all = Tensor::from_slice(&wide).view([-1, experts.choices() as i64]);
        let before = experts.sparse_layers().take_while(|l| *l < layer).count();
        let n = experts.per_token;
        Some(all.narrow(1, (before * n) as i64, n as i64).contiguous())
    }
    fn routed(&self, _: usize, probabilities: Tensor, _: &Tensor) -> Tensor {
        probabilities
    }
}

/// Log-probabilities of a completion by the packed forward of training.
fn scored(
    decoder: &Decoder,
    weights: &Weights,
    prompt: &[u32],
    sample: &Sample,
    t: f64,
) -> Vec<f32> {
    let all = [prompt, &sample.tokens].concat();
    let rows = &all[..all.len() - 1];
    let packed = Packed::new(&Layout::sequences(&[rows.len()]), Device::Cpu).unwrap();
    let positions = Tensor::arange(rows.len() as i64, (Kind::Int64, Device::Cpu));
    let routing = Replayed(decoder, sample);
    let context = Context {
        routing: &routing,
        ..Context::new(decoder, &positions, weights.kind(), &packed, &Libtorch)
    };
    let hidden = tch::no_grad(|| decoder.forward(weights, &ids(rows, Device::Cpu), &context));
    let logits = hidden
        .linear(weights.get(decoder.lm_head_name()), None::<Tensor>)
        .to_kind(Kind::Float);
    let logp = (logits / t).log_softmax(-1, Kind::Float);
    (prompt.len() - 1..rows.len())
        .map(|i| logp.double_value(&[i as i64, i64::from(all[i + 1])]) as f32)
        .collect()
}

#[test]
fn training_that_replays_agrees_with_generation() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (decoder, weights) in models(kind) {
            let mut rollout = Rollout::new(&decoder, &weights, sizes(50, 256, 2)).unwrap();
            let requests = requests(18);
            let (mut worst, mut sum, mut count) = (0f32, 0f64, 0);
            for sample in rollout.run_all(requests.clone()).unwrap() {
                let request = &requests[sample.request as usize];
                let t = match request.sampling.temperature {
                    0.0 => 1.0,
                    t => t,
                };
                let train = scored(&decoder, &weights, &request.prompt, &sample, t);
                for (a, b) in train.iter().zip(&sample.logprobs) {
                    worst = worst.max((a - b).abs());
                    sum += f64::from((a - b).abs()).exp();
                    count += 1;
                }
            }
            assert!(count > 300);
            let mean = sum / f64::from(count);
            match kind {
                Kind::Float => assert!(worst < 1e-4, "off by {worst}"),
                _ => assert!(mean < 1.05, "bf16: {mean}"),
            }
        }
    }
}
