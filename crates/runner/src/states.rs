//! The state of every stage of a run, with one setter.

use std::collections::BTreeMap;
use std::sync::Arc;

use cache::Brief;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use spec::Plan;
use spec::plan::Part;

use crate::outcome::{CellOf, StageOutcome, Status};

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

pub struct States {
    graph: DiGraph<(), ()>,
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
    /// For each stage, one at or above it whose assertions do not hold.
    failing: Vec<Option<usize>>,
}

impl States {
    pub fn new(plan: &Plan) -> States {
        let mut graph = DiGraph::with_capacity(plan.order.len(), plan.order.len());
        for _ in &plan.order {
            graph.add_node(());
        }
        for (i, stage) in plan.order.iter().enumerate() {
            for &up in &stage.upstream {
                graph.add_edge(NodeIndex::new(up), NodeIndex::new(i), ());
            }
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
            failing: vec![None; plan.order.len()],
            graph,
        };
        for (i, stage) in plan.order.iter().enumerate() {
            if stage.part == Part::Out {
                states.outcomes[i].why = Some("not selected".into());
                states.outcomes[i].status = Status::Skipped;
                states.phases[i] = Phase::Ended(Status::Skipped);
            } else if stage.upstream.is_empty() {
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
                if status == Status::AssertionFailed {
                    self.failing[i].get_or_insert(i);
                }
                let below: Vec<usize> = self.neighbours(i, Direction::Outgoing).collect();
                for d in below.into_iter().rev() {
                    if self.phases[d] != Phase::Waiting {
                        continue;
                    }
                    if status.has_result() {
                        let ready = self
                            .neighbours(d, Direction::Incoming)
                            .all(|u| matches!(self.phases[u], Phase::Ended(s) if s.has_result()));
                        if ready {
                            self.due_or_held(d);
                        }
                    } else if !matches!(status, Status::Stopped | Status::Killed) {
                        self.skip(d, format!("needs '{}'", self.outcomes[i].stage));
                    }
                }
            }
            Phase::Waiting | Phase::Ready | Phase::Running => {}
        }
    }

    /// What a stage reads is there: it is due, unless it needs assertions that do not hold.
    fn due_or_held(&mut self, i: usize) {
        let mut above = self.neighbours(i, Direction::Incoming);
        let failing = above.find_map(|u| self.failing[u]);
        drop(above);
        self.failing[i] = failing;
        match failing.filter(|_| self.needs_assert[i]) {
            Some(failing) => {
                let stage = &self.outcomes[failing].stage;
                self.skip(i, format!("needs the assertions of '{stage}' to hold"));
            }
            None => self.set(i, Phase::Due),
        }
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
        self.failing[i] = None;
        self.outcomes[i].status = Status::NotRun;
    }

    fn neighbours(&self, i: usize, direction: Direction) -> impl Iterator<Item = usize> + '_ {
        self.graph
            .neighbors_directed(NodeIndex::new(i), direction)
            .map(|n| n.index())
    }

    /// Seconds from each stage's start to the end of the longest chain below it: who is first in line.
    pub fn critical_paths(&self, seconds: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut paths = vec![0.0; self.phases.len()];
        for i in (0..paths.len()).rev() {
            let below = self
                .neighbours(i, Direction::Outgoing)
                .map(|d| paths[d])
                .fold(0.0, f64::max);
            paths[i] = seconds(i) + below;
        }
        paths
    }
}
