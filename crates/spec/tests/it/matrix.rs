//! Matrix, replicas, `foreach`, and choices among cells.

use crate::{error, load, load_with, settings};
use serde_json::json;
use spec::plan::Part;
use spec::{Plan, Recipe, Reference, Selection, codes};

/// A stage `train` with these keys, and whatever comes after it.
fn recipe(train: &str, after: &str) -> String {
    format!(
        "[recipe]\nname = \"m\"\nschema = 1\n[stage.train]\nkind = \"command\"\nout = [\"model\"]\n{train}\n{after}"
    )
}

const GRID: &str = "cmd = [\"echo\", \"lr=${matrix.lr}\", \"wd=${matrix.wd}\"]\nmatrix = { lr = [1e-3, 2e-3], wd = [0, 0.1] }";

fn eval(keys: &str) -> String {
    format!(
        "[stage.eval]\nkind = \"command\"\ncmd = [\"echo\", \"lr=${{matrix.lr}}\"]\nout = [\"report\"]\n{keys}\n"
    )
}

fn names(recipe: &Recipe) -> Vec<&str> {
    recipe.stages.keys().map(String::as_str).collect()
}

#[test]
fn axes_make_cells_with_typed_values() {
    let recipe = load(&recipe(GRID, ""));
    assert_eq!(
        names(&recipe),
        [
            "train[lr=0.001,wd=0]",
            "train[lr=0.001,wd=0.1]",
            "train[lr=0.002,wd=0]",
            "train[lr=0.002,wd=0.1]"
        ]
    );
    let text = "[recipe]\nname = \"m\"\nschema = 1\n[params]\nfast = 5e-5\n[source.x]\npath = \"x\"\n\
        [stage.base]\nkind = \"init\"\nwith = { family = \"qwen3\", hidden_size = 8, layers = 1, heads = 2 }\n\
        [stage.sft]\nkind = \"sft\"\nin = { model = \"base.model\", data = \"source.x\" }\n\
        with = { steps = \"${matrix.steps}\", lr = \"${matrix.lr}\", betas = \"${matrix.betas}\" }\n\
        [stage.sft.matrix]\nlr = [\"${params.fast}\", 1e-3]\nsteps = [10]\nbetas = [[0.9, 0.95]]\n";
    let recipe = load(text);
    let cell = &recipe.stages["sft[lr=5e-5,steps=10,betas=0.9+0.95]"];
    assert_eq!(
        (&cell.with["lr"], &cell.with["steps"], &cell.with["betas"]),
        (&json!(5e-5), &json!(10), &json!([0.9, 0.95]))
    );
    let set = load_with(text, &settings(&["stage.sft.matrix.lr=[3e-3]"])).unwrap();
    assert!(
        set.stages
            .contains_key("sft[lr=0.003,steps=10,betas=0.9+0.95]")
    );
}

#[test]
fn include_and_exclude() {
    let grid = "cmd = [\"echo\", \"lr=${matrix.lr}\", \"wd=${matrix.wd}\", \"${matrix.note}\"]\n[stage.train.matrix]\nlr = [1, 2]\nwd = [0, 1]\n\
        exclude = [{ lr = 2, wd = 1 }]\n\
        include = [{ lr = 9, wd = 9 }, { note = \"plain\" }, { lr = 1, note = \"slow\" }]\n";
    let recipe = load(&recipe(grid, ""));
    assert_eq!(
        names(&recipe),
        [
            "train[lr=1,wd=0]",
            "train[lr=1,wd=1]",
            "train[lr=2,wd=0]",
            "train[lr=9,wd=9]"
        ]
    );
    let note = |cell: &str| recipe.stages[cell].with["cmd"][3].clone();
    assert_eq!(note("train[lr=1,wd=0]"), json!("slow"), "later tables win");
    assert_eq!(note("train[lr=9,wd=9]"), json!("plain"));

    let alone = "cmd = [\"echo\", \"a=${matrix.a}\", \"b=${matrix.b}\"]\nmatrix.include = [{ a = 1, b = 2 }, { b = 4, a = 3 }]";
    let recipe = load(&crate::matrix::recipe(alone, ""));
    assert_eq!(names(&recipe), ["train[a=1,b=2]", "train[a=3,b=4]"]);
}

#[test]
fn replicas_set_the_seed() {
    let text = "[recipe]\nname = \"m\"\nschema = 1\n[stage.base]\nkind = \"init\"\n\
        with = { family = \"qwen3\", hidden_size = 8, layers = \"${matrix.layers}\", heads = 2 }\n\
        matrix.layers = [1, 2]\n[stage.base.replicas]\nseeds = [7, 8]\n";
    let recipe = load(text);
    assert_eq!(
        recipe.stages["base[layers=2,seed=8]"].with["seed"],
        json!(8)
    );
    let cells = recipe.cells.of("base");
    let groups: Vec<_> = cells.iter().map(|c| (c.group(), c.replica)).collect();
    assert_eq!(groups[0], ("base[layers=1]".to_owned(), Some(7)));
    assert_eq!(groups[3], ("base[layers=2]".to_owned(), Some(8)));

    let both = text.replace("heads = 2", "heads = 2, seed = 3");
    assert_eq!(error(&both).code, codes::CONFLICT);
    let command = "cmd = [\"echo\", \"seed=${matrix.seed}\"]\nreplicas.seeds = [1, 2]";
    assert_eq!(
        names(&load(&crate::matrix::recipe(command, ""))),
        ["train[seed=1]", "train[seed=2]"]
    );
}

#[test]
fn followers_read_their_own_cells() {
    let after = eval("foreach = \"train\"\nin.model = \"train.model\"")
        + "[stage.judge]\nkind = \"command\"\nforeach = \"eval\"\nmatrix.round = [1, 2]\ncmd = [\"echo\", \"round=${matrix.round}\"]\nout = [\"x\"]\nin = { report = \"eval.report\", model = \"train.model\" }\n\
           [stage.all]\nkind = \"command\"\ncmd = [\"true\"]\nout = [\"x\"]\nin = { reports = [\"eval[*].report\"], some = \"eval[lr=1e-3].report\" }\n";
    let recipe = load(&recipe(GRID, &after));
    let input = |stage: &str, input: &str| -> Vec<String> {
        recipe.stages[stage].inputs[input]
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(
        input("eval[lr=0.002,wd=0.1]", "model"),
        ["train[lr=0.002,wd=0.1].model"]
    );
    let judge = "judge[lr=0.001,wd=0,round=2]";
    assert_eq!(input(judge, "report"), ["eval[lr=0.001,wd=0].report"]);
    assert_eq!(input(judge, "model"), ["train[lr=0.001,wd=0].model"]);
    assert_eq!(input("all", "reports").len(), 4);
    assert_eq!(
        input("all", "some"),
        ["eval[lr=0.001,wd=0].report", "eval[lr=0.001,wd=0.1].report"]
    );

    let plan = Plan::new(recipe, &Selection::default()).unwrap();
    assert_eq!(plan.cells("judge").len(), 8);
    assert_eq!(plan.cells("all").len(), 0);
    let cell = plan.cell(judge).unwrap();
    assert_eq!(
        (cell.of.as_str(), &cell.values["round"]),
        ("judge", &json!(2))
    );
}

#[test]
fn a_choice_takes_the_best_that_has_the_metric() {
    let after = eval("foreach = \"train\"\nin.model = \"train.model\"")
        + "[stage.last]\nkind = \"command\"\ncmd = [\"true\"]\nout = [\"x\"]\nin.model = { of = \"train[lr=1e-3].model\", select = { min = \"eval.loss/mean\" } }\n";
    let recipe = load(&recipe(GRID, &after));
    let last = &recipe.stages["last"];
    assert_eq!(
        last.upstream(),
        [
            "train[lr=0.001,wd=0]",
            "eval[lr=0.001,wd=0]",
            "train[lr=0.001,wd=0.1]",
            "eval[lr=0.001,wd=0.1]"
        ]
    );
    let Reference::Choice(choice) = &last.inputs["model"][0] else {
        panic!("{:?}", last.inputs);
    };
    assert_eq!(choice.metric, "loss/mean");
    let pick = |of: &[(&str, f64)]| {
        let known: std::collections::HashMap<_, _> = of.iter().copied().collect();
        let found = choice.choose(|judge| known.get(judge).copied());
        found.map(|(c, value)| (c.stage.clone(), value))
    };
    let (a, b) = ("eval[lr=0.001,wd=0]", "eval[lr=0.001,wd=0.1]");
    assert_eq!(
        pick(&[(a, 2.0), (b, 1.0)]),
        Some(("train[lr=0.001,wd=0.1]".to_owned(), 1.0))
    );
    assert_eq!(
        pick(&[(a, 1.0), (b, 1.0)]),
        Some(("train[lr=0.001,wd=0]".to_owned(), 1.0))
    );
    assert_eq!(
        pick(&[(a, f64::NAN), (b, 5.0)]),
        Some(("train[lr=0.001,wd=0.1]".to_owned(), 5.0))
    );
    assert_eq!(pick(&[(a, f64::NAN)]), None);
}

#[test]
fn names_of_the_command_line_stand_for_cells() {
    let text = recipe(
        GRID,
        &eval("foreach = \"train\"\nin.model = \"train.model\""),
    );
    let run = |name: &str| -> Result<usize, String> {
        let only = Selection {
            only: vec![name.to_owned()],
            ..Selection::default()
        };
        let plan =
            Plan::new(load(&text), &only).map_err(|e| format!("{} {}", e.message, e.help))?;
        Ok(plan.order.iter().filter(|s| s.part == Part::Run).count())
    };
    assert_eq!(run("train"), Ok(4));
    assert_eq!(run("train[lr=1e-3]"), Ok(2));
    assert_eq!(run("train[wd=0.1,lr=0.002]"), Ok(1));
    assert_eq!(run("eval[*]"), Ok(4));
    let typo = run("tran").unwrap_err();
    assert!(typo.contains("did you mean 'train'"), "{typo}");
    let axis = run("train[rl=1]").unwrap_err();
    assert!(
        axis.contains("no axis 'rl'") && axis.contains("'lr'"),
        "{axis}"
    );
    let value = run("train[lr=0.1]").unwrap_err();
    assert!(
        value.contains("no cell of 'train' has lr = 0.1") && value.contains("'0.001'"),
        "{value}"
    );
}

#[test]
fn names_of_cells_are_not_written() {
    let text = recipe(
        GRID,
        "[stage.\"train[lr=0.001,wd=0]\"]\nkind = \"command\"\ncmd = [\"true\"]\nout = [\"x\"]\n",
    );
    assert_eq!(error(&text).code, codes::NAME);
}

#[test]
fn places_in_cells_are_exact() {
    let text = "[recipe]\nname = \"m\"\nschema = 1\n[stage.base]\nkind = \"init\"\n\
        with = { family = \"qwen3\", hidden_size = \"${matrix.size}\", layers = 1, heads = 2 }\n\
        matrix.size = [8, 0]\n";
    let wrong = error(text);
    assert!(wrong.message.contains("base[size=0]"), "{wrong}");
    assert_eq!(wrong.place.unwrap().line, 6);
    let recipe = load(&text.replace(", 0]", "]"));
    assert_eq!(recipe.place("stage.base[size=8].with.family").column, 19);
}
