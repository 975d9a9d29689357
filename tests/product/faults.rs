//! The runner killed, stopped or raced at each of its named points: the next run ends with the right result, and the
//! store verifies. `ci/faults.py` tries many more.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Instant;

use product_tests::{Project, kill, processes, wait_for};

use crate::diamond::{diamond, json, nothing_left, outputs, run, sleep_through_a_takeover};

/// The points that the runner knows, as it says itself.
fn points() -> BTreeSet<String> {
    let project = diamond();
    let out = run(&project, "RECIPE_FAULT", "nonsense")
        .stderr(Stdio::piped())
        .output()
        .expect("recipe starts");
    assert_eq!(
        out.status.code(),
        Some(2),
        "a fault that does not exist is refused"
    );
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let list = said.split("one of ").nth(1).expect("the list of points");
    list.trim().split(", ").map(str::to_owned).collect()
}

#[test]
fn a_runner_killed_at_any_point_leaves_what_the_next_run_needs() {
    let expected = outputs(&json(&diamond()));
    let mut killed = 0;
    for point in points().iter().filter(|p| !p.starts_with("worker-")) {
        for visit in [1, 3] {
            let fault = format!("{point}:{visit}");
            let project = diamond();
            let status = run(&project, "RECIPE_FAULT", &fault)
                .status()
                .expect("recipe starts");
            // points of the whole run are visited once
            if visit == 1 {
                assert!(status.code().is_none(), "{fault} was not reached: {status}");
            }
            killed += usize::from(status.code().is_none());
            nothing_left(&project);
            project.recipe(&["cache", "verify", "--paranoid"]);
            assert_eq!(outputs(&json(&project)), expected, "{fault}");
            project.recipe(&["cache", "verify", "--paranoid"]).expect(0);
            let left = std::fs::read_dir(project.path(".recipe/local/attempts"))
                .map_or(0, Iterator::count);
            assert_eq!(left, 0, "{fault}: scratch of the dead run is gone");
        }
    }
    assert!(killed >= 15, "{killed} kills");
}

/// A worker's process is killed at each point that its events mark: its attempt fails as infrastructure, and the next
/// run ends with the same bits.
#[test]
fn a_worker_killed_at_any_point_changes_no_bit() {
    const RUN: [&str; 3] = ["run", "recipe.toml", "sft"];
    let whole = Project::of("pipeline");
    whole.recipe(&["run", "recipe.toml", "convert"]).expect(0);
    let prepared = |whole: &Project| {
        let project = Project::of("pipeline");
        let copied = Command::new("cp")
            .args(["-r".as_ref(), whole.path(".recipe").as_os_str()])
            .arg(project.path(""))
            .status();
        assert!(copied.expect("cp starts").success());
        project
    };
    let expected = outputs(&prepared(&whole).json(&RUN));
    let points = points();
    let killed = points
        .iter()
        .filter(|p| p.starts_with("worker-") || *p == "launched")
        .map(|p| (p.as_str(), false));
    let faults: Vec<_> = killed
        .chain([("worker-step", true), ("worker-checkpoint", true)])
        .collect();
    assert!(faults.len() >= 7, "{faults:?}");
    for (point, gang) in faults {
        let project = prepared(&whole);
        let mut command = project.command(&RUN);
        let action = if gang { ":gang" } else { "" };
        command.env("RECIPE_FAULT", format!("{point}:1{action}"));
        let out = command.output().expect("recipe starts");
        let said = String::from_utf8_lossy(&out.stderr);
        let wanted = gang.then_some(4);
        assert_eq!(out.status.code(), wanted, "{point}{action}: {said}");
        nothing_left(&project);
        assert_eq!(outputs(&project.json(&RUN)), expected, "{point}{action}");
        project.recipe(&["cache", "verify", "--paranoid"]).expect(0);
    }
}

/// The same at moments that nothing marks: in libtorch's start, inside a step, while a checkpoint is written. `RECIPE_CASES`
/// says how many, `RECIPE_SEED` which.
#[test]
fn a_worker_killed_at_any_moment_changes_no_bit() {
    const RUN: [&str; 5] = ["run", "recipe.toml", "sft", "-S", "steps=30"];
    let number = |name: &str, default: u64| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().expect("a number"))
    };
    let (cases, seed) = (number("RECIPE_CASES", 3), number("RECIPE_SEED", 5));
    println!("RECIPE_CASES={cases} RECIPE_SEED={seed}");
    let whole = Project::of("pipeline");
    whole.recipe(&["run", "recipe.toml", "convert"]).expect(0);
    let begun = Instant::now();
    let expected = outputs(&whole.json(&RUN));
    let took = begun.elapsed();
    let mut killed = 0;
    for case in 0..cases {
        let project = Project::of("pipeline");
        project.recipe(&["run", "recipe.toml", "convert"]).expect(0);
        // as often as it takes: each attempt goes on from the last one's checkpoint
        for round in 0..3 {
            let mut child = project.start(&RUN);
            std::thread::sleep(took.mul_f64(fraction(seed, case * 3 + round)));
            let needle = project.path("").display().to_string();
            let worker = |pid: &i32| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains("recipe-worker")
            };
            let workers: Vec<i32> = processes(needle.trim_end_matches('/'))
                .into_iter()
                .filter(worker)
                .collect();
            workers.iter().for_each(|pid| kill(*pid));
            let code = child.wait().expect("it ends").code();
            // it may have ended between the look and the kill
            let allowed: &[i32] = if workers.is_empty() { &[0] } else { &[0, 4] };
            assert!(
                code.is_some_and(|code| allowed.contains(&code)),
                "case {case}: {code:?}"
            );
            killed += usize::from(code == Some(4));
            nothing_left(&project);
            project.recipe(&["cache", "verify", "--paranoid"]).expect(0);
        }
        assert_eq!(outputs(&project.json(&RUN)), expected, "case {case}");
        project.recipe(&["cache", "verify", "--paranoid"]).expect(0);
    }
    println!("{killed} kills in {} runs", cases * 3);
    assert!(killed > 0, "no moment fell into a worker's life");
}

/// A number between 0 and 1 for each of a seed's cases: splitmix64.
fn fraction(seed: u64, case: u64) -> f64 {
    let mut z = (seed << 32)
        .wrapping_add(case + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn a_runner_that_slept_through_a_takeover_cannot_publish() {
    let project = diamond();
    sleep_through_a_takeover(&project, |command| command, |command| command);
}

#[test]
fn many_runners_at_once_run_each_stage_once() {
    let mut recipe = "[recipe]\nname = \"many\"\nschema = 1\n".to_owned();
    for i in 0..50 {
        let above = if i < 10 {
            String::new()
        } else {
            format!("in.x = \"s{}.out\"\n", i - 10)
        };
        recipe += &format!(
            "[stage.s{i}]\nkind = \"command\"\n{above}out = [\"out\"]\nenv = [\"LOG\"]\n\
             cmd = [\"sh\", \"-c\", \"echo s{i} >> $LOG; echo {i} > $OUT_out\"]\n"
        );
    }
    let project = Project::new(&recipe);
    let runs: Vec<_> = (0..16)
        .map(|_| {
            run(&project, "NO_COLOR", "1")
                .spawn()
                .expect("recipe starts")
        })
        .collect();
    for mut one in runs {
        assert!(one.wait().expect("it ends").success());
    }
    let log = project.read("log");
    let ran: BTreeSet<&str> = log.lines().collect();
    assert_eq!(
        (ran.len(), log.lines().count()),
        (50, 50),
        "each stage ran once"
    );
    project.recipe(&["cache", "verify", "--paranoid"]).expect(0);
}

/// The orphan of other build tools: the runner dies, its child lives on and writes while the next run does.
#[test]
fn an_orphan_dies_and_what_it_wrote_is_never_taken() {
    let recipe = r#"[recipe]
name = "orphan"
schema = 1
[stage.slow]
kind = "command"
cmd = ["sh", "-c", "if [ ! -e $DIR/again ]; then setsid sh -c 'echo $$ > $DIR/grandchild; while :; do echo junk >> $OUT_whole; sleep 0.05; done' & echo $$ > $DIR/child; sleep 100; fi; for i in 1 2 3 4 5; do echo $i; sleep 0.1; done > $OUT_whole"]
out = ["whole"]
env = ["DIR"]
"#;
    let project = Project::new(recipe);
    let start = || {
        let mut command = run(&project, "DIR", &project.path("").display().to_string());
        command.stderr(Stdio::piped());
        command.spawn().expect("recipe starts")
    };
    let mut first = start();
    let pid = |name: &str| {
        wait_for(name, || {
            let text = std::fs::read_to_string(project.path(name)).ok()?;
            text.trim().parse::<i32>().ok()
        })
    };
    let (child, grandchild) = (pid("child"), pid("grandchild"));
    kill(first.id() as i32);
    first.wait().expect("it ends");
    project.write("again", "");
    let second = start().wait_with_output().expect("it ends");
    assert!(
        second.status.success(),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    for pid in [child, grandchild] {
        wait_for("end of the orphan", || {
            (!processes(&project.path("").display().to_string()).contains(&pid)).then_some(())
        });
    }
    let mut get = project.command(&["get", "recipe.toml", "slow.whole", "--to", "got"]);
    assert!(
        get.env("DIR", project.path(""))
            .status()
            .expect("recipe starts")
            .success()
    );
    assert_eq!(project.read("got/data"), "1\n2\n3\n4\n5\n");
    let runs = project.path(".recipe/runs");
    let noted = std::fs::read_dir(runs).expect("runs").flatten().any(|run| {
        let log = std::fs::read_to_string(run.path().join("guard.log"));
        log.is_ok_and(|text| text.contains("the runner is gone; killed"))
    });
    assert!(noted, "the guard says what it killed");
}
