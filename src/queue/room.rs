//! The room of a topic: what it holds, and how much of the rest is lent to feeding shards.

use std::collections::VecDeque;

use super::Bounds;
use crate::address::ShardId;
use crate::message::Credit;

/// Messages dropped at a time to make room.
const DROPPED_AT_ONCE: usize = 64;

/// The room of a topic, and the credit of each feeding shard.
#[derive(Debug)]
pub struct Room {
    bounds: Bounds,
    feeders: Vec<FeedingShard>,
    // Who waits for room, in the order in which they asked. At most one entry per shard, and one for pushes.
    asking: VecDeque<RoomWaiter>,
    // The bytes of the first event of a back end that waits for room. `None`: no such event waits.
    push_wants: Option<usize>,
    // Whether that event was told of its room and has not taken it yet.
    is_push_granted: bool,
    // The credit to which each shard is filled up.
    share: Credit,
    // held + lent <= bounds, unless the bounds have shrunk.
    held: Credit,
    lent: Credit,
    // Of a topic on disk: what is held and not stored. unstored + lent <= unstored_max.
    unstored: Credit,
    unstored_max: Bounds,
    // Whether the bounds have ever shrunk.
    was_shrunk: bool,
}

/// Someone who waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoomWaiter {
    /// A feeding shard.
    Shard(ShardId),
    /// The events that back ends have pushed. They take turns with the shards, one event at a time.
    Pushes,
}

/// Room for the next one who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomGrant {
    /// Credit for a feeding shard.
    Credit(ShardId, Credit),
    /// Room for one event of a back end. Nothing more is granted before [`Room::end_push_grant`].
    Push,
}

#[derive(Debug, Default, Clone)]
struct FeedingShard {
    credit: Credit,
    // Bytes of the message for which the shard has asked for credit.
    wants: Option<usize>,
}

impl Room {
    /// The room of an empty topic on a node of `shards` shards, each of which has its [`Self::share`].
    pub fn new(bounds: Bounds, shards: usize) -> Self {
        let share = Self::share(bounds, shards);
        Self {
            bounds,
            feeders: vec![FeedingShard { credit: share, wants: None }; shards],
            asking: VecDeque::new(),
            push_wants: None,
            is_push_granted: false,
            share,
            held: Credit::default(),
            lent: Credit { messages: share.messages * shards, bytes: share.bytes * shards },
            unstored: Credit::default(),
            unstored_max: Bounds { messages: usize::MAX, bytes: usize::MAX },
            was_shrunk: false,
        }
    }

    /// The room of a topic on disk, whose log holds this much. What is lent or not stored is bounded.
    pub fn put_on_disk(&mut self, held: Credit, unstored_max: Bounds) {
        self.held = held;
        self.unstored_max = unstored_max;
        // The shares are the least that a reload has to recall, and what was held may exceed the bounds.
        self.was_shrunk = true;
        self.set_bounds(self.bounds);
    }

    /// Notes that a message of this many bytes, which is held, is not stored yet.
    pub fn note_unstored(&mut self, bytes: usize) {
        self.unstored.messages += 1;
        self.unstored.bytes += bytes;
    }

    /// Notes that a message of this many bytes is stored.
    pub fn note_stored(&mut self, bytes: usize) {
        self.unstored.messages -= 1;
        self.unstored.bytes -= bytes;
    }

    /// Returns the messages in the topic that its log has not stored, and their bytes.
    pub fn unstored(&self) -> Credit {
        self.unstored
    }

    /// Releases stored messages. After a restart, the bytes that are held may be an estimate.
    pub fn release_stored(&mut self, freed: Credit) {
        self.held.messages = self.held.messages.saturating_sub(freed.messages);
        self.held.bytes = self.held.bytes.saturating_sub(freed.bytes).max(self.unstored.bytes);
        if self.held.messages == self.unstored.messages {
            self.held.bytes = self.unstored.bytes;
        }
    }

    /// Changes the bounds. What is held and lent stays, even if it exceeds the new bounds.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.was_shrunk |=
            bounds.messages < self.bounds.messages || bounds.bytes < self.bounds.bytes;
        self.bounds = bounds;
        let Bounds { messages, bytes } = self.unstored_max;
        let lent =
            Bounds { messages: bounds.messages.min(messages), bytes: bounds.bytes.min(bytes) };
        self.share = Self::share(lent, self.feeders.len());
    }

    /// The shards with more credit than [`Self::share`] gives, and that share.
    pub fn to_recall(&self) -> impl Iterator<Item = (ShardId, Credit)> {
        let share = self.share;
        let exceeds = move |feeder: &FeedingShard| {
            feeder.credit.messages > share.messages || feeder.credit.bytes > share.bytes
        };
        let exceeding = self.feeders.iter().enumerate().filter(move |(_, feeder)| exceeds(feeder));
        exceeding.map(move |(shard, _)| (ShardId(shard as u8), share))
    }

    /// Takes back credit that a shard has returned.
    pub fn take_back(&mut self, from: ShardId, credit: Credit) {
        for account in [&mut self.feeders[from.index()].credit, &mut self.lent] {
            account.messages -= credit.messages;
            account.bytes -= credit.bytes;
        }
    }

    /// Whether more is held than the bounds allow beside the shares of all shards. Credit beyond the shares does
    /// not count, because it is being recalled.
    pub fn is_exceeded(&self) -> bool {
        let shards = self.feeders.len();
        let lent_messages = self.lent.messages.min(self.share.messages * shards);
        let lent_bytes = self.lent.bytes.min(self.share.bytes * shards);
        self.held.messages + lent_messages > self.bounds.messages
            || self.held.bytes + lent_bytes > self.bounds.bytes
    }

    /// The credit with which a feeding shard starts, and to which it is filled up. All shards together have a
    /// quarter of the topic, so that unused credit does not make a topic full early.
    pub fn share(bounds: Bounds, shards: usize) -> Credit {
        let part = 4 * shards;
        Credit { messages: bounds.messages / part, bytes: bounds.bytes / part }
    }

    /// The bounds of the topic.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Messages held, and their bytes.
    pub fn held(&self) -> Credit {
        self.held
    }

    /// Holds a message of this many bytes, for which the shard had credit.
    pub fn take(&mut self, from: ShardId, bytes: usize) {
        let credit = &mut self.feeders[from.index()].credit;
        for account in [credit, &mut self.lent] {
            account.messages -= 1;
            account.bytes -= bytes;
        }
        self.held.messages += 1;
        self.held.bytes += bytes;
    }

    /// Holds a message of this many bytes that no shard has credit for. There is room for it.
    pub fn take_unlent(&mut self, bytes: usize) {
        self.held.messages += 1;
        self.held.bytes += bytes;
    }

    /// Releases a message of this many bytes.
    pub fn release(&mut self, bytes: usize) {
        self.held.messages -= 1;
        self.held.bytes -= bytes;
    }

    /// Fills up the credit of a shard that pushes, before it has to ask.
    pub fn top_up(&mut self, shard: ShardId) -> Option<Credit> {
        let FeedingShard { credit, wants } = &self.feeders[shard.index()];
        let low = credit.messages < self.share.messages / 2 || credit.bytes < self.share.bytes / 2;
        let missing = self.missing(shard);
        let may = low && wants.is_none() && self.asking.is_empty() && self.has(missing);
        may.then(|| self.lend(shard, missing))
    }

    /// Notes that a shard lacks credit for a message of this many bytes.
    pub fn ask(&mut self, from: ShardId, bytes: usize) {
        if self.feeders[from.index()].wants.replace(bytes).is_none() {
            self.asking.push_back(RoomWaiter::Shard(from));
        }
    }

    /// Notes that an event of a back end, of this many bytes, waits for room.
    pub fn ask_for_push(&mut self, bytes: usize) {
        if self.push_wants.replace(bytes).is_none() {
            self.asking.push_back(RoomWaiter::Pushes);
        }
    }

    /// Ends a [`RoomGrant::Push`], or the request for one: the event has taken its room, or waits no more.
    pub fn end_push_grant(&mut self) {
        self.push_wants = None;
        self.is_push_granted = false;
        self.asking.retain(|&asker| asker != RoomWaiter::Pushes);
    }

    /// Drops the request of a shard; false if there is none.
    pub fn refuse(&mut self, from: ShardId) -> bool {
        let asked = self.feeders[from.index()].wants.take().is_some();
        self.asking.retain(|&asker| asker != RoomWaiter::Shard(from));
        asked
    }

    /// Drops the request of the shard that has waited longest, and returns the shard.
    pub fn refuse_next(&mut self) -> Option<ShardId> {
        let mut shards = self.asking.iter().filter_map(|&asker| match asker {
            RoomWaiter::Shard(shard) => Some(shard),
            RoomWaiter::Pushes => None,
        });
        let shard = shards.next()?;
        self.refuse(shard);
        Some(shard)
    }

    /// Whether someone waits for room.
    pub fn has_asking(&self) -> bool {
        !self.asking.is_empty()
    }

    /// The next room to grant, in the order in which it was asked for. A shard with enough credit is granted no
    /// more: its request has crossed an earlier grant.
    pub fn poll_grant(&mut self) -> Option<RoomGrant> {
        while let Some(&asker) = self.asking.front() {
            let RoomWaiter::Shard(shard) = asker else { return self.grant_push() };
            let needed = self.needed(shard);
            if !self.has(needed) && !self.is_too_large(shard) {
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
            return Some(RoomGrant::Credit(shard, self.lend(shard, Credit { messages, bytes })));
        }
        None
    }

    /// Grants room to the first event of a back end, unless that was done.
    fn grant_push(&mut self) -> Option<RoomGrant> {
        let bytes = self.push_wants.expect("pushes ask with the bytes of the first");
        let may = !self.is_push_granted && self.has(Credit { messages: 1, bytes });
        self.is_push_granted |= may;
        may.then_some(RoomGrant::Push)
    }

    /// The room to make for a shard that asks, with room for some further messages. Otherwise the shard would
    /// ask again for each of them.
    pub fn wanted_by(&self, shard: ShardId) -> Credit {
        let mut needed = self.needed(shard);
        if needed != Credit::default() {
            needed.messages = self.missing(shard).messages.clamp(1, DROPPED_AT_ONCE);
        }
        needed
    }

    /// Whether those who wait for room could be granted some if the oldest messages were dropped. What waits to be
    /// stored cannot be dropped.
    pub fn lacks_room(&self) -> bool {
        let first = self.asking.front().map(|&asker| match asker {
            RoomWaiter::Shard(shard) => self.needed(shard),
            RoomWaiter::Pushes => Credit { messages: 1, bytes: self.push_wants.unwrap_or(0) },
        });
        first.is_some_and(|needed| self.lacks(needed))
    }

    /// Whether this much could be lent if the oldest messages were dropped, and cannot be now.
    pub fn lacks(&self, needed: Credit) -> bool {
        let storable = self.storable();
        let is_storable = storable.messages >= needed.messages && storable.bytes >= needed.bytes;
        is_storable && !self.has(needed)
    }

    /// Whether this much can be lent.
    pub fn has(&self, needed: Credit) -> bool {
        let left = self.left();
        left.messages >= needed.messages && left.bytes >= needed.bytes
    }

    /// Asserts the invariants.
    pub fn check(&self) {
        let of = |part: fn(&Credit) -> usize| self.feeders.iter().map(|f| part(&f.credit)).sum();
        let lent =
            Credit { messages: of(|credit| credit.messages), bytes: of(|credit| credit.bytes) };
        assert_eq!(self.lent, lent, "credit of all shards together");
        if !self.was_shrunk {
            assert!(self.held.messages + lent.messages <= self.bounds.messages, "messages");
            assert!(self.held.bytes + lent.bytes <= self.bounds.bytes, "bytes");
        }
    }

    fn left(&self) -> Credit {
        let in_use = |part: fn(&Credit) -> usize| part(&self.held) + part(&self.lent);
        let left = Credit {
            messages: self.bounds.messages.saturating_sub(in_use(|credit| credit.messages)),
            bytes: self.bounds.bytes.saturating_sub(in_use(|credit| credit.bytes)),
        };
        let storable = self.storable();
        Credit {
            messages: left.messages.min(storable.messages),
            bytes: left.bytes.min(storable.bytes),
        }
    }

    /// What may be lent before the log has stored more.
    fn storable(&self) -> Credit {
        let at_risk = |part: fn(&Credit) -> usize| part(&self.unstored) + part(&self.lent);
        Credit {
            messages: self.unstored_max.messages.saturating_sub(at_risk(|credit| credit.messages)),
            bytes: self.unstored_max.bytes.saturating_sub(at_risk(|credit| credit.bytes)),
        }
    }

    /// Whether a shard asks for a message that can never fit, because the message was encoded before the bounds
    /// shrank, and the topic is empty and waits for no other message. Then the message is taken all the same.
    fn is_too_large(&self, shard: ShardId) -> bool {
        let FeedingShard { credit, wants } = &self.feeders[shard.index()];
        let lent_to_others = self.lent.bytes - credit.bytes;
        let bytes_max = self.bounds.bytes / 4 * 3;
        self.was_shrunk
            && wants.is_some_and(|bytes| bytes > bytes_max)
            && self.held.messages == 0
            && lent_to_others <= self.share.bytes * (self.feeders.len() - 1)
    }

    /// The credit without which a shard cannot push the message that it asks for.
    fn needed(&self, shard: ShardId) -> Credit {
        let FeedingShard { credit, wants } = &self.feeders[shard.index()];
        Credit {
            messages: usize::from(credit.messages == 0),
            bytes: wants.unwrap_or(0).saturating_sub(credit.bytes),
        }
    }

    /// The credit that fills a shard up to its share.
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
