//! The nodes within reach, and where their clients and topics live.

use std::collections::{BTreeMap, BTreeSet};

use super::settings::Settings;
use crate::address::placement::home_of_topic;
use crate::address::{ClientId, IdLayout, NodeId, ShardAddress};

/// This node and those within its reach, with what tells the shard of a client or topic of theirs.
#[derive(Debug)]
pub struct Roster {
    own: NodeId,
    of_own: Shards,
    // Other nodes within reach, without this one.
    up: BTreeMap<NodeId, Other>,
    // Other nodes that have ever been within reach: at most one per id.
    seen: BTreeSet<NodeId>,
}

/// How a node divides its clients and topics among its shards.
#[derive(Clone, Copy, Debug)]
struct Shards {
    count: usize,
    layout: IdLayout,
}

impl Shards {
    fn new(count: usize) -> Self {
        Self { count, layout: IdLayout::new(count) }
    }
}

/// Another node within reach.
#[derive(Debug)]
struct Other {
    shards: Shards,
    // When it was started, in Unix milliseconds.
    incarnation: u64,
}

impl Roster {
    /// The roster of a node that has reached no other node yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            own: settings.node,
            of_own: Shards::new(settings.shards),
            up: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Adds a node that has come within reach, or was started anew.
    pub fn add(&mut self, node: NodeId, shards: u16, incarnation: u64) {
        let shards = Shards::new(usize::from(shards));
        self.up.insert(node, Other { shards, incarnation });
        self.seen.insert(node);
    }

    /// Removes a node that is out of reach.
    pub fn remove(&mut self, node: NodeId) {
        self.up.remove(&node);
    }

    /// The shard that holds a client; `None` if its node is out of reach, or has no such shard.
    pub fn address_of(&self, client: ClientId) -> Option<ShardAddress> {
        let node = client.node();
        let shard = self.shards_of(node)?.layout.shard_of(client)?;
        Some(ShardAddress { node, shard })
    }

    /// The home of a topic on a node; `None` if the node is out of reach.
    pub fn home_on(&self, node: NodeId, topic: &str) -> Option<ShardAddress> {
        let shard = home_of_topic(topic, self.shards_of(node)?.count);
        Some(ShardAddress { node, shard })
    }

    /// How many shards a node has; `None` if it is out of reach.
    pub fn shard_count(&self, node: NodeId) -> Option<usize> {
        Some(self.shards_of(node)?.count)
    }

    fn shards_of(&self, node: NodeId) -> Option<Shards> {
        match node == self.own {
            true => Some(self.of_own),
            false => Some(self.up.get(&node)?.shards),
        }
    }

    /// When another node was started, in Unix milliseconds; `None` if it is out of reach.
    pub fn incarnation_of(&self, node: NodeId) -> Option<u64> {
        Some(self.up.get(&node)?.incarnation)
    }

    /// Whether messages reach this node.
    pub fn is_within_reach(&self, node: NodeId) -> bool {
        node == self.own || self.up.contains_key(&node)
    }

    /// The other nodes within reach, in the order of their ids.
    pub fn others(&self) -> Vec<NodeId> {
        self.up.keys().copied().collect()
    }

    /// Nodes that have ever been within reach, this one included.
    pub fn seen(&self) -> usize {
        self.seen.len() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ShardId;

    #[test]
    fn a_topic_has_a_home_on_each_node_within_reach() {
        let (own, other) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let of_own = Shards::new(1);
        let mut roster = Roster { own, of_own, up: BTreeMap::new(), seen: BTreeSet::new() };
        let home = Some(ShardAddress { node: own, shard: ShardId(0) });
        assert_eq!((roster.home_on(own, "t"), roster.home_on(other, "t")), (home, None));
        roster.add(other, 8, 5);
        assert_eq!(roster.home_on(other, "t").map(|home| home.shard), Some(home_of_topic("t", 8)));
        assert_eq!((roster.incarnation_of(other), roster.others()), (Some(5), vec![other]));
        roster.remove(other);
        assert_eq!((roster.home_on(other, "t"), roster.seen()), (None, 2));
        assert!(roster.is_within_reach(own) && !roster.is_within_reach(other));
    }
}
