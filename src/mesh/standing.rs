//! How a mesh stands, for those who look at it from outside.

use super::Mesh;
use crate::address::NodeId;

impl Mesh {
    /// The nodes that there is a link to.
    pub fn linked(&self) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.link.is_some()).map(|(&node, _)| node)
    }

    /// Whether a node is known to have subscribers of a channel.
    pub fn is_wanted_by(&self, node: NodeId, channel: &str) -> bool {
        self.nodes.nodes(self.hash.of(channel)).any(|wanting| wanting == node)
    }

    /// Bytes that are kept until other nodes have said that they came.
    pub fn kept_bytes(&self) -> usize {
        self.peers.values().map(|peer| peer.session.kept_bytes()).sum()
    }

    /// Publishes whose tallies are awaited, and changes of interest that shards wait for.
    pub fn waiting(&self) -> usize {
        self.publishes.waiting() + self.told.waiting()
    }
}
