//! Other nodes. Pure but for `quic.rs`: events of links and messages of shards go in (`handle_*`), and
//! what is to be sent and told comes out (`poll_*`).
//!
//! - `link.rs`: what the transport is told, and tells. `wire.rs`: messages ⇄ bytes.
//! - `quic.rs`: the transport, and the thread on which all of this runs. `identity.rs`: who belongs to
//!   the grid.

pub mod identity;
pub mod link;
pub mod quic;
pub mod wire;

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::address::{NodeId, ShardId};
use crate::message::{Message, Party};
use link::{Effect, Event};

/// What a node's mesh is told when it is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeId,
    /// When it started, in Unix milliseconds.
    pub incarnation: u64,
    /// How many shards it has.
    pub shards: usize,
    /// Where other nodes dial it.
    pub advertise: SocketAddr,
    /// Where back ends reach it.
    pub api: SocketAddr,
    /// Targets that are dialled until the grid is joined, `HOST:PORT`.
    pub seeds: Vec<String>,
    /// How long a call waits for shards and nodes, in milliseconds.
    pub answer_ms: u64,
    /// For choices that should differ between nodes and starts.
    pub random_seed: u64,
}

/// One node's end of the mesh.
pub struct Mesh {
    settings: Settings,
    effects: VecDeque<Effect>,
    outbox: VecDeque<(ShardId, Party, Message)>,
}

impl Mesh {
    /// A mesh that knows nobody yet.
    pub fn new(settings: Settings, _now_ms: u64) -> Self {
        Self { settings, effects: VecDeque::new(), outbox: VecDeque::new() }
    }

    /// The transport tells something.
    pub fn handle_event(&mut self, _now_ms: u64, _event: Event) {}

    /// A shard of this node says something to the mesh or to a shard of another node.
    pub fn handle_message(&mut self, _now_ms: u64, _from: ShardId, _to: Party, _message: Message) {}

    /// Does what is due, and sends what has gathered. To be called once a turn, after what it has
    /// been given.
    pub fn handle_turn(&mut self, _now_ms: u64) {}

    /// The node goes down: the others are told that it leaves.
    pub fn handle_leave(&mut self, _now_ms: u64) {}

    /// When [`Self::handle_turn`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<u64> {
        None
    }

    /// The next thing that the transport is to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The next message for a shard of this node, and whom it is from.
    pub fn poll_message(&mut self) -> Option<(ShardId, Party, Message)> {
        self.outbox.pop_front()
    }

    /// Whether it takes what comes on lanes other than the control lane: not while too much waits
    /// for shards.
    pub fn takes_data(&self) -> bool {
        !self.settings.seeds.is_empty() || self.outbox.is_empty()
    }
}
