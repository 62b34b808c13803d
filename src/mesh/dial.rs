//! Who is dialled, and when: seeds until the grid is joined and now and then afterwards, members
//! that no link leads to, and those that were lost, for a while.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Mesh;
use super::Settings;
use super::link::Effect;
use crate::address::NodeId;

/// Between two looks at who is to be dialled, in milliseconds.
const LOOK_MS: u64 = 250;

/// Between two dials of a seed while no node is known, and afterwards: two parts of a grid that lost
/// each other for longer than [`FORGET_MS`] meet again by them.
const SEED_MS: u64 = 1000;
const SEED_AGAIN_MS: u64 = 5000;

/// Between two dials of a node.
const NODE_MS: u64 = 1000;

/// The node with the higher id leaves dialling to the other for so long, so that one link comes of
/// it and not two.
const DEFER_MS: u64 = 750;

/// A node that could not be reached for so long is dialled no more.
const FORGET_MS: u64 = 600_000;

/// The log tells so often that a target cannot be reached, if nothing else is wrong with it than
/// before.
const COMPLAIN_MS: u64 = 60_000;

/// Complaints that are remembered for that; beyond it nothing more is told.
const COMPLAINTS_MAX: usize = 64;

/// Addresses of which it is remembered who answered; beyond it all are forgotten and learned anew.
const ANSWERED_MAX: usize = 4096;

/// Who may be dialled.
#[derive(Debug)]
pub struct Dialler {
    seeds: Vec<(String, u64)>,
    nodes: BTreeMap<NodeId, Known>,
    // Who answered at an address that was dialled: it may have several.
    answered: BTreeMap<SocketAddr, NodeId>,
    // Targets that cannot be reached and why, and when the log was told.
    complaints: BTreeMap<(String, String), u64>,
    look_ms: u64,
}

#[derive(Debug)]
struct Known {
    mesh: SocketAddr,
    since_ms: u64,
    due_ms: u64,
}

impl Dialler {
    /// One that knows the seeds.
    pub fn new(settings: &Settings, now_ms: u64) -> Self {
        let own = settings.advertise.to_string();
        let others = settings.seeds.iter().filter(|seed| **seed != own);
        let seeds = others.map(|seed| (seed.clone(), now_ms)).collect();
        let (nodes, answered, complaints) = Default::default();
        Self { seeds, nodes, answered, complaints, look_ms: now_ms }
    }

    /// When there may be somebody to dial.
    pub fn poll_timeout(&self) -> u64 {
        self.look_ms
    }

    /// There is such a node, and no link to it: it is dialled from now on. At most one per id.
    pub fn want(&mut self, now_ms: u64, node: NodeId, mesh: SocketAddr, is_deferred: bool) {
        let due_ms = now_ms + if is_deferred { DEFER_MS } else { 0 };
        let known = self.nodes.get(&node);
        if known.is_none_or(|known| known.mesh != mesh) {
            self.nodes.insert(node, Known { mesh, since_ms: now_ms, due_ms });
        }
        self.look_ms = self.look_ms.min(due_ms);
    }

    /// There is a link to it, which was dialled at this address if we dialled it.
    pub fn reached(&mut self, node: NodeId, dialled: Option<SocketAddr>) {
        self.nodes.remove(&node);
        if self.answered.len() >= ANSWERED_MAX {
            self.answered.clear();
        }
        self.answered.extend(dialled.map(|address| (address, node)));
    }

    /// The node that answered last at this address.
    pub fn answered_at(&self, address: SocketAddr) -> Option<NodeId> {
        self.answered.get(&address).copied()
    }

    /// A dial failed: whether the log is to be told.
    pub fn is_news(&mut self, now_ms: u64, target: &str, why: &str) -> bool {
        self.complaints.retain(|_, told_ms| now_ms < *told_ms + COMPLAIN_MS);
        let complaint = (target.to_owned(), why.to_owned());
        let is_news =
            self.complaints.len() < COMPLAINTS_MAX && !self.complaints.contains_key(&complaint);
        if is_news {
            self.complaints.insert(complaint, now_ms);
        }
        is_news
    }

    /// This address is our own.
    pub fn is_own(&mut self, address: SocketAddr) {
        let address = address.to_string();
        self.seeds.retain(|(seed, _)| *seed != address);
        self.nodes.retain(|_, known| known.mesh.to_string() != address);
    }
}

impl Mesh {
    pub(super) fn dial(&mut self, now_ms: u64) {
        if now_ms < self.dialler.look_ms {
            return;
        }
        self.dialler.look_ms = now_ms + LOOK_MS;
        let linked = self.peers.values().filter(|peer| peer.link.is_some());
        let linked: Vec<String> = linked.map(|peer| peer.hello.mesh.to_string()).collect();
        let seed_ms = if linked.is_empty() { SEED_MS } else { SEED_AGAIN_MS };
        for (seed, due_ms) in &mut self.dialler.seeds {
            // The wait begins anew when the last node is lost.
            *due_ms = (*due_ms).min(now_ms + seed_ms);
            if *due_ms <= now_ms && !linked.contains(seed) {
                *due_ms = now_ms + seed_ms;
                self.effects.push_back(Effect::Dial(seed.clone()));
            }
        }
        self.dialler.nodes.retain(|_, known| now_ms < known.since_ms + FORGET_MS);
        for known in self.dialler.nodes.values_mut().filter(|known| known.due_ms <= now_ms) {
            known.due_ms = now_ms + NODE_MS;
            self.effects.push_back(Effect::Dial(known.mesh.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_once_a_minute_that_a_target_cannot_be_reached() {
        let (seeds, nodes, answered, complaints) = Default::default();
        let mut dialler = Dialler { seeds, nodes, answered, complaints, look_ms: 0 };
        assert!(dialler.is_news(0, "a:1", "no answer"));
        assert!(dialler.is_news(1000, "b:1", "no answer"));
        assert!(dialler.is_news(1000, "a:1", "another key"));
        assert!(!dialler.is_news(COMPLAIN_MS - 1, "a:1", "no answer"));
        assert!(dialler.is_news(COMPLAIN_MS, "a:1", "no answer"));
        let told = (0..1000).filter(|n| dialler.is_news(COMPLAIN_MS, "c:1", &n.to_string()));
        assert!(told.count() < COMPLAINTS_MAX);
    }
}
