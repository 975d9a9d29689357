//! What the worker refuses: one clear error each, the right exit code, nothing lost.
//!
//! The texts are golden files (`tests/golden/failures`); `UPDATE_GOLDEN=1` writes them anew. What
//! `recipe check` refuses has its own list (`tests/golden/errors`).

use std::fs;
use std::path::PathBuf;

use product_tests::Project;

use crate::golden;

/// Changes a sound project into a bad one.
type Spoil = fn(&Project);

struct Case {
    name: &'static str,
    code: i32,
    spoil: Spoil,
}

const CASES: &[Case] = &[
    Case {
        name: "source-missing",
        code: 2,
        spoil: |p| remove(p, "addition.jsonl"),
    },
    Case {
        name: "data-empty",
        code: 2,
        spoil: |p| p.write("addition.jsonl", ""),
    },
    Case {
        name: "data-not-json",
        code: 2,
        spoil: |p| {
            p.write(
                "addition.jsonl",
                "{\"question\": \"1+1=\", \"answer\": \"2\"}\nnonsense\n",
            )
        },
    },
    Case {
        name: "data-of-no-known-shape",
        code: 2,
        spoil: |p| p.write("addition.jsonl", "{\"frage\": \"1+1=\"}\n"),
    },
    Case {
        name: "data-with-a-number-for-text",
        code: 2,
        spoil: |p| p.write("addition.jsonl", "{\"prompt\": 5, \"completion\": \"2\"}\n"),
    },
    Case {
        name: "every-example-longer-than-the-context",
        code: 2,
        spoil: |p| {
            let long = "1".repeat(200);
            p.write(
                "addition.jsonl",
                &format!("{{\"question\": \"{long}\", \"answer\": \"2\"}}\n"),
            );
            p.edit(
                "recipe.toml",
                "max_length = 32",
                "max_length = 32, overlong = \"drop\"",
            );
        },
    },
    Case {
        name: "example-longer-than-the-context",
        code: 2,
        spoil: |p| {
            let long = "1".repeat(200);
            p.write(
                "addition.jsonl",
                &format!("{{\"question\": \"{long}\", \"answer\": \"2\"}}\n"),
            );
            p.edit("recipe.toml", "max_length = 32", "max_length = 4096");
        },
    },
    Case {
        name: "config-missing",
        code: 2,
        spoil: |p| remove(p, "base/config.json"),
    },
    Case {
        name: "config-not-json",
        code: 2,
        spoil: |p| p.write("base/config.json", "{"),
    },
    Case {
        name: "config-of-unknown-family",
        code: 2,
        spoil: |p| p.edit("base/config.json", "\"qwen3\"", "\"gpt_neox\""),
    },
    Case {
        name: "config-with-other-sizes",
        code: 2,
        spoil: |p| {
            p.edit(
                "base/config.json",
                "\"intermediate_size\": 64",
                "\"intermediate_size\": 80",
            )
        },
    },
    Case {
        name: "weights-missing",
        code: 2,
        spoil: |p| remove(p, "base/model.safetensors"),
    },
    Case {
        name: "weights-truncated",
        code: 2,
        spoil: |p| bytes(p, |b| b.truncate(b.len() / 2)),
    },
    Case {
        name: "weights-header-lies-about-its-length",
        code: 2,
        spoil: |p| bytes(p, |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
    },
    Case {
        name: "weights-header-lies-about-sizes",
        code: 2,
        spoil: |p| header(p, "\"shape\":[32]", "\"shape\":[64]"),
    },
    Case {
        name: "weights-of-wrong-dtype",
        code: 2,
        spoil: |p| header(p, "\"dtype\":\"F32\"", "\"dtype\":\"I32\""),
    },
    Case {
        name: "tokenizer-missing",
        code: 2,
        spoil: |p| remove(p, "base/tokenizer.json"),
    },
    Case {
        name: "tokenizer-does-not-fit",
        code: 2,
        spoil: |p| {
            p.edit(
                "base/config.json",
                "\"vocab_size\": 19",
                "\"vocab_size\": 12",
            );
            // the weights agree with the config; only the tokenizer is too large
            header(p, "\"shape\":[19,32]", "\"shape\":[12,32]");
            bytes(p, |b| {
                let length = u64::from_le_bytes(b[..8].try_into().expect("eight bytes")) as usize;
                let text = String::from_utf8(b[8..8 + length].to_vec()).expect("text");
                let mut table: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                let data = b[8 + length..].to_vec();
                rebuild(&mut table, &data, b);
            });
        },
    },
];

const RECIPE: &str = r#"[recipe]
name = "bad"
schema = 1
[source.model]
path = "base"
[source.data]
path = "addition.jsonl"
[stage.convert]
kind = "convert"
in.model = "source.model"
[stage.sft]
kind = "sft"
in = { model = "convert.model", data = "source.data" }
with = { steps = 2, batch_size = 4, max_length = 32 }
"#;

#[test]
fn each_bad_input_gives_one_clear_error() {
    let sound = Project::of("pipeline");
    sound.recipe(&["run", "recipe.toml", "base"]).expect(0);
    sound
        .recipe(&["get", "recipe.toml", "base.model", "--to", "base"])
        .expect(0);
    let mut wrong = Vec::new();
    for case in CASES {
        let project = Project::new(RECIPE);
        fs::create_dir(project.path("base")).expect("a folder");
        for entry in fs::read_dir(sound.path("base"))
            .expect("the model")
            .flatten()
        {
            let to = project.path("base").join(entry.file_name());
            fs::write(to, fs::read(entry.path()).expect("bytes")).expect("a copy");
        }
        project.write("addition.jsonl", &sound.read("addition.jsonl"));
        (case.spoil)(&project);
        let ended = project.recipe(&["run", "recipe.toml"]);
        let text = golden::normal(&ended.stderr, &project);
        if ended.code != case.code {
            wrong.push(format!(
                "{}: exit {} for {}\n{text}",
                case.name, ended.code, case.code
            ));
        } else if text.contains("panicked") || !text.contains("error[") {
            wrong.push(format!("{}: not a clear error\n{text}", case.name));
        } else if let Some(difference) = golden::differs(case.name, &text) {
            wrong.push(difference);
        }
        project.recipe(&["cache", "verify"]).expect(0);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn remove(project: &Project, name: &str) {
    fs::remove_file(project.path(name)).expect("the file was there");
}

fn weights(project: &Project) -> PathBuf {
    project.path("base/model.safetensors")
}

fn bytes(project: &Project, change: impl FnOnce(&mut Vec<u8>)) {
    let mut all = fs::read(weights(project)).expect("weights");
    change(&mut all);
    fs::write(weights(project), all).expect("weights");
}

/// Edits the header's text and corrects its length.
fn header(project: &Project, from: &str, to: &str) {
    bytes(project, |all| {
        let length = u64::from_le_bytes(all[..8].try_into().expect("eight bytes")) as usize;
        let text = String::from_utf8(all[8..8 + length].to_vec()).expect("text");
        assert!(text.contains(from), "{from} stands in {text}");
        let text = text.replacen(from, to, 1);
        let mut new = (text.len() as u64).to_le_bytes().to_vec();
        new.extend(text.as_bytes());
        new.extend(&all[8 + length..]);
        *all = new;
    });
}

/// Cuts every tensor's bytes to what its shape says and writes the file anew.
fn rebuild(table: &mut serde_json::Value, data: &[u8], all: &mut Vec<u8>) {
    let mut packed: Vec<u8> = Vec::new();
    for (name, info) in table.as_object_mut().expect("a table") {
        if name == "__metadata__" {
            continue;
        }
        let start = info["data_offsets"][0].as_u64().expect("an offset") as usize;
        let shape = info["shape"].as_array().expect("a shape");
        let elements: u64 = shape.iter().map(|n| n.as_u64().expect("a size")).product();
        let size = 4 * elements as usize;
        let at = packed.len();
        packed.extend(&data[start..start + size]);
        info["data_offsets"] = serde_json::json!([at, at + size]);
    }
    let text = table.to_string();
    *all = (text.len() as u64).to_le_bytes().to_vec();
    all.extend(text.as_bytes());
    all.extend(packed);
}
