//! From a stage's end to its result, its verdicts or its failure.

use super::Run;
use crate::attempt::{End, assertion_failure};
use crate::error::{AttemptError, Class};
use crate::events::numbers;
use crate::fault;
use crate::judge::{self, Bench, Of, Verdicts};
use crate::outcome::Status;
use crate::report::Report;
use crate::session::Found;
use crate::states::Phase;
use cache::{Brief, Cost};
use spec::Cell;
use std::sync::Arc;

impl Run<'_> {
    pub(super) fn reuse(&mut self, i: usize, found: Found) {
        if let Some(key) = found.accepted {
            let stage = self.states.outcomes[i].stage.clone();
            let text = format!("reused from another trainer's key {}", key.short());
            self.states.outcomes[i].why = Some(text.clone());
            self.states.outcomes[i].key = Some(key.hex());
            self.report(Report::Message {
                stage: Some(stage),
                level: "warning".into(),
                text,
            });
        }
        self.result(i, Status::Reused, found.brief);
    }

    pub(super) fn ended(&mut self, i: usize, attempt: Option<u32>, spent: Cost, end: End) {
        if let Some((need, gpus)) = self.taken.remove(&i) {
            self.slots.give_back(&need, gpus);
        }
        self.states.outcomes[i].seconds = spent.seconds;
        self.states.outcomes[i].spent += spent;
        self.states.outcomes[i].attempt = attempt;
        let attempt = attempt.unwrap_or(0);
        if let (End::Ran(record) | End::Adopted(record), Some(key)) =
            (&end, self.states.outcomes[i].key.as_ref())
            && let Ok(key) = key.parse()
        {
            self.session.view.learn(&key, attempt, record);
        }
        fault::at("told");
        match end {
            End::Ran(record) => self.result(i, Status::Ran, Brief::of(attempt, &record).into()),
            End::Adopted(record) => {
                self.result(i, Status::Adopted, Brief::of(attempt, &record).into());
            }
            End::Failed(error) if error.class == Class::Integrity => match self.repair_inputs(i) {
                Ok(true) => {}
                Ok(false) => self.fail(i, error),
                Err(e) => self.fail(i, e.into()),
            },
            End::Failed(error) => self.fail(i, error),
            End::Stopped { checkpoint } => {
                self.states.set(
                    i,
                    Phase::Ended(if checkpoint {
                        Status::Stopped
                    } else {
                        Status::Killed
                    }),
                );
                self.tell_end(i);
            }
        }
    }

    /// A stage has a result. An assertion that does not hold makes the run fail, and holds back only those below that
    /// say `needs_assert`.
    pub(super) fn result(&mut self, i: usize, status: Status, result: Arc<Brief>) {
        self.states.outcomes[i].attempt = Some(result.attempt);
        let Verdicts {
            all: verdicts,
            group_broken,
        } = self.judge(i);
        if group_broken {
            self.states.break_group(i);
        }
        let broken = judge::broken(&verdicts);
        let outcome = &mut self.states.outcomes[i];
        outcome.metrics = numbers(&result.metrics);
        outcome.verdicts = verdicts;
        outcome.outputs = result
            .outputs
            .iter()
            .map(|(k, d)| (k.clone(), d.hex()))
            .collect();
        outcome.cost_seconds = Some(result.cost.seconds);
        outcome.cost = Some(result.cost);
        let status = match broken {
            Some(text) => {
                outcome.error = Some(assertion_failure(text));
                Status::AssertionFailed
            }
            None => status,
        };
        self.states.made[i] = Some(result);
        self.states.set(i, Phase::Ended(status));
        self.tell_end(i);
    }

    /// The verdicts on the result of a stage, which its outcome names.
    pub(super) fn judge(&self, i: usize) -> Verdicts {
        let plan = self.session.plan;
        let stage = &plan.order[i].stage;
        let of = |j: usize| {
            let outcome = &self.states.outcomes[j];
            let has = j == i || outcome.status.has_result();
            let key = outcome.key.as_deref().filter(|_| has);
            Of {
                stage: &outcome.stage,
                result: key.zip(outcome.attempt),
            }
        };
        let cell = plan.cell(&stage.name).filter(|c| c.replica.is_some());
        let group = cell.map_or_else(|| stage.name.clone(), Cell::group);
        let replicas = self.states.judged_with(i);
        let ended = |j: &usize| self.states.outcomes[*j].status != Status::NotRun;
        let bench = Bench {
            stage,
            of: of(i),
            group: &group,
            others: replicas
                .iter()
                .all(ended)
                .then(|| replicas.iter().map(|j| of(*j)).collect()),
            store: &self.session.store,
            pins: &self.pins,
        };
        bench.judge()
    }

    /// Whether a failure of stage `i` keeps others from starting that do not need it. One cell does not lose the rest
    /// of a sweep.
    fn ends_the_run(&self, i: usize) -> bool {
        self.states.outcomes[i].cell.is_none()
    }

    pub(super) fn fail(&mut self, i: usize, error: AttemptError) {
        self.failed |= self.ends_the_run(i);
        self.states.outcomes[i].error = Some(error);
        self.states.set(i, Phase::Ended(Status::Failed));
        self.tell_end(i);
    }

    pub(super) fn tell_end(&mut self, i: usize) {
        let outcome = &self.states.outcomes[i];
        let message = outcome
            .error
            .as_ref()
            .map(|e| e.message.clone())
            .or_else(|| outcome.why.clone());
        let report = Report::StageFinished {
            stage: outcome.stage.clone(),
            status: outcome.status,
            attempt: outcome.attempt,
            key: outcome.key.clone(),
            outputs: outcome.outputs.clone(),
            metrics: outcome.metrics.clone(),
            verdicts: outcome.verdicts.clone(),
            seconds: outcome.seconds,
            message,
        };
        self.report(report);
    }
}
