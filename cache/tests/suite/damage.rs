//! Random damage to the store of a finished run: all of it is found, and mended with and without a
//! remote store. `RECIPE_CASES` says how many cases (1000 are the proof), `RECIPE_SEED` which.

use std::collections::HashSet;
use std::path::Path;

use cache::{Healed, ProblemKind, Store};

use super::common::*;

const STAGES: usize = 4;

/// xorshift64*: the same cases for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A store as a run leaves it, pins and the runs' files included.
fn finished(place: &Place, remote: Option<&Place>) -> Store {
    let mut store = place.store();
    if let Some(remote) = remote {
        store.set_behind(remote.store(), true).unwrap();
    }
    let view = store.view("test", STAGES);
    let mut stages = Vec::new();
    for i in 0..STAGES {
        let ran = run(&store, i, place.folder.path()).unwrap();
        let (_, record) = store.current(&key(i)).unwrap().unwrap();
        let artifact = record.outputs["out"];
        store.pin(&format!("pin{i}"), &artifact).unwrap();
        stages.push(format!(
            r#"{{"key":"{}","attempt":{},"outputs":{{"out":"{artifact}"}}}}"#,
            key(i),
            ran.attempt
        ));
    }
    for run in ["run-a", "run-b"] {
        let record = format!(
            r#"{{"state":"finished","run":"{run}","stages":[{}]}}"#,
            stages.join(",")
        );
        store
            .put_run(run, "record.json", record.as_bytes())
            .unwrap();
        let events = format!("{{\"run\":\"{run}\"}}\n");
        store
            .put_run(run, "events.jsonl", events.as_bytes())
            .unwrap();
        let log = format!("log of {run}");
        store.put_run(run, "logs/a-1.log", log.as_bytes()).unwrap();
        let dir = store.run_path(run, "record.json").unwrap().unwrap();
        store.seal_run(run, dir.parent().unwrap()).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(25));
    view.current(&(0..STAGES).map(key).collect::<Vec<_>>())
        .unwrap();
    view.save();
    store.flush().unwrap();
    store
}

/// What may be damaged, and which of it may not go without a word.
fn targets(place: &Place) -> (Vec<String>, HashSet<String>) {
    let store = place.store();
    let mut artifacts: Vec<_> = store.pins().unwrap().into_iter().map(|(_, a)| a).collect();
    for i in 0..STAGES {
        let newest = store.newest_checkpoint(&key(i)).unwrap();
        artifacts.extend(newest.map(|checkpoint| checkpoint.manifest));
    }
    let mut needed = HashSet::from(["format".to_owned()]);
    for artifact in artifacts {
        let files = store.manifest(&artifact).unwrap().files;
        for blob in files.iter().map(|file| file.blob).chain([artifact]) {
            needed.insert(format!("blobs/{}/{blob}", &blob.hex()[..2]));
        }
    }
    let all = read_dir(&place.root());
    let kinds = ["blobs", "claims", "results", "checkpoints", "pins", "runs"];
    let local = ["local/hashes", "local/memory"];
    let target = |path: &&String| {
        path.as_str() == "format"
            || kinds
                .iter()
                .any(|kind| path.starts_with(&format!("{kind}/")))
            || local.iter().any(|prefix| path.starts_with(prefix))
    };
    let found: Vec<String> = all.keys().filter(target).cloned().collect();
    for path in &found {
        if ["claims/", "results/", "runs/"]
            .iter()
            .any(|kind| path.starts_with(kind))
        {
            needed.insert(path.clone());
        }
    }
    (found, needed)
}

/// One damage: what was done, and the paths that a verify must name one of.
fn damage(place: &Place, random: &mut Random) -> (String, Vec<String>) {
    let (all, needed) = targets(place);
    loop {
        let path = &all[random.below(all.len())];
        let file = place.root().join(path);
        let bytes = std::fs::read(&file).unwrap();
        match random.below(4) {
            0 if !bytes.is_empty() => {
                let mut wrong = bytes;
                let at = random.below(wrong.len());
                wrong[at] ^= 1 << random.below(8);
                overwrite(&file, &wrong);
                return (format!("flip of byte {at} of {path}"), vec![path.clone()]);
            }
            1 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                // a log cut between records is a shorter log
                if path == "local/hashes" && at.is_multiple_of(88) {
                    continue;
                }
                overwrite(&file, &bytes[..at]);
                return (format!("cut of {path} at {at}"), vec![path.clone()]);
            }
            2 if needed.contains(path) => {
                std::fs::remove_file(&file).unwrap();
                return (format!("removal of {path}"), vec![path.clone()]);
            }
            3 => {
                let kind = |path: &str| path.split('/').next().unwrap().to_owned();
                let other = &all[random.below(all.len())];
                let second = place.root().join(other);
                if kind(other) != kind(path) || std::fs::read(&second).unwrap() == bytes {
                    continue;
                }
                let between = place.root().join("local/tmp/between");
                std::fs::create_dir_all(between.parent().unwrap()).unwrap();
                for (from, to) in [(&file, &between), (&second, &file), (&between, &second)] {
                    std::fs::rename(from, to).unwrap();
                }
                return (
                    format!("swap of {path} and {other}"),
                    vec![path.clone(), other.clone()],
                );
            }
            _ => {}
        }
    }
}

fn overwrite(file: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(file, bytes).unwrap();
}

/// Damages, finds, repairs, runs again.
fn one(case: usize, random: &mut Random) -> String {
    let place = local();
    let remote = case.is_multiple_of(2).then(memory);
    drop(finished(&place, remote.as_ref()));
    let (what, paths) = damage(&place, random);
    let what = format!("case {case}: {what}");
    if paths[0] == "format" && place.root().join("format").exists() {
        let error = Store::open_local(&place.root())
            .err()
            .expect("another format");
        assert!(error.to_string().contains("format"), "{what}: {error}");
        return what;
    }
    let mut store = Store::open_local(&place.root()).unwrap();
    let report = store.verify(false).unwrap();
    for path in &paths {
        let found = |p: &cache::Problem| p.path == *path;
        assert!(report.problems.iter().any(found), "{what}: {report:?}");
    }
    if let Some(remote) = &remote {
        store.set_behind(remote.store(), false).unwrap();
    }
    let repaired = store.repair_all(report).unwrap();
    let report = store.verify(true).unwrap();
    assert!(report.is_whole(), "{what}: {repaired:?} left {report:?}");
    let mut computed = 0;
    for i in 0..STAGES {
        let ran = run(&store, i, place.folder.path());
        computed += usize::from(ran.unwrap_or_else(|e| panic!("{what}: {e}")).here);
        check(&store, i, place.folder.path());
    }
    if remote.is_some() {
        assert_eq!(
            computed, 0,
            "{what}: the remote store has all: {repaired:?}"
        );
    }
    let checkpoint = |(p, healed): &(cache::Problem, Healed)| {
        p.kind != ProblemKind::CorruptCheckpoint && *healed == Healed::Left
    };
    assert!(
        !repaired.healed.iter().any(checkpoint),
        "{what}: {repaired:?}"
    );
    assert!(store.verify(true).unwrap().is_whole(), "{what}");
    what
}

/// A run's list of files is damaged, and one of the files as well.
#[test]
fn a_damaged_list_hides_no_other_damage() {
    for list in ["flipped", "cut", "removed"] {
        let place = local();
        drop(finished(&place, None));
        let at = |name: &str| place.root().join("runs/run-a").join(name);
        overwrite(&at("events.jsonl"), b"{}\n");
        let mut bytes = std::fs::read(at("sealed")).unwrap();
        match list {
            "flipped" => bytes[0] ^= 1,
            _ => bytes.truncate(bytes.len() - 9),
        }
        overwrite(&at("sealed"), &bytes);
        if list == "removed" {
            std::fs::remove_file(at("sealed")).unwrap();
        }
        let store = place.store();
        let report = store.verify(false).unwrap();
        let told: Vec<&str> = report.problems.iter().map(|p| p.path.as_str()).collect();
        let [events, record, sealed] =
            ["events.jsonl", "record.json", "sealed"].map(|name| format!("runs/run-a/{name}"));
        assert!(
            told.contains(&&*events) && told.contains(&&*sealed),
            "{list}: {told:?}"
        );
        // what the list still proves is not doubted; nothing proves anything where it is gone
        assert_eq!(told.contains(&&*record), list == "removed", "{told:?}");
        store.repair_all(report).unwrap();
        assert!(store.verify(true).unwrap().is_whole(), "{list}");
        // what the repair could not prove stays out of the list; the rest is watched again
        if list != "removed" {
            overwrite(&at("record.json"), b"{}");
            let report = store.verify(false).unwrap();
            assert!(
                report.problems.iter().any(|p| p.path == record),
                "{report:?}"
            );
        }
    }
}

#[test]
fn random_damage_is_found_and_repaired() {
    let cases = number("RECIPE_CASES", 120) as usize;
    let seed = number("RECIPE_SEED", 0x5eed);
    let mut random = Random(seed | 1);
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for case in 0..cases {
        let what = one(case, &mut random);
        let words: Vec<&str> = what.split(' ').collect();
        let kind = words
            .iter()
            .find_map(|w| w.split_once('/').map(|(kind, _)| kind));
        *kinds
            .entry(format!("{} of {}", words[2], kind.unwrap_or("format")))
            .or_default() += 1;
    }
    println!("seed {seed}: {cases} damages, {cases} found and repaired: {kinds:?}");
}
