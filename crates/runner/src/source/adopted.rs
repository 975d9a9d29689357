//! What was made elsewhere and brought in by `recipe adopt`: an artifact with a statement of who brought
//! it, where it is from and why.
//!
//! | stored | where | why |
//! |---|---|---|
//! | files and manifest | blobs | as any artifact |
//! | the statement | the result of a key made from the artifact's digest | found by digest, sent and fetched like results; a later statement is the next attempt |
//! | a pin | `pins/adopted-<12 hex>` | no recipe makes it again, so no collection may remove it |

use std::path::Path;

use cache::{Claimed, Digest, Ingest, Key, Manifest, Published, Reason, ResultRecord, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::files;
use crate::clock;
use crate::error::{Class, Error};

/// Who brought an artifact in, from where, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adoption {
    /// A person or a job, as they name themselves.
    pub by: String,
    /// Where it was made or taken from: a URL, a path, words.
    pub from: String,
    pub why: String,
    /// When, as `2026-01-31T12:00:00.000Z`.
    pub at: String,
}

/// The output's name in the statement's record.
const ARTIFACT: &str = "artifact";

impl Adoption {
    pub fn new(by: &str, from: &str, why: &str) -> Adoption {
        Adoption {
            by: by.to_owned(),
            from: from.to_owned(),
            why: why.to_owned(),
            at: clock::now(),
        }
    }

    /// The latest statement about an artifact.
    pub fn of(store: &Store, artifact: &Digest) -> Result<Option<Adoption>, Error> {
        let (key, _) = key(artifact);
        let found = store.current(&key)?;
        Ok(found
            .and_then(|(_, record)| serde_json::from_value(Value::Object(record.provenance)).ok()))
    }
}

fn key(artifact: &Digest) -> (Key, String) {
    let preimage = json!({ "adopted": artifact.hex(), "version": 1 }).to_string();
    (Digest::of(preimage.as_bytes()), preimage)
}

/// Puts a file or directory into the store with a statement; its digest is the one that a `path` source
/// of the same content has.
pub fn adopt(store: &Store, path: &Path, adoption: &Adoption) -> Result<(Digest, Manifest), Error> {
    let _keep = store.keep_blobs()?;
    let (artifact, manifest) = put(store, path)?;
    let (key, preimage) = key(&artifact);
    let provenance = match json!(adoption) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let record = ResultRecord {
        preimage,
        outputs: [(ARTIFACT.to_owned(), artifact)].into(),
        provenance,
        ..ResultRecord::default()
    };
    let owner = format!("adopted by {}", adoption.by);
    let mut claimed = store.claim(&key, Reason::First, &owner)?;
    if let Claimed::Done { .. } = claimed {
        claimed = store.claim(&key, Reason::Forced, &owner)?;
    }
    let published = match claimed {
        Claimed::Claimed(claim) => store.publish(&claim, &record)?,
        Claimed::Busy { .. } | Claimed::Done { .. } => Published::Sealed {
            why: "another process adopts it right now".to_owned(),
        },
    };
    if !matches!(published, Published::Published) {
        return Err(Error::Source {
            name: artifact.short(),
            message: format!("another process adopts '{}' right now", path.display()),
            class: Class::Infra,
            help: Some("try again".to_owned()),
        });
    }
    store.pin(&format!("adopted-{}", artifact.short()), &artifact)?;
    store.flush()?;
    Ok((artifact, manifest))
}

fn put(store: &Store, path: &Path) -> Result<(Digest, Manifest), Error> {
    let io = |what, source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    };
    let meta = std::fs::metadata(path).map_err(|e| io("cannot read", e))?;
    if meta.is_dir() {
        return Ok(store.put_source(path)?);
    }
    // under the name that a single file has in every artifact
    let dir = tempfile::tempdir().map_err(|source| Error::System {
        what: "cannot make a temporary directory",
        source,
    })?;
    let to = dir.path().join(files::file_entry(path));
    std::fs::copy(path, &to).map_err(|e| io("cannot copy", e))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&to, mode).map_err(|e| io("cannot copy", e))?;
    Ok(store.put_tree(dir.path(), Ingest::Move)?)
}

/// Refuses an artifact that the store does not have, or that nobody has made a statement about.
pub fn check(store: &Store, name: &str, artifact: &Digest) -> Result<(), Error> {
    let what = if !store.artifact_intact(artifact)?.is_yes() {
        "is not in the store, or damaged"
    } else if Adoption::of(store, artifact)?.is_none() {
        "was not adopted"
    } else {
        return Ok(());
    };
    Err(Error::Source {
        name: name.to_owned(),
        message: format!("artifact {} {what}", artifact.short()),
        class: Class::Config,
        help: Some(
            "bring it in with `recipe adopt`, or name the store that has it with --remote".into(),
        ),
    })
}
