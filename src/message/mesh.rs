//! Messages between shards and the mesh of their node.

use std::sync::Arc;

use super::{GridMessage, Publish, Requester, Ticket};
use crate::address::{NodeId, ShardAddress};
use crate::metrics::MeshReport;
use crate::protocol::api::Tally;

/// A message of a shard to the mesh of its node.
#[derive(Debug)]
pub enum ToMesh {
    /// Forwards a message to a shard of another node.
    Grid(ShardAddress, GridMessage),
    /// Publishes on all other nodes that have subscribers. The answer is [`FromMesh::Published`].
    Publish(Requester, Publish),
    /// The answer to [`FromMesh::Publish`].
    Published(Ticket, Tally),
    /// The answer to [`FromMesh::Publish`] if the shard does not carry it out.
    NotPublished(Ticket),
    /// Asks for [`FromMesh::Report`].
    Report(Ticket),
    /// Asks for [`FromMesh::Nodes`].
    Nodes(Ticket),
    /// The shard has subscribers of a channel from now on, or has none any more.
    Interest {
        /// Counts these messages of a shard, from 1.
        change: u64,
        /// The channel.
        channel: Arc<str>,
        /// Whether the channel has subscribers.
        is_on: bool,
    },
    /// The number of the shard's clients.
    Clients(u64),
    /// The shard has received [`FromMesh::NodeUp`]. What it sent to that node before was meant for an earlier
    /// session.
    NodeSeen(NodeId),
}

/// A message of the mesh to a shard of its node.
#[derive(Debug)]
pub enum FromMesh {
    /// Forwards a message of a shard of another node.
    Grid(ShardAddress, GridMessage),
    /// Asks to publish to the shard's subscribers, for a back end of another node.
    Publish(Requester, Publish),
    /// The answer to [`ToMesh::Publish`]: the sum over the other nodes.
    Published(Ticket, Tally),
    /// The answer to [`ToMesh::Report`].
    Report(Ticket, Box<MeshReport>),
    /// The answer to [`ToMesh::Nodes`]: the JSON text of the list of nodes.
    Nodes(Ticket, String),
    /// All that the shard said about its interest, up to this change, is known to every node, or to those
    /// that could publish without asking.
    InterestKnown(u64),
    /// A node has become reachable, or was started anew.
    NodeUp {
        /// The node.
        node: NodeId,
        /// How many shards it has.
        shards: u16,
        /// When it was started, in Unix milliseconds.
        incarnation: u64,
    },
    /// A node is unreachable. Messages in flight to it and from it are lost.
    NodeDown(NodeId),
    /// The grid has given up a node.
    NodeDead {
        /// The node.
        node: NodeId,
        /// When it was started, in Unix milliseconds.
        incarnation: u64,
    },
    /// The grid had given up this node, and takes it back.
    GivenUp,
}
