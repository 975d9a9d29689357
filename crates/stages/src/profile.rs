//! Steps that every rank records as a trace: `recipe run --profile-steps 10..12`.
//!
//! A trace is for people to look at. Whatever becomes of it, the stage goes on.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};

use spec::JobSpec;
use spec::job::{ProfileSpec, StepRange};
use tch::Device;
use trace::{Category, Mark};

use crate::report::{self, Report};

/// The steps to record, and how far that is.
pub struct Profile {
    asked: Option<ProfileSpec>,
    rank: usize,
    device: Device,
    /// What the trace says of itself.
    about: Vec<(&'static str, String)>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// The step under way that is recorded.
    open: Option<(u64, Mark)>,
    recording: bool,
    recorded: Option<StepRange>,
    /// The first step of this attempt.
    began: Option<u64>,
    /// What went wrong, in words.
    wrong: Option<String>,
}

impl Profile {
    /// As the job asks.
    pub fn new(job: &JobSpec, rank: usize, device: Device) -> Profile {
        let text = |x: &dyn ToString| x.to_string();
        Profile {
            asked: job.profile.clone(),
            rank,
            device,
            about: vec![
                ("recipe", text(&job.provenance.recipe)),
                ("run", text(&job.provenance.run)),
                ("stage", text(&job.stage)),
                ("kind", text(&job.kind)),
                ("attempt", text(&job.attempt)),
                ("rank", text(&rank)),
                ("ranks", text(&job.resources.ranks)),
                ("device", text(&job.device)),
            ],
            state: RefCell::default(),
        }
    }

    /// A step begins; the one before has ended.
    pub fn step(&self, step: u64) {
        let Some(asked) = &self.asked else { return };
        let state = &mut *self.state.borrow_mut();
        state.began.get_or_insert(step);
        self.close(state);
        if !asked.steps.contains(step) {
            return self.write(asked, state);
        }
        if !state.recording && state.recorded.is_none() {
            match trace::start(self.device) {
                Ok(()) => state.recording = true,
                Err(e) => state.wrong = Some(format!("cannot record: {e}")),
            }
        }
        state.open = state.recording.then(|| (step, Mark::now()));
    }

    /// The stage has ended, one way or the other. Says what was not recorded of what was asked for.
    pub fn finish(&self, report: Report) {
        let Some(asked) = &self.asked else { return };
        let state = &mut *self.state.borrow_mut();
        self.close(state);
        self.write(asked, state);
        if let Some(text) = shortfall(asked.steps, state) {
            match report.rank {
                0 => report.warn(text),
                _ => report::note(&text),
            }
        }
    }

    /// The step that is recorded has ended.
    fn close(&self, state: &mut State) {
        let Some((step, start)) = state.open.take() else {
            return;
        };
        trace::lap(Category::Step, format!("step {step}"), &start, &Mark::now());
        let first = state.recorded.map_or(step, |steps| steps.first);
        state.recorded = Some(StepRange { first, last: step });
    }

    /// Records no more, and writes what was recorded.
    fn write(&self, asked: &ProfileSpec, state: &mut State) {
        if !std::mem::take(&mut state.recording) {
            return;
        }
        let Some(recording) = trace::stop() else {
            return;
        };
        if recording.left_out() > 0 {
            state.wrong = Some(format!(
                "the trace has no room for {} slices beside its {}: profile fewer steps",
                recording.left_out(),
                recording.len()
            ));
        }
        let path = asked.dir.join(format!("rank{}.json", self.rank));
        let mut about = self.about.clone();
        let steps = state.recorded.map(|steps| steps.to_string());
        about.push(("steps", steps.unwrap_or_default()));
        let written = || -> io::Result<()> {
            fs::create_dir_all(&asked.dir)?;
            let mut out = BufWriter::new(File::create(&path)?);
            recording.write(&mut out, self.rank, &about)?;
            out.flush()
        };
        if let Err(e) = written() {
            // half a trace is of no use
            let _ = fs::remove_file(&path);
            state.wrong = Some(format!("cannot write the trace {}: {e}", path.display()));
        }
    }
}

/// What to say where not all was recorded that was asked for.
fn shortfall(asked: StepRange, state: &State) -> Option<String> {
    let why = || match state.began {
        Some(began) if began > asked.first => {
            format!("this attempt began with step {began}")
        }
        _ => "the stage ended before".to_owned(),
    };
    let text = match (&state.wrong, state.recorded) {
        (Some(wrong), _) => wrong.clone(),
        (None, Some(steps)) if steps == asked => return None,
        (None, Some(steps)) => format!("only {steps} was recorded: {}", why()),
        (None, None) => format!("no step of them was recorded: {}", why()),
    };
    Some(format!("--profile-steps {asked}: {text}"))
}
