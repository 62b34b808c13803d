//! The consumers of one topic, and the messages that each was handed.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use hashbrown::HashMap;

use crate::address::{ClientId, NodeId};
use crate::message::{BackendId, MessageNumber, PopId, Terms};
use crate::protocol::frame::Frame;
use crate::slot_map::{SlotKey, SlotMap};

/// A message in a topic.
#[derive(Clone, Debug)]
pub struct Item {
    /// The number in the topic.
    pub number: MessageNumber,
    /// When the message arrived, in microseconds. Negative: in an earlier run of the node.
    pub since_us: i64,
    /// Whether a consumer had the message before and did not acknowledge it.
    pub is_redelivered: bool,
    /// How often the message was handed out and not acknowledged.
    pub tries: u16,
    /// Whether the feeding shard is told when the message has left the topic.
    pub is_watched: bool,
    /// The encoded event.
    pub frame: Frame,
}

impl Item {
    /// How long ago the message arrived, in microseconds.
    pub(super) fn age_us(&self, now_us: u64) -> u64 {
        age_us(now_us, self.since_us)
    }
}

/// The time since a message arrived, in microseconds.
pub(super) fn age_us(now_us: u64, since_us: i64) -> u64 {
    (now_us as i64).saturating_sub(since_us).max(0) as u64
}

/// A message that was handed to a consumer and is not finished.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The client that sent the message.
    pub client: ClientId,
    /// The `queue.pop` for which the message was handed out.
    pub pop: PopId,
    /// When the message was handed out, in microseconds.
    pub handed_us: u64,
    /// The message.
    pub item: Item,
}

/// The stages of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConsumerState {
    /// The answer to the `queue.pop` was not sent yet.
    Joining,
    /// The consumer competes for messages.
    Active,
    /// The consumer has taken nothing for a while although messages waited for it, or has not acknowledged a
    /// message in time.
    Stalled,
    /// The consumer has stopped: it is handed nothing more, and removed when all its messages are written.
    Leaving,
    /// The connection is gone: its messages are requeued, and then it is removed.
    Gone,
    /// The consumer is none: it only holds the lanes of taken messages.
    Holder,
}

/// One consumer of a topic.
#[derive(Debug)]
pub(super) struct Consumer {
    /// The connection.
    pub id: BackendId,
    /// The stage.
    pub state: ConsumerState,
    /// The latest `queue.pop`.
    pub pop: PopId,
    /// Whether the consumer acknowledges messages. Otherwise a message is finished when it was written.
    pub acknowledges: bool,
    /// Messages in flight, in the order in which they were handed out.
    pub handed: VecDeque<InFlight>,
    /// Bytes of messages in flight.
    pub handed_bytes: usize,
    /// When the consumer last finished a message, or was handed one while it had none, in microseconds.
    pub progress_us: u64,
    /// Whether the consumer is queued to be handed waiting messages.
    pub is_behind: bool,
    window_messages: usize,
    window_bytes: usize,
}

impl Consumer {
    fn new(id: BackendId) -> Self {
        Self {
            id,
            state: ConsumerState::Joining,
            pop: PopId(0),
            acknowledges: false,
            handed: VecDeque::new(),
            handed_bytes: 0,
            progress_us: 0,
            is_behind: false,
            window_messages: 0,
            window_bytes: 0,
        }
    }

    /// Starts a `queue.pop` on these terms. A consumer that does not acknowledge may have `window_messages`
    /// in flight.
    pub(super) fn begin(&mut self, terms: &Terms, window_messages: usize) {
        self.state = ConsumerState::Joining;
        self.pop = terms.pop;
        self.acknowledges = terms.unsettled_max.is_some();
        self.window_bytes = terms.window_bytes;
        self.window_messages = terms.unsettled_max.unwrap_or(window_messages);
    }

    /// Changes the number of messages that may be in flight, unless the consumer acknowledges.
    pub(super) fn set_window(&mut self, window_messages: usize) {
        if !self.acknowledges {
            self.window_messages = window_messages;
        }
    }

    /// Whether the consumer may be handed one more message now.
    pub(super) fn has_room(&self) -> bool {
        // Messages of an earlier queue.pop may be returned, and then have to be handed out first.
        let is_clear = self.handed.front().is_none_or(|first| first.pop == self.pop);
        self.state == ConsumerState::Active
            && is_clear
            && self.handed.len() < self.window_messages
            && self.handed_bytes < self.window_bytes
    }

    /// Adds a message to those in flight, for the current `queue.pop`.
    pub(super) fn take(&mut self, now_us: u64, client: ClientId, item: Item) {
        if self.handed.is_empty() {
            self.progress_us = now_us;
        }
        self.handed_bytes += item.frame.bytes().len();
        self.handed.push_back(InFlight { client, pop: self.pop, handed_us: now_us, item });
    }

    /// The place of a message among those in flight.
    pub(super) fn place_of(&self, number: MessageNumber) -> Option<usize> {
        self.handed.iter().position(|handed| handed.item.number == number)
    }

    /// Removes the message at this place among those in flight.
    pub(super) fn remove(&mut self, at: usize) -> Option<InFlight> {
        let removed = match at {
            // The usual case, since messages are finished in order: no other message moves.
            0 => self.handed.pop_front()?,
            _ => self.handed.remove(at)?,
        };
        self.handed_bytes -= removed.item.frame.bytes().len();
        Some(removed)
    }

    /// Removes the latest message in flight, if it was handed out for `pop`, or for any if that is `None`.
    pub(super) fn take_back(&mut self, pop: Option<PopId>) -> Option<InFlight> {
        let last = self.handed.back()?;
        if pop.is_some_and(|pop| last.pop != pop) {
            return None;
        }
        self.remove(self.handed.len() - 1)
    }

    /// The rank of the consumer, lowest first; `None`: it does not compete. Consumers that take messages are
    /// preferred to stalled ones, then consumers on the topic's own node to others.
    pub(super) fn rank(&self, node: NodeId) -> Option<u8> {
        let is_remote = u8::from(self.id.at.node != node);
        match self.state {
            ConsumerState::Active => Some(is_remote),
            ConsumerState::Stalled => Some(2 + is_remote),
            ConsumerState::Joining
            | ConsumerState::Leaving
            | ConsumerState::Gone
            | ConsumerState::Holder => None,
        }
    }
}

/// Names a consumer of a [`Consumers`] table until it is removed.
pub(super) type ConsumerKey = SlotKey;

/// All consumers of a topic.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    slots: SlotMap<Consumer>,
    // Without consumers whose connection is gone.
    by_id: HashMap<BackendId, ConsumerKey>,
}

impl Consumers {
    /// The number of consumers whose connection is there.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The number of consumers that are connected to this node and not gone.
    pub(super) fn count_of(&self, node: NodeId) -> usize {
        self.by_id.keys().filter(|id| id.at.node == node).count()
    }

    /// The consumer of this connection, if there is one.
    pub(super) fn find(&self, id: BackendId) -> Option<ConsumerKey> {
        self.by_id.get(&id).copied()
    }

    /// Adds a consumer.
    pub(super) fn insert(&mut self, id: BackendId) -> ConsumerKey {
        let key = self.slots.insert(Consumer::new(id));
        self.by_id.insert(id, key);
        key
    }

    /// Adds a consumer that only holds lanes. No id finds it.
    pub(super) fn insert_holder(&mut self, id: BackendId) -> ConsumerKey {
        let key = self.slots.insert(Consumer::new(id));
        self[key].state = ConsumerState::Holder;
        key
    }

    /// Marks a consumer as gone. Its id may be used again, and the consumer stays until
    /// [`Self::remove`].
    pub(super) fn mark_gone(&mut self, id: BackendId) -> Option<ConsumerKey> {
        let key = self.by_id.remove(&id)?;
        self[key].state = ConsumerState::Gone;
        Some(key)
    }

    /// Removes a consumer without messages.
    pub(super) fn remove(&mut self, key: ConsumerKey) {
        let consumer = self.slots.remove(key).expect("a consumer is removed once");
        debug_assert!(consumer.handed.is_empty(), "a consumer's messages are requeued first");
        if self.by_id.get(&consumer.id) == Some(&key) {
            self.by_id.remove(&consumer.id);
        }
    }

    /// The consumer with this key, unless it was removed.
    pub(super) fn get(&self, key: ConsumerKey) -> Option<&Consumer> {
        self.slots.get(key)
    }

    /// The consumer with this key, unless it was removed.
    pub(super) fn get_mut(&mut self, key: ConsumerKey) -> Option<&mut Consumer> {
        self.slots.get_mut(key)
    }

    /// All consumers, including those that are gone, in the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ConsumerKey, &Consumer)> {
        self.slots.iter()
    }

    /// All consumers, including those that are gone, in the order of their keys.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (ConsumerKey, &mut Consumer)> {
        self.slots.iter_mut()
    }
}

impl Index<ConsumerKey> for Consumers {
    type Output = Consumer;

    fn index(&self, key: ConsumerKey) -> &Consumer {
        self.slots.get(key).expect("a key in use names a consumer")
    }
}

impl IndexMut<ConsumerKey> for Consumers {
    fn index_mut(&mut self, key: ConsumerKey) -> &mut Consumer {
        self.slots.get_mut(key).expect("a key in use names a consumer")
    }
}
