//! The connection of a process to all others.

use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use torch::dist::Store;

use super::Counts;
use crate::Error;

/// Ports below those that Linux gives to sockets which name none (`ip_local_port_range`).
const PORTS: std::ops::Range<u16> = 20_000..32_768;

/// A port of the loopback at which ranks can meet: none that a connection takes by itself before rank 0 listens, and
/// never one that this process was given before.
///
/// # Errors
/// All of them are in use.
pub fn free_port() -> io::Result<u16> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let span = PORTS.len() as u32;
    // processes that start together look in different places
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
    Err(last)
}

/// The connection of one process to all others: groups are made over it.
pub struct Net {
    pub(super) store: Store,
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) deadline: Duration,
    pub(super) counts: Counts,
    /// Collectives that failed so far.
    pub(super) failures: Cell<u64>,
    /// Check shapes on every call, not on the first of each phase and shape only.
    pub(super) check_all: bool,
}

impl Net {
    /// Joins the store that rank 0 serves at `addr:port`. `deadline` bounds the meeting and every
    /// later wait.
    ///
    /// # Errors
    /// Who did not come by the deadline.
    pub fn join(
        rank: usize,
        size: usize,
        addr: &str,
        port: u16,
        deadline: Duration,
    ) -> Result<Rc<Net>, Error> {
        let store = Store::connect(addr, port, rank == 0, size, deadline).map_err(|e| {
            Error::Collective {
                rank,
                size,
                collective: "join".into(),
                phase: "start".into(),
                reason: e.to_string(),
            }
        })?;
        Ok(Rc::new(Net {
            store,
            rank,
            size,
            deadline,
            counts: Counts::default(),
            failures: Cell::new(0),
            check_all: std::env::var_os("RECIPE_CHECK_COLLECTIVES").is_some_and(|v| v != "0"),
        }))
    }

    /// This process among all, `0..size`.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes in all.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How long any wait may take.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// What went through the groups made over this connection.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// The same number on all ranks for the same texts (FNV-1a).
pub(super) fn hash(one: &str, other: &str) -> i64 {
    let bytes = one.bytes().chain([0]).chain(other.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    }) as i64
}
