//! What shards say to each other, to the mesh and to their node: one enum per direction.
//!
//! | type | sender | receiver |
//! |---|---|---|
//! | [`LocalMessage`] | a shard | a shard of the same node, itself included |
//! | [`GridMessage`] | a shard | a shard of any node. Crosses the wire |
//! | [`ToMesh`] | a shard | the mesh of its node |
//! | [`FromMesh`] | the mesh | a shard of its node |
//! | [`FromNode`] | the node itself | one of its shards |
//!
//! [`FromShard`] is all that a shard sends, [`ToShard`] all that it receives. What one mesh says to another
//! is `mesh::wire::MeshMessage`.
//!
//! Messages about topics have a direction too, in `topic.rs`: [`FromFeeder`] and [`FromConsumer`] go to the
//! topic's home, [`ToFeeder`] and [`ToConsumer`] come from there.
//!
//! The messages of a sender to a receiver arrive in the order in which they were sent. The order of
//! events, and "subscribe, then publish", rest on that.

mod mesh;
mod shard;
mod topic;

use std::sync::Arc;

pub use mesh::{FromMesh, ToMesh};
pub use shard::{
    ClientCommand, ClientReply, GridMessage, LocalCommand, LocalMessage, WARDS_PER_MESSAGE_MAX,
    WardsMessage,
};
pub use topic::{Credit, Delivery, Event, FromConsumer, FromFeeder, Terms, ToConsumer, ToFeeder};

use crate::address::{ShardAddress, ShardId};
use crate::protocol::credentials::Fingerprint;
use crate::protocol::frame::Frame;
use crate::slot_map::SlotKey;

/// One connection of a shard. Index and generation leave 8 bits of a 64-bit word, in which the ring and the
/// poller say what an event is about.
pub type ConnectionKey = SlotKey<24>;

/// A back end's connection, seen from anywhere in the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId {
    /// The shard that holds the connection.
    pub at: ShardAddress,
    /// The connection in that shard.
    pub connection: ConnectionKey,
}

/// A number by which an answer finds its question, in the table of pending questions of whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// The requester of a command, as needed for the answer.
///
/// Messages of 80 bytes and more spell out the two fields, since that takes 8 bytes less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// Comes back in the answer.
    pub ticket: Ticket,
    /// The back end that called. The commands of one back end take effect in order.
    pub backend: BackendId,
}

/// A message for all subscribers of a channel.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The channel.
    pub channel: Arc<str>,
    /// The encoded message.
    pub frame: Frame,
}

/// A message that a shard sends.
#[derive(Debug)]
pub enum FromShard {
    /// To another shard of the node.
    Local(ShardId, LocalMessage),
    /// To the mesh, or through the mesh to a shard of another node.
    Mesh(ToMesh),
}

/// A message that a shard receives.
#[derive(Debug)]
pub enum ToShard {
    /// From another shard of the node.
    Local(ShardId, LocalMessage),
    /// From the mesh, or through the mesh from a shard of another node.
    Mesh(FromMesh),
    /// From the node.
    Node(FromNode),
}

/// A message of the node itself to one of its shards.
#[derive(Debug)]
pub enum FromNode {
    /// The outcome of a verification that the shard asked for.
    Verdict {
        /// The credentials.
        credentials: Fingerprint,
        /// The user's place in the settings; `None`: the credentials are wrong.
        user: Option<usize>,
    },
    /// The node shuts down: stop accepting, close clients within that time, answer what is pending.
    Drain {
        /// Milliseconds in which the clients are closed.
        over_ms: u64,
    },
    /// The node shuts down, and the topics are delivered: close back ends.
    DrainBackends,
}

// The mailboxes have room for thousands of messages each, and their memory is taken at the start.
const _: () = assert!(size_of::<ToShard>() <= 88 && size_of::<ToMesh>() <= 80);
