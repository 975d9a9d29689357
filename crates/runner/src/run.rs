//! Runs a plan: the main loop, which starts what is ready and takes in what has ended.

mod settle;

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache::{Brief, Cost};
use spec::assertion::Judged;
use spec::{Part, Plan, Reference};

use crate::attempt::{self, End, Job, Note, Shared, Start, assertion_failure};
use crate::baseline::Pins;
use crate::cancel::Stop;
use crate::crew::Crew;
use crate::error::{AttemptError, Class, Error};
use crate::events::numbers;
use crate::fault;
use crate::guard;
use crate::history::Past;
use crate::job::{Input, Inputs};
use crate::judge::{self, Bench, Of};
use crate::meter::Meter;
use crate::options::Options;
use crate::outcome::{self, Outcome, Status};
use crate::ready::Ready;
use crate::record::Recorder;
use crate::report::{Report, Reporter};
use crate::resolve::Decision;
use crate::scratch;
use crate::session::{Found, Keyed, Session};
use crate::slots::{Need, Slots};
use crate::source::Access;
use crate::states::{Phase, States};
use crate::track::Trackers;

/// How often stop requests and the record are looked at while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// Brings every stage of a plan to a result, as far as options and failures allow.
///
/// An error is a failure of the runner itself; what happens to stages is in the [`Outcome`].
pub fn run(plan: &Plan, options: &Options, reporter: &mut dyn Reporter) -> Result<Outcome, Error> {
    let clock = Instant::now();
    fault::arm()?;
    let session = Session::open(plan, options)?;
    let slots = Slots::new(options)?;
    let recorder = Recorder::start(plan, options, &session.store, clock)?;
    let (tell, told) = channel();
    let shared = Arc::new(Shared {
        store: session.store.clone(),
        run: recorder.id.clone(),
        recipe: plan.recipe.name.clone(),
        run_dir: recorder.dir().to_owned(),
        cancel: options.cancel.clone(),
        grace: options.grace,
        resume: options.resume,
        interrupt: options.interrupt,
        access: Access {
            offline: options.offline,
            locked: options.locked,
        },
        worker: session.worker.clone(),
        guard: guard_program(options)?,
        guarding: Mutex::new(None),
        scratch: Mutex::new(None),
        meter: Meter::new(),
    });
    let pins = Pins::new(&session.store);
    let states = States::new(plan);
    let stages = plan.order.iter().map(|s| s.stage.name.clone()).collect();
    let started = Report::RunStarted {
        version: crate::REPORT_VERSION,
        run: recorder.id.clone(),
        recipe: plan.recipe.name.clone(),
        stages,
    };
    let mut run = Run {
        session,
        states,
        slots,
        crew: Crew::new(),
        trackers: match options.track {
            true => Trackers::start(plan, &recorder.id),
            false => Trackers::none(),
        },
        recorder,
        reporter,
        shared,
        tell,
        decisions: Vec::new(),
        ready: Ready::new(),
        taken: HashMap::new(),
        past: None,
        paths: Vec::new(),
        failed: false,
        repaired: HashSet::new(),
        pins,
    };
    run.report(started);
    fault::at("recorded");
    let worked = run.work(&told);
    if worked.is_err() {
        run.kill(&told);
    }
    run.finish(worked)
}

/// A stage that waits for room.
struct Waiting {
    keyed: Keyed,
    start: Start,
}

struct Run<'a> {
    session: Session<'a>,
    states: States,
    slots: Slots,
    crew: Crew,
    recorder: Recorder<'a>,
    trackers: Trackers,
    reporter: &'a mut dyn Reporter,
    shared: Arc<Shared>,
    tell: Sender<Note>,
    /// What was decided before anything ran.
    decisions: Vec<Option<Decision>>,
    ready: Ready<Waiting>,
    taken: HashMap<usize, (Need, Vec<String>)>,
    /// What earlier runs say; read when the first stage has to run.
    past: Option<HashMap<String, Past>>,
    /// Critical paths in seconds.
    paths: Vec<f64>,
    failed: bool,
    /// Stages whose artifacts were found broken when they were read, and made again: once each.
    repaired: HashSet<usize>,
    /// What assertions compare with.
    pins: Pins,
}

impl Run<'_> {
    /// The main loop.
    fn work(&mut self, told: &Receiver<Note>) -> Result<(), Error> {
        self.decide_sources()?;
        self.recorder.asked(&self.session.sources);
        fault::at("decided");
        loop {
            while let Some(i) = self.states.due.pop_front() {
                self.settle(i)?;
            }
            for i in std::mem::take(&mut self.states.skipped) {
                self.tell_end(i);
            }
            let stopping = self.shared.cancel.level() != Stop::No;
            let halted = self.failed && !self.session.options.keep_going;
            if !stopping && !halted {
                self.start()?;
            }
            if self.slots.running() == 0 {
                return Ok(());
            }
            match told.recv_timeout(TICK) {
                Ok(Note::Report(report)) => self.report(report),
                Ok(Note::Ended {
                    index,
                    attempt,
                    spent,
                    end,
                }) => self.ended(index, attempt, spent, end),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.recorder
                .update(&self.states.outcomes, &self.shared.meter);
        }
    }

    /// Starts ready stages as long as there is room for one.
    fn start(&mut self) -> Result<(), Error> {
        while let Some((i, need, gpus, Waiting { keyed, start })) =
            self.ready.pop(|need| self.slots.take(need))
        {
            let stage = &self.session.plan.order[i].stage;
            let job = Job {
                index: i,
                stage: stage.clone(),
                keyed,
                start,
                inputs: self.inputs(i),
                chosen: self.states.outcomes[i].chosen.clone(),
                device: self.slots.device(stage),
                gpus: gpus.clone(),
            };
            self.taken.insert(i, (need, gpus));
            self.states.set(i, Phase::Running);
            // a runner that dies from here on leaves a record of what it was about
            self.recorder
                .update(&self.states.outcomes, &self.shared.meter);
            let (shared, tell) = (self.shared.clone(), self.tell.clone());
            self.crew.start(Box::new(move || {
                let index = job.index;
                if catch_unwind(AssertUnwindSafe(|| attempt::run(job, &shared, &tell))).is_err() {
                    let error = AttemptError::new(
                        Class::Failed,
                        "the runner met a bug: see its standard error",
                    );
                    let _ = tell.send(Note::Ended {
                        index,
                        attempt: None,
                        spent: Cost::default(),
                        end: End::Failed(error),
                    });
                }
            }))?;
        }
        Ok(())
    }

    fn inputs(&self, i: usize) -> Inputs {
        let session = &self.session;
        let recipe = &session.plan.recipe;
        let made = |stage: &str, output: &str| {
            let outputs = &session.plan.order[session.position(stage)].stage.outputs;
            let found = outputs.iter().find(|o| o.name == output);
            found.map_or(spec::ArtifactKind::Files, |o| o.artifact)
        };
        let one = |reference: &Reference| {
            let digest = session.digest_of(reference, &self.states.made)?;
            let (artifact, source) = match reference {
                Reference::Source(name) => (
                    recipe.sources[name.as_str()].artifact,
                    session.sources.get(name).map(|k| (name.clone(), k.clone())),
                ),
                Reference::Stage { stage, output } => (made(stage, output), None),
                Reference::Choice(choice) => {
                    (made(&choice.candidates[0].stage, &choice.output), None)
                }
            };
            Some(Input {
                digest,
                artifact,
                reference: reference.to_string(),
                source,
            })
        };
        let stage = &session.plan.order[i].stage;
        stage
            .inputs
            .iter()
            .map(|(name, list)| (name.clone(), list.iter().filter_map(one).collect()))
            .collect()
    }

    fn reuse(&mut self, i: usize, found: Found) {
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

    fn ended(&mut self, i: usize, attempt: Option<u32>, spent: Cost, end: End) {
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
    fn result(&mut self, i: usize, status: Status, result: Arc<Brief>) {
        self.states.outcomes[i].attempt = Some(result.attempt);
        let verdicts = self.judge(i);
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
    fn judge(&self, i: usize) -> Vec<Judged> {
        let plan = self.session.plan;
        let stage = &plan.order[i].stage;
        if stage.assertions.is_empty() {
            return Vec::new();
        }
        let of = |j: usize| {
            let outcome = &self.states.outcomes[j];
            let has = j == i || outcome.status.has_result();
            let key = outcome.key.as_deref().filter(|_| has);
            Of {
                stage: &outcome.stage,
                result: key.zip(outcome.attempt),
            }
        };
        let (mut group, mut replicas) = (stage.name.clone(), Vec::new());
        if let Some(cell) = plan.cell(&stage.name).filter(|c| c.replica.is_some()) {
            group = cell.group();
            let others = plan.cells(&cell.of).iter();
            let others = others.filter(|c| c.name != cell.name && c.group() == group);
            let others = others.map(|c| self.session.position(&c.name));
            // what is not asked for has no result to compare
            replicas = others
                .filter(|j| plan.order[*j].part != Part::Out)
                .collect();
        }
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

    fn fail(&mut self, i: usize, error: AttemptError) {
        self.failed |= self.ends_the_run(i);
        self.states.outcomes[i].error = Some(error);
        self.states.set(i, Phase::Ended(Status::Failed));
        self.tell_end(i);
    }

    fn tell_end(&mut self, i: usize) {
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

    fn report(&mut self, report: Report) {
        self.recorder.report(&report);
        self.trackers.report(&report);
        self.reporter.report(&report);
    }

    /// After a failure of the runner itself: ends what runs, so that nothing is left behind.
    fn kill(&mut self, told: &Receiver<Note>) {
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
    fn finish(mut self, worked: Result<(), Error>) -> Result<Outcome, Error> {
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

fn guard_program(options: &Options) -> Result<(std::path::PathBuf, Vec<String>), Error> {
    if let Some(guard) = &options.guard {
        return Ok(guard.clone());
    }
    // Not by name: the file may be replaced while the run lasts.
    Ok(("/proc/self/exe".into(), vec![guard::VERB.into()]))
}
