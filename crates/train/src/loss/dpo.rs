//! Direct preference optimisation and its relatives.
//!
//! `dc`, `dr`: the sum over a completion's tokens of `lp - ref`, for the chosen and the rejected
//! completion; `d = dc - dr`. Losses per pair; the caller takes the mean over all pairs.

use std::ops::Range;

use tch::{Device, Tensor};

use super::{Named, Rows};

/// What a loss sees of a batch of `P` pairs; every tensor is `[P]`.
pub struct Pairs {
    /// `dc`: log-ratio to the reference summed over the chosen completion. Without a reference,
    /// the log-probability.
    pub chosen: Tensor,
    /// `dr`: the same for the rejected completion.
    pub rejected: Tensor,
    /// Tokens in the chosen completion.
    pub chosen_len: Tensor,
    /// Tokens in the rejected completion.
    pub rejected_len: Tensor,
}

impl Pairs {
    /// `logp` `[N]`, `reference` `[N]` (or none); `spans[p]` the rows of pair `p`'s chosen and
    /// rejected completions.
    pub fn new(
        logp: &Tensor,
        reference: Option<&Tensor>,
        spans: &[(Range<usize>, Range<usize>)],
        device: Device,
    ) -> Pairs {
        let (chosen, rejected): (Vec<_>, Vec<_>) = spans.iter().cloned().unzip();
        let (chosen, rejected) = (Rows::new(&chosen, device), Rows::new(&rejected, device));
        // per token first: equal policy and reference give exactly zero
        let ratio = match reference {
            Some(reference) => logp - reference,
            None => logp.shallow_clone(),
        };
        Pairs {
            chosen: chosen.sum(&ratio),
            rejected: rejected.sum(&ratio),
            chosen_len: chosen.lengths(logp).clamp_min(1),
            rejected_len: rejected.lengths(logp).clamp_min(1),
        }
    }

    fn delta(&self) -> Tensor {
        &self.chosen - &self.rejected
    }

    fn averages(&self) -> (Tensor, Tensor) {
        (
            &self.chosen / &self.chosen_len,
            &self.rejected / &self.rejected_len,
        )
    }
}

/// The numbers a loss may use.
#[derive(Debug, Clone, Copy)]
pub struct Params {
    pub beta: f64,
    pub label_smoothing: f64,
    /// Target margin of SimPO.
    pub gamma: f64,
}

/// A loss per pair, `[P]`.
pub struct Loss {
    pub per_pair: fn(&Pairs, &Params) -> Tensor,
    /// Whether it compares with a reference model.
    pub reference: bool,
}

/// Every loss, by the name a recipe uses.
pub static LOSSES: &[Named<Loss>] = &[
    with_reference("sigmoid", sigmoid),
    with_reference("hinge", hinge),
    with_reference("ipo", ipo),
    with_reference("robust", robust),
    with_reference("cdpo", cdpo),
    with_reference("apo_zero", apo_zero),
    with_reference("sigmoid_norm", sigmoid_norm),
    with_reference("sppo_hard", sppo_hard),
    without_reference("simpo", simpo),
    without_reference("orpo", orpo),
];

const fn with_reference(
    name: &'static str,
    per_pair: fn(&Pairs, &Params) -> Tensor,
) -> Named<Loss> {
    Named {
        name,
        what: Loss {
            per_pair,
            reference: true,
        },
    }
}

const fn without_reference(
    name: &'static str,
    per_pair: fn(&Pairs, &Params) -> Tensor,
) -> Named<Loss> {
    Named {
        name,
        what: Loss {
            per_pair,
            reference: false,
        },
    }
}

/// `-logsigmoid(beta d)` (Rafailov et al. 2023).
pub fn sigmoid(pairs: &Pairs, params: &Params) -> Tensor {
    -(pairs.delta() * params.beta).log_sigmoid()
}

/// `relu(1 - beta d)` (SLiC-HF).
pub fn hinge(pairs: &Pairs, params: &Params) -> Tensor {
    let margin: Tensor = 1.0 - pairs.delta() * params.beta;
    margin.relu()
}

/// `(dc/|c| - dr/|r| - 1/(2 beta))^2`: IPO, length-normalised as its authors' results are.
pub fn ipo(pairs: &Pairs, params: &Params) -> Tensor {
    let (chosen, rejected) = pairs.averages();
    (chosen - rejected - 0.5 / params.beta).square()
}

/// `[-(1-e) logsigmoid(beta d) + e logsigmoid(-beta d)] / (1-2e)`: unbiased under label noise
/// of rate `e = label_smoothing` (Chowdhury et al. 2024).
pub fn robust(pairs: &Pairs, params: &Params) -> Tensor {
    let logit = pairs.delta() * params.beta;
    let e = params.label_smoothing;
    ((-&logit).log_sigmoid() * e - logit.log_sigmoid() * (1.0 - e)) / (1.0 - 2.0 * e)
}

/// `-(1-e) logsigmoid(beta d) - e logsigmoid(-beta d)`: conservative DPO.
pub fn cdpo(pairs: &Pairs, params: &Params) -> Tensor {
    let logit = pairs.delta() * params.beta;
    let e = params.label_smoothing;
    logit.log_sigmoid() * (e - 1.0) - (-&logit).log_sigmoid() * e
}

/// `1 - sigma(beta dc) + sigma(beta dr)` (APO-zero, D'Oosterlinck et al. 2024).
pub fn apo_zero(pairs: &Pairs, params: &Params) -> Tensor {
    (&pairs.rejected * params.beta).sigmoid() + 1.0 - (&pairs.chosen * params.beta).sigmoid()
}

/// The sigmoid loss on length-averaged log-ratios.
pub fn sigmoid_norm(pairs: &Pairs, params: &Params) -> Tensor {
    let (chosen, rejected) = pairs.averages();
    -((chosen - rejected) * params.beta).log_sigmoid()
}

/// `(dc - 1/(2 beta))^2 + (dr + 1/(2 beta))^2` (SPPO with hard win probabilities).
pub fn sppo_hard(pairs: &Pairs, params: &Params) -> Tensor {
    let half = 0.5 / params.beta;
    (&pairs.chosen - half).square() + (&pairs.rejected + half).square()
}

/// `-logsigmoid(beta (c_avg - r_avg) - gamma)` on averaged log-probabilities (SimPO).
pub fn simpo(pairs: &Pairs, params: &Params) -> Tensor {
    let (chosen, rejected) = pairs.averages();
    -((chosen - rejected) * params.beta - params.gamma).log_sigmoid()
}

/// `-c_avg - beta logsigmoid(log odds ratio)` on averaged log-probabilities (ORPO).
pub fn orpo(pairs: &Pairs, params: &Params) -> Tensor {
    let (chosen, rejected) = pairs.averages();
    let log_odds = &chosen - &rejected - (log1m_exp(&chosen) - log1m_exp(&rejected));
    -chosen - log_odds.log_sigmoid() * params.beta
}

/// `log(1 - exp(x))` for `x < 0`.
fn log1m_exp(x: &Tensor) -> Tensor {
    (-x.exp()).log1p()
}
