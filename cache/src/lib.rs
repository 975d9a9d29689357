//! The artifact store. (API sketch: bodies follow within the hour.)
mod digest;
mod error;
mod manifest;
mod record;
mod sketch;

pub use digest::{Digest, Key};
pub use error::{Class, Error, Result};
pub use manifest::{Entry, Manifest};
pub use record::{Checkpoint, ClaimRecord, Cost, Reason, ResultRecord};
pub use sketch::*;
