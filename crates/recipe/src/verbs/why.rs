//! `recipe why`: the fields of a stage's key that differ from its last result.

use crate::args::WhyArgs;
use crate::fail::Fail;
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
    let stage = stages
        .iter()
        .find(|s| s.stage == args.stage)
        .ok_or_else(|| Fail::usage(format!("the plan has no stage '{}'", args.stage), ""))?;
    if args.json {
        output::json(&as_json(stage));
    } else {
        output::line(as_text(&plan, stage, &stages));
    }
    Ok(0)
}

fn as_json(stage: &Resolved) -> serde_json::Value {
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
        "key": stage.key.map(|k| k.hex()),
        "preimage": stage.preimage,
    })
}

fn as_text(plan: &Plan, stage: &Resolved, all: &[Resolved]) -> String {
    let name = &stage.stage;
    match &stage.state {
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
        State::Undecided(_) => {
            let mut text = format!("{name}: undecided until what it reads is known:");
            for up in plan
                .get(name)
                .map(|p| p.upstream.as_slice())
                .unwrap_or_default()
            {
                let up = &all[*up];
                let state = match &up.state {
                    State::Run(why) => format!("runs: {why}"),
                    State::Undecided(waits) => {
                        format!("undecided: depends on {}", waits.join(", "))
                    }
                    State::Missing => "not in the store".to_owned(),
                    State::Reuse(_) | State::Out => continue,
                };
                text.push_str(&format!("\n  {} {state}", up.stage));
            }
            text
        }
        State::Missing => format!("{name}: not selected, and not in the store"),
        State::Out => format!("{name}: not part of the plan"),
    }
}
