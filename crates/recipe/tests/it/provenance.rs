//! Where things come from: told when they are taken out, adopted from elsewhere, archived.

use crate::project::{Project, Ran};
use serde_json::Value;
use std::collections::BTreeSet;

/// A recipe that counts the lines of a source.
fn counting(name: &str, stage: &str, source: &str) -> String {
    format!(
        "[recipe]\nname = \"{name}\"\nschema = 1\n[source.rows]\n{source}\n[stage.{stage}]\nkind = \"command\"\nin.rows = \"source.rows\"\ncmd = [\"sh\", \"-c\", \"wc -l < $IN_rows > $OUT_n\"]\nout = [\"n\"]\n"
    )
}

fn story(project: &Project, dir: &str) -> Value {
    serde_json::from_str(&project.read(&format!("{dir}/provenance.json"))).unwrap()
}

#[test]
fn recipes_that_share_bits_each_tell_their_own_story() {
    let project = Project::new(&counting("first", "count", "path = \"rows.txt\""));
    project.write("rows.txt", "a\nb\n");
    project.write(
        "other.toml",
        &counting("second", "lines", "path = \"copy.txt\""),
    );
    project.write("copy.txt", "a\nb\n");
    project.recipe("run recipe.toml").code(0);
    let reused = project.recipe("run other.toml --json").code(0).json();
    assert_eq!(reused["stages"][0]["status"], "reused");

    project.recipe("get recipe.toml count.n --to one").code(0);
    project.recipe("get other.toml lines.n --to two").code(0);
    assert_eq!(project.read("one/data"), project.read("two/data"));
    let (one, two) = (story(&project, "one"), story(&project, "two"));
    for (story, recipe, stage, from) in [
        (&one, "first", "count", "rows.txt"),
        (&two, "second", "lines", "copy.txt"),
    ] {
        assert_eq!(story["recipe"], recipe);
        assert!(story["lineage"][stage]["key"].is_string(), "{story}");
        assert_eq!(story["sources"]["rows"]["from"], from);
        // who computed it is told as well
        assert_eq!(story["provenance"]["recipe"], "first");
    }
    assert_eq!(one["key"], two["key"]);
}

fn adopt(project: &Project, more: &str) -> Ran {
    project.recipe(&format!(
        "adopt rows.txt --by someone --from https://example.org/rows --why testing {more}"
    ))
}

#[test]
fn what_was_made_elsewhere_enters_by_digest_with_a_statement() {
    let project = Project::new("");
    project.write("rows.txt", "a\nb\nc\n");
    // what its maker published is held against it first
    let wrong = "0".repeat(64);
    let ran = adopt(&project, &format!("--sha256 {wrong}")).code(5);
    assert!(ran.err.contains("nothing was adopted"), "{}", ran.err);
    assert!(!project.path(".recipe").exists());
    adopt(&project, "--sha256 abcdef").code(2);
    let right = "880553fca8fcea94e325ee2cfb48e5a985cc797f39a14cc6d3cedecfeb2ae4d2";
    let ran = adopt(&project, &format!("--as rows --sha256 {right}")).code(0);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines[2], "[source.rows]", "{}", ran.out);
    let source = lines[3];

    // the lines it printed are a source; nothing of the file's place is needed any more
    std::fs::remove_file(project.path("rows.txt")).unwrap();
    project.write("recipe.toml", &counting("adopting", "count", source));
    project.recipe("run recipe.toml --locked").code(0);
    project.recipe("get recipe.toml count.n --to taken").code(0);
    assert_eq!(project.read("taken/data").trim(), "3");
    let told = &story(&project, "taken")["sources"]["rows"]["adopted"];
    assert_eq!(
        (&told["by"], &told["from"], &told["why"]),
        (
            &"someone".into(),
            &"https://example.org/rows".into(),
            &"testing".into()
        )
    );

    // no collection takes it, though nothing makes it again
    project.recipe("cache gc --older-than 0s").code(0);
    project.recipe("run recipe.toml --force").code(0);
    project.recipe("cache verify --paranoid").code(0);

    // a later statement about the same bits counts; a file of the same content is the same source
    project.write("rows.txt", "a\nb\nc\n");
    project
        .recipe("adopt rows.txt --by another --from elsewhere --why again")
        .code(0);
    project.write(
        "recipe.toml",
        &counting("path", "count", "path = \"rows.txt\""),
    );
    let run = project.recipe("run recipe.toml --json").code(0).json();
    assert_eq!(run["stages"][0]["status"], "reused");
    project.recipe("get recipe.toml count.n --to again").code(0);
    assert_eq!(
        story(&project, "again")["sources"]["rows"]["adopted"]["by"],
        "another"
    );

    // what nobody adopted is refused, with the fix
    let unknown = format!("adopted = \"{}\"", "ab".repeat(32));
    project.write("recipe.toml", &counting("unknown", "count", &unknown));
    let ran = project.recipe("run recipe.toml").code(2);
    assert!(
        ran.err.contains("is not in the store") && ran.err.contains("recipe adopt"),
        "{}",
        ran.err
    );
    // and so is a statement that says nothing
    let ran = project
        .recipe("adopt rows.txt --by me --from there")
        .code(2);
    assert!(ran.err.contains("--why"), "{}", ran.err);
}

/// Every `{"@id": ..}` of a value.
fn references(value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let (1, Some(id)) = (map.len(), map.get("@id")) {
                all.insert(id.as_str().unwrap().to_owned());
            }
            map.values().for_each(|v| references(v, all));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, all)),
        _ => {}
    }
}

#[test]
fn a_run_is_archived_as_a_crate_whose_parts_are_there() {
    let project = Project::new(&counting("crate", "count", "path = \"rows.txt\""));
    project.write("rows.txt", "a\n");
    project.recipe("run recipe.toml").code(0);
    project
        .recipe("archive last --to box --with count.n --license CC0")
        .code(0);
    let text = project.read("box/ro-crate-metadata.json");
    let crated: Value = serde_json::from_str(&text).unwrap();
    let graph = crated["@graph"].as_array().unwrap();
    let entity = |id: &str| graph.iter().find(|e| e["@id"] == id);
    let mut wanted = BTreeSet::new();
    references(&crated["@graph"], &mut wanted);
    for id in wanted.iter().filter(|id| !id.starts_with("http")) {
        assert!(entity(id).is_some(), "{id} is not described in {text}");
    }
    // what it says lies there does
    let root = entity("./").unwrap();
    let parts = root["hasPart"].as_array().unwrap();
    assert!(parts.len() >= 5, "{root}");
    for part in parts {
        let path = project.path("box").join(part["@id"].as_str().unwrap());
        assert!(path.exists(), "{}", path.display());
    }
    assert_eq!(root["license"], "CC0");
    assert_eq!(
        project.read("box/recipe/recipe.toml"),
        project.read("recipe.toml")
    );
    assert_eq!(project.read("box/artifacts/count.n/data").trim(), "1");
    // the run's action has the recipe as its instrument, and sources and artifacts around it
    let main = &root["mainEntity"]["@id"];
    let of_main = |e: &&Value| e["@type"] == "CreateAction" && e["instrument"]["@id"] == *main;
    let run = graph.iter().find(of_main).unwrap();
    assert_eq!(run["object"][0]["@id"], "#source-rows");
    assert_eq!(run["result"][0]["@id"], "artifacts/count.n/");
    assert!(entity("#stage-count").is_some());

    // never over something else
    let ran = project.recipe("archive last --to box").code(2);
    assert!(ran.err.contains("nothing was changed"), "{}", ran.err);
    project
        .recipe("archive last --to new --with count.m")
        .code(2);
    assert!(!project.path("new").exists());
}
