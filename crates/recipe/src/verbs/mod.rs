//! One file per verb. Each takes its arguments and gives the exit code of its own end.
//!
//! What `--json` prints, version 1 (`"version": 1` in every object; fields are only ever added):
//!
//! | verb | value |
//! |---|---|
//! | `run` | [`runner::Outcome`]: `run`, `recipe`, `exit_code`, `seconds`, `stages` (each [`runner::StageOutcome`]) |
//! | `plan` | `recipe`, `stages`: each `stage`, `kind`, `state` (`reuse`, `run`, `undecided`, `missing`, `out`), `why`, `depends_on`, `key`, `checkpoint`, `cost_seconds` |
//! | `why` | `stage`, `state`, `why` (with `fields`: each `field`, `before`, `now`), `depends_on`, `key`, `preimage` |
//! | `check` | `recipe`, `sources`, `stages`: each with its inputs, outputs and the whole configuration, defaults filled in |
//! | `graph --format json` | `recipe`, `sources`, `stages`, `edges` (each `from`, `to`, `input`) |
//! | `runs` | one record per line, as `show --json` prints it |
//! | `show` | the run's record: `id`, `recipe`, `state`, `exit_code`, `started`, `finished`, `stages` |
//! | `show --metrics STAGE` | lines `{"stage", "attempt", "step", "metrics": {..}}` |
//! | `compare` | `a`, `b`, `stages`: each `stage`, `relation` (`same`, `equal`, `differs`, `unknown`, `only_a`, `only_b`), `differs` (each `field`, `before`, `now`), `follows`, `numerics`, `metrics`, `curves`, `seconds` |
//! | `baseline list` | `pins`: each `name`, `number`, `run`, `who`, `when`, `why` of its last move |
//! | `baseline show` | `name`, `moves` (each as above), `baseline`: `run`, `recipe`, `stages` by name |
//! | `verify` | `stage`, `checks`: each `how`, `same`, `reference`, `outputs` (each `output`, `same`, `file`, `tensor`, `shape`, `dtype`, `greatest`, `unequal`, `tensors`), `step` (`step`, `metric`, `before`, `now`) |
//! | `cache stat` | `store`, `kinds`: each `kind`, `objects`, `bytes` |
//! | `cache verify` | `store`, `objects`, `bytes`, `problems`: each `path`, `kind`, `why` |
//! | `doctor` | `ok`, `findings`: each `name`, `ok`, `text` |
//!
//! `run --events FILE` writes lines described in [`crate::progress`].

pub mod baseline;
pub mod cache;
pub mod check;
pub mod compare;
pub mod completions;
pub mod doctor;
pub mod get;
pub mod graph;
pub mod init;
pub mod logs;
pub mod plan;
pub mod report;
pub mod run;
pub mod runs;
pub mod schema;
pub mod show;
pub mod verify;
pub mod why;
