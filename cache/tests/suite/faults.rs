//! Every operation of a run, a takeover, a reading, a collection and a copy fails once: before or
//! after it took effect, alone or with the process, or comes late. Then operations that fail at
//! random. `RECIPE_FAULTS=all` tries every point (each act's
//! every seventh without it), `RECIPE_CASES` says how many random cases, `RECIPE_SEED` which.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cache::{Backend, Claimed, Each, Error, Gc, Link, Observer, Published, Reason, Result, Store};

use super::common::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The operation does nothing and fails.
    Before,
    /// The operation takes effect and its answer is lost.
    After,
    /// The operation takes longer than an owner may be silent.
    Late,
    /// One in so many operations fails, before or after.
    Random { one_in: u64 },
}

const TTL: Duration = Duration::from_millis(4);

/// A backend whose operation number `at` fails, and all later ones too when `dies`.
struct Faulty {
    inner: Arc<dyn Backend>,
    fault: Fault,
    dies: bool,
    at: usize,
    count: AtomicUsize,
    armed: AtomicBool,
    random: AtomicU64,
}

impl Faulty {
    fn new(inner: Arc<dyn Backend>, fault: Fault, dies: bool, at: usize) -> Arc<Faulty> {
        Arc::new(Faulty {
            inner,
            fault,
            dies,
            at,
            count: AtomicUsize::new(0),
            armed: AtomicBool::new(true),
            random: AtomicU64::new(at as u64 | 1),
        })
    }

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
        if let Fault::Random { one_in } = self.fault {
            let draw = self
                .random
                .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
            let draw = (draw ^ draw >> 31).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
            return match draw % (2 * one_in) {
                0 => Err(failed()),
                1 => action().and(Err(failed())),
                _ => action(),
            };
        }
        if now < self.at || (now > self.at && !self.dies) {
            return action();
        }
        if now == self.at {
            match self.fault {
                Fault::After => drop(action()?),
                Fault::Late => {
                    std::thread::sleep(3 * TTL);
                    return action();
                }
                _ => {}
            }
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
    fn observe(&self, observer: Observer) {
        self.inner.observe(observer);
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
    let faulty = Faulty::new(place.backend.clone(), fault, dies, at);
    let scratch = place.folder.path();
    // the one that fails: its claim and record live on, as in a process that is only cut off
    let mut orphan = None;
    let first = (|| {
        let mut store = Store::with_backend(faulty.clone(), None)?;
        store.set_ttl(TTL);
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
    store.set_ttl(TTL);
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

/// What else is done to a store, by somebody whose operations fail.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// Takes over a dead owner's attempt.
    TakeOver,
    /// Asks and takes out.
    Read,
    Collect,
    Repair,
    /// Computes while another does the same.
    Race,
}

/// One act with a fault in it; whether the fault was reached. The store is right afterwards.
fn try_act(place: &Place, act: Act, fault: Fault, dies: bool, at: usize) -> bool {
    let what = format!(
        "{}, {act:?}, {fault:?} operation {at}, dies: {dies}",
        place.name
    );
    let scratch = place.folder.path();
    let sound = || {
        let mut store = place.store();
        store.set_ttl(TTL);
        store
    };
    match act {
        Act::TakeOver => {
            let claimed = sound().claim(&key(1), Reason::First, "dead").unwrap();
            assert!(matches!(claimed, Claimed::Claimed(_)));
        }
        Act::Race => {}
        Act::Read | Act::Collect | Act::Repair => {
            for i in 0..2 {
                run(&sound(), i, scratch).unwrap();
            }
        }
    }
    if act == Act::Repair {
        let (_, record) = sound().current(&key(1)).unwrap().unwrap();
        let artifact = record.outputs["out"].hex();
        let path = format!("blobs/{}/{artifact}", &artifact[..2]);
        place.backend.delete(&path).unwrap();
    }
    let faulty = Faulty::new(place.backend.clone(), fault, dies, at);
    let act_out = || -> Result<()> {
        let mut store = Store::with_backend(faulty.clone(), None)?;
        store.set_ttl(TTL);
        match act {
            Act::TakeOver | Act::Race => {
                run(&store, 1, scratch)?;
            }
            Act::Read => {
                let view = store.view("faulty", 2);
                for brief in view.current(&[key(0), key(1)])?.into_iter().flatten() {
                    let artifact = brief.outputs["out"];
                    if view.intact(&[artifact])?[0].is_yes() {
                        let to = tempfile::tempdir_in(scratch).unwrap();
                        store.materialize(&artifact, &to.path().join("to"), Link::Reflink)?;
                        assert_eq!(read_dir(&to.path().join("to")).len(), 3, "{what}");
                    }
                }
                view.save();
                store.verify(true)?;
            }
            Act::Collect => {
                let zero = Duration::ZERO;
                store.gc(&Gc {
                    older_than: zero,
                    grace: zero,
                    ..Gc::default()
                })?;
            }
            Act::Repair => {
                let report = store.verify(true)?;
                store.repair_all(report)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let faulty = scope.spawn(act_out);
        if act == Act::Race {
            // neither beats: who is taken over starts again
            let ended = || match run(&sound(), 1, scratch) {
                Err(Error::Sealed { .. }) => None,
                ended => Some(ended),
            };
            let ended = std::iter::repeat_with(ended).flatten().next();
            let ended = ended.expect("it goes on until it ends");
            ended.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        let _ = faulty.join().unwrap_or_else(|_| panic!("{what}"));
    });
    // in a race, how far it gets is a matter of luck
    let racing = act == Act::Race && at < 45;
    let reached = racing || faulty.count.load(Ordering::SeqCst) > at;
    let store = sound();
    for i in [0, 1] {
        run(&store, i, scratch).unwrap_or_else(|e| panic!("{what}: {e}"));
        check(&store, i, scratch);
    }
    let report = store.verify(true).unwrap();
    assert!(report.is_whole(), "{what}: {:?}", report.problems);
    reached
}

#[test]
fn every_operation_of_every_act_may_fail() {
    // every operation is the proof; a few of them are a test
    let all = std::env::var_os("RECIPE_FAULTS").is_some();
    let stride = if all { 1 } else { 7 };
    for make in [local as fn() -> Place, memory] {
        for act in [
            Act::TakeOver,
            Act::Read,
            Act::Collect,
            Act::Repair,
            Act::Race,
        ] {
            for (fault, dies) in [
                (Fault::Before, false),
                (Fault::Before, true),
                (Fault::After, false),
                (Fault::After, true),
                (Fault::Late, false),
            ] {
                let (mut at, mut tried) = (0, 0);
                while try_act(&make(), act, fault, dies, at) {
                    at += stride;
                    tried += 1;
                }
                assert!(at > 5, "{act:?} has more operations than {at}");
                println!(
                    "{}: {act:?}, {tried} points of {at}, {fault:?}, dies: {dies}",
                    make().name
                );
            }
        }
    }
}

#[test]
fn a_copy_may_fail_anywhere() {
    for (fault, dies) in [
        (Fault::Before, false),
        (Fault::After, false),
        (Fault::Before, true),
    ] {
        for at in 0.. {
            let (place, remote) = (local(), memory());
            let scratch = place.folder.path();
            let faulty = Faulty::new(remote.backend.clone(), fault, dies, at);
            let open = |backend: &Arc<Faulty>, place: &Place| -> Result<Store> {
                let mut store = place.store();
                let mut behind = Store::with_backend(backend.clone(), None)?;
                behind.set_ttl(TTL);
                store.set_behind(behind, true)?;
                Ok(store)
            };
            let pushed = (|| {
                let store = open(&faulty, &place)?;
                run(&store, 1, scratch)?;
                store.flush()
            })();
            let reached = faulty.count.load(Ordering::SeqCst) > at;
            faulty.armed.store(false, Ordering::SeqCst);
            // the next run makes up for it
            let store = open(&faulty, &place).unwrap();
            run(&store, 1, scratch).unwrap();
            store.flush().unwrap();
            check(&store, 1, scratch);
            let other = local();
            let store = open(&faulty, &other).unwrap();
            let found = store.current(&key(1)).unwrap();
            let what = format!("{fault:?} operation {at}, dies: {dies}: {pushed:?}");
            assert!(found.is_some(), "{what}");
            assert!(!run(&store, 1, scratch).unwrap().here, "{what}");
            check(&store, 1, scratch);
            assert!(remote.store().verify(true).unwrap().is_whole());
            if !reached {
                println!("a copy: {at} points, {fault:?}, dies: {dies}");
                break;
            }
        }
    }
}

#[test]
fn operations_fail_at_random() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let (cases, seed) = (number("RECIPE_CASES", 40), number("RECIPE_SEED", 11));
    println!("seed {seed}, {cases} cases");
    for case in 0..cases {
        let place = if case.is_multiple_of(2) {
            local()
        } else {
            memory()
        };
        let scratch = place.folder.path();
        let fault = Fault::Random {
            one_in: 25 + case % 40,
        };
        let faulty = Faulty::new(
            place.backend.clone(),
            fault,
            false,
            (seed * 1000 + case) as usize,
        );
        let mut tries = 0;
        let what = format!("seed {seed}, case {case}");
        // a runner that starts over until it gets through
        while tries < 500 {
            tries += 1;
            let ran = Store::with_backend(faulty.clone(), None).and_then(|mut store| {
                store.set_ttl(TTL);
                run(&store, 1, scratch)
            });
            if ran.is_ok() {
                break;
            }
        }
        assert!(tries < 500, "{what}");
        faulty.armed.store(false, Ordering::SeqCst);
        let store = place.store();
        assert!(
            !run(&store, 1, scratch).unwrap().here,
            "{what}: it said that it was there"
        );
        check(&store, 1, scratch);
        let report = store.verify(true).unwrap();
        assert!(report.is_whole(), "{what}: {report:?}");
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
