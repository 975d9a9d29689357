//! The guard: a process that owns every process of a run and dies last.
//!
//! The runner starts its own program again with [`VERB`]; [`main`] then
//! - is a subreaper, so a grandchild that called setsid or double-forked is still found;
//! - starts processes on request and tells how they ended;
//! - holds a socket to the runner: when it closes, however the runner died, every descendant is killed.
//!
//! It lives in its own session and ignores the terminal's signals. It has one thread, because the
//! parent-death signal that its children carry (for the case that the guard itself is killed) fires when the
//! *thread* that started them ends.

mod client;
mod process;
mod start;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, killpg, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, setsid};

pub(crate) use client::{Guard, Spawn};
pub(crate) use wire::{Exit, Reply};

use wire::Request;

/// The hidden verb that a program embedding the runner must send to [`main`], as its first argument.
pub const VERB: &str = "__guard";

/// True when this process was started as a guard.
pub fn requested() -> bool {
    std::env::args().nth(1).as_deref() == Some(VERB)
}

/// Runs the guard until the runner closes its end of stdin's socket. Never returns before every descendant is dead.
pub fn main() -> ExitCode {
    // The note says in the run record what the guard had to kill.
    let note = std::env::args().next_back().unwrap_or_default();
    match serve() {
        Ok(()) => {}
        Err(e) => append(&note, &format!("guard: {e}")),
    }
    let killed = kill_everything();
    if killed > 0 {
        append(
            &note,
            &format!("guard: the runner is gone; killed {killed} process(es) that it left"),
        );
    }
    ExitCode::SUCCESS
}

fn append(note: &str, line: &str) {
    if let Ok(mut file) = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(note)
    {
        let _ = writeln!(file, "{line}");
    }
}

fn serve() -> std::io::Result<()> {
    let _ = setsid();
    for number in start::IGNORED {
        unsafe { signal(Signal::try_from(number)?, SigHandler::SigIgn) }?;
    }
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    // The runner blocks its stop signals in all threads, and a mask is inherited.
    set.thread_set_mask()?;
    let ended = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    // Stdin is the socket; move it off descriptor 0 so that no child inherits it.
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;

    let mut ranks: HashMap<i32, Rank> = HashMap::new();
    loop {
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        let asked = ready[0].revents().is_some_and(|r| !r.is_empty());
        while let Ok(Some(_)) = ended.read_signal() {}
        for (pid, exit) in reap() {
            if let Some(Rank { id, gang, last }) = ranks.remove(&pid) {
                // A rank's own group goes with it; those who left the group are swept when all ranks have ended.
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
                let swept = if last { sweep(&gang, &ranks) } else { 0 };
                wire::send(&socket, &Reply::Exited { id, exit, swept }, &[])?;
            }
        }
        if asked {
            let Some((request, fds)) = wire::receive::<Request>(&socket)? else {
                return Ok(());
            };
            answer(&socket, request, fds, &mut ranks)?;
        }
    }
}

/// A process that was asked for.
struct Rank {
    id: u64,
    gang: String,
    /// The gang has no other: what it leaves is swept as soon as it ends.
    last: bool,
}

fn answer(
    socket: &UnixStream,
    request: Request,
    fds: Vec<OwnedFd>,
    ranks: &mut HashMap<i32, Rank>,
) -> std::io::Result<()> {
    match request {
        Request::Spawn {
            id,
            program,
            args,
            cwd,
            clear_env,
            unset,
            env,
            gang,
            alone,
        } => {
            let mut all: BTreeMap<OsString, OsString> = match clear_env {
                true => BTreeMap::new(),
                false => std::env::vars_os().collect(),
            };
            for name in unset {
                all.remove(OsStr::new(&name));
            }
            all.extend(env.into_iter().map(|(k, v)| (k.into(), v.into())));
            all.insert(process::GANG.into(), gang.clone().into());
            let mut fds = fds.into_iter();
            let (Some(stdout), Some(stderr)) = (fds.next(), fds.next()) else {
                return wire::send(
                    socket,
                    &Reply::NotStarted {
                        id,
                        message: "no descriptors came along".into(),
                        errno: None,
                    },
                    &[],
                );
            };
            let start = start::Start {
                program,
                args,
                cwd,
                env: all,
                stdin: std::fs::File::open("/dev/null")?.into(),
                stdout,
                stderr,
            };
            match start.start() {
                Ok(pid) => {
                    let last = alone;
                    ranks.insert(pid, Rank { id, gang, last });
                    Ok(())
                }
                Err(e) => {
                    let refused = Reply::NotStarted {
                        id,
                        message: e.to_string(),
                        errno: e.raw_os_error(),
                    };
                    wire::send(socket, &refused, &[])
                }
            }
        }
        Request::Signal { id, signal } => {
            if let (Some((pid, _)), Ok(signal)) = (
                ranks.iter().find(|(_, rank)| rank.id == id),
                Signal::try_from(signal),
            ) {
                let _ = killpg(Pid::from_raw(*pid), signal);
            }
            Ok(())
        }
        Request::Sweep { id, gang } => {
            let killed = sweep(&gang, ranks);
            wire::send(socket, &Reply::Swept { id, killed }, &[])
        }
    }
}

/// Kills what a finished gang left. A process that hid its gang's name is taken too when no other gang runs.
fn sweep(gang: &str, ranks: &HashMap<i32, Rank>) -> usize {
    let start = Instant::now();
    let mut killed = std::collections::HashSet::new();
    loop {
        let mut left = Vec::new();
        for pid in process::children(std::process::id() as i32) {
            if ranks.contains_key(&pid) {
                continue;
            }
            let of = process::gang(pid);
            if of.as_deref() == Some(gang) || (of.is_none() && ranks.is_empty()) {
                left.extend(process::tree(pid));
            }
        }
        if left.is_empty() || start.elapsed() > Duration::from_secs(10) {
            return killed.len();
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            // Only its own pid is waited for: a rank's exit must reach the main loop.
            if unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } != pid {
                std::thread::sleep(Duration::from_millis(1));
            }
            killed.insert(pid);
        }
    }
}

/// SIGKILLs every descendant until none is left; returns how many there were.
fn kill_everything() -> usize {
    let mut killed = std::collections::HashSet::new();
    loop {
        let below: Vec<i32> = process::tree(std::process::id() as i32).split_off(1);
        for pid in &below {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            killed.insert(*pid);
        }
        let reaped = reap();
        if below.is_empty() && reaped.is_empty() {
            return killed.len();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Collects every child that has ended, with its resource use.
fn reap() -> Vec<(i32, Exit)> {
    let mut ended = Vec::new();
    loop {
        let mut status = 0;
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
        if pid <= 0 {
            return ended;
        }
        let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
        ended.push((
            pid,
            Exit {
                code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
                signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
                cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
                max_rss: usage.ru_maxrss as u64 * 1024,
            },
        ));
    }
}

/// An anonymous pipe, both ends close-on-exec: (read, write).
pub(crate) fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}
