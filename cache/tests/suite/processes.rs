//! Races and deaths of whole processes: this test binary runs itself.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cache::{Claimed, Liveness, Published, Reason, Store};

use super::common::*;

fn spawn(what: &str, root: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "suite::processes::child",
            "--exact",
            "--include-ignored",
            "--nocapture",
        ])
        .env("CHILD", what)
        .env("CHILD_STORE", root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for(child: &mut Child, word: &str) -> String {
    let out = BufReader::new(child.stdout.as_mut().unwrap());
    let found = out
        .lines()
        .map_while(|line| line.ok())
        .find(|line| line.contains(word));
    found.unwrap_or_else(|| panic!("the child never said '{word}'"))
}

/// Not a test by itself: what the other processes do.
#[test]
#[ignore = "the child of the tests below"]
fn child() {
    let Ok(what) = std::env::var("CHILD") else {
        return;
    };
    let root = std::path::PathBuf::from(std::env::var("CHILD_STORE").unwrap());
    let mut store = Store::open_local(&root).unwrap();
    let scratch = root.parent().unwrap();
    if what == "race" {
        store.set_ttl(Duration::from_secs(600));
        for i in 0..25 {
            if run(&store, i, scratch).unwrap().here {
                println!("computed {i}");
            }
        }
        return;
    }
    // hold a claim until a line comes in, then try to publish
    store.set_ttl(Duration::from_millis(300));
    let Claimed::Claimed(claim) = store.claim(&key(1), Reason::First, "child").unwrap() else {
        panic!("not claimed")
    };
    let heart = store.heart(&claim);
    let record = compute(&store, 1, claim.attempt, scratch).unwrap();
    println!("\nready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    match store.publish(&claim, &record).unwrap() {
        Published::Published => println!("\nended: published"),
        _ => println!("\nended: sealed, lost: {}", heart.lost()),
    }
}

#[test]
fn processes_that_race_compute_each_stage_once() {
    let place = local();
    let children: Vec<Child> = (0..6).map(|_| spawn("race", &place.root())).collect();
    let mut computed = vec![0; 25];
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success());
        for line in String::from_utf8(out.stdout).unwrap().lines() {
            if let Some((_, i)) = line.split_once("computed ") {
                computed[i.parse::<usize>().unwrap()] += 1;
            }
        }
    }
    assert_eq!(computed, vec![1; 25]);
    let store = place.store();
    (0..25).for_each(|i| check(&store, i, place.folder.path()));
    assert!(store.verify(true).unwrap().is_whole());
}

#[test]
fn a_killed_owner_is_taken_over_at_once() {
    let place = local();
    let mut child = spawn("hold", &place.root());
    wait_for(&mut child, "ready");
    let mut store = place.store();
    store.set_ttl(Duration::from_secs(600));
    let Claimed::Busy { attempt, owner } = store.claim(&key(1), Reason::First, "b").unwrap() else {
        panic!("the child holds it")
    };
    let mut watch = store.watch(&key(1), attempt, &owner);
    assert_eq!(watch.poll().unwrap(), Liveness::Alive);
    child.kill().unwrap();
    child.wait().unwrap();
    let began = Instant::now();
    let ran = run(&store, 1, place.folder.path()).unwrap();
    assert_eq!(
        ran,
        Ran {
            attempt: 2,
            here: true
        }
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "no time to live was waited for"
    );
    check(&store, 1, place.folder.path());
}

#[test]
fn a_stopped_owner_that_comes_back_cannot_publish() {
    use nix::sys::signal::{Signal, kill};
    let place = local();
    let mut child = spawn("hold", &place.root());
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    wait_for(&mut child, "ready");
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut store = place.store();
    store.set_ttl(Duration::from_millis(300));
    let ran = run(&store, 1, place.folder.path()).unwrap();
    assert_eq!(
        ran,
        Ran {
            attempt: 2,
            here: true
        }
    );
    kill(pid, Signal::SIGCONT).unwrap();
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert!(wait_for(&mut child, "ended").contains("sealed"));
    assert!(child.wait().unwrap().success());
    assert_eq!(store.current(&key(1)).unwrap().unwrap().0, 2);
    check(&store, 1, place.folder.path());
}
