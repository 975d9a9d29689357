//! How much a store holds.

use crate::error::Result;
use crate::store::Store;

/// Counts and bytes of one kind of object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub objects: u64,
    pub bytes: u64,
}

/// What a store holds, by kind: the folders of its layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    pub kinds: Vec<(&'static str, Count)>,
}

impl Stat {
    /// One kind's count.
    pub fn kind(&self, name: &str) -> Count {
        self.kinds
            .iter()
            .find(|(kind, _)| *kind == name)
            .map(|(_, c)| *c)
            .unwrap_or_default()
    }

    /// All kinds together.
    pub fn total(&self) -> Count {
        self.kinds
            .iter()
            .fold(Count::default(), |sum, (_, c)| Count {
                objects: sum.objects + c.objects,
                bytes: sum.bytes + c.bytes,
            })
    }
}

impl Store {
    /// Objects and bytes of each kind. `local` is what is no object: the hash cache, locks, and
    /// what killed writers left behind (removed after a day).
    pub fn stat(&self) -> Result<Stat> {
        let mut stat = Stat::default();
        for kind in [
            "blobs",
            "claims",
            "beats",
            "results",
            "checkpoints",
            "runs",
            "pins",
            "local",
        ] {
            let mut count = Count::default();
            self.backend.list(kind, &mut |object| {
                count.objects += 1;
                count.bytes += object.size;
                Ok(())
            })?;
            stat.kinds.push((kind, count));
        }
        Ok(stat)
    }
}
