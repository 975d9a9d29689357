//! Who owns which block of the KV cache, and which blocks hold a known prefix.
//!
//! A block holds the keys and values of 16 consecutive tokens. Sequences share blocks by counting
//! references; whoever writes to a shared block copies it first. Full blocks are published under
//! their tokens and the chain of blocks before them, so that a later sequence with the same
//! beginning takes them over. All of it belongs to one version of the weights.

use std::collections::{BTreeMap, HashMap};

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// Names a published prefix of whole blocks; never used twice. 0 is the empty prefix.
pub type Chain = u64;

/// Tokens of one block and the prefix that they follow.
type Content = (Chain, [u32; BLOCK]);

#[derive(Default, Clone)]
struct Block {
    owners: u32,
    /// What it is published under, and its chain.
    published: Option<(Content, Chain)>,
    /// When its last owner let go, while nobody owns it.
    idle_since: u64,
}

/// Ownership of blocks `0..len`.
pub struct Blocks {
    blocks: Vec<Block>,
    /// Blocks from here on were never used: the system has no memory behind them yet.
    fresh: u32,
    /// Used blocks without owner or content; the last one is used next.
    free: Vec<u32>,
    /// Blocks without owner that a prefix may yet be found in, oldest first.
    idle: BTreeMap<u64, u32>,
    by_content: HashMap<Content, u32>,
    last_chain: Chain,
    clock: u64,
    owned: usize,
    /// The most blocks that were owned at once.
    peak: usize,
}

impl Blocks {
    /// `len` free blocks.
    pub fn new(len: usize) -> Self {
        Self {
            blocks: vec![Block::default(); len],
            fresh: 0,
            free: Vec::new(),
            idle: BTreeMap::new(),
            by_content: HashMap::new(),
            last_chain: 0,
            clock: 0,
            owned: 0,
            peak: 0,
        }
    }

    /// Blocks in all.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`Blocks::take`] can give.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len() + self.blocks.len() - self.fresh as usize
    }

    /// A block of one's own, forgetting the oldest idle prefix if need be; `None` if all are owned.
    ///
    /// Prefixes keep as many blocks as were owned at once, for a sequence that goes on after a
    /// pause; past that they are forgotten before fresh memory is used, which is slow at first.
    pub fn take(&mut self) -> Option<u32> {
        let room = (self.fresh as usize) < self.blocks.len();
        let spare = (self.fresh as usize) < 2 * self.peak.max(self.owned + 1);
        let id = if let Some(id) = self.free.pop() {
            id
        } else if room && (spare || self.idle.is_empty()) {
            self.fresh += 1;
            self.fresh - 1
        } else {
            let (_, id) = self.idle.pop_first()?;
            self.unpublish(id);
            id
        };
        self.blocks[id as usize].owners = 1;
        self.own();
        Some(id)
    }

    fn own(&mut self) {
        self.owned += 1;
        self.peak = self.peak.max(self.owned);
    }

    /// One more owner of an owned block.
    pub fn share(&mut self, id: u32) {
        self.blocks[id as usize].owners += 1;
    }

    /// Whether the block has several owners, so that none of them may write to it.
    pub fn is_shared(&self, id: u32) -> bool {
        self.blocks[id as usize].owners > 1
    }

    /// One owner less. A sequence lets go of its last blocks first: prefixes are forgotten from
    /// their ends.
    pub fn release(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.owners -= 1;
        if block.owners > 0 {
            return;
        }
        self.owned -= 1;
        if block.published.is_some() {
            self.clock += 1;
            block.idle_since = self.clock;
            self.idle.insert(self.clock, id);
        } else {
            self.free.push(id);
        }
    }

    /// Makes a full block findable; returns the chain of the prefix that ends with it. If the same
    /// prefix is published already, that one stays and its chain is returned.
    pub fn publish(&mut self, id: u32, before: Chain, tokens: &[u32; BLOCK]) -> Chain {
        let content = (before, *tokens);
        if let Some(&known) = self.by_content.get(&content) {
            return self.blocks[known as usize]
                .published
                .expect("found by its content")
                .1;
        }
        self.last_chain += 1;
        self.by_content.insert(content, id);
        self.blocks[id as usize].published = Some((content, self.last_chain));
        self.last_chain
    }

    /// Takes shared ownership of the block that holds `tokens` after the prefix `before`.
    pub fn find(&mut self, before: Chain, tokens: &[u32; BLOCK]) -> Option<(u32, Chain)> {
        let id = *self.by_content.get(&(before, *tokens))?;
        if self.blocks[id as usize].owners == 0 {
            self.idle.remove(&self.blocks[id as usize].idle_since);
            self.own();
        }
        let block = &mut self.blocks[id as usize];
        block.owners += 1;
        Some((id, block.published.expect("found by its content").1))
    }

    /// Forgets every published prefix; owners keep their blocks.
    pub fn forget(&mut self) {
        self.by_content.clear();
        for block in &mut self.blocks {
            block.published = None;
        }
        self.free
            .extend(std::mem::take(&mut self.idle).into_values());
    }

    fn unpublish(&mut self, id: u32) {
        if let Some((content, _)) = self.blocks[id as usize].published.take() {
            self.by_content.remove(&content);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_found_by_content_and_chain_until_forgotten() {
        let mut b = Blocks::new(3);
        let (x, y) = ([1; BLOCK], [2; BLOCK]);
        let (first, second) = (b.take().unwrap(), b.take().unwrap());
        let chain = b.publish(first, 0, &x);
        b.publish(second, chain, &y);
        b.release(second);
        b.release(first);
        assert_eq!(b.available(), 3);
        assert_eq!(
            b.find(0, &y),
            None,
            "y was published after x, not at the start"
        );
        let (found, c) = b.find(0, &x).unwrap();
        assert_eq!((found, c), (first, chain));
        assert_eq!(b.find(c, &y).unwrap().0, second);
        b.release(second);
        b.release(first);
        // the free block goes first, then the oldest idle one
        let taken = [b.take().unwrap(), b.take().unwrap()];
        assert_eq!(taken, [2, second]);
        assert!(b.find(chain, &y).is_none() && b.find(0, &x).is_some());
        assert!(b.take().is_none());
        b.release(first);
        b.forget();
        assert!(b.find(0, &x).is_none());
        assert_eq!(b.available(), 1);
    }

    #[test]
    fn prefixes_take_no_more_memory_than_sequences() {
        let mut b = Blocks::new(100);
        let mut used = std::collections::HashSet::new();
        for round in 0..20 {
            let taken: Vec<u32> = (0..5).map(|_| b.take().unwrap()).collect();
            for (i, id) in taken.iter().enumerate() {
                b.publish(*id, 0, &[round * 5 + i as u32; BLOCK]);
                b.release(*id);
            }
            used.extend(taken);
        }
        assert_eq!(used.len(), 10);
        assert!(b.find(0, &[99; BLOCK]).is_some() && b.find(0, &[90; BLOCK]).is_some());
        assert!(b.find(0, &[89; BLOCK]).is_none());
        let rest = std::iter::from_fn(|| b.take()).count();
        assert_eq!(rest, 98, "all of it can be owned");
        assert_eq!(b.available(), 0);
    }

    #[test]
    fn the_same_content_is_published_once() {
        let mut b = Blocks::new(2);
        let (one, two) = (b.take().unwrap(), b.take().unwrap());
        let chain = b.publish(one, 0, &[7; BLOCK]);
        assert_eq!(b.publish(two, 0, &[7; BLOCK]), chain);
        b.release(two);
        assert_eq!(b.take(), Some(two), "the second copy is nobody's prefix");
        b.share(one);
        assert!(b.is_shared(one) && !b.is_shared(two));
    }
}
