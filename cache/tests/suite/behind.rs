//! A remote store behind a local one.

use std::sync::{Arc, Mutex};

use cache::{Backend, Claimed, Pushed, Reason, Store};

use super::common::*;

/// A local store of its own with `remote` behind it.
fn machine(remote: &Place, push: bool) -> (Place, Store) {
    let place = local();
    let mut store = place.store();
    store.set_behind(remote.store(), push).unwrap();
    (place, store)
}

#[test]
fn what_one_machine_published_another_reuses() {
    for remote in remotes() {
        let (a, store) = machine(&remote, true);
        for i in 0..3 {
            assert!(run(&store, i, a.folder.path()).unwrap().here);
        }
        store.flush().unwrap();
        (0..3).for_each(|i| check(&remote.store(), i, a.folder.path()));

        let (b, store) = machine(&remote, true);
        let view = store.view("test", 4);
        let found = view.current(&(0..4).map(key).collect::<Vec<_>>()).unwrap();
        let there: Vec<bool> = found.iter().map(Option::is_some).collect();
        assert_eq!(there, [true, true, true, false], "{}", remote.name);
        let artifact = found[0].as_ref().unwrap().outputs["out"];
        assert!(view.intact(&[artifact]).unwrap()[0].is_yes());
        let blobs = |store: &Store| store.stat().unwrap().kind("blobs").objects;
        assert_eq!(
            blobs(&store),
            3,
            "manifests; what nobody reads is not fetched"
        );
        assert!(store.verify(true).unwrap().is_whole());
        check(&store, 0, b.folder.path());
        assert_eq!(blobs(&store), 6);
        assert!(!run(&store, 1, b.folder.path()).unwrap().here);

        // alone, it has what it read, and computes the rest
        let mut alone = b.store();
        check(&alone, 0, b.folder.path());
        assert!(run(&alone, 2, b.folder.path()).unwrap().here);
        alone.set_behind(remote.store(), false).unwrap();
        assert_eq!(alone.push(&key(2)).unwrap(), Some(Pushed::There));
        let missing = Store::open_local(&b.root()).unwrap();
        assert!(missing.current(&key(3)).unwrap().is_none());
    }
}

#[test]
fn what_is_damaged_here_is_fetched_again() {
    let remote = memory();
    let (a, store) = machine(&remote, true);
    run(&store, 1, a.folder.path()).unwrap();
    store.flush().unwrap();
    for (path, _) in read_dir(&a.root())
        .into_iter()
        .filter(|(p, _)| p.starts_with("blobs/"))
    {
        let file = a.root().join(path);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, b"damaged").unwrap();
    }
    let (_, record) = store.current(&key(1)).unwrap().unwrap();
    assert!(
        store
            .artifact_intact(&record.outputs["out"])
            .unwrap()
            .is_yes()
    );
    check(&store, 1, a.folder.path());
    assert!(!run(&store, 1, a.folder.path()).unwrap().here);
}

#[test]
fn a_push_that_failed_is_made_up_for() {
    let remote = memory();
    let (a, store) = machine(&remote, true);
    // somebody computes it there: nothing can be sent
    let there = remote.store();
    let Claimed::Claimed(claim) = there.claim(&key(1), Reason::First, "other").unwrap() else {
        panic!("nobody else is there")
    };
    run(&store, 1, a.folder.path()).unwrap();
    store.flush().unwrap();
    assert!(there.current(&key(1)).unwrap().is_none());
    assert_eq!(a.backend.children("local/unsent").unwrap().len(), 1);
    there.abandon(claim, "stopped").unwrap();
    // the next run has nothing to compute, and sends
    let mut next = a.store();
    next.set_behind(remote.store(), true).unwrap();
    next.flush().unwrap();
    check(&there, 1, a.folder.path());
    assert_eq!(a.backend.children("local/unsent").unwrap().len(), 0);
    assert_eq!(store.push(&key(1)).unwrap(), Some(Pushed::There));
}

#[test]
fn a_remote_store_has_nothing_behind_it() {
    let remote = memory();
    let error = remote
        .store()
        .set_behind(memory().store(), true)
        .unwrap_err();
    assert_eq!(error.class(), cache::Class::Usage, "{error}");
}

/// Bytes that do not repeat.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 7u64;
    let next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

#[test]
fn a_fetch_goes_on_where_the_last_ended() {
    for remote in remotes() {
        let bytes = noise((20 << 20) + 17);
        let blob = remote.store().put_bytes(&bytes).unwrap();
        for (part, first) in [
            (bytes[..10 << 20].to_vec(), 18 << 20),
            (vec![1; 9 << 20], 17 << 20),
            (vec![2; 30 << 20], 8 << 20),
        ] {
            let (a, store) = machine(&remote, false);
            let told = Arc::new(Mutex::new(Vec::new()));
            let tell = told.clone();
            let observer = move |p: &cache::Progress| tell.lock().unwrap().push(p.done);
            store.behind().unwrap().observe(Arc::new(observer));
            fill(&a.root().join("local/partial"), &[(&blob.hex(), &part)]);
            assert_eq!(store.get_bytes(&blob).unwrap(), bytes);
            assert!(a.backend.children("local/partial").unwrap().is_empty());
            // a store keeps its first observer; others tell their own story
            if let Some(done) = told.lock().unwrap().first() {
                assert_eq!(*done, first, "{}", remote.name);
            }
        }
    }
}

/// A remote store in memory that keeps how far uploads are, and an upload to it that breaks off after two pieces.
fn broken_off(
    folder: &std::path::Path,
    file: &std::path::Path,
) -> (cache::Remote, Arc<Mutex<Vec<u64>>>) {
    let remote = cache::Remote::open("memory://").unwrap();
    let remote = remote.keeping(Some(folder.join("t")));
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    remote.observe(Arc::new(move |progress| {
        let mut told = tell.lock().unwrap_or_else(|e| e.into_inner());
        told.push(progress.done);
        assert!(told.len() != 2, "cut off after two pieces");
    }));
    let sent = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        remote.put_from("blobs/x", file)
    }));
    assert!(sent.is_err());
    assert_eq!(
        remote.size("blobs/x").unwrap(),
        None,
        "no part of it can be seen"
    );
    (remote, told)
}

#[test]
fn an_upload_goes_on_where_the_last_ended() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = noise((40 << 20) + 17);
    let file = folder.path().join("file");
    std::fs::write(&file, &bytes).unwrap();
    let (remote, told) = broken_off(folder.path(), &file);
    remote.put_from("blobs/x", &file).unwrap();
    assert_eq!(remote.get("blobs/x").unwrap().unwrap(), bytes);
    let told = told.lock().unwrap_or_else(|e| e.into_inner());
    assert!(told[2] > told[1] && told.len() < 8, "it went on: {told:?}");
    let states = std::fs::read_dir(folder.path().join("t")).unwrap();
    assert_eq!(states.count(), 0);
}

#[test]
fn an_upload_that_was_left_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, noise((40 << 20) + 17)).unwrap();
    let (first, told) = broken_off(folder.path(), &file);
    // another process, a day later
    let (store, multipart) = first.raw();
    let again = || {
        let remote = cache::Remote::new("memory:", store.clone(), Default::default());
        remote
            .with_multipart(multipart.clone())
            .keeping(Some(folder.path().join("t")))
    };
    let states = || std::fs::read_dir(folder.path().join("t")).unwrap().count();
    again().put_from("blobs/y", &file).unwrap();
    assert_eq!(states(), 1, "it is young");
    age(&folder.path().join("t"), 2 * DAY);
    again().put_from("blobs/z", &file).unwrap();
    assert_eq!(states(), 0);
    let before = told.lock().unwrap_or_else(|e| e.into_inner()).len();
    first.put_from("blobs/x", &file).unwrap();
    let told = told.lock().unwrap_or_else(|e| e.into_inner());
    assert_eq!(
        told.len() - before,
        6,
        "it was sent from its start: {told:?}"
    );
}
