//! The reference: each sequence alone, whole logits, naive attention, one autograd graph. The
//! segments' arithmetic is the policy's; `kernels` holds it against libtorch's.

use std::collections::{BTreeMap, HashMap};

use arch::ModelConfig;
use model::{Attend, AttendSpec, Context, Decoder, Weights};
use tch::{Device, Kind, Tensor};
use train::{Error, LossOut, Tokens, Unit, UnitSpan};

/// Causal attention of one sequence by its formula.
struct Naive;

impl Attend for Naive {
    fn attend(&self, _: usize, q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttendSpec) -> Tensor {
        let (n, groups) = (q.size()[0], q.size()[1] / k.size()[1]);
        let heads = |x: &Tensor, repeat: i64| {
            x.transpose(0, 1)
                .repeat_interleave_self_int(repeat, 0, None)
        };
        let scores = heads(q, 1).matmul(&heads(k, groups).transpose(1, 2)) * spec.scale;
        let ones = Tensor::ones([n, n], (Kind::Bool, q.device()));
        let mut hidden = ones.triu(1);
        if let Some(window) = spec.window {
            hidden = hidden.logical_or(&ones.tril(-(window as i64)));
        }
        let weights = scores
            .masked_fill(&hidden, f64::NEG_INFINITY)
            .softmax(-1, q.kind());
        weights.matmul(&heads(v, groups)).transpose(0, 1)
    }
}

pub struct Plain {
    pub loss: f64,
    pub grads: BTreeMap<String, Tensor>,
    /// By unit, branch, masked token, flat.
    pub logp: Vec<f64>,
}

/// Loss and gradients of a batch in one piece.
pub fn gradients(
    model: &ModelConfig,
    weights: &Weights,
    units: &[Unit],
    temperature: f64,
    loss: &dyn Fn(&Tokens) -> Result<LossOut, Error>,
) -> Plain {
    let leaves: HashMap<String, Tensor> = weights
        .iter()
        .map(|(name, t)| (name.to_owned(), t.detach().set_requires_grad(true)))
        .collect();
    let names: Vec<String> = weights.names().to_vec();
    let inputs: Vec<Tensor> = names.iter().map(|n| leaves[n].shallow_clone()).collect();
    let decoder = Decoder::new(model.clone());
    let kind = weights.kind();
    let live = Weights::from_tensors(model, leaves, kind, Device::Cpu).expect("fits");
    let mut logp = Vec::new();
    let mut entropy = Vec::new();
    let mut spans = Vec::new();
    let mut at = 0;
    for (unit, u) in units.iter().enumerate() {
        let mut branches = Vec::new();
        for branch in &u.branches {
            let ids: Vec<i64> = u
                .prefix
                .iter()
                .chain(&branch.tokens)
                .map(|&t| i64::from(t))
                .collect();
            let positions = Tensor::arange(ids.len() as i64, (Kind::Int64, Device::Cpu));
            let context = Context::new(&decoder, &positions, kind, &Naive, &kernels::Fused);
            let hidden = decoder.forward(&live, &Tensor::from_slice(&ids), &context);
            let logits = hidden.matmul(&live.get(decoder.lm_head_name()).tr()) / temperature;
            let lsm = logits.log_softmax(-1, kind);
            let start = at;
            let first = u.prefix.len();
            let places = branch.mask.iter().enumerate().filter(|(_, m)| **m);
            let places: Vec<i64> = places.map(|(i, _)| (first + i) as i64).collect();
            at += places.len();
            let targets: Vec<i64> = places.iter().map(|&p| ids[p as usize]).collect();
            let rows = lsm.index_select(0, &(Tensor::from_slice(&places) - 1));
            let targets = Tensor::from_slice(&targets).unsqueeze(-1);
            logp.push(rows.gather(-1, &targets, false).squeeze_dim(-1));
            entropy.push(-(rows.exp() * rows).sum_dim_intlist([-1i64].as_slice(), false, kind));
            branches.push(start..at);
        }
        spans.push(UnitSpan { unit, branches });
    }
    let tokens = Tokens {
        logp: Tensor::cat(&logp, 0),
        entropy: Tensor::cat(&entropy, 0),
        units: &spans,
    };
    let logp = Vec::try_from(tokens.logp.to_kind(Kind::Double)).expect("numbers");
    let loss = loss(&tokens).expect("a loss").loss;
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let grads =
        torch::autograd::vjp(&[&loss], &[&loss.ones_like()], &inputs, false).expect("a graph");
    let grads = names
        .into_iter()
        .zip(grads)
        .map(|(name, grad)| (name, grad.expect("every parameter is used")))
        .collect();
    Plain {
        loss: loss.double_value(&[]),
        grads,
        logp,
    }
}
