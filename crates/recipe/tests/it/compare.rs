//! `recipe compare`: what two runs differ in, named exactly.

use crate::project::Project;
use crate::worker::{project, script};
use serde_json::{Value, json};

/// The two latest runs.
fn ids(project: &Project) -> [String; 2] {
    let out = project.recipe("runs --json").code(0).out;
    let ids: Vec<String> = out
        .lines()
        .map(|l| {
            serde_json::from_str::<Value>(l).unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    [ids[ids.len() - 2].clone(), ids[ids.len() - 1].clone()]
}

#[test]
fn one_parameter_one_row_and_one_code_version_are_named_and_nothing_else() {
    let project = project("");
    project.recipe("run recipe.toml").code(0);
    let text = project.read("chat.jsonl");
    project.write("chat.jsonl", &text.replace("row 6\"", "row six\""));
    script(&project, "two");
    project.recipe("run recipe.toml -S lr=2e-3").code(0);
    let [a, b] = ids(&project);
    let compared = project
        .recipe(&format!("compare {a} {b} --json"))
        .code(0)
        .json();
    let differs = compared["differs"].as_array().unwrap();
    let of = |field: &str| differs.iter().find(|d| d["field"] == field).unwrap();
    assert_eq!(differs.len(), 3, "{differs:#?}");
    let parameter = of("with.lr");
    assert_eq!(
        (
            &parameter["before"],
            &parameter["now"],
            &parameter["stages"]
        ),
        (&json!(1e-3), &json!(2e-3), &json!(["sft"]))
    );
    let code = of("trainer.sources");
    assert_eq!(
        (&code["before"], &code["now"], &code["stages"]),
        (&json!("one"), &json!("two"), &json!(["sft", "dpo"]))
    );
    let data = of("inputs.data[0]");
    assert_eq!(data["stages"], json!(["sft", "dpo"]));
    assert_eq!(
        data["source"],
        json!({ "name": "chat", "files": [
            { "path": "data.jsonl", "change": "rows", "changed": [7], "removed": [], "added": [] }
        ] })
    );
    let text = project.recipe(&format!("compare {a} {b}")).code(0).out;
    let begin = text.find("what differs").unwrap();
    let end = text.find("\n\nstage").unwrap();
    assert_eq!(
        text[begin..end].trim(),
        "what differs (a -> b):\n  \
         sft, dpo: source.chat: row 7 changed\n  \
         sft, dpo: trainer.sources \"one\" -> \"two\"\n  \
         sft: with.lr 0.001 -> 0.002\n\n\
         what follows:\n  dpo <- sft\n  size <- dpo: equal again"
    );

    // the same computation again differs in nothing, also where its stages are reused
    project.recipe("run recipe.toml -S lr=2e-3").code(0);
    let same = project.recipe(&format!("compare {b} last")).code(0);
    assert!(
        same.out.contains("what differs (a -> b):\n  nothing"),
        "{}",
        same.out
    );
    // the rows are those that the first run read, whatever the file holds by now
    project.write("chat.jsonl", "");
    let again = project.recipe(&format!("compare {a} last")).code(0);
    assert!(
        again.out.contains("source.chat: row 7 changed"),
        "{}",
        again.out
    );
}
