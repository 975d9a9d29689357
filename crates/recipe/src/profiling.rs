//! Traces of steps: `recipe run --profile-steps`.

use std::fmt;

use cache::Store;
use runner::{Outcome, Status};
use serde::Serialize;
use spec::job::StepRange;
use spec::{Part, Plan, Stage};

use crate::fail::Fail;

/// Whether a stage has steps.
fn trains(stage: &Stage) -> bool {
    stage.kind.checkpoints
}

/// Refuses steps of a plan that has none of them.
pub fn check(plan: &Plan, steps: StepRange) -> Result<(), Fail> {
    let may = |s: &&spec::plan::PlannedStage| s.part == Part::Run && trains(&s.stage);
    let stages: Vec<&Stage> = plan.order.iter().filter(may).map(|s| &*s.stage).collect();
    if stages.is_empty() {
        return Err(Fail::usage(
            format!("--profile-steps {steps}: none of the stages to run has steps"),
            "stages of kind sft, dpo and grpo do: name one of them",
        ));
    }
    // epochs are as many steps as the data makes them, which the stage says when it has read it
    let planned = stages
        .iter()
        .map(|stage| (stage, stage.with["steps"].as_u64()));
    let short: Vec<String> = planned
        .filter_map(|(stage, planned)| {
            let planned = planned.filter(|&n| n < steps.first)?;
            Some(format!("'{}' has {planned}", stage.name))
        })
        .collect();
    match short.len() == stages.len() {
        true => Err(Fail::usage(
            format!("--profile-steps {steps}: no stage has so many steps"),
            short.join(", "),
        )),
        false => Ok(()),
    }
}

/// What a run recorded.
#[derive(Serialize)]
pub struct Profiled {
    /// Where the traces are, one of each rank and attempt.
    traces: Vec<String>,
    /// Training stages that did not compute, and so were not recorded.
    reused: Vec<String>,
    /// Why the traces cannot be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    unlisted: Option<String>,
}

/// Of a run that has ended, in the store at `url`.
pub fn of(plan: &Plan, outcome: &Outcome, url: &str) -> Profiled {
    let training = plan.order.iter().filter(|s| trains(&s.stage));
    let training: Vec<&str> = training.map(|s| s.stage.name.as_str()).collect();
    let reused = outcome.stages.iter().filter(|s| {
        matches!(s.status, Status::Reused | Status::Adopted) && training.contains(&s.stage.as_str())
    });
    let found = Store::open(url)
        .map_err(Fail::from)
        .and_then(|store| traces(&store, &outcome.run));
    let (traces, unlisted) = match found {
        Ok(traces) => (traces, None),
        Err(fail) => (Vec::new(), Some(fail.report())),
    };
    Profiled {
        traces,
        reused: reused.map(|s| s.stage.clone()).collect(),
        unlisted,
    }
}

impl fmt::Display for Profiled {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut lines = Vec::new();
        if !self.traces.is_empty() {
            lines.push(listed(&self.traces));
        }
        if let [first, ..] = &self.reused[..] {
            lines.push(format!(
                "not profiled, as their results were there: {} (--force={first} computes it again)",
                self.reused.join(", ")
            ));
        }
        lines.extend(self.unlisted.clone());
        if lines.is_empty() {
            lines.push("nothing was profiled".into());
        }
        write!(f, "{}", lines.join("\n"))
    }
}

/// Where a run's traces are.
pub fn traces(store: &Store, run: &str) -> Result<Vec<String>, Fail> {
    let folder = format!("{}/", runner::TRACES);
    let files = store.list_run_files(run)?.into_iter();
    let files = files.filter(|name| name.starts_with(&folder));
    let root = match store.local() {
        Some(dir) => dir.display().to_string(),
        None => store.url().trim_end_matches('/').to_owned(),
    };
    Ok(files
        .map(|name| format!("{root}/runs/{run}/{name}"))
        .collect())
}

/// As lines of text.
pub fn listed(traces: &[String]) -> String {
    let files: Vec<String> = traces.iter().map(|path| format!("  {path}")).collect();
    format!("traces, for https://ui.perfetto.dev:\n{}", files.join("\n"))
}
