//! A remote store behind a local one: what the local one lacks is looked for there, and what is
//! published here is sent there.
//!
//! | stored | where | why |
//! |---|---|---|
//! | a result that came from behind | `results/<key>/<n>`, claimed like any other | asked for once |
//! | its blobs | where blobs lie, when somebody reads them | what nobody reads is never fetched |
//! | what is still to be sent | `local/unsent/<key>` | a push that failed is made up for by the next run |
//! | a transfer that was killed | `local/partial/<digest>`, `local/transfers/<name>` | the next goes on from there |
//!
//! The local store alone decides who computes: two machines with stores of their own may compute
//! the same stage at the same time, and the first to send wins there. Machines that must not do so
//! share one store (`--store s3://..`).

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::blobs::{Found, path_of};
use crate::error::{Error, Result};
use crate::local::set_mode;
use crate::protocol::{Claimed, Published};
use crate::record::{Reason, ResultRecord};
use crate::store::Store;
use crate::tree::{Intact, parallel};
use crate::{Digest, Key};

/// Blobs sent or fetched at once; each large one is cut into pieces that travel side by side.
const WIDTH: usize = 4;

/// What [`Store::set_behind`] was given.
pub(crate) struct Behind {
    pub store: Store,
    /// Send what is published.
    push: bool,
    /// One push at a time: they share one line.
    pushing: Mutex<()>,
    /// Pushes that began while a run went on.
    begun: Mutex<Vec<JoinHandle<()>>>,
}

/// What sending a result came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is there now; so many bytes of blobs were sent for it.
    Sent { bytes: u64 },
    /// A result of that key was there.
    There,
    /// Somebody computes it there right now.
    Busy,
}

impl Store {
    /// Puts `remote`, which may be another local one, behind this local store. `push`: send what is published; see
    /// [`Store::push`].
    pub fn set_behind(&mut self, remote: Store, push: bool) -> Result<()> {
        if self.local.is_none() {
            return Err(Error::BadUrl {
                url: remote.url().to_owned(),
                why: "a store lies behind a local one, not behind a remote one".into(),
            });
        }
        self.behind = Some(Arc::new(Behind {
            store: remote,
            push,
            pushing: Mutex::default(),
            begun: Mutex::default(),
        }));
        Ok(())
    }

    /// The store behind this one.
    pub fn behind(&self) -> Option<&Store> {
        Some(&self.behind.as_ref()?.store)
    }

    /// Looks for a result behind and takes it over, without its blobs.
    pub(crate) fn pull_result(&self, key: &Key) -> Result<Option<(u32, ResultRecord)>> {
        let Some(behind) = self.behind() else {
            return Ok(None);
        };
        let Some((attempt, record)) = behind.current(key)? else {
            return Ok(None);
        };
        if !behind.has_outputs(&record)? {
            return Ok(None);
        }
        let owner = format!("a copy of attempt {attempt} in {}", behind.url());
        match self.claim(key, Reason::Copied, &owner)? {
            Claimed::Done { attempt, record } => Ok(Some((attempt, *record))),
            // who computes it here need not be disturbed
            Claimed::Busy { .. } => Ok(None),
            Claimed::Claimed(claim) => {
                let n = claim.attempt;
                match self.publish_here(&claim, &record, true)? {
                    Published::Published => Ok(Some((n, record))),
                    _ => Ok(None),
                }
            }
        }
    }

    fn has_outputs(&self, record: &ResultRecord) -> Result<bool> {
        for artifact in record.outputs.values() {
            if !self.artifact_intact(artifact)?.is_yes() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fetches a blob from behind in the place of what is here: false when it is not there either.
    pub(crate) fn pull_blob(&self, digest: &Digest) -> Result<bool> {
        let (Some(behind), Some(local)) = (self.behind(), &self.local) else {
            return Ok(false);
        };
        let folder = local.root().join("local/partial");
        let placed = behind.fetch_resumed(digest, &folder, |part| {
            let temporary = local.temporary()?;
            set_mode(part, 0o444).map_err(Error::io("protect", part))?;
            crate::local::with_parent(&temporary.path, || std::fs::rename(part, &temporary.path))
                .map_err(Error::io("move", part))?;
            let file = File::open(&temporary.path).map_err(Error::io("open", &temporary.path))?;
            self.place(file, temporary, *digest)
        });
        match placed {
            Ok(()) => Ok(true),
            Err(Error::Missing { .. } | Error::Corrupt { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// What is not right here may be right behind: then it can be served.
    pub(crate) fn or_behind(&self, here: Intact) -> Result<Intact> {
        let (Some(behind), Intact::Missing { digest } | Intact::Corrupt { digest, .. }) =
            (self.behind(), &here)
        else {
            return Ok(here);
        };
        match behind.look(digest, false)? {
            Found::Good(_) => Ok(Intact::Yes),
            _ => Ok(here),
        }
    }

    /// Brings everything of an artifact here from behind: bytes fetched.
    pub fn pull(&self, artifact: &Digest) -> Result<u64> {
        let manifest = self.manifest(artifact)?;
        let fetched = parallel(&manifest.files, WIDTH, |file| {
            if matches!(self.look(&file.blob, self.paranoid)?, Found::Good(_)) {
                return Ok(0);
            }
            self.demand(&file.blob)
        })?;
        Ok(fetched.into_iter().sum())
    }

    /// Sends the current result of `key` to the store behind: blobs, manifests, then the result.
    /// What is there already, as far as its size tells, is not sent again. Nothing happens where no
    /// store lies behind or no result is here.
    pub fn push(&self, key: &Key) -> Result<Option<Pushed>> {
        let (Some(behind), Some((attempt, record))) = (self.behind(), self.current_here(key)?)
        else {
            return Ok(None);
        };
        if let Some((_, there)) = behind.current(key)?
            && behind.has_outputs(&there)?
        {
            return Ok(Some(Pushed::There));
        }
        let mut bytes = 0;
        let steps = match &record.steps {
            // what is lost of the steps keeps nothing else from being sent
            Some(steps) if self.artifact_intact(steps)?.is_yes() => Some(steps),
            _ => None,
        };
        for artifact in record.outputs.values().chain(steps) {
            let manifest = self.manifest(artifact)?;
            let sent = parallel(&manifest.files, WIDTH, |file| self.push_blob(&file.blob))?;
            // the manifest last: it says that its files are there
            bytes += sent.into_iter().sum::<u64>() + self.push_blob(artifact)?;
        }
        let owner = format!("a copy of attempt {attempt} elsewhere");
        let mut claimed = behind.claim(key, Reason::Copied, &owner)?;
        loop {
            claimed = match claimed {
                // what is there cannot be served, as was seen above
                Claimed::Done { attempt, .. } => match behind.repair(key, attempt, &owner)? {
                    Claimed::Done { .. } => return Ok(Some(Pushed::There)),
                    other => other,
                },
                // another's copy takes a moment, or its sender was killed
                Claimed::Busy {
                    attempt,
                    owner: other,
                } if other.reason == Reason::Copied => {
                    let mut watch = behind.watch(key, attempt, &other);
                    match watch.wait()? {
                        None => behind.claim(key, Reason::Copied, &owner)?,
                        Some(why) => behind.takeover(key, attempt, &why, &owner)?,
                    }
                }
                Claimed::Busy { .. } => return Ok(Some(Pushed::Busy)),
                Claimed::Claimed(claim) => {
                    return Ok(Some(match behind.publish(&claim, &record)? {
                        Published::Published => Pushed::Sent { bytes },
                        _ => Pushed::There,
                    }));
                }
            };
        }
    }

    fn push_blob(&self, digest: &Digest) -> Result<u64> {
        let (Some(behind), path) = (self.behind(), path_of(digest)) else {
            return Ok(0);
        };
        let size = self.demand(digest)?;
        if behind.look(digest, false)? == Found::Good(size) {
            return Ok(0);
        }
        let at = self.backend.file(&path).expect("a local store has files");
        behind.mark_format()?;
        behind.backend.put_from(&path, &at)?;
        Ok(size)
    }

    fn pushes(&self) -> Option<&Arc<Behind>> {
        self.behind.as_ref().filter(|behind| behind.push)
    }

    /// Remembers that a result is to be sent, before it is there.
    pub(crate) fn note_pending(&self, key: &Key) -> Result<()> {
        match self.pushes() {
            Some(_) => self.backend.put(&format!("local/unsent/{key}"), b""),
            None => Ok(()),
        }
    }

    /// Sends a result while the run goes on. What fails is tried again by [`Store::flush`].
    pub(crate) fn push_soon(&self, key: &Key) {
        if let Some(behind) = self.pushes() {
            let (store, key) = (self.clone(), *key);
            let push = std::thread::spawn(move || drop(store.push_noted(&key)));
            let mut begun = behind.begun.lock().unwrap_or_else(PoisonError::into_inner);
            begun.retain(|push| !push.is_finished());
            begun.push(push);
        }
    }

    fn push_noted(&self, key: &Key) -> Result<()> {
        let Some(behind) = self.pushes() else {
            return Ok(());
        };
        let _one = behind
            .pushing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let note = format!("local/unsent/{key}");
        // another thread may have been faster
        if self.backend.size(&note)?.is_some() && self.push(key)? != Some(Pushed::Busy) {
            self.backend.delete(&note)?;
        }
        Ok(())
    }

    /// Sends what was published and is not there yet, by this run or by earlier ones.
    pub(crate) fn push_pending(&self) -> Result<()> {
        let Some(behind) = self.pushes() else {
            return Ok(());
        };
        let mut begun = behind.begun.lock().unwrap_or_else(PoisonError::into_inner);
        for push in begun.drain(..) {
            let _ = push.join();
        }
        for name in self.backend.children("local/unsent")? {
            if let Ok(key) = name.parse() {
                self.push_noted(&key)?;
            }
        }
        Ok(())
    }
}
