//! The plan of a run, made from a seed: the number of nodes, their delays, and their faults.

use std::net::SocketAddr;
use std::sync::Arc;

use gridcast::address::{Incarnation, NodeId};
use gridcast::mesh;
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::settings::{QueueSettings, RouteSettings, Settings};

use crate::one_node;
use crate::random::Random;

/// Bytes that may wait for one peer: more than ever do, so that no count is spoilt by a slow reader.
const OUTBOUND_BYTES: usize = 4 << 20;

/// A name that stands for the addresses of all nodes.
pub const EVERYBODY: &str = "grid:6788";

/// One run.
#[derive(Debug)]
pub struct Plan {
    pub shards: Vec<usize>,
    /// Milliseconds in which peers come, ask and go, and things go wrong.
    pub busy_ms: u64,
    /// How many peers come at most.
    pub peers: usize,
    /// How many consumers besides come, pop, unpop and go, several at once. None in most seeds.
    pub fleet: usize,
    /// The longest way between two shards of a node, or a shard and its mesh, in milliseconds.
    pub bus_ms_max: usize,
    /// The longest delay between nodes.
    pub network_ms_max: usize,
    /// One datagram in so many is lost, and one comes twice.
    pub lost_in: usize,
    pub seeds: Vec<String>,
    /// When, and what.
    pub faults: Vec<(u64, Fault)>,
    /// A topic is narrow.
    bounds: Bounds,
    api_outbound_bytes: usize,
}

/// A fault of the grid.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The links between two nodes break.
    Break(usize, usize),
    /// Nothing that the first says comes to the second from now on, or all of it again.
    Block(usize, usize, bool),
    /// Messages from the first node to the second take longer, by this time.
    Slow(usize, usize, u64),
    /// A node ends, having said so or not.
    Crash { node: usize, is_announced: bool },
    /// The node starts again.
    Restart(usize),
    /// The node stops having turns.
    Freeze(usize),
    /// The node resumes.
    Thaw(usize),
    /// The node's wall clock jumps.
    Jump(usize, i64),
}

impl Plan {
    pub fn new(seed: u64, random: &mut Random) -> Self {
        let nodes = random.between(2, 4);
        let busy_ms = random.between(6000, 22_000) as u64;
        let faults = if random.one_in(5) { 0 } else { random.between(1, 6) };
        let faults = (0..faults).flat_map(|_| fault(random, nodes, busy_ms)).collect();
        Self {
            shards: (0..nodes).map(|_| random.between(1, 2)).collect(),
            busy_ms,
            peers: random.between(8, 40),
            // Seeds that found a bug have other remainders, and stay what they were.
            fleet: if matches!(seed % 11, 5 | 8) { 50 + (seed % 250) as usize } else { 0 },
            bus_ms_max: *random.pick(&[0, 1, 10]),
            network_ms_max: *random.pick(&[1, 5, 30, 100]),
            lost_in: *random.pick(&[4, 20, 1000]),
            seeds: match random.below(3) {
                0 => vec![EVERYBODY.into()],
                1 => vec![mesh_address(0).to_string()],
                _ => vec![mesh_address(0).to_string(), mesh_address(nodes - 1).to_string()],
            },
            faults: in_order(faults),
            bounds: Bounds { messages: *random.pick(&[16, 64, 1000]), bytes: 60_000 },
            api_outbound_bytes: *random.pick(&[6000, OUTBOUND_BYTES]),
        }
    }

    /// Returns the settings of a node's shards.
    pub fn shard_settings(&self, random: &mut Random, index: usize) -> Settings {
        let shards = self.shards[index];
        let mut settings = one_node::settings(random, &mut Random::new(0), shards, false);
        (settings.node, settings.has_mesh) = (node_id(index), true);
        settings.queue = QueueSettings {
            bounds: self.bounds,
            when_full: WhenFull::Hold,
            topics: 64,
            rules: Arc::default(),
            sinks: Arc::default(),
        };
        settings.limits.channels_per_client = 1000;
        settings.limits.outbound_bytes = self.api_outbound_bytes;
        settings.limits.addresses.connections = None;
        for edge in &mut settings.edges {
            for route in &mut edge.routes {
                let route: &mut RouteSettings = Arc::make_mut(route);
                (route.outbound_bytes, route.messages) = (OUTBOUND_BYTES, None);
            }
        }
        settings
    }

    /// Returns the settings of a node's mesh.
    pub fn mesh_settings(&self, index: usize, incarnation: u64, seed: u64) -> mesh::MeshSettings {
        mesh::MeshSettings {
            node: node_id(index),
            incarnation: Incarnation(incarnation),
            shards: self.shards[index],
            advertise: mesh_address(index),
            api: ([10, 0, 0, index as u8 + 1], 6789).into(),
            seeds: self.seeds.clone(),
            answer_ms: 1500,
            expected: 1,
            channel_key: [7; 16],
            random_seed: seed,
        }
    }
}

pub fn node_id(index: usize) -> NodeId {
    NodeId::new(index as u16 + 1).expect("there are few nodes")
}

pub fn index_of(node: NodeId) -> usize {
    usize::from(node.number()) - 1
}

pub fn mesh_address(index: usize) -> SocketAddr {
    ([10, 0, 0, index as u8 + 1], 6788).into()
}

/// One thing that goes wrong, and what ends it.
fn fault(random: &mut Random, nodes: usize, busy_ms: u64) -> Vec<(u64, Fault)> {
    let from = random.between(1000, busy_ms as usize - 500) as u64;
    let lasts = *random.pick(&[300, 1500, 3000, 8000]);
    let until = (from + random.between(50, lasts) as u64).min(busy_ms - 1);
    let one = random.below(nodes);
    let two = (one + random.between(1, nodes - 1)) % nodes;
    let both = [(one, two), (two, one)];
    match random.below(10) {
        0 => vec![(from, Fault::Break(one, two))],
        1 => between(&both[..1], from, until, Fault::Block),
        2 => between(&both, from, until, Fault::Block),
        3 => {
            let others = (0..nodes).filter(|&other| other != one);
            let cut: Vec<_> = others.flat_map(|other| [(one, other), (other, one)]).collect();
            between(&cut, from, until, Fault::Block)
        }
        4 => {
            let more = random.between(100, 1500) as u64;
            let slow = |one, two, is_slow| Fault::Slow(one, two, if is_slow { more } else { 0 });
            between(&both, from, until, slow)
        }
        5 | 6 => {
            let is_announced = random.one_in(3);
            vec![(from, Fault::Crash { node: one, is_announced }), (until, Fault::Restart(one))]
        }
        7 | 8 => vec![(from, Fault::Freeze(one)), (until, Fault::Thaw(one))],
        _ => vec![(from, Fault::Jump(one, random.between(0, 20_000) as i64 - 10_000))],
    }
}

fn between(
    ways: &[(usize, usize)],
    from: u64,
    until: u64,
    fault: impl Fn(usize, usize, bool) -> Fault,
) -> Vec<(u64, Fault)> {
    let at = |time, is_on| ways.iter().map(move |&(one, two)| (time, one, two, is_on));
    at(from, true).chain(at(until, false)).map(|(t, a, b, on)| (t, fault(a, b, on))).collect()
}

fn in_order(mut faults: Vec<(u64, Fault)>) -> Vec<(u64, Fault)> {
    faults.sort_by_key(|fault| fault.0);
    faults
}
