//! References to parts of a stage's training, and the stages that they become.

use crate::{error, load};
use spec::{Plan, Preimage, Recipe, Reference, Selection, Stage, Until};
use std::collections::BTreeMap;

const TRAIN: &str = r#"
[recipe]
name = "parts"
schema = 1
[source.base]
path = "base"
[source.rows]
path = "rows.jsonl"
[stage.sft]
kind = "sft"
in = { model = "source.base", data = "source.rows", validation = "source.rows" }
with = { steps = 300, validate_every = 50 }
resources = { threads = 2 }
checkpoint = { every = 10, keep = 3 }
[[stage.sft.assert]]
metric = "train/loss"
max = 1
"#;

/// A stage that reads these.
fn reader(name: &str, references: &str) -> String {
    format!(
        "[stage.{name}]\nkind = \"command\"\nin.x = {references}\ncmd = [\"true\"]\nout = [\"y\"]\n"
    )
}

fn with(readers: &[&str]) -> Recipe {
    let readers = readers.iter().enumerate();
    let text: String = readers.map(|(i, r)| reader(&format!("r{i}"), r)).collect();
    load(&format!("{TRAIN}{text}"))
}

fn reads(recipe: &Recipe, stage: &str) -> Vec<String> {
    let all = recipe.stages[stage].inputs["x"].iter();
    all.map(ToString::to_string).collect()
}

fn key(stage: &Stage) -> String {
    let inputs: BTreeMap<String, Vec<String>> = stage
        .inputs
        .keys()
        .map(|name| (name.clone(), vec!["0".repeat(64)]))
        .collect();
    let trainer = spec::Trainer {
        version: String::new(),
        libtorch: String::new(),
        sources: String::new(),
    };
    let preimage = Preimage::new(stage.kind, &stage.with, inputs, &trainer, BTreeMap::new());
    preimage.key().to_string()
}

#[test]
fn a_part_is_its_stage_with_an_end() {
    let recipe = with(&[
        "[\"sft.model@100\", \"sft.model@0200\", \"sft.model@300\"]",
        "\"sft.model@min(validation/loss)\"",
    ]);
    // the last step is the whole
    assert_eq!(
        reads(&recipe, "r0"),
        ["sft@100.model", "sft@200.model", "sft.model"]
    );
    assert_eq!(reads(&recipe, "r1"), ["sft@min-validation-loss.model"]);
    let (whole, part) = (&recipe.stages["sft"], &recipe.stages["sft@100"]);
    let mut expected = whole.with.clone();
    expected["until"] = 100.into();
    assert_eq!(part.with, expected);
    assert_eq!(
        (&part.inputs, &part.placement),
        (&whole.inputs, &whole.placement)
    );
    assert!(
        part.assertions.is_empty(),
        "what is asked of the whole is asked of it alone"
    );
    assert_eq!(
        part.part_of.as_ref().map(|p| &p.until),
        Some(&Until::Step(100))
    );
    assert_eq!(whole.watch.len(), 1);

    // the whole's key is what it was without readers, a part's another
    assert_eq!(key(whole), key(&with(&[]).stages["sft"]));
    assert_ne!(key(whole), key(part));
    // a setting of one's own comes to the same as a reference
    let own = load(&TRAIN.replace("steps = 300", "steps = 300, until = 100"));
    assert_eq!(key(&own.stages["sft"]), key(part));
    let own = load(&TRAIN.replace("steps = 300", "steps = 300, until = 300"));
    assert_eq!(key(&own.stages["sft"]), key(whole));
    assert_eq!(
        recipe.place("stage.sft@100.with.steps"),
        recipe.place("stage.sft.with.steps")
    );
}

#[test]
fn what_ends_earlier_goes_first_and_nothing_that_was_not_asked_for_runs() {
    let recipe = with(&[
        "[\"sft.model@200\", \"sft.model@100\"]",
        "\"sft.model@min(validation/loss)\"",
    ]);
    let plan = Plan::new(recipe.clone(), &Selection::default()).unwrap();
    let name = |i: &usize| plan.order[*i].stage.name.as_str();
    let names = |all: &[usize]| {
        let mut names: Vec<&str> = all.iter().map(name).collect();
        names.sort_unstable();
        names
    };
    let of = |stage: &str| plan.get(stage).unwrap();
    assert_eq!(names(&of("sft").after), ["sft@100", "sft@200"]);
    assert_eq!(names(&of("sft@200").after), ["sft@100"]);
    assert_eq!(
        names(&of("sft@100").kin),
        ["sft", "sft@200", "sft@min-validation-loss"]
    );
    let best = of("sft@min-validation-loss");
    assert!(best.after.is_empty());
    assert_eq!(names(&best.upstream), ["sft"]);
    assert!(
        of("sft").upstream.is_empty(),
        "what it waits for it does not read"
    );

    let selection = Selection {
        targets: vec!["sft".into()],
        ..Selection::default()
    };
    let plan = Plan::new(recipe, &selection).unwrap();
    let run = plan.order.iter().filter(|s| s.part == spec::Part::Run);
    assert_eq!(
        run.map(|s| s.stage.name.as_str()).collect::<Vec<_>>(),
        ["sft"]
    );
}

#[test]
fn cells_have_parts_at_their_places() {
    let cells = TRAIN.replace(
        "with = { steps = 300,",
        "matrix.lr = [1e-3, 2e-3]\nwith = { lr = \"${matrix.lr}\", steps = 300,",
    );
    let follower = reader("own", "\"sft.model@100\"").replace("kind", "foreach = \"sft\"\nkind");
    let all = reader("all", "\"sft[*].model@100\"");
    let best = reader(
        "best",
        "{ of = \"sft.model@min(validation/loss)\", select = { min = \"sft.validation/loss\" } }",
    );
    let recipe = load(&format!("{cells}{follower}{all}{best}"));
    let parts = ["sft@100[lr=0.001]", "sft@100[lr=0.002]"];
    assert_eq!(
        reads(&recipe, "own[lr=0.002]"),
        [format!("{}.model", parts[1])]
    );
    assert_eq!(reads(&recipe, "all"), parts.map(|p| format!("{p}.model")));
    assert_eq!(recipe.named("sft@100").unwrap(), parts);
    assert_eq!(recipe.named("sft@100[lr=2e-3]").unwrap(), [parts[1]]);
    assert_eq!(recipe.cells.get(parts[0]).unwrap().of, "sft@100");
    let Reference::Choice(choice) = &recipe.stages["best"].inputs["x"][0] else {
        panic!("a choice");
    };
    let candidates: Vec<(&str, &str)> = choice
        .candidates
        .iter()
        .map(|c| (c.stage.as_str(), c.judge.as_str()))
        .collect();
    assert_eq!(
        candidates,
        [
            ("sft@min-validation-loss[lr=0.001]", "sft[lr=0.001]"),
            ("sft@min-validation-loss[lr=0.002]", "sft[lr=0.002]"),
        ]
    );
}

#[test]
fn a_stage_cannot_read_a_part_of_itself() {
    let text = TRAIN.replace("model = \"source.base\"", "model = \"sft.model@100\"");
    let told = error(&text).to_string();
    assert!(told.contains("depend on each other"), "{told}");
}
