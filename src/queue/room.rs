//! The room of a topic: what it holds, and what of the rest is lent to the shards that feed it.

use std::collections::VecDeque;

use super::Bounds;
use crate::address::ShardId;
use crate::message::Credit;

/// Messages that are dropped at once to make room, at most.
const DROPPED_AT_ONCE: usize = 64;

/// What a topic has room for, and who may use it.
#[derive(Debug)]
pub struct Room {
    bounds: Bounds,
    feeders: Vec<FeedingShard>,
    // In the order they asked.
    asking: VecDeque<ShardId>,
    share: Credit,
    // held + lent <= bounds
    held: Credit,
    lent: Credit,
}

#[derive(Debug, Default, Clone)]
struct FeedingShard {
    credit: Credit,
    // Bytes of the message that it has no credit for.
    wants: Option<usize>,
}

impl Room {
    /// That of an empty topic on a node of `shards` shards, each of which has its [`Self::share`].
    pub fn new(bounds: Bounds, shards: usize) -> Self {
        let share = Self::share(bounds, shards);
        Self {
            bounds,
            feeders: vec![FeedingShard { credit: share, wants: None }; shards],
            asking: VecDeque::new(),
            share,
            held: Credit::default(),
            lent: Credit { messages: share.messages * shards, bytes: share.bytes * shards },
        }
    }

    /// The credit that a feeding shard has at first, and is filled up to: all shards together a
    /// quarter of the topic, so that credit which lies idle never makes a topic look full early.
    pub fn share(bounds: Bounds, shards: usize) -> Credit {
        let part = 4 * shards;
        Credit { messages: bounds.messages / part, bytes: bounds.bytes / part }
    }

    /// Messages that are held, and their bytes.
    pub fn held(&self) -> Credit {
        self.held
    }

    /// A message of so many bytes came from a shard, which had credit for it.
    pub fn take(&mut self, from: ShardId, bytes: usize) {
        let credit = &mut self.feeders[from.index()].credit;
        for account in [credit, &mut self.lent] {
            account.messages -= 1;
            account.bytes -= bytes;
        }
        self.held.messages += 1;
        self.held.bytes += bytes;
    }

    /// A message of so many bytes is gone.
    pub fn release(&mut self, bytes: usize) {
        self.held.messages -= 1;
        self.held.bytes -= bytes;
    }

    /// Gives a shard that pushes what it lacks to its share, before it has to ask.
    pub fn top_up(&mut self, shard: ShardId) -> Option<Credit> {
        let FeedingShard { credit, wants } = &self.feeders[shard.index()];
        let low = credit.messages < self.share.messages / 2 || credit.bytes < self.share.bytes / 2;
        let missing = self.missing(shard);
        let may = low && wants.is_none() && self.asking.is_empty() && self.has(missing);
        may.then(|| self.lend(shard, missing))
    }

    /// A shard has a message of so many bytes and no credit for it.
    pub fn ask(&mut self, from: ShardId, bytes: usize) {
        if self.feeders[from.index()].wants.replace(bytes).is_none() {
            self.asking.push_back(from);
        }
    }

    /// A shard is to ask no more; false if it does not.
    pub fn refuse(&mut self, from: ShardId) -> bool {
        let asked = self.feeders[from.index()].wants.take().is_some();
        self.asking.retain(|&shard| shard != from);
        asked
    }

    /// Gives room to those who asked for it, in the order they did. Who has enough is not given
    /// more: its question has crossed what it was lent.
    pub fn poll_grant(&mut self) -> Option<(ShardId, Credit)> {
        while let Some(&shard) = self.asking.front() {
            let needed = self.needed(shard);
            if !self.has(needed) {
                return None;
            }
            self.asking.pop_front();
            self.feeders[shard.index()].wants = None;
            if needed == Credit::default() {
                continue;
            }
            let (left, missing) = (self.left(), self.missing(shard));
            let messages = missing.messages.min(left.messages).max(needed.messages);
            let bytes = missing.bytes.min(left.bytes).max(needed.bytes);
            return Some((shard, self.lend(shard, Credit { messages, bytes })));
        }
        None
    }

    /// What room is to be made for a shard that asks: some for a few messages more, since it would ask
    /// again for each.
    pub fn wanted_by(&self, shard: ShardId) -> Credit {
        let mut needed = self.needed(shard);
        if needed != Credit::default() {
            needed.messages = self.missing(shard).messages.clamp(1, DROPPED_AT_ONCE);
        }
        needed
    }

    /// Whether so much could be lent.
    pub fn has(&self, needed: Credit) -> bool {
        let left = self.left();
        left.messages >= needed.messages && left.bytes >= needed.bytes
    }

    /// Panics if what is lent does not add up.
    pub fn check(&self) {
        let of = |part: fn(&Credit) -> usize| self.feeders.iter().map(|f| part(&f.credit)).sum();
        let lent =
            Credit { messages: of(|credit| credit.messages), bytes: of(|credit| credit.bytes) };
        assert_eq!(self.lent, lent, "what is lent, to all shards together");
        assert!(self.held.messages + lent.messages <= self.bounds.messages, "messages");
        assert!(self.held.bytes + lent.bytes <= self.bounds.bytes, "bytes");
    }

    fn left(&self) -> Credit {
        Credit {
            messages: self.bounds.messages - self.held.messages - self.lent.messages,
            bytes: self.bounds.bytes - self.held.bytes - self.lent.bytes,
        }
    }

    /// What a shard's credit lacks for the message that it wants to push.
    fn needed(&self, shard: ShardId) -> Credit {
        let FeedingShard { credit, wants } = &self.feeders[shard.index()];
        Credit {
            messages: usize::from(credit.messages == 0),
            bytes: wants.unwrap_or(0).saturating_sub(credit.bytes),
        }
    }

    /// What a shard's credit lacks to its share.
    fn missing(&self, shard: ShardId) -> Credit {
        let credit = self.feeders[shard.index()].credit;
        Credit {
            messages: self.share.messages.saturating_sub(credit.messages),
            bytes: self.share.bytes.saturating_sub(credit.bytes),
        }
    }

    fn lend(&mut self, to: ShardId, credit: Credit) -> Credit {
        for account in [&mut self.feeders[to.index()].credit, &mut self.lent] {
            account.messages += credit.messages;
            account.bytes += credit.bytes;
        }
        credit
    }
}
