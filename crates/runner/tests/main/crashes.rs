//! What is left when the runner is killed, and several runners on one store.

use crate::project::{Project, collect, lives, signal, wait};

/// `slow` notes its process and that of a grandchild which left its session, then writes for a while.
const SLOW: &str = r#"
[recipe]
name = "slow"
schema = 1
[stage.slow]
kind = "command"
cmd = ["sh", "-c", "echo run >> $DIR/ran; setsid sh -c 'echo $$ > $DIR/grandchild; exec sleep 100' & echo $$ > $DIR/child; sleep ${params.seconds}; echo done > $OUT_out; kill $!"]
out = ["out"]
env = ["DIR"]
[stage.next]
kind = "command"
in.x = "slow.out"
cmd = ["sh", "-c", "cp $IN_x $OUT_out"]
out = ["out"]
[params]
seconds = "1"
"#;

#[test]
fn killing_the_runner_leaves_no_process_and_the_next_run_heals() {
    let p = Project::new(&SLOW.replace("seconds = \"1\"", "seconds = \"30\""));
    let mut child = p.start(&[]);
    p.wait_for("grandchild");
    p.wait_for("child");
    signal(child.id(), libc::SIGKILL);
    child.wait().unwrap();
    for name in ["child", "grandchild"] {
        wait(|| !lives(&p.read(name)), &format!("end of {name}"));
    }
    let run = p.store().list_runs().unwrap().pop().unwrap();
    let log = || {
        p.store()
            .get_run(&run, "guard.log")
            .unwrap()
            .unwrap_or_default()
    };
    wait(|| !log().is_empty(), "guard.log");
    assert!(String::from_utf8(log()).unwrap().contains("killed"));
    let record =
        String::from_utf8(p.store().get_run(&run, "record.json").unwrap().unwrap()).unwrap();
    assert!(record.contains("\"running\""), "{record}");

    // The same recipe again; only the time it sleeps is cut short, by a kill of the sleep.
    p.write("child", "");
    let second = p.start(&[]);
    p.wait_for("child");
    let shell = p.read("child").trim().to_owned();
    // A child that has not yet become `sleep` still shows its shell's command line.
    let sleep = || {
        std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))
            .unwrap_or_default()
            .split_whitespace()
            .find(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c == b"sleep\x0030\0")
            })
            .map(|pid| pid.parse().unwrap())
    };
    wait(|| sleep().is_some(), "sleep");
    signal(sleep().unwrap(), libc::SIGTERM);
    let healed = collect(second);
    assert_eq!(
        (healed.code, healed.status("slow"), healed.status("next")),
        (0, "ran", "ran"),
        "{}",
        healed.stderr
    );
    assert_eq!(
        healed.stage("slow")["attempt"],
        2,
        "the first attempt was sealed"
    );
    assert_eq!(p.output(&healed, "next", "out"), "done\n");
    let left: Vec<_> = std::fs::read_dir(p.path("store/local/attempts"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "scratch of both runs is gone: {left:?}");
}

#[test]
fn two_runners_compute_once() {
    let p = Project::new(SLOW);
    let runs: Vec<_> = (0..4).map(|_| p.start(&[])).collect();
    let ran: Vec<_> = runs.into_iter().map(collect).collect();
    assert_eq!(p.lines("ran"), ["run"], "one of four computes");
    for r in &ran {
        assert_eq!(r.code, 0, "{}", r.stderr);
        assert_eq!(r.stage("slow")["outputs"], ran[0].stage("slow")["outputs"]);
    }
    assert_eq!(ran.iter().filter(|r| r.status("slow") == "ran").count(), 1);
    assert!(ran.iter().any(|r| r.has("stage_waiting")));
}

#[test]
fn a_runner_takes_over_from_one_that_dies() {
    let p = Project::new(SLOW);
    let mut first = p.start(&[]);
    p.wait_for("child");
    let second = p.start(&[]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(first.id(), libc::SIGKILL);
    first.wait().unwrap();
    let ran = collect(second);
    assert_eq!((ran.code, ran.status("slow")), (0, "ran"), "{}", ran.stderr);
    assert_eq!(p.lines("ran"), ["run", "run"]);
    assert_eq!(ran.stage("slow")["attempt"], 2);
}

#[test]
fn a_stage_that_leaves_processes_behind_is_swept() {
    let p = Project::new(
        r#"
[recipe]
name = "litter"
schema = 1
[stage.a]
kind = "command"
cmd = ["sh", "-c", "setsid sh -c 'echo $$ > $DIR/pid; exec sleep 100' & while [ ! -s $DIR/pid ]; do sleep 0.01; done; echo x > $OUT_out"]
out = ["out"]
env = ["DIR"]
"#,
    );
    let ran = p.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(!lives(&p.read("pid")));
    assert!(
        ran.all("message")
            .iter()
            .any(|m| m["text"].as_str().unwrap().contains("outlived"))
    );
}

#[test]
fn timeouts_end_what_does_not_end() {
    let p = Project::new(
        r#"
[recipe]
name = "late"
schema = 1
[stage.a]
kind = "command"
timeout = "1s"
cmd = ["sh", "-c", "trap '' TERM; echo $$ > $DIR/pid; sleep 60 & sleep 60; sleep 60"]
out = ["out"]
env = ["DIR"]
"#,
    );
    let start = std::time::Instant::now();
    let ran = p.run(&["--grace-ms", "300"]);
    assert_eq!((ran.code, ran.status("a")), (1, "failed"));
    assert_eq!(ran.stage("a")["error"]["class"], "timeout");
    assert!(start.elapsed().as_secs() < 20 && !lives(&p.read("pid")));
}

#[test]
fn an_interrupted_command_is_killed_and_runs_again() {
    let p = Project::new(SLOW);
    let child = p.start(&[]);
    p.wait_for("child");
    signal(child.id(), libc::SIGINT);
    let ran = collect(child);
    assert_eq!(
        (ran.code, ran.status("slow"), ran.status("next")),
        (130, "killed", "not_run"),
        "{}",
        ran.stderr
    );
    assert!(!lives(&p.read("child")));
    let again = p.run(&[]);
    assert_eq!((again.code, again.status("slow")), (0, "ran"));
}
