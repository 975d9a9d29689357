//! `sft.model@100`, `sft.model@min(validation/loss)`: references to parts of a stage's training, and the stages that they
//! become.

use super::link::Made;
use super::{Resolver, Result};
use crate::cells::{self, Cell};
use crate::codes;
use crate::recipe::{Reference, Stage};
use crate::tree::{At, Node, Value};
use crate::until::{BestStep, PartOf, Until, split};

const FORM: &str = "write the step, \"sft.model@100\", or the best by a metric of the steps, \"sft.model@min(validation/loss)\"";

/// What stands behind the `@` of a reference, and where.
pub(super) struct Asked<'n> {
    text: &'n str,
    until: Until,
    at: At,
}

impl Resolver<'_> {
    /// A reference without its `@..`, and what stands there; none where the reference has none.
    pub(super) fn asked<'n>(
        &self,
        owner: &str,
        node: &'n Node,
    ) -> Result<Option<(Node, Asked<'n>)>> {
        let text = node.as_str().unwrap_or_default();
        let (whole, Some(until)) = split(text) else {
            return Ok(None);
        };
        if whole.starts_with("source.") {
            let message = format!("{owner}: '{text}' is a source, which has no steps");
            let help = format!("write '{whole}'");
            return Err(self.error(codes::STEP, node.at, message, help));
        }
        let Some(until) = Until::parse(until) else {
            let message = format!("{owner}: '{until}' in '{text}' is no step");
            return Err(self.error(codes::STEP, node.at, message, FORM));
        };
        let value = Value::Str(whole.to_owned());
        let at = node.at;
        Ok(Some((Node { value, at }, Asked { text, until, at })))
    }

    /// A reference to a stage's output as one to the part that is asked for.
    pub(super) fn part(
        &self,
        owner: &str,
        asked: &Asked<'_>,
        reference: Reference,
        made: &Made<'_, '_>,
    ) -> Result<Reference> {
        Ok(match reference {
            Reference::Stage { stage, output } => Reference::Stage {
                stage: self.part_of(owner, asked, &stage, made)?,
                output,
            },
            // a choice is a table, a source is refused before
            other => other,
        })
    }

    /// The name of the part of a stage; the stage's own where that is its end.
    pub(super) fn part_of(
        &self,
        owner: &str,
        asked: &Asked<'_>,
        stage: &str,
        made: &Made<'_, '_>,
    ) -> Result<String> {
        let Asked { text, until, at } = asked;
        let error = |message: String, help: String| {
            let message = format!("{owner} reads '{text}', but {message}");
            self.error(codes::STEP, *at, message, help)
        };
        let draft = made.draft(stage);
        let whole = split(text).0;
        if !draft.kind.checkpoints {
            return Err(error(
                format!(
                    "stage '{stage}' is of kind '{}', which has no steps",
                    draft.kind.name
                ),
                format!("write '{whole}'; sft, dpo and grpo have steps"),
            ));
        }
        match until {
            Until::Step(step) => {
                let with = &draft.with;
                let last = with["until"].as_u64().or(with["steps"].as_u64());
                if last == Some(*step) {
                    return Ok(stage.to_owned());
                }
                if *step == 0 || last.is_some_and(|last| *step > last) {
                    let range = last.map_or_else(String::new, |last| format!(" to {last}"));
                    let what = match (step, last) {
                        (1.., Some(last)) => format!("stage '{stage}' has {last} steps"),
                        _ => "steps are counted from 1".to_owned(),
                    };
                    return Err(error(what, format!("name a step from 1{range}")));
                }
            }
            Until::Best(best) => {
                measured(stage, best, made).map_err(|(what, help)| error(what, help))?;
            }
        }
        let label = until.label();
        let name = match self.cells.get(stage) {
            Some(cell) => cells::name(&format!("{}@{label}", cell.of), cell.place.iter()),
            None => format!("{stage}@{label}"),
        };
        made.ask(
            name.clone(),
            PartOf {
                stage: stage.to_owned(),
                until: until.clone(),
            },
        );
        Ok(name)
    }
}

/// The stages that references to parts of a stage ask for, and the cells that they are where the whole is one.
pub(super) fn parts_of(
    whole: &mut Stage,
    cell: Option<&Cell>,
    made: &[(String, PartOf)],
) -> Vec<(Stage, Option<Cell>)> {
    let of_this = made.iter().filter(|(_, part)| part.stage == whole.name);
    let parts: Vec<(Stage, Option<Cell>)> = of_this
        .map(|(name, part)| {
            let until = match &part.until {
                Until::Step(step) => Some(*step),
                Until::Best(_) => None,
            };
            let stage = Stage {
                name: name.clone(),
                assertions: Vec::new(),
                part_of: Some(part.clone()),
                ..whole.ending(until)
            };
            let cell = cell.map(|cell| Cell {
                name: name.clone(),
                of: format!("{}@{}", cell.of, part.until.label()),
                ..cell.clone()
            });
            (stage, cell)
        })
        .collect();
    for (_, part) in made.iter().filter(|(_, part)| part.stage == whole.name) {
        if let Until::Best(best) = &part.until {
            whole.watch.push(best.clone());
        }
    }
    parts
}

/// Refuses a metric of validation that the stage never takes, or after its last step alone.
fn measured(
    stage: &str,
    by: &BestStep,
    made: &Made<'_, '_>,
) -> std::result::Result<(), (String, String)> {
    let draft = made.draft(stage);
    let metric = &by.metric;
    if !metric.starts_with("validation/") {
        return Ok(());
    }
    let validates = draft.kind.inputs.iter().any(|p| p.name == "validation");
    if validates && !draft.inputs.iter().any(|(name, _)| *name == "validation") {
        return Err((
            format!("stage '{stage}' does not measure '{metric}': it has no input 'validation'"),
            format!(
                "add `in.validation = \"..\"` to '{stage}', or choose by a metric of training, such as 'train/loss'"
            ),
        ));
    }
    if draft.with["validate_every"].as_u64() == Some(0) {
        let when = if validates {
            "after its last step alone"
        } else {
            "never"
        };
        return Err((
            format!("stage '{stage}' measures '{metric}' {when}"),
            format!("say how often: stage.{stage}.with.validate_every = 10"),
        ));
    }
    Ok(())
}
