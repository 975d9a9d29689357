//! Every family beside transformers, alone, packed, with gaps, and with a shared prefix.

use crate::support::{MODELS, Model, expected, worst};
use model::Layout;
use tch::Kind;

#[test]
fn logprobs_alone_are_those_of_transformers() {
    for name in MODELS {
        let (model, want) = (Model::load(name, Kind::Float), expected(name));
        for (tokens, want) in want.sequences.iter().zip(&want.logprobs) {
            let got = model.score(&[tokens], 0);
            let off = worst(&got, std::slice::from_ref(want));
            assert!(off < 1e-4, "{name}, {} tokens: off by {off}", tokens.len());
        }
    }
}

#[test]
fn logprobs_packed_and_padded_are_those_of_transformers() {
    for name in MODELS {
        let (model, want) = (Model::load(name, Kind::Float), expected(name));
        let all: Vec<&[u32]> = want.sequences.iter().map(Vec::as_slice).collect();
        for gap in [0, 3] {
            let off = worst(&model.score(&all, gap), &want.logprobs);
            assert!(off < 1e-4, "{name}, gap {gap}: off by {off}");
        }
        // other neighbours, other groups
        let backwards: Vec<&[u32]> = all.iter().rev().copied().collect();
        let mut got = model.score(&backwards, 0);
        got.reverse();
        let off = worst(&got, &want.logprobs);
        assert!(off < 1e-4, "{name} backwards: off by {off}");
    }
}

#[test]
fn a_shared_prefix_gives_what_repeating_it_would() {
    for name in MODELS {
        let (model, want) = (Model::load(name, Kind::Float), expected(name));
        // all units in one layout; a branch's first token is predicted by the prefix's last row
        let mut layout = Layout::default();
        let (mut ids, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for unit in &want.prefix_sequences {
            let prefix = layout.push(unit.prefix.len(), None);
            ids.extend(&unit.prefix);
            let last = ids.len() - 1;
            for branch in &unit.branches {
                layout.push(branch.len(), Some(prefix));
                rows.push(last);
                rows.extend(ids.len()..ids.len() + branch.len() - 1);
                ids.extend(branch);
                targets.extend(branch);
            }
        }
        let lp = model.logprobs(&model.hidden(&ids, &layout), &rows, &targets);
        let got = Vec::<f64>::try_from(lp.to_kind(Kind::Double)).unwrap();
        let want: Vec<f64> = want
            .prefix_sequences
            .iter()
            .flat_map(|u| u.logprobs.iter().flatten().copied())
            .collect();
        let off = worst(&[got], &[want]);
        assert!(off < 1e-4, "{name}: off by {off}");
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in MODELS {
        let (model, want) = (Model::load(name, Kind::Float), expected(name));
        for prompt in &want.greedy {
            let mut ids = prompt.tokens.clone();
            for want in &prompt.completion {
                let hidden = model.hidden(&ids, &Layout::sequences(&[ids.len()]));
                let head = model.weights.get(model.decoder.lm_head_name());
                let next = hidden
                    .get(ids.len() as i64 - 1)
                    .matmul(&head.tr())
                    .argmax(0, false)
                    .int64_value(&[]);
                assert_eq!(next, i64::from(*want), "{name} after {} tokens", ids.len());
                ids.push(*want);
            }
        }
    }
}

#[test]
fn gradients_in_double_are_those_of_transformers() {
    for name in MODELS {
        let (model, want) = (Model::load(name, Kind::Double), expected(name));
        for (_, tensor) in model.weights.iter() {
            let _ = tensor.set_requires_grad(true);
        }
        let lengths: Vec<usize> = want.sequences.iter().map(Vec::len).collect();
        let ids: Vec<u32> = want.sequences.concat();
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        let mut start = 0;
        for s in &want.sequences {
            rows.extend(start..start + s.len() - 1);
            targets.extend(&s[1..]);
            start += s.len();
        }
        let hidden = model.hidden(&ids, &Layout::sequences(&lengths));
        model
            .logprobs(&hidden, &rows, &targets)
            .sum(Kind::Double)
            .backward();
        assert_eq!(want.grad_norm.len(), model.weights.names().len(), "{name}");
        for (param, tensor) in model.weights.iter() {
            let (got, want) = (
                tensor.grad().norm().double_value(&[]),
                want.grad_norm[param],
            );
            // transformers keeps cosines in single precision also here
            let off = (got - want).abs() / want;
            assert!(off < 1e-5, "{name} {param}: {got} beside {want}");
        }
    }
}

#[test]
fn half_precision_stays_near() {
    let (model, want) = (
        Model::load("qwen3-bf16", Kind::BFloat16),
        expected("qwen3-bf16"),
    );
    let all: Vec<&[u32]> = want.sequences.iter().map(Vec::as_slice).collect();
    let got = model.score(&all, 0);
    let mean = |x: &[Vec<f64>]| {
        let flat: Vec<f64> = x.concat();
        flat.iter().sum::<f64>() / flat.len() as f64
    };
    let off = (mean(&got) - mean(&want.logprobs)).abs();
    assert!(off < 0.05, "mean off by {off}");
    assert!(worst(&got, &want.logprobs) < 0.5);
}

#[test]
fn no_rows_at_all_is_a_forward_too() {
    let model = Model::load("qwen3-tied", Kind::Float);
    let hidden = model.hidden(&[], &Layout::default());
    assert_eq!(hidden.size(), [0, 40]);
}

#[test]
fn every_family_has_a_fixture() {
    let covered: Vec<_> = MODELS
        .iter()
        .map(|name| Model::load(name, Kind::Float).decoder.config.family)
        .map(|family| family.model_type)
        .collect();
    for family in arch::FAMILIES {
        assert!(
            covered.contains(&family.model_type),
            "{}",
            family.model_type
        );
    }
}
