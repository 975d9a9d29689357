//! What an attempt hands to its processes: directories, the [`JobSpec`], environment variables.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cache::{Digest, Entry, Ingest, Link, Manifest, Store};
use spec::job::{ProfileSpec, StepRange};
use spec::{ArtifactKind, InputSpec, JobSpec, Resources, ResumeSpec};

use crate::emitted;
use crate::error::{AttemptError, Class, Error};
use crate::launch::GangSpec;
use crate::session::{Outputs, declared};
use crate::source::{Access, Known, single_file};

/// An input of a stage, its content known.
pub struct Input {
    pub digest: Digest,
    pub artifact: ArtifactKind,
    /// The reference as the recipe has it.
    pub reference: String,
    /// Set for a source; a stage's output comes from the store.
    pub source: Option<(String, Known)>,
}

pub type Inputs = BTreeMap<String, Vec<Input>>;

/// An attempt's directory.
///
/// | below it | what |
/// |---|---|
/// | `in/<name>` or `in/<name>/<i>` | inputs, private copies with their write permission taken; a file keeps its extension |
/// | `out/<name>` | outputs |
/// | `work` | working directory |
/// | `tmp` | `TMPDIR` |
/// | `resume` | the checkpoint to go on from |
/// | `job.json` | the [`JobSpec`] |
/// | `metrics.jsonl` | what a command tells of its metrics |
/// | `trace/rank<r>.json` | what a rank was seen to do |
pub struct Layout<'a> {
    pub root: &'a Path,
}

impl Layout<'_> {
    fn dir(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(|source| Error::Io {
            what: "cannot create",
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// Where an output is to be written.
    pub fn output(&self, name: &str) -> PathBuf {
        self.root.join("out").join(name)
    }

    /// Where ranks write traces.
    pub fn traces(&self) -> PathBuf {
        self.root.join("trace")
    }
}

/// Makes every input available; returns their paths in order.
pub fn provide(
    inputs: &Inputs,
    layout: &Layout,
    store: &Store,
    access: Access,
) -> Result<BTreeMap<String, Vec<PathBuf>>, Error> {
    let mut paths = BTreeMap::new();
    for (name, list) in inputs {
        let mut here = Vec::with_capacity(list.len());
        for (i, input) in list.iter().enumerate() {
            let to = match list.len() {
                1 => layout.root.join("in").join(name),
                _ => layout.dir(&format!("in/{name}"))?.join(i.to_string()),
            };
            here.push(match &input.source {
                Some((source, known)) => known.provide(source, store, &to, access)?,
                None => copy_out(store, &input.digest, to)?,
            });
        }
        paths.insert(name.clone(), here);
    }
    Ok(paths)
}

/// A copy of an artifact at `to`, its write permission taken; where it lies.
fn copy_out(store: &Store, artifact: &Digest, mut to: PathBuf) -> Result<PathBuf, Error> {
    let protect = |path: PathBuf, executable: bool| -> Result<(), Error> {
        let mode = if executable { 0o555 } else { 0o444 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(|source| Error::Io {
            what: "cannot protect",
            path,
            source,
        })
    };
    let manifest = store.manifest(artifact)?;
    if let Some(file) = single_file(&manifest) {
        if let Some(extension) = Path::new(&file.path).extension() {
            to.set_extension(extension);
        }
        store.materialize_file(file, &to)?;
        protect(to.clone(), file.executable)?;
        return Ok(to);
    }
    store.materialize(artifact, &to, Link::Reflink)?;
    for file in &manifest.files {
        protect(to.join(&file.path), file.executable)?;
    }
    Ok(to)
}

/// What a worker is told.
pub struct Worker<'a> {
    pub program: &'a Path,
    pub stage: &'a spec::Stage,
    pub key: String,
    pub attempt: u32,
    pub resources: Resources,
    pub device: &'a str,
    pub gpus: &'a [String],
    pub resume: Option<ResumeSpec>,
    pub profile: Option<StepRange>,
    pub store: &'a Store,
    pub recipe: &'a str,
    pub run: &'a str,
}

/// The gang of a worker: `recipe-worker run --job job.json`, one process per rank.
pub fn worker_gang(
    worker: Worker,
    inputs: &Inputs,
    paths: BTreeMap<String, Vec<PathBuf>>,
    layout: &Layout,
    gang: String,
    log: PathBuf,
) -> Result<GangSpec, Error> {
    let stage = worker.stage;
    let mut outputs = BTreeMap::new();
    for output in &stage.outputs {
        outputs.insert(
            output.name.clone(),
            layout.dir(&format!("out/{}", output.name))?,
        );
    }
    let inputs = inputs
        .iter()
        .map(|(name, list)| {
            let specs = list
                .iter()
                .zip(&paths[name])
                .map(|(input, path)| InputSpec {
                    path: path.clone(),
                    digest: input.digest.hex(),
                    artifact: input.artifact,
                    source: input.reference.clone(),
                });
            (name.clone(), specs.collect())
        })
        .collect();
    let (ranks, threads) = (worker.resources.ranks as usize, worker.resources.threads);
    let tmp = layout.root.join("tmp");
    let job = JobSpec {
        version: spec::job::VERSION,
        kind: stage.kind.name.to_owned(),
        stage: stage.name.clone(),
        key: worker.key,
        attempt: worker.attempt,
        with: stage.with.clone(),
        inputs,
        outputs,
        resources: worker.resources,
        // where to go on from is the runner's to find
        checkpoint: spec::Checkpoint {
            from_shorter: false,
            ..stage.placement.checkpoint
        },
        watch: stage.watch.clone(),
        resume: worker.resume,
        store: worker.store.url().to_owned(),
        device: worker.device.to_owned(),
        scratch: tmp.clone(),
        profile: worker.profile.map(|steps| ProfileSpec {
            steps,
            dir: layout.traces(),
        }),
        provenance: spec::job::Provenance {
            recipe: worker.recipe.to_owned(),
            run: worker.run.to_owned(),
        },
    };
    let path = layout.root.join("job.json");
    let bytes = serde_json::to_vec_pretty(&job).unwrap_or_default();
    fs::write(&path, bytes).map_err(|source| Error::Io {
        what: "cannot write",
        path: path.clone(),
        source,
    })?;
    // What decides how numbers round comes from the recipe and the machine, never from somebody's shell.
    let numeric = [
        "OMP_",
        "MKL_",
        "KMP_",
        "GOMP_",
        "OPENBLAS_",
        "DNNL_",
        "ONEDNN_",
        "ATEN_CPU_CAPABILITY",
        "RECIPE_",
    ];
    let unset = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| numeric.iter().any(|p| name.starts_with(p)))
        .collect();
    let threads = threads.to_string();
    let env = [
        ("OMP_NUM_THREADS", threads.clone()),
        ("MKL_NUM_THREADS", threads),
        ("OMP_DYNAMIC", "FALSE".into()),
        ("MKL_DYNAMIC", "FALSE".into()),
        // libgomp spins for milliseconds by default: fatal beside another busy process
        ("GOMP_SPINCOUNT", "20000".into()),
        ("CUDA_VISIBLE_DEVICES", worker.gpus.join(",")),
        ("TMPDIR", tmp.display().to_string()),
    ];
    Ok(GangSpec {
        name: gang,
        program: worker.program.to_owned(),
        args: vec!["run".into(), "--job".into(), path.display().to_string()],
        cwd: layout.root.join("work"),
        ranks,
        clear_env: false,
        unset,
        env: env.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        events: true,
        log,
    })
}

/// The gang of a `command` stage: one process that sees what it declared and nothing else.
pub fn command_gang(
    stage: &spec::Stage,
    paths: &BTreeMap<String, Vec<PathBuf>>,
    layout: &Layout,
    gang: String,
    log: PathBuf,
) -> Result<GangSpec, Error> {
    let config: spec::kinds::command::Command =
        spec::kinds::from_value(&stage.with).map_err(|e| Error::Usage {
            message: e.to_string(),
            help: Some(e.help.clone()),
        })?;
    let mut env: Vec<(String, String)> = vec![
        (
            "PATH".into(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        ),
        (
            "TMPDIR".into(),
            layout.root.join("tmp").display().to_string(),
        ),
    ];
    env.push((
        "METRICS".into(),
        layout.root.join(emitted::FILE).display().to_string(),
    ));
    env.extend(declared(&stage.environment));
    for name in &config.secrets {
        let value = std::env::var(name).ok().filter(|v| !v.is_empty());
        let value = value.ok_or_else(|| Error::Usage {
            message: format!("it needs the secret '{name}', and the environment has none"),
            help: Some(format!("set {name} where the recipe is run")),
        })?;
        env.push((name.clone(), value));
    }
    for (name, list) in paths {
        let list: Vec<String> = list.iter().map(|p| p.display().to_string()).collect();
        env.push((format!("IN_{}", variable(name)), list.join(" ")));
    }
    for output in &stage.outputs {
        env.push((
            format!("OUT_{}", variable(&output.name)),
            layout.output(&output.name).display().to_string(),
        ));
    }
    let mut words = config.cmd.into_iter();
    let program = words.next().unwrap_or_default();
    Ok(GangSpec {
        name: gang,
        program: program.into(),
        args: words.collect(),
        cwd: layout.root.join("work"),
        ranks: 1,
        clear_env: true,
        unset: Vec::new(),
        env,
        events: false,
        log,
    })
}

/// A name as part of an environment variable's name.
fn variable(name: &str) -> String {
    name.replace('-', "_")
}

/// Puts every declared output into the store: blobs first, then the manifest.
pub fn ingest(
    stage: &spec::Stage,
    layout: &Layout,
    store: &Store,
) -> Result<Outputs, AttemptError> {
    let mut outputs = Outputs::new();
    for output in &stage.outputs {
        let at = layout.output(&output.name);
        let io = |source| Error::Io {
            what: "cannot read",
            path: at.clone(),
            source,
        };
        let nothing = |what: &str| AttemptError {
            help: Some(format!(
                "write it to $OUT_{}, a file or a directory",
                variable(&output.name)
            )),
            ..AttemptError::new(Class::Failed, format!("it {what} output '{}'", output.name))
        };
        let meta = match fs::symlink_metadata(&at) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(nothing("did not write"));
            }
            Err(e) => return Err(io(e).into()),
        };
        let artifact = if meta.is_dir() {
            let empty = fs::read_dir(&at).map_err(io)?.next().is_none();
            if empty && stage.kind.trainer {
                return Err(AttemptError {
                    help: None,
                    ..nothing("wrote nothing to")
                });
            }
            store.put_tree(&at, Ingest::Move)?.0
        } else if meta.is_file() {
            // A single file is an artifact with the one entry `data`.
            let data = Entry {
                path: "data".into(),
                size: meta.len(),
                blob: store.put_file(&at, Ingest::Move)?,
                executable: meta.permissions().mode() & 0o111 != 0,
            };
            store.put_manifest(&Manifest::new(vec![data])?)?
        } else {
            return Err(nothing("made neither a file nor a directory of"));
        };
        outputs.insert(output.name.clone(), artifact);
    }
    Ok(outputs)
}
