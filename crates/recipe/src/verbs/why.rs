//! `recipe why`: the fields of a stage's key that differ from its last result.

use crate::args::WhyArgs;
use crate::causes::{self, Cause};
use crate::fail::Fail;
use crate::format::duration;
use crate::{output, project};
use runner::{Resolved, State, Why};
use serde_json::json;
use spec::{Plan, Selection};

pub fn run(args: WhyArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    let selection = Selection {
        targets: vec![args.stage.clone()],
        ..Selection::default()
    };
    let plan = Plan::new(recipe, &selection)?;
    let url = project::store(&args.store, project::folder(&args.recipe.recipe));
    let options = runner::Options::new(url);
    let stages = runner::resolve(&plan, &options)?;
    let asked: Vec<String> = plan
        .recipe
        .named(&args.stage)?
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut texts = Vec::with_capacity(asked.len());
    let mut values = Vec::with_capacity(asked.len());
    for (at, stage) in stages.iter().enumerate() {
        if !asked.contains(&stage.stage) {
            continue;
        }
        let ignored = causes::ignored(&plan.recipe, &stage.stage);
        let causes = match stage.state {
            State::Undecided(_) => causes::of(&plan, &stages, at),
            _ => Vec::new(),
        };
        match args.json {
            true => values.push(as_json(stage, &causes, &ignored)),
            false => texts.push(as_text(stage, &causes, &ignored)),
        }
    }
    match (args.json, values.len()) {
        (true, 1) => output::json(&values[0]),
        (true, _) => output::json(&json!({ "version": 1, "cells": values })),
        (false, _) => output::line(texts.join("\n\n")),
    }
    Ok(0)
}

fn as_json(stage: &Resolved, causes: &[Cause], ignored: &[&str]) -> serde_json::Value {
    let (state, why, depends_on) = match &stage.state {
        State::Reuse(_) => ("reuse", json!(null), json!(null)),
        State::Run(why) => ("run", json!(why), json!(null)),
        State::Undecided(waits) => ("undecided", json!(null), json!(waits)),
        State::Missing => ("missing", json!(null), json!(null)),
        State::Out => ("out", json!(null), json!(null)),
    };
    json!({
        "version": 1,
        "stage": stage.stage,
        "state": state,
        "why": why,
        "depends_on": depends_on,
        "causes": causes.iter().map(Cause::json).collect::<Vec<_>>(),
        "ignored": ignored,
        "cost_seconds": stage.past.as_ref().and_then(|p| p.cost_seconds),
        "key": stage.key.map(|k| k.hex()),
        "preimage": stage.preimage,
    })
}

fn as_text(stage: &Resolved, causes: &[Cause], ignored: &[&str]) -> String {
    let name = &stage.stage;
    let mut text = match &stage.state {
        State::Reuse(found) => format!(
            "{name}: nothing differs; its result is reused\nkey {}, attempt {}",
            stage.key.map(|k| k.hex()).unwrap_or_default(),
            found.brief.attempt
        ),
        State::Run(Why::Changed { fields }) if !fields.is_empty() => {
            let mut text =
                format!("{name}: runs, because its key differs from that of its last result:");
            for field in fields {
                text.push_str(&format!("\n  {field}"));
            }
            text
        }
        State::Run(why) => format!("{name}: runs: {why}"),
        State::Undecided(waits) => {
            let mut text = format!(
                "{name}: undecided: depends on {}, not known until this has run:",
                waits.join(", ")
            );
            for cause in causes {
                text.push_str(&format!("\n  {}", cause.text()));
            }
            text
        }
        State::Missing => format!("{name}: not selected, and not in the store"),
        State::Out => format!("{name}: not part of the plan"),
    };
    if let Some(seconds) = stage.past.as_ref().and_then(|p| p.cost_seconds) {
        text.push_str(&format!("\nlast time it took {}", duration(seconds)));
    }
    if !ignored.is_empty() {
        let list = ignored.join(", ");
        text.push_str(&format!(
            "\nignored, as no part of a key: {list} (nor are names, paths, order and comments)"
        ));
    }
    text
}
