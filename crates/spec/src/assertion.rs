//! `[[stage.x.assert]]`: what a stage's metrics must be. Not part of the key: an assertion is
//! checked when a stage ends and again when its result is reused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A bound on a metric of the stage's summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assertion {
    pub metric: String,
    /// Smallest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// What became of an assertion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// `margin` is the distance to the nearer bound.
    Passed { value: f64, margin: f64 },
    /// `margin` is negative: how far out of bounds.
    Failed { value: f64, margin: f64 },
    /// The stage has no such metric, or it is not a number; counts as failed.
    Missing,
}

impl Verdict {
    pub fn passed(&self) -> bool {
        matches!(self, Self::Passed { .. })
    }
}

impl Assertion {
    /// Judges the summary metrics of a result.
    pub fn judge(&self, metrics: &BTreeMap<String, f64>) -> Verdict {
        let Some(value) = metrics.get(&self.metric).copied().filter(|v| !v.is_nan()) else {
            return Verdict::Missing;
        };
        let below = self.min.map_or(f64::INFINITY, |min| value - min);
        let above = self.max.map_or(f64::INFINITY, |max| max - value);
        let margin = below.min(above);
        if margin >= 0.0 {
            Verdict::Passed { value, margin }
        } else {
            Verdict::Failed { value, margin }
        }
    }

    /// `accuracy >= 0.8`, for messages.
    pub fn describe(&self) -> String {
        match (self.min, self.max) {
            (Some(min), Some(max)) => format!("{min} <= {} <= {max}", self.metric),
            (Some(min), None) => format!("{} >= {min}", self.metric),
            (None, Some(max)) => format!("{} <= {max}", self.metric),
            (None, None) => self.metric.clone(),
        }
    }
}
