//! What an attempt begins with: the checkpoint that it goes on from, the speed of its machine, and what its sources hold.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cache::{Claim, Cost};
use serde_json::Value;
use spec::ResumeSpec;
use spec::assertion::Steps;

use super::{Runner, Start};
use crate::error::Error;
use crate::going_on::{Origin, Whose};
use crate::job::Layout;
use crate::options::Resume;
use crate::report::Report;
use crate::{calibration, content, curves, earlier, machine};

impl Runner<'_> {
    /// What the sources that it reads hold goes to the run's record, for people who compare runs.
    pub(super) fn keep_contents(&self, paths: &BTreeMap<String, Vec<PathBuf>>) {
        for (name, list) in &self.job.inputs {
            for (input, path) in list.iter().zip(paths.get(name).into_iter().flatten()) {
                let Some((source, known)) = &input.source else {
                    continue;
                };
                let (dir, store) = (&self.shared.run_dir, &self.shared.store);
                if let Err(e) = content::keep(dir, source, known, path, store) {
                    let text = format!("the rows of source '{source}' are not recorded: {e}");
                    self.warn(text);
                }
            }
        }
    }

    /// What the machine does right now on as many threads as the stage has, in GFLOP/s, where its speed may be judged:
    /// it is an assertion's unit, and none for what runs on a GPU.
    pub(super) fn calibrate(&self) -> Option<f64> {
        let stage = &self.job.stage;
        let asked = stage.assertions.iter().any(|a| a.per.is_some());
        if self.job.device != "cpu" || !(asked || stage.kind.trainer) {
            return None;
        }
        let resources = &stage.placement.resources;
        let ranks = resources.ranks.max(1) as usize;
        let threads = match resources.threads as usize {
            0 if stage.kind.trainer => machine::threads_per_rank(ranks),
            0 => 1,
            threads => threads,
        };
        Some(calibration::gflops(ranks * threads))
    }

    /// The checkpoint to continue from, on local disk. Numerics and metrics of the steps before it come along.
    pub(super) fn resume(
        &mut self,
        claim: &Claim,
        layout: &Layout,
        numerics: &mut Vec<Value>,
        steps: &mut Steps,
    ) -> Result<Option<ResumeSpec>, Error> {
        let store = &self.shared.store;
        self.before = Cost::default();
        if !self.job.stage.kind.checkpoints || self.shared.resume == Resume::Never {
            return Ok(None);
        }
        let forced = match self.job.start {
            Start::Forced => Some(*self.forced_from.get_or_insert(claim.attempt)),
            Start::First | Start::Repair(_) => None,
        };
        let job = self.job;
        self.continued = None;
        let Some(found) = Origin::of(store, &job.stage, &job.keyed, &job.kin, forced)? else {
            return Ok(None);
        };
        let checkpoint = &found.checkpoint;
        let path = layout.root.join("resume");
        store.materialize(&checkpoint.manifest, &path, cache::Link::Reflink)?;
        if let Some(Value::Array(before)) = checkpoint.meta.get("numerics") {
            numerics.extend(before.iter().cloned());
        }
        if found.whose == Whose::Own {
            let lowest = self.forced_from.unwrap_or(1);
            *steps = curves::before(&self.name(), checkpoint, lowest, &self.tried, store);
            // a rerun pays again for what this result stands on, but not for another's
            let (run, gpus) = (&self.shared.run, self.job.gpus.len());
            self.before = earlier::cost(&self.name(), checkpoint, lowest, run, gpus, store);
        } else {
            let (ranges, before) = found.before(&self.name(), store)?;
            numerics.extend(ranges);
            *steps = before;
            let goes_on = found.goes_on();
            self.report(Report::Message {
                stage: Some(self.name()),
                level: "info".into(),
                text: goes_on.to_string(),
            });
            self.continued = Some(goes_on);
        }
        Ok(Some(ResumeSpec {
            step: checkpoint.step,
            path,
        }))
    }
}
