//! Parts of a training as inputs, and more steps that go on from a shorter run, with the real worker.

use product_tests::Project;
use serde_json::{Value, json};

const RECIPE: &str = r#"
[recipe]
name = "parts"
schema = 1

[params]
steps = 8

[source.rows]
path = "addition.jsonl"

[stage.base]
kind = "init"
with = { family = "qwen3", hidden_size = 32, intermediate_size = 64, layers = 2, heads = 2, kv_heads = 1, head_dim = 16, tokenizer = "char", alphabet = "0123456789+=", max_positions = 64 }

[stage.sft]
kind = "sft"
in = { model = "base.model", data = "source.rows", validation = "source.rows" }
with = { steps = "${params.steps}", batch_size = 8, lr = 3e-3, max_length = 32, schedule = "constant", validate_every = 2 }
resources = { threads = 1 }
checkpoint = { every = 4, keep = 1 }
"#;

/// Reads the weights after step 3, those of the best step, and the last.
const READERS: &str = r#"
[stage.early]
kind = "export"
in.model = "sft.model@3"
[stage.worst]
kind = "export"
in.model = "sft.model@max(validation/loss)"
[stage.last]
kind = "export"
in.model = "sft.model"
"#;

fn project(recipe: &str) -> Project {
    let project = Project::of("pipeline");
    project.write("recipe.toml", recipe);
    project
}

fn stage<'r>(run: &'r Value, name: &str) -> &'r Value {
    let stages = run["stages"].as_array().expect("stages");
    let found = stages.iter().find(|s| s["stage"] == name);
    found.unwrap_or_else(|| panic!("no stage {name}"))
}

/// The digest of a run that has these steps and no more.
fn of_short(steps: u64) -> Value {
    let project = project(RECIPE);
    let steps = format!("params.steps={steps}");
    let run = project.json(&["run", "recipe.toml", "-S", &steps]);
    stage(&run, "sft")["outputs"]["model"].clone()
}

#[test]
fn weights_of_any_step_and_of_the_best_can_be_read() {
    let project = project(&format!("{RECIPE}{READERS}"));
    let plan = project.json(&["plan", "recipe.toml"]);
    assert_eq!(stage(&plan, "sft@3")["state"], "undecided");
    let run = project.json(&["run", "recipe.toml"]);
    let model = |name: &str| stage(&run, name)["outputs"]["model"].clone();
    // with a constant schedule the first steps are those of a shorter run
    assert_eq!(model("sft@3"), of_short(3));
    assert_eq!(model("sft"), of_short(8));
    assert_ne!(model("sft@3"), model("sft"));

    let losses = project
        .metrics("sft")
        .into_iter()
        .chain(project.metrics("sft@3"));
    let mut losses: Vec<(f64, u64)> = losses
        .filter_map(|l| {
            Some((
                l["metrics"]["validation/loss"].as_f64()?,
                l["step"].as_u64()?,
            ))
        })
        .collect();
    losses.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (_, step) = losses[0];
    assert!(losses.len() == 4 && step < 8, "{losses:?}");
    assert_eq!(model("sft@max-validation-loss"), of_short(step));

    let again = project.json(&["run", "recipe.toml"]);
    let stages = again["stages"].as_array().unwrap();
    assert!(stages.iter().all(|s| s["status"] == "reused"), "{again}");
    let to = project.path("taken").display().to_string();
    project
        .recipe(&["get", "recipe.toml", "sft@3.model", "--to", &to])
        .expect(0);
    assert!(project.path("taken/model.safetensors").exists());
    let graph = project
        .recipe(&["graph", "recipe.toml", "--format", "dot"])
        .expect(0)
        .stdout;
    assert!(
        graph.contains("\"sft\" -> \"sft@max-validation-loss\" [label = \"max(validation/loss)\"]"),
        "{graph}"
    );
    // a step that was not asked for before is made from the nearest that is there
    project.edit("recipe.toml", "sft.model@3", "sft.model@7");
    let plan = project.json(&["plan", "recipe.toml"]);
    let part = stage(&plan, "sft@7");
    assert_eq!(
        (&part["state"], &part["goes_on"]["of"]),
        (&json!("run"), &json!("same_training"))
    );
    assert!(part["checkpoint"].as_u64().unwrap() < 7, "{part}");
    let later = project.json(&["run", "recipe.toml"]);
    assert_eq!(stage(&later, "sft")["status"], "reused");
    assert_eq!(stage(&later, "sft@7")["outputs"]["model"], of_short(7));
}

#[test]
fn more_steps_go_on_from_the_shorter_run_and_plan_says_so() {
    let recipe = RECIPE.replace("keep = 1", "keep = 1, continue = true");
    let project = project(&recipe);
    project.json(&["run", "recipe.toml"]);
    let longer = ["-S", "params.steps=11"];
    let with = |args: &[&'static str]| [args, &longer[..]].concat();

    let plan = project.json(&with(&["plan", "recipe.toml"]));
    let sft = stage(&plan, "sft");
    assert_eq!(sft["goes_on"]["of"], "shorter_run");
    assert_eq!(
        (&sft["goes_on"]["step"], &sft["checkpoint"]),
        (&json!(8), &json!(8))
    );
    let text = project
        .recipe(&with(&["plan", "recipe.toml"]))
        .expect(0)
        .stdout;
    assert!(
        text.contains("goes on from step 8 of a shorter run (key "),
        "{text}"
    );

    let run = project.json(&with(&["run", "recipe.toml"]));
    assert_eq!(stage(&run, "sft")["outputs"]["model"], of_short(11));
    let steps: Vec<u64> = project
        .metrics("sft")
        .iter()
        .filter_map(|l| l["step"].as_u64().filter(|n| *n > 0))
        .collect();
    assert_eq!(steps, [9, 10, 11], "the first eight are not computed again");
}
