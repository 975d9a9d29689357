//! Losses and their gradients against recordings of TRL (ci/fixtures/losses.py), in float64.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use train::loss::{Rows, advantage, dpo, find, grpo, sft};

const TOLERANCE: f64 = 1e-9;

fn recorded<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/losses")
        .join(name);
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

fn values(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

fn assert_close(what: &str, ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE * b.abs().max(1.0),
            "{what}[{i}]: {a} is not {b}"
        );
    }
}

fn spans(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    let span = |len: &usize| {
        start += len;
        start - len..start
    };
    lengths.iter().map(span).collect()
}

#[derive(Deserialize)]
struct DpoFixture {
    lengths: Vec<usize>,
    logp: Vec<f64>,
    reference: Vec<f64>,
    cases: Vec<DpoCase>,
}

#[derive(Deserialize)]
struct DpoCase {
    loss: String,
    beta: f64,
    label_smoothing: f64,
    sft_weight: f64,
    value: f64,
    grad: Vec<f64>,
    #[serde(rename = "rewards/margins")]
    margin: f64,
}

#[test]
fn dpo_equals_trl() {
    let fixture: DpoFixture = recorded("dpo.json");
    let all = spans(&fixture.lengths);
    let pairs: Vec<_> = all[..4]
        .iter()
        .cloned()
        .zip(all[4..].iter().cloned())
        .collect();
    let reference = Tensor::from_slice(&fixture.reference);
    assert_eq!(fixture.cases.len(), 9);
    for case in &fixture.cases {
        let logp = leaf(&fixture.logp);
        let params = dpo::Params {
            beta: case.beta,
            label_smoothing: case.label_smoothing,
            gamma: 0.0,
        };
        let input = dpo::Pairs::new(&logp, Some(&reference), &pairs, Device::Cpu);
        let variant = find(dpo::LOSSES, &case.loss).unwrap();
        let mut loss = (variant.per_pair)(&input, &params).mean(Kind::Double);
        if case.sft_weight > 0.0 {
            let chosen = Rows::new(&all[..4], Device::Cpu);
            let tokens: usize = fixture.lengths[..4].iter().sum();
            loss += sft::nll(&chosen.sum(&logp), tokens) * case.sft_weight;
        }
        loss.backward();
        assert_close(&case.loss, &[loss.double_value(&[])], &[case.value]);
        assert_close(&case.loss, &values(&logp.grad()), &case.grad);
        let margin = ((input.chosen - input.rejected) * case.beta).mean(Kind::Double);
        assert_close(
            "rewards/margins",
            &[margin.double_value(&[])],
            &[case.margin],
        );
    }
}

#[test]
fn dpo_of_the_reference_itself_is_ln_2_in_fp32() {
    let fixture: DpoFixture = recorded("dpo.json");
    let all = spans(&fixture.lengths);
    let pairs: Vec<_> = all[..4]
        .iter()
        .cloned()
        .zip(all[4..].iter().cloned())
        .collect();
    let logp = Tensor::from_slice(&fixture.logp).to_kind(Kind::Float);
    let input = dpo::Pairs::new(&logp, Some(&logp), &pairs, Device::Cpu);
    let params = dpo::Params {
        beta: 0.1,
        label_smoothing: 0.2,
        gamma: 0.0,
    };
    for name in ["sigmoid", "cdpo", "robust"] {
        let loss = (find(dpo::LOSSES, name).unwrap().per_pair)(&input, &params);
        let loss = loss.mean(Kind::Float).double_value(&[]);
        assert!(
            (loss - std::f64::consts::LN_2).abs() < 1e-6,
            "{name}: {loss}"
        );
    }
}

/// The variants that TRL lacks, against their formulas computed on plain numbers.
#[test]
fn dpo_variants_that_trl_lacks_follow_their_formulas() {
    let logp = Tensor::from_slice(&[-0.5, -1.5, -2.0, -0.25]);
    let reference = Tensor::from_slice(&[-0.75, -1.0, -1.0, -0.5]);
    let pairs = [(0..2, 2..4)];
    let params = dpo::Params {
        beta: 0.5,
        label_smoothing: 0.1,
        gamma: 0.3,
    };
    let log_sigmoid = |x: f64| -(-x).exp().ln_1p();
    let run = |name: &str| {
        let variant = find(dpo::LOSSES, name).unwrap();
        let reference = variant.reference.then_some(&reference);
        let input = dpo::Pairs::new(&logp, reference, &pairs, Device::Cpu);
        (variant.per_pair)(&input, &params).double_value(&[0])
    };
    let (d, chosen, rejected) = (-0.25 + 0.75, -1.0f64, -1.125f64);
    let cdpo = -0.9 * log_sigmoid(0.5 * d) - 0.1 * log_sigmoid(-0.5 * d);
    assert_close("cdpo", &[run("cdpo")], &[cdpo]);
    assert_close(
        "simpo",
        &[run("simpo")],
        &[-log_sigmoid(0.5 * (chosen - rejected) - 0.3)],
    );
    let odds = |x: f64| x - (1.0 - x.exp()).ln();
    let orpo = -chosen - 0.5 * log_sigmoid(odds(chosen) - odds(rejected));
    assert_close("orpo", &[run("orpo")], &[orpo]);
}

#[derive(Deserialize)]
struct GrpoFixture {
    lengths: Vec<usize>,
    max_tokens: usize,
    logp: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    generated: Vec<f64>,
    advantages: Vec<f64>,
    cases: Vec<GrpoCase>,
}

#[derive(Deserialize)]
struct GrpoCase {
    ratio: String,
    reduction: String,
    clip_low: f64,
    clip_high: f64,
    clip_dual: f64,
    kl: Option<String>,
    kl_beta: f64,
    correction: String,
    old: bool,
    value: f64,
    grad: Vec<f64>,
}

impl GrpoCase {
    fn objective(&self) -> grpo::Objective {
        grpo::Objective {
            term: *find(grpo::TERMS, &self.ratio).unwrap(),
            correction: *find(grpo::CORRECTIONS, &self.correction).unwrap(),
            reduction: *find(grpo::REDUCTIONS, &self.reduction).unwrap(),
            kl: self
                .kl
                .as_ref()
                .map(|kl| (*find(grpo::KLS, kl).unwrap(), self.kl_beta)),
            params: grpo::Params {
                clip_low: self.clip_low,
                clip_high: self.clip_high,
                clip_dual: self.clip_dual,
                correction_low: 0.0,
                correction_high: 2.0,
            },
        }
    }
}

/// Runs a case over the sequences `part` of the fixture; returns the loss and the gradients.
fn run_grpo(fixture: &GrpoFixture, case: &GrpoCase, part: Range<usize>) -> (f64, Vec<f64>) {
    let before: usize = fixture.lengths[..part.start].iter().sum();
    let lengths = &fixture.lengths[part.clone()];
    let rows = before..before + lengths.iter().sum::<usize>();
    let logp = leaf(&fixture.logp[rows.clone()]);
    let old = match case.old {
        true => Tensor::from_slice(&fixture.old[rows.clone()]),
        false => logp.detach(),
    };
    let sequences = Rows::new(&spans(lengths), Device::Cpu);
    let advantage = sequences.spread(&Tensor::from_slice(&fixture.advantages[part]));
    let batch = grpo::Batch {
        lp: &logp,
        old: &old,
        generated: &Tensor::from_slice(&fixture.generated[rows.clone()]),
        reference: Some(&Tensor::from_slice(&fixture.reference[rows])),
        advantage: &advantage,
        sequences: &sequences,
    };
    let counts = grpo::Counts {
        tokens: fixture.lengths.iter().sum(),
        sequences: fixture.lengths.len(),
        max_tokens: fixture.max_tokens,
    };
    let loss = grpo::loss(&case.objective(), &batch, &counts);
    loss.backward();
    (loss.double_value(&[]), values(&logp.grad()))
}

#[test]
fn grpo_equals_trl() {
    let fixture: GrpoFixture = recorded("grpo.json");
    assert_eq!(fixture.cases.len(), 10);
    for case in &fixture.cases {
        let what = format!("{} {} {:?}", case.ratio, case.reduction, case.kl);
        let (loss, grad) = run_grpo(&fixture, case, 0..fixture.lengths.len());
        assert_close(&what, &[loss], &[case.value]);
        assert_close(&what, &grad, &case.grad);
    }
}

/// The loss of a batch is the sum of the losses of its parts: global counts.
#[test]
fn grpo_does_not_depend_on_how_the_batch_is_cut() {
    let fixture: GrpoFixture = recorded("grpo.json");
    for case in &fixture.cases {
        let (first, mut grad) = run_grpo(&fixture, case, 0..2);
        let (second, rest) = run_grpo(&fixture, case, 2..6);
        grad.extend(rest);
        assert_close(&case.ratio, &[first + second], &[case.value]);
        assert_close(&case.ratio, &grad, &case.grad);
    }
}

/// What is known of the gradient before the first forward is the gradient of the first update.
#[test]
fn coefficients_of_the_first_update_are_its_gradient() {
    let fixture: GrpoFixture = recorded("grpo.json");
    let sequences = Rows::new(&spans(&fixture.lengths), Device::Cpu);
    let advantage = sequences.spread(&Tensor::from_slice(&fixture.advantages));
    let logp = Tensor::from_slice(&fixture.logp);
    let counts = grpo::Counts {
        tokens: fixture.lengths.iter().sum(),
        sequences: fixture.lengths.len(),
        max_tokens: fixture.max_tokens,
    };
    let mut objective = fixture.cases[0].objective();
    objective.params.clip_dual = 3.0;
    for term in grpo::TERMS {
        objective.params.clip_high = if term.name == "cispo" { 5.0 } else { 0.2 };
        objective.term = term.what;
        for reduction in grpo::REDUCTIONS {
            objective.reduction = reduction.what;
            let lp = logp.copy().set_requires_grad(true);
            let batch = grpo::Batch {
                lp: &lp,
                old: &logp,
                generated: &logp,
                reference: None,
                advantage: &advantage,
                sequences: &sequences,
            };
            grpo::loss(&objective, &batch, &counts).backward();
            let known = grpo::coefficients(&objective, &advantage, &sequences, &counts);
            assert_close(term.name, &values(&known), &values(&lp.grad()));
        }
    }
}

/// With the sampler's policy as current policy, the expected gradient of an estimate over all
/// tokens must be that of KL(p, ref); k3's is not, which is why `k3_unbiased` exists.
#[test]
fn kl_estimates_have_the_gradient_they_claim() {
    let logits = leaf(&[0.3, -1.2, 0.8, 0.1]);
    let reference = Tensor::from_slice(&[-0.4, 0.2, 0.5, -1.0]).log_softmax(0, Kind::Double);
    let logp = logits.log_softmax(0, Kind::Double);
    let p = logp.exp();
    let gradient = |y: Tensor| values(&Tensor::run_backward(&[y], &[&logits], true, false)[0]);
    let exact = gradient((&p * (&logp - &reference)).sum(Kind::Double));
    let expected = |kl: grpo::Kl| {
        gradient((p.detach() * kl(&logp, &logp.detach(), &reference)).sum(Kind::Double))
    };
    assert_close("k2", &expected(grpo::k2), &exact);
    assert_close("k3_unbiased", &expected(grpo::k3_unbiased), &exact);
    let biased = expected(grpo::k3);
    assert!(
        biased.iter().zip(&exact).any(|(a, b)| (a - b).abs() > 1e-2),
        "{biased:?} {exact:?}"
    );
}

#[test]
fn corrections_follow_their_formulas() {
    let old = Tensor::from_slice(&[-1.0, -1.0, -1.0, -1.0]);
    let generated = Tensor::from_slice(&[-1.0f64, -3.0, -0.5, -1.1]);
    let rows = Rows::new(&[0..2, 2..4], Device::Cpu);
    let batch = grpo::Batch {
        lp: &old,
        old: &old,
        generated: &generated,
        reference: None,
        advantage: &old,
        sequences: &rows,
    };
    let params = grpo::Params {
        clip_low: 0.2,
        clip_high: 0.2,
        clip_dual: 3.0,
        correction_low: 0.7,
        correction_high: 2.0,
    };
    let run = |name| values(&find(grpo::CORRECTIONS, name).unwrap()(&batch, &params));
    assert_close("none", &run("none"), &[1.0; 4]);
    assert_close(
        "tis",
        &run("tis"),
        &[1.0, 2.0, (-0.5f64).exp(), 0.1f64.exp()],
    );
    assert_close("icepop", &run("icepop"), &[1.0, 0.0, 0.0, 0.1f64.exp()]);
    // geometric means: exp(1) = 2.7, out; exp(-0.2) = 0.82, in
    assert_close("sequence", &run("sequence"), &[0.0, 0.0, 1.0, 1.0]);
}

#[derive(Deserialize)]
struct AdvantageFixture {
    group_size: usize,
    weights: Vec<f64>,
    components: Vec<Vec<f64>>,
    cases: Vec<AdvantageCase>,
}

#[derive(Deserialize)]
struct AdvantageCase {
    advantage: String,
    value: Vec<f64>,
}

#[test]
fn advantages_equal_trl() {
    let fixture: AdvantageFixture = recorded("advantages.json");
    let weigh = |parts: &Vec<f64>| parts.iter().zip(&fixture.weights).map(|(r, w)| r * w).sum();
    let total: Vec<f64> = fixture.components.iter().map(weigh).collect();
    let groups = spans(&vec![fixture.group_size; total.len() / fixture.group_size]);
    let input = advantage::Rewards {
        total: &total,
        components: &fixture.components,
        weights: &fixture.weights,
        tokens: &vec![1; total.len()],
        groups: &groups,
    };
    assert_eq!(fixture.cases.len(), 4);
    for case in &fixture.cases {
        let ours = find(advantage::ADVANTAGES, &case.advantage).unwrap()(&input);
        assert_close(&case.advantage, &ours, &case.value);
    }
}

/// One reward differs from seven equal ones: float32 variances made -2075 of this elsewhere.
#[test]
fn leave_one_out_is_exact_when_the_others_are_equal() {
    let mut total = vec![0.95; 8];
    total[0] = 0.0;
    let groups: Vec<Range<usize>> = std::iter::once(0..8).collect();
    let with = |total| advantage::Rewards {
        total,
        components: &[],
        weights: &[],
        tokens: &[1; 8],
        groups: &groups,
    };
    let loo = advantage::leave_one_out(&with(&total));
    assert_close("first", &loo[..1], &[-0.95]);
    assert_close("others", &loo[1..], &[0.95 / 7.0; 7]);
    let grpo = advantage::group_normalised(&with(&total));
    let std = 0.95 * (1.0f64 / 8.0).sqrt();
    assert_close("grpo", &grpo[..1], &[-0.95 * 7.0 / 8.0 / (std + 1e-4)]);
    for named in advantage::ADVANTAGES {
        assert_eq!(
            (named.what)(&with(&[0.95; 8])),
            vec![0.0; 8],
            "{}",
            named.name
        );
    }
}

#[test]
fn reinforce_plus_plus_is_white_over_tokens() {
    let total = [1.0, 0.0, 0.5, 0.0, 1.0, 1.0];
    let tokens = [4, 9, 1, 6, 9, 3];
    let a = advantage::reinforce_plus_plus(&advantage::Rewards {
        total: &total,
        components: &[],
        weights: &[],
        tokens: &tokens,
        groups: &[0..3, 3..6],
    });
    let count = tokens.iter().sum::<usize>() as f64;
    let mean = |f: fn(f64) -> f64| {
        a.iter()
            .zip(tokens)
            .map(|(a, t)| f(*a) * t as f64)
            .sum::<f64>()
            / count
    };
    assert_close(
        "mean and variance",
        &[mean(|a| a), mean(|a| a * a)],
        &[0.0, 1.0],
    );
}

#[test]
fn overlong_penalty_ramps_over_the_buffer() {
    let penalty = |len| advantage::overlong_penalty(len, 100, 20, 2.0);
    assert_eq!(
        [penalty(10), penalty(80), penalty(90), penalty(100)],
        [0.0, 0.0, -1.0, -2.0]
    );
}

#[derive(Deserialize)]
struct SftFixture {
    logits: Vec<Vec<f64>>,
    targets: Vec<i64>,
    value: f64,
    grad: Vec<Vec<f64>>,
}

#[test]
fn sft_equals_cross_entropy() {
    let fixture: SftFixture = recorded("sft.json");
    let logits = leaf(&fixture.logits.concat());
    let shape = [fixture.targets.len() as i64, fixture.logits[0].len() as i64];
    let kept = fixture
        .targets
        .iter()
        .enumerate()
        .filter(|(_, target)| **target >= 0);
    let (rows, targets): (Vec<i64>, Vec<i64>) = kept.map(|(i, target)| (i as i64, *target)).unzip();
    let logp = logits
        .reshape(shape)
        .log_softmax(1, Kind::Double)
        .index_select(0, &Tensor::from_slice(&rows))
        .gather(1, &Tensor::from_slice(&targets).unsqueeze(1), false)
        .squeeze_dim(1);
    let loss = sft::nll(&logp, targets.len());
    loss.backward();
    assert_close("loss", &[loss.double_value(&[])], &[fixture.value]);
    assert_close("grad", &values(&logits.grad()), &fixture.grad.concat());
}

#[test]
fn an_unknown_variant_lists_the_known_ones() {
    let error = find(dpo::LOSSES, "sigmod").err().unwrap().to_string();
    assert!(
        error.contains("'sigmod'") && error.contains("sigmoid, hinge"),
        "{error}"
    );
}
