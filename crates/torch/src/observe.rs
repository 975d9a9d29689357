//! A look at libtorch's operators while they run.

use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, ffi};

/// What is called: as an operator begins, and with its name as it ends, on the thread that runs it.
type Watchers = (fn(), fn(&str));

static WATCHERS: Mutex<Option<Watchers>> = Mutex::new(None);

/// Calls `begins` and `ends` around every operator of libtorch, in this process, until [`stop`]. Operators call others:
/// those lie within them.
///
/// # Errors
/// libtorch's.
pub fn start(begins: fn(), ends: fn(&str)) -> Result<(), Error> {
    let mut watchers = watchers();
    if watchers.replace((begins, ends)).is_some() {
        return Ok(());
    }
    // SAFETY: functions that live as long as the process.
    let started = ffi::check(unsafe { ffi::rt_observe_start(begun, ended) });
    if started.is_err() {
        *watchers = None;
    }
    started
}

/// Operators are no longer looked at.
pub fn stop() {
    if watchers().take().is_some() {
        // SAFETY: takes away what `start` added.
        unsafe { ffi::rt_observe_stop() }
    }
}

fn watchers() -> MutexGuard<'static, Option<Watchers>> {
    WATCHERS.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn begun() {
    let watchers = *watchers();
    if let Some((begins, _)) = watchers {
        begins();
    }
}

extern "C" fn ended(name: *const c_char) {
    let watchers = *watchers();
    if let Some((_, ends)) = watchers {
        // SAFETY: libtorch's text, which lives until the operator has ended.
        ends(&unsafe { CStr::from_ptr(name) }.to_string_lossy());
    }
}
