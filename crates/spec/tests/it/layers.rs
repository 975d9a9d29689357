//! Includes, profiles, `-S`, parameters.

use crate::{RECIPE, error, load, load_with, settings, write};
use serde_json::json;
use spec::{Layers, SourceSpec, codes};
use std::time::Duration;

#[test]
fn the_contract_recipe_resolves() {
    let recipe = load(RECIPE);
    assert_eq!(recipe.name, "sft-then-grpo");
    let sft = &recipe.stages["sft"];
    assert_eq!(
        sft.with["lr"],
        json!(1e-3),
        "a lone reference keeps the parameter's type"
    );
    assert_eq!(sft.with["seed"], json!(17));
    assert_eq!(
        sft.with["betas"],
        json!([0.9, 0.999]),
        "defaults are filled in"
    );
    assert_eq!(sft.placement.resources.ranks, 2);
    assert_eq!(sft.placement.resources.mesh.dp_replicate, 2);
    assert_eq!(
        (
            sft.placement.checkpoint.every,
            sft.placement.checkpoint.keep
        ),
        (20, 3)
    );
    assert_eq!(sft.placement.timeout, Some(Duration::from_secs(12 * 3600)));
    assert_eq!(sft.inputs["data"][0].to_string(), "source.chat");
    assert_eq!(
        recipe.stages["grpo"].with["environment"],
        json!([{ "name": "addition", "weight": 1.0 }])
    );
    assert_eq!(recipe.stages["eval"].assertions[0].min, Some(0.8));
    let outputs: Vec<_> = recipe.stages["eval"]
        .outputs
        .iter()
        .map(|o| o.name.as_str())
        .collect();
    assert_eq!(outputs, ["report", "completions"]);
    assert_eq!(
        recipe.sources["base"].from,
        SourceSpec::Hf {
            repo: "Qwen/Qwen3-0.6B".to_owned(),
            revision: "main".to_owned(),
            files: Vec::new()
        }
    );
    assert!(
        matches!(&recipe.sources["chat"].from, SourceSpec::Path(p) if p.ends_with("data/addition.jsonl"))
    );
}

#[test]
fn later_layers_win() {
    let profile = |settings: Layers| Layers {
        profile: Some("ci".to_owned()),
        ..settings
    };
    let with = |layers| {
        load_with(RECIPE, &layers)
            .unwrap_or_else(|e| panic!("{e}"))
            .stages["sft"]
            .with
            .clone()
    };
    let plain = with(profile(Layers::default()));
    assert_eq!(
        (plain["lr"].clone(), plain["steps"].clone()),
        (json!(2e-3), json!(20))
    );
    let set = with(profile(settings(&["lr=5e-4", "stage.sft.with.steps=7"])));
    assert_eq!(
        (set["lr"].clone(), set["steps"].clone()),
        (json!(5e-4), json!(7))
    );
    let lone = with(settings(&["stage.sft.with.lr=1"]));
    assert_eq!(
        lone["lr"],
        json!(1.0),
        "a whole number is a number; the replaced parameter is not unused"
    );
}

#[test]
fn settings_make_keys_and_keep_strings() {
    let recipe = load_with(
        RECIPE,
        &settings(&[
            "stage.sft.with.grad_clip=0",
            "source.chat.path=17",
            "stage.convert.resources.threads=3",
        ]),
    )
    .unwrap();
    assert_eq!(recipe.stages["sft"].with["grad_clip"], json!(0.0));
    assert!(matches!(&recipe.sources["chat"].from, SourceSpec::Path(p) if p.ends_with("17")));
    assert_eq!(recipe.stages["convert"].placement.resources.threads, 3);
}

#[test]
fn includes_merge_below_the_file() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "deep/common.toml",
        "[params]\nseed = 1\nlr = 0.5\n[stage.base]\nkind = \"init\"\nwith = { family = \"qwen3\", hidden_size = 8, layers = 1, heads = 2, seed = \"${params.seed}\", init_std = \"${params.lr}\" }\n",
    );
    write(
        dir.path(),
        "a.toml",
        "[recipe]\nname = \"a\"\nschema = 1\ninclude = [\"deep/common.toml\"]\n[params]\nseed = 2\n[stage.base.with]\nlayers = 3\n",
    );
    let recipe = spec::load(&dir.path().join("a.toml"), &Layers::default())
        .unwrap_or_else(|e| panic!("{e}"));
    let with = &recipe.stages["base"].with;
    assert_eq!(
        (&with["seed"], &with["layers"], &with["init_std"]),
        (&json!(2), &json!(3), &json!(0.5))
    );
}

#[test]
fn interpolation_is_one_thing_only() {
    let command = |cmd: &str, params: &str| {
        format!(
            "[recipe]\nname = \"c\"\nschema = 1\n[params]\n{params}\n[stage.c]\nkind = \"command\"\ncmd = [\"echo\", {cmd}]\nout = [\"x\"]\n"
        )
    };
    let cmd =
        |text: &str, params: &str| load(&command(text, params)).stages["c"].with["cmd"][1].clone();
    assert_eq!(cmd("\"a ${params.n} b\"", "n = 3"), json!("a 3 b"));
    assert_eq!(
        cmd("\"$${params.n} ${params.n}\"", "n = 1.5"),
        json!("${params.n} 1.5")
    );
    assert_eq!(cmd("\"$HOME {x} $\"", ""), json!("$HOME {x} $"));
    assert_eq!(
        cmd("\"${params.a}\"", "a = \"x${params.b}\"\nb = \"y\""),
        json!("xy")
    );
    let wrong = |text: &str, params: &str| error(&command(text, params)).code;
    assert_eq!(wrong("\"${env.HOME}\"", ""), codes::INTERPOLATION);
    assert_eq!(wrong("\"${params.n\"", ""), codes::INTERPOLATION);
    assert_eq!(
        wrong(
            "\"${params.a}\"",
            "a = \"${params.b}\"\nb = \"${params.a}\""
        ),
        codes::PARAM_CYCLE
    );
    assert_eq!(
        wrong("\"${params.list} x\"", "list = [1]"),
        codes::INTERPOLATION
    );
    assert_eq!(wrong("\"x\"", "unused = 1"), codes::UNUSED_PARAM);
}

#[test]
fn places_are_exact() {
    let text = RECIPE.replace("group_size = 8", "group_sise = 8");
    let place = error(&text).place.unwrap();
    let line = text.lines().position(|l| l.contains("group_sise")).unwrap() + 1;
    assert_eq!((place.line, place.column, place.width), (line, 48, 10));
    let diagnostic = load_with(RECIPE, &settings(&["stage.sft.with.lr=-1"])).unwrap_err();
    let place = diagnostic.place.unwrap();
    assert_eq!((place.file.as_str(), place.column), ("command line", 19));
}
