//! Which stage computes or sends what when: 1F1B (Narayanan et al., "PipeDream", 2019) and its
//! interleaved form (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU
//! Clusters Using Megatron-LM", 2021, section 2.2).
//!
//! Every stage's computations have the order of the papers. Transfers are laid between them by
//! playing the whole pipeline once: a transfer happens when its data is there and neither end
//! computes. What a stage does is its part of that one play, in the play's order. So blocking sends
//! and receives cannot wait for each other in a circle: of all that is not done yet, what the play
//! did first can always be done.
//!
//! The papers ask the interleaved form for microbatches in multiples of the stages. Other numbers
//! are rounded up for the order, and what belongs to microbatches that do not exist is left out.

use std::collections::VecDeque;

/// A pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Ranks of the pipeline group, at least 1.
    pub stages: usize,
    /// Chunks that each stage holds, at least 1. Chunk `c` of all `stages * chunks` lies on stage
    /// `c % stages`.
    pub chunks: usize,
    /// Microbatches of a step.
    pub microbatches: usize,
}

/// Direction of a computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// From a chunk's input boundary to its output.
    Forward,
    /// From the gradient of its output boundary to that of its input.
    Backward,
}

/// One computation: a microbatch through a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Direction.
    pub pass: Pass,
    /// Chunk, of all chunks of the pipeline.
    pub chunk: usize,
    /// Microbatch.
    pub microbatch: usize,
}

/// What a stage does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Compute.
    Run(Place),
    /// Send what `Place` will read to the stage that computes it.
    Send(Place, usize),
    /// Receive what `Place` reads from the stage that computed it.
    Receive(Place, usize),
}

impl Shape {
    /// Chunks of all stages.
    pub fn all_chunks(&self) -> usize {
        self.stages * self.chunks
    }

    /// The stage that holds a chunk.
    pub fn stage(&self, chunk: usize) -> usize {
        chunk % self.stages
    }

    /// Forwards of a stage whose backward is still to come, at most: what it must keep.
    pub fn in_flight(&self, stage: usize) -> usize {
        let all = self.microbatches * self.chunks;
        all.min(self.warmup(stage) + 1)
    }

    /// Events by stage of a step of training: every microbatch forward and backward.
    pub fn train(&self) -> Vec<Vec<Event>> {
        self.play(|stage| self.one_forward_one_backward(stage))
    }

    /// Events by stage of forwards alone.
    pub fn infer(&self) -> Vec<Vec<Event>> {
        self.play(|stage| self.order(stage, Pass::Forward).collect())
    }

    /// Forwards of a stage before its first backward.
    fn warmup(&self, stage: usize) -> usize {
        let after = self.stages - stage - 1;
        match self.chunks {
            1 => after,
            chunks => 2 * after + (chunks - 1) * self.stages,
        }
    }

    /// A stage's computations of one direction, those of microbatches that do not exist too: groups
    /// of as many microbatches as there are stages go through one chunk after the other.
    fn rounded(&self, stage: usize, pass: Pass) -> impl Iterator<Item = Place> {
        let Shape {
            stages,
            chunks,
            microbatches,
        } = *self;
        let group = if chunks == 1 { 1 } else { stages };
        let groups = microbatches.div_ceil(group);
        (0..groups * group * chunks).map(move |i| {
            let (group_index, within) = (i / (group * chunks), i % (group * chunks));
            let chunk = match pass {
                Pass::Forward => within / group,
                Pass::Backward => chunks - 1 - within / group,
            };
            Place {
                pass,
                chunk: chunk * stages + stage,
                microbatch: group_index * group + within % group,
            }
        })
    }

    fn order(&self, stage: usize, pass: Pass) -> impl Iterator<Item = Place> {
        let exist = self.microbatches;
        self.rounded(stage, pass)
            .filter(move |p| p.microbatch < exist)
    }

    fn one_forward_one_backward(&self, stage: usize) -> Vec<Place> {
        let mut forwards = self.rounded(stage, Pass::Forward);
        let mut out: Vec<Place> = forwards.by_ref().take(self.warmup(stage)).collect();
        for backward in self.rounded(stage, Pass::Backward) {
            out.extend(forwards.next());
            out.push(backward);
        }
        out.retain(|p| p.microbatch < self.microbatches);
        out
    }

    /// The computation that reads what `place` gives, if any.
    fn next(&self, place: Place) -> Option<Place> {
        let chunk = match place.pass {
            Pass::Forward => (place.chunk + 1 < self.all_chunks()).then_some(place.chunk + 1),
            Pass::Backward => place.chunk.checked_sub(1),
        };
        chunk.map(|chunk| Place { chunk, ..place })
    }

    /// Whether `place` reads what another computation gives.
    fn waits(&self, place: Place) -> bool {
        match place.pass {
            Pass::Forward => place.chunk > 0,
            Pass::Backward => place.chunk + 1 < self.all_chunks(),
        }
    }

    /// Plays the pipeline: a forward takes one unit of time, a backward two, a transfer none.
    fn play(&self, order: impl Fn(usize) -> Vec<Place>) -> Vec<Vec<Event>> {
        let mut players: Vec<Player> = (0..self.stages)
            .map(|stage| Player {
                todo: order(stage).into(),
                ..Player::default()
            })
            .collect();
        loop {
            self.transfer(&mut players);
            for player in &mut players {
                player.start(|place| self.waits(place));
            }
            let Some(next) = players.iter().filter_map(|p| p.busy.map(|b| b.1)).min() else {
                debug_assert!(
                    players.iter().all(|p| p.todo.is_empty()),
                    "{self:?} is stuck"
                );
                return players.into_iter().map(|p| p.events).collect();
            };
            for player in &mut players {
                if let Some((place, end)) = player.busy
                    && end == next
                {
                    player.busy = None;
                    player.now = end;
                    player.outbox.extend(self.next(place));
                }
                player.now = next;
            }
        }
    }

    /// Everything that can change hands now does.
    fn transfer(&self, players: &mut [Player]) {
        for from in 0..players.len() {
            let mut kept = VecDeque::new();
            while let Some(place) = players[from].outbox.pop_front() {
                let to = self.stage(place.chunk);
                if to == from {
                    players[to].inbox.push(place);
                } else if kept.is_empty() && players[from].is_free() && players[to].is_free() {
                    players[from].events.push(Event::Send(place, to));
                    players[to].events.push(Event::Receive(place, from));
                    players[to].inbox.push(place);
                } else {
                    kept.push_back(place);
                }
            }
            players[from].outbox = kept;
        }
    }
}

/// A stage in the play.
#[derive(Default)]
struct Player {
    todo: VecDeque<Place>,
    /// What it computes, and when it will be done.
    busy: Option<(Place, usize)>,
    now: usize,
    /// Given, not sent.
    outbox: VecDeque<Place>,
    /// Received, not read.
    inbox: Vec<Place>,
    events: Vec<Event>,
}

impl Player {
    fn is_free(&self) -> bool {
        self.busy.is_none()
    }

    /// Starts the next computation if nothing is to be sent and its input is there.
    fn start(&mut self, waits: impl Fn(Place) -> bool) {
        let Some(&place) = self.todo.front() else {
            return;
        };
        if !self.is_free() || !self.outbox.is_empty() {
            return;
        }
        if waits(place) {
            let Some(at) = self.inbox.iter().position(|&p| p == place) else {
                return;
            };
            self.inbox.swap_remove(at);
        }
        self.todo.pop_front();
        self.events.push(Event::Run(place));
        let time = match place.pass {
            Pass::Forward => 1,
            Pass::Backward => 2,
        };
        self.busy = Some((place, self.now + time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn shapes() -> impl Iterator<Item = Shape> {
        (1..=6).flat_map(|stages| {
            (1..=4).flat_map(move |chunks| {
                (0..=13).map(move |microbatches| Shape {
                    stages,
                    chunks,
                    microbatches,
                })
            })
        })
    }

    /// Runs the events as ranks with blocking, unbuffered sends would; panics if they get stuck.
    /// Returns the most forwards that each stage kept at a time.
    fn execute(shape: &Shape, events: &[Vec<Event>]) -> Vec<usize> {
        let mut at = vec![0; shape.stages];
        let mut have: Vec<HashSet<Place>> = vec![HashSet::new(); shape.stages];
        let mut done = HashSet::new();
        let mut kept = vec![(0usize, 0usize); shape.stages];
        loop {
            let mut moved = false;
            for stage in 0..shape.stages {
                match events[stage].get(at[stage]) {
                    Some(&Event::Run(place)) => {
                        assert_eq!(shape.stage(place.chunk), stage);
                        if shape.waits(place) {
                            assert!(
                                have[stage].remove(&place),
                                "{shape:?} {place:?} lacks input"
                            );
                        }
                        if place.pass == Pass::Backward {
                            let pass = Pass::Forward;
                            assert!(
                                done.contains(&Place { pass, ..place }),
                                "{place:?} too early"
                            );
                            kept[stage].0 -= 1;
                        } else {
                            kept[stage].0 += 1;
                            kept[stage].1 = kept[stage].1.max(kept[stage].0);
                        }
                        assert!(done.insert(place), "{shape:?} {place:?} twice");
                        // what stays on the stage needs no transfer
                        if let Some(next) = shape.next(place)
                            && shape.stage(next.chunk) == stage
                        {
                            have[stage].insert(next);
                        }
                        at[stage] += 1;
                        moved = true;
                    }
                    Some(&Event::Send(place, to)) => {
                        let matching = Some(&Event::Receive(place, stage));
                        if events[to].get(at[to]) == matching {
                            let pass = place.pass;
                            let chunk = match pass {
                                Pass::Forward => place.chunk - 1,
                                Pass::Backward => place.chunk + 1,
                            };
                            assert!(done.contains(&Place { chunk, ..place }), "nothing to send");
                            have[to].insert(place);
                            at[stage] += 1;
                            at[to] += 1;
                            moved = true;
                        }
                    }
                    Some(Event::Receive(..)) | None => {}
                }
            }
            if !moved {
                break;
            }
        }
        for (stage, events) in events.iter().enumerate() {
            assert_eq!(at[stage], events.len(), "{shape:?}: stage {stage} is stuck");
        }
        assert!(have.iter().all(HashSet::is_empty), "received for nothing");
        kept.into_iter().map(|k| k.1).collect()
    }

    fn runs(events: &[Vec<Event>]) -> Vec<Place> {
        let mut out: Vec<Place> = events
            .iter()
            .flatten()
            .filter_map(|e| match e {
                Event::Run(place) => Some(*place),
                _ => None,
            })
            .collect();
        out.sort();
        out
    }

    fn every(shape: &Shape, passes: &[Pass]) -> Vec<Place> {
        let mut out = Vec::new();
        for &pass in passes {
            for chunk in 0..shape.all_chunks() {
                out.extend((0..shape.microbatches).map(|microbatch| Place {
                    pass,
                    chunk,
                    microbatch,
                }));
            }
        }
        out
    }

    #[test]
    fn each_microbatch_passes_each_chunk_once_both_ways_without_deadlock() {
        for shape in shapes() {
            let events = shape.train();
            let most = execute(&shape, &events);
            let passes = [Pass::Forward, Pass::Backward];
            assert_eq!(runs(&events), every(&shape, &passes), "{shape:?}");
            for (stage, most) in most.into_iter().enumerate() {
                assert!(
                    most <= shape.in_flight(stage),
                    "{shape:?}: stage {stage} keeps {most}"
                );
            }
        }
    }

    #[test]
    fn forwards_alone_pass_too() {
        for shape in shapes() {
            let events = shape.infer();
            execute(&shape, &events);
            assert_eq!(runs(&events), every(&shape, &[Pass::Forward]), "{shape:?}");
        }
    }

    #[test]
    fn transfers_between_two_stages_match_in_order_on_both_ends() {
        for shape in shapes() {
            let events = shape.train();
            for from in 0..shape.stages {
                for to in 0..shape.stages {
                    let sent = events[from].iter().filter_map(|e| match e {
                        Event::Send(place, t) if *t == to => Some(*place),
                        _ => None,
                    });
                    let received = events[to].iter().filter_map(|e| match e {
                        Event::Receive(place, f) if *f == from => Some(*place),
                        _ => None,
                    });
                    assert!(sent.eq(received), "{shape:?}: {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn the_orders_are_the_papers() {
        let text = |stages, chunks, microbatches, stage: usize| -> String {
            let shape = Shape {
                stages,
                chunks,
                microbatches,
            };
            let letter = |e: &Event| match e {
                Event::Run(p) => {
                    let letter = if p.pass == Pass::Forward { 'F' } else { 'B' };
                    Some(format!("{letter}{}.{}", p.microbatch, p.chunk / stages))
                }
                _ => None,
            };
            let events = shape.train().swap_remove(stage);
            events
                .iter()
                .filter_map(letter)
                .collect::<Vec<_>>()
                .join(" ")
        };
        // PipeDream's figure: four stages, the first keeps four microbatches, the last one
        assert_eq!(
            text(4, 1, 5, 0),
            "F0.0 F1.0 F2.0 F3.0 B0.0 F4.0 B1.0 B2.0 B3.0 B4.0"
        );
        assert_eq!(
            text(4, 1, 5, 3),
            "F0.0 B0.0 F1.0 B1.0 F2.0 B2.0 F3.0 B3.0 F4.0 B4.0"
        );
        // interleaved: two microbatches through chunk 0, then through chunk 1
        assert_eq!(
            text(2, 2, 4, 0),
            "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0"
        );
        assert_eq!(
            text(2, 2, 3, 1),
            "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 B1.0 F2.1 B2.1 B2.0"
        );
    }

    #[test]
    fn more_microbatches_keep_a_pipeline_busier_but_no_fuller() {
        let shape = |microbatches| Shape {
            stages: 4,
            chunks: 1,
            microbatches,
        };
        assert_eq!(
            (0..4).map(|s| shape(100).in_flight(s)).collect::<Vec<_>>(),
            [4, 3, 2, 1]
        );
        assert_eq!(
            (0..4).map(|s| shape(2).in_flight(s)).collect::<Vec<_>>(),
            [2, 2, 2, 1]
        );
    }
}
