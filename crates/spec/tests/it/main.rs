//! What a recipe's text comes to: errors are golden files of the command line (`tests/golden`);
//! here are values, keys and plans.

mod assertions;
mod explain;
mod keys;
mod layers;
mod matrix;
mod parts;
mod plans;
mod worker;

use spec::{Diagnostic, Layers, Recipe, Setting};
use std::path::Path;

/// The recipe of DESIGN section 4, shortened.
pub const RECIPE: &str = r#"
[recipe]
name = "sft-then-grpo"
schema = 1

[params]
seed = 17
lr = 1e-3

[source.chat]
path = "data/addition.jsonl"
[source.base]
hf = "Qwen/Qwen3-0.6B"

[stage.convert]
kind = "convert"
in.model = "source.base"

[stage.sft]
kind = "sft"
in = { model = "convert.model", data = ["source.chat"] }
with = { steps = 300, lr = "${params.lr}", seed = "${params.seed}" }
resources = { ranks = 2, microbatch_tokens = 4096 }
checkpoint = { every = 20, keep = 3 }
retry = { max = 2, on = ["infra", "preempt"] }
timeout = "12h"

[stage.grpo]
kind = "grpo"
in.model = "sft.model"
with = { environment = "addition", steps = 60, group_size = 8 }

[stage.eval]
kind = "evaluate"
in.model = "grpo.model"
with = { environment = "addition", examples = 256 }
[[stage.eval.assert]]
metric = "accuracy"
min = 0.8

[profile.ci]
params.lr = 2e-3
stage.sft.with.steps = 20
"#;

pub fn load_with(text: &str, layers: &Layers) -> Result<Recipe, Box<Diagnostic>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("recipe.toml");
    std::fs::write(&file, text).unwrap();
    spec::load(&file, layers)
}

pub fn load(text: &str) -> Recipe {
    load_with(text, &Layers::default()).unwrap_or_else(|e| panic!("{e}"))
}

pub fn settings(all: &[&str]) -> Layers {
    Layers {
        profile: None,
        settings: all.iter().map(|s| Setting((*s).to_owned())).collect(),
    }
}

pub fn error(text: &str) -> Diagnostic {
    *load_with(text, &Layers::default())
        .map(|_| ())
        .expect_err("the recipe is wrong")
}

/// A file under a folder, its parents made.
pub fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
