//! Nodes that were lost recently: the session with them has ended, and they had not said that they shut down.

use std::collections::VecDeque;

use crate::address::NodeId;
use crate::message::LostNode;

/// Time for which a lost node is remembered, in milliseconds.
const REMEMBERED_MS: u64 = 3_600_000;

/// The most lost nodes that are remembered. Beyond it the one that was lost first is forgotten.
const LOST_MAX: usize = 64;

/// The lost nodes, in the order in which they were lost.
#[derive(Debug, Default)]
pub(super) struct LostNodes(VecDeque<LostPeer>);

#[derive(Debug)]
struct LostPeer {
    node: NodeId,
    version: String,
    // When the session ended, in milliseconds.
    at_ms: u64,
}

impl LostNodes {
    /// Remembers a node that is lost now.
    pub(super) fn add(&mut self, now_ms: u64, node: NodeId, version: String) {
        self.forget(node);
        if self.0.len() == LOST_MAX {
            self.0.pop_front();
        }
        self.0.push_back(LostPeer { node, version, at_ms: now_ms });
    }

    /// Forgets a node, which is back.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.retain(|lost| lost.node != node);
    }

    /// The nodes that were lost within the last hour.
    pub(super) fn recent(&self, now_ms: u64) -> impl Iterator<Item = LostNode> {
        let lost = self.0.iter().map(move |lost| LostNode {
            node: lost.node,
            version: lost.version.clone(),
            lost_ms: now_ms.saturating_sub(lost.at_ms),
        });
        lost.filter(|lost| lost.lost_ms < REMEMBERED_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(lost: &mut LostNodes, now_ms: u64, number: u16) {
        let node = NodeId::new(number).expect("a small number");
        lost.add(now_ms, node, "0.1.0".into());
    }

    fn numbers(lost: &LostNodes, now_ms: u64) -> Vec<u16> {
        lost.recent(now_ms).map(|lost| lost.node.number()).collect()
    }

    #[test]
    fn a_lost_node_is_remembered_for_an_hour() {
        let mut lost = LostNodes::default();
        add(&mut lost, 1_000, 7);
        let ages = |now_ms| lost.recent(now_ms).map(|lost| lost.lost_ms).collect::<Vec<_>>();
        assert_eq!(ages(61_000), [60_000]);
        assert_eq!(ages(1_000 + REMEMBERED_MS - 1), [REMEMBERED_MS - 1]);
        assert!(ages(1_000 + REMEMBERED_MS).is_empty());
    }

    #[test]
    fn a_node_that_is_lost_again_is_there_once_and_one_that_is_back_is_not() {
        let mut lost = LostNodes::default();
        for (now_ms, number) in [(1, 7), (2, 8), (3, 7)] {
            add(&mut lost, now_ms, number);
        }
        assert_eq!(numbers(&lost, 3), [8, 7]);
        lost.forget(NodeId::new(8).expect("a small number"));
        assert_eq!(numbers(&lost, 3), [7]);
    }

    #[test]
    fn the_number_of_lost_nodes_is_bounded_and_the_first_goes_first() {
        let mut lost = LostNodes::default();
        (0..=LOST_MAX as u16).for_each(|number| add(&mut lost, number.into(), number));
        let expected: Vec<u16> = (1..=LOST_MAX as u16).collect();
        assert_eq!(numbers(&lost, 100), expected);
    }
}
