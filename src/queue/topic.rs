//! One topic: a bounded store of messages, and the consumers that compete for them.
//!
//! The messages of one client form a *lane*. All of a lane that is with a consumer and not yet
//! written is with the same consumer, and messages leave a lane in order: so a client's messages
//! arrive in order even when a consumer dies and its unwritten ones go to another. Which consumer
//! a lane belongs to follows from the client's id and the set of consumers (rendezvous hashing), so
//! it stays while the set does, and a change of the set moves few clients.
//!
//! Its clock is in microseconds.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;

use super::room::Room;
use super::{Bounds, WhenFull};
use crate::address::{ClientId, NodeId, ShardId};
use crate::message::{BackendId, Credit, Delivery, Event, Terms};
use crate::metrics::{Durations, TopicReport};
use crate::protocol::frame::Frame;

/// Messages handed to one consumer and not yet written to its socket, at most.
const WINDOW_MESSAGES: usize = 1024;

/// A consumer that has had no room for so long, in microseconds, counts as absent until it takes
/// something again: what it could not take goes to the others.
const STALLED_US: u64 = 1_000_000;

/// One that has taken nothing for so long, in microseconds, is closed if another would take:
/// what it was handed keeps what came later of the same clients from the others.
const EXPELLED_US: u64 = 10_000_000;

/// Consumers of one topic, at most.
const CONSUMERS_MAX: usize = 1024;

/// What a topic wants done.
#[derive(Debug)]
pub enum Effect {
    /// A message for a consumer.
    Deliver(BackendId, Delivery),
    /// Credit for a feeding shard.
    Grant(ShardId, Credit),
    /// A consumer takes nothing, and others would.
    Expel(BackendId),
    /// A feeding shard asked for room that there is not.
    Refuse(ShardId),
    /// The watched event of this client has left for good.
    Left(ClientId),
}

/// Why a back end cannot become a consumer.
#[derive(Debug, PartialEq, Eq)]
pub enum JoinError {
    /// It is one already.
    Repeated,
    /// There are [`CONSUMERS_MAX`].
    TooMany,
}

/// A topic, at its home.
#[derive(Debug)]
pub struct Topic {
    node: NodeId,
    when_full: WhenFull,
    window_messages: usize,
    lanes: HashMap<ClientId, Lane>,
    // First message of each lane that has no consumer → the lane.
    unowned: BTreeMap<u64, ClientId>,
    consumers: Vec<Consumer>,
    room: Room,
    // Feeders keep what they are lent, so it cannot go and come anew.
    is_fed: bool,
    next_number: u64,
    dropped: u64,
    waits: Durations,
    effects: VecDeque<Effect>,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Item>,
    owner: Option<BackendId>,
    // Handed to the owner and not yet written.
    unwritten: usize,
}

#[derive(Debug)]
struct Item {
    number: u64,
    since_us: u64,
    is_redelivered: bool,
    is_watched: bool,
    // To which queue.pop of its consumer it was handed.
    pop: u64,
    frame: Frame,
}

#[derive(Debug)]
struct Consumer {
    id: BackendId,
    state: State,
    pop: u64,
    window_messages: usize,
    window_bytes: usize,
    // It acknowledges what it is handed; otherwise that it was written is enough.
    acknowledges: bool,
    // In the order they were handed out.
    handed: VecDeque<(ClientId, Item)>,
    handed_bytes: usize,
    // First message of each lane of this consumer that waits → the lane.
    waiting: BTreeMap<u64, ClientId>,
    progress_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    // The answer to its queue.pop is not on its way yet.
    Joining,
    Active,
    Stalled,
    // It asked to stop: gets nothing more, and is forgotten when all is written.
    Leaving,
}

impl Topic {
    /// An empty topic on a node of `shards` shards. Each shard starts with [`Room::share`] credit.
    pub fn new(node: NodeId, bounds: Bounds, when_full: WhenFull, shards: usize) -> Self {
        Self {
            node,
            when_full,
            window_messages: match when_full {
                // Half of the topic at most is with one consumer, so that there is some to drop.
                WhenFull::DropOldest => WINDOW_MESSAGES.min(bounds.messages / 2).max(1),
                WhenFull::Hold | WhenFull::Close => WINDOW_MESSAGES,
            },
            lanes: HashMap::new(),
            unowned: BTreeMap::new(),
            consumers: Vec::new(),
            room: Room::new(bounds, shards),
            is_fed: false,
            next_number: 0,
            dropped: 0,
            waits: Durations::default(),
            effects: VecDeque::new(),
        }
    }

    /// What is to be done now.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether somebody consumes it: then [`Self::handle_timeout`] is to be called now and then.
    pub fn has_consumers(&self) -> bool {
        !self.consumers.is_empty()
    }

    /// Whether it holds nothing, nobody consumes it, and nobody has fed it.
    pub fn is_idle(&self) -> bool {
        !self.is_fed && self.room.held().messages == 0 && self.consumers.is_empty()
    }

    /// Messages held, those with consumers and not yet written included.
    pub fn messages(&self) -> usize {
        self.room.held().messages
    }

    /// Messages dropped because the topic was full ([`WhenFull::DropOldest`]), since it was last
    /// asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// How long messages were in it until they were written, or acknowledged.
    pub fn waits(&self) -> Durations {
        self.waits
    }

    /// How things stand in it.
    pub fn report(&self, name: &str, now_us: u64) -> TopicReport {
        let waiting = self.consumers.iter().map(|c| &c.waiting).chain([&self.unowned]);
        let oldest = waiting.filter_map(BTreeMap::first_key_value).min().map(|(_, client)| client);
        let since =
            oldest.and_then(|client| Some(self.lanes.get(client)?.waiting.front()?.since_us));
        TopicReport {
            name: name.to_owned(),
            messages: self.room.held().messages as u64,
            bytes: self.room.held().bytes as u64,
            consumers: self.consumers.len() as u64,
            oldest_ms: since.map_or(0, |since| now_us.saturating_sub(since) / 1000),
        }
    }

    /// Takes an event, for which the shard had credit.
    pub fn push(&mut self, now_us: u64, from: ShardId, event: Event) {
        let Event { client, frame, is_watched } = event;
        self.is_fed = true;
        self.room.take(from, frame.bytes().len());
        let credit = self.room.top_up(from);
        self.effects.extend(credit.map(|credit| Effect::Grant(from, credit)));
        let item = Item {
            number: self.next_number,
            since_us: now_us,
            is_redelivered: false,
            is_watched,
            pop: 0,
            frame,
        };
        self.next_number += 1;
        let owner = self.owner_of(client);
        let lane = self.lanes.entry(client).or_default();
        if !lane.waiting.is_empty() {
            lane.waiting.push_back(item);
            return;
        }
        let number = item.number;
        lane.waiting.push_back(item);
        self.attach(now_us, client, number, owner);
        if let Some(owner) = owner {
            self.fill(owner);
        }
    }

    /// Makes a back end a consumer on these terms. It gets nothing before [`Self::start`].
    ///
    /// # Errors
    /// It is one already, or there are too many.
    pub fn join(&mut self, now_us: u64, id: BackendId, terms: Terms) -> Result<(), JoinError> {
        let at = match self.position(id) {
            // What it has still to write from before stays with it, ahead of what comes.
            Some(at) if self.consumers[at].state == State::Leaving => at,
            Some(_) => return Err(JoinError::Repeated),
            None if self.consumers.len() == CONSUMERS_MAX => return Err(JoinError::TooMany),
            None => {
                self.consumers.push(Consumer::new(id, now_us));
                self.consumers.len() - 1
            }
        };
        let consumer = &mut self.consumers[at];
        consumer.state = State::Joining;
        consumer.pop = terms.pop;
        consumer.window_bytes = terms.window_bytes;
        consumer.window_messages = terms.unsettled_max.unwrap_or(self.window_messages);
        consumer.acknowledges = terms.unsettled_max.is_some();
        Ok(())
    }

    /// The consumer's answer is on its way: it competes from now on.
    pub fn start(&mut self, now_us: u64, id: BackendId) {
        let Some(at) = self.position(id) else { return };
        if self.consumers[at].state == State::Joining {
            self.consumers[at].state = State::Active;
            self.consumers[at].progress_us = now_us;
            self.assign_again(now_us);
        }
    }

    /// The consumer wants no more; false if it was none. What it was handed and has not written
    /// stays with it: its connection lives. What it has not acknowledged goes to others.
    pub fn leave(&mut self, now_us: u64, id: BackendId) -> bool {
        let Some(at) = self.position(id) else { return false };
        if self.consumers[at].state == State::Leaving {
            return false;
        }
        let consumer = &mut self.consumers[at];
        consumer.state = State::Leaving;
        if consumer.acknowledges {
            let pop = consumer.pop;
            self.take_back(at, |item| item.pop == pop);
        }
        self.assign_again(now_us);
        self.forget_if_left(id);
        true
    }

    /// The consumer's connection is gone: what it did not write goes to others, before anything
    /// that came later.
    pub fn gone(&mut self, now_us: u64, id: BackendId) {
        let Some(at) = self.position(id) else { return };
        self.take_back(at, |_| true);
        self.consumers.swap_remove(at);
        self.assign_again(now_us);
    }

    /// The consumer has written the first `count` of what it was handed.
    pub fn written(&mut self, now_us: u64, id: BackendId, count: u32) {
        let Some(at) = self.position(id) else { return };
        let count = self.consumers[at].handed.len().min(count as usize);
        for _ in 0..count {
            self.finish(now_us, at, 0);
        }
        self.progress(now_us, at);
    }

    /// The consumer has acknowledged these messages. Those that it was not handed, or not any more,
    /// are passed over.
    pub fn settled(&mut self, now_us: u64, id: BackendId, numbers: &[u64]) {
        let Some(at) = self.position(id) else { return };
        for &number in numbers {
            let handed = &self.consumers[at].handed;
            if let Some(place) = handed.iter().position(|(_, item)| item.number == number) {
                self.finish(now_us, at, place);
            }
        }
        self.progress(now_us, at);
    }

    /// The consumer was handed a message for a `queue.pop` that it has cancelled: it goes to others,
    /// before what came later of the same client.
    pub fn returned(&mut self, now_us: u64, id: BackendId, number: u64, pop: u64) {
        let Some(at) = self.position(id) else { return };
        let consumer = &mut self.consumers[at];
        let is_it = |(_, item): &(ClientId, Item)| item.number == number && item.pop == pop;
        let Some(place) = consumer.handed.iter().position(is_it) else { return };
        let (client, item) = consumer.handed.remove(place).expect("the place was looked up");
        consumer.handed_bytes -= item.frame.bytes().len();
        let takes_part = matches!(consumer.state, State::Active | State::Stalled);
        let has_cancelled = takes_part && consumer.pop == pop;
        if has_cancelled {
            // Word of that is on its way: until then all that it was handed would come back.
            consumer.state = State::Joining;
        }
        let lane = self.lanes.get_mut(&client).expect("what is handed out has a lane");
        let (owner, first) = (lane.owner, lane.waiting.front().map(|item| item.number));
        lane.put_back(item);
        if lane.waiting[0].number == number {
            if let Some(first) = first {
                self.detach(first, owner);
            }
            self.attach(now_us, client, number, owner);
        }
        self.settle(now_us, client);
        match has_cancelled {
            true => self.assign_again(now_us),
            // It may have had no room for what waited behind this: that is over.
            false if self.consumers[at].handed.is_empty() => self.progress(now_us, at),
            false => self.fill(id),
        }
        self.forget_if_left(id);
    }

    /// All consumers on that node are out of reach.
    pub fn node_gone(&mut self, now_us: u64, node: NodeId) {
        let ids: Vec<_> =
            self.consumers.iter().map(|c| c.id).filter(|id| id.at.node == node).collect();
        for id in ids {
            self.gone(now_us, id);
        }
    }

    /// What a consumer was handed and is meant waits again, before what came later of the same
    /// client. Lanes of which it has nothing left are nobody's.
    fn take_back(&mut self, at: usize, is_meant: impl Fn(&Item) -> bool) {
        let consumer = &mut self.consumers[at];
        let handed = std::mem::take(&mut consumer.handed).into_iter();
        let (taken, kept): (Vec<_>, Vec<_>) = handed.partition(|(_, item)| is_meant(item));
        consumer.handed = kept.into();
        consumer.waiting.clear();
        for (client, mut item) in taken.into_iter().rev() {
            consumer.handed_bytes -= item.frame.bytes().len();
            item.is_redelivered |= consumer.acknowledges;
            let lane = self.lanes.get_mut(&client).expect("what is handed out has a lane");
            lane.unwritten -= 1;
            lane.put_back(item);
        }
        for (&client, lane) in &mut self.lanes {
            let is_its = lane.owner == Some(consumer.id);
            if is_its && lane.unwritten == 0 {
                lane.owner = None;
            }
            match (lane.owner, lane.waiting.front()) {
                (None, Some(first)) => drop(self.unowned.insert(first.number, client)),
                (_, Some(first)) if is_its => drop(consumer.waiting.insert(first.number, client)),
                _ => {}
            }
        }
    }

    /// A consumer is done with one message that it was handed.
    fn finish(&mut self, now_us: u64, at: usize, place: usize) {
        let consumer = &mut self.consumers[at];
        let (client, item) = consumer.handed.remove(place).expect("the place was looked up");
        consumer.handed_bytes -= item.frame.bytes().len();
        self.waits.add(now_us.saturating_sub(item.since_us));
        self.forget(client, &item);
        self.settle(now_us, client);
    }

    /// A consumer has taken something: it may have more, and feeders may have its room.
    fn progress(&mut self, now_us: u64, at: usize) {
        let consumer = &mut self.consumers[at];
        let id = consumer.id;
        consumer.progress_us = now_us;
        if consumer.state == State::Stalled {
            consumer.state = State::Active;
            self.assign_again(now_us);
        }
        self.fill(id);
        self.forget_if_left(id);
        self.grant_to_asking();
    }

    /// A shard has a message of so many bytes and no credit for it.
    pub fn want_credit(&mut self, from: ShardId, bytes: usize) {
        self.is_fed = true;
        self.room.ask(from, bytes);
        if self.when_full == WhenFull::DropOldest {
            let wanted = self.room.wanted_by(from);
            while !self.room.has(wanted) && self.drop_oldest() {}
        }
        self.grant_to_asking();
        if self.when_full == WhenFull::Close && self.room.refuse(from) {
            self.effects.push_back(Effect::Refuse(from));
        }
    }

    /// Looks for consumers that take nothing.
    pub fn handle_timeout(&mut self, now_us: u64) {
        let mut found = false;
        let is_active = |consumer: &Consumer| consumer.state == State::Active;
        let others_would = self.consumers.iter().any(is_active);
        for consumer in &mut self.consumers {
            let idle_us = now_us.saturating_sub(consumer.progress_us);
            match consumer.state {
                State::Active if !consumer.waiting.is_empty() && idle_us >= STALLED_US => {
                    consumer.state = State::Stalled;
                    found = true;
                }
                // One that acknowledges may be at work on what it has.
                State::Stalled
                    if others_would && !consumer.acknowledges && idle_us >= EXPELLED_US =>
                {
                    self.effects.push_back(Effect::Expel(consumer.id));
                }
                _ => {}
            }
        }
        if found {
            self.assign_again(now_us);
        }
    }

    fn position(&self, id: BackendId) -> Option<usize> {
        self.consumers.iter().position(|consumer| consumer.id == id)
    }

    /// Whose the next message of this client is: the consumer that still has some of the client's,
    /// else the one with the highest weight among those that take part, of this node if there are
    /// any. With none that is active a stalled one is better than nobody.
    fn owner_of(&self, client: ClientId) -> Option<BackendId> {
        if let Some(lane) = self.lanes.get(&client)
            && lane.unwritten > 0
        {
            return lane.owner;
        }
        let best = |state: State| {
            let candidates = self.consumers.iter().filter(move |consumer| consumer.state == state);
            let ids = candidates.map(|consumer| consumer.id);
            ids.max_by_key(|&id| (id.at.node == self.node, weight(client, id)))
        };
        if let [only] = &self.consumers[..] {
            return matches!(only.state, State::Active | State::Stalled).then_some(only.id);
        }
        best(State::Active).or_else(|| best(State::Stalled))
    }

    /// Notes where a lane whose first waiting message is `number` waits.
    fn attach(&mut self, now_us: u64, client: ClientId, number: u64, owner: Option<BackendId>) {
        self.lanes.get_mut(&client).expect("only lanes are attached").owner = owner;
        match owner.and_then(|id| self.position(id)) {
            Some(at) => {
                let consumer = &mut self.consumers[at];
                if consumer.handed.is_empty() && consumer.waiting.is_empty() {
                    consumer.progress_us = now_us;
                }
                consumer.waiting.insert(number, client);
            }
            None => {
                self.unowned.insert(number, client);
            }
        }
    }

    fn detach(&mut self, number: u64, owner: Option<BackendId>) {
        match owner.and_then(|id| self.position(id)) {
            Some(at) => self.consumers[at].waiting.remove(&number),
            None => self.unowned.remove(&number),
        };
    }

    /// The set of consumers changed: lanes that are free to move go where they belong now. Costs a
    /// look at every lane.
    fn assign_again(&mut self, now_us: u64) {
        let movable: Vec<(ClientId, u64, Option<BackendId>)> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.unwritten == 0)
            .filter_map(|(&c, lane)| lane.waiting.front().map(|item| (c, item.number, lane.owner)))
            .collect();
        for (client, number, old) in movable {
            let new = self.owner_of(client);
            if new != old || old.is_none() {
                self.detach(number, old);
                self.attach(now_us, client, number, new);
            }
        }
        for at in 0..self.consumers.len() {
            self.fill(self.consumers[at].id);
        }
    }

    /// Hands a consumer what waits for it, oldest first, while it has room.
    fn fill(&mut self, id: BackendId) {
        let Some(at) = self.position(id) else { return };
        let consumer = &mut self.consumers[at];
        while consumer.has_room()
            && let Some((_, client)) = consumer.waiting.pop_first()
        {
            let lane = self.lanes.get_mut(&client).expect("what waits is a lane");
            let mut item = lane.waiting.pop_front().expect("a lane that waits has a message");
            lane.unwritten += 1;
            if let Some(next) = lane.waiting.front() {
                consumer.waiting.insert(next.number, client);
            }
            item.pop = consumer.pop;
            let Item { number, is_redelivered, pop, ref frame, .. } = item;
            let delivery = Delivery {
                number,
                pop,
                is_acknowledged: consumer.acknowledges,
                is_redelivered,
                frame: frame.clone(),
            };
            self.effects.push_back(Effect::Deliver(id, delivery));
            consumer.handed_bytes += item.frame.bytes().len();
            consumer.handed.push_back((client, item));
        }
    }

    /// One message of this client was written.
    fn settle(&mut self, now_us: u64, client: ClientId) {
        let lane = self.lanes.get_mut(&client).expect("what is handed out has a lane");
        lane.unwritten -= 1;
        if lane.unwritten > 0 {
            return;
        }
        let Some(number) = lane.waiting.front().map(|item| item.number) else {
            self.lanes.remove(&client);
            return;
        };
        let old = lane.owner;
        let new = self.owner_of(client);
        if new != old {
            self.detach(number, old);
            self.attach(now_us, client, number, new);
            if let Some(new) = new {
                self.fill(new);
            }
        }
    }

    fn forget_if_left(&mut self, id: BackendId) {
        self.consumers.retain(|consumer| {
            consumer.id != id || consumer.state != State::Leaving || !consumer.handed.is_empty()
        });
    }

    fn grant_to_asking(&mut self) {
        while let Some((shard, credit)) = self.room.poll_grant() {
            self.effects.push_back(Effect::Grant(shard, credit));
        }
    }

    /// Drops the oldest message that is not with a consumer; false if there is none.
    fn drop_oldest(&mut self) -> bool {
        let places = self.consumers.iter().map(|c| &c.waiting).chain([&self.unowned]);
        let Some((number, client)) = places.filter_map(BTreeMap::first_key_value).min() else {
            return false;
        };
        let (number, client) = (*number, *client);
        let lane = self.lanes.get_mut(&client).expect("what waits is a lane");
        let item = lane.waiting.pop_front().expect("a lane that waits has a message");
        let (next, owner) = (lane.waiting.front().map(|item| item.number), lane.owner);
        if next.is_none() && lane.unwritten == 0 {
            self.lanes.remove(&client);
        }
        self.detach(number, owner);
        if let Some(next) = next {
            match owner.and_then(|id| self.position(id)) {
                Some(at) => self.consumers[at].waiting.insert(next, client),
                None => self.unowned.insert(next, client),
            };
        }
        self.forget(client, &item);
        self.dropped += 1;
        true
    }

    /// A message has left for good.
    fn forget(&mut self, client: ClientId, item: &Item) {
        self.room.release(item.frame.bytes().len());
        if item.is_watched {
            self.effects.push_back(Effect::Left(client));
        }
    }
}

/// How much a consumer is meant for a client. Mixed with constants (those of splitmix64), so that a
/// node's choices follow from what it was told alone.
fn weight(client: ClientId, consumer: BackendId) -> u64 {
    let BackendId { at, connection } = consumer;
    let shard = u64::from(at.node.number()) << 8 | u64::from(at.shard.0);
    let place = u64::from(connection.index) << 32 | u64::from(connection.generation);
    [client.value(), shard, place].into_iter().fold(0, |sum, part| {
        let mixed = (sum ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    })
}

impl Lane {
    /// A message that was handed out waits again, in its place: what was handed out after it may
    /// have come back before.
    fn put_back(&mut self, item: Item) {
        let place = self.waiting.partition_point(|waiting| waiting.number < item.number);
        self.waiting.insert(place, item);
    }
}

impl Consumer {
    fn new(id: BackendId, now_us: u64) -> Self {
        Self {
            id,
            state: State::Joining,
            pop: 0,
            window_messages: 0,
            window_bytes: 0,
            acknowledges: false,
            handed: VecDeque::new(),
            handed_bytes: 0,
            waiting: BTreeMap::new(),
            progress_us: now_us,
        }
    }

    fn has_room(&self) -> bool {
        // What it still has from a queue.pop before may come back: then it goes first.
        let is_clear = self.handed.front().is_none_or(|(_, item)| item.pop == self.pop);
        self.state == State::Active
            && is_clear
            && self.handed.len() < self.window_messages
            && self.handed_bytes < self.window_bytes
    }
}

#[cfg(test)]
mod tests;
