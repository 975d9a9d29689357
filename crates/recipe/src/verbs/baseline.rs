//! `recipe baseline ..`: pins that stand for runs, with who moved them, when and why.

use crate::args::{BaselineArgs, BaselineVerb};
use crate::fail::Fail;
use crate::format::{number, table};
use crate::verbs::runs::find;
use crate::{output, project};
use cache::{Move, Store};
use serde_json::{Value, json};
use spec::diagnostic::suggestion;

pub fn run(args: BaselineArgs) -> Result<u8, Fail> {
    match args.verb {
        BaselineVerb::Accept {
            run,
            name,
            why,
            by,
            store,
        } => accept(&project::open_store(&store)?, &run, &name, &why, by),
        BaselineVerb::List { store, json } => list(&project::open_store(&store)?, json),
        BaselineVerb::Show { name, store, json } => {
            show(&project::open_store(&store)?, &name, json)
        }
    }
}

fn accept(store: &Store, run: &str, name: &str, why: &str, by: Option<String>) -> Result<u8, Fail> {
    if why.trim().is_empty() {
        return Err(Fail::usage(
            "--why is empty",
            "say why this run is what later ones are compared with",
        ));
    }
    if !spec::recipe::is_name(name) {
        return Err(Fail::usage(
            format!("'{name}' is not a name"),
            "use letters, digits, '_' and '-'",
        ));
    }
    let run = find(store, run)?;
    let who = by.unwrap_or_else(who);
    let moved = runner::baseline::accept(store, &run, name, &who, why)?;
    output::line(match moved.number {
        1 => format!("{name} stands for run {run}"),
        n => format!("{name} stands for run {run} now; it is its run number {n}"),
    });
    Ok(0)
}

/// User and machine.
fn who() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let user = variable("USER").or_else(|| variable("LOGNAME"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let user = user.unwrap_or_else(|| "somebody".to_owned());
    format!("{user}@{}", host.trim())
}

fn list(store: &Store, as_json: bool) -> Result<u8, Fail> {
    let mut last = Vec::new();
    for (name, _) in store.pins()? {
        last.extend(store.moves(&name)?.pop());
    }
    if as_json {
        let pins: Vec<Value> = last.iter().map(as_value).collect();
        output::json(&json!({ "version": 1, "pins": pins }));
        return Ok(0);
    }
    if last.is_empty() {
        output::line("no baselines yet: `recipe baseline accept RUN --as NAME --why TEXT`");
        return Ok(0);
    }
    let mut rows = vec![header(&["pin"])];
    rows.extend(last.iter().map(|m| row(m, vec![m.name.clone()])));
    output::line(table(&rows));
    Ok(0)
}

fn show(store: &Store, name: &str, as_json: bool) -> Result<u8, Fail> {
    let moves = store.moves(name)?;
    let Some(last) = moves.last() else {
        let known = store.pins()?;
        return Err(Fail::not_stored(
            format!("there is no baseline '{name}'"),
            suggestion(name, known.iter().map(|(name, _)| name.as_str())),
        ));
    };
    let baseline = runner::baseline::read(&last.artifact, store).map_err(|why| {
        Fail::not_stored(
            format!("what run {} came to cannot be read: {why}", last.run),
            "accept another run",
        )
    })?;
    if as_json {
        let moves: Vec<Value> = moves.iter().map(as_value).collect();
        output::json(&json!({
            "version": 1, "name": name, "moves": moves, "baseline": baseline,
        }));
        return Ok(0);
    }
    let mut rows = vec![header(&["#"])];
    let numbered = |m: &Move| row(m, vec![m.number.to_string()]);
    rows.extend(moves.iter().map(numbered));
    output::line(format!("{name}\n{}\n", table(&rows)));
    let mut rows = vec![["stage", "metric", "value"].map(str::to_owned).to_vec()];
    for (stage, kept) in &baseline.stages {
        for (metric, value) in &kept.metrics {
            let value = value.as_f64().map_or_else(|| "-".to_owned(), number);
            rows.push(vec![stage.clone(), metric.clone(), value]);
        }
        for (output, digest) in &kept.outputs {
            let digest = digest.get(..12).unwrap_or(digest).to_owned();
            rows.push(vec![stage.clone(), format!("digest of {output}"), digest]);
        }
    }
    output::line(table(&rows));
    Ok(0)
}

fn header(first: &[&str]) -> Vec<String> {
    let rest = ["run", "when", "who", "why"];
    first.iter().chain(&rest).map(|s| (*s).to_owned()).collect()
}

fn row(m: &Move, mut first: Vec<String>) -> Vec<String> {
    first.extend([&m.run, &m.when, &m.who, &m.why].map(String::clone));
    first
}

fn as_value(m: &Move) -> Value {
    json!({
        "name": m.name, "number": m.number, "run": m.run, "who": m.who, "when": m.when, "why": m.why,
    })
}
