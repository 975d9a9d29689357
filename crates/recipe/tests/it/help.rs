//! What a person is offered while typing: completions in a real shell, manual pages.

use crate::verbs;
use std::path::Path;
use std::process::Command;

/// What bash offers for the last of these words, by the script that `recipe completions bash` prints.
fn offered(dir: &Path, words: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = words.iter().map(|w| format!("'{w}'")).collect();
    let script = format!(
        "source <(recipe completions bash); COMP_WORDS=({}); COMP_CWORD={}; \
         $(complete -p recipe | sed 's/.*-F \\([^ ]*\\).*/\\1/') recipe '{}' ''; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" "),
        words.len() - 1,
        words[words.len() - 1],
    );
    let bin = Path::new(env!("CARGO_BIN_EXE_recipe")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let out = Command::new("bash")
        .args(["--norc", "-c", &script])
        .current_dir(dir)
        .env("PATH", path)
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let lines = text.lines().filter(|l| !l.is_empty());
    lines.map(|l| l.trim().to_owned()).collect()
}

#[test]
fn shells_offer_stages_outputs_and_runs() {
    let project = verbs::project();
    project.recipe("run recipe.toml").code(0);
    let dir = project.path(".");
    let offered = |words: &[&str]| offered(&dir, words);
    assert_eq!(offered(&["recipe", "sche"]), ["schema"]);
    assert_eq!(offered(&["recipe", "run", "recipe.toml", "up"]), ["upper"]);
    assert_eq!(
        offered(&["recipe", "plan", "recipe.toml", "--until", ""]),
        ["upper", "greet"]
    );
    assert_eq!(
        offered(&["recipe", "get", "recipe.toml", "gr"]),
        ["greet.out"]
    );
    assert_eq!(offered(&["recipe", "show", "la"]), ["last"]);
    let runs = project.recipe("runs --json").code(0).json();
    let id = runs["id"].as_str().unwrap();
    assert_eq!(offered(&["recipe", "show", &id[..6]]), [id]);
    assert_eq!(offered(&["recipe", "logs", "last", "u"]), ["upper"]);
    // a recipe with a mistake in it offers nothing, and says nothing into the prompt
    project.write("recipe.toml", "[recipe\n");
    assert!(offered(&["recipe", "run", "recipe.toml", "up"]).is_empty());
}

#[test]
fn every_verb_has_a_manual_page() {
    let project = verbs::project();
    let main = project.recipe("man").code(0).out;
    assert!(
        main.contains(".TH") && main.contains("Exit codes"),
        "{main}"
    );
    let page = project.recipe("man run").code(0).out;
    assert!(page.contains("max\\-cost"), "{page}");
    project.recipe("man --to pages").code(0);
    let help = project.recipe("--help").code(0).out;
    let verbs = help
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("Options:")
        .next();
    let mut count = 0;
    for verb in verbs
        .unwrap()
        .lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
    {
        let verb = verb.split_whitespace().next().unwrap();
        if verb != "help" {
            let page = project.read(&format!("pages/recipe-{verb}.1"));
            assert!(page.contains(".SH SYNOPSIS"), "{verb}: {page}");
            count += 1;
        }
    }
    assert!(count >= 18, "{count} pages");
    assert!(project.path("pages/recipe-cache-gc.1").exists());
    let ran = project.recipe("man rnu").code(2);
    assert!(ran.err.contains("did you mean 'run'"), "{}", ran.err);
}
