//! `command` stages: reuse, cut-off, force, failures, selection, environment, assertions on exit codes.

use crate::project::{Project, ran};

/// `a` writes what `in.txt` says before the comma; `b` and `c` below it. Each notes that it ran.
const CHAIN: &str = r#"
[recipe]
name = "chain"
schema = 1
[source.text]
path = "in.txt"
[stage.a]
kind = "command"
in.text = "source.text"
cmd = ["sh", "-c", "echo a >> $DIR/ran; cut -d, -f1 $IN_text > $OUT_out"]
out = ["out"]
env = ["DIR"]
[stage.b]
kind = "command"
in.x = "a.out"
cmd = ["sh", "-c", "echo b >> $DIR/ran; mkdir $OUT_out; tr a-z A-Z < $IN_x > $OUT_out/upper"]
out = ["out"]
env = ["DIR"]
[stage.c]
kind = "command"
in.x = "b.out"
in.y = "a.out"
cmd = ["sh", "-c", "echo c >> $DIR/ran; cat $IN_x/upper $IN_y > $OUT_out"]
out = ["out"]
env = ["DIR"]
"#;

fn chain() -> Project {
    let project = Project::new(CHAIN);
    project.write("in.txt", "one,x\n");
    project
}

#[test]
fn secrets_are_seen_and_not_kept() {
    let p = Project::new(
        "[recipe]\nname = \"s\"\nschema = 1\n[stage.a]\nkind = \"command\"\ncmd = [\"sh\", \"-c\", \"printf %s $TOKEN | wc -c > $OUT_out; test -z $OTHER\"]\nsecrets = [\"TOKEN\"]\nout = [\"out\"]\n",
    );
    let without = p.run(&[]);
    assert_eq!(without.code, 2);
    let error = without.stage("a")["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(error.contains("needs the secret 'TOKEN'"), "{error}");
    let with = |value: &str| {
        let mut command = p.command(&[]);
        command.env("TOKEN", value).env("OTHER", "x");
        crate::project::ran(command)
    };
    let first = with("hush-4711");
    assert_eq!(
        (first.code, p.output(&first, "a", "out").trim()),
        (0, "9"),
        "{}",
        first.stderr
    );
    assert_eq!(
        with("another").status("a"),
        "reused",
        "its value is not in the key"
    );
    let found = std::process::Command::new("grep")
        .args(["-r", "hush-4711"])
        .arg(p.path("store"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn reuses_cuts_off_and_follows_changes() {
    let p = chain();
    let first = p.run(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert_eq!(p.output(&first, "c", "out"), "ONE\none\n");
    assert_eq!(p.lines("ran"), ["a", "b", "c"]);

    let again = p.run(&[]);
    assert_eq!(again.code, 0);
    for stage in ["a", "b", "c"] {
        assert_eq!(again.status(stage), "reused");
    }
    assert_eq!(p.lines("ran").len(), 3);
    assert_eq!(again.stage("c")["outputs"], first.stage("c")["outputs"]);

    // The source changes, what `a` makes of it does not: b and c are cut off.
    p.write("in.txt", "one,y\n");
    let cut = p.run(&[]);
    assert_eq!(
        (cut.status("a"), cut.status("b"), cut.status("c")),
        ("ran", "reused", "reused")
    );
    assert!(cut.has("source"), "the drift of a locked source is told");

    p.write("in.txt", "two,y\n");
    let all = p.run(&[]);
    assert_eq!(p.output(&all, "c", "out"), "TWO\ntwo\n");
    assert_eq!(p.lines("ran").len(), 3 + 1 + 3);

    // Back to the start: everything is still there, with no process at all.
    p.write("in.txt", "one,x\n");
    let back = p.run(&[]);
    assert_eq!(back.status("c"), "reused");
    assert_eq!(back.stage("c")["outputs"], first.stage("c")["outputs"]);
}

#[test]
fn a_renamed_source_or_stage_is_the_same_content() {
    let p = chain();
    p.run(&[]);
    std::fs::rename(p.path("in.txt"), p.path("other.txt")).unwrap();
    p.write(
        "r.toml",
        &CHAIN
            .replace("in.txt", "other.txt")
            .replace("stage.a", "stage.z")
            .replace("a.out", "z.out"),
    );
    let ran = p.run(&[]);
    assert_eq!(
        (ran.code, ran.status("z"), ran.status("c")),
        (0, "reused", "reused")
    );
}

#[test]
fn force_runs_again_and_below_is_cut_off() {
    let p = chain();
    p.run(&[]);
    let forced = p.run(&["--force", "b"]);
    assert_eq!(
        (forced.status("a"), forced.status("b"), forced.status("c")),
        ("reused", "ran", "reused")
    );
    assert_eq!(forced.stage("b")["attempt"], 2);
    let all = p.run(&["--force", "all"]);
    assert_eq!(
        (all.status("a"), all.status("b"), all.status("c")),
        ("ran", "ran", "ran")
    );
    assert_eq!(p.run(&["--force", "nosuch"]).code, 2);
}

#[test]
fn failures_stop_or_are_gone_around() {
    let p = Project::new(
        r#"
[recipe]
name = "fails"
schema = 1
[stage.bad]
kind = "command"
cmd = ["sh", "-c", "echo the reason >&2; exit 3"]
out = ["out"]
[stage.below]
kind = "command"
in.x = "bad.out"
cmd = ["true"]
out = ["out"]
[stage.slow]
kind = "command"
cmd = ["sh", "-c", "sleep 0.3; echo x > $OUT_out"]
out = ["out"]
[stage.after]
kind = "command"
in.x = "slow.out"
cmd = ["sh", "-c", "cp $IN_x $OUT_out"]
out = ["out"]
"#,
    );
    let stop = p.run(&["-j", "1"]);
    assert_eq!(
        (stop.code, stop.status("bad"), stop.status("below")),
        (1, "failed", "skipped")
    );
    assert_eq!(
        (stop.status("slow"), stop.status("after")),
        ("not_run", "not_run")
    );
    let failed = &stop.all("attempt_failed")[0];
    assert_eq!(failed["tail"][0], "the reason");
    assert!(
        failed["error"]["message"]
            .as_str()
            .unwrap()
            .contains("exit code 3"),
        "{failed}"
    );

    let on = p.run(&["--keep-going"]);
    assert_eq!(
        (on.code, on.status("slow"), on.status("after")),
        (1, "ran", "ran")
    );
    assert_eq!(
        (on.status("bad"), on.status("below")),
        ("failed", "skipped")
    );
}

#[test]
fn outputs_that_are_missing_fail_the_stage() {
    let recipe = r#"
[recipe]
name = "none"
schema = 1
[stage.a]
kind = "command"
cmd = ["sh", "-c", "CMD"]
out = ["one", "two"]
"#;
    for (cmd, says) in [
        ("echo x > $OUT_one", "did not write output 'two'"),
        (
            "echo x > $OUT_one; ln -s /etc/passwd $OUT_two",
            "neither a file nor a directory",
        ),
    ] {
        let ran = Project::new(&recipe.replace("CMD", cmd)).run(&[]);
        let error = ran.stage("a")["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(ran.code == 1 && error.contains(says), "{error}");
    }
    let ran = Project::new(&recipe.replace("[\"sh\", \"-c\", \"CMD\"]", "[\"no-such-program\"]"))
        .run(&[]);
    assert!(
        ran.stage("a")["error"]["message"]
            .as_str()
            .unwrap()
            .contains("no-such-program")
    );
}

#[test]
fn the_environment_is_what_was_declared() {
    let p = Project::new(
        r#"
[recipe]
name = "env"
schema = 1
[stage.a]
kind = "command"
cmd = ["sh", "-c", "env | cut -d= -f1 | sort > $OUT_names; pwd > $OUT_cwd"]
out = ["names", "cwd"]
env = ["DECLARED"]
"#,
    );
    let with = |value: &str| {
        let mut command = p.command(&[]);
        command.env("DECLARED", value).env("SECRET", "s");
        ran(command)
    };
    let first = with("1");
    let names = p.output(&first, "a", "names");
    assert!(
        names.contains("DECLARED\n") && names.contains("OUT_names\n"),
        "{names}"
    );
    assert!(
        !names.contains("SECRET") && !names.contains("HOME"),
        "{names}"
    );
    assert_ne!(
        p.output(&first, "a", "cwd").trim(),
        p.dir.path().to_str().unwrap()
    );
    assert_eq!(with("1").status("a"), "reused");
    assert_eq!(with("2").status("a"), "ran");
}

#[test]
fn selection_needs_what_it_leaves_out() {
    let p = chain();
    let early = p.run(&["--only", "b"]);
    assert_eq!(
        (early.code, early.status("a"), early.status("b")),
        (2, "failed", "skipped")
    );
    assert!(p.lines("ran").is_empty());
    p.run(&[]);
    let only = p.run(&["--only", "b", "--force", "b"]);
    assert_eq!(
        (
            only.code,
            only.status("a"),
            only.status("b"),
            only.status("c")
        ),
        (0, "reused", "ran", "skipped")
    );
    let from = p.run(&["--from", "b", "--force", "all"]);
    assert_eq!(
        (from.status("a"), from.status("b"), from.status("c")),
        ("reused", "ran", "ran")
    );
}

#[test]
fn lost_artifacts_are_made_again_only_when_needed() {
    let p = chain();
    let first = p.run(&[]);
    let drop_blob = |stage: &str| {
        let digest: cache::Digest = first.stage(stage)["outputs"]["out"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let blob = p.store().manifest(&digest).unwrap().files[0].blob.hex();
        std::fs::remove_file(p.path("store").join("blobs").join(&blob[..2]).join(&blob)).unwrap();
    };
    // Nothing needs a's artifact while b and c have results.
    drop_blob("a");
    let idle = p.run(&[]);
    assert_eq!(
        (idle.code, idle.status("a"), idle.status("c")),
        (0, "reused", "reused")
    );
    // c's is wanted, and to make it again both its inputs are.
    drop_blob("c");
    let healed = p.run(&[]);
    assert_eq!(
        (healed.status("a"), healed.status("b"), healed.status("c")),
        ("ran", "reused", "ran")
    );
    assert_eq!(healed.stage("c")["outputs"], first.stage("c")["outputs"]);
    assert_eq!(p.run(&[]).status("a"), "reused");
}

#[test]
fn sources_must_exist_match_the_lock_and_stay() {
    let p = chain();
    assert_eq!(p.run(&["--locked"]).code, 6, "nothing is pinned yet");
    p.run(&[]);
    let lock = p.read("recipe.lock");
    assert!(lock.contains("path = \"in.txt\""), "{lock}");
    assert_eq!(p.run(&["--locked"]).code, 0);
    p.write("in.txt", "three,x\n");
    let stale = p.run(&["--locked"]);
    assert!(
        stale.code == 6 && stale.stderr.contains("recipe.lock"),
        "{}",
        stale.stderr
    );
    assert_eq!(p.read("recipe.lock"), lock);
    std::fs::remove_file(p.path("in.txt")).unwrap();
    let gone = p.run(&[]);
    assert!(
        gone.code == 2 && gone.stderr.contains("does not exist"),
        "{}",
        gone.stderr
    );

    // Edited while it is read.
    let p = Project::new(&CHAIN.replace("cut -d,", "echo more >> $DIR/in.txt; cut -d,"));
    p.write("in.txt", "one,x\n");
    let edited = p.run(&[]);
    assert_eq!((edited.code, edited.status("a")), (5, "failed"));
}

#[test]
fn independent_stages_run_side_by_side_in_order_of_cost() {
    let mut recipe = "[recipe]\nname = \"wide\"\nschema = 1\n".to_owned();
    for i in 0..12 {
        recipe += &format!(
            "[stage.s{i}]\nkind = \"command\"\nout = [\"out\"]\nenv = [\"DIR\"]\n\
             cmd = [\"sh\", \"-c\", \"echo {i} >> $DIR/order; echo {i} > $OUT_out\"]\n"
        );
    }
    let p = Project::new(&recipe);
    assert_eq!(p.run(&["-j", "1"]).code, 0);
    let order: Vec<usize> = p
        .read("order")
        .lines()
        .map(|l| l.parse().unwrap())
        .collect();
    assert_eq!(
        order,
        (0..12).collect::<Vec<_>>(),
        "equals run in the order of the file"
    );
    let record: serde_json::Value = serde_json::from_str(&record(&p)).unwrap();
    assert_eq!(record["state"], "finished");
    assert_eq!(record["stages"].as_array().unwrap().len(), 12);
    assert!(record["stages"][3]["cost_seconds"].as_f64().unwrap() > 0.0);
}

/// The newest run's record.
fn record(p: &Project) -> String {
    let store = p.store();
    let run = store.list_runs().unwrap().pop().unwrap();
    String::from_utf8(store.get_run(&run, "record.json").unwrap().unwrap()).unwrap()
}

#[test]
fn a_run_with_nothing_to_do_is_fast() {
    let mut recipe = "[recipe]\nname = \"ten\"\nschema = 1\n".to_owned();
    for i in 0..10 {
        let input = if i == 0 {
            String::new()
        } else {
            format!("in.x = \"s{}.out\"\n", i - 1)
        };
        recipe += &format!(
            "[stage.s{i}]\nkind = \"command\"\n{input}out = [\"out\"]\ncmd = [\"sh\", \"-c\", \"echo {i} > $OUT_out\"]\n"
        );
    }
    let p = Project::new(&recipe);
    assert_eq!(p.run(&[]).code, 0);
    // The best of several: other tests load the machine.
    let best = (0..10)
        .map(|_| {
            let ran = p.run(&[]);
            assert_eq!(ran.status("s9"), "reused");
            ran.events.last().unwrap()["seconds"].as_f64().unwrap()
        })
        .fold(f64::INFINITY, f64::min);
    assert!(best < 0.03, "{best} s");
}
