//! Assertions held against results: when a stage ends, and again when its result is reused.

use cache::{Ending, Key, Store};
use spec::assertion::{Judged, Reference, Unjudged};
use spec::{Assertion, Stage};

use crate::baseline::{Baseline, Kept, Pins};

/// A result in the store, as a run's outcome names it.
pub struct Of<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Hex key and attempt; none where it has no result.
    pub result: Option<(&'a str, u32)>,
}

/// A stage that has a result, and what its assertions are judged by.
pub struct Bench<'a> {
    pub stage: &'a Stage,
    pub of: Of<'a>,
    /// What the stage is a replica of; its own name where it is none.
    pub group: &'a str,
    /// Once the last of them has ended: the other replicas. None before.
    pub others: Option<Vec<Of<'a>>>,
    pub store: &'a Store,
    pub pins: &'a Pins,
}

/// What a stage's assertions came to.
#[derive(Default)]
pub struct Verdicts {
    pub all: Vec<Judged>,
    /// One that its replicas were judged by together does not hold.
    pub group_broken: bool,
}

impl Bench<'_> {
    /// The verdicts on the stage's result, in the order of its assertions. What compares replicas with a pinned run is
    /// judged once, with the last of them.
    pub fn judge(&self) -> Verdicts {
        let mut verdicts = Verdicts::default();
        if self.stage.assertions.is_empty() {
            return verdicts;
        }
        let kept = self.kept(&self.of);
        let judge = |assertion: &Assertion| {
            let kept = match &kept {
                Ok(kept) => kept,
                Err(why) => return Some(assertion.unjudged(Unjudged::missing(why.clone()))),
            };
            if assertion.digest.is_some() {
                Some(self.digest(assertion, kept))
            } else if assertion.baseline.is_some() {
                self.baseline(assertion, kept)
            } else {
                Some(assertion.judge(&kept.evidence()))
            }
        };
        for assertion in &self.stage.assertions {
            let Some(judged) = judge(assertion) else {
                continue;
            };
            verdicts.group_broken |= assertion.baseline.is_some() && !judged.holds;
            verdicts.all.push(judged);
        }
        verdicts
    }

    fn kept(&self, of: &Of) -> Result<Kept, String> {
        let (key, attempt) = of
            .result
            .ok_or_else(|| format!("'{}' has no result", of.stage))?;
        let key: Key = key.parse().map_err(|e| format!("its key: {e}"))?;
        match self.store.ending(&key, attempt) {
            Ok(Some(Ending::Result(record))) => {
                Ok(Kept::of(self.group.to_owned(), key, *record, self.store))
            }
            Ok(_) => Err(format!("the result of '{}' is gone", of.stage)),
            Err(e) => Err(format!("the result of '{}' cannot be read: {e}", of.stage)),
        }
    }

    fn digest(&self, assertion: &Assertion, now: &Kept) -> Judged {
        let history = self.pins.history(assertion.pin().unwrap_or_default());
        let pinned = last(&history).and_then(|last| {
            let kept = last.stages.get(&self.stage.name);
            kept.ok_or_else(|| format!("the pinned run has no result of '{}'", self.stage.name))
        });
        let now = (&now.outputs, &now.numerics);
        match pinned {
            Ok(kept) => assertion.judge_digest(now, Ok((&kept.outputs, &kept.numerics))),
            Err(why) => assertion.judge_digest(now, Err(&why)),
        }
    }

    /// None while replicas are under way.
    fn baseline(&self, assertion: &Assertion, mine: &Kept) -> Option<Judged> {
        let others = self.others.as_ref()?;
        let mut now = vec![assertion.look(&mine.evidence())];
        for other in others {
            now.push(match self.kept(other) {
                Ok(kept) => assertion.look(&kept.evidence()),
                Err(why) => Err(Unjudged::missing(why)),
            });
        }
        let now: Result<Vec<_>, _> = now.into_iter().collect();
        let history = self.pins.history(assertion.pin().unwrap_or_default());
        let reference = self.reference(assertion, &history);
        Some(assertion.judge_baseline(
            now.as_deref().map_err(Clone::clone),
            reference.as_ref().map_err(String::as_str),
        ))
    }

    /// What the pinned run and those before it have of an assertion's value.
    fn reference(
        &self,
        assertion: &Assertion,
        history: &Result<Vec<Baseline>, String>,
    ) -> Result<Reference, String> {
        let values = |baseline: &Baseline| -> Result<Vec<f64>, String> {
            let looks = baseline.group(self.group).into_iter();
            looks
                .map(|kept| Ok(assertion.look(&kept.evidence()).map_err(|e| e.why)?.value))
                .collect()
        };
        let pinned = values(last(history)?).map_err(|why| format!("in the pinned run, {why}"))?;
        if pinned.is_empty() {
            return Err(format!("the pinned run has no result of '{}'", self.group));
        }
        // a run that was accepted twice counts once; one of long ago may lack what is asked today
        let mut runs: Vec<&str> = Vec::new();
        let mut once = history.iter().flatten().collect::<Vec<_>>();
        once.retain(|b| {
            let fresh = !runs.contains(&b.run.as_str());
            runs.push(&b.run);
            fresh
        });
        let all = once.into_iter().filter_map(|b| values(b).ok());
        Ok(Reference {
            pinned,
            history: all.flatten().collect(),
        })
    }
}

fn last(history: &Result<Vec<Baseline>, String>) -> Result<&Baseline, String> {
    let all = history.as_ref().map_err(Clone::clone)?;
    all.last().ok_or_else(|| "its history is empty".to_owned())
}

/// What does not hold, in words.
pub fn broken(verdicts: &[Judged]) -> Option<String> {
    let texts: Vec<String> = verdicts
        .iter()
        .filter(|v| !v.holds)
        .map(Judged::to_string)
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}
