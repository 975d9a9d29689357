//! Parts of a stage's training: `sft.model@100`, the weights after step 100, and `sft.model@min(validation/loss)`, those
//! after the best of its steps.
//!
//! A part is a stage of its own: the same inputs and configuration, and where to stop (`with.until`). Its key is made of
//! that, so it needs nothing of the whole but, for the best step, its metrics; and the whole's key does not know of it.
//! Whole and parts take each other's checkpoints, since up to a part's end they are one computation.

use crate::assertion::Steps;
use crate::{Best, cells};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a stage is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartOf {
    /// The whole: a stage of the recipe.
    pub stage: String,
    pub until: Until,
}

/// Where a part ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this step.
    Step(u64),
    /// After the whole's best step, which its metrics tell.
    Best(BestStep),
}

/// Which step of a training is the best.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestStep {
    pub best: Best,
    /// A metric of steps, `validation/loss`.
    pub metric: String,
}

impl BestStep {
    /// The best step, the earliest of equals, and the last that there is. None where no step has the metric; one whose
    /// value is no finite number is passed over.
    pub fn of(&self, steps: &Steps) -> Option<(u64, u64)> {
        let measured = steps.rows.iter().filter_map(|(step, metrics)| {
            let value = metrics.get(&self.metric).filter(|v| v.is_finite())?;
            Some((*step, *value)).filter(|_| *step > 0)
        });
        let (best, _) =
            measured.reduce(|best, next| match self.best.is_better(next.1, best.1) {
                true => next,
                false => best,
            })?;
        Some((best, *steps.rows.keys().next_back()?))
    }
}

impl fmt::Display for BestStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.best.word(), self.metric)
    }
}

impl Until {
    /// What stands behind the `@`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().ok().map(Self::Step);
        }
        let (best, rest) = text.split_once('(')?;
        let metric = rest.strip_suffix(')')?.trim();
        let best = [Best::Max, Best::Min]
            .into_iter()
            .find(|b| b.word() == best.trim())?;
        let metric = (!metric.is_empty()).then(|| metric.to_owned())?;
        Some(Self::Best(BestStep { best, metric }))
    }

    /// As names of stages have it: what shells and file systems take as it is.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Step(step) => step.to_string(),
            Self::Best(BestStep { best, metric }) => {
                let label = format!("{}-{}", best.word(), cells::plain(metric));
                let kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.');
                match metric.chars().all(kept) {
                    true => label,
                    // another metric could come to the same
                    false => format!("{label}~{}", &blake3::hash(metric.as_bytes()).to_hex()[..8]),
                }
            }
        }
    }
}

/// A reference without its `@..`, and what stands there.
pub(crate) fn split(text: &str) -> (&str, Option<&str>) {
    // values in a cell's place may hold anything
    let names = text.rfind("].").unwrap_or(0);
    match text[names..].find('@') {
        Some(at) => (&text[..names + at], Some(&text[names + at + 1..])),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(text: &str) -> BestStep {
        match Until::parse(text) {
            Some(Until::Best(best)) => best,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_stands_behind_the_sign() {
        assert_eq!(Until::parse("100"), Some(Until::Step(100)));
        assert_eq!(
            best("min( validation/loss )").to_string(),
            "min(validation/loss)"
        );
        for wrong in [
            "",
            "last",
            "-1",
            "1.5",
            "best(loss)",
            "min()",
            "min(loss",
            "99999999999999999999",
        ] {
            assert_eq!(Until::parse(wrong), None, "{wrong}");
        }
        assert_eq!(
            split("sft[m=a.b@c].model@7"),
            ("sft[m=a.b@c].model", Some("7"))
        );
        assert_eq!(
            split("sft.model@min(pass@8)"),
            ("sft.model", Some("min(pass@8)"))
        );
        assert_eq!(split("sft.model"), ("sft.model", None));
    }

    #[test]
    fn labels_are_apart() {
        let label = |metric: &str| Until::parse(&format!("max({metric})")).unwrap().label();
        assert_eq!(label("validation/loss"), "max-validation-loss");
        assert_ne!(label("validation-loss"), label("validation/loss"));
        assert_ne!(label("pass@8"), label("pass:8"));
    }

    #[test]
    fn the_best_step_is_the_earliest_of_equals_and_never_a_nan() {
        let mut steps = Steps::default();
        for (step, value) in [
            (0, 0.0),
            (2, 3.0),
            (4, 1.0),
            (6, f64::NAN),
            (8, 1.0),
            (9, 2.0),
        ] {
            steps.add(step, [("v".to_owned(), value)].into());
        }
        steps.add(10, [("train/loss".to_owned(), 0.1)].into());
        assert_eq!(best("min(v)").of(&steps), Some((4, 10)));
        assert_eq!(best("max(v)").of(&steps), Some((2, 10)));
        assert_eq!(best("max(w)").of(&steps), None);
    }
}
