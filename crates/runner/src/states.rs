//! The state of every stage of a run, with one setter.

use std::collections::BTreeMap;
use std::sync::Arc;

use cache::Brief;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use spec::Plan;
use spec::plan::Part;

use crate::outcome::{CellOf, StageOutcome, Status};
use crate::replicas::Replicas;

/// Where a stage stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Something it reads is not there yet.
    Waiting,
    /// Everything it reads is there; not decided yet.
    Due,
    /// To be computed as soon as there is room.
    Ready,
    Running,
    Ended(Status),
}

/// Why a stage comes after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    /// It reads it.
    Reads,
    /// It waits for its end, whatever that is.
    Waits,
}

pub struct States {
    graph: DiGraph<(), Edge>,
    phases: Vec<Phase>,
    /// What is told of each stage at the end.
    pub outcomes: Vec<StageOutcome>,
    /// Results of stages that ended with one.
    pub made: Vec<Option<Arc<Brief>>>,
    /// Stages that became due or were skipped and wait for the main loop's attention, first come first.
    pub due: std::collections::VecDeque<usize>,
    /// Stages that were skipped since the main loop last looked.
    pub skipped: Vec<usize>,
    /// Whether each stage says `needs_assert`.
    needs_assert: Vec<bool>,
    /// Stages whose assertions do not hold.
    broken: Vec<bool>,
    replicas: Replicas,
}

impl States {
    pub fn new(plan: &Plan) -> States {
        let mut graph = DiGraph::with_capacity(plan.order.len(), plan.order.len());
        for _ in &plan.order {
            graph.add_node(());
        }
        for (i, stage) in plan.order.iter().enumerate() {
            for &up in &stage.upstream {
                graph.add_edge(NodeIndex::new(up), NodeIndex::new(i), Edge::Reads);
            }
            for &before in &stage.after {
                graph.add_edge(NodeIndex::new(before), NodeIndex::new(i), Edge::Waits);
            }
        }
        let replicas = Replicas::of(plan);
        for (before, i) in replicas.waits(plan) {
            graph.add_edge(NodeIndex::new(before), NodeIndex::new(i), Edge::Waits);
        }
        let outcomes = plan.order.iter().map(|s| StageOutcome {
            stage: s.stage.name.clone(),
            cell: plan.cell(&s.stage.name).map(CellOf::from),
            chosen: Vec::new(),
            kind: s.stage.kind.name.to_owned(),
            reads: s.stage.upstream().into_iter().map(str::to_owned).collect(),
            status: Status::NotRun,
            key: None,
            attempt: None,
            outputs: BTreeMap::new(),
            metrics: BTreeMap::new(),
            verdicts: Vec::new(),
            why: None,
            error: None,
            seconds: 0.0,
            cost_seconds: None,
            cost: None,
            spent: cache::Cost::default(),
        });
        let mut states = States {
            phases: vec![Phase::Waiting; plan.order.len()],
            outcomes: outcomes.collect(),
            made: vec![None; plan.order.len()],
            due: std::collections::VecDeque::new(),
            skipped: Vec::new(),
            needs_assert: plan.order.iter().map(|s| s.stage.needs_assert).collect(),
            broken: vec![false; plan.order.len()],
            replicas,
            graph,
        };
        for (i, stage) in plan.order.iter().enumerate() {
            if stage.part == Part::Out {
                states.outcomes[i].why = Some("not selected".into());
                states.outcomes[i].status = Status::Skipped;
                states.phases[i] = Phase::Ended(Status::Skipped);
            }
        }
        for i in 0..plan.order.len() {
            if states.phases[i] == Phase::Waiting && states.may_begin(i) {
                states.set(i, Phase::Due);
            }
        }
        states
    }

    /// The only way a stage changes its state. An end makes the stages below due, or skips
    /// them; a stop leaves them as they are, for the next run.
    pub fn set(&mut self, i: usize, phase: Phase) {
        debug_assert!(
            !matches!(self.phases[i], Phase::Ended(_)),
            "stage {i} has ended"
        );
        self.phases[i] = phase;
        match phase {
            Phase::Due => self.due.push_back(i),
            Phase::Ended(status) => {
                self.outcomes[i].status = status;
                let stopped = matches!(status, Status::Stopped | Status::Killed);
                if status == Status::AssertionFailed {
                    self.broken[i] = true;
                } else if !status.has_result() && !stopped {
                    // without it the others cannot be judged
                    self.break_group(i);
                }
                let edges = self
                    .graph
                    .edges_directed(NodeIndex::new(i), Direction::Outgoing);
                let mut below: Vec<(usize, Edge)> =
                    edges.map(|e| (e.target().index(), *e.weight())).collect();
                below.reverse();
                for (d, edge) in below {
                    if self.phases[d] != Phase::Waiting || stopped {
                        continue;
                    }
                    if edge == Edge::Reads && !status.has_result() {
                        self.skip(d, format!("needs '{}'", self.outcomes[i].stage));
                    } else if self.may_begin(d) {
                        self.due_or_held(d);
                    }
                }
            }
            Phase::Waiting | Phase::Ready | Phase::Running => {}
        }
    }

    /// Whether all that a stage reads is there, and all that it waits for has ended.
    fn may_begin(&self, i: usize) -> bool {
        let mut edges = self
            .graph
            .edges_directed(NodeIndex::new(i), Direction::Incoming);
        edges.all(|e| match (e.weight(), self.phases[e.source().index()]) {
            (Edge::Reads, Phase::Ended(status)) => status.has_result(),
            (Edge::Waits, Phase::Ended(status)) => {
                !matches!(status, Status::Stopped | Status::Killed)
            }
            _ => false,
        })
    }

    /// The other replicas of a stage that its assertions look at too.
    pub fn judged_with(&self, i: usize) -> &[usize] {
        &self.replicas.others[i]
    }

    /// The assertions of a stage's replicas together do not hold: what is below any of them is held back.
    pub fn break_group(&mut self, i: usize) {
        for &other in &self.replicas.others[i] {
            self.broken[other] = true;
        }
    }

    /// A stage may begin: it is due, unless it needs assertions that do not hold.
    fn due_or_held(&mut self, i: usize) {
        let needs = self.needs_assert[i];
        match needs.then(|| self.broken_above(i)).flatten() {
            Some(broken) => {
                let stage = &self.outcomes[broken].stage;
                self.skip(i, format!("needs the assertions of '{stage}' to hold"));
            }
            None => self.set(i, Phase::Due),
        }
    }

    /// The nearest stage above whose assertions do not hold.
    fn broken_above(&self, i: usize) -> Option<usize> {
        if !self.broken.contains(&true) {
            return None;
        }
        let mut seen = vec![false; self.broken.len()];
        let mut queue = std::collections::VecDeque::from([i]);
        while let Some(at) = queue.pop_front() {
            for up in self.above(at) {
                if self.broken[up] {
                    return Some(up);
                }
                if !std::mem::replace(&mut seen[up], true) {
                    queue.push_back(up);
                }
            }
        }
        None
    }

    /// What a stage reads.
    fn above(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let edges = self
            .graph
            .edges_directed(NodeIndex::new(i), Direction::Incoming);
        let reads = edges.filter(|e| *e.weight() == Edge::Reads);
        reads.map(|e| e.source().index())
    }

    fn skip(&mut self, i: usize, why: String) {
        self.outcomes[i].why = Some(why);
        self.skipped.push(i);
        self.set(i, Phase::Ended(Status::Skipped));
    }

    /// Takes a stage back that had ended or was running: it waits for what it reads again.
    pub fn reopen(&mut self, i: usize) {
        self.phases[i] = Phase::Waiting;
        self.made[i] = None;
        self.broken[i] = false;
        self.outcomes[i].status = Status::NotRun;
    }

    /// Seconds from each stage's start to the end of the longest chain below it: who is first in line.
    pub fn critical_paths(&self, seconds: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut paths = vec![0.0; self.phases.len()];
        for i in (0..paths.len()).rev() {
            let below = self
                .graph
                .neighbors_directed(NodeIndex::new(i), Direction::Outgoing)
                .map(|d| paths[d.index()])
                .fold(0.0, f64::max);
            paths[i] = seconds(i) + below;
        }
        paths
    }
}
