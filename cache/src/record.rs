//! The records of the store and the envelope that makes each prove itself.
//!
//! | record | path | says |
//! |---|---|---|
//! | claim | `claims/<key>/<n>` | who may compute attempt n, and why |
//! | result | `results/<key>/<n>` | preimage, outputs, metrics, cost, numerics |
//! | seal | `results/<key>/<n>` | attempt n will never have a result, and why |
//! | checkpoint | `checkpoints/<key>/<n>/<step>` | the manifest of a step, and where the stream stands |
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
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::First => "first",
            Reason::Takeover => "takeover",
            Reason::Forced => "forced",
            Reason::Repair => "repair",
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
}

/// What an attempt took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall-clock seconds of all attempts that led to the result.
    pub seconds: f64,
    /// Rank-seconds on an accelerator.
    #[serde(default)]
    pub gpu_seconds: f64,
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
