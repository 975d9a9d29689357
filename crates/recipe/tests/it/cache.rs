//! `recipe cache ..`: what is collected, kept, sent and fetched, as a person asks for it. Remote stores: `ci/remote.py`.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::project::{Project, Ran};
use serde_json::{Value, json};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// `big` is a hundred kilobytes of its word, `small` is made of it.
const RECIPE: &str = r#"
[recipe]
name = "words"
schema = 1

[params]
word = "one"

[source.text]
url = "file://TEXT"

[stage.big]
kind = "command"
in.text = "source.text"
cmd = ["sh", "-c", "yes ${params.word} | head -c 100000 > $OUT_out"]
out = ["out"]

[stage.small]
kind = "command"
in.x = "big.out"
cmd = ["sh", "-c", "head -n 1 $IN_x > $OUT_out"]
out = ["out"]
"#;

/// A project whose store holds the results of some words, the first made longest ago.
fn project(words: &[&str], ages: &[u32]) -> Project {
    let project = Project::new("");
    project.write("text.txt", "what only the lock file names\n");
    let text = project.path("text.txt").display().to_string();
    project.write("recipe.toml", &RECIPE.replace("TEXT", &text));
    for (word, days) in words.iter().zip(ages) {
        project
            .recipe(&format!("run recipe.toml -S word={word}"))
            .code(0);
        project.recipe("cache stat").code(0);
        age(&project.path(".recipe"), *days * DAY, DAY);
    }
    project
}

/// Makes what is younger than `than` look `by` old.
fn age(folder: &Path, by: Duration, than: Duration) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            age(&path, by, than);
        } else if entry.metadata().unwrap().modified().unwrap() > SystemTime::now() - than {
            File::open(&path)
                .unwrap()
                .set_modified(SystemTime::now() - by)
                .unwrap();
        }
    }
}

/// What a run of a word would do with both stages.
fn states(project: &Project, word: &str) -> Vec<String> {
    let plan = project
        .recipe(&format!("plan recipe.toml -S word={word} --json"))
        .code(0)
        .json();
    let stages = plan["stages"].as_array().unwrap().iter();
    stages
        .map(|s| s["state"].as_str().unwrap().to_owned())
        .collect()
}

fn gc(project: &Project, args: &str) -> Value {
    project
        .recipe(&format!("cache gc --json {args}"))
        .code(0)
        .json()
}

#[test]
fn gc_takes_what_is_old_and_nothing_that_is_named_or_used() {
    let project = project(&["one", "two", "three"], &[40, 40, 40]);
    project
        .recipe("cache pin kept recipe.toml small.out")
        .code(0);
    let pins = project.recipe("cache pin").code(0).out;
    assert!(pins.starts_with("kept  "), "{pins}");
    // a run that reuses is use
    project.recipe("run recipe.toml -S word=two").code(0);

    let would = gc(&project, "--dry-run");
    assert_eq!(
        (&would["dry_run"], &would["results"]),
        (&json!(true), &json!(3)),
        "{would}"
    );
    for word in ["one", "two", "three"] {
        assert_eq!(
            states(&project, word),
            ["reuse", "reuse"],
            "a dry run removes nothing"
        );
    }
    let mut did = gc(&project, "");
    did["dry_run"] = json!(true);
    assert_eq!(did, would, "what was foretold");
    assert!(did["blobs"]["bytes"].as_u64().unwrap() > 200_000, "{did}");
    assert_eq!(states(&project, "two"), ["reuse", "reuse"]);
    assert_eq!(states(&project, "three"), ["run", "undecided"]);
    let mut offline = project.recipe("run recipe.toml --offline --locked --only big");
    assert_eq!(
        offline.code,
        0,
        "the source of the lock file is there: {}",
        std::mem::take(&mut offline.err)
    );
    let said = project.recipe("cache gc --older-than 12h").code(0).out;
    assert!(
        said.starts_with("removed 0 records of runs, results of 0 keys"),
        "{said}"
    );
    project.recipe("cache verify --paranoid").code(0);
    project.recipe("run recipe.toml -S word=three").code(0);

    // the pin goes, and what it kept
    let artifact = pins.split_whitespace().nth(1).unwrap().to_owned();
    project.recipe("cache unpin kept").code(0);
    let again = project.recipe("cache unpin kept").code(2);
    assert!(
        again.err.contains("there is no pin 'kept'"),
        "{}",
        again.err
    );
    age(&project.path(".recipe"), 40 * DAY, DAY);
    gc(&project, "");
    let pin = project.recipe(&format!("cache pin kept {artifact}"));
    assert_ne!(pin.code, 0, "nothing is left to pin: {}", pin.out);
    assert_eq!(states(&project, "one"), ["run", "undecided"]);
}

#[test]
fn gc_makes_the_store_as_small_as_asked() {
    let words = ["one", "two", "three", "four"];
    let project = project(&words, &[9, 8, 7, 6]);
    let done = gc(&project, "--max-size 250kB");
    assert!(done["kept"]["bytes"].as_u64().unwrap() <= 250_000, "{done}");
    let left = words.map(|word| states(&project, word) == ["reuse", "reuse"]);
    assert_eq!(left, [false, false, true, true], "the oldest first: {done}");
    project.recipe("cache verify --paranoid").code(0);
}

/// Between folders; between machines and a server: `ci/remote.py`.
#[test]
fn what_is_pushed_can_be_pulled() {
    let one = project(&["one", "two"], &[1, 1]);
    let shared = one.path("shared").display().to_string();
    let push = |args: &str| {
        let sent = one.recipe(&format!("cache push --json --remote {shared} {args}"));
        let sent = sent.code(0).json();
        ["sent", "there"].map(|what| sent[what].as_u64().unwrap())
    };
    assert_eq!(push("recipe.toml big"), [1, 0]);
    assert_eq!(push(""), [3, 1]);
    assert_eq!(push(""), [0, 4]);

    let two = Project::new(&one.read("recipe.toml"));
    two.write("recipe.lock", &one.read("recipe.lock"));
    let pull = |args: &str| {
        let got = two.recipe(&format!("cache pull --json --remote {shared} {args}"));
        let got = got.code(0).json();
        (
            got["results"].as_u64().unwrap(),
            got["bytes"].as_u64().unwrap(),
        )
    };
    let (results, bytes) = pull("recipe.toml");
    assert!(results == 2 && bytes > 100_000, "{results}, {bytes}");
    assert_eq!(pull("recipe.toml"), (2, 0), "all is here");
    assert_eq!(pull("").0, 4);
    std::fs::rename(&shared, one.path("gone")).unwrap();
    for word in ["one", "two"] {
        let run = two.recipe(&format!("run recipe.toml --offline --json -S word={word}"));
        let run = run.code(0).json();
        let states = run["stages"].as_array().unwrap().iter();
        let states: Vec<_> = states.map(|s| s["status"].as_str().unwrap()).collect();
        assert_eq!(states, ["reused", "reused"]);
    }
    two.recipe("get recipe.toml small.out --to got").code(0);
    assert_eq!(two.read("got/data"), "one\n");
    two.recipe("cache verify --paranoid").code(0);
}

#[test]
fn what_cannot_be_is_refused() {
    let project = project(&["one"], &[1]);
    let refused = |args: &str, code: i32, what: &str| {
        let Ran { err, .. } = project.recipe(args).code(code);
        assert!(
            err.contains(what) && err.matches("error").count() == 1,
            "{args}: {err}"
        );
    };
    refused("cache gc --older-than soon", 2, "soon");
    refused("cache pin x nothing", 2, "nothing");
    refused(
        "cache pin x recipe.toml big.weights",
        2,
        "no output 'weights'",
    );
    refused("cache push", 2, "--remote");
    refused(
        "cache push --remote s3://key:word@bucket/x",
        2,
        "credentials",
    );
    let leaked = project
        .recipe("cache push --remote s3://key:word@bucket/x")
        .err;
    assert!(!leaked.contains("word@"), "{leaked}");
}
