//! `[[stage.x.assert]]`: what a stage's metrics or bits must be. Not part of the key: an assertion
//! is judged when a stage ends and again when its result is reused.
//!
//! | file | what |
//! |---|---|
//! | `assertion.rs` | what a recipe may write, and what of it goes together |
//! | `steps.rs` | per-step metrics, and the one value that a window of them comes to |
//! | `judge.rs` | an assertion held against a result |
//! | `baseline.rs` | bounds that follow from a pinned run; Student's t |
//! | `trend.rs` | Mann and Kendall's test |
//! | `verdict.rs` | what is written down of it |

mod baseline;
mod judge;
mod steps;
pub mod student;
mod trend;
mod verdict;

pub use baseline::{Change, Reference};
pub use judge::{Evidence, Looked, Unit, Unjudged, numerics_apart};
pub use steps::{Absent, Steps, Taken};
pub use trend::{LEAST as TREND_LEAST, mann_kendall};
pub use verdict::{Judged, Verdict};

use crate::codes;
use crate::kinds::Invalid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What must be so of a stage's result: a bound on a metric, a trend, a comparison with a pinned
/// run, or equal bits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Assertion {
    /// A metric of the stage's summary (`accuracy`), or of its steps (`train/loss`) where the
    /// summary has none of the name or a window is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Smallest value that passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value that passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The value, within `tolerance` or `rel_tolerance`, whichever is wider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<f64>,
    /// How far from `equals` passes, in the metric's unit; left out, 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// How far from `equals` passes, as a share of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rel_tolerance: Option<f64>,
    /// What the steps of the window come to: one number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over: Option<Over>,
    /// The window: first and last step, both in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<[u64; 2]>,
    /// The window: so many steps at the end that have the metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// The value at one step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_step: Option<u64>,
    /// Which way the metric must go over the window, by the test of Mann and Kendall at 5%,
    /// one-sided. It takes at least 8 values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trend: Option<Trend>,
    /// Divide the metric by what the runner measured of the machine just before the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per: Option<Per>,
    /// Compare with the same metric of the same stage in a pinned run: `pin:NAME`, as `recipe
    /// baseline accept` made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^pin:[A-Za-z0-9_-]+$"))]
    pub baseline: Option<String>,
    /// How much lower than the baseline passes: a number, a share of the baseline ("2%"), or a
    /// multiple of the pinned history's standard deviation ("3 sigma").
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_drop: Option<Change>,
    /// How much higher than the baseline passes, written like `max_drop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rise: Option<Change>,
    /// How far from the pinned history's mean passes, either way, in its standard deviations. The
    /// history must have at least 3 values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma: Option<f64>,
    /// How sure a drop or rise beyond what is allowed must be before it fails, where replicas give
    /// more than one value; left out, 0.95.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// The bits of the stage's output must be those of a pinned run: `pin:NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^pin:[A-Za-z0-9_-]+$"))]
    pub digest: Option<String>,
    /// Which output `digest` looks at; left out, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// What it means when there is nothing to judge by: no such metric, a window that the run did
    /// not fill, no pinned run, or bits made under other numerics.
    #[serde(skip_serializing_if = "Missing::is_fail")]
    pub missing: Missing,
}

/// What many values come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    Last,
    Mean,
    Median,
    Min,
    Max,
}

/// Which way a metric goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trend {
    Falls,
    Rises,
}

/// What a metric is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// GFLOP/s of a fixed fp32 loop on as many threads as the stage has, measured by the runner
    /// right before the attempt. Only for what runs on the CPU.
    Calibration,
}

/// What nothing to judge by means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    #[default]
    Fail,
    Pass,
}

impl Missing {
    fn is_fail(&self) -> bool {
        *self == Self::Fail
    }
}

impl Over {
    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Mean => "mean",
            Self::Median => "median",
            Self::Min => "min",
            Self::Max => "max",
        }
    }
}

/// Used when `confidence` is left out.
pub const CONFIDENCE: f64 = 0.95;

impl Assertion {
    /// Whether the steps' metrics are needed whatever the summary says.
    pub fn asks_steps(&self) -> bool {
        let window = self.over.is_some() || self.trend.is_some() || self.at_step.is_some();
        window || self.steps.is_some() || self.last.is_some()
    }

    /// The pin that it compares with.
    pub fn pin(&self) -> Option<&str> {
        let pin = self.baseline.as_deref().or(self.digest.as_deref())?;
        pin.strip_prefix("pin:")
    }

    /// Refuses what does not go together. Fields are named relative to the assertion's table.
    pub fn finish(&self) -> Result<(), Invalid> {
        match (&self.metric, &self.digest) {
            (None, None) => Err(Invalid::missing(
                "metric",
                "name a metric, or `digest = \"pin:NAME\"` for equal bits",
            )),
            (Some(_), Some(_)) => Err(together("digest", "metric", "write two assertions")),
            (None, Some(_)) => self.finish_digest(),
            (Some(metric), None) => self.finish_metric(metric),
        }
    }

    fn finish_digest(&self) -> Result<(), Invalid> {
        let rest = Assertion {
            digest: None,
            output: None,
            missing: Missing::Fail,
            ..self.clone()
        };
        if let Some(key) = rest.written().first() {
            let help = format!("leave `{key}` out: bits are equal or they are not");
            return Err(together(key, "digest", &help));
        }
        pin("digest", self.digest.as_deref())
    }

    fn finish_metric(&self, metric: &str) -> Result<(), Invalid> {
        if self.output.is_some() {
            return Err(Invalid::conflict(
                "output",
                "'output' stands without 'digest'",
                "remove it: a metric belongs to the stage",
            ));
        }
        self.finish_bounds(metric)?;
        self.finish_window()?;
        self.finish_baseline()
    }

    /// One question per assertion: bounds, `equals`, `trend` or `baseline`.
    fn finish_bounds(&self, metric: &str) -> Result<(), Invalid> {
        let bounds = if self.min.is_some() { "min" } else { "max" };
        let asked = [
            (self.min.is_some() || self.max.is_some(), bounds),
            (self.equals.is_some(), "equals"),
            (self.trend.is_some(), "trend"),
            (self.baseline.is_some(), "baseline"),
        ];
        let asked: Vec<&str> = asked.iter().filter(|a| a.0).map(|a| a.1).collect();
        match asked[..] {
            [] if self.max_drop.is_some() || self.max_rise.is_some() || self.sigma.is_some() => {
                return Err(Invalid::missing(
                    "baseline",
                    "say which pinned run: `baseline = \"pin:NAME\"`",
                ));
            }
            [] => {
                return Err(Invalid {
                    field: String::new(),
                    message: format!("metric '{metric}' has no bound"),
                    help: "add `min`, `max`, `equals`, `trend` or `baseline`".to_owned(),
                    code: codes::MISSING,
                });
            }
            [_] => {}
            [first, second, ..] => {
                return Err(together(second, first, "write two assertions"));
            }
        }
        if let (Some(min), Some(max)) = (self.min, self.max)
            && min > max
        {
            return Err(Invalid::conflict(
                "max",
                format!("no value is at least {min} and at most {max}"),
                "exchange `min` and `max`",
            ));
        }
        for (name, tolerance) in [
            ("tolerance", self.tolerance),
            ("rel_tolerance", self.rel_tolerance),
        ] {
            let Some(tolerance) = tolerance else { continue };
            if self.equals.is_none() {
                return Err(Invalid::missing("equals", format!("`{name}` is around it")));
            }
            if tolerance < 0.0 {
                return Err(Invalid::range(name, tolerance, "0 or more"));
            }
        }
        Ok(())
    }

    fn finish_window(&self) -> Result<(), Invalid> {
        if self.steps.is_some() && self.last.is_some() {
            return Err(together("last", "steps", "keep one window"));
        }
        if self.at_step.is_some() {
            let others = [
                ("over", self.over.is_some()),
                ("steps", self.steps.is_some()),
                ("last", self.last.is_some()),
                ("trend", self.trend.is_some()),
            ];
            if let Some((other, _)) = others.iter().find(|o| o.1) {
                return Err(together(other, "at_step", "one step is no window"));
            }
        }
        if let Some([from, to]) = self.steps
            && from > to
        {
            return Err(Invalid::range(
                "steps",
                format!("[{from}, {to}]"),
                "first and last step, in this order",
            ));
        }
        if self.last == Some(0) {
            return Err(Invalid::range("last", 0, "1 or more"));
        }
        if self.trend.is_some() {
            if self.over.is_some() {
                return Err(together("over", "trend", "a trend looks at every value"));
            }
            let length = self.last.or(self.steps.map(|[from, to]| to - from + 1));
            if let Some(length) = length.filter(|n| *n < trend::LEAST as u64) {
                let wanted = format!("at least {} steps for a trend", trend::LEAST);
                let field = if self.last.is_some() { "last" } else { "steps" };
                return Err(Invalid::range(field, format!("{length} steps"), &wanted));
            }
        } else if self.over.is_none() && (self.steps.is_some() || self.last.is_some()) {
            return Err(Invalid::missing(
                "over",
                "say what the window comes to: `over = \"mean\"`, median, min, max or last",
            ));
        }
        Ok(())
    }

    fn finish_baseline(&self) -> Result<(), Invalid> {
        if self.baseline.is_none() {
            let stray = [
                ("max_drop", self.max_drop.is_some()),
                ("max_rise", self.max_rise.is_some()),
                ("sigma", self.sigma.is_some()),
                ("confidence", self.confidence.is_some()),
            ];
            return match stray.iter().find(|s| s.1) {
                Some((key, _)) => Err(Invalid::missing(
                    "baseline",
                    format!("`{key}` compares with a pinned run: `baseline = \"pin:NAME\"`"),
                )),
                None => Ok(()),
            };
        }
        pin("baseline", self.baseline.as_deref())?;
        if self.max_drop.is_none() && self.max_rise.is_none() && self.sigma.is_none() {
            return Err(Invalid::missing(
                "max_drop",
                "say what passes: `max_drop`, `max_rise` or `sigma`",
            ));
        }
        if self.sigma.is_some() && (self.max_drop.is_some() || self.max_rise.is_some()) {
            let help = "write one way as `max_drop = \"3 sigma\"`";
            return Err(together("sigma", "max_drop", help));
        }
        if let Some(sigma) = self.sigma.filter(|s| *s <= 0.0) {
            return Err(Invalid::range("sigma", sigma, "above 0"));
        }
        if let Some(c) = self.confidence.filter(|c| *c < 0.5 || *c >= 1.0) {
            return Err(Invalid::range("confidence", c, "from 0.5 to below 1"));
        }
        Ok(())
    }

    /// Names of the keys that are not as left out.
    fn written(&self) -> Vec<String> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().map(|(key, _)| key).collect(),
            _ => Vec::new(),
        }
    }
}

fn together(field: &str, other: &str, help: &str) -> Invalid {
    let message = format!("'{field}' and '{other}' do not go together");
    Invalid::conflict(field, message, help)
}

fn pin(field: &str, written: Option<&str>) -> Result<(), Invalid> {
    let text = written.unwrap_or_default();
    match text.strip_prefix("pin:") {
        Some(name) if crate::recipe::is_name(name) => Ok(()),
        _ => Err(Invalid {
            field: field.to_owned(),
            message: format!("'{field}' is '{text}'"),
            help: "name a pin: \"pin:NAME\", as `recipe baseline accept RUN --as NAME` makes it"
                .to_owned(),
            code: codes::NAME,
        }),
    }
}
