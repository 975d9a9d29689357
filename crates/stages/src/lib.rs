//! What stages run, one file per stage kind, and `recipe-worker`, which runs one rank of one.
//!
//! The algorithms (`sft`, `dpo`, `grpo`) own their loops; what they share are plain functions:
//!
//! | file | what |
//! |---|---|
//! | `stage` | what every stage is given |
//! | `training` | set-up, batches, metrics of a step |
//! | `checkpoints` | when checkpoints are taken, and where they go |
//! | `examples`, `reference` | rows as units; log-probabilities known beforehand |
//! | `play`, `group`, `batch` | episodes played by all ranks; groups, and as the trainer takes them |
//! | `stats` | estimates with intervals |
//! | `profile` | steps that are recorded as a trace |
//! | `gang`, `report`, `stop`, `failure` | ranks, events, signals, errors |

mod batch;
mod checkpoints;
mod convert;
mod dpo;
mod evaluate;
mod examples;
mod export;
mod failure;
mod gang;
mod generate;
mod group;
mod grpo;
mod ids;
mod init;
mod play;
mod profile;
mod reference;
mod report;
mod score;
mod serving;
mod sft;
mod stage;
mod stats;
mod stop;
mod training;

use std::path::Path;

use serde::Serialize;
use spec::job::exit;
use spec::{Event, JobSpec};

use failure::{Failure, Result, at};
use gang::Gang;
use profile::Profile;
use report::Report;
use stage::{Done, Stage};

/// Runs one stage on one rank.
type Run = fn(&Stage) -> Result<Done>;

/// What runs each stage kind. `command` is a process that the runner starts itself.
static KINDS: &[(&str, Run)] = &[
    ("init", init::run),
    ("convert", convert::run),
    ("sft", sft::run),
    ("dpo", dpo::run),
    ("grpo", grpo::run),
    ("score", score::run),
    ("generate", generate::run),
    ("evaluate", evaluate::run),
    ("export", export::run),
];

/// Names of the stage kinds that the worker runs.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

/// Runs the job in `file` as the rank that the environment says; returns the exit code.
pub fn run(file: &Path) -> i32 {
    stop::watch_parent();
    let rank = std::env::var("RANK")
        .ok()
        .and_then(|rank| rank.parse().ok())
        .unwrap_or(0);
    let report = Report { rank };
    let ended = match std::panic::catch_unwind(|| stage(file, report)) {
        Ok(ended) => ended,
        Err(panic) => Err(bug(&*panic)),
    };
    match ended {
        Ok(Done::Finished(metrics)) => {
            report.event(&Event::Finished { metrics });
            exit::OK
        }
        Ok(Done::Stopped(step)) => {
            report.event(&Event::Stopped { step });
            exit::STOPPED
        }
        Err(failure) => {
            report::note(&failure);
            report.failed(&failure);
            failure.exit_code()
        }
    }
}

fn stage(file: &Path, report: Report) -> Result<Done> {
    let text = std::fs::read(file).map_err(at(file))?;
    let mut job: JobSpec = serde_json::from_slice(&text).map_err(|e| {
        Failure::config(
            format!("{}: {e}", file.display()),
            "use the `recipe` and `recipe-worker` of the same build",
        )
    })?;
    if job.version != spec::job::VERSION {
        return Err(Failure::config(
            format!(
                "the job has version {}, this worker knows {}",
                job.version,
                spec::job::VERSION
            ),
            "use the `recipe` and `recipe-worker` of the same build",
        ));
    }
    let run = KINDS
        .iter()
        .find(|(name, _)| *name == job.kind)
        .map(|(_, run)| run);
    let run = run.ok_or_else(|| {
        let known: Vec<&str> = kinds().collect();
        Failure::config(
            format!("the worker runs no stage kind '{}'", job.kind),
            format!("it runs {}", known.join(", ")),
        )
    })?;
    job.resources.finish()?;
    torch::memory::keep();
    torch::memory::count();
    if job.resources.threads > 0 {
        torch::threads::set(job.resources.threads as usize);
    }
    let local_rank = gang::local_rank()?;
    let device = train::device(&job.device, local_rank)?;
    let gang = Gang::join(
        gang::mesh(&job.resources.mesh),
        job.resources.deadline,
        gang::wanted(job.resources.collectives, device),
    )?;
    let stage = Stage {
        profile: Profile::new(&job, gang.rank, device),
        job,
        gang,
        device,
        report,
    };
    report.event(&stage.started());
    let done = run(&stage);
    stage.profile.finish(report);
    done
}

/// A panic is a bug of ours, whatever the input was.
fn bug(panic: &(dyn std::any::Any + Send)) -> Failure {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Failure::failed(
        "W0999",
        format!(
            "the worker panicked: {}",
            said.lines().next().unwrap_or(said)
        ),
        "this is a bug: please report it with the stage's log",
    )
}

/// Who this worker is, for the keys of what it makes.
pub fn identity() -> spec::Trainer {
    spec::Trainer {
        version: env!("CARGO_PKG_VERSION").to_string(),
        libtorch: torch::version().to_string(),
        sources: env!("RECIPE_SOURCES").to_string(),
    }
}

/// The word by which a recipe gives this choice.
fn word(choice: &impl Serialize) -> String {
    match serde_json::to_value(choice) {
        Ok(serde_json::Value::String(word)) => word,
        other => format!("{other:?}"),
    }
}
