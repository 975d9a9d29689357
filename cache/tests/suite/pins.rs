//! Pins that are moved from run to run, and what a collection leaves of them.

use std::time::Duration;

use cache::{Class, Digest, Gc, Ingest, Move, ResultRecord, Store};

use super::common::*;

fn artifact(place: &Place, store: &Store, text: &str) -> Digest {
    let dir = place.folder.path().join(format!("of {text}"));
    fill(&dir, &[("a", text.as_bytes())]);
    store.put_tree(&dir, Ingest::Copy).unwrap().0
}

fn to(run: &str, artifact: Digest, keep: Vec<Digest>) -> Move {
    Move {
        name: "nightly".into(),
        number: 0,
        artifact,
        keep,
        run: run.into(),
        who: "ann".into(),
        when: "2026-01-01T00:00:00Z".into(),
        why: format!("because of {run}"),
    }
}

#[test]
fn a_pins_history_only_grows() {
    for place in places() {
        let store = place.store();
        let (first, second) = (artifact(&place, &store, "1"), artifact(&place, &store, "2"));
        assert_eq!(store.moves("nightly").unwrap(), []);
        assert_eq!(
            store.move_pin(to("a", first, Vec::new())).unwrap().number,
            1
        );
        // several at once: each has a number of its own
        let mut numbers: Vec<u32> = std::thread::scope(|scope| {
            let move_it = |i: usize| store.move_pin(to(&format!("r{i}"), second, Vec::new()));
            let all: Vec<_> = (0..6).map(|i| scope.spawn(move || move_it(i))).collect();
            let number = |t: std::thread::ScopedJoinHandle<'_, cache::Result<Move>>| {
                t.join().unwrap().unwrap().number
            };
            all.into_iter().map(number).collect()
        });
        numbers.sort_unstable();
        assert_eq!(numbers, [2, 3, 4, 5, 6, 7], "{}", place.name);
        let history = store.moves("nightly").unwrap();
        assert_eq!(
            (history.len(), history[0].why.as_str()),
            (7, "because of a")
        );
        assert_eq!(store.pins().unwrap(), [("nightly".to_owned(), second)]);
        // neither replaced, nor removed, nor of a name that is an artifact's
        assert_eq!(
            store.pin("nightly", &first).unwrap_err().class(),
            Class::Usage
        );
        assert_eq!(store.unpin("nightly").unwrap_err().class(), Class::Usage);
        store.pin("best", &first).unwrap();
        let named = Move {
            name: "best".into(),
            ..to("a", first, Vec::new())
        };
        assert_eq!(store.move_pin(named).unwrap_err().class(), Class::Usage);
        assert!(store.verify(true).unwrap().is_whole());
    }
}

#[test]
fn a_collection_leaves_the_history_and_what_the_last_run_made() {
    let place = local();
    let store = place.store();
    let made: Vec<Digest> = ["a", "b", "c", "d"]
        .map(|t| artifact(&place, &store, t))
        .into();
    store.put_run("old", "record.json", b"{}").unwrap();
    store.put_run("new", "record.json", b"{}").unwrap();
    store.move_pin(to("old", made[0], vec![made[1]])).unwrap();
    store.move_pin(to("new", made[2], vec![made[3]])).unwrap();
    let greedy = Gc {
        older_than: Duration::ZERO,
        grace: Duration::ZERO,
        ..Gc::default()
    };
    store.gc(&greedy).unwrap();
    let left: Vec<bool> = made
        .iter()
        .map(|a| store.artifact_intact(a).unwrap().is_yes())
        .collect();
    assert_eq!(left, [true, false, true, true]);
    assert_eq!(store.list_runs().unwrap(), ["new"]);
    // damage of a move shows, and is no other pin's
    let at = |n: u32| place.root().join(format!("pins/nightly@{n}"));
    let bytes = std::fs::read(at(1)).unwrap();
    std::fs::remove_file(at(1)).unwrap();
    std::fs::write(at(1), &bytes[..bytes.len() - 9]).unwrap();
    assert!(!store.verify(true).unwrap().is_whole());
    std::fs::remove_file(at(1)).unwrap();
    std::fs::write(at(3), &bytes).unwrap();
    assert!(store.moves("nightly").is_err());
}

#[test]
fn the_metrics_of_a_results_steps_go_where_it_goes() {
    let record = |outputs, steps| ResultRecord {
        outputs: [("out".to_owned(), outputs)].into(),
        steps: Some(steps),
        ..ResultRecord::default()
    };
    let remote = memory();
    let place = local();
    let mut store = place.store();
    store.set_behind(remote.store(), false).unwrap();
    let (out, steps) = (artifact(&place, &store, "o"), artifact(&place, &store, "s"));
    assert_eq!(record(out, steps).artifacts().count(), 2);
    let key = Digest::of(b"");
    let cache::Claimed::Claimed(claim) = store.claim(&key, cache::Reason::First, "me").unwrap()
    else {
        panic!("nobody else claims it")
    };
    store.publish(&claim, &record(out, steps)).unwrap();
    store.push(&key).unwrap();
    assert!(remote.store().artifact_intact(&steps).unwrap().is_yes());
    // another machine reads them from behind; a collection there leaves them with the result
    let other = local();
    let mut there = other.store();
    there.set_behind(remote.store(), false).unwrap();
    let (_, found) = there.current(&key).unwrap().unwrap();
    let file = there.manifest(&found.steps.unwrap()).unwrap().files[0].clone();
    assert_eq!(there.get_bytes(&file.blob).unwrap(), b"s");
    store.gc(&Gc::default()).unwrap();
    assert!(store.artifact_intact(&steps).unwrap().is_yes());
}

#[test]
fn a_local_store_may_lie_behind_another() {
    let (behind, front) = (local(), local());
    run(&behind.store(), 1, behind.folder.path()).unwrap();
    let mut store = front.store();
    store.set_behind(behind.store(), false).unwrap();
    check(&store, 1, front.folder.path());
    assert!(store.verify(true).unwrap().is_whole());
    assert!(!run(&store, 1, front.folder.path()).unwrap().here);
}
