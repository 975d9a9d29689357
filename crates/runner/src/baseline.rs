//! Baselines: what a run came to, kept under a pin, for later runs to be held against.
//!
//! A pin's history is a list of moves (`cache::Move`), each with an artifact of its own:
//!
//! | file | what |
//! |---|---|
//! | `baseline.json` | the run, and of each stage its key, outputs, metrics, numerics and calibration |
//! | `steps-<n>.jsonl` | the metrics of a stage's steps |

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use cache::{Digest, Entry, Ingest, Key, Manifest, Move, ResultRecord, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use spec::assertion::{Evidence, Steps};

use crate::clock;
use crate::curves;
use crate::error::Error;

const VERSION: u32 = 1;
const FILE: &str = "baseline.json";

/// What a run came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Baseline {
    version: u32,
    pub run: String,
    pub recipe: String,
    /// By the stage's name.
    pub stages: BTreeMap<String, Kept>,
}

/// What is kept of a stage's result: all that an assertion may ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// What it is a replica of; its own name where it is none.
    group: String,
    key: Key,
    /// Artifacts' digests (hex) by output.
    pub outputs: BTreeMap<String, String>,
    pub metrics: Map<String, Value>,
    pub numerics: Value,
    /// GFLOP/s of the machine that computed it.
    calibration: Option<f64>,
    device: String,
    /// The file of its steps' metrics.
    steps: Option<String>,
    /// The same, read.
    #[serde(skip)]
    curves: Option<Result<Steps, String>>,
}

impl Kept {
    /// What a result has to show.
    pub fn of(group: String, key: Key, record: ResultRecord, store: &Store) -> Kept {
        let curves = curves::of(&record, store).transpose();
        let said = |name: &str| record.provenance.get(name);
        Kept {
            group,
            key,
            calibration: said("calibration").and_then(Value::as_f64),
            device: said("device")
                .and_then(Value::as_str)
                .unwrap_or("cpu")
                .to_owned(),
            outputs: record
                .outputs
                .iter()
                .map(|(name, d)| (name.clone(), d.hex()))
                .collect(),
            metrics: record.metrics,
            numerics: record.numerics,
            steps: None,
            curves,
        }
    }

    /// The same, for an assertion.
    pub fn evidence(&self) -> Evidence<'_> {
        Evidence {
            summary: &self.metrics,
            steps: match &self.curves {
                None => Ok(None),
                Some(Ok(steps)) => Ok(Some(steps)),
                Some(Err(why)) => Err(why),
            },
            calibration: match self.calibration {
                Some(gflops) => Ok(gflops),
                None if self.device == "cpu" => {
                    Err("its machine was not calibrated; `--force` computes it with a calibration")
                }
                None => Err("it was not computed on the CPU, of which the calibration is"),
            },
        }
    }
}

/// What [`accept`] needs of a run's record.
#[derive(Deserialize)]
struct Record {
    recipe: String,
    exit_code: Option<u8>,
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Stage {
    stage: String,
    key: Option<Key>,
    attempt: Option<u32>,
    #[serde(default)]
    outputs: BTreeMap<String, Digest>,
    #[serde(default)]
    cell: Option<Cell>,
}

#[derive(Deserialize)]
struct Cell {
    replica_of: Option<String>,
}

/// Moves a pin to a run that has ended well, or whose assertions alone do not hold.
///
/// # Errors
/// When the run did not end so, or one of its results is gone.
pub fn accept(store: &Store, run: &str, name: &str, who: &str, why: &str) -> Result<Move, Error> {
    let refuse = |message: String, help: &str| Error::Usage {
        message,
        help: Some(help.to_owned()),
    };
    let bytes = store.get_run(run, "record.json")?.unwrap_or_default();
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| {
        refuse(
            format!("the record of run '{run}' cannot be read: {e}"),
            "accept a run that `recipe runs` lists",
        )
    })?;
    match record.exit_code {
        Some(0 | 3) => {}
        Some(code) => {
            return Err(refuse(
                format!("run '{run}' ended with exit code {code}"),
                "accept a run whose stages all have a result",
            ));
        }
        None => {
            return Err(refuse(
                format!("run '{run}' has not ended"),
                "wait for its end; a run that was killed cannot be accepted",
            ));
        }
    }
    // until the move refers to it, a collection would take what is put here
    let _keep = store.keep_blobs()?;
    let mut stages = BTreeMap::new();
    let (mut files, mut keep) = (Vec::new(), Vec::new());
    for stage in record.stages {
        let (Some(key), Some(attempt)) = (stage.key, stage.attempt) else {
            continue;
        };
        if stage.outputs.is_empty() {
            continue;
        }
        let Some(cache::Ending::Result(result)) = store.ending(&key, attempt)? else {
            return Err(refuse(
                format!(
                    "the result of stage '{}' is gone from the store",
                    stage.stage
                ),
                "run the recipe again, and accept that run",
            ));
        };
        let replica_of = stage.cell.and_then(|cell| cell.replica_of);
        let group = replica_of.unwrap_or_else(|| stage.stage.clone());
        let steps = result.steps;
        let mut kept = Kept::of(group, key, *result, store);
        if let Some(artifact) = steps
            && let Some(file) = store.manifest(&artifact)?.files.first()
        {
            let path = format!("steps-{}.jsonl", files.len());
            kept.steps = Some(path.clone());
            files.push(Entry {
                path,
                ..file.clone()
            });
        }
        keep.extend(stage.outputs.into_values());
        stages.insert(stage.stage, kept);
    }
    if stages.is_empty() {
        return Err(refuse(
            format!("run '{run}' has no results"),
            "accept a run whose stages have a result",
        ));
    }
    let baseline = Baseline {
        version: VERSION,
        run: run.to_owned(),
        recipe: record.recipe,
        stages,
    };
    let artifact = put(&baseline, files, store)?;
    Ok(store.move_pin(Move {
        name: name.to_owned(),
        number: 0,
        artifact,
        keep,
        run: run.to_owned(),
        who: who.to_owned(),
        when: clock::now(),
        why: why.to_owned(),
    })?)
}

fn put(baseline: &Baseline, mut files: Vec<Entry>, store: &Store) -> Result<Digest, Error> {
    let bytes = serde_json::to_vec(baseline).unwrap_or_default();
    let file = tempfile::NamedTempFile::new().map_err(|source| Error::System {
        what: "cannot make a temporary file",
        source,
    })?;
    std::fs::write(file.path(), &bytes).map_err(|source| Error::Io {
        what: "cannot write",
        path: file.path().to_owned(),
        source,
    })?;
    files.push(Entry {
        path: FILE.into(),
        size: bytes.len() as u64,
        blob: store.put_file(file.path(), Ingest::Copy)?,
        executable: false,
    });
    Ok(store.put_manifest(&Manifest::new(files)?)?)
}

/// A move's baseline, the metrics of its steps read.
pub fn read(artifact: &Digest, store: &Store) -> Result<Baseline, String> {
    let lost = |e: cache::Error| e.to_string();
    let manifest = store.manifest(artifact).map_err(lost)?;
    let bytes = |path: &str| {
        let file = manifest.files.iter().find(|file| file.path == path);
        let file = file.ok_or_else(|| format!("it has no file '{path}'"))?;
        store.get_bytes(&file.blob).map_err(lost)
    };
    let mut baseline: Baseline =
        serde_json::from_slice(&bytes(FILE)?).map_err(|e| format!("'{FILE}': {e}"))?;
    if baseline.version != VERSION {
        return Err(format!(
            "it is of version {}, and this program reads {VERSION}",
            baseline.version
        ));
    }
    for kept in baseline.stages.values_mut() {
        let steps = kept.steps.as_deref();
        kept.curves = steps.map(|path| Steps::decode(&bytes(path)?));
    }
    Ok(baseline)
}

/// The pins that a run's assertions name, each read when it is first asked for.
pub struct Pins {
    store: Store,
    read: RefCell<HashMap<String, History>>,
}

/// Every baseline of a pin, the first first.
type History = Rc<Result<Vec<Baseline>, String>>;

impl Pins {
    pub fn new(store: &Store) -> Pins {
        Pins {
            store: store.clone(),
            read: RefCell::default(),
        }
    }

    /// The history of a pin, which has at least one baseline; or why there is none to compare with.
    pub fn history(&self, name: &str) -> History {
        let mut read = self.read.borrow_mut();
        read.entry(name.to_owned())
            .or_insert_with(|| Rc::new(self.load(name)))
            .clone()
    }

    fn load(&self, name: &str) -> Result<Vec<Baseline>, String> {
        let moves = self.store.moves(name).map_err(|e| e.to_string())?;
        if moves.is_empty() {
            return Err(format!(
                "there is no pin '{name}': `recipe baseline accept RUN --as {name}` makes it"
            ));
        }
        let baseline = |moved: &Move| {
            read(&moved.artifact, &self.store)
                .map_err(|why| format!("'{name}@{}' cannot be read: {why}", moved.number))
        };
        moves.iter().map(baseline).collect()
    }
}

impl Baseline {
    /// What it has of a stage, or of the replicas of one.
    pub fn group(&self, group: &str) -> Vec<&Kept> {
        let of = |kept: &&Kept| kept.group == group;
        self.stages.values().filter(of).collect()
    }
}
