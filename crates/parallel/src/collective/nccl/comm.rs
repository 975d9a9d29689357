//! One NCCL communicator. No call on it blocks: what NCCL is still at is asked for until a deadline.

use std::ffi::c_int;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{ncclComm_t, ncclUniqueId};

use super::library::{Code, IN_PROGRESS, Library, SUCCESS, non_blocking};
use super::watch::Health;

/// Time between two questions.
const PAUSE: Duration = Duration::from_micros(50);
/// How long a communicator that is well may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// A communicator of this process; the watching thread may abort it.
pub struct Comm {
    library: &'static Library,
    /// None once it was aborted.
    raw: Mutex<Option<Raw>>,
}

struct Raw(ncclComm_t);
// SAFETY: NCCL takes calls on a communicator from any thread, one at a time.
unsafe impl Send for Raw {}

impl Comm {
    /// Joins the communicator `id` of `size` ranks as `rank`; the device must be this thread's.
    ///
    /// # Errors
    /// What NCCL says, or that the others did not come by the deadline.
    pub fn join(
        library: &'static Library,
        id: ncclUniqueId,
        rank: usize,
        size: usize,
        until: Instant,
    ) -> Result<Comm, String> {
        let mut raw: ncclComm_t = std::ptr::null_mut();
        let mut config = non_blocking();
        // SAFETY: `raw` and `config` live through the call, and NCCL copies both.
        let code =
            unsafe { (library.init)(&mut raw, size as c_int, id, rank as c_int, &mut config) };
        if raw.is_null() {
            library.check(code, raw)?;
            return Err("NCCL gave no communicator".into());
        }
        let comm = Comm {
            library,
            raw: Mutex::new(Some(Raw(raw))),
        };
        let joined = comm.settle(raw, code, until);
        if joined.is_err() {
            comm.abort();
        }
        joined.map(|()| comm)
    }

    /// Gives NCCL work; returns when it has taken it.
    ///
    /// # Errors
    /// What NCCL says, or that it did not take the work by the deadline.
    pub fn call(
        &self,
        until: Instant,
        work: impl FnOnce(&Library, ncclComm_t) -> Code,
    ) -> Result<(), String> {
        let held = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Raw(raw)) = *held else {
            return Err("its communicator was aborted".into());
        };
        let code = work(self.library, raw);
        self.settle(raw, code, until)
    }

    /// Waits while NCCL is at it.
    fn settle(&self, raw: ncclComm_t, first: Code, until: Instant) -> Result<(), String> {
        let mut code = first;
        while code == IN_PROGRESS {
            if Instant::now() > until {
                return Err("NCCL was still at it at the deadline".into());
            }
            std::thread::sleep(PAUSE);
            code = self.state(raw)?;
        }
        self.library.check(code, raw)
    }

    fn state(&self, raw: ncclComm_t) -> Result<Code, String> {
        let mut state = SUCCESS;
        // SAFETY: a live communicator; `state` is written.
        let code = unsafe { (self.library.async_error)(raw, &mut state) };
        self.library.check(code, raw)?;
        Ok(state)
    }
}

impl Health for Comm {
    fn check(&self) -> Result<(), String> {
        // whoever holds it is calling NCCL, and will see for itself
        let Ok(held) = self.raw.try_lock() else {
            return Ok(());
        };
        let Some(Raw(raw)) = *held else {
            return Ok(());
        };
        match self.state(raw)? {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => self.library.check(code, raw),
        }
    }

    fn abort(&self) {
        let taken = self
            .raw
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Raw(raw)) = taken {
            // SAFETY: taken out, so nobody calls it again. What it says changes nothing any more.
            unsafe { (self.library.abort)(raw) };
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        let held = self.raw.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(Raw(raw)) = held.take() else {
            return;
        };
        // SAFETY: the last call of its owner: `finalize` sends off what is under way.
        let code = unsafe { (self.library.finalize)(raw) };
        let ended = self.settle(raw, code, Instant::now() + GOODBYE);
        // SAFETY: taken out above; `destroy` where all ended, `abort` where a peer is gone.
        unsafe {
            match ended {
                Ok(()) => (self.library.destroy)(raw),
                Err(_) => (self.library.abort)(raw),
            };
        }
    }
}
