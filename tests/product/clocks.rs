//! Runners whose clocks are hours apart: no decision is made by a machine's clock. `ci/faults.py --only clocks` tries more.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::diamond::{diamond, json, nothing_left, outputs, run, sleep_through_a_takeover};

/// What a C program is told for the time of day, moved by `SKEW` seconds. Files are stamped by the true clock, as a file
/// server's are.
const SHIFTED: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, clock, at);
    const char *skew = getenv("SKEW");
    if (!failed && skew && clock == CLOCK_REALTIME) at->tv_sec += atol(skew);
    return failed;
}
"#;

/// Starts programs under another clock.
struct Clocks {
    _folder: tempfile::TempDir,
    library: PathBuf,
}

impl Clocks {
    fn new() -> Clocks {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (source, library) = (
            folder.path().join("clock.c"),
            folder.path().join("clock.so"),
        );
        std::fs::write(&source, SHIFTED).expect("a file");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status();
        assert!(built.expect("a C compiler").success());
        Clocks {
            _folder: folder,
            library,
        }
    }

    fn set<'a>(&self, command: &'a mut Command, hours: i64) -> &'a mut Command {
        let skew = (hours * 3600).to_string();
        command.env("LD_PRELOAD", &self.library).env("SKEW", skew)
    }
}

#[test]
fn clocks_that_are_hours_apart_change_nothing() {
    let clocks = Clocks::new();
    let expected = outputs(&json(&diamond()));
    for (a, b) in [(7, -7), (-7, 7)] {
        // at once: each stage runs once
        let project = diamond();
        let start = |hours| {
            let mut command = run(&project, "NO_COLOR", "1");
            let child = clocks.set(&mut command, hours).spawn();
            child.expect("recipe starts")
        };
        for mut one in [start(a), start(b)] {
            assert!(one.wait().expect("it ends").success());
        }
        assert_eq!(project.read("log").lines().count(), 4);
        assert_eq!(outputs(&json(&project)), expected);
        // ids of runs tell whose clock was which
        let days: Vec<String> = std::fs::read_dir(project.path(".recipe/runs"))
            .expect("runs")
            .flatten()
            .map(|run| run.file_name().to_string_lossy()[..11].to_owned())
            .collect();
        assert!(
            days.iter().any(|day| *day != days[0]),
            "the clocks differ: {days:?}"
        );

        // one dies, the other takes over
        for point in ["claimed:2", "launched:2", "ingested:3"] {
            let project = diamond();
            let mut dies = run(&project, "RECIPE_FAULT", point);
            let status = clocks.set(&mut dies, a).status().expect("recipe starts");
            assert!(status.code().is_none(), "{point} was not reached");
            nothing_left(&project);
            let mut next = run(&project, "RECIPE_CLAIM_TTL", "1s");
            let next = clocks.set(&mut next, b).stderr(Stdio::piped()).output();
            let next = next.expect("recipe starts");
            let said = String::from_utf8_lossy(&next.stderr);
            assert!(next.status.success(), "{point}: {said}");
            assert_eq!(outputs(&json(&project)), expected, "{point}");
            project.recipe(&["cache", "verify", "--paranoid"]).expect(0);
        }

        // one sleeps through it
        sleep_through_a_takeover(&diamond(), |c| clocks.set(c, a), |c| clocks.set(c, b));
    }
}

#[test]
fn a_collection_goes_by_the_stores_clock() {
    let clocks = Clocks::new();
    let project = diamond();
    let expected = outputs(&json(&project));
    for hours in [-48, 48] {
        // what was made just now is no day old, whatever this machine's clock says
        let mut gc = project.command(&["cache", "gc", "--older-than", "24h"]);
        let gc = clocks.set(&mut gc, hours).output().expect("recipe starts");
        let said = String::from_utf8_lossy(&gc.stdout);
        assert!(
            gc.status.success()
                && said.starts_with(
                    "removed 0 records of runs, results of 0 keys, 0 checkpoints, 0 blobs"
                ),
            "{said}"
        );
        assert_eq!(outputs(&json(&project)), expected);
        assert_eq!(project.read("log").lines().count(), 4, "nothing ran again");
    }
}
