//! Per-step metrics of a result, and the one value that a window of them comes to.

use super::{Assertion, Over};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Per-step metrics of a result. They lie beside it in the store, so they are at hand wherever it
/// is reused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steps {
    /// Steps that the stage meant to do, where that is known.
    pub planned: Option<u64>,
    /// By step, then by name; a value that was no finite number is NaN.
    pub rows: BTreeMap<u64, BTreeMap<String, f64>>,
}

/// A line of the stored form: the first says what was planned, the others one step each.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    planned: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<u64>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "crate::job::numbers"
    )]
    metrics: BTreeMap<String, f64>,
}

/// What a window comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// The values in the order of their steps.
    pub values: Vec<f64>,
    pub first: u64,
    pub last: u64,
}

/// Why a window has no value, in words.
#[derive(Clone, Debug, PartialEq)]
pub struct Absent(pub String);

impl Steps {
    /// The stored form: JSON lines.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut line = |line: &Line| {
            out.extend(serde_json::to_vec(line).expect("numbers by name"));
            out.push(b'\n');
        };
        line(&Line {
            planned: self.planned,
            step: None,
            metrics: BTreeMap::new(),
        });
        for (step, metrics) in &self.rows {
            line(&Line {
                planned: None,
                step: Some(*step),
                metrics: metrics.clone(),
            });
        }
        out
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// The first line that is none, in words.
    pub fn decode(bytes: &[u8]) -> Result<Steps, String> {
        let mut steps = Steps::default();
        for (at, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let line: Line = serde_json::from_slice(line)
                .map_err(|e| format!("line {} of the steps' metrics: {e}", at + 1))?;
            match line.step {
                Some(step) => steps.add(step, line.metrics),
                None => steps.planned = line.planned,
            }
        }
        Ok(steps)
    }

    /// Adds metrics of a step; of two values for one name, the later counts.
    pub fn add(&mut self, step: u64, metrics: BTreeMap<String, f64>) {
        self.rows.entry(step).or_default().extend(metrics);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Why the run that made them counts as stopped early, if it does.
    pub fn stopped_early(&self) -> Option<String> {
        let planned = self.planned?;
        let reached = self.rows.keys().next_back().copied().unwrap_or(0);
        (reached < planned)
            .then(|| format!("the run ended at step {reached} of {planned} that were planned"))
    }

    /// The values of the window that an assertion asks for.
    ///
    /// A window is filled when the steps reach its end and the metric has as many values in it as
    /// its own rhythm gives: a metric of every 10th step needs every 10th step of the window.
    pub fn window(&self, metric: &str, asked: &Assertion) -> Result<Taken, Absent> {
        let mut values = Vec::new();
        for (step, metrics) in &self.rows {
            values.extend(metrics.get(metric).map(|value| (*step, *value)));
        }
        let Some((latest, _)) = values.last().copied() else {
            return Err(Absent("no step has such a metric".to_owned()));
        };
        let end = self.rows.keys().next_back().copied().unwrap_or(latest);
        if let Some(at) = asked.at_step {
            values.retain(|(step, _)| *step == at);
            if values.is_empty() {
                return Err(Absent(if at > end {
                    format!("the run ended at step {end}")
                } else {
                    format!("step {at} does not have it")
                }));
            }
        }
        let rhythm = rhythm(&values);
        if let Some([from, to]) = asked.steps {
            if end < to {
                return Err(Absent(format!("the run ended at step {end}")));
            }
            values.retain(|(step, _)| (from..=to).contains(step));
            // step 0 comes before the first, and most metrics have none of it
            let first = match values.first() {
                Some((0, _)) => from,
                _ => from.max(1),
            };
            let wanted = ((to + 1).saturating_sub(first) / rhythm).max(1);
            if (values.len() as u64) < wanted {
                let found = values.len();
                return Err(Absent(format!(
                    "steps {from} to {to} have {found} of {wanted} values"
                )));
            }
        } else if asked.at_step.is_none() && end - latest >= rhythm.saturating_mul(2) {
            // the metric fell silent before the end
            return Err(Absent(format!(
                "its last value is of step {latest}, the run's last step is {end}"
            )));
        }
        if let Some(n) = asked.last {
            let found = values.len() as u64;
            if found < n {
                return Err(Absent(format!("there are {found} of {n} values")));
            }
            values.drain(..values.len() - n as usize);
        }
        let (first, last) = (values[0].0, values[values.len() - 1].0);
        Ok(Taken {
            values: values.into_iter().map(|(_, value)| value).collect(),
            first,
            last,
        })
    }
}

/// Steps from one value to the next, mostly: the median distance, rounded up.
fn rhythm(values: &[(u64, f64)]) -> u64 {
    let mut gaps: Vec<u64> = values.windows(2).map(|w| w[1].0 - w[0].0).collect();
    gaps.sort_unstable();
    gaps.get(gaps.len() / 2).copied().unwrap_or(1).max(1)
}

impl Taken {
    /// The one number. NaN where one of the values that it is made of is.
    pub fn over(&self, over: Over) -> f64 {
        let values = &self.values;
        let last = values[values.len() - 1];
        if over != Over::Last && values.iter().any(|v| v.is_nan()) {
            return f64::NAN;
        }
        match over {
            Over::Last => last,
            Over::Mean => values.iter().sum::<f64>() / values.len() as f64,
            Over::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
            Over::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            Over::Median => {
                let mut sorted = values.clone();
                sorted.sort_by(f64::total_cmp);
                let half = sorted.len() / 2;
                if sorted.len() % 2 == 1 {
                    sorted[half]
                } else {
                    f64::midpoint(sorted[half - 1], sorted[half])
                }
            }
        }
    }
}
