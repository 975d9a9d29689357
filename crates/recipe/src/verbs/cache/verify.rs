//! `recipe cache verify [--repair] [--paranoid]`.

use crate::fail::Fail;
use crate::format::{bytes, plural};
use crate::output;
use cache::{Healed, Problem, Repaired, Report, Store};
use serde_json::json;

/// Exit code of a store that holds something wrong.
const INTEGRITY: u8 = 5;

pub fn run(store: &Store, paranoid: bool, repair: bool, as_json: bool) -> Result<u8, Fail> {
    let mut report = store.verify(paranoid)?;
    let mut repaired = None;
    if repair && !(report.problems.is_empty() && report.healed.is_empty()) {
        repaired = Some(store.repair_all(report)?);
        report = store.verify(paranoid)?;
    }
    store.flush()?;
    if as_json {
        output::json(&value(store, &report, repaired.as_ref()));
    } else {
        tell(store, &report, repaired.as_ref());
    }
    if report.problems.is_empty() {
        return Ok(0);
    }
    if !as_json {
        let help = if repair {
            "what is left is nothing that a repair knows how to mend: look at it, and remove it if it is not yours"
        } else {
            "run the recipe again: what is damaged is computed anew where something needs it; or `recipe cache verify --repair`"
        };
        output::error(&crate::fail::text(
            spec::codes::INTEGRITY,
            "the store holds something that is not what its name says",
            Some(help),
        ));
    }
    Ok(INTEGRITY)
}

fn value(store: &Store, report: &Report, repaired: Option<&Repaired>) -> serde_json::Value {
    let problem =
        |p: &Problem| json!({ "path": p.path, "kind": format!("{:?}", p.kind), "why": p.why });
    let mut value = json!({
        "version": 1,
        "store": store.url(),
        "objects": report.objects,
        "bytes": report.bytes,
        "problems": report.problems.iter().map(problem).collect::<Vec<_>>(),
    });
    if let Some(repaired) = repaired {
        let one = |(p, healed): &(Problem, Healed)| {
            let mut one = problem(p);
            one["repair"] = json!(word(*healed));
            one
        };
        value["repaired"] = repaired.healed.iter().map(one).collect();
    }
    value
}

fn tell(store: &Store, report: &Report, repaired: Option<&Repaired>) {
    for (problem, healed) in repaired.iter().flat_map(|r| &r.healed) {
        let with = match problem.breaks.as_slice() {
            broken @ [_, ..] if *healed == Healed::Dropped => {
                format!(", with {}", broken.join(", "))
            }
            _ => String::new(),
        };
        let Problem { path, why, .. } = problem;
        output::line(format!("{path}: {why}: {}{with}", word(*healed)));
    }
    for problem in &report.problems {
        output::line(format!("{}: {}", problem.path, problem.why));
    }
    let found = match report.problems.len() {
        0 => "nothing is wrong".to_owned(),
        n => plural(n, "problem"),
    };
    let objects = report.objects;
    let size = bytes(report.bytes);
    output::line(format!(
        "{}: {objects} objects looked at, {size} of blobs: {found}",
        store.url()
    ));
    if let n @ 1.. = report.unfinished.len() {
        let attempts = plural(n, "attempt");
        output::line(format!(
            "{attempts} without an end: running, or killed and taken over by the next run"
        ));
    }
}

fn word(healed: Healed) -> &'static str {
    match healed {
        Healed::Fetched => "fetched from the remote store",
        Healed::Dropped => "dropped",
        Healed::Rewritten => "written again",
        Healed::Left => "left as it is",
    }
}
