//! The end of a run: nothing is left behind, and the record says what became of everything.

use super::Run;
use crate::attempt::Note;
use crate::cancel::Stop;
use crate::error::{AttemptError, Error};
use crate::fault;
use crate::outcome::{self, Outcome, Status};
use crate::report::Report;
use crate::scratch;
use std::sync::mpsc::Receiver;

impl Run<'_> {
    /// After a failure of the runner itself: ends what runs, so that nothing is left behind.
    pub(super) fn kill(&mut self, told: &Receiver<Note>) {
        let cancel = &self.shared.cancel;
        while cancel.level() != Stop::Now {
            cancel.request(nix::libc::SIGTERM);
        }
        while self.slots.running() > 0 {
            match told.recv() {
                Ok(Note::Ended {
                    index,
                    attempt,
                    spent,
                    end,
                }) => self.ended(index, attempt, spent, end),
                Ok(Note::Report(report)) => self.report(report),
                Err(_) => break,
            }
        }
    }

    /// Ends guard and scratch, writes the record, and sums up.
    pub(super) fn finish(mut self, worked: Result<(), Error>) -> Result<Outcome, Error> {
        let cancel = self.shared.cancel.clone();
        self.shared
            .guarding
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .take();
        let scratch = self.shared.scratch.lock();
        match scratch.unwrap_or_else(|e| e.into_inner()).take() {
            Some(scratch) => drop(scratch),
            None => scratch::tidy(&self.session.store),
        }
        let stages = &self.states.outcomes;
        let unfinished = stages
            .iter()
            .any(|s| matches!(s.status, Status::NotRun | Status::Stopped | Status::Killed));
        let stopped = (cancel.level() != Stop::No && unfinished).then(|| cancel.exit_code());
        let mut exit_code = match &worked {
            Ok(()) => Outcome::exit_code(stages, stopped),
            Err(e) => e.class().exit_code(),
        };
        let seconds = self.recorder.seconds();
        let run = self.recorder.id.clone();
        for text in self.trackers.finish(exit_code) {
            self.report(Report::Message {
                stage: None,
                level: "warning".into(),
                text: format!("tracker {text}"),
            });
        }
        self.report(Report::RunFinished {
            run: run.clone(),
            exit_code,
            seconds,
        });
        self.session.view.save();
        let flushed = self.session.store.flush();
        fault::at("saved");
        let Run {
            states,
            recorder,
            session,
            shared,
            ..
        } = self;
        let started = recorder.started.clone();
        let recorded = recorder.finish(&states.outcomes, &shared.meter, exit_code, seconds);
        worked?;
        // What became of the stages is told in any case; a lost record is a failure only where there is no graver one.
        let unrecorded = recorded
            .and(flushed.map_err(Error::from))
            .err()
            .map(AttemptError::from);
        if let (0, Some(error)) = (exit_code, &unrecorded) {
            exit_code = error.class.exit_code();
        }
        Ok(Outcome {
            run,
            recipe: session.plan.recipe.name.clone(),
            started,
            spent: outcome::spent(&states.outcomes),
            energy: shared.meter.energy(),
            stages: states.outcomes,
            exit_code,
            seconds,
            unrecorded,
        })
    }
}
