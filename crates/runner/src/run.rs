//! Runs a plan: the main loop, which starts what is ready and takes in what has ended.

mod closing;
mod ended;
mod settle;

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache::Cost;
use spec::{Plan, Reference};

use crate::attempt::{self, End, Job, Note, Shared, Start};
use crate::baseline::Pins;
use crate::cancel::Stop;
use crate::crew::Crew;
use crate::error::{AttemptError, Class, Error};
use crate::fault;
use crate::guard;
use crate::history::Past;
use crate::job::{Input, Inputs};
use crate::meter::Meter;
use crate::options::Options;
use crate::outcome::Outcome;
use crate::ready::Ready;
use crate::record::Recorder;
use crate::report::{Report, Reporter};
use crate::resolve::Decision;
use crate::session::{Keyed, Session};
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
        profile: options.profile,
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
            let planned = &self.session.plan.order[i].stage;
            let stage = self.session.stage(i, &self.states.made);
            let stage = stage.unwrap_or_else(|_| planned.clone());
            let device = self.slots.device(&stage);
            let job = Job {
                index: i,
                stage,
                keyed,
                start,
                kin: self.session.kin(i, &self.states.made),
                inputs: self.inputs(i),
                chosen: self.states.outcomes[i].chosen.clone(),
                device,
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

    fn report(&mut self, report: Report) {
        self.recorder.report(&report);
        self.trackers.report(&report);
        self.reporter.report(&report);
    }
}

fn guard_program(options: &Options) -> Result<(std::path::PathBuf, Vec<String>), Error> {
    if let Some(guard) = &options.guard {
        return Ok(guard.clone());
    }
    // Not by name: the file may be replaced while the run lasts.
    Ok(("/proc/self/exe".into(), vec![guard::VERB.into()]))
}
