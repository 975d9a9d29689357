//! What the machine can run at once, and what a stage takes of it.

use spec::Stage;

use crate::error::Error;
use crate::machine;
use crate::options::{Device, Options};

/// What a stage takes while it runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    cores: usize,
    gpus: usize,
}

/// What is free.
pub struct Slots {
    total_cores: usize,
    cores: usize,
    all_gpus: usize,
    gpus: Vec<String>,
    running: usize,
    most: usize,
    cuda: bool,
}

impl Slots {
    /// All of this machine, as far as the options allow.
    pub fn new(options: &Options) -> Result<Slots, Error> {
        let cores = machine::cores();
        let gpus = if options.device == Device::Cpu {
            Vec::new()
        } else {
            machine::gpus()
        };
        if options.device == Device::Cuda && gpus.is_empty() {
            return Err(Error::Usage {
                message:
                    "device 'cuda' was asked for, but this machine has no GPU that can be seen"
                        .into(),
                help: Some("use --device auto or cpu, or look at CUDA_VISIBLE_DEVICES".into()),
            });
        }
        Ok(Slots {
            total_cores: cores,
            cores,
            all_gpus: gpus.len(),
            cuda: !gpus.is_empty(),
            gpus,
            running: 0,
            most: options.jobs.unwrap_or(usize::MAX).max(1),
        })
    }

    /// `cuda` for what gains from it, where there is one.
    pub fn device(&self, stage: &Stage) -> &'static str {
        if self.cuda && stage.kind.accelerated {
            "cuda"
        } else {
            "cpu"
        }
    }

    /// What a stage takes. Nothing takes more than there is: ranks then share.
    pub fn need(&self, stage: &Stage) -> Need {
        let resources = &stage.placement.resources;
        let ranks = resources.ranks.max(1) as usize;
        if self.device(stage) == "cuda" {
            return Need {
                cores: ranks.min(self.total_cores),
                gpus: ranks.min(self.all_gpus),
            };
        }
        let threads = match resources.threads as usize {
            0 if stage.kind.trainer => machine::threads_per_rank(ranks),
            // A command is somebody's process: one core, as make and ninja count.
            0 => 1,
            threads => threads,
        };
        let cores = ranks * threads;
        Need {
            cores: cores.min(self.total_cores),
            gpus: 0,
        }
    }

    /// Takes what is needed; the GPUs taken, or `None` when it does not fit now.
    pub fn take(&mut self, need: &Need) -> Option<Vec<String>> {
        if self.running >= self.most || need.cores > self.cores || need.gpus > self.gpus.len() {
            return None;
        }
        self.running += 1;
        self.cores -= need.cores;
        Some(self.gpus.drain(..need.gpus).collect())
    }

    pub fn give_back(&mut self, need: &Need, gpus: Vec<String>) {
        self.running -= 1;
        self.cores += need.cores;
        self.gpus.extend(gpus);
        self.gpus.sort();
    }

    pub fn running(&self) -> usize {
        self.running
    }
}
