//! What every stage is given: its job, its ranks, its device, and a voice.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::Tokenizer;
use data::dataset::{self, Dataset};
use serde::Serialize;
use spec::kinds::{self, Config, StoreDtype};
use spec::{Event, JobSpec};
use tch::{Device, Kind};

use crate::failure::{Failure, Result, at};
use crate::gang::Gang;
use crate::profile::Profile;
use crate::report::{Metrics, Report};

/// One stage on one rank.
pub struct Stage {
    pub job: JobSpec,
    pub gang: Gang,
    pub device: Device,
    pub report: Report,
    pub profile: Profile,
}

/// How a stage ended.
#[derive(Debug)]
pub enum Done {
    /// With these summary metrics.
    Finished(Metrics),
    /// On request, with a checkpoint of this step.
    Stopped(u64),
}

impl Stage {
    /// The first event: what the results depend on.
    pub fn started(&self) -> Event {
        let dtype = match self
            .job
            .with
            .get("dtype")
            .and_then(serde_json::Value::as_str)
        {
            Some("bf16") => Kind::BFloat16,
            _ => Kind::Float,
        };
        let mut numerics = match train::numerics(self.device, dtype) {
            serde_json::Value::Object(map) => map,
            _ => serde_json::Map::new(),
        };
        let resources = &self.job.resources;
        numerics.insert("ranks".into(), self.gang.size.into());
        numerics.insert("collectives".into(), self.gang.groups.transport().into());
        numerics.insert("mesh".into(), serde_json::json!(resources.mesh));
        numerics.insert(
            "microbatch_tokens".into(),
            resources.microbatch_tokens.into(),
        );
        numerics.insert("head_chunk".into(), resources.head_chunk.into());
        let checkpointing = serde_json::json!(resources.activation_checkpointing);
        numerics.insert("activation_checkpointing".into(), checkpointing);
        let device = if self.device.is_cuda() { "cuda" } else { "cpu" };
        Event::Started {
            version: spec::job::VERSION,
            device: device.into(),
            numerics,
        }
    }

    /// The configuration, typed.
    pub fn with<C: Config>(&self) -> Result<C> {
        Ok(kinds::from_value(&self.job.with)?)
    }

    /// The paths of an input; none where it is not given.
    pub fn inputs(&self, name: &str) -> Vec<&Path> {
        let given = self.job.inputs.get(name).map_or(&[][..], Vec::as_slice);
        given.iter().map(|input| input.path.as_path()).collect()
    }

    /// The path of an input that takes one artifact, if it is given.
    pub fn optional(&self, name: &str) -> Option<&Path> {
        self.inputs(name).first().copied()
    }

    /// The path of an input that must be there.
    pub fn input(&self, name: &str) -> Result<&Path> {
        self.optional(name).ok_or_else(|| {
            Failure::config(
                format!("input '{name}' is missing"),
                format!("give `in.{name} = ..`"),
            )
        })
    }

    /// The directory to fill.
    pub fn output(&self, name: &str) -> Result<&Path> {
        self.job
            .outputs
            .get(name)
            .map(PathBuf::as_path)
            .ok_or_else(|| {
                Failure::config(format!("the job has no directory for output '{name}'"), "")
            })
    }

    /// The rows of an input; none where it is not given.
    pub fn dataset(&self, name: &str) -> Result<Option<Arc<Dataset>>> {
        let paths = self.inputs(name);
        if paths.is_empty() {
            Ok(None)
        } else {
            Ok(Some(Arc::new(dataset::open(&paths)?)))
        }
    }

    /// The tokenizer of the model at `input`.
    pub fn tokenizer(&self, input: &str) -> Result<Tokenizer> {
        Ok(Tokenizer::from_dir(self.input(input)?)?)
    }
}

/// Writes JSON lines.
pub struct Lines {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Lines {
    /// A new file `name` in `dir`.
    pub fn create(dir: &Path, name: &str) -> Result<Lines> {
        let path = dir.join(name);
        let out = BufWriter::new(File::create(&path).map_err(at(&path))?);
        Ok(Lines { path, out })
    }

    /// Appends one line.
    pub fn push(&mut self, row: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.out, row)
            .map_err(std::io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"))
            .map_err(at(&self.path))
    }

    /// Writes out what is buffered; errors of a full disk show here.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(at(&self.path))
    }
}

/// libtorch's name of a compute precision.
pub fn compute_kind(dtype: kinds::Dtype) -> Kind {
    match dtype {
        kinds::Dtype::Fp32 => Kind::Float,
        kinds::Dtype::Bf16 => Kind::BFloat16,
    }
}

/// The files' name of a storage precision; none keeps what is there.
pub fn store_dtype(dtype: StoreDtype) -> Option<model::files::Dtype> {
    use model::files::Dtype;
    match dtype {
        StoreDtype::Keep => None,
        StoreDtype::Fp32 => Some(Dtype::F32),
        StoreDtype::Fp16 => Some(Dtype::F16),
        StoreDtype::Bf16 => Some(Dtype::BF16),
    }
}
