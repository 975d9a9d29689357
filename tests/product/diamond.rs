//! Four stages that tests of faults share: what is run, killed and run again.

use std::process::{Command, Stdio};

use product_tests::{Project, processes, wait_for};
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

pub fn diamond() -> Project {
    let project = Project::new(DIAMOND);
    project.write("in.txt", "some words\n");
    project
}

/// `recipe run` with a variable set.
pub fn run(project: &Project, name: &str, value: &str) -> Command {
    let mut command = project.command(&["run", "recipe.toml"]);
    command.env("LOG", project.path("log"));
    command.env(name, value);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub fn json(project: &Project) -> Value {
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
pub fn outputs(run: &Value) -> Vec<String> {
    let stages = run["stages"].as_array().expect("stages");
    stages.iter().map(|s| s["outputs"].to_string()).collect()
}

pub fn nothing_left(project: &Project) {
    let needle = project.path("").display().to_string();
    wait_for("end of all processes", || {
        processes(needle.trim_end_matches('/'))
            .is_empty()
            .then_some(())
    });
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

/// One runner is stopped before it publishes, another takes over, the first comes back and cannot publish. `first` and
/// `second` say what else the two are started with.
pub fn sleep_through_a_takeover(
    project: &Project,
    first: impl Fn(&mut Command) -> &mut Command,
    second: impl Fn(&mut Command) -> &mut Command,
) {
    let mut sleeper = run(project, "RECIPE_FAULT", "ingested:1:stop");
    first(sleeper.env("RECIPE_CLAIM_TTL", "1s")).stderr(Stdio::piped());
    let sleeper = sleeper.spawn().expect("recipe starts");
    stopped(sleeper.id());
    let mut other = run(project, "RECIPE_CLAIM_TTL", "1s");
    second(&mut other).stderr(Stdio::piped());
    let other = other.output().expect("recipe starts");
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
