//! What is known about a running stage, in one line.

use crate::format::{count, duration, number};
use std::collections::BTreeMap;

/// The latest numbers of a stage.
#[derive(Clone, Debug, Default)]
pub struct Live {
    pub step: u64,
    /// 0 while it is not known.
    pub total: u64,
    pub eta: Option<f64>,
    headline: Option<(&'static str, f64)>,
    tokens_per_second: Option<f64>,
}

/// What a person looks at first, in order of preference.
const HEADLINES: [(&str, &str); 5] = [
    ("train/reward", "reward"),
    ("train/loss", "loss"),
    ("accuracy", "accuracy"),
    ("perplexity", "perplexity"),
    ("validation/loss", "validation loss"),
];

impl Live {
    pub fn metrics(&mut self, metrics: &BTreeMap<String, f64>) {
        if let Some(found) = HEADLINES
            .iter()
            .find_map(|(key, label)| metrics.get(*key).map(|v| (*label, *v)))
        {
            self.headline = Some(found);
        }
        if let Some(rate) = metrics.get("performance/tokens_per_sec") {
            self.tokens_per_second = Some(*rate);
        }
    }

    /// `120/300`, or nothing where nothing is counted.
    pub fn steps(&self) -> String {
        match (self.step, self.total) {
            (0, 0) => String::new(),
            (step, 0) => step.to_string(),
            (step, total) => format!("{step}/{total}"),
        }
    }

    /// `step 120/300, loss 0.6931`, for a line of text.
    pub fn sentence(&self) -> String {
        let parts = [format!("step {}", self.steps()), self.numbers()];
        parts
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// `loss 0.6931, 3.1k tokens/s, 12s left`.
    pub fn numbers(&self) -> String {
        let mut parts = Vec::new();
        if let Some((label, value)) = self.headline {
            parts.push(format!("{label} {}", number(value)));
        }
        if let Some(rate) = self.tokens_per_second {
            parts.push(format!("{} tokens/s", count(rate)));
        }
        if let Some(eta) = self.eta.filter(|_| self.step < self.total) {
            parts.push(format!("{} left", duration(eta)));
        }
        parts.join(", ")
    }
}

/// The one or two summary metrics that fit in a table.
pub fn key_metrics(metrics: &BTreeMap<String, f64>) -> String {
    let named: Vec<String> = HEADLINES
        .iter()
        .filter_map(|(key, label)| metrics.get(*key).map(|v| format!("{label} {}", number(*v))))
        .take(2)
        .collect();
    if !named.is_empty() {
        return named.join(", ");
    }
    let short = |key: &str| key.rsplit('/').next().unwrap_or(key).to_owned();
    metrics
        .iter()
        .take(2)
        .map(|(k, v)| format!("{} {}", short(k), number(*v)))
        .collect::<Vec<_>>()
        .join(", ")
}
