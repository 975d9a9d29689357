//! The residual stream of a forward without a way back: one addition with each norm.

use std::cell::Cell;

use arch::ModelConfig;
use model::{Context, Decoder, Layout, Libtorch, Ops, Packed, Stream, Weights};
use tch::{Device, Kind, Tensor};

const MODEL: &str = r#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.3}"#;

/// Libtorch's, counting.
#[derive(Default)]
struct Counted {
    together: Cell<u32>,
}

impl Ops for Counted {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
        Libtorch.rms_norm(x, weight, eps)
    }
    fn add_rms_norm(
        &self,
        x: &Tensor,
        added: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> (Tensor, Tensor) {
        self.together.set(self.together.get() + 1);
        Libtorch.add_rms_norm(x, added, weight, eps)
    }
    fn rope(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor) {
        Libtorch.rope(q, k, cos, sin)
    }
    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        Libtorch.swiglu(gate, up)
    }
    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        Libtorch.linear(x, weight, bias)
    }
}

#[test]
fn segments_run_on_have_the_bits_of_segments_run_apart() {
    let config = ModelConfig::from_json(MODEL).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let weights = Weights::init(&config, 3, kind, Device::Cpu).unwrap();
        let decoder = Decoder::new(config.clone());
        let tokens = Tensor::from_slice(&[3i64, 1, 4, 1, 5, 9, 2]);
        let attend = Packed::new(&Layout::sequences(&[7]), Device::Cpu).unwrap();
        let (ops, positions) = (
            Counted::default(),
            Tensor::arange(7, (Kind::Int64, Device::Cpu)),
        );
        let context = Context::new(&decoder, &positions, kind, &attend, &ops);
        let apart = decoder.forward(&weights, &tokens, &context);
        assert_eq!(ops.together.get(), 0, "a boundary is the sum");
        let kept = Tensor::from_slice(&[6i64, 2]);
        let mut stream = Stream::from(tokens);
        let last = decoder.segments.len() - 1;
        for i in 0..=last {
            if i == last {
                stream = stream.select(&kept);
            }
            stream = decoder.run_on(i, &decoder.segment_params(i, &weights), stream, &context);
        }
        // of three layers each has two, but the first has nothing to add; the last norm has
        assert_eq!(ops.together.get(), 6);
        assert!(
            stream.sum().equal(&apart.index_select(0, &kept)),
            "{kind:?}"
        );
    }
}
