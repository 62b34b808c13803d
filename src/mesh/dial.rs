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

/// Who may be dialled.
#[derive(Debug)]
pub struct Dialler {
    seeds: Vec<(String, u64)>,
    nodes: BTreeMap<NodeId, Known>,
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
        Self { seeds, nodes: BTreeMap::new(), look_ms: now_ms }
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

    /// There is a link to it.
    pub fn reached(&mut self, node: NodeId) {
        self.nodes.remove(&node);
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
