//! Messages between the home of a channel and other shards, and the history of a channel as it travels between nodes.

use std::sync::Arc;

use super::{ConnectionKey, Publish};
use crate::address::NodeId;
use crate::protocol::api::Tally;
use crate::protocol::frame::Frame;
use crate::protocol::position::{Epoch, Position, Serial};

/// A claim to be the home of a channel. The greater one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// One more than in any claim that the claimant has heard of.
    pub round: u64,
    /// The claimant.
    pub node: NodeId,
}

/// The reign of a home: the messages from `first` on, up to the first one of the next reign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// The identity of the reign.
    pub epoch: Epoch,
    /// The claim that made the home.
    pub ballot: Ballot,
    /// The number of the first message.
    pub first: Serial,
}

/// A publish on its way to the home of its channel.
#[derive(Clone, Debug)]
pub struct HomePublish {
    /// The message.
    pub publish: Publish,
    /// The idempotency key.
    pub key: Option<Box<str>>,
}

/// A message that the home of its channel delivers.
#[derive(Debug)]
pub struct PlacedPublish {
    /// The message.
    pub publish: Publish,
    /// The place behind the message in the history of the channel. `None`: the channel has none.
    pub position: Option<Position>,
}

/// The answer of a home to a publish. Shards that have not delivered the message yet follow with their tallies.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The place behind the message in the history of the channel. `None`: the channel has none.
    pub position: Option<Position>,
    /// The subscribers that were reached so far.
    pub tally: Tally,
    /// The number of tallies that follow.
    pub awaited: u32,
}

/// A question of a device's shard to the home of a channel: what has the device missed?
#[derive(Clone, Debug)]
pub struct RecoveryQuestion {
    /// The connection of the device.
    pub connection: ConnectionKey,
    /// The channel.
    pub channel: Arc<str>,
    /// The place of the last message that the device got. `None`: the device gave none, or one that is malformed.
    pub since: Option<Position>,
    /// The most bytes of frames that the device takes at once.
    pub bytes_max: usize,
}

/// The answer to a [`RecoveryQuestion`]. Messages of the channel that the home sends later come after these.
#[derive(Clone, Debug)]
pub struct RecoveryAnswer {
    /// The connection of the device.
    pub connection: ConnectionKey,
    /// The channel.
    pub channel: Arc<str>,
    /// The place behind the last message of the channel.
    pub position: Position,
    /// The messages behind the place that the device gave, in order. `None`: some may be missing, or they are too large
    /// together.
    pub missed: Option<Vec<(Position, Frame)>>,
}

/// A message of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryMessage {
    /// The time since the message was published, in milliseconds.
    pub age_ms: u64,
    /// The idempotency key.
    pub key: Option<Box<str>>,
    /// The encoded message.
    pub frame: Frame,
}

/// Part of a history. Parts of one history follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPart {
    /// All reigns of the history, oldest first.
    pub reigns: Vec<Reign>,
    /// The number of the first message of this part.
    pub first: Serial,
    /// Whether the receiver has to forget what it holds.
    pub replaces: bool,
    /// The messages, in order.
    pub messages: Vec<HistoryMessage>,
    /// Whether no part follows.
    pub is_last: bool,
}
