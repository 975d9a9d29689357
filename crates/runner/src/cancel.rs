//! Two-stage stop: the first request asks workers to checkpoint and stop, the second kills.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use nix::sys::signal::{SigSet, Signal};

use crate::error::Error;

/// How urgently the run is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Keep going.
    No,
    /// Checkpoint, then stop.
    Graceful,
    /// Kill every process now.
    Now,
}

/// A handle that any thread may use to stop a run. Clones share state.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    level: Arc<AtomicU8>,
    signal: Arc<AtomicI32>,
}

impl Cancel {
    /// Raises the level by one: first graceful, then now. `signal` is what asked (for the exit code).
    pub fn request(&self, signal: i32) {
        self.signal.store(signal, Ordering::SeqCst);
        let _ = self
            .level
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |l| Some((l + 1).min(2)));
    }

    pub fn level(&self) -> Stop {
        match self.level.load(Ordering::SeqCst) {
            0 => Stop::No,
            1 => Stop::Graceful,
            _ => Stop::Now,
        }
    }

    /// 130 after SIGINT, 143 after SIGTERM.
    pub fn exit_code(&self) -> u8 {
        128 + self.signal.load(Ordering::SeqCst).clamp(0, 64) as u8
    }

    /// Routes SIGINT and SIGTERM of this process here; call before any thread starts.
    ///
    /// A third signal ends the process at once: the guard then kills what is left.
    pub fn on_signals(&self) -> Result<(), Error> {
        let system = |e: nix::Error| Error::System {
            what: "cannot block signals",
            source: e.into(),
        };
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().map_err(system)?;
        let cancel = self.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut seen = 0;
                while let Ok(signal) = set.wait() {
                    seen += 1;
                    cancel.request(signal as i32);
                    if seen > 2 {
                        // Nothing to unwind: the store needs no clean-up and the guard does the killing.
                        unsafe { libc::_exit(128 + signal as i32) }
                    }
                }
            })
            .map_err(|source| Error::System {
                what: "cannot start the signal thread",
                source,
            })?;
        Ok(())
    }
}
