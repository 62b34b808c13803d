//! The takes of one shard, and the keys by which the rest of the shard knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::message::{BackendId, ConnectionKey, Delivery, MessageNumber, PopId};
use crate::shard::backend::consumers::TopicHome;
use crate::shard::backend::pending::Asker;
use crate::shard::turn::Turn;
use crate::slot_map::SlotMap;

/// The bit that tells takes from connections in the index of a consumer's key. No table has so many slots.
const TAKE_BIT: u32 = 1 << 31;

/// The takes of one shard.
#[derive(Debug)]
pub(in crate::shard::backend) struct Takes {
    pub(super) takes: SlotMap<Take, { ConnectionKey::GENERATION_BITS }>,
    by_connection: HashMap<ConnectionKey, Vec<TakeKey>>,
    // When each waiting take is answered, in milliseconds.
    pub(super) deadlines: BTreeSet<(u64, TakeKey)>,
    // Takes that have events and wait for more.
    pub(super) gathering: Vec<TakeKey>,
    // The id of the next take.
    next_pop: u64,
}

/// The key of a take in the table of its shard.
pub(in crate::shard) type TakeKey = ConnectionKey;

/// One request for events.
#[derive(Debug)]
pub(super) struct Take {
    // The connection of the request.
    pub(super) connection: ConnectionKey,
    pub(super) stage: TakeStage,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) group: Option<Arc<str>>,
    pub(super) pop: PopId,
    pub(super) max: usize,
    pub(super) deadline_ms: u64,
    // What was handed to the take, in order.
    pub(super) events: Vec<(TopicHome, Delivery)>,
    pub(super) quiet_turns: u8,
}

/// The stages of a take.
#[derive(Debug)]
pub(super) enum TakeStage {
    /// The homes of the topics on this node have not all answered. If `is_ended`, the answer is empty.
    Joining { is_ended: bool },
    /// The take is a consumer.
    Waiting(Asker),
    /// The answer is being written. If that fails, these events wait again.
    Answered(BTreeMap<TopicHome, Vec<MessageNumber>>),
}

impl Takes {
    /// No takes, for a shard of this node that was started at this Unix time in milliseconds.
    pub(in crate::shard::backend) fn new(started_unix_ms: u64) -> Self {
        Self {
            takes: SlotMap::new(started_unix_ms as u32),
            by_connection: HashMap::new(),
            deadlines: BTreeSet::new(),
            gathering: Vec::new(),
            next_pop: first_pop(started_unix_ms),
        }
    }

    /// The number of takes.
    pub(in crate::shard::backend) fn len(&self) -> usize {
        self.takes.len()
    }

    /// Whether there is none.
    pub(in crate::shard::backend) fn is_empty(&self) -> bool {
        self.takes.is_empty()
    }

    pub(super) fn insert(&mut self, take: Take) -> TakeKey {
        let connection = take.connection;
        let key = self.takes.insert(take);
        self.by_connection.entry(connection).or_default().push(key);
        key
    }

    pub(super) fn remove(&mut self, key: TakeKey) -> Option<Take> {
        let take = self.takes.remove(key)?;
        self.deadlines.remove(&(take.deadline_ms, key));
        if let Some(keys) = self.by_connection.get_mut(&take.connection) {
            keys.retain(|&other| other != key);
            if keys.is_empty() {
                self.by_connection.remove(&take.connection);
            }
        }
        Some(take)
    }

    /// Removes a take whose answer is being written.
    pub(super) fn remove_answered(&mut self, key: TakeKey) {
        let stage = self.takes.get(key).map(|take| &take.stage);
        if matches!(stage, Some(TakeStage::Answered(_))) {
            self.remove(key);
        }
    }

    pub(super) fn waiting(&mut self, key: TakeKey) -> Option<&mut Take> {
        self.takes.get_mut(key).filter(|take| matches!(take.stage, TakeStage::Waiting(_)))
    }

    /// The id of a new take, unique in the grid.
    pub(super) fn allot_pop(&mut self, turn: &Turn) -> PopId {
        let pop = PopId(self.next_pop << 18 | pop_place(turn));
        self.next_pop += 1;
        pop
    }

    /// The takes of a connection.
    pub(super) fn of_connection(&self, connection: ConnectionKey) -> Vec<TakeKey> {
        self.by_connection.get(&connection).cloned().unwrap_or_default()
    }

    /// The waiting takes, in the order of their deadlines.
    pub(super) fn all_waiting(&self) -> Vec<TakeKey> {
        self.deadlines.iter().map(|&(_, key)| key).collect()
    }
}

/// The consumer that a take is.
pub(super) fn taker(turn: &Turn, key: TakeKey) -> BackendId {
    turn.backend_id(ConnectionKey { index: key.index | TAKE_BIT, ..key })
}

/// Whether a consumer is a take, and no connection.
pub(in crate::shard) fn is_take(consumer: ConnectionKey) -> bool {
    take_key(consumer).is_some()
}

/// The take that a consumer is. `None`: the consumer is a connection.
pub(super) fn take_key(consumer: ConnectionKey) -> Option<TakeKey> {
    let index = consumer.index & !TAKE_BIT;
    (index != consumer.index).then_some(TakeKey { index, ..consumer })
}

/// The place that makes the ids of takes unique in the grid: the node and the shard, in 18 bits.
fn pop_place(turn: &Turn) -> u64 {
    u64::from(turn.address.node.number()) << 8 | u64::from(turn.address.shard.0)
}

/// The first id of a run. Runs begin at different times, and no shard answers 32 takes in each millisecond of its
/// run, so ids do not repeat.
fn first_pop(started_unix_ms: u64) -> u64 {
    (started_unix_ms << 5) & ((1 << 46) - 1)
}
