//! What an attempt begins with: the checkpoint that it goes on from, the speed of its machine, and what its sources hold.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cache::{Checkpoint, Claim, Cost};
use serde_json::Value;
use spec::assertion::Steps;
use spec::{Preimage, ResumeSpec};

use super::{Runner, Start};
use crate::error::Error;
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
        let found = if self.job.start == Start::Forced {
            let from = *self.forced_from.get_or_insert(claim.attempt);
            store.newest_checkpoint_from(&claim.key, from)?
        } else {
            store.newest_checkpoint(&claim.key)?
        };
        self.continued = None;
        let may = self.job.stage.placement.checkpoint.from_shorter;
        let found = match found {
            None if may && self.job.start != Start::Forced => self.of_shorter(numerics)?,
            found => found,
        };
        let Some(checkpoint) = found else {
            return Ok(None);
        };
        let path = layout.root.join("resume");
        store.materialize(&checkpoint.manifest, &path, cache::Link::Reflink)?;
        if let Some(Value::Array(before)) = checkpoint.meta.get("numerics") {
            numerics.extend(before.iter().cloned());
        }
        let lowest = self.forced_from.unwrap_or(1);
        *steps = curves::before(&self.name(), &checkpoint, lowest, &self.tried, store);
        // a rerun pays again for what this result stands on, but not for another's
        if self.continued.is_none() {
            let (run, gpus) = (&self.shared.run, self.job.gpus.len());
            self.before = earlier::cost(&self.name(), &checkpoint, lowest, run, gpus, store);
        }
        Ok(Some(ResumeSpec {
            step: checkpoint.step,
            path,
        }))
    }

    /// The furthest checkpoint of a result that differs from this stage in having fewer steps, and in nothing else.
    /// Numerics of its steps come along.
    fn of_shorter(&mut self, numerics: &mut Vec<Value>) -> Result<Option<Checkpoint>, Error> {
        let store = &self.shared.store;
        let mine = self.job.keyed.preimage();
        let steps = |preimage: &Preimage| preimage.with["steps"].as_u64().unwrap_or(0);
        let mut best: Option<(Checkpoint, Value)> = None;
        for (key, _, record) in store.results()? {
            let Ok(mut other) = Preimage::parse(&record.preimage) else {
                continue;
            };
            if steps(&other) >= steps(&mine) {
                continue;
            }
            other.with["steps"] = mine.with["steps"].clone();
            if other != mine {
                continue;
            }
            let found = store.newest_checkpoint(&key)?;
            let found = found.map(|checkpoint| (checkpoint, record.numerics));
            best = best.into_iter().chain(found).max_by_key(|(c, _)| c.step);
        }
        if let Some((checkpoint, before)) = &best {
            let begun = |range: &&Value| range["from"].as_u64().is_none_or(|n| n < checkpoint.step);
            numerics.extend(
                before
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(begun)
                    .cloned(),
            );
            self.continued = Some((checkpoint.key, checkpoint.step));
            self.report(Report::Message {
                stage: Some(self.name()),
                level: "info".into(),
                text: format!(
                    "goes on from step {} of a shorter run (key {})",
                    checkpoint.step,
                    checkpoint.key.short()
                ),
            });
        }
        Ok(best.map(|(checkpoint, _)| checkpoint))
    }
}
