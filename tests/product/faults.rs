//! The runner killed, stopped or raced at each of its named points: the next run ends with the right result, and the
//! store verifies. `ci/faults.py` tries many more.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use product_tests::{Project, kill, processes, wait_for};
use serde_json::Value;

/// Two stages side by side below one, and one that reads both; each says that it ran.
const DIAMOND: &str = r#"[recipe]
name = "diamond"
schema = 1
[source.text]
path = "in.txt"
[stage.top]
kind = "command"
in.x = "source.text"
cmd = ["sh", "-c", "echo top >> $LOG; tr a-z A-Z < $IN_x > $OUT_out"]
out = ["out"]
env = ["LOG"]
[stage.left]
kind = "command"
in.x = "top.out"
cmd = ["sh", "-c", "echo left >> $LOG; rev < $IN_x > $OUT_out"]
out = ["out"]
env = ["LOG"]
[stage.right]
kind = "command"
in.x = "top.out"
cmd = ["sh", "-c", "echo right >> $LOG; mkdir $OUT_out; cp $IN_x $OUT_out/a; wc -c < $IN_x > $OUT_out/b"]
out = ["out"]
env = ["LOG"]
[stage.bottom]
kind = "command"
in = { x = "left.out", y = "right.out" }
cmd = ["sh", "-c", "echo bottom >> $LOG; cat $IN_x $IN_y/a $IN_y/b > $OUT_out"]
out = ["out"]
env = ["LOG"]
"#;

fn diamond() -> Project {
    let project = Project::new(DIAMOND);
    project.write("in.txt", "some words\n");
    project
}

/// `recipe run` with a variable set.
fn run(project: &Project, name: &str, value: &str) -> Command {
    let mut command = project.command(&["run", "recipe.toml"]);
    command.env("LOG", project.path("log"));
    command.env(name, value);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn json(project: &Project) -> Value {
    let mut command = project.command(&["run", "recipe.toml", "--json"]);
    let out = command.env("LOG", project.path("log"));
    let out = out.output().expect("recipe starts");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// Outputs of all stages.
fn outputs(run: &Value) -> Vec<String> {
    let stages = run["stages"].as_array().expect("stages");
    stages.iter().map(|s| s["outputs"].to_string()).collect()
}

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

fn nothing_left(project: &Project) {
    let needle = project.path("").display().to_string();
    wait_for("end of all processes", || {
        processes(needle.trim_end_matches('/'))
            .is_empty()
            .then_some(())
    });
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

/// Waits until a process is stopped.
fn stopped(pid: u32) {
    wait_for("stopped process", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?
            .1
            .trim_start()
            .starts_with('T')
            .then_some(())
    });
}

#[test]
fn a_runner_that_slept_through_a_takeover_cannot_publish() {
    let project = diamond();
    let mut sleeper = run(&project, "RECIPE_FAULT", "ingested:1:stop");
    sleeper.env("RECIPE_CLAIM_TTL", "1s").stderr(Stdio::piped());
    let sleeper = sleeper.spawn().expect("recipe starts");
    stopped(sleeper.id());
    let other = run(&project, "RECIPE_CLAIM_TTL", "1s")
        .stderr(Stdio::piped())
        .output()
        .expect("recipe starts");
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(
        other.status.success() && said.contains("taking over"),
        "{said}"
    );
    // SAFETY: plain kill(2).
    unsafe { libc::kill(sleeper.id() as i32, libc::SIGCONT) };
    let slept = sleeper.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&slept.stderr);
    assert!(slept.status.success(), "{said}");
    assert!(said.contains("was taken over"), "{said}");
    assert!(said.contains("top: done elsewhere"), "{said}");
    // the one that took over ran every stage, the one that slept only the one it lost
    let log = project.read("log");
    let count = |stage: &str| log.lines().filter(|l| *l == stage).count();
    assert_eq!(
        [count("top"), count("left"), count("right"), count("bottom")],
        [2, 1, 1, 1]
    );
    project.recipe(&["cache", "verify", "--paranoid"]).expect(0);
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
