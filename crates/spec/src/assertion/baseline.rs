//! Bounds that follow from a pinned run and those accepted before it.
//!
//! With A the values of this run (one, or one per replica), B those of the pinned run, n and m how
//! many they are, `s` their pooled standard deviation and `t` Student's quantile for `confidence`
//! with n + m - 2 degrees of freedom:
//!
//! ```text
//! noise = t s sqrt(1/n + 1/m)                         (0 where n = m = 1: nothing is known of noise)
//! s^2   = (sum (a - mean A)^2 + sum (b - mean B)^2) / (n + m - 2)
//! max_drop: holds unless mean A + noise < mean B - max_drop
//! max_rise: holds unless mean A - noise > mean B + max_rise
//! ```
//!
//! So a drop fails when, with that confidence (one-sided), more than `max_drop` was lost. With
//! `sigma = k`, or a bound written as "k sigma", B are the values of every run that the pin was ever
//! moved to, and the bound is the interval of a mean of n new values around theirs:
//!
//! ```text
//! |mean A - mean B| <= k s_B sqrt(1/n + 1/m),   s_B^2 = sum (b - mean B)^2 / (m - 1),   m >= 3
//! ```

use super::judge::{Looked, Unjudged};
use super::student::quantile;
use super::{Assertion, CONFIDENCE, Judged};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// Fewest values that a standard deviation is taken from.
const LEAST: usize = 3;

/// How far a metric may move from its baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// In the metric's unit.
    Absolute(f64),
    /// A share of the baseline: 0.02 for "2%".
    Share(f64),
    /// Standard deviations of the pinned history.
    Sigma(f64),
}

/// What a pin has to show for an assertion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reference {
    /// Values of the pinned run: one, or one per replica.
    pub pinned: Vec<f64>,
    /// Values of every run that the pin was moved to, the pinned one among them.
    pub history: Vec<f64>,
}

impl Assertion {
    /// Judges a comparison with a pinned run: the values of this run (one, or one per replica)
    /// with those of the pin. Either side may say why it has none.
    pub fn judge_baseline(
        &self,
        now: Result<&[Looked], Unjudged>,
        reference: Result<&Reference, &str>,
    ) -> Judged {
        let (now, reference) = match (now, reference) {
            (Ok(now), Ok(reference)) => (now, reference),
            (Err(unjudged), _) => return self.unjudged(unjudged),
            (_, Err(why)) => return self.unjudged(Unjudged::missing(why)),
        };
        let values: Vec<f64> = now.iter().map(|looked| looked.value).collect();
        let (lower, upper) = match self.bounds(&values, reference) {
            Ok(bounds) => bounds,
            Err(unjudged) => return self.unjudged(unjudged),
        };
        let steps = match now {
            [one] => one.steps,
            _ => None,
        };
        let looked = Looked {
            value: mean(&values),
            steps,
        };
        let mut judged = self.bounded(&looked, lower, upper);
        judged.baseline = Some(mean(if self.asks_history() {
            &reference.history
        } else {
            &reference.pinned
        }));
        if values.len() > 1 {
            judged.count = Some(values.len() as u64);
        }
        judged
    }

    /// Whether the values of all runs of the pin's history are looked at.
    pub fn asks_history(&self) -> bool {
        let sigma = |change: &Option<Change>| matches!(change, Some(Change::Sigma(_)));
        self.sigma.is_some() || sigma(&self.max_drop) || sigma(&self.max_rise)
    }

    /// The smallest and the largest mean that pass.
    fn bounds(
        &self,
        now: &[f64],
        reference: &Reference,
    ) -> Result<(Option<f64>, Option<f64>), Unjudged> {
        let (drop, rise) = match self.sigma {
            Some(k) => (Some(Change::Sigma(k)), Some(Change::Sigma(k))),
            None => (self.max_drop, self.max_rise),
        };
        let most = |change: Change| match change {
            Change::Sigma(k) => {
                let history = &reference.history;
                if history.len() < LEAST {
                    return Err(Unjudged::missing(format!(
                        "a standard deviation takes at least {LEAST} values, the pinned history has {}",
                        history.len()
                    )));
                }
                let s = (squares(history) / (history.len() - 1) as f64).sqrt();
                Ok((mean(history), k * s * both(now.len(), history.len())))
            }
            Change::Absolute(x) => Ok((mean(&reference.pinned), x + self.noise(now, reference))),
            Change::Share(x) => {
                let pinned = mean(&reference.pinned);
                Ok((pinned, x * pinned.abs() + self.noise(now, reference)))
            }
        };
        let lower = drop.map(most).transpose()?.map(|(base, by)| base - by);
        let upper = rise.map(most).transpose()?.map(|(base, by)| base + by);
        Ok((lower, upper))
    }

    /// How far the means of two sets of values of one distribution come apart by chance.
    fn noise(&self, now: &[f64], reference: &Reference) -> f64 {
        let (n, m) = (now.len(), reference.pinned.len());
        if n + m < LEAST {
            return 0.0;
        }
        let freedom = (n + m - 2) as f64;
        let pooled = ((squares(now) + squares(&reference.pinned)) / freedom).sqrt();
        quantile(self.confidence.unwrap_or(CONFIDENCE), freedom) * pooled * both(n, m)
    }
}

fn both(n: usize, m: usize) -> f64 {
    (1.0 / n as f64 + 1.0 / m as f64).sqrt()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Squared distances from the mean, summed.
fn squares(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|x| (x - mean).powi(2)).sum()
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute(x) => write!(f, "{x}"),
            Self::Share(x) => write!(f, "{}%", super::verdict::short(x * 100.0)),
            Self::Sigma(x) => write!(f, "{x} sigma"),
        }
    }
}

const FORM: &str = "a number of 0 or more, \"2%\" or \"3 sigma\"";

impl Change {
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.trim().parse::<f64>().ok().and_then(positive);
        if let Some(share) = text.strip_suffix('%') {
            return number(share).map(|x| Self::Share(x / 100.0));
        }
        number(text.strip_suffix("sigma")?).map(Self::Sigma)
    }
}

fn positive(x: f64) -> Option<f64> {
    (x.is_finite() && x >= 0.0).then_some(x)
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absolute(x) => serializer.serialize_f64(*x),
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Change {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl Visitor<'_> for Form {
            type Value = Change;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORM)
            }

            fn visit_f64<E: de::Error>(self, x: f64) -> Result<Change, E> {
                let refused = || E::invalid_value(de::Unexpected::Float(x), &self);
                positive(x).map(Change::Absolute).ok_or_else(refused)
            }

            fn visit_i64<E: de::Error>(self, x: i64) -> Result<Change, E> {
                self.visit_f64(x as f64)
            }

            fn visit_u64<E: de::Error>(self, x: u64) -> Result<Change, E> {
                self.visit_f64(x as f64)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Change, E> {
                Change::parse(text)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl JsonSchema for Change {
    fn schema_name() -> Cow<'static, str> {
        "Change".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "how far a metric may move: in its unit, as a share, or in standard deviations of the pinned history",
            "anyOf": [
                { "type": "number", "minimum": 0 },
                { "type": "string", "pattern": "^ *[0-9.eE+-]+ *(%| ?sigma)$" }
            ]
        })
    }
}
