//! Claims, seals, results and checkpoints, in every store.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cache::{Claim, Claimed, Class, Error, Ingest, Liveness, Published, Reason, Sealing, Store};

use super::common::*;

fn claimed(result: cache::Result<Claimed>) -> Claim {
    match result.unwrap() {
        Claimed::Claimed(claim) => claim,
        Claimed::Busy { attempt, owner } => panic!("busy: {attempt} by {owner:?}"),
        Claimed::Done { attempt, .. } => panic!("done as {attempt}"),
    }
}

fn claim(store: &Store, i: usize) -> Claim {
    claimed(store.claim(&key(i), Reason::First, "a"))
}

#[test]
fn a_stage_is_computed_once_and_then_reused() {
    for place in places() {
        let store = place.store();
        let scratch = place.folder.path();
        assert_eq!(store.current(&key(1)).unwrap(), None);
        assert_eq!(
            run(&store, 1, scratch).unwrap(),
            Ran {
                attempt: 1,
                here: true
            }
        );
        assert_eq!(
            run(&store, 1, scratch).unwrap(),
            Ran {
                attempt: 1,
                here: false
            }
        );
        check(&store, 1, scratch);
        assert_eq!(store.results().unwrap().len(), 1);
        let report = store.verify(true).unwrap();
        assert!(
            report.is_whole() && report.unfinished.is_empty(),
            "{report:?}"
        );
        let stat = store.stat().unwrap();
        assert_eq!(stat.kind("results").objects, 1, "{}", place.name);
        assert!(stat.kind("blobs").bytes > 300 && stat.total().objects > 6);
    }
}

#[test]
fn forced_and_repaired_attempts_count_when_they_end() {
    for place in places() {
        let store = place.store();
        let scratch = place.folder.path();
        run(&store, 1, scratch).unwrap();
        let forced = claimed(store.claim(&key(1), Reason::Forced, "a"));
        assert_eq!(
            (forced.attempt, store.current(&key(1)).unwrap().unwrap().0),
            (2, 1)
        );
        let record = compute(&store, 1, 2, scratch).unwrap();
        assert_eq!(
            store.publish(&forced, &record).unwrap(),
            Published::Published
        );
        assert_eq!(store.current(&key(1)).unwrap().unwrap().0, 2);
        // whoever repairs what was repaired already gets the newer result
        let done = store.repair(&key(1), 1, "a").unwrap();
        assert!(
            matches!(done, Claimed::Done { attempt: 2, .. }),
            "{}",
            place.name
        );
        let repair = claimed(store.repair(&key(1), 2, "a"));
        assert_eq!((repair.attempt, repair.reason), (3, Reason::Repair));
    }
}

#[test]
fn a_sealed_owner_cannot_publish_and_an_early_result_is_adopted() {
    for place in places() {
        let store = place.store();
        let scratch = place.folder.path();
        let loser = claim(&store, 1);
        let record = compute(&store, 1, 1, scratch).unwrap();
        let winner = claimed(store.takeover(&key(1), 1, "thought dead", "b"));
        assert_eq!((winner.attempt, winner.reason), (2, Reason::Takeover));
        assert!(store.is_sealed(&key(1), 1).unwrap() && !store.is_sealed(&key(1), 2).unwrap());
        let sealed = Published::Sealed {
            why: "thought dead".into(),
        };
        assert_eq!(
            store.publish(&loser, &record).unwrap(),
            sealed,
            "{}",
            place.name
        );
        let dir = scratch.join("c");
        fill(&dir, &[("x", b"1")]);
        let error = store
            .commit_checkpoint(&key(1), 1, 9, &dir, Ingest::Copy, 0.into())
            .expect_err("the attempt is sealed");
        assert!(matches!(error, Error::Sealed { attempt: 1, .. }), "{error}");
        assert_eq!(
            store.publish(&winner, &record).unwrap(),
            Published::Published
        );
        assert_eq!(
            store.publish(&winner, &record).unwrap(),
            Published::Published,
            "again"
        );
        let adopted = store.seal(&key(1), 2, "too late").unwrap();
        assert!(matches!(adopted, Sealing::Adopted { .. }));
        let done = store.takeover(&key(1), 2, "too late", "c").unwrap();
        assert!(matches!(done, Claimed::Done { attempt: 2, .. }));
        check(&store, 1, scratch);
    }
}

#[test]
fn an_abandoned_claim_is_free_at_once() {
    for place in places() {
        let store = place.store();
        store.abandon(claim(&store, 1), "the stage failed").unwrap();
        assert_eq!(claim(&store, 1).attempt, 2);
    }
}

#[test]
fn a_result_that_does_not_fit_is_refused() {
    let place = local();
    let store = place.store();
    let mine = claim(&store, 1);
    let mut record = compute(&store, 1, 1, place.folder.path()).unwrap();
    record
        .outputs
        .insert("lost".into(), cache::Digest::of(b"nowhere"));
    assert_eq!(
        store.publish(&mine, &record).unwrap_err().class(),
        Class::Integrity
    );
    record.outputs.remove("lost");
    record.preimage = preimage(2);
    assert_eq!(
        store.publish(&mine, &record).unwrap_err().class(),
        Class::Usage
    );
    assert_eq!(store.current(&key(1)).unwrap(), None);
}

#[test]
fn beats_keep_an_owner_alive_and_silence_does_not() {
    for mut place in places() {
        place.name = "beats";
        let store = place.store();
        let mine = claim(&store, 1);
        let owner = store.claim_record(&key(1), 1).unwrap();
        let mut watch = store.watch(&key(1), 1, &owner);
        let heart = store.heart(&mine);
        let until = std::time::Instant::now() + Duration::from_millis(200);
        while std::time::Instant::now() < until {
            // a machine under load may hold up the heart for longer than this test's short ttl
            let _ = watch.poll().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(
            place
                .backend
                .get(&format!("beats/{}/1", key(1)))
                .unwrap()
                .is_some()
        );
        drop(heart);
        std::thread::sleep(Duration::from_millis(150));
        let _ = watch.poll().unwrap();
        std::thread::sleep(Duration::from_millis(150));
        assert!(
            matches!(watch.poll().unwrap(), Liveness::Dead { .. }),
            "silence"
        );
        let heart = store.heart(&mine);
        store.seal(&key(1), 1, "over").unwrap();
        for _ in 0..1000 {
            if heart.lost() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(heart.lost());
        assert_eq!(watch.poll().unwrap(), Liveness::Ended);
    }
}

#[test]
fn a_lock_tells_death_at_once() {
    let place = local();
    let mut store = place.store();
    store.set_ttl(Duration::from_secs(3600));
    let mine = claim(&store, 1);
    let Claimed::Busy { attempt: 1, owner } = store.claim(&key(1), Reason::First, "b").unwrap()
    else {
        panic!("not busy")
    };
    let mut watch = store.watch(&key(1), 1, &owner);
    assert_eq!(watch.poll().unwrap(), Liveness::Alive);
    drop(mine);
    assert!(matches!(watch.poll().unwrap(), Liveness::Dead { .. }));
    // a clock that is wrong by hours, or another machine's boot, decides nothing
    let stranger = cache::ClaimRecord {
        machine: "another".into(),
        ..owner
    };
    assert_eq!(
        store.watch(&key(1), 1, &stranger).poll().unwrap(),
        Liveness::Alive
    );
}

#[test]
fn threads_that_race_compute_each_stage_once() {
    for place in places() {
        let (stages, threads) = (if place.name == "s3" { 3 } else { 12 }, 8);
        let computed: Vec<AtomicUsize> = (0..stages).map(|_| AtomicUsize::new(0)).collect();
        let start = Barrier::new(threads);
        std::thread::scope(|scope| {
            for t in 0..threads {
                let (place, computed, start) = (&place, &computed, &start);
                scope.spawn(move || {
                    let mut store = place.store();
                    store.set_ttl(Duration::from_secs(60));
                    start.wait();
                    for i in 0..stages {
                        let i = (i + t) % stages;
                        if run(&store, i, place.folder.path()).unwrap().here {
                            computed[i].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let computed: Vec<usize> = computed.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        assert_eq!(computed, vec![1; stages], "{}", place.name);
        let store = place.store();
        (0..stages).for_each(|i| check(&store, i, place.folder.path()));
        assert!(store.verify(true).unwrap().is_whole());
    }
}

#[test]
fn checkpoints_are_found_refused_and_pruned() {
    for place in places() {
        let store = place.store();
        let dir = place.folder.path().join("c");
        let commit = |attempt: u32, step: u64| {
            fill(
                &dir,
                &[
                    ("w", format!("{attempt} {step}").as_bytes()),
                    ("shared", b"shared"),
                ],
            );
            store
                .commit_checkpoint(&key(1), attempt, step, &dir, Ingest::Copy, step.into())
                .unwrap()
        };
        let newest = || store.newest_checkpoint(&key(1)).unwrap();
        assert_eq!(newest(), None);
        for step in [9, 10, 100] {
            let made = commit(1, step);
            assert_eq!(newest(), Some(made));
        }
        let other = commit(2, 50);
        assert_eq!(
            store.newest_checkpoint_from(&key(1), 2).unwrap(),
            Some(other)
        );
        // the same step again leaves the one that is committed
        let (first, again) = (newest().unwrap(), commit(1, 100));
        assert_eq!(first, again);
        // a blob of the newest is lost: the one before it serves
        let lost = cache::Digest::of(b"1 100").hex();
        place
            .backend
            .delete(&format!("blobs/{}/{lost}", &lost[..2]))
            .unwrap();
        assert_eq!(newest().unwrap().step, 50, "{}", place.name);
        commit(1, 100);
        assert_eq!(newest().unwrap().step, 100);
        // another key's record in this place is no checkpoint of this key
        let bytes = place
            .backend
            .get(&format!("checkpoints/{}/1/100", key(1)))
            .unwrap()
            .unwrap();
        place
            .backend
            .put(&format!("checkpoints/{}/1/100", key(2)), &bytes)
            .unwrap();
        assert_eq!(store.newest_checkpoint(&key(2)).unwrap(), None);
        let error = store.checkpoint(&key(2), 1, 100).unwrap_err();
        assert!(error.to_string().contains("another key"), "{error}");
        place
            .backend
            .delete(&format!("checkpoints/{}/1/100", key(2)))
            .unwrap();

        assert_eq!(store.prune_checkpoints(&key(1), 2, &[]).unwrap(), 2);
        assert_eq!(newest().unwrap().step, 100);
        assert_eq!(store.stat().unwrap().kind("checkpoints").objects, 2);
        assert!(store.verify(true).unwrap().is_whole(), "{}", place.name);
        if place.backend.local().is_some() {
            // two manifests, two states, and what they share
            assert_eq!(store.stat().unwrap().kind("blobs").objects, 5);
        }
    }
}

#[test]
fn pruning_leaves_what_others_refer_to() {
    let place = local();
    let store = place.store();
    let dir = place.folder.path().join("c");
    for step in 0..3u64 {
        fill(&dir, &[("w", format!("state {step}").as_bytes())]);
        store
            .commit_checkpoint(&key(1), 1, step, &dir, Ingest::Copy, 0.into())
            .unwrap();
    }
    fill(&dir, &[("w", b"state 0")]);
    let (pinned, _) = store.put_tree(&dir, Ingest::Copy).unwrap();
    store.pin("mine", &pinned).unwrap();
    {
        let _keep = store.keep_blobs().unwrap();
        store.prune_checkpoints(&key(1), 2, &[]).unwrap();
    }
    fill(&dir, &[("w", b"state 1")]);
    store.prune_checkpoints(&key(1), 1, &[]).unwrap();
    assert!(store.artifact_intact(&pinned).unwrap().is_yes());
    let gone = store.get_bytes(&cache::Digest::of(b"state 1"));
    assert!(matches!(gone, Err(Error::Missing { .. })));
    assert!(store.verify(true).unwrap().is_whole());
}

#[test]
fn run_records_and_pins() {
    for place in places() {
        let store = place.store();
        assert!(store.list_runs().unwrap().is_empty());
        store.put_run("20260101-b", "record.json", b"{}").unwrap();
        store
            .put_run("20260101-a", "logs/sft-1.txt", b"log")
            .unwrap();
        store
            .put_run("20260101-a", "logs/sft-1.txt", b"longer log")
            .unwrap();
        assert_eq!(store.list_runs().unwrap(), ["20260101-a", "20260101-b"]);
        assert_eq!(
            store.list_run_files("20260101-a").unwrap(),
            ["logs/sft-1.txt"]
        );
        assert_eq!(
            store
                .get_run("20260101-a", "logs/sft-1.txt")
                .unwrap()
                .unwrap(),
            b"longer log"
        );
        assert_eq!(store.get_run("none", "x").unwrap(), None);
        assert_eq!(
            store.put_run("../x", "y", b"").unwrap_err().class(),
            Class::Usage
        );
        assert_eq!(
            store.put_run("x", "../y", b"").unwrap_err().class(),
            Class::Usage
        );
        if let Some(path) = store.run_path("20260101-c", "logs/a.txt").unwrap() {
            std::fs::write(path, b"direct").unwrap();
            assert_eq!(
                store.get_run("20260101-c", "logs/a.txt").unwrap().unwrap(),
                b"direct"
            );
        }
        let dir = place.folder.path().join("p");
        fill(&dir, &[("a", b"1")]);
        let (artifact, _) = store.put_tree(&dir, Ingest::Copy).unwrap();
        store.pin("best", &artifact).unwrap();
        assert_eq!(store.pins().unwrap(), [("best".to_owned(), artifact)]);
        assert!(store.unpin("best").unwrap() && !store.unpin("best").unwrap());
        assert!(store.pin("../x", &artifact).is_err());
    }
}

#[test]
fn claims_leave_no_locks_behind() {
    let place = local();
    let start = Barrier::new(6);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let store = place.store();
                start.wait();
                (0..10).for_each(|i| {
                    run(&store, i, place.folder.path()).unwrap();
                });
            });
        }
    });
    let left = place.backend.children("local/locks").unwrap();
    assert!(left.is_empty(), "{left:?}");
    assert!(place.backend.children("local/tmp").unwrap().is_empty());
}

#[test]
fn pruning_leaves_steps_that_are_asked_for() {
    let place = local();
    let store = place.store();
    let dir = place.folder.path().join("c");
    for step in 0..4u64 {
        fill(&dir, &[("w", format!("state {step}").as_bytes())]);
        store
            .commit_checkpoint(&key(1), 1, step, &dir, Ingest::Copy, 0.into())
            .unwrap();
    }
    assert_eq!(store.prune_checkpoints(&key(1), 1, &[1]).unwrap(), 2);
    let until = |last| store.newest_checkpoint_until(&key(1), last).unwrap();
    let steps = [0, 1, 2, 3, 9].map(|last| until(last).map(|c| c.step));
    assert_eq!(steps, [None, Some(1), Some(1), Some(3), Some(3)]);
}
