//! Ranks as processes of this machine, children of the guard.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::{Gang, GangSpec, Happening, Launcher};
use crate::error::{AttemptError, Class, Error};
use crate::guard::{Guard, Reply, Spawn, pipe};

struct Local {
    guard: Arc<Guard>,
}

pub fn new(guard: Arc<Guard>) -> Box<dyn Launcher> {
    Box::new(Local { guard })
}

struct LocalGang {
    guard: Arc<Guard>,
    name: String,
    ids: Vec<u64>,
    happenings: Receiver<Happening>,
}

impl Launcher for Local {
    fn launch(&self, spec: GangSpec) -> Result<Box<dyn Gang>, Error> {
        let (tell, happenings) = channel();
        // A command is not a rank of anything.
        let port = if spec.events {
            Some(free_port()?)
        } else {
            None
        };
        let mut gang = LocalGang {
            guard: self.guard.clone(),
            name: spec.name.clone(),
            ids: Vec::new(),
            happenings,
        };
        for rank in 0..spec.ranks {
            let log_path = rank_log(&spec.log, rank);
            let log = open_log(&log_path)?;
            let stdout = if spec.events {
                let (read, write) = pipe().map_err(|source| Error::System {
                    what: "cannot make a pipe for a rank",
                    source,
                })?;
                read_lines(rank, read, log_path, tell.clone())?;
                write
            } else {
                OwnedFd::from(log.try_clone().map_err(|source| Error::Io {
                    what: "cannot open",
                    path: log_path,
                    source,
                })?)
            };
            let mut env = spec.env.clone();
            if let Some(port) = port {
                env.extend([
                    ("RANK".into(), rank.to_string()),
                    ("LOCAL_RANK".into(), rank.to_string()),
                    ("WORLD_SIZE".into(), spec.ranks.to_string()),
                    ("LOCAL_WORLD_SIZE".into(), spec.ranks.to_string()),
                    ("MASTER_ADDR".into(), "127.0.0.1".into()),
                    ("MASTER_PORT".into(), port.to_string()),
                ]);
            }
            let spawn = Spawn {
                program: spec.program.clone(),
                args: spec.args.clone(),
                cwd: spec.cwd.clone(),
                clear_env: spec.clear_env,
                unset: spec.unset.clone(),
                env,
                gang: spec.name.clone(),
                alone: spec.ranks == 1,
                stdout,
                stderr: OwnedFd::from(log),
            };
            let tell = tell.clone();
            let program = spec.program.display().to_string();
            let started = self.guard.spawn(
                spawn,
                Box::new(move |reply| {
                    let happening = match reply {
                        Some(Reply::Exited { exit, swept, .. }) => {
                            Happening::Ended { rank, exit, swept }
                        }
                        Some(Reply::NotStarted { message, errno, .. }) => Happening::Lost {
                            error: not_started(&program, &message, errno),
                        },
                        Some(Reply::Swept { .. }) => return,
                        None => Happening::Lost {
                            error: guard_gone(),
                        },
                    };
                    let _ = tell.send(happening);
                }),
            );
            match started {
                Ok(id) => gang.ids.push(id),
                Err(e) => {
                    gang.signal(libc::SIGKILL);
                    return Err(e);
                }
            }
        }
        Ok(Box::new(gang))
    }
}

/// A program that is not there, or may not be run, is the recipe's to put right; anything else is the
/// machine's.
fn not_started(program: &str, message: &str, errno: Option<i32>) -> AttemptError {
    let text = format!("cannot start '{program}': {message}");
    let help = match errno {
        Some(libc::ENOENT) if program.contains('/') => "name a program that exists in `cmd`",
        Some(libc::ENOENT) => "install it, or give its path in `cmd`",
        Some(libc::EACCES | libc::ENOEXEC) => {
            "make it executable, or run it by its interpreter: `cmd = [\"sh\", ..]`"
        }
        _ => return AttemptError::new(Class::Infra, text),
    };
    AttemptError {
        help: Some(help.into()),
        ..AttemptError::new(Class::Config, text)
    }
}

fn guard_gone() -> AttemptError {
    AttemptError::new(Class::Infra, "the guard process is gone")
}

impl Gang for LocalGang {
    fn next(&mut self, wait: Duration) -> Option<Happening> {
        match self.happenings.recv_timeout(wait) {
            Ok(happening) => Some(happening),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Happening::Lost {
                error: guard_gone(),
            }),
        }
    }

    fn signal(&mut self, signal: i32) {
        for id in &self.ids {
            // A guard that cannot be reached is reported by `next`.
            let _ = self.guard.signal(*id, signal);
        }
    }

    fn sweep(&mut self) -> usize {
        match self.ids.len() {
            // the guard did it when the process ended
            1 => 0,
            _ => self.guard.sweep(&self.name).unwrap_or(0),
        }
    }
}

/// Forwards lines until the last writer closes the pipe. Text that is no JSON object belongs in the log.
fn read_lines(
    rank: usize,
    from: OwnedFd,
    log: PathBuf,
    tell: Sender<Happening>,
) -> Result<(), Error> {
    std::thread::Builder::new()
        .name(format!("rank {rank}"))
        .spawn(move || {
            let mut lines = BufReader::new(File::from(from));
            let mut line = Vec::new();
            while matches!(lines.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                if line.first() == Some(&b'{') {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    let _ = tell.send(Happening::Line { rank, text });
                } else if let Ok(mut log) = open_log(&log) {
                    let _ = log.write_all(&line);
                }
                line.clear();
            }
            let _ = tell.send(Happening::Closed);
        })
        .map(drop)
        .map_err(|source| Error::System {
            what: "cannot start a rank's reader",
            source,
        })
}

fn open_log(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| Error::Io {
            what: "cannot open log",
            path: path.to_owned(),
            source,
        })
}

/// Where a rank logs.
pub fn rank_log(log: &Path, rank: usize) -> PathBuf {
    if rank == 0 {
        log.to_owned()
    } else {
        log.with_extension(format!("rank{rank}.log"))
    }
}

/// Ports below those that Linux gives to sockets which name none (`ip_local_port_range`).
const PORTS: std::ops::Range<u16> = 20_000..32_768;

/// A port that was free a moment ago, and that no connection takes by itself before rank 0 listens there. Should another
/// gang be faster, this one fails as infrastructure and is worth a retry.
fn free_port() -> Result<u16, Error> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let span = PORTS.len() as u32;
    // runners that start together look in different places
    let from = std::process::id().wrapping_mul(61);
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in PORTS {
        let at = from.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % span;
        let port = PORTS.start + at as u16;
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(e) => last = e,
        }
    }
    Err(Error::System {
        what: "cannot find a free port",
        source: last,
    })
}
