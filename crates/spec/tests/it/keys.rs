//! What enters a key and what does not.

use crate::{RECIPE, load, load_with, settings};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use spec::{KINDS, Key, Preimage, Recipe, Trainer, canonical, kind};
use std::collections::BTreeMap;

fn trainer() -> Trainer {
    Trainer {
        version: "0.1.0".to_owned(),
        libtorch: "2.11.0".to_owned(),
        sources: "ab".repeat(32),
    }
}

fn preimage(recipe: &Recipe, stage: &str) -> Preimage {
    let stage = &recipe.stages[stage];
    // the content of every input is taken as equal: only the recipe's own words differ here
    let inputs = stage
        .inputs
        .iter()
        .map(|(name, refs)| (name.clone(), vec!["00".repeat(32); refs.len()]))
        .collect();
    Preimage::new(stage.kind, &stage.with, inputs, &trainer(), BTreeMap::new())
}

fn key(text: &str, stage: &str) -> Key {
    preimage(&load(text), stage).key()
}

#[test]
fn words_that_change_no_result_change_no_key() {
    let base = key(RECIPE, "sft");
    let same = [
        RECIPE.replace("[params]", "# a comment\n[params]"),
        RECIPE.replace(
            "steps = 300, lr = \"${params.lr}\"",
            "lr = \"${params.lr}\", steps = 300",
        ),
        RECIPE.replace("data/addition.jsonl", "elsewhere/rows.jsonl"),
        RECIPE.replace("name = \"sft-then-grpo\"", "name = \"other\""),
        RECIPE.replace("source.chat", "source.rows"),
        RECIPE
            .replace("lr = \"${params.lr}\"", "lr = 0.001")
            .replace("\nlr = 1e-3", "")
            .replace("params.lr = 2e-3\n", ""),
        RECIPE.replace(
            "ranks = 2, microbatch_tokens = 4096",
            "ranks = 4, threads = 1, activation_checkpointing = \"full\"",
        ),
        RECIPE.replace("checkpoint = { every = 20, keep = 3 }", ""),
        RECIPE.replace("retry = { max = 2, on = [\"infra\", \"preempt\"] }", ""),
        RECIPE.replace("timeout = \"12h\"", "timeout = \"1h\""),
        RECIPE
            .replace(
                "seed = \"${params.seed}\" }",
                "seed = \"${params.seed}\", beta = 1 }",
            )
            .replace(", beta = 1", ""),
        RECIPE.replace("min = 0.8", "min = 0.9"),
        RECIPE.replace("steps = 300,", "steps = 300, batch_size = 16,"),
    ];
    for text in same {
        assert_eq!(key(&text, "sft"), base, "{text}");
    }
    assert_eq!(
        key(
            &RECIPE
                .replace("stage.sft]", "stage.first]")
                .replace("sft.model", "first.model")
                .replace("stage.sft.with", "stage.first.with"),
            "first"
        ),
        base
    );
}

#[test]
fn every_identity_field_of_every_kind_changes_the_key() {
    for kind in KINDS {
        let Value::Object(defaults) = kind.defaults() else {
            panic!("{}: a configuration is a table", kind.name)
        };
        let make = |with: Map<String, Value>| {
            Preimage::new(
                kind,
                &Value::Object(with),
                BTreeMap::new(),
                &trainer(),
                BTreeMap::new(),
            )
        };
        let base = make(defaults.clone());
        for (field, value) in &defaults {
            let mut changed = defaults.clone();
            changed.insert(field.clone(), other(value));
            let changed = make(changed);
            assert_ne!(changed.key(), base.key(), "{}.{field}", kind.name);
            let fields: Vec<_> = changed.diff(&base).into_iter().map(|d| d.field).collect();
            assert!(
                fields
                    .iter()
                    .all(|f| f.starts_with(&format!("with.{field}"))),
                "{fields:?}"
            );
        }
        if kind.name != "convert"
            && kind.name != "export"
            && kind.name != "score"
            && kind.name != "command"
        {
            assert!(
                defaults.contains_key("seed"),
                "{}: seeds are always part of the identity",
                kind.name
            );
        }
    }
}

fn other(value: &Value) -> Value {
    match value {
        Value::Bool(b) => json!(!b),
        Value::Number(n) if n.is_u64() => json!(n.as_u64().unwrap() + 1),
        Value::Number(n) => json!(n.as_f64().unwrap() + 0.5),
        Value::String(s) => json!(format!("{s}x")),
        Value::Array(a) => json!([a.clone(), ["more"]]),
        Value::Object(_) | Value::Null => json!("other"),
    }
}

#[test]
fn the_rest_of_the_preimage_changes_the_key() {
    let base = preimage(&load(RECIPE), "sft");
    let change = |f: &dyn Fn(&mut Preimage)| {
        let mut changed = base.clone();
        f(&mut changed);
        assert_ne!(changed.key(), base.key());
        changed
            .diff(&base)
            .into_iter()
            .map(|d| d.field)
            .collect::<Vec<_>>()
    };
    assert_eq!(change(&|p| p.kind = "sft@2".to_owned()), ["kind"]);
    assert_eq!(change(&|p| p.schema = 2), ["schema"]);
    assert_eq!(
        change(&|p| p.inputs.get_mut("data").unwrap()[0] = "11".repeat(32)),
        ["inputs.data[0]"]
    );
    assert_eq!(
        change(&|p| p.inputs.get_mut("data").unwrap().push("11".repeat(32))),
        ["inputs.data[1]"]
    );
    assert_eq!(
        change(&|p| p.trainer.as_mut().unwrap().libtorch = "2.12.0".to_owned()),
        ["trainer.libtorch"]
    );
    assert_eq!(
        change(&|p| p.trainer.as_mut().unwrap().sources = String::new()),
        ["trainer.sources"]
    );
    assert_eq!(
        change(&|p| drop(p.environment.insert("A".to_owned(), "b".to_owned()))),
        ["environment.A"]
    );
}

#[test]
fn what_runs_no_trainer_does_not_depend_on_it() {
    let command = kind("command").unwrap();
    let with = command.defaults();
    let make =
        |t: &Trainer| Preimage::new(command, &with, BTreeMap::new(), t, BTreeMap::new()).key();
    let other = Trainer {
        sources: String::new(),
        ..trainer()
    };
    assert_eq!(make(&trainer()), make(&other));
    // a worker's own version is recorded, not hashed
    let sft = kind("sft").unwrap();
    let make = |t: &Trainer| {
        Preimage::new(sft, &sft.defaults(), BTreeMap::new(), t, BTreeMap::new()).key()
    };
    assert_eq!(
        make(&trainer()),
        make(&Trainer {
            version: "9".to_owned(),
            ..trainer()
        })
    );
}

#[test]
fn a_stored_preimage_hashes_to_its_key() {
    for stage in ["convert", "sft", "grpo", "eval"] {
        let made = preimage(&load(RECIPE), stage);
        let read = Preimage::parse(&made.text()).unwrap();
        assert_eq!(read, made);
        assert_eq!(read.key(), made.key());
        assert_eq!(read.text(), made.text());
        let value = serde_json::to_value(&made).unwrap();
        assert_eq!(made.text(), canonical::text(&value));
        assert_eq!(
            made.key().as_str(),
            blake3::hash(made.text().as_bytes()).to_hex().as_str()
        );
    }
}

/// The canonical configuration of every kind, as it was when the kind's version was last raised.
/// A difference means that old results lose their keys: give a new field a neutral default that is
/// not serialised, or raise the kind's version. `UPDATE_GOLDEN=1 cargo test -p spec` rewrites it.
#[test]
fn golden_preimages() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden_preimages.txt");
    let mut text = String::new();
    for kind in KINDS {
        let preimage = Preimage::new(
            kind,
            &kind.defaults(),
            BTreeMap::new(),
            &trainer(),
            BTreeMap::new(),
        );
        text.push_str(&format!(
            "{}\n{}\n{}\n\n",
            kind.versioned(),
            preimage.key(),
            preimage.text()
        ));
    }
    for stage in ["sft", "grpo"] {
        let preimage = preimage(&load(RECIPE), stage);
        text.push_str(&format!(
            "recipe stage {stage}\n{}\n{}\n\n",
            preimage.key(),
            preimage.text()
        ));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap());
}

#[test]
fn settings_and_files_make_the_same_key() {
    let set = load_with(RECIPE, &settings(&["lr=1e-4", "seed=3"])).unwrap();
    let written = load(
        &RECIPE
            .replace("lr = 1e-3", "lr = 0.0001")
            .replace("seed = 17", "seed = 3"),
    );
    assert_eq!(preimage(&set, "sft").key(), preimage(&written, "sft").key());
    assert_ne!(preimage(&set, "sft").key(), key(RECIPE, "sft"));
}

/// JSON values of every shape, floats included.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>()
            .prop_filter("finite", |f| f.is_finite())
            .prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// The same value with the entries of every table in reverse order.
fn reversed(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .rev()
                .map(|(k, v)| (k.clone(), reversed(v)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(reversed).collect()),
        leaf => leaf.clone(),
    }
}

proptest! {
    #[test]
    fn canonical_text_is_one_per_value(value in values()) {
        let text = canonical::text(&value);
        prop_assert_eq!(&canonical::text(&reversed(&value)), &text);
        let read: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(canonical::text(&read), text);
    }

    /// A preimage is written field by field, as its canonical JSON would be.
    #[test]
    fn a_preimage_is_its_canonical_json(
        with in values(),
        inputs in prop::collection::btree_map(".{0,6}", prop::collection::vec(".{0,6}", 0..3), 0..3),
        environment in prop::collection::btree_map(".{0,6}", ".{0,6}", 0..3),
        sources in ".{0,3}",
        trainer in any::<bool>(),
    ) {
        let trainer = trainer.then(|| spec::key::HashedTrainer { libtorch: "2".to_owned(), sources });
        let text = |s: &str| s.to_owned();
        let made = Preimage { domain: text("d"), schema: 1, kind: text("k@1"), with, inputs, trainer, environment };
        let value = serde_json::to_value(&made).unwrap();
        prop_assert_eq!(made.text(), canonical::text(&value));
        prop_assert_eq!(Preimage::parse(&made.text()).unwrap(), made);
    }

    #[test]
    fn numbers_survive(lr in 1e-12f64..10.0, seed in 0u64..(i64::MAX as u64), steps in 1u64..100_000) {
        let text = RECIPE.replace("lr = 1e-3", &format!("lr = {lr:?}")).replace("seed = 17", &format!("seed = {seed}"));
        let recipe = load_with(&text, &settings(&[&format!("stage.sft.with.steps={steps}")])).unwrap();
        let with = &recipe.stages["sft"].with;
        prop_assert_eq!(with["lr"].as_f64(), Some(lr));
        prop_assert_eq!(with["seed"].as_u64(), Some(seed));
        prop_assert_eq!(with["steps"].as_u64(), Some(steps));
        let read: spec::kinds::sft::Sft = spec::kinds::from_value(with).unwrap();
        prop_assert_eq!(read.lr.to_bits(), lr.to_bits());
    }

    #[test]
    fn stage_order_and_names_do_not_matter(name in "[a-z][a-z0-9_-]{0,12}") {
        prop_assume!(!["source", "sft", "grpo", "eval", "convert"].contains(&name.as_str()));
        let renamed = RECIPE.replace("stage.sft", &format!("stage.{name}")).replace("sft.model", &format!("{name}.model"));
        prop_assert_eq!(key(&renamed, &name), key(RECIPE, "sft"));
    }
}

#[test]
fn minus_zero_is_zero() {
    assert_eq!(canonical::text(&json!(-0.0)), "0.0");
    assert_eq!(
        canonical::text(&json!([1.0, 1, 1e21, 1e-7])),
        "[1.0,1,1e+21,1e-7]"
    );
}

/// What may be said differently without meaning something else. Each changes nothing, some, or many places of [`RECIPE`].
fn same_meaning(text: &str, how: usize, word: &str, number: u64) -> String {
    match how {
        0 => text.replace('\n', &format!("   # {word}\n")),
        1 => format!("# {word}\n{text}\n# {word}\n"),
        2 => text.replace("data/addition.jsonl", &format!("{word}/{number}.jsonl")),
        3 => text.replace("name = \"sft-then-grpo\"", &format!("name = \"{word}\"")),
        4 => text.replace(
            "timeout = \"12h\"",
            &format!("timeout = \"{}m\"", number + 1),
        ),
        5 => text.replace(
            "retry = { max = 2,",
            &format!("retry = {{ max = {},", number % 9),
        ),
        6 => text.replace(
            "every = 20, keep = 3",
            &format!("keep = {}, every = {}", number % 7 + 1, number + 1),
        ),
        7 => text.replace(
            "microbatch_tokens = 4096",
            &format!("microbatch_tokens = {}", number + 64),
        ),
        8 => text.replace("ranks = 2,", &format!("threads = {},", number % 16 + 1)),
        9 => text.replace(
            "steps = 300, lr = \"${params.lr}\"",
            "lr = \"${params.lr}\", steps = 300",
        ),
        10 => text.replace(" = ", "  =  "),
        11 => text.replace("min = 0.8", &format!("min = 0.{number}")),
        12 => text.replace("source.chat", &format!("source.{word}")),
        _ => text.to_owned(),
    }
}

proptest! {
    /// Any of these changes, one upon another, leaves every key as it is.
    #[test]
    fn equal_meaning_is_an_equal_key(
        changes in prop::collection::vec((0usize..13, "z[a-z0-9]{2,9}", 0u64..1000), 0..8),
    ) {
        let mut text = RECIPE.to_owned();
        for (how, word, number) in &changes {
            text = same_meaning(&text, *how, word, *number);
        }
        for stage in ["convert", "sft", "grpo", "eval"] {
            prop_assert_eq!(key(&text, stage), key(RECIPE, stage), "{}: {}", stage, text);
        }
    }

    /// A change of any value that is part of a stage's identity changes its key, and no other stage's.
    #[test]
    fn another_setting_is_another_key(steps in 1u64..100_000, lr in 1e-9f64..1.0, seed in 0u64..1_000_000) {
        for (setting, changed) in [
            (format!("stage.sft.with.steps={steps}"), steps != 300),
            (format!("stage.sft.with.lr={lr:?}"), lr != 1e-3),
            (format!("stage.sft.with.seed={seed}"), seed != 17),
        ] {
            let set = load_with(RECIPE, &settings(&[&setting])).unwrap();
            prop_assert_eq!(preimage(&set, "sft").key() != key(RECIPE, "sft"), changed, "{}", setting);
            prop_assert_eq!(preimage(&set, "grpo").key(), key(RECIPE, "grpo"), "{}", setting);
        }
    }
}
