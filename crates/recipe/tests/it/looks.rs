//! Verbs that look back at runs.

use crate::verbs::project;
use serde_json::{Value, json};

#[test]
fn compare_names_what_differs_and_what_follows() {
    let project = project();
    project.recipe("run recipe.toml").code(0);
    project.recipe("run recipe.toml").code(0);
    let runs = project.recipe("runs --json").code(0);
    let ids = |out: &str| -> Vec<String> {
        let id = |l: &str| {
            serde_json::from_str::<Value>(l).unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        out.lines().map(id).collect()
    };
    let first = ids(&runs.out).remove(0);
    let same = project.recipe(&format!("compare {first} last")).code(0);
    assert!(
        same.out.contains("what differs (a -> b):\n  nothing"),
        "{}",
        same.out
    );

    project.write("text.txt", "moon\n");
    project.recipe("run recipe.toml -S word=bye").code(0);
    let compared = project
        .recipe(&format!("compare {first} last --json"))
        .code(0)
        .json();
    let stages = compared["stages"].as_array().unwrap();
    let fields = |i: usize| -> Vec<&str> {
        let differs = stages[i]["differs"].as_array().unwrap();
        differs
            .iter()
            .map(|d| d["field"].as_str().unwrap())
            .collect()
    };
    assert_eq!(
        (&stages[0]["stage"], &stages[0]["relation"]),
        (&json!("upper"), &json!("differs"))
    );
    assert_eq!(fields(0), ["inputs.text[0]"]);
    assert_eq!(stages[0]["follows"], json!([]));
    assert_eq!(fields(1), ["with.cmd[2]"]);
    assert_eq!(stages[1]["follows"], json!(["upper"]));
    let text = project.recipe(&format!("compare {first} last")).code(0);
    assert!(
        text.out.contains("what follows:\n  greet <- upper"),
        "{}",
        text.out
    );
    project.recipe("compare nosuch last").code(2);
}

#[test]
fn a_report_is_one_page_without_requests() {
    let project = project();
    project.write("text.txt", "<b>world</b>\n");
    project.recipe("run recipe.toml").code(0);
    project.recipe("run recipe.toml -S word=bye").code(0);
    project.recipe("report last --html report.html").code(0);
    let page = project.read("report.html");
    assert!(
        page.contains("letters</h1>") && page.contains(">greet</text>"),
        "{page}"
    );
    assert!(
        page.contains("<path d="),
        "an edge from upper to greet: {page}"
    );
    for outside in ["http://", "https://", "src=", "url(", "<script", "@import"] {
        assert!(!page.contains(outside), "{outside} in {page}");
    }
    project.recipe("report nosuch --html other.html").code(2);
    assert!(!project.path("other.html").exists());
}
