//! The policy's weights as the ranks hold them while they generate.
//!
//! Where every rank trains with whole weights they serve as they are. Else a reshard by slice tables
//! brings them once, at the start of a phase of rollouts, to the arrangement of
//! `resources.rollout_mesh`: groups of `tp` x `ep` ranks that hold parts of the same matrices and
//! different experts and sample the same completions together; different groups sample different
//! ones.

use arch::mesh::Axis;
use arch::{Mesh, ModelConfig};
use model::Weights;
use rollout::{Peers, Rollout, RolloutConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spec::placement::RolloutMesh;
use train::Policy;

use crate::failure::{Failure, Result};
use crate::gang::Gang;
use crate::stage::Stage;

/// A policy ready to generate, until its next update.
pub struct Serving<'p> {
    policy: &'p Policy,
    /// This rank's part after a reshard; none where the policy's own serve.
    moved: Option<Weights>,
    mesh: Mesh,
    gang: &'p Gang,
}

impl<'p> Serving<'p> {
    /// Brings the weights to the rollout's arrangement; every rank calls this.
    pub fn new(stage: &'p Stage, policy: &'p Policy) -> Result<Serving<'p>> {
        let gang = &stage.gang;
        let config = &policy.decoder().config;
        let asked = stage.job.resources.rollout_mesh.as_ref();
        let mesh = arrange(&gang.groups.mesh, asked, config)?;
        Ok(Serving {
            moved: policy.rollout_weights(&mesh)?,
            policy,
            mesh,
            gang,
        })
    }

    /// The policy that is served.
    pub fn policy(&self) -> &Policy {
        self.policy
    }

    /// A rollout over this rank's part of the weights.
    pub fn rollout(&self, config: RolloutConfig) -> Result<Rollout<'_>> {
        let decoder = self.policy.decoder();
        let weights = self.moved.as_ref().unwrap_or(self.policy.weights());
        if self.mesh.tp * self.mesh.ep == 1 {
            return Ok(Rollout::new(decoder, weights, config)?);
        }
        let along = |name, axis| {
            let ranks = self.mesh.group(self.gang.rank, &[axis]);
            self.gang.groups.sub(name, &ranks)
        };
        let tp = along("rollout_tp", Axis::Tp)?;
        let peers = Peers::new(&decoder.config, tp, along("rollout_ep", Axis::Ep)?);
        Ok(Rollout::among(decoder, weights, config, peers)?)
    }

    /// What of `items` this rank samples: every group of ranks takes its share.
    pub fn share<'a, T>(&self, items: &'a [T]) -> impl Iterator<Item = &'a T> {
        let mine = self.mesh.coord(self.gang.rank).replicate;
        items.iter().skip(mine).step_by(self.mesh.dp_replicate)
    }

    /// The items of all groups on every rank, each once.
    pub fn gather<T>(&self, items: Vec<T>, phase: &str) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        let place = self.mesh.coord(self.gang.rank);
        let speaks = place.tp == 0 && place.ep == 0;
        self.gang
            .gather(if speaks { items } else { Vec::new() }, phase)
    }
}

/// How the ranks of `training` hold this model while they generate.
fn arrange(training: &Mesh, asked: Option<&RolloutMesh>, config: &ModelConfig) -> Result<Mesh> {
    let told = asked.map(|asked| (asked.tp as usize, asked.ep as usize));
    training.generating(told, config).map_err(|e| {
        let message = e.to_string().replace("mesh.", "resources.rollout_mesh.");
        Failure::config(message, "")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelConfig {
        ModelConfig::from_json(
            r#"{"model_type": "qwen3", "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}"#,
        )
        .expect("a good configuration")
    }

    #[test]
    fn a_rollout_holds_no_more_than_training_unless_it_is_told_to() {
        let tp = |mesh: Mesh| arrange(&mesh, None, &model()).expect("fits").tp;
        let solo = Mesh::solo();
        assert_eq!(
            tp(Mesh::replicated(4)),
            1,
            "whole weights serve as they are"
        );
        assert_eq!(
            tp(Mesh {
                dp_shard: 2,
                ..solo
            }),
            2
        );
        assert_eq!(
            tp(Mesh {
                pp: 2,
                dp_replicate: 2,
                ..solo
            }),
            2
        );
        assert_eq!(
            tp(Mesh {
                dp_shard: 8,
                ..solo
            }),
            4,
            "four heads"
        );
        assert_eq!(
            tp(Mesh {
                dp_shard: 3,
                ..solo
            }),
            1,
            "two key heads on three ranks"
        );
        let told = RolloutMesh {
            dp: 2,
            tp: 1,
            ep: 1,
        };
        let mesh = arrange(
            &Mesh {
                dp_shard: 2,
                ..solo
            },
            Some(&told),
            &model(),
        );
        assert_eq!(
            mesh.expect("fits"),
            Mesh {
                sp: false,
                ..Mesh::replicated(2)
            }
        );
        let wide = RolloutMesh {
            dp: 1,
            tp: 8,
            ep: 1,
        };
        let refused = arrange(
            &Mesh {
                dp_shard: 8,
                ..solo
            },
            Some(&wide),
            &model(),
        );
        let text = refused.expect_err("eight ranks, four heads").to_string();
        assert!(text.contains("resources.rollout_mesh.tp = 8"), "{text}");
    }
}
