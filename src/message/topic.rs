//! Messages between a topic's home and its feeders and consumers.
//!
//! A feeder is a shard whose clients send events to the topic. A consumer is a back end that reads them.

use std::sync::Arc;

use crate::address::ClientId;
use crate::protocol::frame::Frame;

/// A message of a topic, in the order of arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageNumber(pub u64);

/// A `queue.pop` of one back end, or a take over HTTP. The id of a take is unique in the grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PopId(pub u64);

/// A message from a feeder to the topic's home.
#[derive(Debug)]
pub enum FromFeeder {
    /// An event. The feeder had credit for it.
    Push(Event),
    /// Asks for credit for an event of this many bytes.
    WantCredit(usize),
    /// Returns credit that the home has recalled.
    Returned(Credit),
}

/// A message from the topic's home to a feeder.
#[derive(Debug)]
pub enum ToFeeder {
    /// Lets the feeder push this many more messages and bytes.
    Credit(Credit),
    /// Asks the feeder to return the credit that exceeds this. The bounds of the topic have shrunk.
    Recall(Credit),
    /// The topic is full, and the feeder's clients must not wait for room.
    Refused,
    /// The watched event of this client has left the topic for good.
    EventLeft(ClientId),
    /// An event of this client is stored: the client gets this receipt.
    EventStored(ClientId, PushReceipt),
}

/// A message from a consumer to the topic's home.
#[derive(Debug)]
pub enum FromConsumer {
    /// A number of delivered events that were written to the consumer's socket.
    Written(u32),
    /// The events with these numbers were acknowledged.
    Settled(Vec<MessageNumber>),
    /// The consumer has refused the events with these numbers. They are delivered again after a delay.
    Refused {
        /// The numbers of the events in the topic.
        numbers: Vec<MessageNumber>,
        /// The delay in milliseconds.
        after_ms: u32,
    },
    /// An event arrived after the consumer had ended the `queue.pop` that asked for it.
    Returned {
        /// The number of the event in the topic.
        number: MessageNumber,
        /// The `queue.pop` that asked for the event.
        pop: PopId,
    },
    /// Makes a back end of another node a consumer, on these terms.
    Consume(Box<Terms>),
    /// Ends the consumption of a back end of another node.
    StopConsuming,
    /// Ends a take over HTTP. Its events with these numbers stay taken until they are acknowledged, or not in
    /// time. The other events in flight to it wait again.
    EndTake {
        /// The numbers of the events in the topic.
        kept: Vec<MessageNumber>,
    },
    /// The answer to a take was not written. Its events with these numbers wait again.
    GiveBack {
        /// The take.
        pop: PopId,
        /// The numbers of the events in the topic.
        numbers: Vec<MessageNumber>,
    },
    /// The consumer has disconnected.
    Gone,
}

/// Events that were taken over HTTP and are acknowledged, or refused. Answered with [`StaleTaken`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleTaken {
    /// The topic.
    pub topic: Arc<str>,
    /// The events: each with its take and its number in the topic.
    pub events: Vec<(PopId, MessageNumber)>,
    /// The delay after which refused events are handed out again, in milliseconds. `None`: the events are
    /// acknowledged.
    pub after_ms: Option<u32>,
}

/// Answers [`SettleTaken`]: the events that were not taken by their takes any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleTaken {
    /// The topic.
    pub topic: Arc<str>,
    /// The events: each with its take and its number in the topic.
    pub events: Vec<(PopId, MessageNumber)>,
}

/// A message from the topic's home to a consumer.
#[derive(Debug)]
pub enum ToConsumer {
    /// Delivers one event.
    Deliver(Delivery),
    /// The events with these numbers were not acknowledged in time, and are no longer the consumer's.
    Expired(Vec<MessageNumber>),
    /// Closes the consumer: it takes no events while other consumers would.
    Evict,
}

/// An event of a client, on its way to a topic.
#[derive(Clone, Debug)]
pub struct Event {
    /// The client that the event is about.
    pub client: ClientId,
    /// The encoded event.
    pub frame: Frame,
    /// What the home of the topic reports to the client's shard about the event.
    pub notice: EventNotice,
}

impl Event {
    /// Creates an event about which nothing is reported.
    pub fn new(client: ClientId, frame: Frame) -> Self {
        Self { client, frame, notice: EventNotice::Nothing }
    }
}

/// A report about an event, from the home of its topic to the shard of its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventNotice {
    /// No report.
    #[default]
    Nothing,
    /// A report when the event has left the topic for good: it was dropped, acknowledged, or written to a
    /// consumer that does not acknowledge.
    Left,
    /// A report when the event is stored: in a topic in memory, or on the disk of a topic on disk.
    Stored(PushReceipt),
}

impl EventNotice {
    /// Whether the end of the event in its topic is reported.
    pub fn is_left(self) -> bool {
        matches!(self, Self::Left)
    }
}

/// The low 32 bits of the number of a device's call, which wait for their answer until an event is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushReceipt(pub u32);

/// The terms on which a back end consumes a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The `queue.pop` that asked for the events. Each delivery carries it.
    pub pop: PopId,
    /// The consumer group. `None`: the default group.
    pub group: Option<Arc<str>>,
    /// The most bytes of events in flight to the consumer. The last event may exceed them.
    pub window_bytes: usize,
    /// The most unacknowledged events. `None`: the consumer does not acknowledge, and an event is settled when
    /// it is written to the socket.
    pub unsettled_max: Option<usize>,
}

/// An event on its way to a consumer.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The number of the event in the topic. An acknowledgement carries it.
    pub number: MessageNumber,
    /// The `queue.pop` that asked for the event.
    pub pop: PopId,
    /// Whether the consumer must acknowledge the event.
    pub is_acknowledged: bool,
    /// Whether the event was delivered before, to a consumer that did not acknowledge it.
    pub is_redelivered: bool,
    /// The encoded event.
    pub frame: Frame,
}

/// Room in a topic that is reserved for the events of one feeder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// The number of messages.
    pub messages: usize,
    /// The number of bytes of encoded events.
    pub bytes: usize,
}
