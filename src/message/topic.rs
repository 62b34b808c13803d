//! Messages between a topic's home and its feeders and consumers.
//!
//! A feeder is a shard whose clients send events to the topic. A consumer is a back end that reads them.

use crate::address::ClientId;
use crate::protocol::frame::Frame;

/// A message of a feeder to the topic's home.
#[derive(Debug)]
pub enum FromFeeder {
    /// An event, for which the feeder had credit.
    Push(Event),
    /// The feeder lacks credit for an event of so many bytes.
    WantCredit(usize),
}

/// A message of the topic's home to a feeder.
#[derive(Debug)]
pub enum ToFeeder {
    /// The feeder may push so many more messages and bytes.
    Credit(Credit),
    /// The topic is full, and clients do not wait for room.
    Refused,
    /// The watched event of this client has left the topic for good.
    Left(ClientId),
}

/// A message of a consumer to the topic's home.
#[derive(Debug)]
pub enum FromConsumer {
    /// So many of the delivered events were written to the consumer's socket.
    Written(u32),
    /// The events of these numbers were acknowledged.
    Settled(Vec<u64>),
    /// An event came after the consumer had ended the `queue.pop` that it answers.
    Returned {
        /// The event's number in the topic.
        number: u64,
        /// The number of that `queue.pop`.
        pop: u64,
    },
    /// To a home on another node: the back end consumes, on these terms.
    Consume(Terms),
    /// To a home on another node: the back end has stopped consuming.
    Unconsume,
    /// The consumer's connection is closed.
    Gone,
}

/// A message of the topic's home to a consumer.
#[derive(Debug)]
pub enum ToConsumer {
    /// One event.
    Deliver(Delivery),
    /// The consumer takes nothing while others would: close it.
    Expel,
}

/// What a topic is fed with.
#[derive(Clone, Debug)]
pub struct Event {
    /// The client that it is about.
    pub client: ClientId,
    /// Its frame.
    pub frame: Frame,
    /// The shard that fed it is to hear when it has left the topic for good: when a consumer has
    /// written it, or acknowledged it if it does that, or when it was dropped.
    pub is_watched: bool,
}

/// On what terms a back end consumes a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The number of its `queue.pop`: comes back with each event.
    pub pop: u64,
    /// Bytes of events that may be on their way to it, plus one event.
    pub window_bytes: usize,
    /// If it acknowledges events: how many may be without an acknowledgement. If not, an event is
    /// done with when it was written to the socket.
    pub unsettled_max: Option<usize>,
}

/// An event on its way to a consumer.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its number in the topic, by which it is settled.
    pub number: u64,
    /// Which `queue.pop` of its consumer it answers.
    pub pop: u64,
    /// Its consumer is to acknowledge it.
    pub is_acknowledged: bool,
    /// It was handed to another consumer before, which did not acknowledge it.
    pub is_redelivered: bool,
    /// Its frame.
    pub frame: Frame,
}

/// Room in a topic that is set aside for one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Messages.
    pub messages: usize,
    /// Bytes of encoded event.
    pub bytes: usize,
}
