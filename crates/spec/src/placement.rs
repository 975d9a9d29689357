//! Placement: where and how a stage runs. None of it enters the key, and these types are never
//! part of a [`crate::Preimage`].

use crate::codes;
use crate::kinds::Invalid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a stage says beside its identity: placement and what is asked of its result. None of it is in the key.
pub const UNKEYED: [&str; 6] = [
    "resources",
    "checkpoint",
    "retry",
    "timeout",
    "assert",
    "needs_assert",
];

/// All placement of one stage.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Placement {
    pub resources: Resources,
    pub checkpoint: Checkpoint,
    pub retry: Retry,
    /// Wall time of one attempt; none is no limit.
    pub timeout: Option<Duration>,
}

/// `resources`: what a stage runs on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Processes that train together; on CUDA each takes one GPU.
    pub ranks: u32,
    /// Machines.
    pub nodes: u32,
    /// CPU threads per rank; 0 lets the runner share the machine's cores among the ranks.
    pub threads: u32,
    /// How the ranks are arranged; what is left out is 1, and `dp_replicate` takes what remains.
    pub mesh: Mesh,
    /// Give gathered weights back after each use, instead of keeping them until the update: less
    /// memory, more traffic. Acts where weights are sharded.
    #[serde(skip_serializing_if = "is_true")]
    pub reshard: bool,
    /// How a rollout holds the weights; left out, a rank holds no more of them than in training,
    /// where the model's heads allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_mesh: Option<RolloutMesh>,
    /// Tokens that one rank works on at a time.
    pub microbatch_tokens: u64,
    pub activation_checkpointing: ActivationCheckpointing,
    /// Rows whose logits exist at a time.
    pub head_chunk: u64,
    /// Keep master weights and optimizer state in CPU memory, where the optimizer then runs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub offload: bool,
    /// What carries tensors between ranks.
    #[serde(skip_serializing_if = "is_auto")]
    pub collectives: Collectives,
    /// Seconds that a rank waits for the others before the attempt fails.
    #[serde(skip_serializing_if = "is_ten_minutes")]
    pub deadline: u64,
}

fn is_auto(collectives: &Collectives) -> bool {
    *collectives == Collectives::Auto
}

fn is_ten_minutes(seconds: &u64) -> bool {
    *seconds == 600
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            ranks: 1,
            nodes: 1,
            threads: 0,
            mesh: Mesh::default(),
            reshard: true,
            rollout_mesh: None,
            microbatch_tokens: 8192,
            activation_checkpointing: ActivationCheckpointing::None,
            head_chunk: 1024,
            offload: false,
            collectives: Collectives::Auto,
            deadline: 600,
        }
    }
}

/// What is kept of the forward for the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActivationCheckpointing {
    /// Everything.
    None,
    /// What attention computed; MLPs and norms are computed again.
    Selective,
    /// Segment boundaries; the rest is computed again.
    Full,
}

/// What carries tensors between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Collectives {
    /// NCCL where every rank has a GPU of its own, else Gloo.
    Auto,
    /// Host memory, where GPUs' tensors are staged.
    Gloo,
    /// GPUs, one for each rank.
    Nccl,
}

/// Sizes of the mesh's axes; their product is `ranks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mesh {
    /// Data parallel, weights replicated; 0 takes what the other axes leave of `ranks`.
    pub dp_replicate: u32,
    /// Data parallel, weights sharded.
    pub dp_shard: u32,
    /// Tensor parallel.
    pub tp: u32,
    /// Context parallel.
    pub cp: u32,
    /// Pipeline parallel.
    pub pp: u32,
    /// Pieces of the model on each pipeline rank; above 1 the pipeline is interleaved.
    #[serde(skip_serializing_if = "is_one")]
    pub pp_chunks: u32,
    /// Expert parallel.
    pub ep: u32,
    /// With `tp`: split the rows between matrices over its ranks.
    #[serde(skip_serializing_if = "is_true")]
    pub sp: bool,
}

fn is_true(flag: &bool) -> bool {
    *flag
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            dp_replicate: 0,
            dp_shard: 1,
            tp: 1,
            cp: 1,
            pp: 1,
            pp_chunks: 1,
            ep: 1,
            sp: true,
        }
    }
}

impl Mesh {
    /// Gives `dp_replicate` what the other axes leave of `ranks`; refuses sizes whose product is
    /// not `ranks`.
    fn finish(&mut self, ranks: u32) -> Result<(), Invalid> {
        let axes = [
            ("dp_replicate", self.dp_replicate),
            ("dp_shard", self.dp_shard),
            ("tp", self.tp),
            ("cp", self.cp),
            ("pp", self.pp),
            ("ep", self.ep),
        ];
        for (axis, size) in axes
            .into_iter()
            .skip(1)
            .chain([("pp_chunks", self.pp_chunks)])
        {
            if size == 0 {
                return Err(Invalid::range(&format!("mesh.{axis}"), size, "1 or more"));
            }
        }
        if self.pp_chunks > 1 && self.pp == 1 {
            return Err(Invalid::range(
                "mesh.pp_chunks",
                self.pp_chunks,
                "1 where `pp` is 1: only pipeline ranks have pieces",
            ));
        }
        let product = axes
            .iter()
            .map(|(_, n)| u64::from((*n).max(1)))
            .product::<u64>();
        let ranks = u64::from(ranks);
        if self.dp_replicate == 0 && ranks.is_multiple_of(product) {
            self.dp_replicate = (ranks / product) as u32;
            return Ok(());
        }
        if product == ranks {
            return Ok(());
        }
        let above_one: Vec<String> = axes
            .iter()
            .filter(|(_, n)| *n > 1)
            .map(|(axis, n)| format!("{axis} {n}"))
            .collect();
        Err(Invalid {
            field: "mesh".to_owned(),
            message: format!(
                "the axes of 'mesh' multiply to {product} ({}), but 'ranks' is {ranks}",
                above_one.join(" x ")
            ),
            help: format!(
                "use `ranks = {product}`, or change an axis until the product is {ranks}"
            ),
            code: codes::RANGE,
        })
    }
}

/// Sizes of a rollout's axes; their product is `ranks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutMesh {
    /// Groups of ranks that sample different completions; 0 takes what the others leave of `ranks`.
    pub dp: u32,
    /// Ranks of a group that hold parts of the same matrices.
    pub tp: u32,
    /// Ranks of a group that hold different experts.
    pub ep: u32,
}

impl Default for RolloutMesh {
    fn default() -> Self {
        Self {
            dp: 0,
            tp: 1,
            ep: 1,
        }
    }
}

impl RolloutMesh {
    /// Gives `dp` what the others leave of `ranks`; refuses sizes whose product is not `ranks`.
    fn finish(&mut self, ranks: u32) -> Result<(), Invalid> {
        for (axis, size) in [("tp", self.tp), ("ep", self.ep)] {
            if size == 0 {
                let field = format!("rollout_mesh.{axis}");
                return Err(Invalid::range(&field, size, "1 or more"));
            }
        }
        let group = u64::from(self.tp) * u64::from(self.ep);
        if self.dp == 0 && u64::from(ranks).is_multiple_of(group) {
            self.dp = (u64::from(ranks) / group) as u32;
        }
        if u64::from(self.dp) * group == u64::from(ranks) {
            return Ok(());
        }
        Err(Invalid {
            field: "rollout_mesh".to_owned(),
            message: format!(
                "'rollout_mesh' has dp {} x tp {} x ep {}, but 'ranks' is {ranks}",
                self.dp, self.tp, self.ep
            ),
            help: format!("choose sizes whose product is {ranks}; `dp` may be left out"),
            code: codes::RANGE,
        })
    }
}

impl Resources {
    /// Fills in the mesh and refuses what no launcher can do yet.
    pub fn finish(&mut self) -> Result<(), Invalid> {
        let unsupported = |field: &str, message: String, help: &str| Invalid {
            field: field.to_owned(),
            message,
            help: help.to_owned(),
            code: codes::UNSUPPORTED,
        };
        if self.ranks == 0 {
            return Err(Invalid::range("ranks", self.ranks, "1 or more"));
        }
        if self.nodes != 1 {
            return Err(unsupported(
                "nodes",
                format!(
                    "nodes = {}, but no launcher for more than one machine exists yet",
                    self.nodes
                ),
                "use `nodes = 1` and raise `ranks`",
            ));
        }
        self.mesh.finish(self.ranks)?;
        if let Some(mesh) = &mut self.rollout_mesh {
            mesh.finish(self.ranks)?;
        }
        for (field, value) in [
            ("microbatch_tokens", self.microbatch_tokens),
            ("head_chunk", self.head_chunk),
            ("deadline", self.deadline),
        ] {
            if value == 0 {
                return Err(Invalid::range(field, value, "1 or more"));
            }
        }
        Ok(())
    }
}

/// `checkpoint`: how often a training stage saves what it needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between checkpoints; 0 saves only when asked to stop.
    pub every: u64,
    /// Checkpoints that are kept.
    pub keep: u64,
    /// Whether a stage with more `steps` goes on from the checkpoint of one that differs in `steps` alone. Only where no
    /// step depends on how many there are: with `schedule = "constant"`.
    #[serde(rename = "continue", skip_serializing_if = "std::ops::Not::not")]
    pub from_shorter: bool,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            every: 50,
            keep: 2,
            from_shorter: false,
        }
    }
}

impl Checkpoint {
    pub fn finish(&mut self) -> Result<(), Invalid> {
        if self.keep == 0 {
            Err(Invalid::range("keep", self.keep, "1 or more"))
        } else {
            Ok(())
        }
    }
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The stage itself: diverged, or an error that a retry would repeat.
    Failed,
    /// The configuration or the data.
    Config,
    /// The machine, the network, the disk.
    Infra,
    /// What was read is not what the store says it is.
    Integrity,
    /// Asked to stop by whoever owns the machine.
    Preempt,
    /// Ran past `timeout`.
    Timeout,
}

impl FailureClass {
    /// The word in recipes and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Config => "config",
            Self::Infra => "infra",
            Self::Integrity => "integrity",
            Self::Preempt => "preempt",
            Self::Timeout => "timeout",
        }
    }
}

/// `retry`: which failures start another attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts after the first.
    pub max: u32,
    pub on: Vec<FailureClass>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max: 0,
            on: vec![FailureClass::Infra, FailureClass::Preempt],
        }
    }
}

impl Retry {
    pub fn finish(&mut self) -> Result<(), Invalid> {
        match self
            .on
            .iter()
            .position(|c| matches!(c, FailureClass::Config | FailureClass::Integrity))
        {
            Some(i) => Err(Invalid {
                field: format!("on[{i}]"),
                message: format!(
                    "a retry would repeat a failure of class '{}'",
                    self.on[i].name()
                ),
                help: "retry on 'infra', 'preempt', 'timeout' or 'failed'".to_owned(),
                code: codes::RANGE,
            }),
            None => Ok(()),
        }
    }
}

/// `12h`, `90m`, `1h30m`, `45s`, `2d`.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    let bad = || Invalid {
        field: "timeout".to_owned(),
        message: format!("timeout '{text}' is not a duration"),
        help: "write it like \"90s\", \"30m\", \"1h30m\" or \"2d\"".to_owned(),
        code: codes::RANGE,
    };
    let mut seconds = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        let mut after = rest[digits..].chars();
        let unit = match after.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86400,
            _ => return Err(bad()),
        };
        seconds = number
            .checked_mul(unit)
            .and_then(|n| n.checked_add(seconds))
            .ok_or_else(bad)?;
        rest = after.as_str();
    }
    if seconds == 0 {
        Err(bad())
    } else {
        Ok(Duration::from_secs(seconds))
    }
}
