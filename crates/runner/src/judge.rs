//! Assertions held against results: when a stage ends, and again when its result is reused.

use cache::Brief;
use spec::assertion::{Evidence, Judged};
use spec::{Assertion, Stage};

/// The verdicts on a stage's result, in the order of its assertions.
pub fn stage(stage: &Stage, result: &Brief) -> Vec<Judged> {
    let evidence = Evidence {
        summary: &result.metrics,
        steps: Ok(None),
        calibration: Err("the result has no calibration"),
    };
    let judge = |assertion: &Assertion| assertion.judge(&evidence);
    stage.assertions.iter().map(judge).collect()
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
