//! `node.list`: asks every shard of every node for its figures.

use std::collections::BTreeMap;

use super::ask;
use crate::address::{NodeId, ShardAddress};
use crate::message::{KnownNodes, ListQuestion, LostNode, ShardFigures, Ticket};
use crate::protocol::api::{LinkState, MeshRow, NodeEntry, NodeFigures, NodeList, NodeStanding};
use crate::shard::turn::Turn;

/// A `node.list` in progress.
#[derive(Debug, Default)]
pub(super) struct NodesInProgress {
    nodes: BTreeMap<NodeId, NodeInProgress>,
    // Nodes that are not asked, because they were lost.
    lost: Vec<LostNode>,
}

/// A node of the list.
#[derive(Debug)]
struct NodeInProgress {
    // The state as the mesh sees it.
    seen: NodeStanding,
    version: Option<String>,
    // The number of shards that have not answered.
    awaited: usize,
    // Whether one of the shards could not be asked, or did not answer.
    is_given_up: bool,
    // The state by the node's own account.
    state: Option<NodeStanding>,
    figures: NodeFigures,
}

impl NodesInProgress {
    /// Asks the nodes that the mesh knows of.
    pub(super) fn ask(&mut self, turn: &mut Turn, ticket: Ticket, nodes: KnownNodes) {
        for row in nodes.rows {
            let Some(MeshRow { state, version, .. }) = row.mesh else { continue };
            let seen = match state {
                LinkState::Up => NodeStanding::Up,
                LinkState::Suspected => NodeStanding::Suspected,
                LinkState::Lost => NodeStanding::Unreachable,
            };
            self.add(turn, ticket, row.node, seen, Some(version));
        }
        for node in nodes.unreachable {
            self.add(turn, ticket, node, NodeStanding::Unreachable, None);
        }
        self.lost = nodes.lost;
    }

    /// Asks this node, which has no mesh.
    pub(super) fn ask_own(&mut self, turn: &mut Turn, ticket: Ticket) {
        let (node, version) = (turn.settings.node, env!("CARGO_PKG_VERSION").to_owned());
        self.add(turn, ticket, node, NodeStanding::Up, Some(version));
    }

    fn add(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        node: NodeId,
        seen: NodeStanding,
        version: Option<String>,
    ) {
        let shards = match seen {
            NodeStanding::Unreachable => None,
            _ => turn.roster.shard_count(node),
        };
        for shard in 0..shards.unwrap_or(0) {
            ask(turn, ticket, node, shard, ListQuestion::Figures);
        }
        let cores = shards.unwrap_or(0) as u64;
        let entry = NodeInProgress {
            seen,
            version,
            awaited: shards.unwrap_or(0),
            is_given_up: shards.is_none(),
            state: None,
            figures: NodeFigures { cores, ..NodeFigures::default() },
        };
        self.nodes.insert(node, entry);
    }

    /// Adds the figures of a shard.
    pub(super) fn handle_figures(&mut self, from: ShardAddress, shard: ShardFigures) {
        let Some(node) = self.nodes.get_mut(&from.node) else { return };
        node.awaited = node.awaited.saturating_sub(1);
        let figures = &mut node.figures;
        figures.clients += shard.clients;
        figures.backends += shard.backends;
        figures.received.0 += shard.received.0;
        figures.delivered.0 += shard.delivered.0;
        if let Some(process) = shard.process {
            node.state = Some(process.state);
            figures.uptime_ms = process.uptime_ms;
            figures.driver = process.driver;
            figures.memory_bytes = process.memory_bytes;
            figures.memory_limit_bytes = process.memory_limit_bytes;
        }
    }

    /// Stops waiting for a node.
    pub(super) fn give_up(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.is_given_up |= std::mem::take(&mut node.awaited) > 0;
        }
    }

    /// Stops waiting for anybody.
    pub(super) fn give_up_all(&mut self) {
        for node in self.nodes.values_mut() {
            node.is_given_up |= std::mem::take(&mut node.awaited) > 0;
        }
    }

    /// Whether nobody's answer is awaited.
    pub(super) fn is_complete(&self) -> bool {
        self.nodes.values().all(|node| node.awaited == 0)
    }

    /// Returns the list with what has come.
    pub(super) fn finish(self) -> NodeList {
        let mut list = NodeList::default();
        for (id, node) in self.nodes {
            if node.is_given_up {
                list.missing.push(id);
            }
            list.nodes.push(node.finish(id));
        }
        list.nodes.extend(self.lost.into_iter().map(|LostNode { node, version, lost_ms }| {
            let (state, version) = (NodeStanding::Lost, Some(version));
            NodeEntry { node, state, version, lost_ms: Some(lost_ms), figures: None }
        }));
        list.nodes.sort_unstable_by_key(|entry| entry.node);
        list
    }
}

impl NodeInProgress {
    fn finish(self, node: NodeId) -> NodeEntry {
        let Self { seen, version, is_given_up, state, figures, .. } = self;
        let state = match (seen, state) {
            (NodeStanding::Unreachable, _) => NodeStanding::Unreachable,
            _ if is_given_up => NodeStanding::Silent,
            (NodeStanding::Suspected, _) => NodeStanding::Suspected,
            (_, state) => state.unwrap_or(NodeStanding::Up),
        };
        NodeEntry {
            node,
            state,
            version,
            lost_ms: None,
            figures: (!is_given_up).then_some(figures),
        }
    }
}
