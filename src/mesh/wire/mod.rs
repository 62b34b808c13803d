//! The versioned wire format between nodes.
//!
//! A lane carries frames, each behind its length in 4 bytes. Numbers are little-endian and of fixed size,
//! which is the fastest form to read and write.
//!
//! - `frames.rs`: received pieces → frames. `control.rs`: a frame of the control lane, which is one
//!   [`Control`]. `batch.rs`: a frame of any other lane, which is a batch of messages. `function.rs`: functions of
//!   `conn.call`. `list.rs`: the messages of lists of administration. `tap.rs`: the messages about taps. `presence.rs`: those about
//!   presence. `topic.rs`: those between topics and consumers.
//! - `fields.rs`: numbers, names, texts, ids and addresses.
//!
//! A peer has proved to know the grid's key, so the meaning of its messages is trusted: that a
//! [`Frame`](crate::protocol::frame::Frame) holds whole server frames, that JSON is JSON. Their form is not
//! trusted, since a peer may have another version or a bug. Every length, number, name and text is checked,
//! nothing panics, and no more memory is taken than a small multiple of what has arrived.

mod batch;
mod control;
mod fields;
mod frames;
mod function;
mod list;
mod presence;
mod tap;
mod topic;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::address::{Incarnation, NodeId, ShardId};
use crate::message::{GridMessage, Publish, Requester, Ticket, UserCommand};
use crate::protocol::api::Tally;

use super::link::Lane;
use super::numbers::{AnnouncementNumber, BatchNumber, ChannelHash, SessionId};

pub use batch::{batch_number, begin_batch, end_batch, messages, put_message};
pub use control::{put_control, read_control};
pub use frames::FrameReader;

/// The versions of the protocol that this node speaks: its own, and the previous one if it still speaks
/// that. A version covers the format and the placement of topics (`address::placement`).
///
/// Version 2 changed the placement. Nodes of version 1 are refused: they would look for topics on other
/// shards than this node does.
pub const VERSIONS: Versions = Versions { first: 2, last: 2 };

/// The longest frame, in bytes without its length. The largest message is an event of 16 MiB of text, for
/// which JSON may need six bytes each: 96 MiB. A batch is completed long before it is full: the largest
/// message is added to 16 MiB at most.
pub const FRAME_BYTES_MAX: usize = 128 << 20;

/// The longest text for people (an error, a refusal, a software version), in bytes. Longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 1024;

/// A range of versions of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest version.
    pub first: u16,
    /// The newest version.
    pub last: u16,
}

/// A message between the meshes of two nodes, on the control lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The first message on a link, from each side.
    Hello(Hello),
    /// Refuses the peer, and says why in a text for the log. The link is closed after it.
    Refused(String),
    /// Announces of which channels the sender has subscribers from now on, or has none any more.
    Interest {
        /// Confirmed by [`Control::InterestKnown`]; `None`: more parts of the whole interest follow.
        number: Option<AnnouncementNumber>,
        /// The first part of the whole interest, which replaces all earlier announcements.
        is_whole: bool,
        /// Channels that have subscribers.
        on: Vec<ChannelHash>,
        /// Channels that have no subscribers any more.
        off: Vec<ChannelHash>,
    },
    /// Confirms all [`Control::Interest`] up to this number.
    InterestKnown(AnnouncementNumber),
    /// Asks for an immediate [`Control::Pong`].
    Ping {
        /// The time on the sender's clock, in milliseconds.
        sent_ms: u64,
    },
    /// Answers [`Control::Ping`].
    Pong {
        /// The time in the ping.
        sent_ms: u64,
        /// The sender's number of clients.
        clients: u64,
    },
    /// Acknowledges batches.
    Received(Receipt),
}

/// The batches received on one lane of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The lane.
    pub lane: Lane,
    /// The last batch. All batches before it were received, too.
    pub last: BatchNumber,
}

/// Who a node is, and which session it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The versions that the node speaks.
    pub versions: Versions,
    /// The node's id.
    pub node: NodeId,
    /// When the node was started.
    pub incarnation: Incarnation,
    /// The number of the node's shards.
    pub shards: u16,
    /// The address at which the node is dialled.
    pub mesh: SocketAddr,
    /// The address at which back ends reach the node.
    pub api: SocketAddr,
    /// The version of the node's software, for people.
    pub software: String,
    /// The session to continue, if the peer names the same one.
    pub held: Option<SessionId>,
    /// The session to begin otherwise. The offer of the node that dialled counts.
    pub offered: SessionId,
    /// The batches received in the held session.
    pub received: Vec<Receipt>,
}

/// A message in a batch, for a receiver within the node that the batch is sent to.
#[derive(Debug)]
pub enum AddressedMessage {
    /// For a shard.
    Shard(ShardId, GridMessage),
    /// For the mesh.
    Mesh(MeshMessage),
}

/// A message of the mesh of one node to the mesh of another. On the control lane they say [`Control`].
#[derive(Debug)]
pub enum MeshMessage {
    /// Asks to publish to the subscribers of the receiving node. Sent on the lane of the publishing shard.
    Publish(Requester, Publish),
    /// Asks to carry out a command for users on all shards of the receiving node. Sent on the lane of the asking shard.
    ForUsers(Requester, Arc<UserCommand>),
    /// The answer to either.
    Published(Ticket, Tally),
}

/// Why bytes of a peer are invalid. The peer has another version or a bug, and the link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The data ends within a field.
    Truncated,
    /// Data follows the last field.
    Trailing,
    /// A frame is over [`FRAME_BYTES_MAX`].
    TooLarge,
    /// A kind that this version does not know, by its number.
    Unknown(u8),
    /// A number, length or count is out of bounds.
    OutOfBounds,
    /// A text is not UTF-8.
    NotUtf8,
    /// A hello does not start as one.
    NotAHello,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the data ends within a field",
            Self::Trailing => "data follows the last field",
            Self::TooLarge => "a frame is over 128 MiB",
            Self::Unknown(kind) => return write!(f, "this version does not know kind {kind}"),
            Self::OutOfBounds => "a number, length or count is out of bounds",
            Self::NotUtf8 => "a text is not UTF-8",
            Self::NotAHello => "the peer is not a gridcast node: its hello is malformed",
        })
    }
}

#[cfg(test)]
mod tests;
