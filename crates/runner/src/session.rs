//! A plan together with its store, sources and trainer: everything that keys are made from.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use cache::{Brief, Digest, Ending, Key, Store, View};
use spec::diagnostic::suggestion;
use spec::parts::in_parts;
use spec::plan::Part;
use spec::{
    BestStep, Candidate, Choice, HashedTrainer, PartOf, Plan, Preimage, Reference, Stage, Trainer,
    Until,
};

use crate::curves;
use crate::error::Error;
use crate::going_on::Kin;
use crate::options::{Force, Options};
use crate::source::Sources;
use crate::trainer;

/// Outputs of a stage: name to artifact digest.
pub type Outputs = BTreeMap<String, Digest>;

/// Results of the plan's stages, by position, as far as they are known.
pub type Made = [Option<Arc<Brief>>];

/// What a choice among cells comes to.
pub enum Chosen<'c> {
    /// Some of their metrics are not known yet.
    Open,
    /// None of them has the metric.
    NoMetric,
    /// The cell, and its metric.
    Cell(&'c Candidate, f64),
}

/// What a stage's best step comes to.
pub enum BestFound {
    /// The stage has no result yet.
    Open,
    /// There is no best step: why.
    Never(String),
    At {
        step: u64,
        /// None where it is the last one.
        until: Option<u64>,
    },
}

/// A result, and what its best step is asked by.
type AskedBest = (Key, u32, BestStep);
/// Both steps, or why there are none.
type BestAndLast = Result<(u64, u64), String>;

/// A stage's key and what it was made from.
#[derive(Debug, Clone)]
pub struct Keyed {
    pub key: Key,
    /// The preimage's text, which hashes to the key.
    pub text: String,
}

impl Keyed {
    pub fn preimage(&self) -> Preimage {
        Preimage::parse(&self.text).expect("a preimage's own text reads back")
    }
}

/// A result of the store.
#[derive(Debug, Clone)]
pub struct Found {
    pub brief: Arc<Brief>,
    /// The key it is filed under, when `--accept-trainer` took another trainer's result.
    pub accepted: Option<Key>,
}

pub struct Session<'p> {
    pub plan: &'p Plan,
    pub options: &'p Options,
    pub store: Store,
    /// The store as this run asks it.
    pub view: View,
    pub sources: Sources,
    /// Present when a stage of the plan runs the worker.
    pub worker: Option<PathBuf>,
    trainer: HashedTrainer,
    index: HashMap<&'p str, usize>,
    /// Results by preimage without its trainer, read when `--accept-trainer` first asks.
    accepted: OnceLock<HashMap<String, (Key, Arc<Brief>)>>,
    /// Best and last step of results, or why there is none.
    bests: Mutex<HashMap<AskedBest, BestAndLast>>,
}

impl<'p> Session<'p> {
    /// Opens the store, looks at the sources (without network) and asks the worker who it is.
    pub fn open(plan: &'p Plan, options: &'p Options) -> Result<Session<'p>, Error> {
        let index: HashMap<&str, usize> = plan
            .order
            .iter()
            .enumerate()
            .map(|(i, s)| (s.stage.name.as_str(), i))
            .collect();
        if let Force::Stages(names) = &options.force
            && let Some(unknown) = names.iter().find(|n| !index.contains_key(n.as_str()))
        {
            let known: Vec<&str> = plan.order.iter().map(|s| s.stage.name.as_str()).collect();
            return Err(Error::Usage {
                message: format!("--force names stage '{unknown}', which the recipe does not have"),
                help: Some(format!("its stages are {}", known.join(", "))),
            });
        }
        let (at, remote) = (&options.store, options.remote.as_deref());
        let mut store = Store::open_with(at, remote, options.push)?;
        if let Some(ttl) = options.claim_ttl {
            store.set_ttl(ttl);
        }
        let taken = || plan.order.iter().filter(|s| s.part != Part::Out);
        let mut names: Vec<&str> = Vec::new();
        for reference in taken().flat_map(|s| s.stage.inputs.values().flatten()) {
            if let Reference::Source(name) = reference
                && !names.contains(&name.as_str())
            {
                names.push(name);
            }
        }
        let sources = Sources::look(&plan.recipe, names.into_iter(), &store, options.locked)?;
        let mut trainer = Trainer {
            version: String::new(),
            libtorch: String::new(),
            sources: String::new(),
        };
        let mut worker = None;
        if taken().any(|s| s.stage.kind.trainer) {
            let path = trainer::worker(options)?;
            trainer = trainer::identity(&path, &store)?;
            worker = Some(path);
        }
        let view = store.view(&plan.recipe.name, plan.order.len());
        Ok(Session {
            plan,
            options,
            store,
            view,
            sources,
            worker,
            trainer: trainer.hashed(),
            index,
            accepted: OnceLock::new(),
            bests: Mutex::default(),
        })
    }

    /// Position of a stage in the plan.
    pub fn position(&self, stage: &str) -> usize {
        self.index[stage]
    }

    /// Whether the options ask for stage `i` to be computed in any case.
    pub fn forced(&self, i: usize) -> bool {
        let planned = &self.plan.order[i];
        planned.part == Part::Run
            && match &self.options.force {
                Force::None => false,
                Force::All => true,
                Force::Stages(names) => names.contains(&planned.stage.name),
            }
    }

    /// The digest that a reference stands for, as far as it is known.
    pub fn digest_of(&self, reference: &Reference, made: &Made) -> Option<Digest> {
        let output = |stage: &str, output: &str| {
            let brief = made[self.index[stage]].as_ref()?;
            brief.outputs.get(output).copied()
        };
        match reference {
            Reference::Source(name) => Some(self.sources.get(name)?.digest),
            Reference::Stage {
                stage,
                output: name,
            } => output(stage, name),
            Reference::Choice(choice) => match self.choose(choice, made) {
                Chosen::Cell(candidate, _) => output(&candidate.stage, &choice.output),
                Chosen::Open | Chosen::NoMetric => None,
            },
        }
    }

    /// What a choice comes to, which is open until every cell's result is known: one that is missing could be the best.
    pub fn choose<'c>(&self, choice: &'c Choice, made: &Made) -> Chosen<'c> {
        let result = |stage: &str| made[self.index[stage]].as_deref();
        let known = |c: &Candidate| result(&c.stage).is_some() && result(&c.judge).is_some();
        if !choice.candidates.iter().all(known) {
            return Chosen::Open;
        }
        let metric = |judge: &str| result(judge)?.metrics.get(&choice.metric)?.as_f64();
        match choice.choose(metric) {
            Some((candidate, value)) => Chosen::Cell(candidate, value),
            None => Chosen::NoMetric,
        }
    }

    /// Where a part that ends with the best step of a stage ends.
    pub fn best_step(&self, part: &PartOf, by: &BestStep, made: &Made) -> BestFound {
        let whole = self.index[part.stage.as_str()];
        let (Some(brief), Ok(keyed)) = (&made[whole], self.key(whole, made)) else {
            return BestFound::Open;
        };
        let found = self.find(&[&keyed]).ok().and_then(|mut found| found.pop()?);
        let key = found.and_then(|found| found.accepted).unwrap_or(keyed.key);
        let asked = (key, brief.attempt, by.clone());
        let mut known = self.bests.lock().unwrap_or_else(|e| e.into_inner());
        let looked = known.entry(asked).or_insert_with(|| {
            let steps = match self.store.ending(&key, brief.attempt) {
                Ok(Some(Ending::Result(record))) => curves::of(&record, &self.store)?,
                _ => return Err("its result cannot be read".to_owned()),
            };
            let steps = steps.unwrap_or_default();
            let names = steps.rows.values().flat_map(|row| row.keys());
            let names: std::collections::BTreeSet<&String> = names.collect();
            let help = || suggestion(&by.metric, names.iter().map(|name| name.as_str()));
            let none = || format!("no step has the metric '{}'; {}", by.metric, help());
            by.of(&steps).ok_or_else(none)
        });
        match looked {
            Ok((best, last)) => BestFound::At {
                step: *best,
                until: (best < last).then_some(*best),
            },
            Err(why) => BestFound::Never(format!("{}: {why}", part.stage)),
        }
    }

    /// A stage as it runs; what is not known where it ends with a step that is not known yet.
    pub fn stage(&self, i: usize, made: &Made) -> Result<Arc<Stage>, String> {
        let stage = &self.plan.order[i].stage;
        let Some(part) = &stage.part_of else {
            return Ok(stage.clone());
        };
        let Until::Best(by) = &part.until else {
            return Ok(stage.clone());
        };
        match self.best_step(part, by, made) {
            BestFound::At { until, .. } => Ok(Arc::new(stage.ending(until))),
            BestFound::Open => Err(format!("the steps of {}", part.stage)),
            BestFound::Never(why) => Err(why),
        }
    }

    /// The other stages of the same training with their keys, as far as these are known.
    pub fn kin(&self, i: usize, made: &Made) -> Vec<Kin> {
        let kin = self.plan.order[i].kin.iter();
        let keyed = kin.filter_map(|j| Some((*j, self.key(*j, made).ok()?.key)));
        keyed
            .map(|(j, key)| (self.plan.order[j].stage.name.clone(), key))
            .collect()
    }

    /// Whether stage `i`, as far as is known, reads the artifacts of the stage at `upstream`: of the cells that it may
    /// choose from only the chosen one's, and of those that judge them none.
    pub fn reads(&self, i: usize, upstream: usize, made: &Made) -> bool {
        let name = self.plan.order[upstream].stage.name.as_str();
        let references = self.plan.order[i].stage.inputs.values().flatten();
        references.into_iter().any(|reference| match reference {
            Reference::Source(_) => false,
            Reference::Stage { stage, .. } => stage == name,
            Reference::Choice(choice) => match self.choose(choice, made) {
                Chosen::Cell(candidate, _) => candidate.stage == name,
                Chosen::Open | Chosen::NoMetric => false,
            },
        })
    }

    /// Metrics that results of the stages which judge a choice have.
    pub fn metrics_to_choose_by(&self, choice: &Choice, made: &Made) -> Vec<String> {
        let judges = choice.candidates.iter().map(|c| c.judge.as_str());
        let results = judges.filter_map(|judge| made[self.index[judge]].as_deref());
        let names: std::collections::BTreeSet<&String> =
            results.flat_map(|brief| brief.metrics.keys()).collect();
        names.into_iter().cloned().collect()
    }

    /// The keys of stages, each or the references whose content is not known yet.
    pub fn keys(&self, stages: &[usize], made: &Made) -> Vec<Result<Keyed, Vec<String>>> {
        let keys = |part: &[usize]| -> Vec<_> {
            let each = part.iter().map(|i| self.key(*i, made));
            each.collect()
        };
        in_parts(stages, keys).into_iter().flatten().collect()
    }

    fn key(&self, i: usize, made: &Made) -> Result<Keyed, Vec<String>> {
        let stage = self.stage(i, made).map_err(|what| vec![what])?;
        let mut unknown = Vec::new();
        let mut inputs = BTreeMap::new();
        for (name, references) in &stage.inputs {
            let mut digests = Vec::with_capacity(references.len());
            for reference in references {
                match self.digest_of(reference, made) {
                    Some(digest) => digests.push(digest.hex()),
                    None => unknown.push(reference.to_string()),
                }
            }
            inputs.insert(name.clone(), digests);
        }
        if !unknown.is_empty() {
            return Err(unknown);
        }
        let environment = declared(&stage.environment);
        let text = Preimage::text_of(
            stage.kind,
            &stage.with,
            &inputs,
            &self.trainer,
            &environment,
        );
        let key = Digest::of(text.as_bytes());
        Ok(Keyed { key, text })
    }

    /// The current results of keys; with `--accept-trainer`, else those of any trainer.
    pub fn find(&self, keyed: &[&Keyed]) -> Result<Vec<Option<Found>>, Error> {
        let keys: Vec<Key> = keyed.iter().map(|k| k.key).collect();
        let briefs = self.view.current(&keys)?;
        let found = keyed.iter().zip(briefs).map(|(keyed, brief)| match brief {
            Some(brief) => Ok(Some(Found {
                brief,
                accepted: None,
            })),
            None => self.accepted(keyed),
        });
        found.collect()
    }

    /// Another trainer's result, if those are accepted.
    fn accepted(&self, keyed: &Keyed) -> Result<Option<Found>, Error> {
        if !self.options.accept_trainer {
            return Ok(None);
        }
        let wanted = keyed.preimage();
        if wanted.trainer.is_none() {
            return Ok(None);
        }
        if self.accepted.get().is_none() {
            let mut all = HashMap::new();
            for (key, attempt, record) in self.store.results()? {
                if let Ok(preimage) = Preimage::parse(&record.preimage) {
                    let brief = Arc::new(Brief::of(attempt, &record));
                    all.insert(any_trainer(&preimage), (key, brief));
                }
            }
            let _ = self.accepted.set(all);
        }
        let found = self
            .accepted
            .get()
            .and_then(|all| all.get(&any_trainer(&wanted)));
        Ok(found.map(|(key, brief)| Found {
            brief: brief.clone(),
            accepted: Some(*key),
        }))
    }

    /// Whether every output of each result can be served; says what is wrong with the first that cannot.
    pub fn intact(&self, results: &[&Brief]) -> Result<Vec<Result<(), String>>, Error> {
        let outputs = || results.iter().flat_map(|brief| &brief.outputs);
        let artifacts: Vec<Digest> = outputs().map(|(_, digest)| *digest).collect();
        let mut looks = self.view.intact(&artifacts)?.into_iter();
        let first_bad = |brief: &&Brief| {
            // all looks of this result are taken, also after a bad one
            let looks: Vec<_> = brief.outputs.keys().zip(looks.by_ref()).collect();
            for (name, look) in looks {
                let (digest, what) = match look {
                    cache::Intact::Yes => continue,
                    cache::Intact::Missing { digest } => (digest, "missing".to_owned()),
                    cache::Intact::Corrupt { digest, why } => (digest, format!("corrupt: {why}")),
                };
                let blob = digest.short();
                return Err(format!("blob {blob} of output '{name}' is {what}"));
            }
            Ok(())
        };
        Ok(results.iter().map(first_bad).collect())
    }
}

/// Values of the declared environment variables; what is not set is left out.
pub fn declared(names: &[String]) -> BTreeMap<String, String> {
    names
        .iter()
        .filter_map(|n| Some((n.clone(), std::env::var(n).ok()?)))
        .collect()
}

fn any_trainer(preimage: &Preimage) -> String {
    Preimage {
        trainer: None,
        ..preimage.clone()
    }
    .text()
}
