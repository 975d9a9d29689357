//! Runs a plan: keys, store look-up, attempts, worker, artifact.
//!
//! ```text
//! Plan --resolve--> Reuse | Run(why) | Undecided   (resolve.rs; starts nothing, fetches nothing)
//!      --run------> states and slots (run.rs) --> one thread per stage that runs (attempt.rs)
//!                   claim -> materialise -> gang (launch/) -> ingest -> publish
//! ```
//!
//! Every process of a gang is a child of the guard (guard/), which outlives the runner just long enough to
//! kill them when it dies. What happens goes out as [`Report`]s; the run record is one subscriber (record.rs).

pub mod baseline;
pub mod clock;
pub mod content;
pub mod guard;
pub mod machine;
pub mod space;

mod attempt;
mod calibration;
mod cancel;
mod crew;
mod curves;
mod earlier;
mod emitted;
mod error;
mod events;
mod fault;
mod gang;
mod going_on;
mod history;
mod job;
mod judge;
mod launch;
mod meter;
mod options;
mod outcome;
mod ready;
mod record;
mod replicas;
mod report;
mod resolve;
mod run;
mod scratch;
mod session;
mod slots;
mod source;
mod states;
mod tail;
mod traces;
mod track;
mod trainer;

pub use cancel::{Cancel, Stop};
pub use curves::of as steps_of;
pub use error::{AttemptError, Class, Error};
pub use going_on::{GoesOn, Whose};
pub use history::Past;
pub use meter::Energy;
pub use options::{Device, Force, Options, Resume};
pub use outcome::{Outcome, StageOutcome, Status};
pub use record::event;
pub use report::{Report, Reporter, Silent, VERSION as REPORT_VERSION};
pub use resolve::{Resolved, State, Why, resolve};
pub use run::run;
pub use session::Found;
pub use source::{Adoption, Change, Locked, Relock, adopt, at_hand, commit, locked, relock};
pub use traces::FOLDER as TRACES;
pub use trainer::{ask, worker};
