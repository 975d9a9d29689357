//! Whatever is flipped, cut or removed is found, never served, and healed by running again.

use std::path::Path;

use cache::{Backend, Ingest, ProblemKind, Reason, Store};
use proptest::prelude::*;

use super::common::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    Flip,
    Cut,
    Remove,
}

const STAGES: usize = 3;

fn finished(place: &Place) -> Store {
    let store = place.store();
    for i in 0..STAGES {
        run(&store, i, place.folder.path()).unwrap();
    }
    store.flush().unwrap();
    store
}

fn objects(backend: &dyn Backend, kinds: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for kind in kinds {
        backend
            .list(kind, &mut |object| {
                found.push(object.path.to_owned());
                Ok(())
            })
            .unwrap();
    }
    found.sort();
    found
}

/// Damages an object in the way a disk or a person would: in place where it is a file.
fn damage(place: &Place, path: &str, how: Damage, at: usize) {
    let bytes = place.backend.get(path).unwrap().unwrap();
    let mut wrong = bytes.clone();
    match how {
        Damage::Flip => wrong[at % bytes.len()] ^= 1,
        Damage::Cut => wrong.truncate(at % bytes.len()),
        Damage::Remove => {
            place.backend.delete(path).unwrap();
            return;
        }
    }
    match place.backend.file(path) {
        Some(file) => overwrite(&file, &wrong),
        None => place.backend.put(path, &wrong).unwrap(),
    }
}

fn overwrite(file: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(file, bytes).unwrap();
}

/// The blobs that results and checkpoints refer to.
fn used(store: &Store) -> Vec<String> {
    let results = store.results().unwrap();
    let outputs = results.iter().map(|(_, _, record)| record.outputs["out"]);
    let checkpoints = (0..STAGES).map(|i| store.newest_checkpoint(&key(i)).unwrap().unwrap());
    let artifacts: Vec<_> = outputs.chain(checkpoints.map(|c| c.manifest)).collect();
    let blobs = artifacts
        .iter()
        .flat_map(|a| store.manifest(a).unwrap().files);
    let blobs: Vec<_> = blobs.map(|file| file.blob).collect();
    artifacts
        .iter()
        .chain(&blobs)
        .map(|digest| digest.hex())
        .collect()
}

/// One damage: found, not served, healed by a rerun.
fn one(place: &Place, path: &str, how: Damage, at: usize) {
    let what = format!("{}: {how:?} of {path}", place.name);
    let used = used(&place.store());
    damage(place, path, how, at);
    let store = place.store();
    let report = store.verify(true).unwrap();
    let gone_result = how == Damage::Remove && path.starts_with("results/");
    // what nothing refers to may go without a word, such as a pruned checkpoint's blobs
    let referred = !path.starts_with("blobs/") || used.iter().any(|blob| path.ends_with(blob));
    let kept = path.starts_with("results/") || path.starts_with("blobs/") && referred;
    let gone_quietly = how == Damage::Remove && !kept;
    if gone_result {
        assert_eq!(report.unfinished.len(), 1, "{what}");
    } else if !gone_quietly {
        assert!(
            report.problems.iter().any(|p| p.path == path),
            "{what}: {:?}",
            report.problems
        );
    }
    let mut store = store;
    if store.local().is_none() {
        store.set_paranoid(true); // elsewhere only reading finds a flipped bit
    }
    for i in 0..STAGES {
        run(&store, i, place.folder.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
        check(&store, i, place.folder.path());
    }
}

#[test]
fn every_object_may_be_damaged() {
    for make in [local as fn() -> Place, memory, files] {
        for how in [Damage::Flip, Damage::Cut, Damage::Remove] {
            let count = {
                let place = make();
                finished(&place);
                objects(
                    &*place.backend,
                    &["blobs", "results", "checkpoints", "claims"],
                )
                .len()
            };
            assert!(count > 20);
            for n in (0..count).step_by(if make().backend.local().is_some() {
                1
            } else {
                4
            }) {
                let place = make();
                finished(&place);
                let path = &objects(
                    &*place.backend,
                    &["blobs", "results", "checkpoints", "claims"],
                )[n];
                one(&place, path, how, 7 * n + 3);
            }
        }
    }
}

#[test]
fn a_rerun_makes_the_store_whole() {
    let place = local();
    let store = finished(&place);
    let results = objects(&*place.backend, &["results"]);
    damage(&place, &results[0], Damage::Flip, 100);
    let (_, record) = store.current(&key(1)).unwrap().unwrap_or_else(|| {
        run(&store, 1, place.folder.path()).unwrap();
        store.current(&key(1)).unwrap().unwrap()
    });
    let manifest = store.manifest(&record.outputs["out"]).unwrap();
    let hex = manifest.file("a.txt").unwrap().blob.hex();
    damage(
        &place,
        &format!("blobs/{}/{hex}", &hex[..2]),
        Damage::Cut,
        3,
    );
    let report = place.store().verify(false).unwrap();
    let kinds: Vec<_> = report.problems.iter().map(|p| p.kind).collect();
    assert!(kinds.contains(&ProblemKind::CorruptBlob), "{report:?}");
    for i in 0..STAGES {
        run(&store, i, place.folder.path()).unwrap();
    }
    let report = place.store().verify(true).unwrap();
    assert!(report.is_whole(), "{report:?}");
}

#[test]
fn a_remote_blob_found_wrong_when_read_is_made_again() {
    for place in [memory(), files()] {
        let store = finished(&place);
        let (_, record) = store.current(&key(1)).unwrap().unwrap();
        let artifact = record.outputs["out"];
        let hex = store
            .manifest(&artifact)
            .unwrap()
            .file("a.txt")
            .unwrap()
            .blob
            .hex();
        damage(
            &place,
            &format!("blobs/{}/{hex}", &hex[..2]),
            Damage::Flip,
            3,
        );
        let to = place.folder.path().join("to");
        let error = store
            .materialize(&artifact, &to, cache::Link::Reflink)
            .unwrap_err();
        assert_eq!(error.class(), cache::Class::Integrity, "{error}");
        assert!(!to.exists() && !store.artifact_intact(&artifact).unwrap().is_yes());
        let ran = run(&store, 1, place.folder.path()).unwrap();
        assert_eq!(
            ran,
            Ran {
                attempt: 2,
                here: true
            },
            "{}",
            place.name
        );
        check(&store, 1, place.folder.path());
    }
}

#[test]
fn a_corrupt_result_counts_as_a_seal() {
    for place in places() {
        let store = finished(&place);
        let before = store.current(&key(0)).unwrap().unwrap();
        let cache::Claimed::Claimed(claim) = store.claim(&key(0), Reason::Forced, "a").unwrap()
        else {
            panic!("not claimed")
        };
        store.publish(&claim, &before.1).unwrap();
        damage(&place, &format!("results/{}/2", key(0)), Damage::Cut, 50);
        assert_eq!(
            store.current(&key(0)).unwrap().unwrap().0,
            1,
            "{}",
            place.name
        );
        assert!(store.is_sealed(&key(0), 2).unwrap());
        let again = store.claim(&key(0), Reason::Forced, "a").unwrap();
        assert!(matches!(again, cache::Claimed::Claimed(c) if c.attempt == 3));
    }
}

#[test]
fn a_record_moved_to_another_place_does_not_verify() {
    let place = memory();
    let store = finished(&place);
    let bytes = place
        .backend
        .get(&format!("results/{}/1", key(0)))
        .unwrap()
        .unwrap();
    place
        .backend
        .put(&format!("results/{}/1", key(1)), &bytes)
        .unwrap();
    place
        .backend
        .put(&format!("results/{}/2", key(0)), &bytes)
        .unwrap();
    assert_eq!(store.current(&key(1)).unwrap(), None);
    assert_eq!(store.current(&key(0)).unwrap().unwrap().0, 1);
}

#[test]
fn an_output_written_after_it_was_handed_over_is_found() {
    let place = local();
    let store = place.store();
    let dir = place.folder.path().join("out");
    for size in [100, 3 << 20] {
        fill(&dir, &[("w", &vec![1u8; size])]);
        // an orphan still has the file open
        let orphan = std::fs::OpenOptions::new()
            .write(true)
            .open(dir.join("w"))
            .unwrap();
        let (artifact, _) = store.put_tree(&dir, Ingest::Move).unwrap();
        assert!(store.artifact_intact(&artifact).unwrap().is_yes());
        std::os::unix::fs::FileExt::write_at(&orphan, b"x", 50).unwrap();
        assert!(
            !store.artifact_intact(&artifact).unwrap().is_yes(),
            "{size} bytes"
        );
        let to = place.folder.path().join("to");
        assert!(
            store
                .materialize(&artifact, &to, cache::Link::Reflink)
                .is_err()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn random_damage_is_found_in_all_places_at_once(picks in prop::collection::btree_map(0usize..100, any::<usize>(), 1..6)) {
        let place = local();
        finished(&place);
        let all = objects(&*place.backend, &["blobs", "results", "checkpoints"]);
        let mut paths = Vec::new();
        for (pick, at) in picks {
            let path = all[pick % all.len()].clone();
            if !paths.contains(&path) {
                damage(&place, &path, if at % 2 == 0 { Damage::Flip } else { Damage::Cut }, at / 2);
                paths.push(path);
            }
        }
        // without --paranoid: their times have changed
        let report = place.store().verify(false).unwrap();
        for path in paths {
            prop_assert!(report.problems.iter().any(|p| p.path == path), "{path}: {:?}", report.problems);
        }
    }
}
