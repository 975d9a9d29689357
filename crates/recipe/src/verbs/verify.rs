//! `recipe verify RECIPE STAGE`: the stage computed again from the same inputs, in a store of its own that goes
//! afterwards; its bits held against those in the store, tensor by tensor.
//!
//! Bits are promised within equal numerics only. Where the stored result was computed under others (another machine's, or
//! another mesh), or there is none, the stage is computed once more to compare with.

use crate::args::{ComputeArgs, SelectArgs, VerifyArgs};
use crate::fail::Fail;
use crate::past::of_mathematics;
use crate::progress::Watch;
use crate::tensors::{Differs, first_apart};
use crate::{format, output, project};
use cache::{Digest, Entry, Manifest, ResultRecord, Store};
use runner::{Report, Reporter, State};
use serde_json::{Value, json};
use spec::{Plan, Reference};
use std::path::Path;
use std::sync::Arc;

pub fn run(args: VerifyArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
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

/// What became of one comparison.
struct Check {
    how: &'static str,
    /// What it was compared with.
    reference: &'static str,
    outputs: Vec<Output>,
    /// The first step whose metrics differ.
    step: Option<Apart>,
}

struct Output {
    name: String,
    /// The first file that differs, and what of it.
    file: Option<(String, Option<Differs>)>,
}

struct Apart {
    step: u64,
    metric: String,
    before: Option<f64>,
    now: Option<f64>,
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
        &planned.expect("the selection was made with it").stage
    }

    /// Brings what the stage reads into the main store, from where the scratch one takes it.
    fn fetch_inputs(&self, resolved: &[runner::Resolved]) -> Result<(), Fail> {
        for reference in self.stage().inputs.values().flatten() {
            let Reference::Stage { stage, output } = reference else {
                continue;
            };
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
        Ok(Ok(Check {
            how,
            reference,
            outputs: outputs(&before, &again)?,
            step: step(&before, &again)?,
        }))
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

fn outputs(before: &Made, again: &Made) -> Result<Vec<Output>, Fail> {
    let mut all = Vec::new();
    for (name, digest) in &again.record.outputs {
        let file = match before.record.outputs.get(name) {
            Some(was) if was == digest => None,
            Some(was) => Some(first_file((before, was), (again, digest))?),
            None => Some((format!("all of output '{name}'"), None)),
        };
        all.push(Output {
            name: name.clone(),
            file,
        });
    }
    Ok(all)
}

/// The first file of two artifacts that differs, and the first tensor of it where it has any.
fn first_file(
    (before, was): (&Made, &Digest),
    (again, is): (&Made, &Digest),
) -> Result<(String, Option<Differs>), Fail> {
    let (a, b) = (before.store.manifest(was)?, again.store.manifest(is)?);
    let of = |manifest: &Manifest, path: &str| -> Option<Entry> {
        manifest.files.iter().find(|f| f.path == path).cloned()
    };
    let mut paths: Vec<&String> = a.files.iter().chain(&b.files).map(|f| &f.path).collect();
    paths.sort();
    paths.dedup();
    let differs = |path: &&&String| of(&a, path) != of(&b, path);
    let Some(path) = paths.iter().find(differs) else {
        return Ok(("its list of files".to_owned(), None));
    };
    let (Some(left), Some(right)) = (of(&a, path), of(&b, path)) else {
        return Ok((format!("{path}, which only one of them has"), None));
    };
    if !path.ends_with(".safetensors") || left.blob == right.blob {
        return Ok(((*path).clone(), None));
    }
    let dir =
        tempfile::tempdir().map_err(|e| Fail::io("make a folder in", Path::new("/tmp"), &e))?;
    let at = [dir.path().join("a"), dir.path().join("b")];
    before.store.materialize_file(&left, &at[0])?;
    again.store.materialize_file(&right, &at[1])?;
    let tensor = first_apart(&at[0], &at[1]).map_err(|why| Fail::Other {
        code: spec::codes::INTEGRITY,
        exit: 5,
        message: format!("{path}: {why}"),
        help: String::new(),
    })?;
    Ok(((*path).clone(), tensor))
}

/// The first step whose metrics differ, those of time left aside.
fn step(before: &Made, again: &Made) -> Result<Option<Apart>, Fail> {
    let steps = |made: &Made| {
        runner::steps_of(&made.record, &made.store)
            .map(Option::unwrap_or_default)
            .map_err(|why| Fail::not_stored(why, "compute the stage again with --force"))
    };
    let (a, b) = (steps(before)?, steps(again)?);
    let bits = |x: Option<f64>| x.map(|x| if x.is_nan() { u64::MAX } else { x.to_bits() });
    for (step, now) in &b.rows {
        let Some(was) = a.rows.get(step) else {
            continue;
        };
        let names = now
            .keys()
            .chain(was.keys())
            .filter(|name| of_mathematics(name));
        for metric in names {
            let (x, y) = (was.get(metric).copied(), now.get(metric).copied());
            if bits(x) != bits(y) {
                return Ok(Some(Apart {
                    step: *step,
                    metric: metric.clone(),
                    before: x,
                    now: y,
                }));
            }
        }
    }
    Ok(None)
}

impl Check {
    fn same(&self) -> bool {
        self.outputs.iter().all(|output| output.file.is_none())
    }

    fn as_text(&self, stage: &str) -> String {
        let made = match self.how {
            "resume" => "killed after a checkpoint and resumed",
            _ => "computed again",
        };
        let verdict = if self.same() {
            "the same bits as"
        } else {
            "NOT the bits of"
        };
        let mut lines = vec![format!("{stage}, {made}: {verdict} {}", self.reference)];
        for output in &self.outputs {
            lines.push(match &output.file {
                None => format!("  {}: equal", output.name),
                Some((file, None)) => format!("  {}: {file} differs", output.name),
                Some((file, Some(tensor))) => {
                    format!("  {}: {file} differs, {}", output.name, describe(tensor))
                }
            });
        }
        match &self.step {
            Some(apart) => {
                let shown =
                    |x: Option<f64>| x.map_or_else(|| "nothing".to_owned(), |x| x.to_string());
                lines.push(format!(
                    "  metrics first differ at step {}: {} {} -> {}",
                    apart.step,
                    apart.metric,
                    shown(apart.before),
                    shown(apart.now)
                ));
            }
            None if !self.same() => {
                lines.push(
                    "  the metrics of all steps are equal: it differs after the last".to_owned(),
                );
            }
            None => {}
        }
        lines.join("\n")
    }

    fn as_json(&self) -> Value {
        let outputs: Vec<Value> = self
            .outputs
            .iter()
            .map(|output| {
                let tensor = output.file.as_ref().and_then(|(_, tensor)| tensor.as_ref());
                json!({
                    "output": output.name,
                    "same": output.file.is_none(),
                    "file": output.file.as_ref().map(|(file, _)| file),
                    "tensor": tensor.map(|t| &t.name),
                    "dtype": tensor.map(|t| &t.dtype),
                    "shape": tensor.map(|t| &t.shape),
                    "unequal": tensor.map(|t| t.unequal),
                    "greatest": tensor.and_then(|t| t.greatest),
                    "tensors": tensor.map(|t| t.tensors),
                })
            })
            .collect();
        let step = self.step.as_ref().map(|apart| {
            json!({
                "step": apart.step, "metric": apart.metric,
                "before": apart.before, "now": apart.now,
            })
        });
        json!({
            "how": self.how, "same": self.same(), "reference": self.reference,
            "outputs": outputs, "step": step,
        })
    }
}

fn describe(tensor: &Differs) -> String {
    let form = format!("{} {:?}", tensor.dtype, tensor.shape);
    let what = match (&tensor.form, tensor.greatest) {
        (Some(form), _) => form.clone(),
        (None, Some(greatest)) => {
            format!(
                "{} elements, by at most {}",
                tensor.unequal,
                format::number(greatest)
            )
        }
        (None, None) => format!("{} bytes", tensor.unequal),
    };
    let more = match tensor.tensors {
        1 => String::new(),
        n => format!("; {} more tensors differ", n - 1),
    };
    format!("first in tensor {} ({form}): {what}{more}", tensor.name)
}
