//! Power loss: what was not synced may be gone, empty or zeros while its names and times survive.
//!
//! What it may cost: unfinished attempts (back to their last checkpoint), results of stages shorter
//! than a second, claims, records of runs. What it may not: results of longer stages, committed
//! checkpoints, the truth.

use std::collections::HashSet;

use cache::{Claimed, Reason, ResultRecord, Store};

use super::common::*;

/// What is left of a file whose pages were never written.
#[derive(Clone, Copy, Debug)]
enum Left {
    Nothing,
    Empty,
    Zeros,
}

/// A long stage and a short one, and a checkpoint of an attempt under way.
fn work(store: &Store, scratch: &std::path::Path) -> Vec<String> {
    for (i, seconds) in [(0, 60.0), (1, 0.1)] {
        let Claimed::Claimed(claim) = store.claim(&key(i), Reason::First, "test").unwrap() else {
            panic!("nobody else is there")
        };
        let record = compute(store, i, claim.attempt, scratch).unwrap();
        let mut record = ResultRecord { ..record };
        record.cost.seconds = seconds;
        store.publish(&claim, &record).unwrap();
    }
    let Claimed::Claimed(claim) = store.claim(&key(2), Reason::First, "test").unwrap() else {
        panic!("nobody else is there")
    };
    compute(store, 2, claim.attempt, scratch).unwrap();
    store.flush().unwrap();
    durable(store)
}

/// What must survive: the long stage's result, the checkpoints, and their blobs.
fn durable(store: &Store) -> Vec<String> {
    let long = format!("results/{}/1", key(0));
    let mut paths = vec!["format".to_owned(), long];
    let mut artifacts = vec![store.current(&key(0)).unwrap().unwrap().1.outputs["out"]];
    for i in 0..3 {
        let checkpoint = store.newest_checkpoint(&key(i)).unwrap().unwrap();
        paths.push(format!("checkpoints/{}/1/{}", key(i), checkpoint.step));
        artifacts.push(checkpoint.manifest);
    }
    for artifact in artifacts {
        let files = store.manifest(&artifact).unwrap().files;
        for blob in files.iter().map(|file| file.blob).chain([artifact]) {
            paths.push(format!("blobs/{}/{blob}", &blob.hex()[..2]));
        }
    }
    paths
}

fn lose(place: &Place, kept: &HashSet<String>, left: Left, pick: impl Fn(usize) -> bool) {
    use std::os::unix::fs::PermissionsExt;
    let files = read_dir(&place.root());
    let lost = files.iter().filter(|(path, _)| !kept.contains(*path));
    for (_, (path, bytes)) in lost.enumerate().filter(|(n, _)| pick(*n)) {
        let file = place.root().join(path);
        let meta = std::fs::metadata(&file).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        match left {
            Left::Nothing => std::fs::remove_file(&file).unwrap(),
            Left::Empty => std::fs::write(&file, b"").unwrap(),
            Left::Zeros => std::fs::write(&file, vec![0; bytes.len()]).unwrap(),
        }
        if !matches!(left, Left::Nothing) {
            let file = std::fs::File::open(&file).unwrap();
            file.set_modified(meta.modified().unwrap()).unwrap();
        }
    }
}

#[test]
fn power_loss_costs_work_and_never_the_truth() {
    for left in [Left::Nothing, Left::Empty, Left::Zeros] {
        for part in 0..6 {
            let what = format!("{left:?}, part {part}");
            let place = local();
            let kept: HashSet<String> = {
                let store = place.store();
                work(&store, place.folder.path()).into_iter().collect()
            };
            // all of it, or every fifth file from a different one on
            lose(&place, &kept, left, |n| part == 5 || n % 5 == part);
            let mut store = Store::open_local(&place.root()).unwrap();
            store.assume_reboot();
            store.set_ttl(std::time::Duration::from_millis(4));
            let (_, record) = store.current(&key(0)).unwrap().expect("the long result");
            assert!(
                store
                    .artifact_intact(&record.outputs["out"])
                    .unwrap()
                    .is_yes(),
                "{what}"
            );
            let step = store.newest_checkpoint(&key(2)).unwrap().map(|c| c.step);
            assert_eq!(
                step,
                Some(2),
                "{what}: the attempt goes on from its checkpoint"
            );
            for i in 0..3 {
                let ran = run(&store, i, place.folder.path());
                let ran = ran.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(i != 0 || !ran.here, "{what}: the long stage ran again");
                check(&store, i, place.folder.path());
            }
            let report = store.verify(true).unwrap();
            store.repair_all(report).unwrap();
            let report = store.verify(true).unwrap();
            assert!(report.is_whole(), "{what}: {report:?}");
        }
    }
}
