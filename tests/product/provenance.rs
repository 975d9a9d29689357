//! What goes with a model that is taken out: statement and card, from the real trainer; and the recipe that
//! `init` writes.

use product_tests::{Ended, Project};
use serde_json::Value;
use std::process::Command;

#[test]
fn a_model_taken_out_says_where_it_comes_from() {
    let project = Project::of("pipeline");
    // of the stages that the model is made by, and of the one that evaluates it
    project
        .recipe(&["run", "recipe.toml", "export", "--device", "cpu"])
        .expect(0);
    project
        .recipe(&["get", "recipe.toml", "export.model", "--to", "model"])
        .expect(0);
    let text = project.read("model/provenance.intoto.json");
    let statement: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    // every file is a subject, by the digest that it has
    let subjects = statement["subject"].as_array().expect("subjects");
    let names: Vec<&str> = subjects.iter().filter_map(|s| s["name"].as_str()).collect();
    for name in [
        "README.md",
        "config.json",
        "model.safetensors",
        "provenance.json",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let out = Command::new("sha256sum")
        .args(&names)
        .current_dir(project.path("model"))
        .output()
        .expect("sha256sum");
    let sums = String::from_utf8(out.stdout).expect("text");
    for (line, subject) in sums.lines().zip(subjects) {
        assert_eq!(
            line.split(' ').next(),
            subject["digest"]["sha256"].as_str(),
            "{line}"
        );
    }
    let predicate = &statement["predicate"];
    let build = &predicate["buildDefinition"];
    let stages = build["externalParameters"]["stages"]
        .as_object()
        .expect("stages");
    let made: Vec<&str> = stages.keys().map(String::as_str).collect();
    assert_eq!(made, ["base", "convert", "sft", "grpo", "eval", "export"]);
    let dependencies = build["resolvedDependencies"].as_array().expect("a list");
    let dependencies: Vec<&str> = dependencies
        .iter()
        .filter_map(|d| d["name"].as_str())
        .collect();
    assert_eq!(dependencies, ["recipe.toml", "source.demonstrations"]);
    assert!(predicate["runDetails"]["metadata"]["startedOn"].is_string());
    assert!(predicate["runDetails"]["builder"]["version"]["trainer.libtorch"].is_string());
    assert_eq!(
        predicate["runDetails"]["byproducts"][0]["name"],
        "eval.report"
    );

    // evaluation results as the hub reads them
    let card = project.read("model/README.md");
    let (front, _) = card
        .strip_prefix("---\n")
        .and_then(|t| t.split_once("\n---\n"))
        .expect("front matter");
    let index = front
        .lines()
        .find_map(|l| l.strip_prefix("model-index: "))
        .expect("a model index");
    let index: Value = serde_json::from_str(index).expect("JSON is YAML");
    let result = &index[0]["results"][0];
    assert_eq!(result["dataset"]["type"], "addition");
    let metrics = result["metrics"].as_array().expect("metrics");
    let mut types: Vec<&str> = metrics.iter().filter_map(|m| m["type"].as_str()).collect();
    types.sort_unstable();
    let all = types.len();
    types.dedup();
    assert_eq!(types.len(), all, "each metric once: {metrics:?}");
    let accuracy = metrics
        .iter()
        .find(|m| m["type"] == "accuracy")
        .expect("accuracy");
    let story: Value = serde_json::from_str(&project.read("model/provenance.json")).expect("JSON");
    assert_eq!(
        accuracy["value"],
        story["evaluations"]["eval"]["metrics"]["accuracy"]
    );

    // a model that nothing exports or evaluates has a statement as well, and no card
    project
        .recipe(&[
            "get",
            "recipe.toml",
            "convert.model",
            "--to",
            "plain",
            "--link",
        ])
        .expect(0);
    assert!(project.path("plain/provenance.intoto.json").exists());
    assert!(!project.path("plain/README.md").exists());
    project.recipe(&["cache", "verify", "--paranoid"]).expect(0);
}

#[test]
fn the_recipe_that_init_writes_runs() {
    let project = Project::empty();
    let recipe = |args: &[&str]| -> Ended { project.recipe(args) };
    recipe(&["init", "mine"]).expect(0);
    let file = "mine/recipe.toml";
    assert!(
        project
            .read(file)
            .starts_with("#:schema recipe.schema.json")
    );
    recipe(&["run", file, "--profile", "quick", "--device", "cpu"]).expect(0);
    let get = [
        "get",
        file,
        "export.model",
        "--to",
        "model",
        "--profile",
        "quick",
    ];
    recipe(&get).expect(0);
    assert!(project.path("model/config.json").exists());
}
