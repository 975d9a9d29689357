//! What is written down of an assertion: in a run's outcome, its record, and everything made of it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What an assertion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Passed,
    Failed,
    /// There is nothing to judge by: no such metric, a window that the run did not fill, no pin.
    Missing,
    /// Bits of two results that were computed under different numerics.
    NotComparable,
}

impl Verdict {
    /// `passed`, `failed`, `missing`, `not comparable`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Missing => "missing",
            Self::NotComparable => "not comparable",
        }
    }
}

/// One assertion of a stage and what it came to. Numbers are finite or left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The metric's name; `digest` or `digest of OUTPUT` where bits are compared.
    pub metric: String,
    /// What was asked, in words: `mean of train/loss over steps 90 to 100 <= 0.5`.
    pub asked: String,
    pub verdict: Verdict,
    /// Whether it holds the stage up: false for `failed`, and for `missing` and `not comparable`
    /// unless the recipe says `missing = "pass"`.
    pub holds: bool,
    /// The value that was judged: in the metric's unit; for a trend, Kendall's z.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Smallest value that would have passed, where there is one; for a baseline, what followed
    /// from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value that would have passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Distance of the value to the nearer bound, in its unit: positive or 0 holds, negative fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// First and last step of the values that were looked at; none for a summary metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<[u64; 2]>,
    /// How many values were looked at: of steps, or of replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The mean of the pinned values that it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// Why it is missing, failed without a number, or not comparable, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl fmt::Display for Judged {
    /// `accuracy >= 0.8 does not hold: it is 0.75, 0.05 short`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Passed => "holds",
            Verdict::Failed => "does not hold",
            Verdict::Missing => "cannot be judged",
            Verdict::NotComparable => "is not comparable",
        };
        write!(f, "{} {word}", self.asked)?;
        let mut said = ": ";
        let mut say = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            f.write_str(std::mem::replace(&mut said, ", "))?;
            f.write_fmt(text)
        };
        if let Some(value) = self.value {
            say(f, format_args!("it is {}", short(value)))?;
        }
        if let Some(margin) = self.margin {
            say(f, format_args!("margin {}", short(margin)))?;
        }
        match (self.steps, self.count) {
            (Some([from, to]), _) if from == to => say(f, format_args!("at step {from}"))?,
            (Some([from, to]), Some(n)) => {
                let s = if n == 1 { "" } else { "s" };
                say(f, format_args!("{n} value{s} of steps {from} to {to}"))?;
            }
            (None, Some(n)) if n > 1 => say(f, format_args!("{n} replicas"))?,
            _ => {}
        }
        if let Some(why) = &self.why {
            say(f, format_args!("{why}"))?;
        }
        Ok(())
    }
}

/// Six significant digits, without zeros at the end.
pub(super) fn short(x: f64) -> String {
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e9).contains(&size) {
        return format!("{x:.5e}");
    }
    let whole = if size < 1.0 {
        1
    } else {
        size.log10() as usize + 1
    };
    let leading = if size > 0.0 && size < 1.0 {
        (-size.log10()).floor() as usize
    } else {
        0
    };
    let text = format!("{x:.*}", 6usize.saturating_sub(whole) + 1 + leading);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}
