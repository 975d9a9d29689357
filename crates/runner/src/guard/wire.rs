//! What runner and guard say to one another over a Unix stream socket.
//!
//! A message is an 8-byte little-endian length and JSON of that length. The file descriptors that a [`Request::Spawn`]
//! hands over ride on the length.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start a process; two descriptors come along: its stdout and stderr.
    Spawn {
        id: u64,
        program: String,
        args: Vec<String>,
        cwd: String,
        /// Start from an empty environment instead of the runner's.
        clear_env: bool,
        unset: Vec<String>,
        env: Vec<(String, String)>,
        /// Names the gang in the environment of all its processes.
        gang: String,
        /// The gang has no other process: it is swept when this one ends.
        alone: bool,
    },
    /// Signal the process and its group.
    Signal { id: u64, signal: i32 },
    /// Kill what the gang left behind once its processes have ended.
    Sweep { id: u64, gang: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    NotStarted {
        id: u64,
        message: String,
        /// The system's error number, if it is the system that refused.
        errno: Option<i32>,
    },
    Exited {
        id: u64,
        exit: Exit,
        /// Processes that it left behind, which were killed; of a process that is alone in its gang.
        swept: usize,
    },
    Swept {
        id: u64,
        killed: usize,
    },
}

impl Reply {
    pub fn id(&self) -> u64 {
        match self {
            Reply::NotStarted { id, .. } | Reply::Exited { id, .. } | Reply::Swept { id, .. } => {
                *id
            }
        }
    }
}

/// How a process ended and what it used, its reaped children included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub cpu_seconds: f64,
    /// Largest resident set in bytes.
    pub max_rss: u64,
}

pub fn send<T: Serialize>(
    mut socket: &UnixStream,
    message: &T,
    fds: &[BorrowedFd],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let head = (body.len() as u64).to_le_bytes();
    let raw: Vec<i32> = fds.iter().map(|f| f.as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &control[..0]
    } else {
        &control[..]
    };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&head)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    socket.write_all(&head[sent..])?;
    socket.write_all(&body)
}

/// The next message and its descriptors; `None` at the end of the stream.
pub fn receive<T: DeserializeOwned>(
    mut socket: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0u8; 8];
    let mut fds = Vec::new();
    let mut space = nix::cmsg_space!([i32; 4]);
    let got = {
        let mut iov = [IoSliceMut::new(&mut head)];
        let message = loop {
            match recvmsg::<()>(
                socket.as_raw_fd(),
                &mut iov,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            ) {
                Err(nix::Error::EINTR) => continue,
                other => break other?,
            }
        };
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // The kernel made these descriptors for us alone.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        message.bytes
    };
    if got == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut head[got..])?;
    let mut body = vec![0u8; u64::from_le_bytes(head) as usize];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}
