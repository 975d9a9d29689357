//! A run's view of a store: many questions at once, and answers that are remembered.
//!
//! | stored | where | why |
//! |---|---|---|
//! | what a run asked last time | `local/memory/<16 hex of its name>`; for a remote store below the user's cache | a run that finds all done reads one file, not thousands |
//!
//! What is remembered of a result counts while the stats of its folder and its file are those of
//! when it was read (the folder tells of new attempts, the file of damage), with the racy-clean rule
//! of [`crate::hashcache`]. On a remote store it counts while a listing has its attempt as the
//! highest: records are created once and never change. What is remembered of an artifact is which
//! blobs it has; each of them is looked at every time.
//!
//! What a view was asked for is not collected while it lives (see [`crate::keep`]).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::blobs::{Found, path_of};
use crate::error::Result;
use crate::hashcache::FileId;
use crate::keep::{InUse, Keep};
use crate::local::replace_file;
use crate::memo::{Blobs, Brief, Memo, Met};
use crate::protocol::{number, result_path};
use crate::record::ResultRecord;
use crate::store::Store;
use crate::tree::{Intact, parallel};
use crate::{Digest, Key};

/// Objects in a page of a remote listing, about.
const PAGE: usize = 1000;
/// Fewer questions than this are asked one by one.
const FEW: usize = 8;

/// See [`Store::view`]. Threads may share it.
pub struct View {
    store: Store,
    file: Option<PathBuf>,
    /// The same of the store behind.
    behind: Option<Box<View>>,
    /// How many results it will be asked for, about.
    expected: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    loaded: bool,
    memo: Memo,
    /// Asked for in this run.
    asked: HashSet<Digest>,
    /// Published in this run: looked at when the view is saved.
    learnt: HashMap<Key, Arc<Brief>>,
    changed: bool,
    /// What this run was told, for collections to see.
    in_use: Option<InUse>,
    /// The highest attempt of every result of a remote store, once listed.
    results: Option<HashMap<Key, u32>>,
    listed_results: bool,
}

impl Store {
    /// A view for one run, whose `name` is the same each time (the recipe's, say); it will be asked
    /// for about `expected` results.
    pub fn view(&self, name: &str, expected: usize) -> View {
        let name = &Digest::of(format!("{}\n{name}", self.url()).as_bytes()).hex()[..16];
        let file = match self.backend.file(&format!("local/memory/{name}")) {
            Some(file) => Some(file),
            None => self.beside.as_ref().map(|b| b.join("memory").join(name)),
        };
        let behind = self.behind.as_ref();
        View {
            store: self.clone(),
            behind: behind.map(|behind| Box::new(behind.store.view(name, expected))),
            file,
            expected,
            state: Mutex::default(),
        }
    }
}

impl View {
    /// The current results of `keys`, in their order; see [`Store::current`]. Ask for as many at
    /// once as are known.
    pub fn current(&self, keys: &[Key]) -> Result<Vec<Option<Arc<Brief>>>> {
        let _held = self.hold(keys);
        let remembered: Vec<Option<Met>> = {
            let state = self.state();
            let known = |key| state.memo.results.get(key).cloned();
            keys.iter().map(known).collect()
        };
        let listed = self.list_results(keys.len())?;
        let asked: Vec<(&Key, Option<Met>)> = keys.iter().zip(remembered).collect();
        let width = self.store.width_for(keys.len());
        let found = parallel(&asked, width, |(key, remembered)| {
            self.one(key, remembered.as_ref(), listed)
        })?;
        let mut state = self.state();
        let mut briefs = Vec::with_capacity(keys.len());
        for ((key, remembered), (met, keep)) in asked.iter().zip(found) {
            if keep && met != *remembered {
                state.changed = true;
                match &met {
                    Some(met) => state.memo.results.insert(**key, met.clone()),
                    None => state.memo.results.remove(*key),
                };
            }
            briefs.push(met.map(|met| met.brief));
        }
        Ok(briefs)
    }

    /// One result, and whether what was found may be remembered.
    fn one(
        &self,
        key: &Key,
        remembered: Option<&Met>,
        listed: bool,
    ) -> Result<(Option<Met>, bool)> {
        let store = &self.store;
        let trusted = remembered.filter(|_| !store.paranoid);
        if let Some(folder) = store.backend.file(&format!("results/{key}")) {
            let began = crate::hashcache::now_ns();
            let Some(folder_id) = stat(&folder) else {
                if self.behind_lacks(key)? {
                    return Ok((None, true));
                }
                return Ok((store.current(key)?.map(|(n, r)| unkept(n, &r)), false));
            };
            if let Some(met) = trusted
                && met.folder == folder_id
                && stat(&folder.join(met.brief.attempt.to_string())) == Some(met.file)
            {
                return Ok((Some(met.clone()), true));
            }
            let Some((attempt, record)) = store.current(key)? else {
                return Ok((None, true));
            };
            let file = stat(&folder.join(attempt.to_string()));
            let Some(file) = file.filter(|f| f.settled_at(began) && folder_id.settled_at(began))
            else {
                return Ok((Some(unkept(attempt, &record)), false));
            };
            // the stat before the listing is what the next look is held against
            let met = Met {
                folder: folder_id,
                file,
                brief: Arc::new(Brief::of(attempt, &record)),
            };
            return Ok((Some(met), true));
        }
        if listed {
            let top = self
                .state()
                .results
                .as_ref()
                .and_then(|r| r.get(key).copied());
            match (top, trusted) {
                (None, _) => return Ok((None, true)),
                (Some(top), Some(met)) if met.brief.attempt == top => {
                    return Ok((Some(met.clone()), true));
                }
                _ => {}
            }
        }
        let found = store.current(key)?;
        Ok((found.map(|(n, record)| unkept(n, &record)), true))
    }

    /// Whether the store behind is known to have no result, from its listing.
    fn behind_lacks(&self, key: &Key) -> Result<bool> {
        let Some(behind) = &self.behind else {
            return Ok(true);
        };
        if !behind.list_results(behind.expected)? {
            return Ok(false);
        }
        let state = behind.state();
        Ok(state.results.as_ref().is_some_and(|r| !r.contains_key(key)))
    }

    /// Lists a remote store's results once, where that takes fewer requests than asking for each.
    fn list_results(&self, asked: usize) -> Result<bool> {
        if self.store.local.is_some() || self.expected.max(asked) < FEW {
            return Ok(false);
        }
        let mut state = self.state();
        if !std::mem::replace(&mut state.listed_results, true) {
            let limit = self.expected.max(asked).div_ceil(2).saturating_mul(PAGE);
            let found = self.store.backend.list_at_most("results", limit)?;
            state.results = found.map(|found| {
                let mut top: HashMap<Key, u32> = HashMap::with_capacity(found.len());
                for (path, _) in found {
                    let mut parts = path.split('/').skip(1);
                    let key = parts.next().and_then(|key| key.parse::<Key>().ok());
                    let n = parts.next().and_then(number::<u32>);
                    if let Some((key, n)) = key.zip(n) {
                        let highest = top.entry(key).or_insert(n);
                        *highest = n.max(*highest);
                    }
                }
                top
            });
        }
        Ok(state.results.is_some())
    }

    /// Whether each artifact can be served, in their order; see [`Store::artifact_intact`].
    pub fn intact(&self, artifacts: &[Digest]) -> Result<Vec<Intact>> {
        // several stages may have made the same one
        let mut places: HashMap<Digest, usize> = HashMap::with_capacity(artifacts.len());
        let mut once = Vec::with_capacity(artifacts.len());
        let mut place = |artifact: &Digest| {
            *places.entry(*artifact).or_insert_with(|| {
                once.push(*artifact);
                once.len() - 1
            })
        };
        let places: Vec<usize> = artifacts.iter().map(&mut place).collect();
        let looks = self.intact_once(&once)?;
        Ok(places.into_iter().map(|at| looks[at].clone()).collect())
    }

    /// The same of artifacts that are not equal.
    fn intact_once(&self, artifacts: &[Digest]) -> Result<Vec<Intact>> {
        let _held = self.hold(artifacts);
        let remembered: Vec<Option<Blobs>> = {
            let state = self.state();
            let known = |artifact| state.memo.artifacts.get(artifact).cloned();
            artifacts.iter().map(known).collect()
        };
        let asked: Vec<(&Digest, Option<Blobs>)> = artifacts.iter().zip(remembered).collect();
        let listed = self.list_blobs(&asked)?;
        let width = self.store.width_for(artifacts.len());
        let found = parallel(&asked, width, |(artifact, blobs)| {
            let Some(blobs) = blobs else {
                let (intact, blobs) = self.store.intact_and_blobs(artifact)?;
                return Ok((intact, blobs));
            };
            let mut all = std::iter::once((**artifact, None))
                .chain(blobs.iter().map(|(blob, size)| (*blob, Some(*size))));
            let bad = all.find_map(|(blob, size)| match self.look(&blob, size, &listed) {
                Ok(Intact::Yes) => None,
                other => Some(other),
            });
            Ok((bad.unwrap_or(Ok(Intact::Yes))?, None))
        })?;
        let mut state = self.state();
        let mut looks = Vec::with_capacity(artifacts.len());
        for ((artifact, _), (intact, blobs)) in asked.iter().zip(found) {
            if let Some(blobs) = blobs {
                state.changed = true;
                state.memo.artifacts.insert(**artifact, blobs);
            }
            looks.push(intact);
        }
        Ok(looks)
    }

    fn look(
        &self,
        blob: &Digest,
        size: Option<u64>,
        listed: &Option<HashMap<String, u64>>,
    ) -> Result<Intact> {
        let found = match listed {
            None => self.store.look(blob, self.store.paranoid)?,
            Some(listed) => listed
                .get(&path_of(blob))
                .map_or(Found::Missing, |size| Found::Good(*size)),
        };
        self.store.or_behind(Intact::from_look(blob, size, found))
    }

    /// A remote store's blobs, where listing them takes fewer requests than asking for each.
    fn list_blobs(
        &self,
        asked: &[(&Digest, Option<Blobs>)],
    ) -> Result<Option<HashMap<String, u64>>> {
        let known = asked.iter().filter_map(|(_, blobs)| blobs.as_ref());
        let looks: usize = known.map(|blobs| 1 + blobs.len()).sum();
        if self.store.local.is_some() || self.store.paranoid || looks < FEW {
            return Ok(None);
        }
        let limit = (looks / 2).saturating_mul(PAGE);
        let found = self.store.backend.list_at_most("blobs", limit)?;
        Ok(found.map(|found| found.into_iter().collect()))
    }

    /// Keeps keys with their results, and artifacts, from collection until the view is dropped. What
    /// is asked of the view is kept by itself; sources are not.
    pub fn keep(&self, digests: &[Digest]) {
        drop(self.hold(digests));
    }

    /// Notes what this run relies on. While the answer lives nothing is collected at all. Where
    /// nothing can be written nothing can be collected.
    fn hold(&self, digests: &[Digest]) -> Option<Keep> {
        let mut state = self.loaded();
        let exists = self.store.local.as_ref().is_some_and(|l| l.exists());
        let held = exists.then(|| self.store.keep_blobs().ok()).flatten();
        let new = |digest: &&Digest| !state.asked.contains(digest);
        let new: Vec<Digest> = digests.iter().filter(new).copied().collect();
        if held.is_some() && !new.is_empty() {
            let all: Vec<Digest> = match state.in_use {
                Some(_) => new.clone(),
                // the store was made meanwhile
                None => state.asked.iter().chain(&new).copied().collect(),
            };
            let State { in_use, .. } = &mut *state;
            if in_use.is_none() {
                *in_use = InUse::begin(&self.store);
            }
            if let Some(in_use) = in_use {
                let _ = in_use.add(&all);
            }
        }
        state.asked.extend(new);
        held
    }

    /// Says that this run has published a result, so that the next need not read it.
    pub fn learn(&self, key: &Key, attempt: u32, record: &ResultRecord) {
        let brief = Arc::new(Brief::of(attempt, record));
        let mut state = self.loaded();
        state.asked.insert(*key);
        if let Some(results) = &mut state.results {
            results.insert(*key, attempt);
        }
        state.learnt.insert(*key, brief);
    }

    /// Keeps for the next run what was asked in this one. Where it cannot be written, that run
    /// takes longer.
    pub fn save(&self) {
        let Some(file) = &self.file else { return };
        let mut state = self.loaded();
        for (key, brief) in std::mem::take(&mut state.learnt) {
            if let Some(met) = self.settle(&key, brief) {
                state.changed = true;
                state.memo.results.insert(key, met);
            }
        }
        if !state.changed {
            return;
        }
        state.changed = false;
        // some of what other parameters of the recipe left stays, so that going back is quick too
        let State { memo, asked, .. } = &mut *state;
        let mut spare = 3 * asked.len() + 1000;
        let mut keep = |digest: &Digest| {
            asked.contains(digest) || {
                spare = spare.saturating_sub(1);
                spare > 0
            }
        };
        memo.results.retain(|key, _| keep(key));
        memo.artifacts.retain(|artifact, _| keep(artifact));
        let _ = replace_file(file, &memo.encode());
    }

    /// What a published result is remembered by, unless another attempt came or it is too young.
    fn settle(&self, key: &Key, brief: Arc<Brief>) -> Option<Met> {
        let Some(folder) = self.store.backend.file(&format!("results/{key}")) else {
            let [folder, file] = [FileId::default(); 2];
            return Some(Met {
                folder,
                file,
                brief,
            });
        };
        let began = crate::hashcache::now_ns();
        let folder_id = stat(&folder).filter(|id| id.settled_at(began))?;
        let file = self.store.backend.file(&result_path(key, brief.attempt))?;
        let file = stat(&file).filter(|id| id.settled_at(began))?;
        let attempts = self.store.attempts(&format!("results/{key}")).ok()?;
        let met = Met {
            folder: folder_id,
            file,
            brief,
        };
        (attempts.last() == Some(&met.brief.attempt)).then_some(met)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn loaded(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if !std::mem::replace(&mut state.loaded, true)
            && let Some(bytes) = self.file.as_ref().and_then(|file| std::fs::read(file).ok())
        {
            state.memo = Memo::decode(&bytes).unwrap_or_default();
        }
        state
    }
}

/// A result without stats to know it by.
fn unkept(attempt: u32, record: &ResultRecord) -> Met {
    Met {
        folder: FileId::default(),
        file: FileId::default(),
        brief: Arc::new(Brief::of(attempt, record)),
    }
}

fn stat(path: &std::path::Path) -> Option<FileId> {
    std::fs::symlink_metadata(path).ok().map(|m| FileId::of(&m))
}
