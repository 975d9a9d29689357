//! From "everything it reads is there" to reused, ready or failed.

use super::{Run, Waiting};
use crate::attempt::Start;
use crate::cancel::Stop;
use crate::error::{AttemptError, Class, Error};
use crate::history;
use crate::outcome::ChosenCell;
use crate::report::Report;
use crate::resolve::{Decision, State, Why, decide_all, decide_one, explain};
use crate::session::{BestFound, Chosen, Keyed, Session};
use crate::states::Phase;
use spec::diagnostic::suggestion;
use spec::{BestStep, Choice, PartOf, Reference, Stage, Until};
use std::sync::Arc;

impl Run<'_> {
    /// Decides all stages as far as possible; fetches the sources without which nothing more can be said.
    pub(super) fn decide_sources(&mut self) -> Result<(), Error> {
        let mut decisions = decide_all(&self.session)?;
        let mut missing: Vec<String> = Vec::new();
        for decision in &decisions {
            let State::Undecided(references) = &decision.state else {
                continue;
            };
            for name in references.iter().filter_map(|r| r.strip_prefix("source.")) {
                if !missing.iter().any(|m| m == name) {
                    missing.push(name.to_owned());
                }
            }
        }
        for name in &missing {
            let text = format!(
                "fetching source '{name}' ({})",
                self.session.plan.recipe.sources[name.as_str()].from
            );
            self.report(Report::Message {
                stage: None,
                level: "info".into(),
                text,
            });
            let Session {
                plan,
                store,
                sources,
                options,
                ..
            } = &mut self.session;
            sources.pin(&plan.recipe, name, store, options.offline)?;
        }
        if !missing.is_empty() {
            decisions = decide_all(&self.session)?;
        }
        self.session.sources.save()?;
        for (source, digest, text) in std::mem::take(&mut self.session.sources.notices) {
            self.report(Report::Source {
                source,
                digest: digest.hex(),
                text,
            });
        }
        self.decisions = decisions.into_iter().map(Some).collect();
        Ok(())
    }

    /// Takes a stage whose inputs are all there to its end or to the ready ones.
    pub(super) fn settle(&mut self, i: usize) -> Result<(), Error> {
        let early = self.decisions[i].take().filter(|d| self.stands(i, d));
        let decision = match early {
            Some(decision) => decision,
            None => self.decide_late(i)?,
        };
        self.states.outcomes[i].key = decision.keyed.as_ref().map(|k| k.key.hex());
        self.note_choices(i);
        match (decision.state, decision.keyed) {
            (State::Reuse(found), _) => self.reuse(i, *found),
            (State::Run(why), Some(keyed)) => self.make_ready(i, why, keyed)?,
            (State::Missing, _) => {
                let stage = &self.session.plan.order[i].stage.name;
                self.fail(
                    i,
                    AttemptError {
                        help: Some(format!("run it first: `recipe run RECIPE {stage}`")),
                        ..AttemptError::new(
                            Class::Config,
                            "the store lacks its result, and the selection does not let it run",
                        )
                    },
                );
            }
            (State::Undecided(references), _) => {
                let error = self.no_choice(i).or_else(|| self.no_step(i));
                let error = error.unwrap_or_else(|| {
                    let message = format!("{} is not known", references.join(", "));
                    AttemptError::new(Class::Integrity, message)
                });
                self.fail(i, error);
            }
            (State::Run(_), None) | (State::Out, _) => {}
        }
        Ok(())
    }

    /// Records which cells were taken where the stage chooses among cells.
    fn note_choices(&mut self, i: usize) {
        let stage = &self.session.plan.order[i].stage;
        let mut chosen = Vec::new();
        for (input, choice) in choices(stage) {
            if let Chosen::Cell(cell, value) = self.session.choose(choice, &self.states.made) {
                chosen.push(ChosenCell {
                    input: input.clone(),
                    choice: Reference::Choice(choice.clone()).to_string(),
                    stage: cell.stage.clone(),
                    value,
                });
            }
        }
        if let Some((part, by)) = best_of(stage)
            && let BestFound::At { step, .. } = self.session.best_step(part, by, &self.states.made)
        {
            let (stage, whole) = (Some(stage.name.clone()), &part.stage);
            self.report(Report::Message {
                stage,
                level: "info".into(),
                text: format!("ends with step {step} of {whole}: the best by {by}"),
            });
        }
        for cell in &chosen {
            let ChosenCell {
                input,
                choice,
                stage,
                value,
            } = cell;
            self.report(Report::Message {
                stage: Some(self.session.plan.order[i].stage.name.clone()),
                level: "info".into(),
                text: format!("input '{input}' is that of {stage}: {choice}, which is {value}"),
            });
        }
        self.states.outcomes[i].chosen = chosen;
    }

    /// The error of a stage that chooses by a metric which no cell has.
    fn no_choice(&self, i: usize) -> Option<AttemptError> {
        let session = &self.session;
        let stage = &session.plan.order[i].stage;
        let made = &self.states.made;
        let open = |c: &Arc<Choice>| matches!(session.choose(c, made), Chosen::NoMetric);
        let (input, choice) = choices(stage).find(|(_, choice)| open(choice))?;
        let place = session
            .plan
            .recipe
            .place(&format!("stage.{}.in.{input}", stage.name));
        let known = session.metrics_to_choose_by(choice, made);
        let help = suggestion(&choice.metric, known.iter().map(String::as_str));
        let (judge, n) = (
            choice.by.split('.').next().unwrap_or_default(),
            choice.candidates.len(),
        );
        Some(AttemptError {
            help: Some(format!("metrics of '{judge}': {help}")),
            ..AttemptError::new(
                Class::Config,
                format!(
                    "none of the {n} cells of '{judge}' has the metric '{}' that input '{input}' is chosen by ({}:{}:{})",
                    choice.metric, place.file, place.line, place.column
                ),
            )
        })
    }

    /// The error of a part that ends with the best step of a stage where no step is the best.
    fn no_step(&self, i: usize) -> Option<AttemptError> {
        let (part, by) = best_of(&self.session.plan.order[i].stage)?;
        let BestFound::Never(why) = self.session.best_step(part, by, &self.states.made) else {
            return None;
        };
        Some(AttemptError::new(Class::Config, why))
    }

    /// Whether an early decision holds now that everything above has ended. A stage never runs under a key that was made
    /// from other inputs than it is handed.
    fn stands(&self, i: usize, decision: &Decision) -> bool {
        match (&decision.state, &decision.keyed) {
            (State::Undecided(_), _) => false,
            (State::Run(_), Some(early)) => {
                let mut now = self.session.keys(&[i], &self.states.made);
                matches!(now.pop(), Some(Ok(now)) if now.key == early.key)
            }
            _ => true,
        }
    }

    /// Decides a stage whose upstream ran in this run. Its result must be whole: something may be about to need it.
    fn decide_late(&self, i: usize) -> Result<Decision, Error> {
        let mut decision = decide_one(&self.session, i, &self.states.made)?;
        if let State::Reuse(found) = &decision.state
            && let Err(what) = self.session.intact(&[&found.brief])?.remove(0)
        {
            decision.state = State::Run(Why::Repair { what });
        }
        Ok(decision)
    }

    /// After a stage met inputs that are not what their digests say: has those made again that can be, and the stage
    /// wait for them. False where that would not help.
    pub(super) fn repair_inputs(&mut self, i: usize) -> Result<bool, Error> {
        let plan = self.session.plan;
        let mut broken = Vec::new();
        for &up in &plan.order[i].upstream {
            let Some(result) = &self.states.made[up] else {
                continue;
            };
            for (name, digest) in &result.outputs {
                let what = match self.session.store.artifact_intact(digest)? {
                    cache::Intact::Yes => continue,
                    cache::Intact::Missing { .. } => format!("output '{name}' is lost"),
                    cache::Intact::Corrupt { why, .. } => {
                        format!("output '{name}' is corrupt: {why}")
                    }
                };
                broken.push((up, what));
                break;
            }
        }
        let may = |up: usize| {
            let again = plan.order[up].part == spec::Part::Run && !self.repaired.contains(&up);
            again && self.shared.cancel.level() == Stop::No
        };
        if broken.is_empty() || !broken.iter().all(|(up, _)| may(*up)) {
            return Ok(false);
        }
        let mut ready = Vec::with_capacity(broken.len());
        for (up, what) in broken {
            match self.session.keys(&[up], &self.states.made).pop() {
                Some(Ok(keyed)) => ready.push((up, what, keyed)),
                _ => return Ok(false),
            }
        }
        self.states.reopen(i);
        for (up, what, keyed) in ready {
            self.repaired.insert(up);
            self.states.reopen(up);
            self.make_ready(up, Why::Repair { what }, keyed)?;
        }
        Ok(true)
    }

    fn make_ready(&mut self, i: usize, mut why: Why, keyed: Keyed) -> Result<(), Error> {
        let session = &self.session;
        let plan = session.plan;
        if self.past.is_none() {
            let past = history::of(&session.store, &plan.recipe.name, plan.order.len());
            let seconds = |i: usize| {
                past.get(&plan.order[i].stage.name)
                    .and_then(|p| p.cost_seconds)
                    .unwrap_or(1.0)
            };
            self.paths = self.states.critical_paths(seconds);
            self.past = Some(past);
        }
        let name = &plan.order[i].stage.name;
        if why == Why::New {
            why = explain(
                session,
                &keyed,
                self.past.as_ref().and_then(|p| p.get(name)),
            )?;
        }
        let start = match &why {
            Why::Forced => Start::Forced,
            Why::Repair { .. } => match session.store.current(&keyed.key)? {
                Some((broken, _)) => Start::Repair(broken),
                None => Start::First,
            },
            _ => Start::First,
        };
        self.states.outcomes[i].why = Some(why.to_string());
        self.report(Report::StageQueued {
            stage: name.clone(),
            why: why.to_string(),
        });
        self.states.set(i, Phase::Ready);
        let need = self.slots.need(&plan.order[i].stage);
        let waiting = Waiting { keyed, start };
        self.ready.push(need, self.paths[i], i, waiting);
        Ok(())
    }
}

/// What a stage is a part of, if it ends with the best step.
fn best_of(stage: &Stage) -> Option<(&PartOf, &BestStep)> {
    let part = stage.part_of.as_ref()?;
    match &part.until {
        Until::Best(by) => Some((part, by)),
        Until::Step(_) => None,
    }
}

/// The inputs of a stage that choose among cells.
fn choices(stage: &Stage) -> impl Iterator<Item = (&String, &Arc<Choice>)> {
    let references = stage
        .inputs
        .iter()
        .flat_map(|(name, list)| list.iter().map(move |r| (name, r)));
    references.filter_map(|(name, reference)| match reference {
        Reference::Choice(choice) => Some((name, choice)),
        Reference::Stage { .. } | Reference::Source(_) => None,
    })
}
