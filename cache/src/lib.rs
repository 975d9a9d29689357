//! The artifact store: what was computed, from what, and by whom. A local directory by default, any
//! object store by URL. The calls are blocking; a local store starts no thread and no runtime.
//!
//! | object | what | why | module |
//! |---|---|---|---|
//! | `blobs/<2 hex>/<64 hex>` | immutable content | named by blake3: cannot be stale | `blobs` |
//! | (a blob) | manifest | an artifact's files; its digest names them all | `manifest`, `tree` |
//! | `claims/<key>/<n>` | who may compute attempt n, and why | created once | `protocol` |
//! | `beats/<key>/<n>` | heartbeat | tells that the owner lives | `lock` |
//! | `results/<key>/<n>` | result, or a seal | created once: an orphan cannot publish | `protocol` |
//! | `checkpoints/<key>/<n>/<step>` | a committed step | resume | `checkpoints` |
//! | `runs/<id>/..` | records | for people | `runs` |
//! | `pins/<name>`, `pins/<name>@<n>` | pins, and the runs that one was moved to | kept from collections | `pins` |
//! | `format` | the layout's version | a later program can tell | `store` |
//! | `local/..` | hash cache, what runs asked, locks, temporary files | local stores only | `hashcache`, `view`, `local` |
//!
//! What keeps it from lying: records carry their own digest and place; content is named by digest
//! and looked at before it is served; an attempt ends by one create-if-absent, which either its
//! owner or who takes over wins. Nothing compares clocks of machines.
//!
//! ```
//! # fn main() -> cache::Result<()> {
//! use cache::{Claimed, Digest, Ingest, Link, Published, Reason, ResultRecord, Store};
//! # let folder = tempfile::tempdir().unwrap();
//! # let (out, to) = (folder.path().join("out"), folder.path().join("to"));
//! # std::fs::create_dir(&out).unwrap();
//! # std::fs::write(out.join("model.safetensors"), b"weights").unwrap();
//! let store = Store::open(folder.path().join("store").to_str().unwrap())?;
//! let preimage = "what the result depends on".to_owned();
//! let key = Digest::of(preimage.as_bytes());
//! let Claimed::Claimed(claim) = store.claim(&key, Reason::First, "me")? else { panic!() };
//! let (artifact, _) = store.put_tree(&out, Ingest::Move)?;
//! let outputs = [("model".to_owned(), artifact)].into();
//! let record = ResultRecord { preimage, outputs, ..Default::default() };
//! assert_eq!(store.publish(&claim, &record)?, Published::Published);
//!
//! let (attempt, record) = store.current(&key)?.expect("it was published");
//! assert!(attempt == 1 && store.artifact_intact(&record.outputs["model"])?.is_yes());
//! store.materialize(&artifact, &to, Link::Reflink)?;
//! # assert_eq!(std::fs::read(to.join("model.safetensors")).unwrap(), b"weights");
//! # Ok(()) }
//! ```

mod backend;
mod behind;
mod blobs;
mod checkpoints;
mod digest;
mod error;
mod gc;
mod hashcache;
mod keep;
mod local;
mod lock;
mod manifest;
mod memo;
mod pins;
mod protocol;
mod record;
mod remote;
mod repair;
mod runs;
mod stat;
mod store;
mod tree;
mod verify;
mod view;

pub use backend::{Backend, Each, Listed, Observer, Progress};
pub use behind::Pushed;
pub use blobs::Ingest;
pub use digest::{Digest, Key};
pub use error::{Class, Error, Result};
pub use gc::{Collected, Gc};
pub use hashcache::{FileId, HashCache};
pub use keep::Keep;
pub use local::Local;
pub use lock::{Heart, Liveness, Watch};
pub use manifest::{Entry, Manifest};
pub use memo::Brief;
pub use protocol::{Claim, Claimed, Published, Sealing};
pub use record::{Checkpoint, ClaimRecord, Cost, Ending, Move, Reason, ResultRecord};
pub use remote::Remote;
pub use repair::{Healed, Repaired};
pub use stat::{Count, Stat};
pub use store::Store;
pub use tree::{Intact, Link};
pub use verify::{Problem, ProblemKind, Report};
pub use view::View;

/// 128 random bits as hexadecimal digits: a name that nobody else has.
fn nonce() -> String {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer is as long as said.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, 16, "the kernel has random bits once it has booted");
    format!("{:032x}", u128::from_le_bytes(bytes))
}

/// Names this machine since it booted: file locks are seen by all that share it.
fn machine() -> &'static str {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.map_or_else(|_| nonce(), |id| id.trim().to_owned())
    })
}
