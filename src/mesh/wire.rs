//! Messages ⇄ bytes between nodes, versioned.

use std::net::SocketAddr;

use crate::address::{NodeId, ShardId};
use crate::message::Message;

use super::link::Lane;

/// The versions of this format that this node speaks: its own, and the one before where it still
/// does.
pub const VERSIONS: (u16, u16) = (1, 1);

/// What the meshes of two nodes say to each other on the control lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The first words on a link, from each side.
    Hello(Hello),
    /// Instead of going on: why, in words for the log. The link is closed after it.
    Refused(String),
    /// Hashes of channels that the sender has subscribers of from now on, or has not any more.
    Interest {
        /// Counts these from 1 within a session.
        number: u64,
        /// What was said before holds no more: this begins the whole.
        is_whole: bool,
        /// Channels that have subscribers.
        on: Vec<u64>,
        /// Channels that have none any more.
        off: Vec<u64>,
    },
    /// All [`Control::Interest`] up to this number is known.
    InterestKnown(u64),
    /// Asks for [`Control::Pong`] with this number, at once.
    Ping(u64),
    /// The answer.
    Pong(u64),
    /// Of this lane all batches up to this number have come.
    Received(Lane, u64),
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The versions that it speaks, from and to.
    pub versions: (u16, u16),
    /// Its id.
    pub node: NodeId,
    /// When it started, in Unix milliseconds: which of those that had this id it is.
    pub incarnation: u64,
    /// How many shards it has.
    pub shards: u16,
    /// Where it is dialled.
    pub mesh: SocketAddr,
    /// Where back ends reach it.
    pub api: SocketAddr,
    /// Its software's version, for people.
    pub software: String,
    /// The session that it goes on with, 0: none.
    pub held: u64,
    /// The session that begins if the two do not hold the same and this side dialled.
    pub offered: u64,
    /// Of the held session: the last batch of each lane that it has got.
    pub received: Vec<(Lane, u64)>,
}

/// Whom a message between nodes is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// A shard of the receiving node.
    Shard(ShardId),
    /// Its mesh.
    Mesh,
}

/// A message with its receiver.
pub type Letter = (To, Message);
