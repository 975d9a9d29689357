//! Order, room, retries, stops.

use std::time::{Duration, Instant};

use crate::project::{Project, collect, lives, signal, wait};

#[test]
fn the_longest_way_by_recorded_times_goes_first() {
    let mut recipe = "[recipe]\nname = \"order\"\nschema = 1\n".to_owned();
    let stage = |name: &str, input: &str, seconds: &str| {
        format!(
            "[stage.{name}]\nkind = \"command\"\n{input}out = [\"out\"]\nenv = [\"DIR\"]\n\
             cmd = [\"sh\", \"-c\", \"echo {name} >> $DIR/order; sleep {seconds}; echo {name} > $OUT_out\"]\n"
        )
    };
    for i in 0..4 {
        recipe += &stage(&format!("short{i}"), "", "0");
    }
    recipe += &stage("long", "", "0.2");
    recipe += &stage("below", "in.x = \"long.out\"\n", "0.2");
    let p = Project::new(&recipe);
    assert_eq!(p.run(&["-j", "1"]).code, 0);
    let order = || {
        p.read("order")
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    // nothing is known yet: the chain of two before the others, by its length
    assert_eq!(order()[..2], ["long", "short0"].map(str::to_owned));
    p.write("order", "");
    assert_eq!(p.run(&["-j", "1", "--force", "all"]).code, 0);
    assert_eq!(order()[..2], ["long", "below"].map(str::to_owned));
}

#[test]
fn a_stage_that_takes_all_cores_runs_alone() {
    let mut recipe = "[recipe]\nname = \"room\"\nschema = 1\n".to_owned();
    for i in 0..6 {
        let threads = if i % 2 == 0 { 4096 } else { 1 };
        recipe += &format!(
            "[stage.s{i}]\nkind = \"command\"\nresources.threads = {threads}\nout = [\"out\"]\nenv = [\"DIR\"]\n\
             cmd = [\"sh\", \"-c\", \"echo +{i} >> $DIR/log; sleep 0.1; echo -{i} >> $DIR/log; echo {i} > $OUT_out\"]\n"
        );
    }
    let p = Project::new(&recipe);
    assert_eq!(p.run(&[]).code, 0);
    let log = p.read("log");
    let lines: Vec<&str> = log.lines().collect();
    for i in [0, 2, 4] {
        let at = lines.iter().position(|l| *l == format!("+{i}")).unwrap();
        assert_eq!(lines[at + 1], format!("-{i}"), "others beside s{i}: {log}");
    }
}

#[test]
fn only_the_failures_that_were_named_are_tried_again_and_later_each_time() {
    let recipe = r#"
[recipe]
name = "flaky"
schema = 1
[stage.a]
kind = "command"
retry = { max = 3, on = ["infra"] }
cmd = ["sh", "-c", "echo x >> $DIR/tries; [ $(wc -l < $DIR/tries) -ge 3 ] || exit CODE; echo done > $OUT_out"]
out = ["out"]
env = ["DIR"]
"#;
    let p = Project::new(&recipe.replace("CODE", "4"));
    let start = Instant::now();
    let ran = p.run(&[]);
    assert_eq!((ran.code, ran.status("a")), (0, "ran"), "{}", ran.stderr);
    assert_eq!(
        (p.lines("tries").len(), &ran.stage("a")["attempt"]),
        (3, &3.into())
    );
    let failed = ran.all("attempt_failed");
    assert!(failed.len() == 2 && failed.iter().all(|f| f["retry"] == true));
    // half a second, then one
    assert!(start.elapsed() >= Duration::from_millis(1500));

    let p = Project::new(&recipe.replace("CODE", "1"));
    let ran = p.run(&[]);
    assert_eq!(
        (ran.code, p.lines("tries").len()),
        (1, 1),
        "a failure of the stage's own is final"
    );
    assert_eq!(ran.all("attempt_failed")[0]["retry"], false);

    let p = Project::new(
        &recipe
            .replace("CODE", "4")
            .replace("-ge 3", "-ge 30")
            .replace("max = 3", "max = 1"),
    );
    let ran = p.run(&[]);
    assert_eq!(
        (ran.code, p.lines("tries").len()),
        (4, 2),
        "one try more and no further"
    );
}

#[test]
fn how_a_command_ended_is_told() {
    for (cmd, code, says) in [
        ("kill -KILL $$", 4, "killed by SIGKILL"),
        ("kill -SEGV $$", 1, "killed by SIGSEGV"),
        ("exit 7", 1, "exit code 7"),
        (
            "echo to stdout; echo to stderr >&2; exit 1",
            1,
            "exit code 1",
        ),
    ] {
        let recipe = "[recipe]\nname = \"ends\"\nschema = 1\n[stage.a]\nkind = \"command\"\nout = [\"out\"]\n";
        let p = Project::new(&format!("{recipe}cmd = [\"sh\", \"-c\", \"{cmd}\"]\n"));
        let ran = p.run(&[]);
        let message = ran.stage("a")["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            ran.code == code && message.contains(says),
            "{cmd}: {} {message}",
            ran.code
        );
        if cmd.starts_with("echo") {
            assert_eq!(
                ran.all("attempt_failed")[0]["tail"],
                serde_json::json!(["to stdout", "to stderr"])
            );
        }
    }
}

#[test]
fn the_second_interrupt_kills_what_will_not_stop() {
    let p = Project::new(
        r#"
[recipe]
name = "stubborn"
schema = 1
[stage.a]
kind = "command"
cmd = ["sh", "-c", "trap 'echo asked >> $DIR/asked' TERM; echo $$ > $DIR/pid; while :; do sleep 0.05; done"]
out = ["out"]
env = ["DIR"]
"#,
    );
    let child = p.start(&["--grace-ms", "60000"]);
    p.wait_for("pid");
    signal(child.id(), libc::SIGINT);
    p.wait_for("asked");
    assert!(lives(&p.read("pid")), "the first request asks");
    let start = Instant::now();
    signal(child.id(), libc::SIGINT);
    let ran = collect(child);
    assert_eq!((ran.code, ran.status("a")), (130, "killed"));
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "long before the grace ends"
    );
    wait(|| !lives(&p.read("pid")), "end of the command");
}

#[test]
fn a_cancelled_run_goes_on_where_it_was() {
    let mut recipe = "[recipe]\nname = \"chain\"\nschema = 1\n".to_owned();
    for i in 0..6 {
        let input = if i == 0 {
            String::new()
        } else {
            format!("in.x = \"s{}.out\"\n", i - 1)
        };
        recipe += &format!(
            "[stage.s{i}]\nkind = \"command\"\n{input}out = [\"out\"]\nenv = [\"DIR\"]\n\
             cmd = [\"sh\", \"-c\", \"echo s{i} >> $DIR/log; sleep 0.2; echo {i} > $OUT_out\"]\n"
        );
    }
    let p = Project::new(&recipe);
    let child = p.start(&["--grace-ms", "100"]);
    wait(|| p.lines("log").len() >= 3, "third stage");
    signal(child.id(), libc::SIGTERM);
    let stopped = collect(child);
    assert_eq!(stopped.code, 143);
    let before = (0..6)
        .filter(|i| stopped.status(&format!("s{i}")) == "ran")
        .count();
    assert!(before >= 2);
    let again = p.run(&[]);
    assert_eq!(again.code, 0);
    let reused = (0..6)
        .filter(|i| again.status(&format!("s{i}")) == "reused")
        .count();
    assert_eq!(reused, before, "what had ended is not computed again");
}
