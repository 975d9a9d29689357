//! Pins: names that keep artifacts from being collected.
//!
//! | stored | where | why |
//! |---|---|---|
//! | pin | `pins/<name>` | an artifact that no collection may remove; replaced when it is pinned again |
//! | move | `pins/<name>@<n>` | the nth run that a pin was moved to; created once, so the history only grows |
//!
//! A name is one or the other. Every move's own artifact stays, since bounds are taken from the whole history; what the
//! run made stays for the last move alone.

use crate::Digest;
use crate::error::{Error, Result};
use crate::record::{Envelope, Move};
use crate::runs::check_name;
use crate::store::Store;

impl Store {
    /// Keeps an artifact under a name, which moves if it exists. The artifact must be in the store.
    pub fn pin(&self, name: &str, artifact: &Digest) -> Result<()> {
        check_name("pin", name)?;
        self.refuse_moved(name)?;
        self.manifest(artifact)?;
        self.mark_format()?;
        let pin = Envelope::Pin {
            name: name.to_owned(),
            artifact: *artifact,
        };
        self.backend.put(&format!("pins/{name}"), &pin.encode())
    }

    /// Removes a pin: false when there was none.
    pub fn unpin(&self, name: &str) -> Result<bool> {
        check_name("pin", name)?;
        self.refuse_moved(name)?;
        self.backend.delete(&format!("pins/{name}"))
    }

    /// Moves a pin to a run: adds to its history, and gives the move its number. Of two at once
    /// both are added, one after the other.
    pub fn move_pin(&self, mut to: Move) -> Result<Move> {
        let name = to.name.clone();
        check_name("pin", &name)?;
        if self.backend.size(&format!("pins/{name}"))?.is_some() {
            return Err(Error::BadName {
                what: "pin",
                name,
                why: "it is pinned to an artifact: choose another name, or unpin it first",
            });
        }
        self.manifest(&to.artifact)?;
        self.mark_format()?;
        to.number = self.moves(&name)?.last().map_or(0, |last| last.number) + 1;
        loop {
            let path = format!("pins/{name}@{}", to.number);
            let bytes = Envelope::Move(to.clone()).encode();
            if self
                .create(&path, &bytes, true, |there| there == bytes)?
                .is_none()
            {
                return Ok(to);
            }
            to.number += 1;
        }
    }

    /// The runs that a pin was moved to, the first first; none where there is no such pin.
    pub fn moves(&self, name: &str) -> Result<Vec<Move>> {
        check_name("pin", name)?;
        let all = self.backend.children("pins")?;
        let mine = all
            .iter()
            .filter(|at| at.rsplit_once('@').is_some_and(|(n, _)| n == name));
        let mut moves = Vec::new();
        for at in mine {
            moves.extend(self.read_move(at)?);
        }
        moves.sort_by_key(|m| m.number);
        Ok(moves)
    }

    /// All pins and what they stand for, sorted by name.
    pub fn pins(&self) -> Result<Vec<(String, Digest)>> {
        let mut pins = std::collections::BTreeMap::new();
        for at in self.backend.children("pins")? {
            if at.contains('@') {
                let Some(found) = self.read_move(&at)? else {
                    continue;
                };
                let last = pins.entry(found.name).or_insert((0, found.artifact));
                if found.number > last.0 {
                    *last = (found.number, found.artifact);
                }
                continue;
            }
            let path = format!("pins/{at}");
            let Some(bytes) = self.backend.get(&path)? else {
                continue;
            };
            let digest = read_pin(&at, &bytes).map_err(|why| self.corrupt(&path, why))?;
            pins.insert(at, (0, digest));
        }
        Ok(pins
            .into_iter()
            .map(|(name, (_, artifact))| (name, artifact))
            .collect())
    }

    /// The last move of every pin that has any, and the artifacts of all moves.
    pub(crate) fn moved(&self) -> Result<(Vec<Move>, Vec<Digest>)> {
        let mut last = std::collections::BTreeMap::<String, Move>::new();
        let mut all = Vec::new();
        for at in self.backend.children("pins")? {
            let Some(found) = at
                .contains('@')
                .then(|| self.read_move(&at))
                .transpose()?
                .flatten()
            else {
                continue;
            };
            all.push(found.artifact);
            let later = last
                .get(&found.name)
                .is_none_or(|l| l.number < found.number);
            if later {
                last.insert(found.name.clone(), found);
            }
        }
        Ok((last.into_values().collect(), all))
    }

    fn read_move(&self, at: &str) -> Result<Option<Move>> {
        let path = format!("pins/{at}");
        let Some(bytes) = self.backend.get(&path)? else {
            return Ok(None);
        };
        read_move(at, &bytes)
            .map(Some)
            .map_err(|why| self.corrupt(&path, why))
    }

    /// A pin with a history is moved, never replaced or removed.
    fn refuse_moved(&self, name: &str) -> Result<()> {
        if self.moves(name)?.is_empty() {
            return Ok(());
        }
        Err(Error::BadName {
            what: "pin",
            name: name.to_owned(),
            why: "it is a baseline, whose history stays: `recipe baseline accept` moves it",
        })
    }
}

/// Reads a pin; says why it does not verify here.
pub(crate) fn read_pin(at: &str, bytes: &[u8]) -> Result<Digest, String> {
    match Envelope::decode(bytes)? {
        Envelope::Pin { name, artifact } if name == at => Ok(artifact),
        _ => Err("it belongs to another place".into()),
    }
}

/// Reads a pin's move, the same way.
pub(crate) fn read_move(at: &str, bytes: &[u8]) -> Result<Move, String> {
    match Envelope::decode(bytes)? {
        Envelope::Move(m) if at == format!("{}@{}", m.name, m.number) => Ok(m),
        _ => Err("it belongs to another place".into()),
    }
}
