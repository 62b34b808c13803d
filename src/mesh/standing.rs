//! How a mesh stands, for those who look at it from outside.

use super::Mesh;
use crate::address::NodeId;

impl Mesh {
    /// Whether a node is known to have subscribers of a channel.
    pub fn is_wanted_by(&self, node: NodeId, channel: &str) -> bool {
        self.nodes.nodes(self.hash.of(channel)).any(|wanting| wanting == node)
    }

    /// Publishes whose tallies are awaited, and changes of interest that shards wait for.
    pub fn waiting(&self) -> usize {
        self.publishes.waiting() + self.told.waiting()
    }
}
