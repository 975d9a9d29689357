//! Hugging Face directories in, scored, and out again, through the real binaries.

use std::fs;
use std::path::{Path, PathBuf};

use product_tests::{Project, root};
use serde_json::Value;

fn fixtures() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(root().join("tests/golden/models"))
        .expect("fixtures")
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("expected.json").exists())
        .collect();
    found.sort();
    assert!(found.len() >= 4, "a fixture for each family");
    found
}

/// Name -> (dtype, shape, bytes) of all safetensors of a directory.
fn tensors(dir: &Path) -> std::collections::BTreeMap<String, (String, String, Vec<u8>)> {
    let mut all = std::collections::BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a model directory").flatten() {
        if entry.path().extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let bytes = fs::read(entry.path()).expect("a readable file");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
        for (name, info) in header.as_object().expect("a table") {
            if name == "__metadata__" {
                continue;
            }
            let at = |i: usize| info["data_offsets"][i].as_u64().expect("an offset") as usize;
            let data = bytes[8 + length + at(0)..8 + length + at(1)].to_vec();
            let shape = info["shape"].to_string();
            all.insert(name.clone(), (info["dtype"].to_string(), shape, data));
        }
    }
    all
}

/// The JSON lines of an artifact's one file.
fn lines(dir: &Path) -> Vec<Value> {
    let file = fs::read_dir(dir)
        .expect("an artifact")
        .flatten()
        .next()
        .expect("a file");
    let text = fs::read_to_string(file.path()).expect("text");
    text.lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect()
}

#[test]
fn every_family_is_scored_as_transformers_does_and_written_back_byte_for_byte() {
    for fixture in fixtures() {
        let name = fixture
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let expected: Value =
            serde_json::from_str(&fs::read_to_string(fixture.join("expected.json")).expect("JSON"))
                .expect("JSON");
        let sequences = expected["sequences"].as_array().expect("sequences");
        let rows: Vec<String> = sequences
            .iter()
            .map(|tokens| serde_json::json!({ "tokens": tokens }).to_string())
            .collect();
        let project = Project::new(&format!(
            r#"
[recipe]
name = "roundtrip"
schema = 1
[source.model]
path = "{}"
[source.rows]
path = "rows.jsonl"
[stage.convert]
kind = "convert"
in.model = "source.model"
[stage.score]
kind = "score"
in = {{ model = "convert.model", data = "source.rows" }}
[source.prompts]
path = "prompts.jsonl"
[stage.generate]
kind = "generate"
in = {{ model = "convert.model", prompts = "source.prompts" }}
with = {{ max_tokens = 24, temperature = 0.0, ignore_eos = true }}
[stage.export]
kind = "export"
in.model = "convert.model"
"#,
            fixture.display()
        ));
        project.write("rows.jsonl", &(rows.join("\n") + "\n"));
        let greedy = expected["greedy"].as_array().expect("greedy");
        let prompts: Vec<String> = greedy
            .iter()
            .map(|g| serde_json::json!({ "tokens": g["tokens"] }).to_string())
            .collect();
        project.write("prompts.jsonl", &(prompts.join("\n") + "\n"));
        project.recipe(&["run", "recipe.toml"]).expect(0);
        project
            .recipe(&["get", "recipe.toml", "score.logprobs", "--to", "scores"])
            .expect(0);
        project
            .recipe(&["get", "recipe.toml", "export.model", "--to", "exported"])
            .expect(0);

        project
            .recipe(&["get", "recipe.toml", "generate.completions", "--to", "said"])
            .expect(0);
        for (ours, theirs) in lines(&project.path("said")).iter().zip(greedy) {
            assert_eq!(
                ours["tokens"], theirs["completion"],
                "{name}: greedy tokens"
            );
        }
        let scored = lines(&project.path("scores"));
        assert_eq!(scored.len(), sequences.len(), "{name}: a line for each row");
        let mut tokens = 0;
        let reference = expected["logprobs"].as_array().expect("logprobs");
        for ((ours, sequence), theirs) in scored.iter().zip(sequences).zip(reference) {
            assert_eq!(&ours["tokens"], sequence, "{name}: in order");
            let list = |v: &Value| -> Vec<f64> {
                let values = v.as_array().expect("log-probabilities");
                values
                    .iter()
                    .map(|x| x.as_f64().expect("a number"))
                    .collect()
            };
            let (ours, theirs) = (list(&ours["logprobs"]), list(theirs));
            assert_eq!(ours.len(), theirs.len(), "{name}");
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() < 1e-4, "{name}: {a} and {b}");
                tokens += 1;
            }
        }
        assert!(tokens > 20, "{name}: {tokens} tokens compared");
        assert_eq!(
            tensors(&fixture),
            tensors(&project.path("exported")),
            "{name}: tensors"
        );
        for carried in ["tokenizer.json", "generation_config.json"] {
            let (before, after) = (
                fixture.join(carried),
                project.path("exported").join(carried),
            );
            if before.exists() {
                assert_eq!(
                    fs::read(before).ok(),
                    fs::read(after).ok(),
                    "{name}: {carried}"
                );
            }
        }
        let card = project.read("exported/README.md");
        assert!(
            card.contains("roundtrip"),
            "{name}: the model card names the recipe"
        );
    }
}

#[test]
fn checkpoints_of_torch_come_in_and_go_out() {
    let golden = root().join("tests/golden");
    let project = Project::new(&format!(
        r#"
[recipe]
name = "dcp"
schema = 1
[source.checkpoint]
path = "{0}/dcp/two-ranks"
[source.model]
path = "{0}/models/llama-linear"
[stage.convert]
kind = "convert"
in = {{ model = "source.checkpoint", config = "source.model" }}
[stage.export]
kind = "export"
in.model = "convert.model"
with.format = "dcp"
[stage.again]
kind = "convert"
in.model = "export.model"
"#,
        golden.display()
    ));
    project.recipe(&["run", "recipe.toml"]).expect(0);
    for stage in ["convert", "again"] {
        project
            .recipe(&[
                "get",
                "recipe.toml",
                &format!("{stage}.model"),
                "--to",
                stage,
            ])
            .expect(0);
        let model = golden.join("models/llama-linear");
        assert_eq!(tensors(&project.path(stage)), tensors(&model), "{stage}");
        let tokenizer = |dir: &Path| fs::read(dir.join("tokenizer.json")).ok();
        assert_eq!(
            tokenizer(&project.path(stage)),
            tokenizer(&model),
            "{stage}"
        );
    }
    project
        .recipe(&["get", "recipe.toml", "export.model", "--to", "exported"])
        .expect(0);
    let names: Vec<String> = fs::read_dir(project.path("exported"))
        .expect("a directory")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    for name in [".metadata", "__0_0.distcp", "config.json", "README.md"] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
}
