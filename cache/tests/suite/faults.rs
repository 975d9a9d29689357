//! Every operation of a run fails once, before or after it took effect, alone or with the process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cache::{Backend, Claimed, Each, Error, Published, Reason, Result, Store};

use super::common::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The operation does nothing and fails.
    Before,
    /// The operation takes effect and its answer is lost.
    After,
}

/// A backend whose operation number `at` fails, and all later ones too when `dies`.
struct Faulty {
    inner: Arc<dyn Backend>,
    fault: Fault,
    dies: bool,
    at: usize,
    count: AtomicUsize,
    armed: AtomicBool,
}

impl Faulty {
    fn step<T>(&self, path: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let failed = || Error::Remote {
            action: "reach",
            path: path.to_owned(),
            store: "faulty".into(),
            message: "injected".into(),
        };
        if !self.armed.load(Ordering::SeqCst) {
            return action();
        }
        let now = self.count.fetch_add(1, Ordering::SeqCst);
        if now < self.at || (now > self.at && !self.dies) {
            return action();
        }
        if now == self.at && self.fault == Fault::After {
            action()?;
        }
        Err(failed())
    }
}

impl Backend for Faulty {
    fn url(&self) -> &str {
        self.inner.url()
    }
    fn local(&self) -> Option<&Path> {
        self.inner.local()
    }
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        self.step(path, || self.inner.get(path))
    }
    fn put_new(&self, path: &str, bytes: &[u8], durable: bool) -> Result<bool> {
        self.step(path, || self.inner.put_new(path, bytes, durable))
    }
    fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.step(path, || self.inner.put(path, bytes))
    }
    fn put_from(&self, path: &str, source: &Path) -> Result<()> {
        self.step(path, || self.inner.put_from(path, source))
    }
    fn fetch(&self, path: &str, to: &Path) -> Result<bool> {
        self.step(path, || self.inner.fetch(path, to))
    }
    fn size(&self, path: &str) -> Result<Option<u64>> {
        self.step(path, || self.inner.size(path))
    }
    fn list(&self, prefix: &str, each: &mut Each) -> Result<()> {
        self.step(prefix, || self.inner.list(prefix, each))
    }
    fn children(&self, prefix: &str) -> Result<Vec<String>> {
        self.step(prefix, || self.inner.children(prefix))
    }
    fn delete(&self, path: &str) -> Result<bool> {
        self.step(path, || self.inner.delete(path))
    }
    fn file(&self, path: &str) -> Option<PathBuf> {
        self.inner.file(path)
    }
}

/// What one faulty runner leaves, and what a sound one makes of it.
fn try_point(place: &Place, fault: Fault, dies: bool, at: usize) -> bool {
    let what = format!("{}, {fault:?} operation {at}, dies: {dies}", place.name);
    let faulty = Arc::new(Faulty {
        inner: place.backend.clone(),
        fault,
        dies,
        at,
        count: AtomicUsize::new(0),
        armed: AtomicBool::new(true),
    });
    let scratch = place.folder.path();
    // the one that fails: its claim and record live on, as in a process that is only cut off
    let mut orphan = None;
    let first = (|| {
        let mut store = Store::with_backend(faulty.clone(), None)?;
        store.set_ttl(Duration::from_millis(4));
        let Claimed::Claimed(claim) = store.claim(&key(1), Reason::First, "a")? else {
            panic!("{what}: nobody else is there")
        };
        let record = compute(&store, 1, claim.attempt, scratch);
        let (store, claim, record) = orphan.insert((store, claim, record));
        match record {
            Ok(record) => store.publish(claim, record),
            Err(e) => Err(Error::Remote {
                action: "compute",
                path: String::new(),
                store: String::new(),
                message: e.to_string(),
            }),
        }
    })();
    let reached = faulty.count.load(Ordering::SeqCst) > at;

    // the sound one sees a dead owner: by its lock when the claim is dropped, else by silence
    let mut store = place.store();
    store.set_ttl(Duration::from_millis(4));
    let second = run(&store, 1, scratch).unwrap_or_else(|e| panic!("{what}: {e}"));
    if matches!(first, Ok(Published::Published)) {
        assert_eq!(
            second,
            Ran {
                attempt: 1,
                here: false
            },
            "{what}: published is published"
        );
    }
    check(&store, 1, scratch);

    // the one that was cut off comes back: its result counts if and only if it says so
    faulty.armed.store(false, Ordering::SeqCst);
    if let Some((store_a, claim, Ok(record))) = &orphan {
        let published = store_a
            .publish(claim, record)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let counts = !store.is_sealed(&key(1), claim.attempt).unwrap();
        assert_eq!(published == Published::Published, counts, "{what}");
        assert_eq!(counts, second.attempt == claim.attempt, "{what}");
    }
    check(&store, 1, scratch);
    assert!(
        store.newest_checkpoint(&key(1)).unwrap().is_some(),
        "{what}"
    );
    let report = store.verify(true).unwrap();
    assert!(report.is_whole(), "{what}: {:?}", report.problems);
    reached
}

#[test]
fn every_operation_may_fail() {
    for make in [local as fn() -> Place, memory] {
        for fault in [Fault::Before, Fault::After] {
            for dies in [false, true] {
                let mut at = 0;
                while try_point(&make(), fault, dies, at) {
                    at += 1;
                }
                assert!(at > 25, "a run has more operations than {at}");
                println!("{}: {at} points, {fault:?}, dies: {dies}", make().name);
            }
        }
    }
}

/// A create that took effect although it was reported as "exists": what a retry inside an object
/// store's client does.
struct Echo {
    inner: Arc<dyn Backend>,
}

impl Backend for Echo {
    fn url(&self) -> &str {
        self.inner.url()
    }
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        self.inner.get(path)
    }
    fn put_new(&self, path: &str, bytes: &[u8], durable: bool) -> Result<bool> {
        self.inner.put_new(path, bytes, durable)?;
        Ok(false)
    }
    fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.inner.put(path, bytes)
    }
    fn put_from(&self, path: &str, source: &Path) -> Result<()> {
        self.inner.put_from(path, source)
    }
    fn fetch(&self, path: &str, to: &Path) -> Result<bool> {
        self.inner.fetch(path, to)
    }
    fn size(&self, path: &str) -> Result<Option<u64>> {
        self.inner.size(path)
    }
    fn list(&self, prefix: &str, each: &mut Each) -> Result<()> {
        self.inner.list(prefix, each)
    }
    fn children(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.children(prefix)
    }
    fn delete(&self, path: &str) -> Result<bool> {
        self.inner.delete(path)
    }
}

#[test]
fn an_ambiguous_exists_is_settled_by_the_nonce() {
    let place = memory();
    let echo = Arc::new(Echo {
        inner: place.backend.clone(),
    });
    let store = Store::with_backend(echo, None).unwrap();
    let ran = run(&store, 1, place.folder.path()).unwrap();
    assert_eq!(
        ran,
        Ran {
            attempt: 1,
            here: true
        }
    );
    assert!(!run(&store, 1, place.folder.path()).unwrap().here);
    check(&place.store(), 1, place.folder.path());
}
