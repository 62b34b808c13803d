//! The history of a channel as it travels between nodes.

use crate::address::NodeId;
use crate::protocol::frame::Frame;
use crate::protocol::position::{Epoch, Serial};

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
