//! Several environments mixed by weight.

use super::{Environment, Split, Step, Task, Turn};
use crate::error::{Error, Result};
use crate::rng::Draw;
use serde_json::{Value, json};
use std::sync::Arc;

/// One environment of a mixture.
pub struct Member {
    pub environment: Arc<dyn Environment>,
    pub weight: f64,
    pub label: String,
}

/// Tasks come in rounds of [`ROUND`]: each round holds every member in proportion to its weight,
/// in a seeded order. So a member's own tasks are taken one after the other and none is skipped,
/// whatever the others do.
pub struct Mixture {
    members: Vec<Member>,
    /// Tasks of each member in a round.
    share: Vec<u64>,
}

const ROUND: u64 = 200;

impl Mixture {
    pub fn new(members: Vec<Member>) -> Result<Mixture> {
        let total: f64 = members.iter().map(|m| m.weight).sum();
        if !(total > 0.0 && total.is_finite()) || members.len() as u64 > ROUND {
            return Err(Error::Environment(format!(
                "the weights of a mixture must sum to more than 0 over at most {ROUND} \
                 environments, got {total} over {}",
                members.len()
            )));
        }
        for (i, member) in members.iter().enumerate() {
            if members[..i].iter().any(|m| m.label == member.label) {
                return Err(Error::Environment(format!(
                    "two environments of the mixture are called '{}'; give one a label",
                    member.label
                )));
            }
        }
        // Largest remainders; a member with any weight gets at least one place.
        let exact: Vec<f64> = (members.iter())
            .map(|m| m.weight / total * ROUND as f64)
            .collect();
        let mut share: Vec<u64> = (exact.iter())
            .map(|&e| if e > 0.0 { (e as u64).max(1) } else { 0 })
            .collect();
        while share.iter().sum::<u64>() != ROUND {
            let missing = share.iter().sum::<u64>() < ROUND;
            let gap = |k: &usize| exact[*k] - share[*k] as f64;
            let order = |a: &usize, b: &usize| gap(a).total_cmp(&gap(b)).then(b.cmp(a));
            let all = 0..members.len();
            let pick = match missing {
                true => all.filter(|&k| exact[k] > 0.0).max_by(order),
                false => all.filter(|&k| share[k] > 1).min_by(order),
            };
            match pick {
                Some(k) if missing => share[k] += 1,
                Some(k) => share[k] -= 1,
                None => break,
            }
        }
        Ok(Mixture { members, share })
    }

    /// The member of a task, and the task's index among that member's.
    fn place(&self, split: Split, index: u64, seed: u64) -> (usize, u64) {
        let (round, position) = (index / ROUND, (index % ROUND) as usize);
        let mut slots: Vec<usize> = (self.share.iter().enumerate())
            .flat_map(|(k, &n)| std::iter::repeat_n(k, n as usize))
            .collect();
        Draw::new(seed, "env.mixture", round, split as u64).shuffle(&mut slots);
        let member = slots[position];
        let before = slots[..position].iter().filter(|&&k| k == member).count() as u64;
        (member, round * self.share[member] + before)
    }

    /// The member of a task, and the task as that member made it.
    fn inner(&self, task: &Task) -> Result<(&Member, Task)> {
        let member = (task.state["member"].as_u64())
            .and_then(|k| self.members.get(k as usize))
            .ok_or_else(|| super::bad_state("mixture", task))?;
        let inner = Task {
            state: task.state["state"].clone(),
            ..task.clone()
        };
        Ok((member, inner))
    }
}

impl Environment for Mixture {
    fn name(&self) -> &str {
        "mixture"
    }

    fn task(&self, split: Split, index: u64, seed: u64) -> Result<Task> {
        let (k, index) = self.place(split, index, seed);
        let member = &self.members[k];
        let mut task = member.environment.task(split, index, seed)?;
        task.environment = member.label.clone();
        let state: Value = task.state.take();
        task.state = json!({"member": k, "state": state});
        Ok(task)
    }

    fn step(&self, task: &Task, turns: &[Turn], completion: &str) -> Result<Step> {
        let (member, inner) = self.inner(task)?;
        member.environment.step(&inner, turns, completion)
    }

    fn max_turns(&self) -> usize {
        let turns = self.members.iter().map(|m| m.environment.max_turns());
        turns.max().unwrap_or(1)
    }

    fn components(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::new();
        for member in &self.members {
            for name in member.environment.components() {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }

    fn canonical(&self, task: &Task, completion: &str) -> Option<String> {
        let (member, inner) = self.inner(task).ok()?;
        member.environment.canonical(&inner, completion)
    }
}
