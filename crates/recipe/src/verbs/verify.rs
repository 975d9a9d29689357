//! `recipe verify RECIPE STAGE`: the stage computed again from the same inputs, in a store of its own that goes
//! afterwards; its bits held against those in the store, tensor by tensor.
//!
//! Bits are promised within equal numerics only. Where the stored result was computed under others (another machine's, or
//! another mesh), or there is none, the stage is computed once more to compare with.

mod compare;

use crate::args::{ComputeArgs, SelectArgs, VerifyArgs};
use crate::fail::Fail;
use crate::progress::Watch;
use crate::{output, project};
use cache::{ResultRecord, Store};
use compare::Check;
use runner::{Report, Reporter, State};
use serde_json::{Value, json};
use spec::{Plan, Reference};
use std::path::Path;
use std::sync::Arc;

pub fn run(mut args: VerifyArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    args.stage = project::one_stage(&recipe, &args.stage)?;
    let select = SelectArgs {
        only: vec![args.stage.clone()],
        until: Vec::new(),
        from: Vec::new(),
        skip: Vec::new(),
    };
    let plan = Plan::new(recipe, &project::selection(Vec::new(), select)?)?;
    let verify = Verify::new(&args, plan)?;
    let mut checks = Vec::new();
    for (how, asked) in [("rerun", args.rerun), ("resume", args.resume)] {
        if !asked {
            continue;
        }
        match verify.check(how)? {
            Ok(check) => checks.push(check),
            Err(code) => return Ok(code),
        }
    }
    if args.json {
        let all: Vec<Value> = checks.iter().map(Check::as_json).collect();
        output::json(&json!({ "version": 1, "stage": args.stage, "checks": all }));
    } else {
        for check in &checks {
            output::line(check.as_text(&args.stage));
        }
    }
    Ok(if checks.iter().all(Check::same) { 0 } else { 3 })
}

struct Verify<'a> {
    args: &'a VerifyArgs,
    plan: Plan,
    url: String,
    main: Store,
    stored: Option<ResultRecord>,
}

/// A result and the store that holds it.
struct Made {
    record: ResultRecord,
    store: Store,
    /// Holds the store where it is a scratch one.
    _dir: Option<tempfile::TempDir>,
}

/// Hears whether the stage went on from a checkpoint.
struct Heard {
    watch: Watch,
    resumed: bool,
}

impl Reporter for Heard {
    fn report(&mut self, event: &Report) {
        self.resumed |= matches!(event, Report::Resumed { .. });
        self.watch.report(event);
    }
}

impl<'a> Verify<'a> {
    fn new(args: &'a VerifyArgs, mut plan: Plan) -> Result<Self, Fail> {
        let url = project::store(&args.store, project::folder(&args.recipe.recipe));
        let remote = match args.offline {
            true => None,
            false => project::remote(&args.remote, &url),
        };
        let main = Store::open_with(&url, remote.as_deref(), false)?;
        for planned in &mut plan.order {
            if !planned.stage.assertions.is_empty() {
                // the bits are asked about, nothing else
                Arc::make_mut(&mut planned.stage).assertions.clear();
            }
        }
        let mut options = runner::Options::new(&url);
        options.remote = remote;
        options.offline = args.offline;
        let resolved = runner::resolve(&plan, &options)?;
        let mut stored = None;
        for found in &resolved {
            let mine = found.stage == args.stage;
            match &found.state {
                State::Reuse(of) if mine => {
                    let key = of.accepted.or(found.key);
                    if let Some(key) = key
                        && let Some(cache::Ending::Result(record)) =
                            main.ending(&key, of.brief.attempt)?
                    {
                        stored = Some(*record);
                    }
                }
                State::Missing => {
                    return Err(Fail::not_stored(
                        format!("the store has no result of stage '{}'", found.stage),
                        format!("'{}' reads it: compute it with `recipe run`", args.stage),
                    ));
                }
                _ => {}
            }
        }
        let verify = Verify {
            args,
            plan,
            url,
            main,
            stored,
        };
        verify.fetch_inputs(&resolved)?;
        Ok(verify)
    }

    fn stage(&self) -> &spec::Stage {
        let planned = self.plan.get(&self.args.stage);
        &planned.expect("one_stage() has named it").stage
    }

    /// Brings what the stage reads into the main store, from where the scratch one takes it.
    fn fetch_inputs(&self, resolved: &[runner::Resolved]) -> Result<(), Fail> {
        let references = self.stage().inputs.values().flatten();
        let read = references.flat_map(|reference| match reference {
            Reference::Source(_) => Vec::new(),
            Reference::Stage { stage, output } => vec![(stage, output)],
            // which one is taken is for the run to say
            Reference::Choice(choice) => {
                let cells = choice.candidates.iter();
                cells.map(|c| (&c.stage, &choice.output)).collect()
            }
        });
        for (stage, output) in read {
            let found = resolved.iter().find(|r| r.stage == *stage);
            if let Some(State::Reuse(found)) = found.map(|r| &r.state)
                && let Some(artifact) = found.brief.outputs.get(output)
                && self.main.local().is_some()
            {
                self.main.pull(artifact)?;
            }
        }
        Ok(())
    }

    /// Computes the stage again and compares; the exit code where it came to no result.
    fn check(&self, how: &'static str) -> Result<Result<Check, u8>, Fail> {
        if how == "resume" && !self.stage().kind.checkpoints {
            return Err(Fail::usage(
                format!(
                    "stage '{}' cannot be resumed: kind '{}' takes no checkpoints",
                    self.args.stage,
                    self.stage().kind.name
                ),
                "use --rerun; only sft, dpo and grpo take checkpoints",
            ));
        }
        let again = match self.compute(how == "resume")? {
            Ok(again) => again,
            Err(code) => return Ok(Err(code)),
        };
        let comparable = |stored: &&ResultRecord| {
            let (a, b) = (&stored.numerics, &again.record.numerics);
            spec::assertion::numerics_apart(a, b).is_none()
        };
        let (before, reference) = match self.stored.as_ref().filter(comparable) {
            Some(stored) => {
                let made = Made {
                    record: stored.clone(),
                    store: self.main.clone(),
                    _dir: None,
                };
                (made, "the result in the store")
            }
            None => match self.compute(false)? {
                Ok(made) => (made, "another run on this machine"),
                Err(code) => return Ok(Err(code)),
            },
        };
        Ok(Ok(Check::of(how, reference, &before, &again)?))
    }

    /// The stage computed in a scratch store behind which the main one lies.
    fn compute(&self, interrupt: bool) -> Result<Result<Made, u8>, Fail> {
        // beside the store, so that files need not be copied where the file system can share them
        let beside = self.main.local().and_then(Path::parent);
        let beside = beside.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = tempfile::Builder::new()
            .prefix(".recipe-verify-")
            .tempdir_in(&beside)
            .map_err(|e| Fail::io("make a folder in", &beside, &e))?;
        let mut plan = self.plan.clone();
        let compute = ComputeArgs {
            force: vec![self.args.stage.clone()],
            device: self.args.device,
            locked: false,
            offline: self.args.offline,
            accept_trainer: false,
        };
        let at = dir.path().display().to_string();
        let mut options = project::options(at, compute, &plan)?;
        options.remote = Some(self.url.clone());
        options.interrupt = interrupt;
        if interrupt {
            self.checkpoint_midway(&mut plan);
        }
        let mut heard = Heard {
            watch: Watch::new(&plan, None)?,
            resumed: false,
        };
        let outcome = runner::run(&plan, &options, &mut heard)?;
        let found = outcome.stages.iter().find(|s| s.stage == self.args.stage);
        let named = found.and_then(|s| Some((s.key.as_deref()?.parse().ok()?, s.attempt?)));
        let store = Store::open_with(&options.store, options.remote.as_deref(), false)?;
        let record = match named.filter(|_| outcome.exit_code == 0) {
            Some((key, attempt)) => match store.ending(&key, attempt)? {
                Some(cache::Ending::Result(record)) => Some(*record),
                _ => None,
            },
            None => None,
        };
        let Some(record) = record else {
            // what was wrong has been told
            return Ok(Err(outcome.exit_code.max(1)));
        };
        if interrupt && !heard.resumed {
            return Err(Fail::usage(
                format!(
                    "stage '{}' ended before it took a checkpoint",
                    self.args.stage
                ),
                "use --rerun, or set `checkpoint = { every = 1 }`",
            ));
        }
        Ok(Ok(Made {
            record,
            store,
            _dir: Some(dir),
        }))
    }

    /// Sees to a checkpoint before the stage's end, where the recipe's own would come too late.
    fn checkpoint_midway(&self, plan: &mut Plan) {
        let of_stored = |record: &ResultRecord| runner::steps_of(record, &self.main).ok()??.planned;
        let planned = self.stored.as_ref().and_then(of_stored);
        let planned = planned.or_else(|| self.stage().with.get("steps")?.as_u64());
        let mine = |p: &&mut spec::plan::PlannedStage| p.stage.name == self.args.stage;
        if let Some(planned_stage) = plan.order.iter_mut().find(mine) {
            let checkpoint = &mut Arc::make_mut(&mut planned_stage.stage).placement.checkpoint;
            let late = planned.is_none_or(|steps| checkpoint.every >= steps);
            if checkpoint.every == 0 || late {
                checkpoint.every = planned.map_or(1, |steps| (steps / 2).max(1));
            }
        }
    }
}
