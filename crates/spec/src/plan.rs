//! The part of a recipe that a command asks for: stages in an order that respects their inputs.

use crate::{Cell, Diagnostic, PartOf, Recipe, Stage, Until};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What the command line says about stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// `recipe run RECIPE STAGE..` and `--until`: these and what they read.
    pub targets: Vec<String>,
    /// Exactly these; what they read must be in the store.
    pub only: Vec<String>,
    /// These and what reads them; what they read otherwise must be in the store.
    pub from: Vec<String>,
    /// Not these; what reads them takes their result from the store.
    pub skip: Vec<String>,
}

/// What a plan does with a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reuse its result, or run it.
    Run,
    /// Its result is read, but it may not run: it must be in the store.
    Reuse,
    /// Not looked at.
    Out,
}

/// The static DAG.
#[derive(Clone, Debug)]
pub struct Plan {
    pub recipe: Recipe,
    /// All stages, each after those it reads from; among equals, in the order of the file.
    pub order: Vec<PlannedStage>,
}

/// A stage and its place in the DAG.
#[derive(Clone, Debug)]
pub struct PlannedStage {
    pub stage: Arc<Stage>,
    pub part: Part,
    /// Indices into [`Plan::order`] of the stages it reads from.
    pub upstream: Vec<usize>,
    /// Indices of the stages that read from it.
    pub downstream: Vec<usize>,
    /// Indices of the other stages of the same training: the whole and its parts, which take each other's checkpoints.
    pub kin: Vec<usize>,
    /// Those of them that it waits for where they run, to go on from them.
    pub after: Vec<usize>,
}

impl Plan {
    /// Orders a recipe's stages and applies a selection.
    pub fn new(recipe: Recipe, selection: &Selection) -> Result<Self, Box<Diagnostic>> {
        let stages = |names: &[String]| -> Result<Vec<String>, Box<Diagnostic>> {
            let mut all = Vec::new();
            for name in names {
                all.extend(recipe.named(name)?.into_iter().map(str::to_owned));
            }
            Ok(all)
        };
        let selection = &Selection {
            targets: stages(&selection.targets)?,
            only: stages(&selection.only)?,
            from: stages(&selection.from)?,
            skip: stages(&selection.skip)?,
        };
        let names = order(&recipe);
        let index: HashMap<&str, usize> = names
            .iter()
            .enumerate()
            .map(|(i, name)| (name.as_str(), i))
            .collect();
        let upstream: Vec<Vec<usize>> = names
            .iter()
            .map(|n| {
                recipe.stages[n]
                    .upstream()
                    .into_iter()
                    .map(|up| index[up])
                    .collect()
            })
            .collect();
        let mut downstream = vec![Vec::new(); names.len()];
        for (i, ups) in upstream.iter().enumerate() {
            for &up in ups {
                downstream[up].push(i);
            }
        }
        let parts = parts(&names, &upstream, &downstream, selection);
        let mut order: Vec<PlannedStage> = names
            .iter()
            .enumerate()
            .map(|(i, name)| PlannedStage {
                stage: recipe.stages[name].clone(),
                part: parts[i],
                upstream: upstream[i].clone(),
                downstream: downstream[i].clone(),
                kin: Vec::new(),
                after: Vec::new(),
            })
            .collect();
        let mut trainings: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            if let Some(part) = &recipe.stages[name].part_of {
                let of = trainings
                    .entry(&part.stage)
                    .or_insert_with(|| vec![index[part.stage.as_str()]]);
                of.push(i);
            }
        }
        for training in trainings.into_values() {
            relate(&mut order, &training);
        }
        Ok(Self { recipe, order })
    }

    /// The cells of a stage that has a matrix, replicas or `foreach`, in their order; none of any other. Each is a
    /// stage of [`Plan::order`] by its name.
    pub fn cells(&self, stage: &str) -> &[Cell] {
        self.recipe.cells.of(stage)
    }

    /// What a stage is a cell of, and where, if it is one.
    pub fn cell(&self, stage: &str) -> Option<&Cell> {
        self.recipe.cells.get(stage)
    }

    /// The stage of this name.
    pub fn get(&self, name: &str) -> Option<&PlannedStage> {
        self.order.iter().find(|s| s.stage.name == name)
    }
}

/// Relates the stages of one training, of which the first is the whole. What ends earlier goes first; where the best step
/// is asked for, the whole has ended before.
fn relate(order: &mut [PlannedStage], training: &[usize]) {
    let end = |i: usize| match &order[i].stage.part_of {
        None => Some(u64::MAX),
        Some(PartOf {
            until: Until::Step(step),
            ..
        }) => Some(*step),
        Some(PartOf {
            until: Until::Best(_),
            ..
        }) => None,
    };
    let ends: Vec<Option<u64>> = training.iter().map(|i| end(*i)).collect();
    for (&i, mine) in training.iter().zip(&ends) {
        let others = || training.iter().zip(&ends).filter(|(j, _)| **j != i);
        order[i].kin = others().map(|(j, _)| *j).collect();
        if let Some(mine) = mine {
            let before = others().filter(|(_, end)| end.is_some_and(|end| end < *mine));
            order[i].after = before.map(|(j, _)| *j).collect();
        }
    }
}

/// Stable topological order; the resolver has refused cycles. With a stack of its own, since chains
/// may be long.
fn order(recipe: &Recipe) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut out = Vec::with_capacity(recipe.stages.len());
    for start in recipe.stages.values() {
        let mut path = Vec::new();
        if seen.insert(start.name.as_str()) {
            path.push((start, start.upstream().into_iter()));
        }
        while let Some((stage, upstream)) = path.last_mut() {
            match upstream.next() {
                Some(up) if seen.insert(up) => {
                    let up = &recipe.stages[up];
                    path.push((up, up.upstream().into_iter()));
                }
                Some(_) => {}
                None => {
                    out.push(stage.name.clone());
                    path.pop();
                }
            }
        }
    }
    out
}

fn parts(
    names: &[String],
    upstream: &[Vec<usize>],
    downstream: &[Vec<usize>],
    selection: &Selection,
) -> Vec<Part> {
    let set = |list: &[String]| -> BTreeSet<usize> {
        if list.is_empty() {
            return BTreeSet::new();
        }
        (0..names.len())
            .filter(|&i| list.contains(&names[i]))
            .collect()
    };
    let closure = |start: BTreeSet<usize>, edges: &[Vec<usize>]| {
        let mut all = start.clone();
        let mut stack: Vec<usize> = start.into_iter().collect();
        while let Some(i) = stack.pop() {
            stack.extend(edges[i].iter().copied().filter(|&next| all.insert(next)));
        }
        all
    };
    let mut run: BTreeSet<usize> = if selection.only.is_empty() {
        let mut run: BTreeSet<usize> = (0..names.len()).collect();
        if !selection.targets.is_empty() {
            run = closure(set(&selection.targets), upstream);
        }
        if !selection.from.is_empty() {
            let below = closure(set(&selection.from), downstream);
            run.retain(|i| below.contains(i));
        }
        run
    } else {
        set(&selection.only)
    };
    for skipped in set(&selection.skip) {
        run.remove(&skipped);
    }
    // What a stage that may run reads has to be there; that in turn is named by what it reads,
    // because a key is made of its inputs' digests.
    let read = closure(run.clone(), upstream);
    (0..names.len())
        .map(|i| match (run.contains(&i), read.contains(&i)) {
            (true, _) => Part::Run,
            (false, true) => Part::Reuse,
            (false, false) => Part::Out,
        })
        .collect()
}
