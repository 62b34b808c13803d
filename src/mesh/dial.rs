//! Which nodes this node dials, and when: seeds until it has joined the grid and occasionally afterwards,
//! members without a link, and lost nodes for a while.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Mesh;
use super::MeshSettings;
use super::link::LinkEffect;
use crate::address::NodeId;

/// Interval between two rounds of dialling, in milliseconds.
const ROUND_MS: u64 = 250;

/// Interval between two dials of a seed while there is no link, in milliseconds.
const SEED_MS: u64 = 1000;

/// Interval between two dials of a seed while there are links, in milliseconds. Seeds reunite two parts of
/// a grid that were separated for longer than [`FORGET_MS`].
const SEED_AGAIN_MS: u64 = 5000;

/// Interval between two dials of a node, in milliseconds.
const NODE_MS: u64 = 1000;

/// Time for which the node with the higher id leaves dialling to the other, in milliseconds, so that they
/// open one link and not two.
const DEFER_MS: u64 = 750;

/// Time after which an unreachable node is no longer dialled, in milliseconds.
const FORGET_MS: u64 = 600_000;

/// Interval between two lines of the log that report the same failure of a target, in milliseconds.
const FAILURE_LOG_MS: u64 = 60_000;

/// Failures that are remembered to suppress repeated lines. While there are so many, new ones are not
/// logged.
const FAILURES_MAX: usize = 64;

/// Remembered addresses at which nodes answered. Beyond it all are forgotten and learned anew.
const ANSWERED_MAX: usize = 4096;

/// The targets of dials.
#[derive(Debug)]
pub(super) struct Dialler {
    seeds: Vec<Seed>,
    nodes: BTreeMap<NodeId, WantedNode>,
    // The node that answered at each dialled address. A node may have several.
    answered: BTreeMap<SocketAddr, NodeId>,
    // When a failure was logged last.
    failures: BTreeMap<DialFailure, u64>,
    // When the next round is due.
    round_ms: u64,
}

#[derive(Debug)]
struct Seed {
    target: String,
    due_ms: u64,
}

/// A node to which there is no link.
#[derive(Debug)]
struct WantedNode {
    mesh: SocketAddr,
    since_ms: u64,
    due_ms: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DialFailure {
    target: String,
    why: String,
}

impl Dialler {
    /// A dialler of the configured seeds.
    pub(super) fn new(settings: &MeshSettings, now_ms: u64) -> Self {
        let own = settings.advertise.to_string();
        let others = settings.seeds.iter().filter(|seed| **seed != own);
        let seeds = others.map(|seed| Seed { target: seed.clone(), due_ms: now_ms }).collect();
        let (nodes, answered, failures) = Default::default();
        Self { seeds, nodes, answered, failures, round_ms: now_ms }
    }

    /// When the next round of dialling is due, in milliseconds.
    pub(super) fn poll_timeout(&self) -> u64 {
        self.round_ms
    }

    /// Dials a node from now on, at this address only. A deferred dial waits for the node to dial first.
    pub(super) fn want(&mut self, now_ms: u64, node: NodeId, mesh: SocketAddr, is_deferred: bool) {
        let due_ms = now_ms + if is_deferred { DEFER_MS } else { 0 };
        let known = self.nodes.get(&node);
        if known.is_none_or(|known| known.mesh != mesh) {
            self.nodes.insert(node, WantedNode { mesh, since_ms: now_ms, due_ms });
        }
        self.round_ms = self.round_ms.min(due_ms);
    }

    /// Stops dialling a node to which there is a link now. `dialled` is the address at which it answered, if
    /// this node dialled.
    pub(super) fn reached(&mut self, node: NodeId, dialled: Option<SocketAddr>) {
        self.nodes.remove(&node);
        if self.answered.len() >= ANSWERED_MAX {
            self.answered.clear();
        }
        self.answered.extend(dialled.map(|address| (address, node)));
    }

    /// The node that answered last at this address.
    pub(super) fn answered_at(&self, address: SocketAddr) -> Option<NodeId> {
        self.answered.get(&address).copied()
    }

    /// Whether the failure of a dial is to be logged.
    pub(super) fn is_news(&mut self, now_ms: u64, target: &str, why: &str) -> bool {
        self.failures.retain(|_, logged_ms| now_ms < *logged_ms + FAILURE_LOG_MS);
        let failure = DialFailure { target: target.to_owned(), why: why.to_owned() };
        let is_news = self.failures.len() < FAILURES_MAX && !self.failures.contains_key(&failure);
        if is_news {
            self.failures.insert(failure, now_ms);
        }
        is_news
    }

    /// Stops dialling an address that has turned out to be this node's own.
    pub(super) fn is_own(&mut self, address: SocketAddr) {
        let address = address.to_string();
        self.seeds.retain(|seed| seed.target != address);
        self.nodes.retain(|_, known| known.mesh.to_string() != address);
    }
}

impl Mesh {
    /// Dials the targets that are due.
    pub(super) fn dial(&mut self, now_ms: u64) {
        if now_ms < self.dialler.round_ms {
            return;
        }
        self.dialler.round_ms = now_ms + ROUND_MS;
        let linked = self.peers.values().filter(|peer| peer.link.is_some());
        let linked: Vec<String> = linked.map(|peer| peer.hello.mesh.to_string()).collect();
        let seed_ms = if linked.is_empty() { SEED_MS } else { SEED_AGAIN_MS };
        for Seed { target, due_ms } in &mut self.dialler.seeds {
            // The shorter interval applies at once when the last link is lost.
            *due_ms = (*due_ms).min(now_ms + seed_ms);
            if *due_ms <= now_ms && !linked.contains(target) {
                *due_ms = now_ms + seed_ms;
                self.effects.push_back(LinkEffect::Dial(target.clone()));
            }
        }
        self.dialler.nodes.retain(|_, known| now_ms < known.since_ms + FORGET_MS);
        for known in self.dialler.nodes.values_mut().filter(|known| known.due_ms <= now_ms) {
            known.due_ms = now_ms + NODE_MS;
            self.effects.push_back(LinkEffect::Dial(known.mesh.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_logged_once_a_minute() {
        let (seeds, nodes, answered, failures) = Default::default();
        let mut dialler = Dialler { seeds, nodes, answered, failures, round_ms: 0 };
        assert!(dialler.is_news(0, "a:1", "no answer"));
        assert!(dialler.is_news(1000, "b:1", "no answer"));
        assert!(dialler.is_news(1000, "a:1", "another key"));
        assert!(!dialler.is_news(FAILURE_LOG_MS - 1, "a:1", "no answer"));
        assert!(dialler.is_news(FAILURE_LOG_MS, "a:1", "no answer"));
        let logged = (0..1000).filter(|n| dialler.is_news(FAILURE_LOG_MS, "c:1", &n.to_string()));
        assert!(logged.count() < FAILURES_MAX);
    }
}
