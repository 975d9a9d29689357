//! Which layer set a value.

use crate::{settings, write};
use serde_json::json;
use spec::Layers;
use spec::explain::{Explained, explain};

const BASE: &str = "[params]\nseed = 1\nlr = 0.5\n[stage.base]\nkind = \"init\"\nwith = { family = \"qwen3\", hidden_size = 8, layers = 1, heads = 2, seed = \"${params.seed}\", init_std = \"${params.lr}\" }\n";
const TOP: &str = "[recipe]\nname = \"a\"\nschema = 1\ninclude = [\"common.toml\"]\n[params]\nseed = 2\n[stage.base.with]\nlayers = 3\n[stage.more]\nkind = \"command\"\ncmd = [\"echo\", \"n${matrix.n}\"]\nout = [\"x\"]\nmatrix.n = [4, 5]\n[profile.ci]\nparams.seed = 3\n";

fn ask(layers: &Layers, key: &str) -> Result<Explained, String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "common.toml", BASE);
    write(dir.path(), "a.toml", TOP);
    explain(&dir.path().join("a.toml"), layers, key).map_err(|e| e.to_string())
}

/// Layer, line and text of each, the file by its name.
fn told(explained: &Explained) -> Vec<(String, usize, String)> {
    let name = |file: &str| file.rsplit('/').next().unwrap_or(file).to_owned();
    let sets = explained.set.iter();
    sets.map(|s| {
        (
            s.profile.clone().unwrap_or_else(|| name(&s.file)),
            s.line,
            s.text.clone(),
        )
    })
    .collect()
}

fn row(by: &str, line: usize, text: &str) -> (String, usize, String) {
    (by.to_owned(), line, text.to_owned())
}

#[test]
fn every_layer_is_named_in_its_order() {
    let all = Layers {
        profile: Some("ci".to_owned()),
        ..settings(&["seed=9"])
    };
    let seed = ask(&all, "seed").unwrap();
    assert_eq!((seed.key.as_str(), &seed.value), ("params.seed", &json!(9)));
    let rows = [
        row("common.toml", 2, "1"),
        row("a.toml", 6, "2"),
        row("ci", 15, "3"),
        row("seed=9", 1, "9"),
    ];
    assert_eq!(told(&seed), rows);

    let used = ask(&all, "stage.base.with.seed").unwrap();
    assert_eq!(used.value, json!(9));
    assert_eq!(told(&used), [row("common.toml", 6, "\"${params.seed}\"")]);
    let [param] = &used.uses[..] else {
        panic!("{used:?}");
    };
    assert_eq!((&param.key, told(param)), (&seed.key, told(&seed)));

    let layers = ask(&Layers::default(), "stage.base.with.layers").unwrap();
    assert_eq!((told(&layers).len(), &layers.value), (2, &json!(3)));
    let default = ask(&Layers::default(), "stage.base.with.init_std").unwrap();
    assert_eq!(default.value, json!(0.5));
    let default = ask(&Layers::default(), "stage.base.resources.ranks").unwrap();
    assert_eq!((&default.value, default.set.len()), (&json!(1), 0));
}

#[test]
fn cells_say_their_axis() {
    let cell = ask(&Layers::default(), "stage.more[n=5].cmd").unwrap();
    assert_eq!(cell.value, json!(["echo", "n5"]));
    assert_eq!(
        (cell.uses[0].key.as_str(), &cell.uses[0].value),
        ("stage.more.matrix.n", &json!(5))
    );
}

#[test]
fn an_unknown_key_is_named() {
    let wrong = ask(&Layers::default(), "stage.base.with.sead").unwrap_err();
    assert!(
        wrong.contains("no key 'stage.base.with.sead'") && wrong.contains("'seed'"),
        "{wrong}"
    );
    let wrong = ask(&Layers::default(), "sed").unwrap_err();
    assert!(wrong.contains("did you mean 'seed'"), "{wrong}");
}
