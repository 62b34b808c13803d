//! The reachable nodes, and which of their shards holds a client or a topic.

use std::collections::{BTreeMap, BTreeSet};

use super::settings::Settings;
use crate::address::placement::home_of_topic;
use crate::address::{ClientId, IdLayout, Incarnation, NodeId, ShardAddress};

/// This node and the other reachable nodes, with their numbers of shards.
#[derive(Debug)]
pub struct Roster {
    own: NodeId,
    own_shards: ShardMap,
    // The other reachable nodes.
    reachable: BTreeMap<NodeId, OtherNode>,
    // Other nodes that have ever been reachable: at most one entry per node id.
    seen: BTreeSet<NodeId>,
}

/// How a node distributes its clients and topics among its shards.
#[derive(Clone, Copy, Debug)]
struct ShardMap {
    count: usize,
    layout: IdLayout,
}

impl ShardMap {
    fn new(count: usize) -> Self {
        Self { count, layout: IdLayout::new(count) }
    }
}

/// Another reachable node.
#[derive(Debug)]
struct OtherNode {
    shards: ShardMap,
    incarnation: Incarnation,
}

impl Roster {
    /// Creates the roster of a node that has reached no other node.
    pub fn new(settings: &Settings) -> Self {
        Self {
            own: settings.node,
            own_shards: ShardMap::new(settings.shards),
            reachable: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Adds a node that has become reachable, or was restarted.
    pub fn add(&mut self, node: NodeId, shards: u16, incarnation: Incarnation) {
        let shards = ShardMap::new(usize::from(shards));
        self.reachable.insert(node, OtherNode { shards, incarnation });
        self.seen.insert(node);
    }

    /// Removes a node that has become unreachable.
    pub fn remove(&mut self, node: NodeId) {
        self.reachable.remove(&node);
    }

    /// Returns the shard that holds a client; `None` if its node is unreachable or has no such
    /// shard.
    pub fn address_of(&self, client: ClientId) -> Option<ShardAddress> {
        let node = client.node();
        let shard = self.shards_of(node)?.layout.shard_of(client)?;
        Some(ShardAddress { node, shard })
    }

    /// Returns the home shard of a topic on a node; `None` if the node is unreachable.
    pub fn home_on(&self, node: NodeId, topic: &str) -> Option<ShardAddress> {
        let shard = home_of_topic(topic, self.shards_of(node)?.count);
        Some(ShardAddress { node, shard })
    }

    /// Returns the number of shards of a node; `None` if the node is unreachable.
    pub fn shard_count(&self, node: NodeId) -> Option<usize> {
        Some(self.shards_of(node)?.count)
    }

    fn shards_of(&self, node: NodeId) -> Option<ShardMap> {
        match node == self.own {
            true => Some(self.own_shards),
            false => Some(self.reachable.get(&node)?.shards),
        }
    }

    /// Returns when another node was started, in Unix milliseconds; `None` if it is unreachable.
    pub fn incarnation_of(&self, node: NodeId) -> Option<Incarnation> {
        Some(self.reachable.get(&node)?.incarnation)
    }

    /// Whether a node is this one or a reachable one.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        node == self.own || self.reachable.contains_key(&node)
    }

    /// Returns the other reachable nodes, in the order of their ids.
    pub fn others(&self) -> Vec<NodeId> {
        self.reachable.keys().copied().collect()
    }

    /// Returns the number of nodes that have ever been reachable, this one included.
    pub fn seen_count(&self) -> usize {
        self.seen.len() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ShardId;

    #[test]
    fn a_topic_has_a_home_shard_on_each_reachable_node() {
        let (own, other) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let mut roster = Roster {
            own,
            own_shards: ShardMap::new(1),
            reachable: BTreeMap::new(),
            seen: BTreeSet::new(),
        };
        let home = Some(ShardAddress { node: own, shard: ShardId(0) });
        assert_eq!((roster.home_on(own, "t"), roster.home_on(other, "t")), (home, None));
        roster.add(other, 8, Incarnation(5));
        assert_eq!(roster.home_on(other, "t").map(|home| home.shard), Some(home_of_topic("t", 8)));
        assert_eq!(
            (roster.incarnation_of(other), roster.others()),
            (Some(Incarnation(5)), vec![other])
        );
        roster.remove(other);
        assert_eq!((roster.home_on(other, "t"), roster.seen_count()), (None, 2));
        assert!(roster.is_reachable(own) && !roster.is_reachable(other));
    }
}
