//! Messages between the home of a topic on disk and the thread that keeps the topic's log.

use std::sync::Arc;

use super::{Credit, MessageNumber};
use crate::address::ClientId;
use crate::protocol::frame::Frame;

/// The identity of a log: the Unix time in milliseconds at which it was created. A log that is deleted and created
/// again is another one, whose events have other ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(pub u64);

/// The index of a group in the log of its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupIndex(pub u16);

/// The number of a delayed event in the log of its topic. Delayed events are numbered apart from the others, in the order
/// in which they are added. The number of an event that has come due may be given again after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DelayedNumber(pub u64);

/// The state of a log at the start of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFacts {
    /// The identity of the log.
    pub id: LogId,
    /// All events below this number are stored. The next event gets it.
    pub stored: MessageNumber,
    /// The next delayed event gets this number.
    pub next_delayed: DelayedNumber,
    /// Events that not every group has settled, and delayed events.
    pub held: Credit,
    /// The first event that each group has not settled, in the order of their indices.
    pub unsettled: Vec<MessageNumber>,
}

/// Changes for the log of a topic, in order.
#[derive(Debug)]
pub struct ToLog {
    /// The topic.
    pub topic: Arc<str>,
    /// Unix time at 0 on the shard's clock, in microseconds.
    pub unix_start_us: u64,
    /// The changes.
    pub changes: Vec<LogChange>,
}

/// A change for a log.
#[derive(Debug)]
pub enum LogChange {
    /// Adds an event. Events are numbered in the order in which they are added.
    Add {
        /// The client that sent the event.
        client: ClientId,
        /// When the event arrived, in microseconds on the shard's clock.
        since_us: u64,
        /// The encoded event.
        frame: Frame,
    },
    /// Adds a delayed event. Delayed events are numbered in the order in which they are added.
    AddDelayed {
        /// The client in whose place a back end has sent the event.
        client: ClientId,
        /// The time from which the event is handed out, in microseconds on the shard's clock.
        due_us: u64,
        /// The encoded event.
        frame: Frame,
    },
    /// Adds a stored delayed event to the others, as if it arrived now.
    AddDue {
        /// The delayed event.
        number: DelayedNumber,
        /// When this happens, in microseconds on the shard's clock.
        since_us: u64,
    },
    /// A group has settled an event.
    Settle {
        /// The group.
        group: GroupIndex,
        /// The number of the event.
        number: MessageNumber,
        /// The bytes of the encoded event.
        bytes: usize,
    },
    /// An event was handed out to a group in vain.
    Retry {
        /// The group.
        group: GroupIndex,
        /// The number of the event.
        number: MessageNumber,
        /// How often it was handed out in vain so far.
        tries: u16,
        /// The time from which it may be handed out again, in microseconds on the shard's clock. 0: at once.
        until_us: u64,
    },
    /// A group has consumers from now on, or has none any more. [`LogNews::marked`] tells when this is written.
    Consume {
        /// The group.
        group: GroupIndex,
        /// Whether the group has consumers.
        is_consumed: bool,
        /// The group was handed no event from this number on.
        below: MessageNumber,
    },
    /// Reads events that a group has not settled. The answer is in [`LogNews::read`].
    Read {
        /// The group.
        group: GroupIndex,
        /// The first event to read.
        from: MessageNumber,
    },
}

/// What has become of changes, for the home of a topic.
#[derive(Debug)]
pub struct FromLog {
    /// The topic.
    pub topic: Arc<str>,
    /// What has happened.
    pub news: LogNews,
}

/// What has happened to a log since the last news.
#[derive(Debug, Default)]
pub struct LogNews {
    /// Events that are stored now, in their order.
    pub stored: u64,
    /// Delayed events that are stored now, in their order.
    pub stored_delayed: u64,
    /// Delayed events that were found when the node started. In the first news alone.
    pub recovered: Vec<DelayedEvent>,
    /// Events that every group has settled now.
    pub freed: Credit,
    /// Groups whose [`LogChange::Consume`] was written.
    pub marked: Vec<GroupIndex>,
    /// Events that were read.
    pub read: Vec<EventsRead>,
}

impl LogNews {
    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        let Self { stored, stored_delayed, recovered, freed, marked, read } = self;
        (*stored, *stored_delayed) == (0, 0)
            && recovered.is_empty()
            && *freed == Credit::default()
            && marked.is_empty()
            && read.is_empty()
    }
}

/// Events that were read for a group.
#[derive(Debug)]
pub struct EventsRead {
    /// The group.
    pub group: GroupIndex,
    /// The events, in their order.
    pub events: Vec<StoredEvent>,
    /// The group has settled, or has got, all events below this number.
    pub next: MessageNumber,
}

/// The failed tries of a group with an event: it was handed out and not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailedTries {
    /// How often the event was handed out in vain.
    pub tries: u16,
    /// The time from which it may be handed out again, in Unix milliseconds. 0: at once.
    pub until_ms: u64,
}

/// A delayed event in the log of its topic.
#[derive(Clone, Debug)]
pub struct DelayedEvent {
    /// The number among the delayed events of the log.
    pub number: DelayedNumber,
    /// The client in whose place a back end has sent the event.
    pub client: ClientId,
    /// The time from which the event is handed out, in Unix milliseconds.
    pub due_ms: u64,
    /// The encoded event.
    pub frame: Frame,
}

/// An event that was read.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The number in the log.
    pub number: MessageNumber,
    /// The client that sent the event.
    pub client: ClientId,
    /// When the event arrived, in Unix milliseconds.
    pub unix_ms: u64,
    /// Whether the event may have been handed out in an earlier run of the node.
    pub is_redelivered: bool,
    /// The failed tries of the group with this event.
    pub failed: FailedTries,
    /// The encoded event.
    pub frame: Frame,
}
