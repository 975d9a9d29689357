//! The records of the store and the envelope that makes each prove itself.
//!
//! | record | path | says |
//! |---|---|---|
//! | claim | `claims/<key>/<n>` | who may compute attempt n, and why |
//! | result | `results/<key>/<n>` | preimage, outputs, metrics, cost, numerics |
//! | seal | `results/<key>/<n>` | attempt n will never have a result, and why |
//! | checkpoint | `checkpoints/<key>/<n>/<step>` | the manifest of a step, and where the stream stands |
//! | run | `runs/<id>/sealed` | the files of a run that ended, and their digests |
//! | pin | `pins/<name>` | an artifact that is not to be collected |
//! | move | `pins/<name>@<n>` | the nth run that a pin was moved to: who, when and why |
//!
//! Each is one JSON object whose last member is `"self"`: blake3 of all bytes before it. It also
//! carries its own path's parts, so that a record copied elsewhere does not verify there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Digest, Key};

/// Why an attempt was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// Nobody has computed this key yet, or every attempt so far was sealed.
    First,
    /// The owner of the attempt before died.
    Takeover,
    /// `--force`: a result is there, and another is wanted.
    Forced,
    /// A result is there, and its blobs are missing or corrupt.
    Repair,
    /// The result was computed in another store; its blobs may still lie there.
    Copied,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::First => "first",
            Reason::Takeover => "takeover",
            Reason::Forced => "forced",
            Reason::Repair => "repair",
            Reason::Copied => "copied",
        }
    }
}

/// What a claim says about who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    pub key: Key,
    pub attempt: u32,
    pub reason: Reason,
    /// Free text for people: host, process, run.
    pub owner: String,
    /// Which booted machine the owner runs on: only there its lock can be asked.
    pub machine: String,
    /// Told apart from every other claim, and from the same claim written twice.
    pub nonce: String,
}

/// What an attempt came to. `outputs` maps an output's name to the digest of its manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultRecord {
    /// The canonical text that was hashed into the key: `Digest::of(preimage.as_bytes()) == key`.
    pub preimage: String,
    pub outputs: BTreeMap<String, Digest>,
    #[serde(default)]
    pub metrics: Map<String, Value>,
    #[serde(default)]
    pub cost: Cost,
    /// Device, instruction set, libtorch, mesh, threads, microbatch, kernels, per range of steps.
    #[serde(default)]
    pub numerics: Value,
    /// Where it came from: run, stage, recipe, accepted trainer. Never content.
    #[serde(default)]
    pub provenance: Map<String, Value>,
    /// An artifact with the metrics of its steps, where it has any. No output: a result without it
    /// is whole, but can be asked less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Digest>,
}

impl ResultRecord {
    /// All artifacts that it refers to: its outputs, and the metrics of its steps.
    pub fn artifacts(&self) -> impl Iterator<Item = &Digest> {
        self.outputs.values().chain(&self.steps)
    }
}

/// What an attempt took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall-clock seconds of all attempts that led to the result.
    pub seconds: f64,
    /// Rank-seconds on an accelerator.
    #[serde(default)]
    pub gpu_seconds: f64,
    /// CPU seconds of all processes, user and system.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// Joules of CPU packages and memory; none where the machine does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_joules: Option<f64>,
    /// Joules of GPUs; none where no GPU was used, or its driver does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_joules: Option<f64>,
}

impl Cost {
    /// Whether nothing was spent.
    pub fn is_zero(&self) -> bool {
        *self == Cost::default()
    }

    /// Joules of all that was measured.
    pub fn joules(&self) -> Option<f64> {
        sum(self.cpu_joules, self.gpu_joules)
    }
}

impl std::ops::AddAssign for Cost {
    /// Joules add up over what was measured.
    fn add_assign(&mut self, other: Cost) {
        self.seconds += other.seconds;
        self.gpu_seconds += other.gpu_seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.cpu_joules = sum(self.cpu_joules, other.cpu_joules);
        self.gpu_joules = sum(self.gpu_joules, other.gpu_joules);
    }
}

fn sum(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)),
    }
}

/// A committed step of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub key: Key,
    pub attempt: u32,
    pub step: u64,
    /// The artifact that holds the step's files.
    pub manifest: Digest,
    /// Step, cursor and whatever else the trainer wants back. Nothing random is stored: draws are
    /// functions of (seed, purpose, step, index).
    #[serde(default)]
    pub meta: Value,
}

/// What lies at `results/<key>/<n>`.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    Result(Box<ResultRecord>),
    /// A seal, or a record that does not verify, which counts as one.
    Seal {
        why: String,
        corrupt: bool,
    },
}

/// One record in its envelope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Envelope {
    Claim(ClaimRecord),
    Result {
        key: Key,
        attempt: u32,
        nonce: String,
        record: Box<ResultRecord>,
    },
    Seal {
        key: Key,
        attempt: u32,
        nonce: String,
        why: String,
    },
    Checkpoint(Checkpoint),
    Pin {
        name: String,
        artifact: Digest,
    },
    Move(Move),
    Run {
        run: String,
        files: Vec<RunFile>,
    },
}

/// A move of a pin to a run: one entry of its history, which only grows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    pub name: String,
    /// 1 for the first.
    pub number: u32,
    /// What the pin stands for from then on.
    pub artifact: Digest,
    /// Artifacts of the run, kept as long as this is the last move.
    pub keep: Vec<Digest>,
    pub run: String,
    /// Who moved it, when (RFC 3339) and why.
    pub who: String,
    pub when: String,
    pub why: String,
}

/// A file of a finished run's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    pub name: String,
    pub digest: Digest,
    /// It was found damaged, and is kept as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
}

const TAIL: &str = ",\"self\":\"";

impl Envelope {
    /// The bytes to store.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).expect("records are plain data");
        text.pop(); // the closing brace
        let own = Digest::of(&text);
        text.extend_from_slice(format!("{TAIL}{own}\"}}\n").as_bytes());
        text
    }

    /// Reads and verifies stored bytes; says why they are no record.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Envelope, String> {
        let tail_len = TAIL.len() + 64 + 3;
        let split = bytes.len().checked_sub(tail_len).ok_or("it is cut short")?;
        let (body, tail) = bytes.split_at(split);
        let own = tail
            .strip_prefix(TAIL.as_bytes())
            .and_then(|t| t.strip_suffix(b"\"}\n"))
            .ok_or("its end is not that of a record: it is cut short or overwritten")?;
        let found = Digest::of(body);
        if own != found.hex().as_bytes() {
            return Err("its bytes do not hash to its self-digest".into());
        }
        let mut text = body.to_vec();
        text.push(b'}');
        serde_json::from_slice(&text).map_err(|e| format!("it is not a known record: {e}"))
    }
}
