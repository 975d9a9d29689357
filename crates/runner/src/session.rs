//! A plan together with its store, sources and trainer: everything that keys are made from.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use cache::{Digest, Key, ResultRecord, Store};
use spec::plan::Part;
use spec::{Plan, Preimage, Reference, Trainer};

use crate::error::Error;
use crate::options::{Force, Options};
use crate::source::Sources;
use crate::trainer;

/// Outputs of a stage: name to artifact digest.
pub type Outputs = BTreeMap<String, Digest>;

/// A stage's key and what it was made from.
#[derive(Debug, Clone)]
pub struct Keyed {
    pub key: Key,
    pub preimage: Preimage,
    /// The text that hashes to the key.
    pub text: String,
}

/// A result of the store.
#[derive(Debug, Clone)]
pub struct Found {
    pub attempt: u32,
    pub record: ResultRecord,
    /// The key it is filed under, when `--accept-trainer` took another trainer's result.
    pub accepted: Option<Key>,
}

pub struct Session<'p> {
    pub plan: &'p Plan,
    pub options: &'p Options,
    pub store: Store,
    pub sources: Sources,
    /// Present when a stage of the plan runs the worker.
    pub worker: Option<PathBuf>,
    trainer: Trainer,
    index: HashMap<&'p str, usize>,
    /// Results by preimage without its trainer, read when `--accept-trainer` first asks.
    accepted: OnceCell<HashMap<String, (Key, u32, ResultRecord)>>,
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
        let store = Store::open(&options.store)?;
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
        Ok(Session {
            plan,
            options,
            store,
            sources,
            worker,
            trainer,
            index,
            accepted: OnceCell::new(),
        })
    }

    /// Position of a stage in the plan.
    pub fn position(&self, stage: &str) -> usize {
        self.index[stage]
    }

    /// The digest that a reference stands for, as far as it is known.
    pub fn digest_of(&self, reference: &Reference, outputs: &[Option<Outputs>]) -> Option<Digest> {
        match reference {
            Reference::Source(name) => Some(self.sources.get(name)?.digest),
            Reference::Stage { stage, output } => outputs[self.index[stage.as_str()]]
                .as_ref()?
                .get(output)
                .copied(),
        }
    }

    /// The key of stage `i`, or the references whose content is not known yet.
    pub fn key(
        &self,
        i: usize,
        outputs: &[Option<Outputs>],
    ) -> Result<Result<Keyed, Vec<String>>, Error> {
        let stage = &self.plan.order[i].stage;
        let mut unknown = Vec::new();
        let mut inputs = BTreeMap::new();
        for (name, references) in &stage.inputs {
            let mut digests = Vec::with_capacity(references.len());
            for reference in references {
                match self.digest_of(reference, outputs) {
                    Some(digest) => digests.push(digest.hex()),
                    None => unknown.push(reference.to_string()),
                }
            }
            inputs.insert(name.clone(), digests);
        }
        if !unknown.is_empty() {
            return Ok(Err(unknown));
        }
        let environment = declared(&stage.environment);
        let preimage = Preimage::new(stage.kind, &stage.with, inputs, &self.trainer, environment);
        let text = preimage.text();
        Ok(Ok(Keyed {
            key: Digest::of(text.as_bytes()),
            preimage,
            text,
        }))
    }

    /// The current result of a key; with `--accept-trainer`, else that of any trainer.
    pub fn find(&self, keyed: &Keyed) -> Result<Option<Found>, Error> {
        if let Some((attempt, record)) = self.store.current(&keyed.key)? {
            return Ok(Some(Found {
                attempt,
                record,
                accepted: None,
            }));
        }
        if !self.options.accept_trainer || keyed.preimage.trainer.is_none() {
            return Ok(None);
        }
        if self.accepted.get().is_none() {
            let mut all = HashMap::new();
            for (key, attempt, record) in self.store.results()? {
                if let Ok(preimage) = Preimage::parse(&record.preimage) {
                    all.insert(any_trainer(&preimage), (key, attempt, record));
                }
            }
            let _ = self.accepted.set(all);
        }
        let found = self
            .accepted
            .get()
            .and_then(|all| all.get(&any_trainer(&keyed.preimage)));
        Ok(found.map(|(key, attempt, record)| Found {
            attempt: *attempt,
            record: record.clone(),
            accepted: Some(*key),
        }))
    }

    /// Whether every output of a result can be served; says what is wrong with the first that cannot.
    pub fn intact(&self, record: &ResultRecord) -> Result<Result<(), String>, Error> {
        for (name, digest) in &record.outputs {
            match self.store.artifact_intact(digest)? {
                cache::Intact::Yes => {}
                cache::Intact::Missing { digest } => {
                    return Ok(Err(format!(
                        "blob {} of output '{name}' is missing",
                        digest.short()
                    )));
                }
                cache::Intact::Corrupt { digest, why } => {
                    return Ok(Err(format!(
                        "blob {} of output '{name}' is corrupt: {why}",
                        digest.short()
                    )));
                }
            }
        }
        Ok(Ok(()))
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
