//! Messages between shards and the mesh of their node.

use std::sync::Arc;

use super::{GridMessage, Publish, Requester, Ticket, UserCommand};
use crate::address::{Incarnation, NodeId, ShardAddress};
use crate::metrics::MeshReport;
use crate::protocol::api::{NodeRow, Tally};

/// A change of a shard's interest in channels. Each shard counts its changes, starting with 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterestChange(pub u64);

/// The nodes of the grid that the mesh knows of.
#[derive(Debug)]
pub struct KnownNodes {
    /// This node and those with a session, in the order of their ids.
    pub rows: Vec<NodeRow>,
    /// Members of the grid without a session.
    pub unreachable: Vec<NodeId>,
    /// Nodes that were lost within the last hour, and are no members any more.
    pub lost: Vec<LostNode>,
}

/// A node that has crashed, hangs, or is cut off: the session with it has ended, and it had not said that it shuts
/// down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostNode {
    /// The node.
    pub node: NodeId,
    /// The version of gridcast that the node ran.
    pub version: String,
    /// How long ago the session with the node ended, in milliseconds.
    pub lost_ms: u64,
}

/// A message from a shard to the mesh of its node.
#[derive(Debug)]
pub enum ToMesh {
    /// Forwards a message to a shard of another node.
    Grid(ShardAddress, GridMessage),
    /// Publishes on all other nodes that have subscribers. The answer is [`FromMesh::Published`].
    Publish(Requester, Publish),
    /// Carries out a command for users on all other nodes. The answer is [`FromMesh::Published`].
    ForUsers(Requester, Arc<UserCommand>),
    /// Answers [`FromMesh::Publish`] and [`FromMesh::ForUsers`].
    Published(Ticket, Tally),
    /// Answers [`FromMesh::Publish`] and [`FromMesh::ForUsers`] if the shard does not carry it out.
    NotPublished(Ticket),
    /// Asks for [`FromMesh::Report`].
    Report(Ticket),
    /// Asks for [`FromMesh::Nodes`].
    Nodes(Ticket),
    /// The shard's first subscriber of a channel has come, or its last one has gone.
    Interest {
        /// The number of the change.
        change: InterestChange,
        /// The name of the channel.
        channel: Arc<str>,
        /// Whether the channel has subscribers now.
        is_on: bool,
    },
    /// The number of the shard's clients.
    Clients(u64),
    /// The shard has received [`FromMesh::NodeUp`]. What it sent to that node before was meant for an earlier
    /// session.
    NodeSeen(NodeId),
}

/// A message from the mesh to a shard of its node.
#[derive(Debug)]
pub enum FromMesh {
    /// Forwards a message from a shard of another node.
    Grid(ShardAddress, GridMessage),
    /// Publishes to the shard's subscribers, for a back end of another node.
    Publish(Requester, Publish),
    /// Carries out a command for the users' connections on the shard, for a back end of another node.
    ForUsers(Requester, Arc<UserCommand>),
    /// Answers [`ToMesh::Publish`] and [`ToMesh::ForUsers`] with the sum over the other nodes.
    Published(Ticket, Tally),
    /// Answers [`ToMesh::Report`] with the mesh's state for `/metrics`.
    Report(Ticket, Box<MeshReport>),
    /// Answers [`ToMesh::Nodes`].
    Nodes(Ticket, Box<KnownNodes>),
    /// A [`ListQuestion`](super::ListQuestion) cannot be sent to this shard: its node is unreachable, silent or
    /// busy.
    NotAsked(Ticket, ShardAddress),
    /// Every node that could publish without asking knows the shard's interest up to this change.
    InterestKnown(InterestChange),
    /// A node has become reachable, or was restarted.
    NodeUp {
        /// The node.
        node: NodeId,
        /// The number of its shards.
        shards: u16,
        /// The run of the node.
        incarnation: Incarnation,
    },
    /// A node is unreachable. Messages in flight to it and from it are lost.
    NodeDown(NodeId),
    /// The grid has declared a node dead.
    NodeDead {
        /// The node.
        node: NodeId,
        /// The run of the node.
        incarnation: Incarnation,
    },
    /// The grid has taken this node back, after it had declared it dead.
    Readmitted,
}
