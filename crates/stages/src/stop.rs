//! SIGTERM asks for a checkpoint and a stop; a parent that died ends the rank.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::getppid;

static REQUESTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_term(_: libc::c_int) {
    REQUESTED.store(true, Ordering::Relaxed);
}

/// Makes SIGTERM (and a Ctrl-C that reaches this process) set the flag that [`requested`] reads.
/// Kinds without checkpoints leave the signals' default, which ends them.
pub fn catch_term() {
    let action = SigAction::new(
        SigHandler::Handler(on_term),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler only stores to an atomic
        let _ = unsafe { sigaction(signal, &action) };
    }
}

/// Whether a stop was asked for.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Ends this process once its parent is gone. By polling: the kernel's parent-death signal fires
/// when the spawning *thread* ends.
pub fn watch_parent() {
    let parent = getppid();
    std::thread::spawn(move || {
        while getppid() == parent {
            std::thread::sleep(Duration::from_millis(500));
        }
        crate::report::note(&"the parent process is gone: stopping");
        // SAFETY: ends the process without running destructors, as a kill would
        unsafe { libc::_exit(spec::job::exit::INFRA) };
    });
}
