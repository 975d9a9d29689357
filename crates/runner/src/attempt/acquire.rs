//! The right to compute a key: a claim, or somebody else's result.

use std::time::Duration;

use cache::{Claim, Claimed, Key, Liveness, Reason, ResultRecord, Store};

use super::{Runner, Start};
use crate::cancel::Stop;
use crate::error::AttemptError;
use crate::machine;
use crate::report::Report;

/// How often another runner's attempt is looked at.
const WAIT: Duration = Duration::from_millis(100);

pub(super) enum Acquired {
    Claim(Claim),
    Done {
        attempt: u32,
        record: Box<ResultRecord>,
    },
    Stopped,
}

impl Runner<'_> {
    /// Gets the right to compute the key, or somebody else's result for it.
    pub(super) fn acquire(&mut self) -> Result<Acquired, AttemptError> {
        let (store, key) = (&self.shared.store, &self.job.keyed.key);
        let owner = machine::owner(&self.shared.run);
        let mut told = false;
        let mut claimed = self.claim(store, key, &owner)?;
        loop {
            if self.shared.cancel.level() != Stop::No {
                if let Claimed::Claimed(claim) = claimed {
                    store.abandon(claim, "stopped on request")?;
                }
                return Ok(Acquired::Stopped);
            }
            match claimed {
                Claimed::Claimed(claim) => return Ok(Acquired::Claim(claim)),
                Claimed::Done { attempt, record } => return Ok(Acquired::Done { attempt, record }),
                Claimed::Busy {
                    attempt,
                    owner: other,
                } => {
                    let mut watch = store.watch(key, attempt, &other);
                    claimed = loop {
                        match watch.poll()? {
                            Liveness::Ended => break self.claim(store, key, &owner)?,
                            Liveness::Dead { why } => {
                                let text = format!(
                                    "attempt {attempt} of {} is dead ({why}): taking over",
                                    other.owner
                                );
                                self.warn(text);
                                break store.takeover(key, attempt, &why, &owner)?;
                            }
                            Liveness::Alive => {}
                        }
                        if !std::mem::replace(&mut told, true) {
                            self.report(Report::StageWaiting {
                                stage: self.name(),
                                owner: other.owner.clone(),
                            });
                        }
                        if self.shared.cancel.level() != Stop::No {
                            return Ok(Acquired::Stopped);
                        }
                        std::thread::sleep(WAIT);
                    };
                }
            }
        }
    }

    fn claim(&self, store: &Store, key: &Key, owner: &str) -> Result<Claimed, cache::Error> {
        match self.job.start {
            Start::First => store.claim(key, Reason::First, owner),
            Start::Forced => store.claim(key, Reason::Forced, owner),
            Start::Repair(broken) => store.repair(key, broken, owner),
        }
    }
}
