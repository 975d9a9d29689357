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
    trail: Trail,
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
            if self.headline.is_none_or(|(label, _)| label == found.0) {
                self.trail.push(found.1);
            }
            self.headline = Some(found);
        }
        if let Some(rate) = metrics.get("performance/tokens_per_sec") {
            self.tokens_per_second = Some(*rate);
        }
    }

    /// How the headline's number went so far, in a few characters.
    pub fn spark(&self) -> String {
        self.trail.draw()
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

/// A number's course in a bounded room: when it is full, neighbours become their mean.
#[derive(Clone, Debug, Default)]
struct Trail {
    values: Vec<f64>,
    /// Numbers that one value is the mean of, and those that wait to become one.
    width: usize,
    waiting: Vec<f64>,
}

const MARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ROOM: usize = 24;

impl Trail {
    fn push(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.waiting.push(value);
        if self.waiting.len() >= self.width.max(1) {
            let sum: f64 = self.waiting.iter().sum();
            self.values.push(sum / self.waiting.len() as f64);
            self.waiting.clear();
        }
        if self.values.len() > ROOM {
            let mean = |pair: &[f64]| pair.iter().sum::<f64>() / pair.len() as f64;
            self.values = self.values.chunks(2).map(mean).collect();
            self.width = self.width.max(1) * 2;
        }
    }

    fn draw(&self) -> String {
        let low = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self
            .values
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        if self.values.len() < 2 || high <= low {
            return String::new();
        }
        let mark = |v: &f64| MARKS[((v - low) / (high - low) * 7.0).round() as usize];
        self.values.iter().map(mark).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_stays_short_and_keeps_its_shape() {
        let mut trail = Trail::default();
        assert_eq!(trail.draw(), "");
        for i in 0..10_000 {
            trail.push(f64::from(i));
            trail.push(f64::NAN);
        }
        let drawn: Vec<char> = trail.draw().chars().collect();
        assert!((8..=ROOM).contains(&drawn.len()), "{drawn:?}");
        assert!(drawn.is_sorted() && drawn.first() == Some(&'▁') && drawn.last() == Some(&'█'));
    }
}
