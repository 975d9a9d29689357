//! Which rows go into the next forward, and what becomes of sequences after it.
//!
//! Each round `schedule` picks sequences in order of arrival, running ones before waiting ones,
//! while rows, sequences and blocks last. A sequence adds its tokens that are not computed yet: one
//! while it generates, up to a chunk while its prompt is computed. When blocks run out, the
//! sequence that arrived last gives up its blocks and waits; what it had is computed again. None of
//! this shows in the samples.

use crate::batch::Batch;
use crate::blocks::{BLOCK, Blocks, Chain};
use crate::sequence::{Arrival, Sequence};
use std::collections::VecDeque;

/// A sequence's part of a round: `rows` more of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    /// Its place in [`Scheduler::running`] while the round is put together.
    running: usize,
    /// Its arrival, by which it is found afterwards.
    arrival: Arrival,
    rows: usize,
}

/// What the next forward computes.
#[derive(Default)]
pub struct Round {
    /// The rows.
    pub batch: Batch,
    /// Blocks to copy before: from, to.
    pub copies: Vec<(u32, u32)>,
    turns: Vec<Turn>,
    /// Rows of sequences whose prompt is not computed yet.
    prompt_rows: usize,
}

impl Round {
    /// Its forward, for a trace: `prefill` where all rows are of prompts, `decode` where none is.
    pub fn seen(&self) -> trace::Span {
        let rows = self.batch.rows.len();
        let seen = trace::phase(match self.prompt_rows {
            0 => "decode",
            n if n == rows => "prefill",
            _ => "prefill and decode",
        });
        seen.with("tokens", rows)
            .with("prompt_tokens", self.prompt_rows)
            .with("sequences", self.turns.len())
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Rows whose logits are wanted, ascending: the last tokens of sequences that are computed in
    /// full, with the place of the sequence in [`Scheduler::running`] as it was scheduled.
    pub fn ends<'a>(
        &'a self,
        running: &'a [Sequence],
    ) -> impl Iterator<Item = (usize, usize)> + 'a {
        self.turns
            .iter()
            .zip(&self.batch.runs)
            .filter_map(|(turn, run)| {
                let whole = running[turn.running].pending() == turn.rows;
                whole.then(|| (run.end - 1, turn.running))
            })
    }
}

/// Sequences that run and wait.
pub struct Scheduler {
    max_rows: usize,
    max_sequences: usize,
    /// In order of arrival; own blocks.
    pub running: Vec<Sequence>,
    /// In order of arrival; those whose prompt is computed may own blocks.
    waiting: VecDeque<Sequence>,
    /// Tokens that were found in the cache rather than computed.
    pub reused: u64,
    /// Times that a sequence gave up its blocks.
    pub preempted: u64,
}

impl Scheduler {
    /// Nothing to do yet.
    pub fn new(max_rows: usize, max_sequences: usize) -> Self {
        Self {
            max_rows: max_rows.max(1),
            max_sequences: max_sequences.max(1),
            running: Vec::new(),
            waiting: VecDeque::new(),
            reused: 0,
            preempted: 0,
        }
    }

    /// Adds a sequence after all that arrived before it.
    pub fn add(&mut self, sequence: Sequence) {
        let at = self
            .waiting
            .partition_point(|s| s.arrival < sequence.arrival);
        self.waiting.insert(at, sequence);
    }

    /// Whether all is done.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Picks the rows of the next forward; at least one unless idle.
    pub fn schedule(&mut self, blocks: &mut Blocks) -> Round {
        let mut round = Round::default();
        let mut rows = self.max_rows;
        let mut i = 0;
        self.running.sort_by_key(|s| s.arrival);
        while i < self.running.len() && rows > 0 {
            if self.running[i].is_over() {
                i += 1;
                continue;
            }
            let want = self.running[i].pending().min(rows);
            match self.reserve(blocks, i, want, &mut round) {
                true => {
                    rows -= want;
                    round.turns.push(Turn {
                        running: i,
                        arrival: self.running[i].arrival,
                        rows: want,
                    });
                    i += 1;
                }
                false => self.preempt(blocks, i),
            }
        }
        // a waiting one starts only with blocks that nobody has to give up
        while rows > 0 && self.running.len() < self.max_sequences && i == self.running.len() {
            let next = self.waiting.iter().position(|s| !s.is_over());
            let Some(mut sequence) = next.and_then(|at| self.waiting.remove(at)) else {
                break;
            };
            self.adopt_prefix(blocks, &mut sequence);
            let want = sequence.pending().min(rows);
            if self.missing(blocks, &sequence, want) > blocks.available() {
                self.add(sequence);
                if self.running.is_empty() {
                    // only blocks of waiting sequences can be in the way
                    self.take_back_from_waiting(blocks);
                    continue;
                }
                break;
            }
            let arrival = sequence.arrival;
            self.running.push(sequence);
            let reserved = self.reserve(blocks, i, want, &mut round);
            debug_assert!(reserved, "enough blocks were available");
            rows -= want;
            round.turns.push(Turn {
                running: i,
                arrival,
                rows: want,
            });
            i += 1;
        }
        for turn in &round.turns {
            let s = &self.running[turn.running];
            let prompt = s.request.prompt.len().saturating_sub(s.computed);
            round.prompt_rows += prompt.min(turn.rows);
            round.batch.push(
                &s.tokens[s.computed..s.computed + turn.rows],
                s.computed,
                &s.table,
                s.unread.filter(|_| s.pending() == turn.rows),
            );
        }
        round
    }

    /// Where the sequence that arrived then runs, unless it has ended: at `was`, where it ran when it was scheduled, or
    /// before, as others have ended since.
    pub fn find(&self, arrival: Arrival, was: usize) -> Option<usize> {
        let most = self.running.len().min(was + 1);
        self.running[..most]
            .iter()
            .rposition(|s| s.arrival == arrival)
    }

    /// Every sequence whose last token is not read.
    pub fn unread(&mut self) -> impl Iterator<Item = &mut Sequence> {
        let all = self.running.iter_mut().chain(&mut self.waiting);
        all.filter(|s| s.unread.is_some())
    }

    /// Counts a round's rows as computed and publishes the blocks that they filled. The tokens of these rows are read.
    pub fn advance(&mut self, round: &Round, blocks: &mut Blocks) {
        for turn in &round.turns {
            let Some(at) = self.find(turn.arrival, turn.running) else {
                continue;
            };
            let s = &mut self.running[at];
            s.computed += turn.rows;
            while (s.chains.len() + 1) * BLOCK <= s.computed {
                let at = s.chains.len();
                let before = s.chains.last().copied().unwrap_or(0);
                s.chains
                    .push(blocks.publish(s.table[at], before, block_of(&s.tokens, at)));
            }
        }
    }

    /// Splits a computed group into one sequence per sample that share its blocks: the first takes
    /// the group's place in `running`, the others wait. `each` gives a sample its first token.
    pub fn fork(&mut self, group: usize, blocks: &mut Blocks, mut each: impl FnMut(&mut Sequence)) {
        let whole = self.running[group].clone();
        for sample in whole.samples.clone() {
            let mut one = whole.clone();
            one.samples = sample..sample + 1;
            one.arrival.1 = sample;
            each(&mut one);
            if sample == whole.samples.start {
                self.running[group] = one;
            } else {
                one.table.iter().for_each(|&b| blocks.share(b));
                self.add(one);
            }
        }
    }

    /// Takes the finished sequences out and frees their blocks, after `each` has seen them. A sample
    /// of a group may finish with its first token, while it waits.
    pub fn take_finished(
        &mut self,
        blocks: &mut Blocks,
        each: impl Fn(&mut Sequence),
    ) -> Vec<Sequence> {
        let mut done: Vec<_> = self
            .running
            .extract_if(.., |s| s.finish.is_some())
            .collect();
        let mut i = 0;
        while i < self.waiting.len() {
            match self.waiting[i].finish.is_some() {
                true => done.extend(self.waiting.remove(i)),
                false => i += 1,
            }
        }
        for s in &mut done {
            each(s);
            release(blocks, s);
        }
        done
    }

    /// Drops all sequences and frees their blocks.
    pub fn clear(&mut self, blocks: &mut Blocks) {
        for mut s in self.running.drain(..).chain(self.waiting.drain(..)) {
            release(blocks, &mut s);
        }
    }

    /// Takes over the cached blocks that hold the beginning of a sequence without any. The last
    /// token is always computed, for its logits.
    fn adopt_prefix(&mut self, blocks: &mut Blocks, s: &mut Sequence) {
        if s.computed > 0 {
            return;
        }
        while (s.chains.len() + 1) * BLOCK < s.tokens.len() {
            let before: Chain = s.chains.last().copied().unwrap_or(0);
            let Some((id, chain)) = blocks.find(before, block_of(&s.tokens, s.chains.len())) else {
                break;
            };
            s.table.push(id);
            s.chains.push(chain);
        }
        s.computed = s.chains.len() * BLOCK;
        self.reused += s.computed as u64;
    }

    /// Blocks that `rows` more rows of a sequence need from the free ones.
    fn missing(&self, blocks: &Blocks, s: &Sequence, rows: usize) -> usize {
        let copy = s
            .table
            .get(s.computed / BLOCK)
            .is_some_and(|&b| blocks.is_shared(b));
        (s.computed + rows)
            .div_ceil(BLOCK)
            .saturating_sub(s.table.len())
            + usize::from(copy)
    }

    /// Gives a running sequence the blocks for `rows` more rows, taking them from sequences that
    /// arrived after it if need be. `false` if it would have to give way itself.
    fn reserve(&mut self, blocks: &mut Blocks, i: usize, rows: usize, round: &mut Round) -> bool {
        while self.missing(blocks, &self.running[i], rows) > blocks.available() {
            if self.waiting.iter().any(|w| !w.table.is_empty()) {
                self.take_back_from_waiting(blocks);
            } else if i + 1 < self.running.len() {
                self.preempt(blocks, self.running.len() - 1);
            } else {
                return false;
            }
        }
        let s = &mut self.running[i];
        let at = s.computed / BLOCK;
        if let Some(&shared) = s.table.get(at).filter(|&&b| blocks.is_shared(b)) {
            let own = blocks.take().expect("counted as available");
            round.copies.push((shared, own));
            blocks.release(shared);
            s.table[at] = own;
        }
        while s.table.len() * BLOCK < s.computed + rows {
            s.table.push(blocks.take().expect("counted as available"));
        }
        true
    }

    /// Sends a running sequence back to wait without its blocks.
    fn preempt(&mut self, blocks: &mut Blocks, i: usize) {
        let mut s = self.running.remove(i);
        release(blocks, &mut s);
        self.preempted += 1;
        self.add(s);
    }

    /// Takes the blocks of the waiting sequence that arrived last among those that own any.
    fn take_back_from_waiting(&mut self, blocks: &mut Blocks) {
        if let Some(s) = self.waiting.iter_mut().rev().find(|s| !s.table.is_empty()) {
            release(blocks, s);
            self.preempted += 1;
        }
    }
}

fn block_of(tokens: &[u32], at: usize) -> &[u32; BLOCK] {
    tokens[at * BLOCK..][..BLOCK]
        .try_into()
        .expect("a full block")
}

/// Frees a sequence's blocks, last ones first.
fn release(blocks: &mut Blocks, s: &mut Sequence) {
    for id in s.table.drain(..).rev() {
        blocks.release(id);
    }
    s.chains.clear();
    s.computed = 0;
}
