//! What differs between two runs, and what follows from it.
//!
//! A stage differs by itself where its configuration, its trainer, its declared environment or the
//! content of a source differs; where only results of other stages do, it follows from them. What
//! differs alike in several stages is one root.

mod curves;
mod roots;
mod rows;
mod text;

use serde_json::{Value, json};
use spec::Difference;

use crate::fail::Fail;
use crate::past::{Reader, Run, Stage};
use curves::Apart;
use roots::{Root, roots};

pub use text::as_text;

/// Two runs, stage by stage.
pub struct Comparison {
    /// The runs' ids.
    pub runs: [String; 2],
    /// What differs by itself, each with the stages it differs in.
    roots: Vec<Root>,
    /// In the order of the first run's plan, then what only the second has.
    pairs: Vec<Pair>,
}

/// A stage in both runs, or in one.
struct Pair {
    stage: String,
    relation: Relation,
    /// What differs by itself.
    differs: Vec<Difference>,
    /// Stages of the runs whose results it reads and that differ.
    follows: Vec<String>,
    /// Fields of the numerics that differ: rounding, not mathematics.
    numerics: Vec<Difference>,
    /// Summary metrics that are not equal.
    metrics: Vec<Difference>,
    curves: Vec<Apart>,
    /// What computing it took, of each run.
    seconds: [Option<f64>; 2],
}

/// One of the two runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    A,
    B,
}

#[derive(Clone, Copy, PartialEq)]
enum Relation {
    /// One key: the same computation.
    Same,
    /// Another key, the same outputs.
    Equal,
    Differs,
    /// A run did not come to know what it reads.
    Unknown,
    Only(Side),
}

impl Relation {
    fn word(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Equal => "equal",
            Self::Differs => "differs",
            Self::Unknown => "unknown",
            Self::Only(Side::A) => "only_a",
            Self::Only(Side::B) => "only_b",
        }
    }

    fn of(a: &Stage, b: &Stage) -> Relation {
        match (&a.key, &b.key) {
            (Some(x), Some(y)) if x == y => Self::Same,
            (Some(_), Some(_)) if !a.outputs.is_empty() && a.outputs == b.outputs => Self::Equal,
            (Some(_), Some(_)) => Self::Differs,
            _ => Self::Unknown,
        }
    }
}

impl Comparison {
    pub fn new(reader: &Reader, a: &Run, b: &Run) -> Result<Comparison, Fail> {
        let mut pairs = Vec::new();
        for left in &a.stages {
            pairs.push(match b.stage(&left.stage) {
                Some(right) => Pair::of(reader, [a, b], [left, right])?,
                None => Pair::only(left, Side::A),
            });
        }
        let new = b.stages.iter().filter(|s| a.stage(&s.stage).is_none());
        pairs.extend(new.map(|stage| Pair::only(stage, Side::B)));
        Ok(Comparison {
            runs: [a.id.clone(), b.id.clone()],
            roots: roots(reader, a, b, &pairs)?,
            pairs,
        })
    }

    pub fn as_json(&self) -> Value {
        let roots: Vec<_> = self.roots.iter().map(Root::as_json).collect();
        let stages: Vec<_> = self.pairs.iter().map(Pair::as_json).collect();
        json!({
            "version": 1, "a": self.runs[0], "b": self.runs[1], "differs": roots, "stages": stages,
        })
    }
}

impl Pair {
    fn of(reader: &Reader, runs: [&Run; 2], stages: [&Stage; 2]) -> Result<Pair, Fail> {
        let [left, right] = stages;
        let relation = Relation::of(left, right);
        let mut pair = Pair {
            relation,
            seconds: [left.cost_seconds, right.cost_seconds],
            ..Pair::only(left, Side::A)
        };
        if let (Some(before), Some(now)) = (reader.result(left)?, reader.result(right)?) {
            for difference in now.preimage.diff(&before.preimage) {
                match made_by(&difference, runs) {
                    Some(stage) if !pair.follows.contains(&stage) => pair.follows.push(stage),
                    Some(_) => {}
                    None => pair.differs.push(difference),
                }
            }
            pair.numerics = spec::difference(&before.result.numerics, &now.result.numerics);
        }
        if relation != Relation::Same {
            pair.metrics = spec::difference(&json!(left.metrics), &json!(right.metrics));
            let [a, b] = runs;
            let (x, y) = (reader.curves(a, left)?, reader.curves(b, right)?);
            pair.curves = curves::apart(&x, &y);
        }
        Ok(pair)
    }

    fn only(stage: &Stage, side: Side) -> Pair {
        let seconds = stage.cost_seconds;
        Pair {
            stage: stage.stage.clone(),
            relation: Relation::Only(side),
            differs: Vec::new(),
            follows: Vec::new(),
            numerics: Vec::new(),
            metrics: Vec::new(),
            curves: Vec::new(),
            seconds: match side {
                Side::A => [seconds, None],
                Side::B => [None, seconds],
            },
        }
    }

    fn as_json(&self) -> Value {
        let metrics: Vec<_> = self
            .metrics
            .iter()
            .map(|d| json!({ "metric": d.field, "a": d.before, "b": d.now }))
            .collect();
        let curves: Vec<_> = self.curves.iter().map(Apart::as_json).collect();
        json!({
            "stage": self.stage, "relation": self.relation.word(), "differs": self.differs,
            "follows": self.follows, "numerics": self.numerics, "metrics": metrics,
            "curves": curves, "seconds": self.seconds,
        })
    }
}

/// The stage whose output a differing input is, if it is one's.
fn made_by(difference: &Difference, [a, b]: [&Run; 2]) -> Option<String> {
    let maker = |digest: &Option<Value>, run: &Run| {
        let digest = digest.as_ref()?.as_str()?;
        let of = |s: &&Stage| s.outputs.values().any(|d| d == digest);
        run.stages.iter().find(of).map(|s| s.stage.clone())
    };
    let maker = maker(&difference.before, a).or_else(|| maker(&difference.now, b));
    maker.filter(|_| difference.field.starts_with("inputs."))
}
