//! What runs again and what does not.

use product_tests::Project;
use serde_json::Value;

/// Stage -> how it ended, of a `run --json`.
fn statuses(run: &Value) -> Vec<(String, String)> {
    let stages = run["stages"].as_array().expect("stages");
    stages
        .iter()
        .map(|s| {
            let text = |k: &str| {
                s[k].as_str()
                    .unwrap_or_else(|| panic!("{k} in {s}"))
                    .to_owned()
            };
            (text("stage"), text("status"))
        })
        .collect()
}

fn ran(run: &Value) -> Vec<String> {
    statuses(run)
        .into_iter()
        .filter(|(_, s)| s == "ran")
        .map(|(n, _)| n)
        .collect()
}

const RUN: [&str; 2] = ["run", "recipe.toml"];

#[test]
fn only_what_changed_and_what_reads_it_runs_again() {
    let project = Project::of("pipeline");
    assert_eq!(
        ran(&project.json(&RUN)).len(),
        10,
        "the first run computes every stage"
    );
    assert!(
        ran(&project.json(&RUN)).is_empty(),
        "the second computes none"
    );

    // Comments, layout and placement are no part of a key.
    project.edit("recipe.toml", "[stage.sft]", "# a comment\n\n[stage.sft]");
    project.edit(
        "recipe.toml",
        "threads = 1",
        "threads = 1, microbatch_tokens = 4096",
    );
    project.edit("recipe.toml", "every = 2, keep = 2", "every = 3, keep = 1");
    assert!(ran(&project.json(&RUN)).is_empty());

    // A changed `with` of grpo: it and what is below, and `why` names exactly that field.
    project.edit("recipe.toml", "with.group_size = 4", "with.group_size = 5");
    let why = project
        .recipe(&["why", "recipe.toml", "grpo"])
        .expect(0)
        .stdout;
    assert!(why.contains("with.group_size"), "{why}");
    for other in [
        "with.lr",
        "with.steps",
        "with.batch_size",
        "inputs",
        "trainer",
    ] {
        assert!(
            !why.contains(other),
            "only the changed field is named:\n{why}"
        );
    }
    let again = ran(&project.json(&RUN));
    assert!(again.contains(&"grpo".to_owned()), "{again:?}");
    for above in ["base", "convert", "sft", "reference", "dpo"] {
        assert!(
            !again.contains(&above.to_owned()),
            "{above} ran again: {again:?}"
        );
    }
}

#[test]
fn a_plan_prices_and_explains_before_anything_runs() {
    let project = Project::of("pipeline");
    project.json(&["run", "recipe.toml", "sft"]);
    let plan = project.json(&["plan", "recipe.toml", "-S", "stage.sft.with.lr=1e-3"]);
    let state = |name: &str| {
        let stages = plan["stages"].as_array().expect("stages");
        let stage = stages
            .iter()
            .find(|s| s["stage"] == name)
            .expect("the stage");
        stage["state"].as_str().expect("a state").to_owned()
    };
    assert_eq!(state("convert"), "reuse");
    assert_eq!(state("sft"), "run");
    assert_eq!(state("grpo"), "undecided");
    project
        .recipe(&["plan", "recipe.toml", "--detailed-exitcode"])
        .expect(7);
}

#[test]
fn an_edited_output_does_not_reach_the_store() {
    let project = Project::of("pipeline");
    project.json(&["run", "recipe.toml", "base"]);
    project
        .recipe(&["get", "recipe.toml", "base.model", "--to", "out"])
        .expect(0);
    std::fs::remove_file(project.path("out/config.json")).expect("the copy is ours");
    project.write("out/config.json", "{}");
    project.recipe(&["cache", "verify"]).expect(0);
    assert!(ran(&project.json(&["run", "recipe.toml", "base"])).is_empty());
}

#[test]
fn the_cause_of_an_undecided_stage_is_told() {
    let mut recipe = "[recipe]\nname = \"long\"\nschema = 1\n[params]\nword = \"a\"\n".to_owned();
    for i in 0..9 {
        let (input, word) = match i {
            0 => (String::new(), "${params.word}"),
            _ => (format!("in.x = \"s{}.out\"\n", i - 1), "b"),
        };
        recipe += &format!(
            "[stage.s{i}]\nkind = \"command\"\n{input}out = [\"out\"]\ntimeout = \"1m\"\n\
             cmd = [\"sh\", \"-c\", \"echo {word}{i} > $OUT_out\"]\n"
        );
    }
    let project = Project::new(&recipe);
    project.recipe(&RUN).expect(0);
    let text = |args: &[&str]| project.recipe(args).expect(0).stdout;
    let change = ["-S", "word=c"];
    let why = text(&[&["why", "recipe.toml", "s2"], &change[..]].concat());
    let cause = "s2 <- s1 <- s0: with.cmd[2] \"echo a0 > $OUT_out\" -> \"echo c0 > $OUT_out\"";
    assert!(why.contains(cause), "{why}");
    assert!(
        why.contains("ignored, as no part of a key: timeout"),
        "{why}"
    );
    assert!(why.contains("last time it took"), "{why}");
    let far = text(&[&["why", "recipe.toml", "s8"], &change[..]].concat());
    assert!(
        far.contains("s8 <- s7 <- s6 <- (3 more) <- s2 <- s1 <- s0: with.cmd[2]"),
        "{far}"
    );
    let plan = text(&[&["plan", "recipe.toml"], &change[..]].concat());
    assert!(
        plan.contains("<- s0: with.cmd[2]") && plan.contains("<- s1 <- s0: with.cmd[2]"),
        "{plan}"
    );
    let json = project.json(&[&["why", "recipe.toml", "s2"], &change[..]].concat());
    assert_eq!(
        json["causes"][0]["path"],
        serde_json::json!(["s2", "s1", "s0"])
    );
    assert_eq!(json["ignored"], serde_json::json!(["timeout"]));
}
