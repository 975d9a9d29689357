//! Log-probabilities of generation are those of the training forward.

use crate::common::{model, requests};
use model::decoder::tokens as ids;
use model::{Context, Decoder, Layout, Libtorch, Packed, Weights};
use rollout::{Request, Rollout, RolloutConfig, Sample};
use tch::{Device, Kind, Tensor};

/// Log-probabilities of a completion by the packed forward of training.
fn scored(decoder: &Decoder, weights: &Weights, request: &Request, sample: &Sample) -> Vec<f32> {
    let all = [request.prompt.as_slice(), &sample.tokens].concat();
    let rows = &all[..all.len() - 1];
    let packed = Packed::new(&Layout::sequences(&[rows.len()]), Device::Cpu).unwrap();
    let positions = Tensor::arange(rows.len() as i64, (Kind::Int64, Device::Cpu));
    let context = Context::new(decoder, &positions, weights.kind(), &packed, &Libtorch);
    let hidden = tch::no_grad(|| decoder.forward(weights, &ids(rows, Device::Cpu), &context));
    let logits = hidden
        .linear(weights.get(decoder.lm_head_name()), None::<Tensor>)
        .to_kind(Kind::Float);
    let t = if request.sampling.temperature == 0.0 {
        1.0
    } else {
        request.sampling.temperature
    };
    let logp = (logits / t).log_softmax(-1, Kind::Float);
    let from = request.prompt.len() - 1;
    (from..rows.len())
        .map(|i| logp.double_value(&[i as i64, i64::from(all[i + 1])]) as f32)
        .collect()
}

/// Mean of exp |lp_train - lp_gen| over all tokens.
fn mult_prob_error(kind: Kind, plain: bool) -> f64 {
    let (decoder, weights) = model(kind);
    let sizes = RolloutConfig {
        plain,
        max_rows: 50,
        cache_tokens: 4096,
        ..RolloutConfig::default()
    };
    let mut rollout = Rollout::new(&decoder, &weights, sizes).unwrap();
    let requests = requests(18);
    let (mut sum, mut count) = (0.0, 0);
    for sample in rollout.run_all(requests.clone()).unwrap() {
        let train = scored(
            &decoder,
            &weights,
            &requests[sample.request as usize],
            &sample,
        );
        assert_eq!(train.len(), sample.logprobs.len());
        for (a, b) in train.iter().zip(&sample.logprobs) {
            sum += f64::from((a - b).abs()).exp();
            count += 1;
        }
    }
    assert!(count > 300);
    sum / f64::from(count)
}

#[test]
fn training_agrees_with_generation() {
    let error = mult_prob_error(Kind::Float, false);
    assert!(error < 1.00001, "{error}");
    let error = mult_prob_error(Kind::Float, true);
    assert!(error < 1.00001, "plain: {error}");
    let error = mult_prob_error(Kind::BFloat16, false);
    assert!(error < 1.05, "bf16: {error}");
    let error = mult_prob_error(Kind::Double, false);
    assert!(error < 1.00001, "fp64 runs plainly: {error}");
}
