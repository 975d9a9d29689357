//! `recipe schema` beside the parser: what ships is accepted, and what the parser refuses is refused where
//! a schema can tell.

use crate::project::run;
use jsonschema::Validator;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Bad recipes that no schema can refuse, and why.
const BEYOND: &[(&str, &str)] = &[
    ("assert-digest-of-no-output", "what the stage's kind makes"),
    ("assert-that-cannot-hold", "compares two values"),
    ("assert-two-questions", "two settings together"),
    ("assert-window-without-over", "two settings together"),
    ("best-step-validated-at-the-end", "two settings together"),
    (
        "best-step-without-validation",
        "a setting and an input together",
    ),
    ("bpe-without-data", "a setting and an input together"),
    ("check-source-missing", "files"),
    (
        "environment-without-data",
        "a setting and an input together",
    ),
    ("get-unknown-output", "the command line"),
    ("get-without-result", "the store"),
    ("heads-do-not-divide", "arithmetic"),
    ("include-cycle", "another file"),
    ("include-error-in-its-own-file", "another file"),
    ("include-missing", "another file"),
    ("input-of-wrong-kind", "what a reference points to"),
    ("interpolation-of-the-environment", "text within text"),
    ("mesh-axes-beyond-ranks", "arithmetic"),
    ("mesh-chunks-without-pipeline", "compares two values"),
    ("mesh-does-not-fit", "arithmetic"),
    ("mesh-without-ranks", "arithmetic"),
    ("param-cycle", "what a reference points to"),
    ("param-of-wrong-type", "what a reference points to"),
    ("param-unknown", "what a reference points to"),
    ("param-unused", "what refers to it"),
    ("profile-of-unknown-stage", "names of other tables"),
    ("profile-unknown", "the command line"),
    ("recipe-section-missing", "an included file has none"),
    ("reference-and-logprobs", "two inputs of one kind"),
    ("reference-output-typo", "what a reference points to"),
    ("reference-source-typo", "what a reference points to"),
    ("reference-stage-typo", "what a reference points to"),
    ("run-command-fails", "a run"),
    ("run-command-forgets-output", "a run"),
    ("run-command-not-found", "a run"),
    ("run-events-unwritable", "the command line"),
    ("run-force-unknown-stage", "the command line"),
    ("run-lock-not-ours", "another file"),
    ("run-lock-stale", "another file"),
    ("run-only-and-from", "the command line"),
    ("run-source-missing", "files"),
    ("run-store-is-a-file", "the command line"),
    ("run-store-url", "the command line"),
    ("run-unknown-stage", "the command line"),
    ("set-unknown-param", "the command line"),
    ("set-unknown-stage", "the command line"),
    ("set-without-value", "the command line"),
    ("set-wrong-type", "the command line"),
    ("smoothing-without-effect", "two settings together"),
    ("stages-in-a-circle", "what references come to"),
    ("step-beyond-the-last", "compares two values"),
    ("step-of-a-source", "what a reference points to"),
    (
        "step-of-a-stage-without-steps",
        "what a reference points to",
    ),
    ("step-of-unknown-stage", "what a reference points to"),
    ("until-beyond-the-last", "compares two values"),
    ("unknown-environment-option", "settings of one environment"),
    ("foreach-without-cells", "names of other tables"),
    ("matrix-axis-unknown", "what a reference points to"),
    ("matrix-axis-unused", "what refers to it"),
    ("matrix-axis-without-matrix", "what a reference points to"),
    ("matrix-cell-twice", "compares two values"),
    ("matrix-exclude-matches-nothing", "compares two values"),
    ("matrix-exclude-unknown-axis", "names of other tables"),
    ("matrix-excludes-all", "compares two values"),
    ("matrix-include-matches-nothing", "compares two values"),
    ("reference-to-cell-unknown", "what a reference points to"),
    ("reference-to-cells", "what a reference points to"),
    ("select-without-cells", "what references come to"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn validator() -> Validator {
    let schema = run(&root(), &["schema"]).code(0).json();
    jsonschema::meta::validate(&schema).expect("the schema is one");
    jsonschema::validator_for(&schema).unwrap()
}

/// A recipe as JSON; what TOML or JSON cannot say is no recipe.
fn read(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    let table: toml::Table = toml::from_str(&text).ok()?;
    value(&toml::Value::Table(table))
}

fn value(toml: &toml::Value) -> Option<Value> {
    Some(match toml {
        toml::Value::String(text) => json!(text),
        toml::Value::Integer(n) => json!(n),
        toml::Value::Float(x) => json!(Some(*x).filter(|x| x.is_finite())?),
        toml::Value::Boolean(b) => json!(b),
        toml::Value::Datetime(_) => return None,
        toml::Value::Array(all) => all.iter().map(value).collect::<Option<_>>()?,
        toml::Value::Table(table) => {
            let pairs = table.iter();
            let pairs = pairs.map(|(key, one)| Some((key.clone(), value(one)?)));
            Value::Object(pairs.collect::<Option<_>>()?)
        }
    })
}

fn recipes_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let mut files: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "toml"));
    files
}

#[test]
fn every_shipped_recipe_is_accepted() {
    let validator = validator();
    let root = root();
    let mut files = recipes_in(&root.join("recipes"));
    files.extend(recipes_in(&root.join("recipes/ci")));
    files.extend(recipes_in(&root.join("tests/golden/plan")));
    files.push(root.join("crates/recipe/src/verbs/init/recipe.toml"));
    assert!(files.len() >= 8);
    for file in files {
        let recipe = read(&file).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&recipe)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
    }
}

#[test]
fn every_bad_recipe_is_refused_where_a_schema_can() {
    let validator = validator();
    let mut wrong = Vec::new();
    let mut refused = 0;
    let cases = std::fs::read_dir(root().join("tests/golden/errors")).unwrap();
    for case in cases.flatten() {
        let name = case.file_name().to_string_lossy().into_owned();
        let file = case.path().join("recipe.toml");
        if !file.exists() {
            continue;
        }
        let accepted = read(&file).is_some_and(|recipe| validator.is_valid(&recipe));
        let beyond = BEYOND.iter().find(|(case, _)| *case == name);
        match (accepted, beyond) {
            (true, None) => wrong.push(format!("{name} is accepted")),
            (false, Some((_, why))) => {
                wrong.push(format!(
                    "{name} is refused, though it is said to need {why}"
                ));
            }
            (false, None) => refused += 1,
            (true, Some(_)) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused >= 40, "{refused}");
}

/// Bounds are the parser's own: at a bound `recipe check` is content, and beyond it is not.
#[test]
fn bounds_are_those_of_the_parser() {
    let schema = run(&root(), &["schema"]).code(0).json();
    let lr = &schema["$defs"]["Sft"]["properties"]["lr"]["anyOf"][0];
    assert_eq!(lr["exclusiveMinimum"], 0, "{lr}");
    let group = &schema["$defs"]["Grpo"]["properties"]["group_size"]["anyOf"][0];
    assert_eq!(group["minimum"], 2, "{group}");
    let decay = &schema["$defs"]["Sft"]["properties"]["decay"]["anyOf"][0];
    assert_eq!(decay["exclusiveMaximum"], 1, "{decay}");
    let nodes = &schema["$defs"]["Resources"]["properties"]["nodes"]["anyOf"][0];
    assert_eq!(nodes["maximum"], 1, "{nodes}");
    // what holds for some choices only is no bound: cispo caps at clip_high itself
    let clip = &schema["$defs"]["Grpo"]["properties"]["clip_high"]["anyOf"][0];
    assert_eq!(clip["exclusiveMinimum"], 0, "{clip}");
}

/// A layer may leave to other files what a recipe that stands alone must have.
#[test]
fn layers_may_be_incomplete() {
    let validator = validator();
    let with = |include: &[&str]| {
        json!({
            "recipe": { "name": "x", "schema": 1, "include": include },
            "stage": { "sft": { "with": { "steps": 5 } } },
        })
    };
    assert!(validator.is_valid(&with(&["common.toml"])));
    let mut alone = with(&[]);
    alone["recipe"].as_object_mut().unwrap().remove("include");
    assert!(!validator.is_valid(&alone));
    assert!(
        validator
            .is_valid(&json!({ "params": { "lr": 1e-3 }, "source": { "a": { "path": "b" } } }))
    );
}
