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
    asks_for_nothing(&page);
    project.recipe("report nosuch --html other.html").code(2);
    assert!(!project.path("other.html").exists());
}

fn asks_for_nothing(page: &str) {
    for outside in ["http://", "https://", "src=", "url(", "<script", "@import"] {
        assert!(!page.contains(outside), "{outside} in {page}");
    }
    // what a browser would refuse to load is not there to be loaded
    assert!(
        page.contains("Content-Security-Policy\" content=\"default-src 'none'"),
        "{page}"
    );
}

/// What the browser is asked in `ci/look.py`, as far as it can be seen without one.
#[test]
fn a_report_has_every_part_and_runs_are_overlaid() {
    let project =
        crate::worker::project("[[stage.sft.assert]]\nmetric = \"accuracy\"\nmin = 0.2\n");
    project.recipe("run recipe.toml").code(0);
    project.recipe("run recipe.toml -S lr=2e-3").code(0);
    let out = project.recipe("runs --json").code(0).out;
    let first: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    let first = first["id"].as_str().unwrap().to_owned();
    project
        .recipe(&format!("report last {first} --html report.html"))
        .code(0);
    let page = project.read("report.html");
    asks_for_nothing(&page);
    // the graph, both ways: sft -> dpo -> size
    assert_eq!(page.matches("class=\"box\"").count(), 6, "{page}");
    assert_eq!(page.matches("<path d=\"M").count(), 4, "{page}");
    // when stages ran, and what they took
    // (size is reused: dpo's model came out as before)
    assert_eq!(page.matches("title=\"attempt 1\"").count(), 2, "{page}");
    assert!(
        page.contains("<h2>Cost</h2>") && page.contains("computed by this run"),
        "{page}"
    );
    // what was asserted, by how much it holds
    assert!(
        page.contains("<h2>Assertions</h2>") && page.contains("+0.05"),
        "{page}"
    );
    // curves of both runs: loss, reward and throughput of sft, and of dpo the same
    for stage in ["sft", "dpo"] {
        let begin = page
            .find(&format!("<section id=\"stage-{stage}\">"))
            .unwrap();
        let section = &page[begin..begin + page[begin..].find("</section>").unwrap()];
        assert_eq!(section.matches("<figure").count(), 3, "{section}");
        for class in ["line c0", "line c1"] {
            assert_eq!(section.matches(class).count(), 3, "{section}");
        }
        assert!(section.contains("Throughput, time and memory"), "{section}");
        // a summary metric that no curve shows, of both runs
        assert!(section.contains("<td>accuracy</td>"), "{section}");
    }
}
