//! Messages between the home of a channel and other shards, and the history of a channel as it travels between nodes.

use std::sync::Arc;

use super::{ConnectionKey, Publish, Ticket};
use crate::address::{ClientId, NodeId};
use crate::protocol::api::{Fault, Tally};
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

/// A claim to be the home of a channel, as every other reachable node hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeClaim {
    /// The claim.
    pub ballot: Ballot,
    /// The nodes that will hold the history too: fewer than [`COPIES_MAX`].
    pub holders: Vec<NodeId>,
}

/// The most nodes that hold the history of a channel.
pub const COPIES_MAX: usize = 8;

/// The most reigns that a history remembers. A position in an older one is unknown.
pub const REIGNS_MAX: usize = 16;

/// What a node knows and holds of a channel, in answer to a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// The greatest claim that the node had promised to respect before.
    pub promised: Option<HomeClaim>,
    /// The claim whose home has completed the node's copy of the history. `None`: the node has no copy.
    pub accepted: Option<HomeClaim>,
    /// Whether the copy certainly has all messages that were delivered under that claim and later ones, as far as the node
    /// can tell by itself.
    pub is_whole: bool,
    /// The reigns of the copy, oldest first: at most [`REIGNS_MAX`].
    pub reigns: Vec<Reign>,
    /// The number of the last message of the copy.
    pub last: Serial,
}

/// A message between two nodes about a channel with history: between the shards that are responsible for the channel there.
#[derive(Clone, Debug)]
pub enum ChannelMessage {
    /// The sender claims to be the home. Answered with [`Self::Promise`] or [`Self::Outvoted`].
    Claim(HomeClaim),
    /// The sender respects no smaller claim than this one any more.
    Promise(Ballot, Box<Holding>),
    /// The sender has promised to respect a claim that is greater than that of the receiver: this one.
    Outvoted(Ballot),
    /// The claimant asks for what follows a position in the history, or for all of it. Answered with
    /// [`Self::Fetched`].
    Fetch(Ballot, Option<Position>),
    /// Part of the history, for the claimant.
    Fetched(Ballot, Box<HistoryPart>),
    /// Part of the history, for a holder. The last part is answered with [`Self::Confirm`].
    Install(Ballot, Box<HistoryPart>),
    /// The next message of the history, for a holder. Answered with [`Self::Confirm`].
    Append(Ballot, Box<AppendedMessage>),
    /// The sender holds all messages up to this one.
    Confirm(Ballot, Serial),
    /// The home has all holders that it needs: the receiver forgets its copy.
    Forget(Ballot),
    /// The sender wants to reach the home. Answered with [`Self::Attached`] or [`Self::NotHome`].
    Attach {
        /// Comes back with the answer.
        attachment: Attachment,
        /// Whether subscribers of the sender's node get the messages.
        follows: bool,
        /// The place up to which they got them.
        position: Option<Position>,
    },
    /// The home answers [`Self::Attach`].
    Attached {
        /// The number of the question.
        attachment: Attachment,
        /// The claim of the home.
        ballot: Ballot,
        /// The place behind the last delivered message. Later messages follow.
        position: Position,
        /// The messages between the place that was given and this one. `None`: no place was given, or some messages may
        /// be missing, or they are too large together.
        missed: Option<Vec<(Position, Frame)>>,
    },
    /// The receiver of [`Self::Attach`] is not the home, and will not be.
    NotHome(Attachment),
    /// A message for the home. Answered with [`Self::Placed`] or [`Self::NotTaken`].
    Publish(Ballot, Ticket, Box<HomePublish>),
    /// The home has not taken a message, since it has made another claim or is home no longer.
    NotTaken(Ticket),
    /// The outcome of a publish: its place in the history, and whom it has reached.
    Placed(Ticket, Result<(Position, Tally), Fault>),
    /// The next message for the subscribers of a node. Answered with [`Self::Delivered`].
    Deliver(Ballot, Box<DeliveredMessage>),
    /// The subscribers of the sender's node that a message has reached.
    Delivered(Ticket, Tally),
    /// Asks the home what was published since a position. Answered with [`Self::Recovered`] or [`Self::NotTaken`].
    Recover {
        /// The claim of the home.
        ballot: Ballot,
        /// The ticket of the answer.
        ticket: Ticket,
        /// The place.
        since: Option<Position>,
        /// The most bytes of the frames in the answer.
        bytes_max: u64,
    },
    /// Answers [`Self::Recover`]. Messages that the home sends later come after these.
    Recovered {
        /// The ticket of the question.
        ticket: Ticket,
        /// The place behind the last delivered message.
        position: Position,
        /// The messages behind the place that was given. `None`: some may be missing, or they are too large together.
        missed: Option<Vec<(Position, Frame)>>,
    },
}

/// The number of an [`ChannelMessage::Attach`] of one node and channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attachment(pub u64);

/// A message that the home of a channel has appended to the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendedMessage {
    /// The reign of the home.
    pub reign: Reign,
    /// The number of the message.
    pub serial: Serial,
    /// The message.
    pub message: HistoryMessage,
}

/// A message on its way from the home of a channel to the subscribers of a node.
#[derive(Clone, Debug)]
pub struct DeliveredMessage {
    /// The ticket of the answer.
    pub ticket: Ticket,
    /// The place behind the message.
    pub position: Position,
    /// The encoded message.
    pub frame: Frame,
    /// The clients that do not get the message.
    pub excluded: Option<Arc<Vec<ClientId>>>,
}
