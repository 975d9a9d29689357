//! Results that are forced, lost or corrupt: each heals as the next attempt, and what is below follows.

use std::path::PathBuf;

use crate::project::{Project, Ran};

/// `a` is never the same twice, `b` and `c` say what they read.
const DICE: &str = r#"
[recipe]
name = "dice"
schema = 1
[stage.a]
kind = "command"
cmd = ["sh", "-c", "cat /proc/sys/kernel/random/uuid > $OUT_out"]
out = ["out"]
[stage.b]
kind = "command"
in.x = "a.out"
cmd = ["sh", "-c", "echo read $(cat $IN_x) > $OUT_out"]
out = ["out"]
[stage.c]
kind = "command"
in.x = "b.out"
cmd = ["sh", "-c", "echo again $(cat $IN_x) > $OUT_out"]
out = ["out"]
"#;

/// What every stage of a run that ended well holds; they must fit one another.
#[track_caller]
fn consistent(p: &Project, ran: &Ran) -> String {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let [a, b, c] = ["a", "b", "c"].map(|stage| p.output(ran, stage, "out"));
    assert_eq!(b, format!("read {a}"));
    assert_eq!(c, format!("again {b}"));
    a
}

fn blob(p: &Project, ran: &Ran, stage: &str) -> PathBuf {
    let digest = ran.stage(stage)["outputs"]["out"].as_str().unwrap();
    let manifest = p.store().manifest(&digest.parse().unwrap()).unwrap();
    let hex = manifest.files[0].blob.hex();
    p.path("store").join("blobs").join(&hex[..2]).join(&hex)
}

fn result(p: &Project, ran: &Ran, stage: &str) -> PathBuf {
    let outcome = ran.stage(stage);
    let key = outcome["key"].as_str().unwrap();
    let results = p.path("store").join("results").join(key);
    results.join(outcome["attempt"].to_string())
}

fn damage(path: &PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let mut bytes = std::fs::read(path).unwrap();
    bytes[0] ^= 1;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn whatever_is_lost_the_next_run_is_whole() {
    let p = Project::new(DICE);
    let first = p.run(&[]);
    let one = consistent(&p, &first);

    let forced = p.run(&["--force", "a"]);
    let two = consistent(&p, &forced);
    assert_ne!(one, two);
    assert_eq!(forced.stage("a")["attempt"], 2);
    assert_eq!((forced.status("b"), forced.status("c")), ("ran", "ran"));
    assert_eq!(
        p.run(&[]).status("c"),
        "reused",
        "the forced result is the current one"
    );

    // the blob of a forced result, and what was made of it, are lost: attempt 3
    std::fs::remove_file(blob(&p, &forced, "a")).unwrap();
    std::fs::remove_file(blob(&p, &forced, "c")).unwrap();
    std::fs::remove_file(blob(&p, &forced, "b")).unwrap();
    let healed = p.run(&[]);
    let three = consistent(&p, &healed);
    assert!(three != one && three != two);
    assert_eq!(healed.stage("a")["attempt"], 3);
    let again = p.run(&[]);
    assert_eq!(consistent(&p, &again), three);
    assert_eq!(again.status("a"), "reused");

    // its record is corrupt: the result before it counts, and its own blob is gone
    damage(&result(&p, &healed, "a"));
    let fallen = p.run(&[]);
    consistent(&p, &fallen);
    let calm = p.run(&[]);
    assert_eq!(consistent(&p, &calm), consistent(&p, &fallen));
    for stage in ["a", "b", "c"] {
        assert_eq!(calm.status(stage), "reused");
    }

    // one byte of what is served last
    damage(&blob(&p, &calm, "c"));
    let mended = p.run(&[]);
    assert_eq!(consistent(&p, &mended), consistent(&p, &calm));
    assert_eq!((mended.status("b"), mended.status("c")), ("reused", "ran"));
    assert_eq!(
        mended.stage("c")["attempt"].as_u64(),
        calm.stage("c")["attempt"].as_u64().map(|n| n + 1)
    );
}

#[test]
fn a_stage_that_writes_to_its_input_harms_nobody() {
    let p = Project::new(
        r#"
[recipe]
name = "rude"
schema = 1
[stage.a]
kind = "command"
cmd = ["sh", "-c", "mkdir $OUT_dir; echo one > $OUT_dir/file; echo two > $OUT_single"]
out = ["dir", "single"]
[stage.rude]
kind = "command"
in = { d = "a.dir", s = "a.single" }
cmd = ["sh", "-c", "[ ! -w / ] || chmod u+w $IN_s $IN_d/file; echo junk >> $IN_s; echo junk >> $IN_d/file; rm -f $IN_d/file; echo x > $OUT_out"]
out = ["out"]
[stage.after]
kind = "command"
in = { d = "a.dir", s = "a.single", x = "rude.out" }
cmd = ["sh", "-c", "cat $IN_d/file $IN_s > $OUT_out"]
out = ["out"]
"#,
    );
    let ran = p.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(p.output(&ran, "after", "out"), "one\ntwo\n");
    let report = p.store().verify(true).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

/// What was whole when the run began is lost before it is read.
#[test]
fn an_input_lost_during_the_run_is_made_again() {
    let p = Project::new(
        r#"
[recipe]
name = "meanwhile"
schema = 1
[stage.a]
kind = "command"
cmd = ["sh", "-c", "echo a >> $DIR/log; echo one > $OUT_out"]
out = ["out"]
env = ["DIR"]
[stage.b]
kind = "command"
in.x = "a.out"
cmd = ["sh", "-c", "echo b >> $DIR/log; cat $IN_x > $OUT_out; echo two >> $OUT_out"]
out = ["out"]
env = ["DIR"]
[stage.slow]
kind = "command"
cmd = ["sh", "-c", "echo $GO > $DIR/slow; while [ ! -e $DIR/go ]; do sleep 0.02; done; echo x > $OUT_out"]
out = ["out"]
env = ["DIR", "GO"]
[stage.end]
kind = "command"
in = { x = "b.out", y = "slow.out" }
cmd = ["sh", "-c", "cat $IN_x $IN_y > $OUT_out"]
out = ["out"]
env = ["GO"]
"#,
    );
    p.write("go", "");
    let mut first = p.command(&[]);
    let first = crate::project::ran({
        first.env("GO", "1");
        first
    });
    assert_eq!(first.code, 0, "{}", first.stderr);
    std::fs::remove_file(p.path("go")).unwrap();
    p.write("slow", "");
    let mut second = p.command(&[]);
    let second = second.env("GO", "2").spawn().unwrap();
    p.wait_for("slow");
    // b's is read by `end`, a's by b
    std::fs::remove_file(blob(&p, &first, "b")).unwrap();
    std::fs::remove_file(blob(&p, &first, "a")).unwrap();
    p.write("go", "");
    let ran = crate::project::collect(second);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        (ran.status("a"), ran.status("b"), ran.status("end")),
        ("ran", "ran", "ran")
    );
    assert_eq!(p.output(&ran, "end", "out"), "one\ntwo\nx\n");
    assert_eq!(p.lines("log"), ["a", "a", "b", "b"]);
}
