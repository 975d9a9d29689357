//! What continuous integration reads of a run: JUnit XML, a Markdown summary, what it costs.

use crate::project::Project;
use crate::verbs;
use regex::Regex;

/// One stage that passes, one that fails, one that needs it.
const FAILS: &str = r#"
[recipe]
name = "letters"
schema = 1
[stage.good]
kind = "command"
cmd = ["sh", "-c", "echo > $OUT_x"]
out = ["x"]
[stage.bad]
kind = "command"
in.x = "good.x"
cmd = ["sh", "-c", "exit 9"]
out = ["x"]
[stage.after]
kind = "command"
in.x = "bad.x"
cmd = ["true"]
out = ["y"]
"#;

/// Every attribute of the elements of a name, in order.
fn elements(xml: &str, name: &str) -> Vec<String> {
    let element = Regex::new(&format!("<{name}( [^>]*)?>")).unwrap();
    let found = element.captures_iter(xml);
    found
        .map(|c| c.get(1).map_or("", |m| m.as_str()).trim().to_owned())
        .collect()
}

#[test]
fn a_run_is_a_list_of_tests_and_a_page() {
    let project = verbs::project();
    project
        .recipe("run recipe.toml --junit junit.xml --summary page.md")
        .code(0);
    let xml = project.read("junit.xml");
    assert!(elements(&xml, "testsuites")[0].contains("tests=\"2\" failures=\"0\" errors=\"0\""));
    let suites = elements(&xml, "testsuite");
    assert_eq!(suites.len(), 2);
    assert!(suites[0].starts_with("name=\"upper\" tests=\"1\""), "{xml}");
    let cases = elements(&xml, "testcase");
    assert!(
        cases[1].starts_with("name=\"result\" classname=\"letters.greet\""),
        "{xml}"
    );
    assert!(xml.contains("<property name=\"output.out\" value=\""));

    // the same from the record, byte for byte
    project
        .recipe("show last --junit again.xml --summary again.md")
        .code(0);
    assert_eq!(project.read("again.xml"), xml);
    assert_eq!(project.read("again.md"), project.read("page.md"));
    // a page is appended to, as GitHub's is; the list is replaced
    project
        .recipe("run recipe.toml --junit junit.xml --summary page.md")
        .code(0);
    let page = project.read("page.md");
    assert_eq!(page.matches("### letters passed").count(), 2, "{page}");
    assert!(page.contains("| greet | command | reused | - |"), "{page}");
    assert!(project.read("junit.xml").contains("<system-out>reused"));
}

#[test]
fn failures_are_errors_and_what_needs_them_is_skipped() {
    let project = Project::new(FAILS);
    project
        .recipe("run recipe.toml --junit junit.xml --summary page.md")
        .code(1);
    let xml = project.read("junit.xml");
    assert!(elements(&xml, "testsuites")[0].contains("tests=\"3\" failures=\"0\" errors=\"1\""));
    let error = &elements(&xml, "error")[0];
    assert!(
        error.contains("type=\"failed\"") && error.contains("exit code 9"),
        "{error}"
    );
    assert_eq!(elements(&xml, "skipped").len(), 1, "{xml}");
    let page = project.read("page.md");
    assert!(
        page.contains("### letters failed (exit 1)")
            && page.contains("| bad | command | **failed**"),
        "{page}"
    );
}

#[test]
fn a_run_that_never_came_to_its_end_is_no_success() {
    // the recipe is refused, and the report of an earlier run is gone
    let project = Project::new(&format!("{FAILS}\nnonsense = 1 # <&>\n"));
    project.write("junit.xml", "the report of a green run");
    project.recipe("run recipe.toml --junit junit.xml").code(2);
    let xml = project.read("junit.xml");
    assert!(
        elements(&xml, "testsuites")[0].contains("errors=\"1\""),
        "{xml}"
    );
    let error = &elements(&xml, "error")[0];
    assert!(
        error.contains("type=\"exit 2\"") && error.contains("nonsense"),
        "{error}"
    );
    assert!(xml.contains("# &lt;&amp;&gt;"), "{xml}");
    // killed: the record says so, and so does the file that was written before anything ran
    let project = Project::new(
        "[recipe]\nname = \"killed\"\nschema = 1\n[stage.long]\nkind = \"command\"\ncmd = [\"sh\", \"-c\", \"sleep 60\"]\nout = [\"x\"]\n",
    );
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_recipe"))
        .args(["run", "recipe.toml", "--junit", "junit.xml"])
        .current_dir(project.path("."))
        .env("RECIPE_FAULT", "launched:1")
        .output()
        .unwrap();
    assert!(!ran.status.success());
    for file in ["junit.xml", "record.xml"] {
        if file == "record.xml" {
            project.recipe("show last --junit record.xml").code(0);
        }
        let xml = project.read(file);
        assert!(
            elements(&xml, "testsuites")[0].contains("errors=\"1\""),
            "{xml}"
        );
    }
    // a place that cannot be written is refused before anything runs
    let project = Project::new(FAILS);
    project
        .recipe("run recipe.toml --junit no/such.xml")
        .code(2);
    assert!(project.recipe("runs").code(2).err.contains("no store"));
}

#[test]
fn costs_are_recorded_and_limits_stop_before_the_start() {
    let recipe = |word: &str| {
        format!(
            "[recipe]\nname = \"costs\"\nschema = 1\n[stage.busy]\nkind = \"command\"\ncmd = [\"sh\", \"-c\", \"i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo {word} > $OUT_x\"]\nout = [\"x\"]\n"
        )
    };
    let project = Project::new(&recipe("one"));
    // nothing is known yet
    let ran = project.recipe("run recipe.toml --max-cost 9d").code(2);
    assert!(
        ran.err.contains("what stage 'busy' costs is not known"),
        "{}",
        ran.err
    );
    assert!(
        project.recipe("runs --json").out.is_empty(),
        "nothing was started"
    );
    let ran = project
        .recipe("run recipe.toml --max-cost 9d --yes --json")
        .code(0);
    let outcome = ran.json();
    let spent = &outcome["spent"];
    let cpu = spent["cpu_seconds"].as_f64().unwrap();
    assert!(cpu > 0.0 && spent["gpu_seconds"] == 0.0, "{outcome}");
    assert_eq!(
        &outcome["stages"][0]["cost"]["cpu_seconds"],
        &spent["cpu_seconds"]
    );
    // energy is measured, or it is said why not
    let how = outcome["energy"]["cpu"].as_str().unwrap();
    assert_eq!(
        spent["cpu_joules"].is_null(),
        how.starts_with("not measured: "),
        "{how}"
    );
    // a reused stage costs nothing in this run, and still says what it took
    let again = project
        .recipe("run recipe.toml --max-cost 0s --json")
        .code(0)
        .json();
    assert_eq!(again["spent"]["cpu_seconds"], 0.0);
    assert_eq!(again["stages"][0]["cost"], outcome["stages"][0]["cost"]);
    assert!(
        project
            .recipe("show last")
            .code(0)
            .out
            .contains("Spent nothing")
    );

    // another one is priced at what the first took
    project.write("recipe.toml", &recipe("two"));
    let plan = project.recipe("plan recipe.toml --json").code(0).json();
    assert_eq!(plan["expected_cost"]["cpu_seconds"], spent["cpu_seconds"]);
    assert_eq!(
        plan["stages"][0]["expected_cost"],
        outcome["stages"][0]["cost"]
    );
    let ran = project.recipe("run recipe.toml --max-cost 0cpuh").code(2);
    assert!(
        ran.err.starts_with("error[R0409]") && ran.err.contains("as last time"),
        "{}",
        ran.err
    );
    let dear = format!(
        "run recipe.toml --max-cost 1USD --rate {}USD/cpus",
        2.0 / cpu
    );
    project.recipe(&dear).code(2);
    let cheap = format!(
        "run recipe.toml --max-cost 1USD --rate {}USD/cpus",
        0.5 / cpu
    );
    project.recipe(&cheap).code(0);
    // and one that has never run at no more than its timeout
    let timeout = "timeout = \"30m\"\nretry = { max = 1 }\n";
    project.write(
        "recipe.toml",
        &recipe("three")
            .replace("busy", "other")
            .replace("out = ", &format!("{timeout}out = ")),
    );
    project.recipe("run recipe.toml --max-cost 59min").code(2);
    project.recipe("run recipe.toml --max-cost 60min").code(0);
    // a flag that would do nothing is refused
    project.recipe("run recipe.toml --yes").code(2);
}

/// Every field at the top of what `--json` prints, and of each stage, stands in its row of the table.
#[test]
fn what_json_prints_is_documented() {
    let doc = include_str!("../../src/verbs/json.md");
    let project = verbs::project();
    for (verb, args) in [
        ("plan", "plan recipe.toml --json"),
        ("run", "run recipe.toml --json"),
        ("show", "show last --json"),
        ("runs", "runs --json"),
        ("check", "check recipe.toml --json"),
        ("compare", "compare last last --json"),
        ("doctor", "doctor --json"),
        ("cache stat", "cache stat --json"),
        ("cache verify", "cache verify --json"),
        ("graph --format json", "graph recipe.toml --format json"),
    ] {
        let row = |verb: &str| {
            let row = doc
                .lines()
                .find(|l| l.starts_with(&format!("| `{verb}` |")));
            row.unwrap_or_else(|| panic!("no row of {verb}")).to_owned()
        };
        // records are what `run` prints, and more
        let told = match verb {
            "show" | "runs" => row("show") + &row("run"),
            other => row(other),
        };
        let ran = project.recipe(args);
        let printed = ran.json();
        let mut keys: Vec<&String> = printed.as_object().unwrap().keys().collect();
        if verb == "run" || verb == "plan" {
            let stages = printed["stages"].as_array().unwrap().iter();
            keys.extend(stages.flat_map(|s| s.as_object().unwrap().keys()));
        }
        for key in keys.into_iter().filter(|k| *k != "version") {
            assert!(
                told.contains(&format!("`{key}`")),
                "{verb} prints '{key}': {told}"
            );
        }
    }
}
