//! One node: its shards, its mesh, and what is between them.

use std::collections::HashMap;
use std::sync::Arc;

use gridcast::address::ShardId;
use gridcast::mesh::{Mesh, ShardMessage};
use gridcast::message::{ConnectionKey, FromMesh};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::{Action, Now, Priority, Shard};

use crate::bus::Bus;
use crate::line::Line;
use crate::network::Network;
use crate::peer::{Peer, Shared};
use crate::plan::{Plan, index_of};

/// Every so many turns of a mesh its invariants are checked.
const CHECK_EVERY: u64 = 4;

/// Turns in a row in which a shard asks for another at once, at most: that is a loop.
const TURNS_MAX: usize = 2000;

/// Unix time when a run begins.
const START_UNIX_MS: u64 = 1_790_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Up,
    Frozen,
    Dead,
}

pub struct Node {
    pub index: usize,
    pub life: Life,
    pub shards: Vec<Shard>,
    pub mesh: Mesh,
    bus: Bus,
    // By shard: the peers by their connection's place in its table.
    places: Vec<HashMap<ConnectionKey, usize>>,
    restless: Vec<usize>,
    mesh_turns: u64,
    // What its clock of deadlines, which leaves out the time that it is frozen, and its wall clock are
    // ahead of the run's.
    ahead_ms: i64,
    frozen_ms: u64,
    unix_ahead_ms: i64,
    unix_ms_max: u64,
}

impl Node {
    /// A node that starts; `last` is the one that ran there before.
    pub fn start(plan: &Plan, shared: &mut Shared, index: usize, last: Option<&Self>) -> Self {
        let random = &mut shared.random;
        let settings = plan.shard_settings(random, index);
        let ahead_ms = random.between(100_000, 1_100_000) as i64;
        // What set the clock back while the node ran has set it right before it starts anew: else
        // ids could come again, and the start would not look later.
        let unix_ms = (START_UNIX_MS + shared.now_ms + random.between(0, 2000) as u64)
            .max(last.map_or(0, |last| last.unix_ms_max + 2000));
        let now = time(shared.now_ms.saturating_add_signed(ahead_ms), unix_ms);
        let state = Arc::new(NodeState::new(&settings, Arc::default()));
        let shard = |index| Shard::new(ShardId(index as u8), &settings, state.clone(), now);
        let mesh = plan.mesh_settings(index, unix_ms, random.next());
        Self {
            index,
            life: Life::Up,
            shards: (0..settings.shards).map(shard).collect(),
            mesh: Mesh::new(mesh, now.ms),
            bus: Bus::new(settings.shards, plan.bus_ms_max),
            places: vec![HashMap::new(); settings.shards],
            restless: vec![0; settings.shards],
            mesh_turns: 0,
            ahead_ms,
            frozen_ms: 0,
            unix_ahead_ms: unix_ms as i64 - shared.now_ms as i64,
            unix_ms_max: unix_ms,
        }
    }

    pub fn now(&mut self, now_ms: u64) -> Now {
        let unix_ms = (now_ms as i64 + self.unix_ahead_ms) as u64;
        self.unix_ms_max = self.unix_ms_max.max(unix_ms);
        time(now_ms.saturating_add_signed(self.ahead_ms), unix_ms)
    }

    /// Sets the wall clock of the node.
    pub fn jump(&mut self, by_ms: i64) {
        self.unix_ahead_ms += by_ms;
    }

    /// Stops the turns of the node.
    pub fn freeze(&mut self, now_ms: u64) {
        (self.life, self.frozen_ms) = (Life::Frozen, now_ms);
    }

    /// Resumes the node. The clock of its deadlines stood still, as the runtime's does over a gap.
    pub fn thaw(&mut self, now_ms: u64) {
        self.life = Life::Up;
        self.ahead_ms -= (now_ms - self.frozen_ms) as i64;
        let now = self.now(now_ms);
        self.mesh.handle_gap(now.ms);
    }

    /// A peer's connection to one of its shards.
    pub fn place(&mut self, shard: usize, key: ConnectionKey, peer: usize) {
        self.places[shard].insert(key, peer);
    }

    /// Tells the other nodes that the node leaves.
    pub fn leave(&mut self, shared: &mut Shared, network: &mut Network) {
        let now = self.now(shared.now_ms);
        self.mesh.handle_leave(now.ms);
        self.take_effects(shared, network);
    }

    /// Everything on it has a turn.
    pub fn turn(&mut self, shared: &mut Shared, network: &mut Network, peers: &mut [Peer]) {
        if shared.random.one_in(2) {
            self.turn_mesh(shared, network);
        }
        for shard in 0..self.shards.len() {
            self.turn_shard(shared, peers, shard);
        }
        self.turn_mesh(shared, network);
    }

    fn turn_shard(&mut self, shared: &mut Shared, peers: &mut [Peer], index: usize) {
        let now = self.now(shared.now_ms);
        let mut was_busy = false;
        for peer in peers.iter_mut().filter(|peer| peer.node == self.index) {
            if peer.line.shard == index && peer.line.is_busy() {
                was_busy = true;
                let taken = peer.line.step(&mut shared.random, now, &mut self.shards[index]);
                peer.hear(shared, &taken);
            }
        }
        while let Some(message) = self.bus.poll(shared.now_ms, ShardId(index as u8)) {
            was_busy = true;
            if shared.is_verbose {
                println!("  → {}.{index}: {message:?}", self.index);
            }
            self.shards[index].handle_message(now, message);
        }
        let is_due = self.shards[index].poll_timeout().is_some_and(|due| due <= now.ms);
        if was_busy || is_due {
            self.shards[index].handle_turn(now);
        }
        for peer in peers.iter_mut().filter(|peer| peer.node == self.index) {
            if peer.line.shard == index && !peer.line.is_gone {
                peer.note_read(shared, &mut self.shards[index]);
            }
        }
        let has_spoken = self.take_messages(shared, index)
            | self.do_actions(peers, index)
            | self.write(peers, index);
        self.check_rest(now, index, was_busy || has_spoken);
    }

    fn take_messages(&mut self, shared: &mut Shared, index: usize) -> bool {
        let mut has_some = false;
        while let Some(message) = self.shards[index].poll_message() {
            has_some = true;
            let from = ShardId(index as u8);
            self.bus.send(&mut shared.random, shared.now_ms, from, message);
        }
        has_some
    }

    fn do_actions(&mut self, peers: &mut [Peer], index: usize) -> bool {
        let mut has_some = false;
        while let Some(action) = self.shards[index].poll_action() {
            has_some = true;
            let places = &self.places[index];
            let line = |key| -> usize { places[&key] };
            match action {
                Action::Pause(key) => peers[line(key)].line.stop_reading(),
                Action::Resume(key) => peers[line(key)].line.read_again(),
                Action::Shutdown(key) => peers[line(key)].line.is_shut = true,
                Action::Close(key) => peers[line(key)].line.close(),
                Action::StopAccepting => {}
            }
        }
        has_some
    }

    fn write(&mut self, peers: &mut [Peer], index: usize) -> bool {
        let mut has_some = false;
        loop {
            let shard = &mut self.shards[index];
            let next =
                shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk));
            let Some((key, batch)) = next else { return has_some };
            has_some = true;
            let line: &mut Line = &mut peers[self.places[index][&key]].line;
            line.send(batch, &mut self.shards[index]);
        }
    }

    fn turn_mesh(&mut self, shared: &mut Shared, network: &mut Network) {
        let now = self.now(shared.now_ms);
        let mut was_busy = false;
        while let Some(event) = network.poll(&mut shared.random, shared.now_ms, self.index) {
            was_busy = true;
            if shared.is_verbose {
                println!("  mesh {}: {event:?}", self.index);
            }
            self.mesh.handle_event(now.ms, event);
        }
        while let Some((from, message)) = self.bus.poll_for_mesh(shared.now_ms) {
            was_busy = true;
            if shared.is_verbose {
                println!("  {}.{} → mesh {}: {message:?}", self.index, from.0, self.index);
            }
            self.mesh.handle_message(now.ms, from, message);
        }
        if was_busy || self.mesh.poll_timeout().is_some_and(|due| due <= now.ms) {
            self.mesh.handle_turn(now.ms);
            self.mesh_turns += 1;
            if self.mesh_turns.is_multiple_of(CHECK_EVERY) {
                self.mesh.check();
            }
            let due = self.mesh.poll_timeout();
            assert!(
                due.is_none_or(|due| now.ms < due),
                "the mesh of node {} asks for a turn that it just had",
                self.index
            );
        }
        self.take_effects(shared, network);
        while let Some(ShardMessage { to, message }) = self.mesh.poll_message() {
            self.note_reach(shared, to, &message);
            self.bus.send_from_mesh(&mut shared.random, shared.now_ms, to, message);
        }
    }

    fn take_effects(&mut self, shared: &mut Shared, network: &mut Network) {
        while let Some(effect) = self.mesh.poll_effect() {
            if shared.is_verbose {
                println!("  mesh {} wants {effect:?}", self.index);
            }
            network.carry_out(&mut shared.random, shared.now_ms, self.index, effect);
        }
    }

    fn note_reach(&mut self, shared: &mut Shared, shard: ShardId, message: &FromMesh) {
        let (node, is_there) = match message {
            FromMesh::NodeUp { node, .. } => (node, true),
            FromMesh::NodeDown(node) => (node, false),
            _ => return,
        };
        if shard.index() == 0 {
            let other = index_of(*node);
            if shared.is_verbose {
                println!("node {} {} {other}", self.index, if is_there { "has" } else { "lost" });
            }
            shared.weather.note_reach(self.index, other, shared.now_ms, is_there);
        }
    }

    /// A shard that has nothing to do does not ask for turns.
    fn check_rest(&mut self, now: Now, index: usize, was_busy: bool) {
        let asks = self.shards[index].poll_timeout().is_some_and(|due| due <= now.ms);
        let restless = &mut self.restless[index];
        *restless = if asks && !was_busy { *restless + 1 } else { 0 };
        assert!(*restless < TURNS_MAX, "shard {index} asks for turns and does nothing");
    }

    /// When something is due here, in the run's time.
    pub fn next_due(&self) -> Option<u64> {
        let shards = self.shards.iter().filter_map(Shard::poll_timeout);
        let own = shards.chain(self.mesh.poll_timeout()).min();
        let own = own.map(|due| due.saturating_add_signed(-self.ahead_ms));
        own.into_iter().chain(self.bus.next_due()).min()
    }
}

fn time(ms: u64, unix_ms: u64) -> Now {
    Now { ms, us: ms * 1000, unix_ms }
}
