//! A run as continuous integration reads it: JUnit XML for the list of tests, Markdown for a job's
//! page. Both are written from the same facts, by `recipe run` when the run ends and by `recipe show`
//! from its record at any time later.
//!
//! A stage is a suite. Its first case is `result`, whether the stage has one; each assertion is a case
//! of its own. What did not run because of a failure elsewhere is skipped; what did not run although
//! nothing failed (the run was stopped or killed) is an error, so that a run which ended early is never
//! green.

mod junit;
mod summary;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use spec::assertion::Judged;

use crate::fail::Fail;
use crate::past::{Run, Stage};

/// Where to write.
#[derive(Clone, Debug, Default, Args)]
pub struct CiArgs {
    /// Write stages and assertions to FILE as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Append a Markdown summary to FILE, such as "$GITHUB_STEP_SUMMARY"
    #[arg(long, value_name = "FILE")]
    pub summary: Option<PathBuf>,
}

/// What a case came to.
enum Verdict {
    Passed,
    /// An assertion does not hold.
    Failed(String),
    /// There is no result: what happened, in a word and in a sentence.
    Error(String, String),
    Skipped(String),
}

/// One thing that was checked.
struct Case {
    name: String,
    verdict: Verdict,
    /// What a person who opens the case reads.
    text: String,
    seconds: f64,
}

impl CiArgs {
    pub fn wanted(&self) -> bool {
        self.junit.is_some() || self.summary.is_some()
    }

    /// Before a run: refuses files that cannot be written, and replaces what an earlier run left in
    /// the JUnit file by the truth so far, should this run be killed.
    pub fn begin(&self, recipe: &Path) -> Result<(), Fail> {
        if let Some(file) = &self.junit {
            let name = recipe.display().to_string();
            let text = junit::unfinished(&name, "killed", "the run has not come to its end");
            write(file, &text)?;
        }
        if let Some(file) = &self.summary {
            append(file, "")?;
        }
        Ok(())
    }

    /// After a run.
    pub fn write(&self, run: &Run) -> Result<(), Fail> {
        if let Some(file) = &self.junit {
            write(file, &junit::text(run))?;
        }
        match &self.summary {
            Some(file) => append(file, &summary::text(run)),
            None => Ok(()),
        }
    }

    /// After a run that came to no outcome. What goes wrong here is not told: `fail` is.
    pub fn write_failure(&self, recipe: &Path, fail: &Fail) {
        let name = recipe.display().to_string();
        let report = fail.report();
        if let Some(file) = &self.junit {
            let kind = format!("exit {}", fail.exit_code());
            let _ = write(file, &junit::unfinished(&name, &kind, &report));
        }
        if let Some(file) = &self.summary {
            let _ = append(file, &summary::failure(&name, &report));
        }
    }
}

fn write(file: &Path, text: &str) -> Result<(), Fail> {
    std::fs::write(file, text).map_err(|e| cannot(file, &e))
}

fn append(file: &Path, text: &str) -> Result<(), Fail> {
    let opened = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file);
    opened
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .map_err(|e| cannot(file, &e))
}

fn cannot(file: &Path, error: &std::io::Error) -> Fail {
    Fail::usage(
        format!("cannot write '{}': {error}", file.display()),
        "name a file in a folder that exists and may be written",
    )
}

/// The cases of a stage, its result first.
fn cases(run: &Run, stage: &Stage) -> Vec<Case> {
    let why = || stage.why.clone().unwrap_or_default();
    let error = || match &stage.error {
        Some(error) => error.message.clone(),
        None => why(),
    };
    let failed_elsewhere = || {
        let failed = |s: &Stage| matches!(s.status.as_str(), "failed" | "assertion_failed");
        run.stages.iter().any(failed)
    };
    let verdict = match stage.status.as_str() {
        "reused" | "ran" | "adopted" | "assertion_failed" => Verdict::Passed,
        "failed" => {
            let class = stage.error.as_ref().map_or("failed", |e| e.class.as_str());
            Verdict::Error(class.to_owned(), error())
        }
        "skipped" => Verdict::Skipped(why()),
        "stopped" => Verdict::Error(
            "stopped".to_owned(),
            "stopped on request; the next run goes on from its checkpoint".to_owned(),
        ),
        "killed" => Verdict::Error(
            "killed".to_owned(),
            "killed on request, without a checkpoint".to_owned(),
        ),
        // not_run
        _ if failed_elsewhere() => Verdict::Skipped("the run ended before it started".to_owned()),
        _ => Verdict::Error(
            "not_run".to_owned(),
            "the run ended before it started, or while it ran".to_owned(),
        ),
    };
    let mut text = match stage.status.as_str() {
        "assertion_failed" => "it has a result".to_owned(),
        status => status.replace('_', " "),
    };
    if let (Some(why), Verdict::Passed) = (&stage.why, &verdict) {
        text += &format!(": {why}");
    }
    let result = Case {
        name: "result".to_owned(),
        verdict,
        text,
        seconds: stage.seconds,
    };
    let assertions = stage.verdicts.iter().map(assertion);
    std::iter::once(result).chain(assertions).collect()
}

/// An assertion as a case: its name is what was asked.
fn assertion(judged: &Judged) -> Case {
    let text = judged.to_string();
    Case {
        name: judged.asked.clone(),
        verdict: match (judged.holds, judged.verdict) {
            (false, _) => Verdict::Failed(text.clone()),
            (true, spec::assertion::Verdict::Passed) => Verdict::Passed,
            // the recipe says `missing = "pass"`
            (true, _) => Verdict::Skipped(text.clone()),
        },
        text,
        seconds: 0.0,
    }
}
