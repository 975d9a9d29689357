//! Bytes that a rank needs to train a model, by what they are for.
//!
//! Symbols: `b` bytes of a compute element, `N` rows of a microbatch on the rank (its part of the
//! microbatch under `cp`), `R` the rows between matrices (`N`, or `N / tp` under sequence
//! parallelism), `h` the residual width, `q`, `kv`, `m`, `V` the rank's query width (heads x
//! head_dim), key width, MLP width and vocabulary rows. Under `tp` these are the rank's part.
//!
//! | what | bytes |
//! |---|---|
//! | parameters | `b` per stored element |
//! | masters | 4 per stored element when computing in bf16 |
//! | gradients | 4 per stored element |
//! | optimizer | 8 per stored element (AdamW's two moments), 0 for SGD |
//! | gathered | where shards are gathered: twice the largest segment in compute kind (one in use, the next on its way) and its gradient in compute kind and in fp32 on the way to its shards, or the LM matrix and the largest segment; elsewhere the largest segment's gradient in compute kind, if that is not fp32 |
//! | activations | what each segment keeps for its backward (below), and the working set of one segment's backward |
//! | logits | `C V` times what a chunk of `C` rows takes (below), `V h 4` for the LM matrix's gradient, and `2 R h b` |
//! | rollout | the rollout's cache of keys and values, `8 V` for each sequence that it samples for, and, where training holds other parts of the weights, `b` per element of its own copy |
//!
//! Stored is the FSDP part ([`crate::slice::held`]). AdamW's 16 bytes per element in mixed
//! precision are those of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1), but for
//! gradients, which we hold in fp32: 18. What a segment keeps follows Korthikanti et al. 2022
//! (arXiv 2205.05198, section 4) for our operators, which keep their inputs:
//!
//! - attention: `b (R h + N h + 2 (q + kv) N + q N) + 4 N heads`: input, normed input, queries, keys,
//!   values, the attention's output (once as attention keeps it and once as rows), and one
//!   log-sum-exp per head; `b (q + kv) N` more with norms on queries and keys;
//! - MLP: `b (R h + N h + 3 m N)`: input, normed input, gate, up and their product; one `m N` more
//!   where the operators are not fused;
//! - experts: `b (R h + N h) + 4 N E + b k N (2 h + 3 m)` for `k` of `E` experts to a row, of width
//!   `m`: the rows sorted by expert go in and out.
//!
//! A chunk of logits takes `b C V` where a fused softmax overwrites it with its gradient; where ranks
//! share the vocabulary `C V (4 + 4)`, in fp32 with its exponentials; else `C V (b + 4 + 4)`, with both
//! beside it.
//!
//! These are not all there at one time. The peak is the highest of three moments: at the head (all
//! activations, the LM matrix, the next unit, logits; or its gradient twice, on the way to its shards),
//! in a segment's backward (all activations, its
//! working set, two units, its gradient on the way), and at the embedding's gradient (which is as
//! large as the embedding, when activations are gone). In a step of a single microbatch the
//! gradients come into being as activations go, so at the first two moments they are not there yet.
//!
//! With `selective` activation checkpointing an MLP keeps its input alone, with `full` every
//! segment does, and one segment at a time is computed again. A pipeline stage keeps this for each
//! microbatch that is in flight there.

mod stage;

use crate::mesh::Mesh;
use crate::stages::stages;
use crate::{ModelConfig, ParamDef, Role};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use stage::Stage;

/// What forward keeps for backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Keep {
    /// Everything.
    All,
    /// Attention's graph; an MLP's input.
    Selective,
    /// Segments' inputs.
    Boundaries,
}

/// What a rank computes, apart from the model and the mesh.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Bytes of a compute element: 4 (fp32) or 2 (bf16).
    pub element: usize,
    /// Rows of a microbatch.
    pub rows: usize,
    /// Microbatches that each data rank computes in a step.
    pub microbatches: usize,
    /// What forward keeps.
    pub keep: Keep,
    /// Rows of logits at a time.
    pub head_chunk: usize,
    /// Tensors that the optimizer keeps for each parameter: AdamW 2, SGD 0.
    pub moments: usize,
    /// Gathered parameters are given back after forward.
    pub reshard: bool,
    /// Masters and moments lie in CPU memory.
    pub offload: bool,
    /// Operators are fused: SwiGLU keeps its inputs only.
    pub fused: bool,
    /// What the rank's part of a rollout holds, if there is one.
    pub rollout: Option<Rollout>,
}

/// A rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollout {
    /// Ranks with parts of the same matrices of a copy of the weights.
    pub tp: usize,
    /// Ranks with different experts of it.
    pub ep: usize,
    /// Bytes of keys and values.
    pub cache: u64,
    /// Sequences that are sampled for at once.
    pub sequences: usize,
}

impl Load {
    /// No work at all.
    fn nothing() -> Self {
        Self {
            element: 2,
            rows: 0,
            microbatches: 0,
            keep: Keep::All,
            head_chunk: 0,
            moments: 0,
            reshard: true,
            offload: false,
            fused: true,
            rollout: None,
        }
    }
}

/// Bytes of one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the forward computes with, as stored.
    pub parameters: u64,
    /// fp32 values that updates change, where they are not those.
    pub masters: u64,
    /// Accumulated gradients.
    pub gradients: u64,
    /// The optimizer's state.
    pub optimizer: u64,
    /// Parameters gathered from other ranks, and gradients on their way.
    pub gathered: u64,
    /// What forward keeps, and what backward works with.
    pub activations: u64,
    /// A chunk of logits and what goes with it.
    pub logits: u64,
    /// What a rollout needs, which runs when no activations exist.
    pub rollout: u64,
    /// Of these, in CPU memory.
    pub host: u64,
    /// The most that gathered parameters, activations and logits need at one time, beyond what the
    /// gradients that do not exist then leave free.
    pub working: u64,
}

impl Memory {
    /// Bytes that last from step to step.
    pub fn state(&self) -> u64 {
        self.parameters + self.masters + self.gradients + self.optimizer
    }

    /// The most at one time on the device.
    pub fn peak(&self) -> u64 {
        self.state() - self.host + self.working.max(self.rollout)
    }
}

/// A model's parameters, grouped by what matters to their size: thousands of experts are one line.
#[derive(Debug, Clone)]
pub struct Table<'a> {
    pub(crate) config: &'a ModelConfig,
    lines: Vec<Line>,
    /// Experts of a layer; 0 without.
    experts: usize,
    /// The pipeline's cuts, once worked out.
    cuts: RefCell<HashMap<(usize, usize), Cuts>>,
}

/// The pieces of each pipeline stage.
type Cuts = Rc<Vec<Vec<Range<usize>>>>;

#[derive(Debug, Clone)]
struct Line {
    def: ParamDef,
    /// How many such parameters: of experts, those of all experts.
    count: usize,
}

impl<'a> Table<'a> {
    /// The table of a model.
    pub fn new(config: &'a ModelConfig) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        let mut experts = 0;
        for def in config.params() {
            let Some(expert) = def.expert else {
                lines.push(Line { def, count: 1 });
                continue;
            };
            experts = experts.max(expert + 1);
            let same = lines.iter_mut().rev().take(8).find(|line| {
                line.def.expert.is_some()
                    && line.def.segment == def.segment
                    && line.def.shape == def.shape
                    && line.def.shard == def.shard
            });
            match same {
                Some(line) => line.count += 1,
                None => lines.push(Line { def, count: 1 }),
            }
        }
        Self {
            config,
            lines,
            experts,
            cuts: RefCell::default(),
        }
    }

    fn cuts(&self, mesh: &Mesh) -> Cuts {
        let mut known = self.cuts.borrow_mut();
        let cuts = known.entry((mesh.pp, mesh.pp_chunks)).or_insert_with(|| {
            let all = stages(self.config, mesh.pp, mesh.pp_chunks);
            let of = |stage| all.iter().skip(stage).step_by(mesh.pp).cloned().collect();
            Rc::new((0..mesh.pp).map(of).collect())
        });
        Rc::clone(cuts)
    }

    /// Bytes of the ranks of pipeline stage `stage` that hold most: the first on the other axes.
    pub fn memory(&self, mesh: &Mesh, stage: usize, load: &Load) -> Memory {
        let stage = Stage::new(self, mesh, stage, load);
        let b = load.element as u64;
        let stored = stage.stored;
        let masters = if load.element == 4 { 0 } else { 4 * stored };
        let optimizer = 4 * load.moments as u64 * stored;
        let (kept, working) = stage.activations();
        let logits = stage.logits();
        // gradients that are not there yet
        let early = if load.microbatches == 1 {
            4 * stored
        } else {
            0
        };
        let at_head = (stage.gathered_at_head() + logits).max(stage.head_gradient());
        let head = (kept + at_head).saturating_sub(early);
        let back = (kept + working + stage.gathered_in_segments()).saturating_sub(early);
        let end = stage.embedding_gradient();
        Memory {
            parameters: b * stored,
            masters,
            gradients: 4 * stored,
            optimizer,
            gathered: stage.gathered_in_segments().max(stage.gathered_at_head()),
            activations: kept + working,
            logits,
            working: head.max(back).max(end),
            rollout: load.rollout.map_or(0, |r| stage.rollout(&r)),
            host: if load.offload {
                // in fp32 the masters are what the forward computes with
                masters + optimizer
            } else {
                0
            },
        }
    }

    /// Elements that the first rank of the first pipeline stage gathers from others for a forward.
    pub(crate) fn gathered_elements(&self, mesh: &Mesh) -> u64 {
        let nothing = Load::nothing();
        let stage = Stage::new(self, mesh, 0, &nothing);
        stage.largest().2
    }

    /// Elements of the matrices of a mean layer that a token is multiplied with: attention's, and
    /// the MLP's or experts'.
    pub(crate) fn layer_elements(&self) -> [f64; 2] {
        let mut out = [0.0; 2];
        for line in self.lines.iter().filter(|l| l.def.role == Role::Linear) {
            let share = match (&self.config.experts, line.def.expert) {
                (Some(e), Some(_)) => e.per_token as f64 / e.count as f64,
                _ => 1.0,
            };
            let elements = line.numel() as f64 * share;
            out[usize::from(line.def.segment % 2 == 0)] += elements;
        }
        out
    }

    /// The stage that needs most, and what it needs.
    pub fn worst(&self, mesh: &Mesh, load: &Load) -> Memory {
        let stages = (0..mesh.pp).map(|stage| self.memory(mesh, stage, load));
        stages.max_by_key(Memory::peak).unwrap_or_default()
    }
}

impl Line {
    /// Elements of all such parameters.
    fn numel(&self) -> u64 {
        (self.count * self.def.numel()) as u64
    }
}
