//! The nodes that may be home of a channel.

use std::collections::BTreeMap;

use crate::address::placement::channel_score;
use crate::address::{Incarnation, NodeId};

/// How long a node that was started may not be a home yet, in milliseconds. By then it has sessions with the
/// others, and does not begin a history that another node has already.
pub const JOIN_MS: u64 = 3_000;

/// This node and the reachable nodes.
#[derive(Debug)]
pub struct Members {
    own: NodeId,
    // From when on this node may be a home.
    own_from_ms: u64,
    others: BTreeMap<NodeId, OtherMember>,
    // The last run of each node that was ever reachable.
    seen: BTreeMap<NodeId, Incarnation>,
}

#[derive(Debug)]
struct OtherMember {
    // From when on the node may be a home.
    from_ms: u64,
}

impl Members {
    /// The members of a grid of one. This node may be a home from this time on.
    pub fn new(own: NodeId, own_from_ms: u64) -> Self {
        Self { own, own_from_ms, others: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Makes this node wait before it may be a home again.
    pub fn delay_own(&mut self, until_ms: u64) {
        self.own_from_ms = self.own_from_ms.max(until_ms);
    }

    /// Adds a reachable node. Returns whether it is the run that was known before.
    pub fn add(&mut self, now_ms: u64, node: NodeId, incarnation: Incarnation) -> bool {
        let is_known = self.seen.insert(node, incarnation) == Some(incarnation);
        let from_ms = if is_known { now_ms } else { now_ms + JOIN_MS };
        self.others.insert(node, OtherMember { from_ms });
        is_known
    }

    /// Removes an unreachable node.
    pub fn remove(&mut self, node: NodeId) {
        self.others.remove(&node);
    }

    /// Whether another node is reachable.
    pub fn has(&self, node: NodeId) -> bool {
        self.others.contains_key(&node)
    }

    /// The other reachable nodes.
    pub fn others(&self) -> impl Iterator<Item = NodeId> {
        self.others.keys().copied()
    }

    /// The node that should be the home of a channel: the one with the highest score. `None`: all nodes were
    /// started a moment ago.
    pub fn home(&self, now_ms: u64, channel: &str) -> Option<NodeId> {
        let own = (self.own_from_ms <= now_ms).then_some(self.own);
        let others = self.others.iter().filter(|(_, member)| member.from_ms <= now_ms);
        let all = others.map(|(&node, _)| node).chain(own);
        all.max_by_key(|&node| channel_score(node, channel))
    }

    /// The other reachable nodes, those with the highest score for a channel first.
    pub fn ranked(&self, channel: &str) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.others().collect();
        nodes.sort_by_key(|&node| std::cmp::Reverse(channel_score(node, channel)));
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_home_only_a_while_after_its_start_and_at_once_when_it_is_reachable_again() {
        let [own, other] = [1, 2].map(|id| NodeId::new(id).unwrap());
        let channel = (0..)
            .map(|number: u32| number.to_string())
            .find(|name| channel_score(other, name) > channel_score(own, name))
            .unwrap();
        let mut members = Members::new(own, 0);
        assert!(!members.add(10, other, Incarnation(5)));
        assert_eq!(members.home(9 + JOIN_MS, &channel), Some(own));
        assert_eq!(members.home(10 + JOIN_MS, &channel), Some(other));
        members.remove(other);
        assert_eq!(members.home(10 + JOIN_MS, &channel), Some(own));
        assert!(members.add(20_000, other, Incarnation(5)));
        assert_eq!(members.home(20_000, &channel), Some(other));
        members.delay_own(30_000);
        members.remove(other);
        assert_eq!(members.home(29_999, &channel), None);
    }
}
