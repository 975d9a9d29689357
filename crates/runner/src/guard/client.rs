//! The runner's side of the guard.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::wire::{self, Reply, Request};
use crate::error::Error;

/// A process to start.
pub struct Spawn {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub cwd: PathBuf,
    pub clear_env: bool,
    pub unset: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Names the gang, uniquely in the run.
    pub gang: String,
    /// The gang has no other process.
    pub alone: bool,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Takes the reply to a request, or `None` should the guard die before.
pub type Route = Box<dyn FnOnce(Option<Reply>) + Send>;
type Routes = Arc<Mutex<HashMap<u64, Route>>>;

/// A running guard. Dropping it ends the guard, and every process that is left with it.
pub struct Guard {
    socket: Mutex<UnixStream>,
    routes: Routes,
    next: AtomicU64,
    child: Mutex<Child>,
}

impl Guard {
    /// Starts `program args.. note`, which must end in [`super::main`].
    pub fn start(program: &Path, args: &[String], note: &Path) -> Result<Guard, Error> {
        let system = |what| move |source| Error::System { what, source };
        let (ours, theirs) =
            UnixStream::pair().map_err(system("cannot make a socket for the guard"))?;
        let child = Command::new(program)
            .args(args)
            .arg(note)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(system("cannot start the guard"))?;
        let routes: Routes = Arc::default();
        let reader = ours
            .try_clone()
            .map_err(system("cannot clone the guard's socket"))?;
        let table = routes.clone();
        std::thread::Builder::new()
            .name("guard".into())
            .spawn(move || {
                while let Ok(Some((reply, _))) = wire::receive::<Reply>(&reader) {
                    let mut table = table.lock().unwrap_or_else(|e| e.into_inner());
                    // a process ends, or does not start: there is one reply to each request
                    if let Some(route) = table.remove(&reply.id()) {
                        route(Some(reply));
                    }
                }
                for (_, route) in table.lock().unwrap_or_else(|e| e.into_inner()).drain() {
                    route(None);
                }
            })
            .map_err(system("cannot start the guard's reader"))?;
        Ok(Guard {
            socket: Mutex::new(ours),
            routes,
            next: AtomicU64::new(1),
            child: Mutex::new(child),
        })
    }

    fn ask(&self, request: &Request, fds: &[OwnedFd]) -> Result<(), Error> {
        let socket = self.socket.lock().unwrap_or_else(|e| e.into_inner());
        let fds: Vec<_> = fds.iter().map(|f| f.as_fd()).collect();
        wire::send(&socket, request, &fds)
            .map_err(|e| Error::Guard(format!("cannot be reached: {e}")))
    }

    fn route(&self, to: Route) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.routes
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(id, to);
        id
    }

    /// Starts a process; how it ended, or why it did not start, goes to `to`. Returns its id.
    pub fn spawn(&self, spawn: Spawn, to: Route) -> Result<u64, Error> {
        let text = |p: PathBuf| {
            p.into_os_string()
                .into_string()
                .map_err(|p| Error::Guard(format!("path {p:?} is not UTF-8")))
        };
        let id = self.route(to);
        let request = Request::Spawn {
            id,
            program: text(spawn.program)?,
            args: spawn.args,
            cwd: text(spawn.cwd)?,
            clear_env: spawn.clear_env,
            unset: spawn.unset,
            env: spawn.env,
            gang: spawn.gang,
            alone: spawn.alone,
        };
        self.ask(&request, &[spawn.stdout, spawn.stderr])?;
        Ok(id)
    }

    /// Signals a process and its group; nothing happens when it has ended.
    pub fn signal(&self, id: u64, signal: i32) -> Result<(), Error> {
        self.ask(&Request::Signal { id, signal }, &[])
    }

    /// Kills what a gang left behind after its processes ended; returns how many there were.
    pub fn sweep(&self, gang: &str) -> Result<usize, Error> {
        let (to, from) = channel();
        let id = self.route(Box::new(move |reply| {
            let _ = to.send(reply);
        }));
        self.ask(
            &Request::Sweep {
                id,
                gang: gang.into(),
            },
            &[],
        )?;
        match from.recv_timeout(Duration::from_secs(30)) {
            Ok(Some(Reply::Swept { killed, .. })) => Ok(killed),
            _ => Err(Error::Guard("does not answer".into())),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let socket = self.socket.lock().unwrap_or_else(|e| e.into_inner());
        let _ = socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.lock().unwrap_or_else(|e| e.into_inner()).wait();
    }
}
