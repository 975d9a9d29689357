//! Parts of a stage's training as inputs: `sft.model@12` and `sft.model@min(validation/loss)`.

use serde_json::{Value, json};

use crate::project::{Project, Ran};

/// The scripted validation is best at the step next to 17: the 16th, of those that it is taken after.
const TRAIN: &str = r#"
[recipe]
name = "train"
schema = 1
[source.base]
path = "base"
[source.chat]
path = "chat.jsonl"
[stage.sft]
kind = "sft"
in = { model = "source.base", data = "source.chat", validation = "source.chat" }
with = { steps = 30, validate_every = 4 }
checkpoint = { every = 5, keep = 2 }
[stage.last]
kind = "command"
in.x = "sft.model"
cmd = ["sh", "-c", "cp $IN_x/weights $OUT_out"]
out = ["out"]
"#;

/// A reader of a part.
fn reader(name: &str, reference: &str) -> String {
    format!(
        "[stage.{name}]\nkind = \"command\"\nin.x = \"{reference}\"\ncmd = [\"sh\", \"-c\", \"cp $IN_x/weights $OUT_out\"]\nout = [\"out\"]\n"
    )
}

fn both() -> String {
    let best = reader("best", "sft.model@min(validation/loss)");
    format!("{TRAIN}{}{best}", reader("early", "sft.model@12"))
}

const BEST: &str = "sft@min-validation-loss";

/// What the weights are after a step, by the checkpoints of a plain run in a project of its own.
fn after_step(step: u64) -> String {
    let p = Project::training(TRAIN);
    let checkpoint = format!("stage.sft.checkpoint={{every={step}}}");
    let ran = p.run(&["-S", &checkpoint]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let store = p.store();
    let key = ran.stage("sft")["key"].as_str().unwrap().parse().unwrap();
    let found = store.newest_checkpoint_until(&key, step).unwrap().unwrap();
    assert_eq!(found.step, step);
    let manifest = store.manifest(&found.manifest).unwrap();
    let file = manifest.files.iter().find(|f| f.path == "state").unwrap();
    String::from_utf8(store.get_bytes(&file.blob).unwrap()).unwrap()
}

/// What they are after the last.
fn after_all() -> String {
    let p = Project::training(TRAIN);
    p.output(&p.run(&[]), "last", "out")
}

/// Steps that each stage computed.
fn computed(ran: &Ran) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for event in ran.all("metrics") {
        let stage = event["stage"].as_str().unwrap().to_owned();
        match counts.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, n)) => *n += 1,
            None => counts.push((stage, 1)),
        }
    }
    counts
}

fn resumed(ran: &Ran) -> Vec<(&str, u64)> {
    let all = ran.all("resumed").into_iter();
    all.map(|e| (e["stage"].as_str().unwrap(), e["step"].as_u64().unwrap()))
        .collect()
}

/// The stored metrics of a stage's steps.
fn steps(p: &Project, ran: &Ran, stage: &str) -> Vec<u64> {
    let key = ran.stage(stage)["key"].as_str().unwrap().parse().unwrap();
    let (_, record) = p.store().current(&key).unwrap().unwrap();
    let steps = runner::steps_of(&record, &p.store()).unwrap().unwrap();
    assert_eq!(steps.planned, steps.rows.keys().next_back().copied());
    steps.rows.into_keys().collect()
}

#[test]
fn a_part_has_the_weights_of_its_step_and_no_step_is_computed_twice() {
    let p = Project::training(&both());
    let first = p.run(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert_eq!(p.output(&first, "early", "out"), after_step(12));
    assert_eq!(p.output(&first, "best", "out"), after_step(16));
    assert_eq!(p.output(&first, "last", "out"), after_all());

    // the whole goes on from the part, and the best step's weights were kept on the way
    let both = [("sft@12".to_owned(), 12), ("sft".to_owned(), 18)];
    assert_eq!(computed(&first), both);
    assert_eq!(resumed(&first), [("sft", 12), (BEST, 16)]);
    assert_eq!(steps(&p, &first, "sft"), (1..=30).collect::<Vec<_>>());
    assert_eq!(steps(&p, &first, "sft@12"), (1..=12).collect::<Vec<_>>());
    let key = first.stage("sft")["key"].as_str().unwrap().parse().unwrap();
    let (_, record) = p.store().current(&key).unwrap().unwrap();
    assert_eq!(
        record.provenance["continued"]["stage"],
        json!("sft@12"),
        "{:?}",
        record.provenance
    );
    let ranges: Vec<&Value> = record
        .numerics
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["from"])
        .collect();
    assert_eq!(ranges, [&json!(0), &json!(12)]);

    let second = p.run(&[]);
    for stage in ["sft", "sft@12", BEST, "early", "best", "last"] {
        assert_eq!(second.status(stage), "reused");
        assert_eq!(
            second.stage(stage)["outputs"],
            first.stage(stage)["outputs"]
        );
    }
}

#[test]
fn the_whole_does_not_know_its_parts() {
    // a warm result without the parts: they are made from what is there
    let p = Project::training(TRAIN);
    let plain = p.run(&[]);
    p.write("r.toml", &both());
    let warm = p.run(&[]);
    assert_eq!(warm.code, 0, "{}", warm.stderr);
    assert_eq!(warm.status("sft"), "reused");
    assert_eq!(warm.stage("sft")["key"], plain.stage("sft")["key"]);
    // from the nearest checkpoints of the whole, which are those of steps 10 and 15
    let rest = [("sft@12".to_owned(), 2), (BEST.to_owned(), 1)];
    assert_eq!(computed(&warm), rest);
    assert_eq!(p.output(&warm, "best", "out"), after_step(16));

    // a part alone does not need the whole
    let p = Project::training(&both());
    let only = p.run(&["--only", "early", "--only", "sft@12"]);
    assert_eq!(only.code, 0, "{}", only.stderr);
    assert_eq!(computed(&only), [("sft@12".to_owned(), 12)]);
    // nor the whole its parts, though it goes on from what they left
    let whole = p.run(&["--only", "sft"]);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    assert_eq!(computed(&whole), [("sft".to_owned(), 18)]);
    assert_eq!(whole.stage("sft")["outputs"], plain.stage("sft")["outputs"]);
}

#[test]
fn parts_that_are_killed_or_forced_come_to_the_same() {
    let p = Project::training(&both());
    let killed = p.run(&["--interrupt"]);
    assert_eq!(killed.code, 0, "{}", killed.stderr);
    assert_eq!(p.output(&killed, "early", "out"), after_step(12));
    assert_eq!(p.output(&killed, "best", "out"), after_step(16));
    assert_eq!(p.output(&killed, "last", "out"), after_all());

    // forced, each is computed from its start
    let forced = p.run(&["--force", "all"]);
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    let all = [("sft@12", 12), ("sft", 30), (BEST, 16)];
    assert_eq!(computed(&forced), all.map(|(s, n)| (s.to_owned(), n)));
    for stage in ["early", "best", "last"] {
        assert_eq!(
            forced.stage(stage)["outputs"],
            killed.stage(stage)["outputs"]
        );
    }
}

#[test]
fn the_best_step_may_be_the_last_and_may_not_be_there() {
    let p = Project::training(&format!(
        "{TRAIN}{}",
        reader("best", "sft.model@min(train/loss)")
    ));
    let last = p.run(&[]);
    assert_eq!(last.code, 0, "{}", last.stderr);
    let part = last.stage("sft@min-train-loss");
    assert_eq!(part["status"], "reused", "it is the whole");
    assert_eq!(part["key"], last.stage("sft")["key"]);
    assert_eq!(computed(&last), [("sft".to_owned(), 30)]);

    let p = Project::training(&format!(
        "{TRAIN}{}",
        reader("best", "sft.model@max(train/los)")
    ));
    let none = p.run(&[]);
    assert_eq!(none.code, 2, "{}", none.stderr);
    assert_eq!(
        (none.status("sft"), none.status("best")),
        ("ran", "skipped")
    );
    let error = &none.stage("sft@max-train-los")["error"];
    assert_eq!(error["class"], "config");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("sft: no step has the metric 'train/los'")
            && message.contains("'train/loss'"),
        "{message}"
    );
}
