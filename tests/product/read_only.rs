//! A store that cannot be written: what only reads works, what would write gives one clear error.

use std::process::Command;

use product_tests::{Project, bin};

const RECIPE: &str = r#"[recipe]
name = "still"
schema = 1
[stage.a]
kind = "command"
cmd = ["sh", "-c", "echo a > $OUT_out"]
out = ["out"]
"#;

/// Mounts the store read-only in a mount namespace of the test's own, then runs the verb.
const SCRIPT: &str = r#"
set -u
mount --bind .recipe .recipe && mount -o remount,ro,bind .recipe || exit 99
exec "$RECIPE" "$@"
"#;

#[test]
fn a_read_only_store_is_read() {
    let project = Project::new(RECIPE);
    project.recipe(&["run", "recipe.toml"]).expect(0);
    for (verb, code) in [
        ("plan recipe.toml", 0),
        ("why recipe.toml a", 0),
        ("cache verify --paranoid", 0),
        ("runs", 0),
        ("get recipe.toml a.out --to got", 0),
        ("run recipe.toml", 4),
        ("run recipe.toml --force", 4),
    ] {
        let out = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                SCRIPT,
                "sh",
            ])
            .args(verb.split(' '))
            .current_dir(project.path(""))
            .env("RECIPE", bin("recipe"))
            .env("NO_COLOR", "1")
            .output()
            .expect("unshare (util-linux) starts");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{verb}: {said}");
        let errors = usize::from(code != 0);
        assert_eq!(said.matches("error[").count(), errors, "{verb}: {said}");
        assert!(
            code == 0 || said.contains("must be writable"),
            "{verb}: {said}"
        );
    }
    assert_eq!(project.read("got/data"), "a\n");
    assert!(
        project
            .recipe(&["run", "recipe.toml"])
            .expect(0)
            .stdout
            .contains("1 of 1 stages reused")
    );
}
