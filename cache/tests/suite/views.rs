//! What a view answers is what the store would say, whatever happened since it was remembered.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cache::{Backend, Digest, Each, Intact, Key, Reason, Result, Store};

use super::common::*;

fn keys(n: usize) -> Vec<Key> {
    (0..n).map(key).collect()
}

/// Times in the store are old enough to be remembered.
fn settle() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Fails unless a view says of every key what the store says.
fn agree(store: &Store, n: usize) {
    let view = store.view("test", n);
    let found = view.current(&keys(n)).unwrap();
    for (i, brief) in found.iter().enumerate() {
        let current = store.current(&key(i)).unwrap();
        match (brief, current) {
            (None, None) => {}
            (Some(brief), Some((attempt, record))) => {
                assert_eq!((brief.attempt, &brief.outputs), (attempt, &record.outputs));
                assert_eq!((&brief.metrics, brief.cost), (&record.metrics, record.cost));
                let artifact = record.outputs["out"];
                let looked = view.intact(&[artifact]).unwrap();
                assert_eq!(
                    looked[0].is_yes(),
                    store.artifact_intact(&artifact).unwrap().is_yes()
                );
            }
            other => panic!("stage {i}: {other:?}"),
        }
    }
    view.save();
}

#[test]
fn a_view_sees_every_change() {
    for place in places() {
        let store = place.store();
        for i in 0..4 {
            run(&store, i, place.folder.path()).unwrap();
        }
        settle();
        agree(&store, 6);
        agree(&place.store(), 6);
        // a new result, and a newer one
        run(&store, 4, place.folder.path()).unwrap();
        let cache::Claimed::Claimed(claim) = store.claim(&key(0), Reason::Forced, "x").unwrap()
        else {
            panic!("forced")
        };
        let record = compute(&store, 0, claim.attempt, place.folder.path()).unwrap();
        store.publish(&claim, &record).unwrap();
        agree(&place.store(), 6);
        settle();
        agree(&place.store(), 6);
        // an attempt that is sealed is none
        let sealing = store.claim(&key(1), Reason::Forced, "x").unwrap();
        if let cache::Claimed::Claimed(claim) = sealing {
            store.abandon(claim, "test").unwrap();
        }
        settle();
        agree(&place.store(), 6);
    }
}

/// Damage of a kind that leaves names as they are.
fn flip(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let mode = fs::metadata(path).unwrap().permissions();
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

#[test]
fn what_is_remembered_does_not_hide_damage() {
    let place = local();
    let store = place.store();
    for i in 0..3 {
        run(&store, i, place.folder.path()).unwrap();
    }
    settle();
    agree(&store, 3);
    store.flush().unwrap();
    let result = place.root().join(format!("results/{}/1", key(0)));
    // in place: neither the folder's times nor the size change
    use std::os::unix::fs::{FileExt, PermissionsExt};
    fs::set_permissions(&result, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&result).unwrap();
    file.write_all_at(b"X", 40).unwrap();
    drop(file);
    let view = place.store().view("test", 3);
    assert_eq!(view.current(&[key(0)]).unwrap(), vec![None]);

    let (_, record) = store.current(&key(1)).unwrap().unwrap();
    let artifact = record.outputs["out"];
    let blob = store.manifest(&artifact).unwrap().files[0].blob;
    let at = |digest: &Digest| {
        let hex = digest.hex();
        place.root().join(format!("blobs/{}/{hex}", &hex[..2]))
    };
    assert!(view.intact(&[artifact]).unwrap()[0].is_yes());
    flip(&at(&blob));
    let found = view.intact(&[artifact]).unwrap();
    assert!(matches!(&found[0], Intact::Corrupt { digest, .. } if *digest == blob));
    fs::remove_file(at(&blob)).unwrap();
    let found = view.intact(&[artifact]).unwrap();
    assert_eq!(found, vec![Intact::Missing { digest: blob }]);
    let (_, record) = store.current(&key(2)).unwrap().unwrap();
    flip(&at(&record.outputs["out"]));
    let found = view.intact(&[record.outputs["out"]]).unwrap();
    assert!(!found[0].is_yes(), "the manifest itself is damaged");
}

/// Counts what is asked of a store that is far away.
struct Counted {
    inner: Arc<dyn Backend>,
    gets: AtomicUsize,
    sizes: AtomicUsize,
    lists: AtomicUsize,
}

impl Backend for Counted {
    fn url(&self) -> &str {
        self.inner.url()
    }
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.inner.get(path)
    }
    fn put_new(&self, path: &str, bytes: &[u8], durable: bool) -> Result<bool> {
        self.inner.put_new(path, bytes, durable)
    }
    fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.inner.put(path, bytes)
    }
    fn put_from(&self, path: &str, source: &std::path::Path) -> Result<()> {
        self.inner.put_from(path, source)
    }
    fn fetch(&self, path: &str, to: &std::path::Path) -> Result<bool> {
        self.inner.fetch(path, to)
    }
    fn size(&self, path: &str) -> Result<Option<u64>> {
        self.sizes.fetch_add(1, Ordering::SeqCst);
        self.inner.size(path)
    }
    fn list(&self, prefix: &str, each: &mut Each) -> Result<()> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.inner.list(prefix, each)
    }
    fn children(&self, prefix: &str) -> Result<Vec<String>> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.inner.children(prefix)
    }
    fn delete(&self, path: &str) -> Result<bool> {
        self.inner.delete(path)
    }
}

#[test]
fn a_remote_store_is_listed_once() {
    let place = memory();
    let stages = 40;
    for i in 0..stages {
        run(&place.store(), i, place.folder.path()).unwrap();
    }
    let beside = place.folder.path().join("beside");
    let ask = || {
        let counted = Arc::new(Counted {
            inner: place.backend.clone(),
            gets: AtomicUsize::new(0),
            sizes: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
        });
        let store = Store::with_backend(counted.clone(), Some(beside.clone())).unwrap();
        let view = store.view("test", stages);
        // in parts, as keys become known
        let mut artifacts = Vec::new();
        for part in keys(stages).chunks(10) {
            let found = view.current(part).unwrap().into_iter();
            artifacts.extend(found.map(|brief| brief.unwrap().outputs["out"]));
        }
        let looks = view.intact(&artifacts).unwrap();
        assert!(looks.iter().all(Intact::is_yes));
        view.save();
        let count = |n: &AtomicUsize| n.load(Ordering::SeqCst);
        (
            count(&counted.gets),
            count(&counted.sizes),
            count(&counted.lists),
        )
    };
    let (gets, ..) = ask();
    assert!(
        gets >= 2 * stages,
        "records and manifests were read: {gets}"
    );
    assert_eq!(ask(), (1, 0, 2), "the format, and two listings");
}
