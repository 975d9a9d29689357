//! Collections take what nothing needs, and nothing else, also while others work.
//! `RECIPE_ROUNDS` says how many rounds beside eight processes (100 are the proof).

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cache::{Claimed, Gc, Ingest, Link, Published, Reason, Store};

use super::common::*;

/// All that may go goes: nothing is too young.
fn greedy() -> Gc {
    Gc {
        older_than: Duration::ZERO,
        grace: Duration::ZERO,
        ..Gc::default()
    }
}

fn record_run(store: &Store, id: &str, stages: &[usize]) {
    let stage = |i: &usize| {
        let (attempt, record) = store.current(&key(*i)).unwrap().unwrap();
        let artifact = record.outputs["out"];
        format!(
            r#"{{"key":"{}","attempt":{attempt},"outputs":{{"out":"{artifact}"}}}}"#,
            key(*i)
        )
    };
    let stages: Vec<String> = stages.iter().map(stage).collect();
    let record = format!(r#"{{"state":"running","stages":[{}]}}"#, stages.join(","));
    store.put_run(id, "record.json", record.as_bytes()).unwrap();
}

fn there(store: &Store, i: usize) -> bool {
    let found = store.current(&key(i)).unwrap();
    found.is_some_and(|(_, record)| {
        let artifact = record.outputs["out"];
        store.artifact_intact(&artifact).unwrap().is_yes()
    })
}

#[test]
fn what_runs_pins_and_locks_use_stays() {
    let place = local();
    let store = place.store();
    for i in 0..5 {
        run(&store, i, place.folder.path()).unwrap();
    }
    record_run(&store, "old", &[0, 1]);
    let artifact = |i| store.current(&key(i)).unwrap().unwrap().1.outputs["out"];
    store.pin("kept", &artifact(2)).unwrap();
    let source = place.folder.path().join("source");
    fill(&source, &[("data", b"a source that only a lock names")]);
    let (locked, _) = store.put_tree(&source, Ingest::Copy).unwrap();
    age(&place.root(), 40 * DAY);
    record_run(&store, "new", &[1]);
    let view = store.view("living", 1);
    view.current(&[key(3)]).unwrap();

    let gc = Gc {
        keep: vec![locked],
        ..Gc::default()
    };
    let planned = store
        .gc(&Gc {
            dry_run: true,
            ..gc.clone()
        })
        .unwrap();
    assert!(
        (0..5).all(|i| there(&store, i)),
        "a dry run removes nothing"
    );
    let done = store.gc(&gc).unwrap();
    assert_eq!(done, planned);
    assert_eq!((done.runs, done.results), (1, 2), "{done:?}");
    let left: Vec<bool> = (0..5).map(|i| there(&store, i)).collect();
    assert_eq!(left, [false, true, true, true, false]);
    assert!(store.artifact_intact(&locked).unwrap().is_yes());
    assert!(store.verify(true).unwrap().is_whole());
    assert_eq!(store.list_runs().unwrap(), ["new"]);
    drop(view);
    age(&place.root().join("results"), 40 * DAY);
    store.gc(&gc).unwrap();
    assert!(!there(&store, 3), "the view that needed it is gone");
    // and what went is computed again
    assert!(run(&store, 0, place.folder.path()).unwrap().here);
}

#[test]
fn a_size_limit_forgets_the_oldest_first() {
    let place = local();
    let store = place.store();
    for i in 0..4 {
        run(&store, i, place.folder.path()).unwrap();
        record_run(&store, &format!("run{i}"), &[i]);
    }
    age(&place.root(), 20 * DAY);
    for i in 0..4 {
        let run = place.root().join(format!("runs/run{i}"));
        age(&run, (10 - i as u32) * DAY);
    }
    let gc = Gc {
        max_size: Some(1600),
        ..Gc::default()
    };
    let done = store.gc(&gc).unwrap();
    let left: Vec<bool> = (0..4).map(|i| there(&store, i)).collect();
    assert!(
        left.is_sorted() && !left[0] && left[3],
        "{left:?}: {done:?}"
    );
    assert!(done.kept.bytes <= 1600, "{done:?}");
    assert!(store.verify(true).unwrap().is_whole());
}

#[test]
fn leftovers_are_found_also_those_that_listings_hide() {
    let place = files();
    let store = place.store();
    run(&store, 1, place.folder.path()).unwrap();
    drop(store);
    let root = place.root();
    let hidden = root.join("blobs/ab/abcd#1");
    fill(
        &root,
        &[("local/tmp/left", b"half"), ("blobs/ab/abcd#1", b"half")],
    );
    age(&root.join("local/tmp"), 2 * DAY);
    age(&root.join("blobs/ab"), 2 * DAY);
    let store = Store::open_local(&root).unwrap();
    assert!(hidden.exists());
    let done = store.gc(&Gc::default()).unwrap();
    assert_eq!(
        done.temporary.objects, 1,
        "the other went when the store was opened: {done:?}"
    );
    assert!(!hidden.exists() && !root.join("local/tmp/left").exists());
    assert!(there(&store, 1));
}

/// Not a test by itself: one of those who work while the parent collects.
#[test]
#[ignore = "the child of nothing_living_is_collected"]
fn worker() {
    let Ok(root) = std::env::var("CHILD_STORE") else {
        return;
    };
    let root = std::path::PathBuf::from(root);
    let scratch = root.parent().unwrap();
    let seed: usize = std::env::var("CHILD").unwrap().parse().unwrap();
    let mut round = seed;
    while !scratch.join("stop").exists() {
        let store = Store::open_local(&root).unwrap();
        round = round.wrapping_mul(25) + 7;
        let stages: Vec<usize> = (0..4).map(|i| (round / 3 + 5 * i) % 24).collect();
        let keys: Vec<_> = stages.iter().map(|i| key(*i)).collect();
        let view = store.view("worker", keys.len());
        let mut found = view.current(&keys).unwrap();
        for (i, brief) in stages.iter().zip(&mut found) {
            let artifact = brief.as_ref().map(|b| b.outputs["out"]);
            let whole = artifact.is_some_and(|a| view.intact(&[a]).unwrap()[0].is_yes());
            if !whole {
                work(&store, &view, *i, scratch);
                *brief = view.current(&[key(*i)]).unwrap().remove(0);
            }
        }
        std::thread::sleep(Duration::from_millis(round as u64 % 5));
        // all that this run was told is there is there
        for (i, brief) in stages.iter().zip(found) {
            let artifact = brief.expect("it has a result").outputs["out"];
            let to = tempfile::tempdir_in(scratch).unwrap();
            let to = to.path().join("to");
            store.materialize(&artifact, &to, Link::Reflink).unwrap();
            assert_eq!(read_dir(&to), content(*i));
        }
        println!("\nround");
    }
}

/// Brings stage `i` to a result, whoever computes it.
fn work(store: &Store, view: &cache::View, i: usize, scratch: &std::path::Path) {
    let mut claimed = store.claim(&key(i), Reason::First, "worker").unwrap();
    loop {
        claimed = match claimed {
            Claimed::Claimed(claim) => {
                let _keep = store.keep_blobs().unwrap();
                let record = compute(store, i, claim.attempt, scratch).unwrap();
                if store.publish(&claim, &record).unwrap() == Published::Published {
                    view.learn(&key(i), claim.attempt, &record);
                    return;
                }
                store.claim(&key(i), Reason::First, "worker").unwrap()
            }
            Claimed::Done { attempt, record } => {
                if view.intact(&[record.outputs["out"]]).unwrap()[0].is_yes() {
                    return;
                }
                store.repair(&key(i), attempt, "worker").unwrap()
            }
            Claimed::Busy { attempt, owner } => {
                let mut watch = store.watch(&key(i), attempt, &owner);
                while watch.poll().unwrap() == cache::Liveness::Alive {
                    std::thread::sleep(Duration::from_millis(1));
                }
                store.claim(&key(i), Reason::First, "worker").unwrap()
            }
        }
    }
}

#[test]
fn nothing_living_is_collected() {
    let rounds = std::env::var("RECIPE_ROUNDS").map_or(12, |n| n.parse().unwrap());
    let place = local();
    place.store().put_bytes(b"made").unwrap();
    let child = |seed: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "suite::collecting::worker",
                "--exact",
                "--include-ignored",
                "--nocapture",
            ])
            .env("CHILD", seed.to_string())
            .env("CHILD_STORE", place.root())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<Child> = (1..=8).map(child).collect();
    let store = Store::open_local(&place.root()).unwrap();
    let (mut results, mut blobs) = (0, 0);
    for _ in 0..rounds {
        std::thread::sleep(Duration::from_millis(20));
        let done = store.gc(&greedy()).unwrap();
        results += done.results;
        blobs += done.blobs.objects;
    }
    std::fs::write(place.folder.path().join("stop"), b"").unwrap();
    let mut worked = 0;
    for child in children {
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{text}");
        worked += text.matches("round").count();
    }
    println!(
        "{rounds} collections took {results} results and {blobs} blobs while 8 processes did {worked} rounds"
    );
    assert!(
        results > 0 && worked >= 8,
        "collections and work went on beside each other"
    );
    let report = store.verify(true).unwrap();
    assert!(report.is_whole(), "{report:?}");
}
