//! How evenly rows go to experts, and the loss that evens it out.
//!
//! The loss is `load_balancing_loss_func` of transformers (Switch Transformer, arXiv 2101.03961,
//! equations 4 to 6) over the whole batch: with `C[e]` the rows that expert `e` got in all layers
//! together, `P[e]` the sum of its probabilities over them, and `T` the rows of all layers, it is
//! `E * sum_e (C[e] / T) * (P[e] / T)`. It is no sum over rows, so `C` and `T` must be those of the
//! whole batch before any row is walked back; then its gradient with respect to a row's
//! probability of expert `e` is `E * C[e] / T^2`, in every layer.
//!
//! Rows are the tokens that a batch computes, those of a shared prompt once for each completion; what
//! comes after the last token that trains is not computed.

use arch::experts::Experts;
use parallel::{Collective, Load};
use tch::Tensor;

use crate::Error;

/// The load summed over ranks, in which a rank counts if `counts`.
pub(crate) fn reduce(
    load: Load,
    experts: &Experts,
    world: &dyn Collective,
    counts: bool,
) -> Result<Load, Error> {
    if world.size() == 1 {
        return Ok(load);
    }
    let mut flat: Vec<f64> = load.rows.into_iter().chain(load.shares).flatten().collect();
    if !counts {
        flat.fill(0.0);
    }
    let mut sum = Tensor::from_slice(&flat);
    world.all_reduce_sum(&mut sum, "load of experts")?;
    let flat: Vec<f64> = Vec::try_from(sum).map_err(torch::Error::from)?;
    let mut rows: Vec<Vec<f64>> = flat.chunks(experts.count).map(<[f64]>::to_vec).collect();
    let shares = rows.split_off(rows.len() / 2);
    Ok(Load { rows, shares })
}

/// By expert, over all layers.
fn over_layers(of: &[Vec<f64>], experts: usize) -> Vec<f64> {
    let sum = |e: usize| of.iter().map(|layer| layer[e]).sum();
    (0..experts).map(sum).collect()
}

/// Rows of all layers.
fn total(rows: &[f64], experts: &Experts) -> f64 {
    rows.iter().sum::<f64>() / experts.per_token as f64
}

/// The loss, unweighted; 0 without rows.
pub(crate) fn loss(load: &Load, experts: &Experts) -> f64 {
    let rows = over_layers(&load.rows, experts.count);
    let shares = over_layers(&load.shares, experts.count);
    let total = total(&rows, experts);
    if total == 0.0 {
        return 0.0;
    }
    let each = rows.iter().zip(&shares).map(|(c, p)| c / total * p / total);
    experts.count as f64 * each.sum::<f64>()
}

/// Its gradient with respect to the probability of each expert of any row that counts once, times
/// `factor`.
pub(crate) fn pull(load: &Load, experts: &Experts, factor: f64) -> Vec<f64> {
    let rows = over_layers(&load.rows, experts.count);
    let total = total(&rows, experts).max(1.0);
    let scale = factor * experts.count as f64 / (total * total);
    rows.iter().map(|c| c * scale).collect()
}

/// `train/aux_loss`, as it is called elsewhere, unweighted; `train/expert_load_max`: the rows of
/// the busiest expert of any layer over the mean of its layer (1 is even); `train/experts_idle`:
/// the share of experts that got no row.
pub(crate) fn metrics(load: &Load, experts: &Experts) -> [(&'static str, f64); 3] {
    let busiest = load.rows.iter().map(|layer| {
        let mean = layer.iter().sum::<f64>() / layer.len() as f64;
        let most = layer.iter().fold(0.0, |most: f64, n| most.max(*n));
        if mean > 0.0 { most / mean } else { 0.0 }
    });
    let busiest = busiest.fold(0.0, f64::max);
    let all = load.rows.iter().flatten();
    let (idle, count) = all.fold((0.0, 0.0), |(idle, count), n| {
        (idle + f64::from(u8::from(*n == 0.0)), count + 1.0)
    });
    [
        ("train/aux_loss", loss(load, experts)),
        ("train/expert_load_max", busiest),
        ("train/experts_idle", idle / f64::max(count, 1.0)),
    ]
}
