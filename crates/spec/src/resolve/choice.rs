//! `{ of = "sft.model", select = { max = "eval.accuracy" } }`: the cell with the best metric.

use super::link::{Made, qualified_suggestion, with_place};
use super::{Resolver, Result};
use crate::cells::Cell;
use crate::kinds::ArtifactKind;
use crate::recipe::{Best, Candidate, Choice, Reference, is_name};
use crate::tree::{Node, Table};
use crate::{codes, read};
use std::sync::Arc;

const FORM: &str = "write { of = \"sft.model\", select = { max = \"eval.accuracy\" } }";

impl Resolver<'_> {
    pub(super) fn choice(
        &self,
        owner: &str,
        node: &Node,
        table: &Table,
        made: &Made<'_, '_>,
    ) -> Result<(Reference, ArtifactKind)> {
        read::only(self.files, owner, table, &["of", "select"])?;
        let missing = |key: &str| {
            self.error(
                codes::MISSING,
                node.at,
                format!("{owner}: '{key}' is missing"),
                FORM,
            )
        };
        let of = &table.get("of").ok_or_else(|| missing("of"))?.node;
        let select = &table.get("select").ok_or_else(|| missing("select"))?.node;
        let asked = self.asked(owner, of)?;
        let whole = asked.as_ref().map_or(of, |(whole, _)| whole);
        let (candidates, output, text) = self.candidates(owner, whole)?;
        let artifact = self.artifact(owner, text, whole, &candidates[0].name, output, made)?;
        let (best, by) = self.select(owner, select)?;
        let wrong = || {
            self.error(
                codes::REFERENCE,
                by.at,
                format!("{owner}: {} is not a metric of a stage", by.value.show()),
                "write `stage.metric`, such as \"eval.accuracy\"",
            )
        };
        let (judge, metric) = by
            .as_str()
            .and_then(|t| t.split_once('.'))
            .ok_or_else(wrong)?;
        if !is_name(judge) || metric.is_empty() {
            return Err(wrong());
        }
        let judges = self.cells.of(judge);
        if judges.is_empty() {
            let exists = made.outputs(judge).is_some();
            let known = self.cells.stages().map(|stage| format!("{stage}.{metric}"));
            let (message, help) = match exists {
                true => (
                    format!(
                        "{owner}: stage '{judge}' has no cells, so it cannot tell those of '{text}' apart"
                    ),
                    format!("let it follow them: foreach = \"{}\"", candidates[0].of),
                ),
                false => (
                    format!(
                        "{owner} selects by '{judge}.{metric}', but there is no stage '{judge}'"
                    ),
                    qualified_suggestion(&format!("{judge}.{metric}"), known),
                ),
            };
            return Err(self.error(codes::NO_SUCH, by.at, message, help));
        }
        let candidates = candidates
            .into_iter()
            .map(|cell| {
                let fitting: Vec<&Cell> = judges
                    .iter()
                    .filter(|j| cell.is_within(j) && cell.agrees(j))
                    .collect();
                match fitting[..] {
                    [one] => Ok(Candidate {
                        stage: match &asked {
                            Some((_, asked)) => self.part_of(owner, asked, &cell.name, made)?,
                            None => cell.name.clone(),
                        },
                        judge: one.name.clone(),
                    }),
                    [] => Err(self.error(
                        codes::CELL,
                        by.at,
                        format!("{owner}: no cell of '{judge}' belongs to '{}'", cell.name),
                        format!("let '{judge}' follow them: foreach = \"{}\"", cell.of),
                    )),
                    [first, second, ..] => Err(self.error(
                        codes::CELL,
                        by.at,
                        format!(
                            "{owner}: '{}' has {} cells of '{judge}' to be judged by, such as '{}' and '{}'",
                            cell.name,
                            fitting.len(),
                            first.name,
                            second.name
                        ),
                        format!("give '{judge}' no axes of its own"),
                    )),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let choice = Choice {
            of: of.as_str().unwrap_or(text).to_owned(),
            best,
            by: format!("{judge}.{metric}"),
            metric: metric.to_owned(),
            output: output.to_owned(),
            candidates,
        };
        Ok((Reference::Choice(Arc::new(choice)), artifact))
    }

    /// The cells that `of` names, the output, and the whole text.
    fn candidates<'n>(&self, owner: &str, of: &'n Node) -> Result<(Vec<&Cell>, &'n str, &'n str)> {
        let text = of.as_str();
        let parts = text.and_then(|text| {
            let plain = || {
                text.split_once('.')
                    .map(|(stage, output)| (stage, "*", output))
            };
            let (stage, place, output) = with_place(text).or_else(plain)?;
            (is_name(stage) && is_name(output)).then_some((text, stage, place, output))
        });
        let Some((text, stage, place, output)) = parts else {
            return Err(self.error(
                codes::REFERENCE,
                of.at,
                format!("{owner}: 'of' is {}", of.value.show()),
                FORM,
            ));
        };
        match self.cells.matching(stage, place) {
            Ok(cells) => Ok((cells, output, text)),
            Err(e) => {
                let message = format!("{owner}: {}", e.message);
                Err(self.error(codes::CELL, of.at, message, e.help))
            }
        }
    }

    fn select<'n>(&self, owner: &str, select: &'n Node) -> Result<(Best, &'n Node)> {
        let owner = format!("{owner}: 'select'");
        let table = read::table(self.files, &owner, select)?;
        read::only(self.files, &owner, table, &["max", "min"])?;
        match (table.get("max"), table.get("min")) {
            (Some(by), None) => Ok((Best::Max, &by.node)),
            (None, Some(by)) => Ok((Best::Min, &by.node)),
            _ => Err(self.error(
                codes::CONFLICT,
                select.at,
                format!("{owner} needs one of 'max' and 'min'"),
                FORM,
            )),
        }
    }
}
