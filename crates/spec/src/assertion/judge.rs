//! An assertion held against a result.

use super::trend::{self, mann_kendall};
use super::verdict::short;
use super::{Assertion, Judged, Missing, Over, Per, Steps, Taken, Trend, Verdict};
use crate::Difference;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What a result has to show.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// Summary metrics; null stands for a number that was not finite.
    pub summary: &'a Map<String, Value>,
    /// Per-step metrics, where it has any; or why they are not at hand.
    pub steps: Result<Option<&'a Steps>, &'a str>,
    /// What `per = "calibration"` divides by, or why there is nothing.
    pub calibration: Unit<'a>,
}

/// GFLOP/s of the machine that computed a result, or why they are not known.
pub type Unit<'a> = Result<f64, &'a str>;

/// The value that an assertion looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct Looked {
    pub value: f64,
    /// First and last step, and how many values.
    pub steps: Option<([u64; 2], u64)>,
}

/// Why there is no value to look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Unjudged {
    pub verdict: Verdict,
    pub why: String,
}

impl Unjudged {
    pub fn missing(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Missing,
            why: why.into(),
        }
    }

    fn failed(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Failed,
            why: why.into(),
        }
    }
}

impl Assertion {
    /// Judges bounds, `equals` and `trend`. What compares with a pin is judged by
    /// [`Assertion::judge_baseline`] and [`Assertion::judge_digest`].
    pub fn judge(&self, evidence: &Evidence) -> Judged {
        let looked = match self.look(evidence) {
            Ok(looked) => looked,
            Err(unjudged) => return self.unjudged(unjudged),
        };
        let (min, max) = match (self.trend, self.equals) {
            (Some(Trend::Falls), _) => (None, Some(-trend::CRITICAL)),
            (Some(Trend::Rises), _) => (Some(trend::CRITICAL), None),
            (None, Some(wanted)) => {
                let relative = self.rel_tolerance.unwrap_or(0.0) * wanted.abs();
                let around = self.tolerance.unwrap_or(0.0).max(relative);
                (Some(wanted - around), Some(wanted + around))
            }
            (None, None) => (self.min, self.max),
        };
        self.bounded(&looked, min, max)
    }

    /// The value that it looks at; never one that is not finite.
    pub fn look(&self, evidence: &Evidence) -> Result<Looked, Unjudged> {
        let metric = self.metric.as_deref().unwrap_or_default();
        if let Ok(Some(steps)) = evidence.steps
            && let Some(why) = steps.stopped_early()
        {
            return Err(Unjudged::missing(why));
        }
        let summary = evidence.summary.get(metric);
        let mut looked = match summary.filter(|_| !self.asks_steps()) {
            Some(value) => Looked {
                value: value.as_f64().unwrap_or(f64::NAN),
                steps: None,
            },
            None => self.look_at_steps(metric, evidence)?,
        };
        if !looked.value.is_finite() {
            let at = match looked.steps {
                Some(([from, to], _)) if from == to => format!(" at step {from}"),
                Some(([from, to], _)) => format!(" somewhere in steps {from} to {to}"),
                None => String::new(),
            };
            return Err(Unjudged::failed(format!("it is not a finite number{at}")));
        }
        if self.per == Some(Per::Calibration) {
            looked.value /= evidence.calibration.map_err(Unjudged::missing)?;
        }
        Ok(looked)
    }

    fn look_at_steps(&self, metric: &str, evidence: &Evidence) -> Result<Looked, Unjudged> {
        let steps = evidence.steps.map_err(Unjudged::missing)?;
        let has = |steps: &&Steps| steps.rows.values().any(|row| row.contains_key(metric));
        let Some(steps) = steps.filter(has) else {
            return Err(Unjudged::missing(match (self.asks_steps(), steps) {
                (false, _) => "there is no such metric",
                (true, Some(_)) => "no step has such a metric",
                (true, None) => "the result has no metrics of steps",
            }));
        };
        let taken = steps.window(metric, self);
        let taken = taken.map_err(|absent| Unjudged::missing(absent.0))?;
        let value = match self.trend {
            Some(_) => trend_of(&taken)?,
            None => taken.over(self.over.unwrap_or(Over::Last)),
        };
        let whole = self.trend.is_some() || self.over.is_some_and(|over| over != Over::Last);
        let count = if whole { taken.values.len() as u64 } else { 1 };
        let first = if whole { taken.first } else { taken.last };
        Ok(Looked {
            value,
            steps: Some(([first, taken.last], count)),
        })
    }

    /// The verdict on a value between bounds, both inclusive.
    pub(super) fn bounded(&self, looked: &Looked, min: Option<f64>, max: Option<f64>) -> Judged {
        let value = looked.value;
        let below = min.map_or(f64::INFINITY, |min| value - min);
        let above = max.map_or(f64::INFINITY, |max| max - value);
        let margin = below.min(above);
        let passed = margin >= 0.0;
        Judged {
            verdict: if passed {
                Verdict::Passed
            } else {
                Verdict::Failed
            },
            holds: passed,
            value: Some(value),
            min,
            max,
            margin: margin.is_finite().then_some(margin),
            steps: looked.steps.map(|(steps, _)| steps),
            count: looked.steps.map(|(_, count)| count),
            ..self.blank()
        }
    }

    /// The verdict where there is no value.
    pub fn unjudged(&self, unjudged: Unjudged) -> Judged {
        Judged {
            verdict: unjudged.verdict,
            holds: unjudged.verdict != Verdict::Failed && self.missing == Missing::Pass,
            min: self.min,
            max: self.max,
            why: Some(unjudged.why),
            ..self.blank()
        }
    }

    /// Judges whether bits are equal: each side its outputs' digests by name, and its numerics as
    /// its result has them. `pinned` may say why there is nothing to compare with.
    pub fn judge_digest(
        &self,
        now: (&BTreeMap<String, String>, &Value),
        pinned: Result<(&BTreeMap<String, String>, &Value), &str>,
    ) -> Judged {
        let pinned = match pinned {
            Ok(pinned) => pinned,
            Err(why) => return self.unjudged(Unjudged::missing(why)),
        };
        let named = |name: &&String| self.output.as_ref().is_none_or(|wanted| wanted == *name);
        let names: Vec<&String> = now.0.keys().filter(named).collect();
        let differs: Vec<&&String> = names
            .iter()
            .filter(|n| now.0.get(**n) != pinned.0.get(**n))
            .collect();
        // equal bits are equal whatever made them
        let Some(first) = differs.first() else {
            return Judged {
                verdict: Verdict::Passed,
                holds: true,
                ..self.blank()
            };
        };
        if let Some(field) = numerics_apart(pinned.1, now.1) {
            return self.unjudged(Unjudged {
                verdict: Verdict::NotComparable,
                why: format!("the two were computed under other numerics: {field}"),
            });
        }
        let short = |of: &BTreeMap<String, String>| {
            let digest = of.get(**first).map_or("nothing", String::as_str);
            digest.get(..12).unwrap_or(digest).to_owned()
        };
        let (before, after) = (short(pinned.0), short(now.0));
        self.unjudged(Unjudged::failed(format!(
            "output '{first}' was {before}, and is {after}"
        )))
    }

    /// A verdict without its findings.
    pub(super) fn blank(&self) -> Judged {
        Judged {
            metric: match (&self.metric, &self.output) {
                (Some(metric), _) => metric.clone(),
                (None, Some(output)) => format!("digest of {output}"),
                (None, None) => "digest".to_owned(),
            },
            asked: self.describe(),
            verdict: Verdict::Missing,
            holds: false,
            value: None,
            min: None,
            max: None,
            margin: None,
            steps: None,
            count: None,
            baseline: None,
            why: None,
        }
    }

    /// What is asked, in words: `mean of train/loss over steps 90 to 100 <= 0.5`.
    pub fn describe(&self) -> String {
        let subject = self.subject();
        if let Some(digest) = &self.digest {
            return format!("{subject} = {digest}");
        }
        if let Some(pin) = &self.baseline {
            let mut parts = Vec::new();
            if let Some(change) = &self.max_drop {
                parts.push(format!("at most {change} below"));
            }
            if let Some(change) = &self.max_rise {
                parts.push(format!("at most {change} above"));
            }
            if let Some(sigma) = self.sigma {
                parts.push(format!("within {} sigma of", short(sigma)));
            }
            return format!("{subject} {} {pin}", parts.join(" and "));
        }
        match (self.trend, self.equals, self.min, self.max) {
            (Some(Trend::Falls), ..) => format!("{subject} falls"),
            (Some(Trend::Rises), ..) => format!("{subject} rises"),
            (_, Some(wanted), ..) => {
                let relative = self.rel_tolerance.unwrap_or(0.0) * wanted.abs();
                let around = self.tolerance.unwrap_or(0.0).max(relative);
                match around {
                    0.0 => format!("{subject} = {wanted}"),
                    _ => format!("{subject} = {wanted} +- {}", short(around)),
                }
            }
            (_, _, Some(min), Some(max)) => format!("{min} <= {subject} <= {max}"),
            (_, _, Some(min), None) => format!("{subject} >= {min}"),
            (_, _, None, Some(max)) => format!("{subject} <= {max}"),
            (_, _, None, None) => subject,
        }
    }

    /// What is looked at, in words.
    fn subject(&self) -> String {
        let mut words = String::new();
        if let Some(over) = self.over {
            words = format!("{} of ", over.name());
        }
        match (&self.metric, &self.output) {
            (Some(metric), _) => words.push_str(metric),
            (None, Some(output)) => words.push_str(&format!("digest of {output}")),
            (None, None) => words.push_str("digest"),
        }
        if let Some(at) = self.at_step {
            words.push_str(&format!(" at step {at}"));
        }
        if let Some([from, to]) = self.steps {
            words.push_str(&format!(" over steps {from} to {to}"));
        }
        if let Some(n) = self.last {
            words.push_str(&format!(" over the last {n}"));
        }
        if self.per == Some(Per::Calibration) {
            words.push_str(" per calibration");
        }
        words
    }
}

fn trend_of(taken: &Taken) -> Result<f64, Unjudged> {
    let n = taken.values.len();
    if n < trend::LEAST {
        let least = trend::LEAST;
        return Err(Unjudged::missing(format!(
            "a trend takes at least {least} values, there are {n}"
        )));
    }
    if taken.values.iter().any(|v| v.is_nan()) {
        return Ok(f64::NAN);
    }
    Ok(mann_kendall(&taken.values))
}

/// The first field in which the numerics of two results differ; bits are promised where there is none.
pub fn numerics_apart(before: &Value, now: &Value) -> Option<Difference> {
    let mut all = crate::difference(&ranges(before), &ranges(now)).into_iter();
    all.next()
}

/// Numerics without the steps at which ranges begin, equal neighbours as one: a run that was
/// interrupted and went on under the same numerics is comparable with one that was not.
fn ranges(numerics: &Value) -> Value {
    let Value::Array(all) = numerics else {
        return numerics.clone();
    };
    let mut out: Vec<Value> = all.clone();
    for range in &mut out {
        if let Value::Object(fields) = range {
            fields.remove("from");
        }
    }
    out.dedup();
    Value::Array(out)
}
