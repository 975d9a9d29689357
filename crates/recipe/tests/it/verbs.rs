//! Every verb on a project of `command` stages, which need no worker.

use crate::project::{Project, run};
use serde_json::{Value, json};

const RECIPE: &str = r#"
[recipe]
name = "letters"
schema = 1

[params]
word = "hello"

[source.text]
path = "text.txt"

[stage.upper]
kind = "command"
in.text = "source.text"
cmd = ["sh", "-c", "echo upper >> ran; echo shouting >&2; tr a-z A-Z < $IN_text > $OUT_out"]
out = ["out"]

[stage.greet]
kind = "command"
in.x = "upper.out"
cmd = ["sh", "-c", "mkdir $OUT_out; echo ${params.word} > $OUT_out/greeting; cat $IN_x >> $OUT_out/greeting"]
out = ["out"]
"#;

pub fn project() -> Project {
    let project = Project::new(RECIPE);
    project.write("text.txt", "world\n");
    project
}

fn states(value: &Value, field: &str) -> Vec<String> {
    value["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s[field].as_str().unwrap_or("?").to_owned())
        .collect()
}

#[test]
fn runs_once_and_reuses() {
    let project = project();
    let plan = project
        .recipe("plan recipe.toml --json --detailed-exitcode")
        .code(7);
    assert_eq!(states(&plan.json(), "state"), ["run", "undecided"]);

    let first = project
        .recipe("run recipe.toml --events events.jsonl")
        .code(0);
    assert!(
        first.out.contains("upper") && first.out.contains("done"),
        "{}",
        first.out
    );
    assert!(
        first
            .out
            .contains("recipe get recipe.toml greet.out --to DIR"),
        "{}",
        first.out
    );
    let events: Vec<Value> = project
        .read("events.jsonl")
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(events[0]["event"], "run_started");
    assert_eq!(events[0]["version"], 1);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["exit_code"]),
        (&json!("run_finished"), &json!(0))
    );
    assert_eq!(
        project.read(".recipe/.gitignore"),
        "*\n",
        "git does not see the store"
    );

    let second = project.recipe("run recipe.toml --json").code(0);
    assert_eq!(states(&second.json(), "status"), ["reused", "reused"]);
    assert_eq!(second.json()["version"], 1);
    project
        .recipe("plan recipe.toml --detailed-exitcode")
        .code(0);

    let why = project.recipe("why recipe.toml greet").code(0);
    assert!(why.out.contains("nothing differs"), "{}", why.out);
    let why = project.recipe("why recipe.toml greet -S word=ciao").code(0);
    assert!(why.out.contains("with.cmd[2]"), "{}", why.out);
    let plan = project
        .recipe("plan recipe.toml -S word=ciao --json")
        .code(0)
        .json();
    assert_eq!(states(&plan, "state"), ["reuse", "run"]);

    let get = project
        .recipe("get recipe.toml greet.out --to taken")
        .code(0);
    assert!(get.out.contains("greet.out: 1 file,"), "{}", get.out);
    assert_eq!(project.read("taken/greeting"), "hello\nWORLD\n");
    let told: Value = serde_json::from_str(&project.read("taken/provenance.json")).unwrap();
    assert_eq!(told["recipe"], "letters");
    assert!(told["lineage"]["upper"]["key"].is_string());
    project
        .recipe("get recipe.toml greet.out --to taken")
        .code(2);
    project
        .recipe("get recipe.toml greet.out --to other -S word=ciao")
        .code(2);
}

#[test]
fn records_can_be_read() {
    let project = project();
    project.recipe("run recipe.toml").code(0);
    let runs = project.recipe("runs").code(0);
    assert!(
        runs.out.contains("letters") && runs.out.contains("2 ran, 0 reused of 2"),
        "{}",
        runs.out
    );
    let lines: Vec<Value> = project
        .recipe("runs --json")
        .code(0)
        .out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 1);
    let id = lines[0]["id"].as_str().unwrap();
    for word in ["last", id, &id[..id.len() - 1]] {
        assert!(
            project
                .recipe(&format!("show {word}"))
                .code(0)
                .out
                .contains("greet")
        );
    }
    assert_eq!(
        project.recipe("show last --json").code(0).json()["exit_code"],
        0
    );
    assert!(
        project
            .recipe("logs last upper")
            .code(0)
            .out
            .contains("shouting")
    );
    assert!(
        project
            .recipe("logs last uper")
            .code(2)
            .err
            .contains("did you mean 'upper'")
    );
    assert!(
        project
            .recipe("show last --metrics geet")
            .code(2)
            .err
            .contains("did you mean 'greet'")
    );
    assert_eq!(project.recipe("show last --metrics greet").code(0).out, "");
    assert!(
        project
            .recipe("show nothing")
            .code(2)
            .err
            .contains("there is no run 'nothing'")
    );
}

#[test]
fn the_store_is_counted_and_checked() {
    let project = project();
    project.recipe("run recipe.toml").code(0);
    let stat = project.recipe("cache stat --json").code(0).json();
    let results = stat["kinds"]
        .as_array()
        .unwrap()
        .iter()
        .find(|k| k["kind"] == "results")
        .unwrap();
    assert_eq!(results["objects"], 2);
    assert!(
        project
            .recipe("cache verify")
            .code(0)
            .out
            .contains("nothing is wrong")
    );
    // damage the blob of the greeting
    let damaged = walk(&project.path(".recipe/blobs"))
        .into_iter()
        .find(|p| std::fs::read(p).unwrap() == b"hello\nWORLD\n")
        .unwrap();
    std::fs::remove_file(&damaged).unwrap();
    std::fs::write(&damaged, "hello\nwORLD\n").unwrap();
    let verify = project.recipe("cache verify --paranoid --json").code(5);
    assert_eq!(
        verify.json()["problems"].as_array().unwrap().len(),
        1,
        "{}",
        verify.out
    );
    // it is computed again, never served
    project.recipe("run recipe.toml").code(0);
    project.recipe("cache verify --paranoid").code(0);
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(walk(&path))
        } else {
            all.push(path)
        }
    }
    all
}

#[test]
fn failures_say_what_and_where() {
    let project = Project::new(
        "[recipe]\nname = \"fails\"\nschema = 1\n[stage.bad]\nkind = \"command\"\ncmd = [\"sh\", \"-c\", \"echo the reason >&2; exit 9\"]\nout = [\"x\"]\n[stage.after]\nkind = \"command\"\nin.x = \"bad.x\"\ncmd = [\"true\"]\nout = [\"y\"]\n",
    );
    let ran = project.recipe("run recipe.toml").code(1);
    assert!(
        ran.err.contains("stage 'bad' failed in attempt 1"),
        "{}",
        ran.err
    );
    assert!(
        ran.err.contains("| the reason") && ran.err.contains("the whole log: "),
        "{}",
        ran.err
    );
    assert!(ran.out.contains("skipped"), "{}", ran.out);
    let missing = project.recipe("run recipe.toml --only after");
    assert_ne!(missing.code, 0);
    assert!(missing.err.contains("bad"), "{}", missing.err);
}

#[test]
fn selections_are_obeyed() {
    let project = project();
    let ran = project
        .recipe("run recipe.toml upper --json")
        .code(0)
        .json();
    assert_eq!(states(&ran, "status")[0], "ran");
    assert_ne!(
        states(&ran, "status").get(1).map(String::as_str),
        Some("ran")
    );
    let ran = project
        .recipe("run recipe.toml --from greet --json")
        .code(0)
        .json();
    assert_eq!(states(&ran, "status"), ["reused", "ran"]);
    let ran = project
        .recipe("run recipe.toml --force=greet --json")
        .code(0)
        .json();
    assert_eq!(states(&ran, "status"), ["reused", "ran"]);
    assert_eq!(ran["stages"][1]["attempt"], 2);
    let ran = project
        .recipe("run recipe.toml --force --json")
        .code(0)
        .json();
    assert_eq!(states(&ran, "status"), ["ran", "ran"]);
}

#[test]
fn graphs_and_schema_are_whole() {
    let project = project();
    let dot = project.recipe("graph recipe.toml").code(0).out;
    assert!(
        dot.starts_with("digraph") && dot.contains("\"upper\" -> \"greet\" [label = \"out -> x\"]"),
        "{dot}"
    );
    let mermaid = project
        .recipe("graph recipe.toml --format mermaid")
        .code(0)
        .out;
    assert!(
        mermaid.starts_with("graph LR") && mermaid.contains("s0 -->|\"out -> x\"| s1"),
        "{mermaid}"
    );
    let graph = project
        .recipe("graph recipe.toml --format json")
        .code(0)
        .json();
    assert_eq!(
        graph["edges"][1],
        json!({ "from": "upper.out", "to": "greet", "input": "x" })
    );
    let schema = project.recipe("schema").code(0).json();
    let kinds: Vec<&str> = schema["$defs"]["stage"]["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        // the last is a layer that leaves the kind to another file
        .filter_map(|s| s["properties"]["kind"]["const"].as_str())
        .collect();
    assert_eq!(kinds.len(), 10);
    assert!(
        schema["$defs"]["Sft"]["properties"]["lr"]["description"]
            .as_str()
            .unwrap()
            .contains("learning rate")
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            project
                .recipe(&format!("completions {shell}"))
                .code(0)
                .out
                .contains("recipe")
        );
    }
}

#[test]
fn init_writes_a_recipe_that_checks() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["init", "mine"]).code(0);
    run(dir.path(), &["check", "mine/recipe.toml"]).code(0);
    run(
        dir.path(),
        &["check", "mine/recipe.toml", "--profile", "quick"],
    )
    .code(0);
    let again = run(dir.path(), &["init", "mine"]).code(2);
    assert!(again.err.contains("nothing was changed"), "{}", again.err);
}

#[test]
fn shipped_recipes_check() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    // its data is not in the repository
    let data = tempfile::tempdir().unwrap();
    for file in ["train.jsonl", "test.jsonl"] {
        std::fs::write(data.path().join(file), "").unwrap();
    }
    let elsewhere = format!("data={}", data.path().display());
    let mut checked = 0;
    for folder in [root.clone(), root.join("ci")] {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "toml") && !path.ends_with("common.toml") {
                let mut args = vec!["check", path.to_str().unwrap()];
                if path.ends_with("gsm8k.toml") {
                    args.extend(["-S", &elsewhere]);
                }
                run(&root, &args).code(0);
                checked += 1;
            }
        }
    }
    assert!(checked >= 4, "{checked} recipes");
}

#[test]
fn doctor_says_what_is_missing() {
    let project = project();
    let found = project.recipe("doctor --json").json();
    let worker = found["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["name"] == "worker")
        .unwrap()
        .clone();
    assert_eq!(
        found["ok"], worker["ok"],
        "only the worker can be missing here"
    );
    assert!(!project.path(".recipe").exists(), "doctor changes nothing");
}

#[test]
fn help_and_version_are_no_errors() {
    let project = project();
    assert!(project.recipe("--help").code(0).out.contains("Exit codes"));
    project.recipe("--version").code(0);
    project.recipe("run").code(2);
    project.recipe("nonsense").code(2);
}

#[test]
fn four_models_on_many_gpus_are_planned_from_their_configurations() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let golden = root.join("tests/golden/plan/expected.txt");
    let args = "plan tests/golden/plan/recipe.toml --gpus 1,8,64 --gpu-memory 80GB,141GB";
    let args: Vec<&str> = args.split(' ').collect();
    let ran = run(&root, &args).code(0);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &ran.out).unwrap();
    }
    let wanted = std::fs::read_to_string(&golden).unwrap();
    assert!(ran.out == wanted, "{}--- wanted\n{wanted}", ran.out);

    let json = run(&root, &[&args[..], &["--json"]].concat())
        .code(0)
        .json();
    let devices = json["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 4 * 3 * 2);
    for device in devices {
        let left = device["gpu_memory"].as_u64().unwrap() - json["reserve"].as_u64().unwrap();
        let fits = device["memory"]["peak"].as_u64().unwrap() <= left;
        assert_eq!(device["fits"], fits, "{device}");
    }
    run(
        &root,
        &["plan", "tests/golden/plan/recipe.toml", "--gpus", "8"],
    )
    .code(2);
}

/// What the recipe's own placement needs, mesh, pipeline pieces and rollouts included; and a GPU that it
/// does not fit is refused with what would.
#[test]
fn a_placement_that_cannot_fit_is_refused_with_the_smallest_change() {
    let recipe = |resources: &str| {
        format!(
            r#"[recipe]
name = "large"
schema = 1
[stage.init]
kind = "init"
with = {{ family = "llama", hidden_size = 2048, layers = 16, heads = 16, vocab_size = 32000 }}
[stage.grpo]
kind = "grpo"
in.model = "init.model"
with = {{ environment = "addition", steps = 1, dtype = "bf16", batch_size = 64 }}
resources = {{ {resources} }}
"#
        )
    };
    let memory = |resources: &str| {
        let project = Project::new(&recipe(resources));
        let json = project.recipe("plan recipe.toml --json").code(0).json();
        let stages = json["stages"].as_array().unwrap().clone();
        let grpo = stages.into_iter().find(|s| s["stage"] == "grpo").unwrap();
        grpo["memory"].clone()
    };
    let rollout = |resources: &str| memory(resources)["rollout"].as_u64().unwrap();
    let weights = 2 * 1_139_345_408;
    // whole weights serve as they are; parts are gathered to whole ones where that is told
    let whole = rollout("ranks = 2");
    assert_eq!(
        rollout("ranks = 2, mesh = { dp_shard = 2 }, rollout_mesh = { dp = 2 }"),
        whole + weights
    );
    assert_eq!(rollout("ranks = 2, mesh = { tp = 2 }"), whole);
    let parts = rollout("ranks = 2, mesh = { dp_shard = 2 }");
    assert!(
        (whole..whole + weights * 6 / 10).contains(&parts),
        "{parts}"
    );
    // interleaved pieces keep more microbatches' activations, rows between matrices less
    let activations = |resources: &str| memory(resources)["activations"].as_u64().unwrap();
    let pieces = |n| format!("ranks = 2, mesh = {{ pp = 2, pp_chunks = {n} }}");
    assert!(activations(&pieces(2)) > activations(&pieces(1)));
    let rows = |sp| format!("ranks = 2, mesh = {{ tp = 2, sp = {sp} }}");
    assert!(activations(&rows("false")) > activations(&rows("true")));

    let project = Project::new(&recipe("ranks = 2"));
    project
        .recipe("plan recipe.toml --gpu-memory 141GB")
        .code(0);
    let ran = project.recipe("plan recipe.toml --gpu-memory 24GB").code(2);
    assert!(ran.out.contains("dp_replicate2"), "{}", ran.out);
    for part in [
        "stage 'grpo' needs",
        "GPU of 24.0 GB",
        "mesh = { dp_shard = 2 }",
    ] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    // and what it names fits
    let project = Project::new(&recipe(
        "ranks = 2, mesh = { dp_shard = 2 }, activation_checkpointing = \"full\"",
    ));
    project.recipe("plan recipe.toml --gpu-memory 24GB").code(0);

    // a mesh that cannot carry the model is told with the plan, not when the stage starts
    let project = Project::new(&recipe("ranks = 32, mesh = { tp = 32 }"));
    let ran = project.recipe("plan recipe.toml").code(0);
    assert!(ran.out.contains("mesh.tp = 32"), "{}", ran.out);
}
