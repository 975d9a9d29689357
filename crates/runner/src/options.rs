//! What the command line decides about a run, none of which enters a key.

use std::path::PathBuf;
use std::time::Duration;

use spec::job::StepRange;

use crate::cancel::Cancel;

/// Which device workers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// CUDA where this machine has a GPU, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda,
}

/// Which stages to take even though the store has their result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Force {
    #[default]
    None,
    /// Every selected stage.
    All,
    /// These stages.
    Stages(Vec<String>),
}

/// What `--resume` says about checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Continue from the newest checkpoint of the same key that verifies.
    #[default]
    Auto,
    /// Start stages from their beginning.
    Never,
}

/// Options of `resolve` and `run`; `Options::new(store)` gives the command line's defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// Path or URL of the store.
    pub store: String,
    /// URL of the store behind a local one: results it has are taken over.
    pub remote: Option<String>,
    /// Send what is published to the store behind.
    pub push: bool,
    pub force: Force,
    pub resume: Resume,
    /// Kill the processes of each stage once, after its first checkpoint, and go on from there: what `recipe verify
    /// --resume` proves resuming with.
    pub interrupt: bool,
    /// Steps of which training stages that compute write a trace.
    pub profile: Option<StepRange>,
    pub device: Device,
    /// Go on with stages that do not need a failed one.
    pub keep_going: bool,
    /// Most stages at once; `None`: as many as the machine's slots hold.
    pub jobs: Option<usize>,
    /// `recipe.lock` must already say what the sources are.
    pub locked: bool,
    /// Never touch the network (`HF_HUB_OFFLINE` does the same for the hub).
    pub offline: bool,
    /// Tell the recipe's trackers what happens.
    pub track: bool,
    /// Reuse results of another trainer identity.
    pub accept_trainer: bool,
    /// How long after SIGTERM a process may live, for a timeout and for `command` stages.
    pub grace: Duration,
    /// How long another runner's claim may be silent before it is taken over; the same for all runners of a store.
    pub claim_ttl: Option<Duration>,
    /// The worker binary; `None`: `RECIPE_WORKER`, else `recipe-worker` beside this program.
    pub worker: Option<PathBuf>,
    /// Program and arguments that end in [`crate::guard::main`]; `None`: this program with [`crate::guard::VERB`].
    pub guard: Option<(PathBuf, Vec<String>)>,
    /// What the user typed, for the run record.
    pub command_line: Vec<String>,
    pub cancel: Cancel,
}

impl Options {
    pub fn new(store: impl Into<String>) -> Options {
        Options {
            store: store.into(),
            remote: None,
            push: false,
            force: Force::None,
            resume: Resume::Auto,
            interrupt: false,
            profile: None,
            device: Device::Auto,
            keep_going: false,
            jobs: None,
            locked: false,
            offline: false,
            track: true,
            accept_trainer: false,
            grace: Duration::from_secs(30),
            claim_ttl: None,
            worker: None,
            guard: None,
            command_line: Vec::new(),
            cancel: Cancel::default(),
        }
    }

    /// Whether accelerated stages take GPUs.
    pub fn takes_gpus(&self) -> bool {
        self.device != Device::Cpu && !crate::machine::gpus().is_empty()
    }
}
