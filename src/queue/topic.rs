//! One topic: a bounded store of messages, and the consumers that compete for them.
//!
//! The messages of one client form a *lane*. Messages leave a lane in order, and all messages of a lane that
//! are in flight are in flight to the same consumer. So a client's messages arrive in order even when a
//! consumer dies and its unwritten messages go to another. Which consumer a lane is for follows from the
//! client's id (`hash_slots.rs`), and stays the same while the set of consumers does. While another
//! consumer has messages of a lane in flight, the lane is *parked*.
//!
//! The cost of changing the set of consumers does not depend on how many lanes wait. Handing out messages
//! because of a change, and requeueing those of consumers that are gone, is spread over several turns if
//! there are many ([`Topic::handle_turn`]).
//!
//! Times are in microseconds.
//!
//! - `bounds.rs`: bounds that change while messages wait.

mod bounds;

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::consumers::{Consumer, ConsumerKey, ConsumerState, Consumers, InFlight, Item};
use super::lanes::{Lanes, Popped};
use super::room::Room;
use super::{Bounds, WhenFull};
use crate::address::{ClientId, NodeId, ShardId};
use crate::message::{BackendId, Credit, Delivery, Event, MessageNumber, PopId, Terms};
use crate::metrics::{Durations, TopicReport};

/// Messages in flight to one consumer that does not acknowledge. Further ones stay in the topic until some of
/// them were written. (A consumer that acknowledges says in its `queue.pop` how many it takes.)
const WINDOW_MESSAGES: usize = 1024;

/// Messages that a topic moves per turn because its consumers changed. The others move in later turns.
const MOVED_PER_TURN: usize = 1024;

/// Time without room after which a consumer counts as stalled, in microseconds: messages that wait for it go
/// to the others, until it finishes one.
const STALLED_US: u64 = 1_000_000;

/// Time without a finished message after which a consumer is closed, in microseconds, if another could take
/// its messages. While they are in flight, later messages of the same clients have to wait.
const EVICTION_US: u64 = 10_000_000;

/// Consumers of one topic. The `queue.pop` of a further one is refused with 201.
const CONSUMERS_MAX: usize = 1024;

/// A request of a topic to its owner.
#[derive(Debug)]
pub enum Effect {
    /// Deliver a message to a consumer.
    Deliver(BackendId, Delivery),
    /// Grant credit to a feeding shard.
    Grant(ShardId, Credit),
    /// Close a consumer that takes nothing while others would.
    Evict(BackendId),
    /// Ask a feeding shard to return the credit that exceeds this.
    Recall(ShardId, Credit),
    /// Refuse a feeding shard the room that it has asked for.
    Refuse(ShardId),
    /// Tell the client's shard that the watched event of the client has left the topic.
    EventLeft(ClientId),
}

/// Why a back end cannot become a consumer.
#[derive(Debug, PartialEq, Eq)]
pub enum JoinError {
    /// The back end is a consumer already.
    Repeated,
    /// The topic has [`CONSUMERS_MAX`] consumers.
    TooMany,
}

/// A topic, at its home.
#[derive(Debug)]
pub struct Topic {
    node: NodeId,
    when_full: WhenFull,
    window_messages: usize,

    // Messages
    lanes: Lanes,
    room: Room,
    next_number: MessageNumber,

    // Consumers
    consumers: Consumers,
    // Consumers that are gone and whose messages are to be requeued.
    gone: VecDeque<ConsumerKey>,
    // Consumers with room for which something may wait.
    behind: VecDeque<ConsumerKey>,
    // Whether changed bounds have left messages to drop, or requests to answer.
    must_make_room: bool,
    has_asked_for_turn: bool,

    // Whether a shard has ever fed the topic. Feeders keep their credit, so such a topic is never dropped.
    is_fed: bool,
    dropped: u64,
    waits: Durations,
    effects: VecDeque<Effect>,
}

impl Topic {
    /// An empty topic on a node of `shards` shards. Each shard starts with [`Room::share`] credit.
    pub fn new(node: NodeId, bounds: Bounds, when_full: WhenFull, shards: usize) -> Self {
        Self {
            node,
            when_full,
            window_messages: window_messages(bounds, when_full),
            lanes: Lanes::default(),
            room: Room::new(bounds, shards),
            next_number: MessageNumber(0),
            consumers: Consumers::default(),
            gone: VecDeque::new(),
            behind: VecDeque::new(),
            must_make_room: false,
            has_asked_for_turn: false,
            is_fed: false,
            dropped: 0,
            waits: Durations::default(),
            effects: VecDeque::new(),
        }
    }

    /// The next effect.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether [`Self::handle_turn`] is to be called in the next turn. True once per such turn.
    pub fn poll_unfinished(&mut self) -> bool {
        let is_unfinished = !self.behind.is_empty() || !self.gone.is_empty() || self.must_make_room;
        is_unfinished && !std::mem::replace(&mut self.has_asked_for_turn, true)
    }

    /// Whether the topic has consumers. If so, [`Self::handle_timeout`] is to be called regularly.
    pub fn has_consumers(&self) -> bool {
        self.consumers.len() > 0
    }

    /// Whether a back end consumes the topic, or has messages of it in flight.
    pub fn knows(&self, id: BackendId) -> bool {
        self.consumers.find(id).is_some()
    }

    /// Whether the topic holds nothing, has no consumers, and was never fed.
    pub fn is_idle(&self) -> bool {
        !self.is_fed && self.room.held().messages == 0 && !self.has_consumers()
    }

    /// Messages held, including those in flight.
    pub fn messages(&self) -> usize {
        self.room.held().messages
    }

    /// Messages dropped because the topic was full ([`WhenFull::DropOldest`]), since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// How long messages were in the topic until they were written, or acknowledged.
    pub fn waits(&self) -> Durations {
        self.waits
    }

    /// The number of messages in flight to consumers.
    pub fn in_flight(&self) -> usize {
        self.consumers.iter().map(|(_, consumer)| consumer.handed.len()).sum()
    }

    /// The figures of the topic.
    pub fn report(&self, name: &str, now_us: u64) -> TopicReport {
        let since_us = self.lanes.oldest_since_us();
        TopicReport {
            name: name.to_owned(),
            messages: self.room.held().messages as u64,
            bytes: self.room.held().bytes as u64,
            consumers: self.consumers.len() as u64,
            oldest_ms: since_us.map_or(0, |since_us| now_us.saturating_sub(since_us) / 1000),
        }
    }

    /// The number of consumers that are connected to the topic's own node. A consumer is known to the topic of
    /// every node, so the sum over the nodes counts each consumer once.
    pub fn own_consumers(&self) -> usize {
        self.consumers.count_of(self.node)
    }

    /// Adds an event, for which the shard had credit.
    pub fn push(&mut self, now_us: u64, from: ShardId, event: Event) {
        let Event { client, frame, is_watched } = event;
        if !self.is_fed {
            self.begin_feeding();
        }
        self.room.take(from, frame.bytes().len());
        if let Some(credit) = self.room.top_up(from) {
            self.effects.push_back(Effect::Grant(from, credit));
        }
        let number = self.next_number;
        self.next_number.0 += 1;
        let item = Item { number, since_us: now_us, is_redelivered: false, is_watched, frame };
        let consumers = &self.consumers;
        // The usual case, since consumers keep up: the message is handed out at once. It skips its lane, the
        // hash slots and a second search for its consumer. Order is kept, because nothing waits for a
        // consumer that has room and is not behind.
        let takes = |owner| {
            let consumer: &Consumer = &consumers[owner];
            consumer.has_room() && !consumer.is_behind
        };
        if let Some((owner, item)) = self.lanes.push(client, item, takes) {
            let delivery = hand(&mut self.consumers[owner], now_us, client, item);
            self.effects.push_back(delivery);
        }
    }

    /// Makes a back end a consumer on these terms. It is handed nothing before [`Self::start`].
    ///
    /// # Errors
    /// The back end is a consumer already, or there are too many.
    pub fn join(&mut self, now_us: u64, id: BackendId, terms: Terms) -> Result<(), JoinError> {
        let key = match self.consumers.find(id) {
            // Messages in flight from before stay with the consumer, ahead of later ones.
            Some(key) if self.consumers[key].state == ConsumerState::Leaving => key,
            Some(_) => return Err(JoinError::Repeated),
            None if self.consumers.len() == CONSUMERS_MAX => return Err(JoinError::TooMany),
            None => self.consumers.insert(id),
        };
        self.consumers[key].begin(terms, self.window_messages);
        self.consumers[key].progress_us = now_us;
        Ok(())
    }

    /// Lets a consumer compete, whose `queue.pop` has been answered.
    pub fn start(&mut self, now_us: u64, id: BackendId) {
        let Some(key) = self.consumers.find(id) else { return };
        let consumer = &mut self.consumers[key];
        if consumer.state == ConsumerState::Joining {
            consumer.state = ConsumerState::Active;
            consumer.progress_us = now_us;
            self.share_again();
        }
    }

    /// Stops a consumer; false if it was none. Unwritten messages stay with it, since its connection lives.
    /// Messages that it has not acknowledged are requeued.
    pub fn leave(&mut self, id: BackendId) -> bool {
        let Some(key) = self.consumers.find(id) else { return false };
        let consumer = &mut self.consumers[key];
        if consumer.state == ConsumerState::Leaving {
            return false;
        }
        consumer.state = ConsumerState::Leaving;
        if consumer.acknowledges {
            let pop = consumer.pop;
            while self.take_back(key, Some(pop)) {}
        }
        self.share_again();
        self.remove_if_left(key);
        true
    }

    /// Removes a consumer whose connection is gone. Its unfinished messages are requeued, ahead of later
    /// ones.
    pub fn gone(&mut self, id: BackendId) {
        if self.note_gone(id) {
            self.share_again();
        }
    }

    /// Removes all consumers on an unreachable node. Their unfinished messages are requeued.
    pub fn node_gone(&mut self, node: NodeId) {
        let ids = self.consumers.iter().map(|(_, consumer)| consumer.id);
        let ids: Vec<_> = ids.filter(|id| id.at.node == node).collect();
        for id in ids {
            self.note_gone(id);
        }
        self.share_again();
    }

    fn note_gone(&mut self, id: BackendId) -> bool {
        let key = self.consumers.mark_gone(id);
        self.gone.extend(key);
        key.is_some()
    }

    /// Finishes the first `count` messages in flight to a consumer, which were written.
    pub fn written(&mut self, now_us: u64, id: BackendId, count: u32) {
        let Some(key) = self.consumers.find(id) else { return };
        let count = self.consumers[key].handed.len().min(count as usize);
        for _ in 0..count {
            self.finish(now_us, key, 0);
        }
        self.progress(now_us, key);
    }

    /// Finishes messages that a consumer has acknowledged. Numbers of messages that are not in flight to it
    /// are ignored.
    pub fn settled(&mut self, now_us: u64, id: BackendId, numbers: &[MessageNumber]) {
        let Some(key) = self.consumers.find(id) else { return };
        for &number in numbers {
            let handed = &self.consumers[key].handed;
            if let Some(at) = handed.iter().position(|handed| handed.item.number == number) {
                self.finish(now_us, key, at);
            }
        }
        self.progress(now_us, key);
    }

    /// Requeues a message that was handed out for a `queue.pop` which its consumer has cancelled, ahead of
    /// later messages of the same client.
    pub fn returned(&mut self, now_us: u64, id: BackendId, number: MessageNumber, pop: PopId) {
        let Some(key) = self.consumers.find(id) else { return };
        let consumer = &mut self.consumers[key];
        let is_it = |handed: &InFlight| handed.item.number == number && handed.pop == pop;
        let Some(at) = consumer.handed.iter().position(is_it) else { return };
        let InFlight { client, item, .. } = consumer.remove(at).expect("the place was looked up");
        let competes = matches!(consumer.state, ConsumerState::Active | ConsumerState::Stalled);
        let has_cancelled = competes && consumer.pop == pop;
        if has_cancelled {
            // The cancellation is in flight. Until it arrives, every message would be returned.
            consumer.state = ConsumerState::Joining;
        }
        let has_nothing = consumer.handed.is_empty();
        self.put_back(client, item);
        match has_cancelled {
            true => self.share_again(),
            // The consumer may have lacked room for what waited behind this message.
            false if has_nothing => self.progress(now_us, key),
            false => drop(self.fill(now_us, key, usize::MAX)),
        }
        self.remove_if_left(key);
    }

    /// Takes the request of a shard that lacks credit for a message of this many bytes.
    pub fn want_credit(&mut self, from: ShardId, bytes: usize) {
        if !self.is_fed {
            self.begin_feeding();
        }
        self.room.ask(from, bytes);
        if self.when_full == WhenFull::DropOldest && !self.must_make_room {
            let wanted = self.room.wanted_by(from);
            while !self.room.has(wanted) && self.drop_oldest() {}
        }
        self.grant_to_asking();
        if self.when_full == WhenFull::Close && self.room.refuse(from) {
            self.effects.push_back(Effect::Refuse(from));
        }
    }

    /// Continues what a change of the consumers has left to do. To be called once per turn after
    /// [`Self::poll_unfinished`] has asked for it.
    pub fn handle_turn(&mut self, now_us: u64) {
        self.has_asked_for_turn = false;
        let mut left = MOVED_PER_TURN;
        while left > 0
            && let Some(&key) = self.gone.front()
        {
            if self.take_back(key, None) {
                left -= 1;
            } else {
                self.gone.pop_front();
                self.consumers.remove(key);
            }
        }
        if self.must_make_room {
            left = self.make_room(left);
        }
        while left > 0
            && let Some(&key) = self.behind.front()
        {
            left -= self.fill(now_us, key, left).min(left);
            if left > 0 {
                self.behind.pop_front();
                if let Some(consumer) = self.consumers.get_mut(key) {
                    consumer.is_behind = false;
                }
            }
        }
    }

    /// Finds consumers that take nothing.
    pub fn handle_timeout(&mut self, now_us: u64) {
        let mut found = false;
        let is_active = |(_, consumer): (_, &Consumer)| consumer.state == ConsumerState::Active;
        let others_would = self.consumers.iter().any(is_active);
        for (key, consumer) in self.consumers.iter_mut() {
            let idle_us = now_us.saturating_sub(consumer.progress_us);
            match consumer.state {
                ConsumerState::Active
                    if idle_us >= STALLED_US
                        && !consumer.has_room()
                        && self.lanes.has_waiting(key) =>
                {
                    consumer.state = ConsumerState::Stalled;
                    found = true;
                }
                // A consumer that acknowledges may be processing its messages.
                ConsumerState::Stalled
                    if others_would && !consumer.acknowledges && idle_us >= EVICTION_US =>
                {
                    self.effects.push_back(Effect::Evict(consumer.id));
                }
                _ => {}
            }
        }
        if found {
            self.share_again();
        }
    }

    /// Asserts the invariants. Costs a look at every lane.
    pub fn check(&self) {
        let mut held = self.lanes.check();
        let mut handed: HashMap<(ClientId, ConsumerKey), usize> = HashMap::new();
        for (key, consumer) in self.consumers.iter() {
            let bytes = consumer.handed.iter().map(|handed| handed.item.frame.bytes().len());
            assert_eq!(bytes.sum::<usize>(), consumer.handed_bytes);
            held.messages += consumer.handed.len();
            held.bytes += consumer.handed_bytes;
            for in_flight in &consumer.handed {
                assert!(in_flight.item.number < self.next_number, "a message that never came");
                *handed.entry((in_flight.client, key)).or_default() += 1;
            }
            let is_offered = consumer.has_room() && self.lanes.has_waiting(key);
            assert!(!is_offered || consumer.is_behind, "waiting messages are handed out");
            let is_queued = self.behind.contains(&key);
            assert!(!consumer.is_behind || is_queued, "a consumer that is behind is queued");
            let is_gone = consumer.state == ConsumerState::Gone;
            assert_eq!(is_gone, self.gone.contains(&key), "messages of the gone are requeued");
        }
        // Each lane with messages in flight is here with one consumer, so no other has any of it.
        let in_flight = self.lanes.in_flight().map(|(client, key, count)| ((client, key), count));
        assert_eq!(handed, in_flight.collect(), "messages in flight, by client and consumer");
        assert_eq!(self.room.held(), held, "messages and bytes held");
        self.room.check();
    }

    /// Requeues the latest message in flight to a consumer, if it was handed out for `pop`, or for any if that
    /// is `None`.
    fn take_back(&mut self, key: ConsumerKey, pop: Option<PopId>) -> bool {
        let taken = self.consumers[key].take_back(pop);
        let is_some = taken.is_some();
        if let Some(InFlight { client, item, .. }) = taken {
            self.put_back(client, item);
        }
        is_some
    }

    fn put_back(&mut self, client: ClientId, item: Item) {
        if let Some(owner) = self.lanes.put_back(client, item) {
            self.offer(owner);
        }
    }

    /// Finishes the message at a place among those in flight to a consumer.
    fn finish(&mut self, now_us: u64, key: ConsumerKey, at: usize) {
        let removed = self.consumers[key].remove(at);
        let InFlight { client, item, .. } = removed.expect("the place was looked up");
        self.waits.add(now_us.saturating_sub(item.since_us));
        self.forget(client, &item);
        if let Some(owner) = self.lanes.finish(client) {
            self.offer(owner);
        }
    }

    /// Notes that a consumer has finished messages: it may be handed more, and feeders may have the room.
    fn progress(&mut self, now_us: u64, key: ConsumerKey) {
        let consumer = &mut self.consumers[key];
        consumer.progress_us = now_us;
        if consumer.state == ConsumerState::Stalled {
            consumer.state = ConsumerState::Active;
            self.share_again();
        }
        // The usual case, since consumers keep up: nothing waits, and the hash slots need not be searched.
        if self.lanes.has_listed() {
            self.fill(now_us, key, usize::MAX);
        }
        self.remove_if_left(key);
        self.grant_to_asking();
    }

    /// Shares the clients among the consumers of the best rank.
    fn share_again(&mut self) {
        let ranks = || self.consumers.iter().filter_map(|(_, c)| c.rank(self.node));
        let Some(best) = ranks().min() else {
            self.lanes.share_among(&[]);
            return;
        };
        let is_member = |(_, consumer): &(_, &Consumer)| consumer.rank(self.node) == Some(best);
        let members: Vec<ConsumerKey> =
            self.consumers.iter().filter(is_member).map(|(key, _)| key).collect();
        for key in self.lanes.share_among(&members) {
            self.offer(key);
        }
    }

    /// Queues a consumer with room, for which something waits.
    fn offer(&mut self, key: ConsumerKey) {
        let consumer = &mut self.consumers[key];
        if consumer.has_room() && !consumer.is_behind {
            consumer.is_behind = true;
            self.behind.push_back(key);
        }
    }

    /// Hands a consumer what waits for it, oldest first, while it has room. Looks at no more than `max` lanes,
    /// and returns their number.
    fn fill(&mut self, now_us: u64, key: ConsumerKey, max: usize) -> usize {
        let mut looked_at = 0;
        while looked_at < max
            && self.consumers.get(key).is_some_and(Consumer::has_room)
            && let Some(popped) = self.lanes.pop(key)
        {
            looked_at += 1;
            if let Popped::Message(client, item) = popped {
                let delivery = hand(&mut self.consumers[key], now_us, client, item);
                self.effects.push_back(delivery);
            }
        }
        looked_at
    }

    fn remove_if_left(&mut self, key: ConsumerKey) {
        let consumer = self.consumers.get(key);
        if consumer.is_some_and(|c| c.state == ConsumerState::Leaving && c.handed.is_empty()) {
            self.consumers.remove(key);
        }
    }

    fn grant_to_asking(&mut self) {
        while self.room.has_asking()
            && let Some((shard, credit)) = self.room.poll_grant()
        {
            self.effects.push_back(Effect::Grant(shard, credit));
        }
    }

    /// Drops the oldest message that is not in flight; false if there is none.
    fn drop_oldest(&mut self) -> bool {
        let Some((client, item)) = self.lanes.drop_oldest() else { return false };
        self.forget(client, &item);
        self.dropped += 1;
        true
    }

    /// Releases the room of a message that has left the topic.
    fn forget(&mut self, client: ClientId, item: &Item) {
        self.room.release(item.frame.bytes().len());
        if item.is_watched {
            self.effects.push_back(Effect::EventLeft(client));
        }
    }
}

/// The most messages in flight to a consumer that does not acknowledge.
fn window_messages(bounds: Bounds, when_full: WhenFull) -> usize {
    match when_full {
        // At most half of the topic is in flight to one consumer, so that there is some to drop.
        WhenFull::DropOldest => WINDOW_MESSAGES.min(bounds.messages / 2).max(1),
        WhenFull::Hold | WhenFull::Close => WINDOW_MESSAGES,
    }
}

/// Hands a message to a consumer that has room.
fn hand(consumer: &mut Consumer, now_us: u64, client: ClientId, item: Item) -> Effect {
    let delivery = Delivery {
        number: item.number,
        pop: consumer.pop,
        is_acknowledged: consumer.acknowledges,
        is_redelivered: item.is_redelivered,
        frame: item.frame.clone(),
    };
    consumer.take(now_us, client, item);
    Effect::Deliver(consumer.id, delivery)
}

#[cfg(test)]
mod tests;
