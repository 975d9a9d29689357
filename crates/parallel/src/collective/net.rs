//! The connection of a process to all others.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use torch::dist::Store;

use super::Counts;
use crate::Error;

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
