//! The nodes, the network and the peers, and the order in which things happen.

use std::collections::HashMap;

use gridcast::shard::Listener;

use crate::backend::Backend;
use crate::client::Client;
use crate::line::Line;
use crate::network::Network;
use crate::node::{Life, Node};
use crate::peer::{Mood, Peer, Role, Shared};
use crate::plan::{Fault, Plan};
use crate::pushes::Pushes;
use crate::queue::Queue;
use crate::random::Random;
use crate::weather::Weather;

pub struct World {
    pub plan: Plan,
    pub shared: Shared,
    pub peers: Vec<Peer>,
    pub nodes: Vec<Node>,
    pub restarts: u64,
    /// Which nodes crashed, in their order.
    pub crashed: Vec<usize>,
    pub steps: u64,
    network: Network,
    joins_ms: u64,
    // How many consumers of the fleet have come.
    restless_joined: usize,
}

/// Consumers of the fleet that come to one node at the same moment, at most.
const RESTLESS_AT_ONCE: usize = 8;

impl World {
    pub fn new(seed: u64, is_verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::new(seed, &mut random);
        let mut shared = Shared {
            random,
            now_ms: 0,
            moment: 0,
            mood: Mood::Busy,
            weather: Weather::default(),
            queue: Queue::default(),
            pushes: Pushes::default(),
            known: Vec::new(),
            nodes: Vec::new(),
            gone: HashMap::new(),
            fresh: Vec::new(),
            answers: 0,
            is_verbose,
            subscribers: HashMap::new(),
        };
        // The nodes have to find each other first.
        shared.weather.note_trouble(0);
        let nodes = (0..plan.shards.len())
            .map(|index| {
                shared.weather.note_start(index, plan.shards.len(), 0);
                Node::start(&plan, &mut shared, index, None)
            })
            .collect();
        let network = Network::new(&plan);
        Self {
            plan,
            shared,
            peers: Vec::new(),
            nodes,
            restarts: 0,
            crashed: Vec::new(),
            steps: 0,
            network,
            joins_ms: 0,
            restless_joined: 0,
        }
    }

    /// A peer connects to a node that has turns.
    pub fn join(&mut self, index: usize, role: Role) -> usize {
        let node = &mut self.nodes[index];
        let listener = match role {
            Role::Client(_) => Listener::Edge(0),
            Role::Backend(_) => Listener::Api,
        };
        let shard = self.shared.random.below(node.shards.len());
        let now = node.now(self.shared.now_ms);
        let remote = ([127, 0, 0, 1], 50_000).into();
        let key = node.shards[shard].handle_accepted(now, listener, remote);
        let key = key.expect("the node is up");
        let number = self.peers.len();
        node.place(shard, key, number);
        if self.shared.is_verbose {
            println!("  peer {number} connects to {index}.{shard} as {key:?}");
        }
        self.shared.nodes.push(index);
        let line = Line::new(shard, key);
        self.peers.push(Peer::new(number, index, line, role, self.shared.now_ms));
        number
    }

    fn join_some(&mut self) {
        let random = &mut self.shared.random;
        self.joins_ms = self.shared.now_ms + random.between(1, 400) as u64;
        let index = random.below(self.nodes.len());
        if self.nodes[index].life != Life::Up {
            return;
        }
        for _ in 0..RESTLESS_AT_ONCE.min(self.plan.fleet - self.restless_joined) {
            self.restless_joined += 1;
            self.join(index, Role::Backend(Backend::restless()));
        }
        let random = &mut self.shared.random;
        if self.peers.len() - self.restless_joined >= self.plan.peers {
            return;
        }
        let role = match random.below(5) {
            0 | 1 => Role::Backend(Backend::usual()),
            _ => Role::Client(Client::new(random)),
        };
        self.join(index, role);
    }

    /// Goes on until this time.
    pub fn run_until(&mut self, end_ms: u64) {
        while self.shared.now_ms < end_ms {
            self.step();
            self.advance(end_ms);
        }
    }

    fn step(&mut self) {
        self.steps += 1;
        self.network.step(&mut self.shared.random, self.shared.now_ms);
        self.befall();
        if self.shared.mood == Mood::Busy && self.joins_ms <= self.shared.now_ms {
            self.join_some();
        }
        self.act();
        let first = self.shared.random.below(self.nodes.len());
        for index in 0..self.nodes.len() {
            let at = (first + index) % self.nodes.len();
            if self.nodes[at].life == Life::Up {
                self.nodes[at].turn(&mut self.shared, &mut self.network, &mut self.peers);
            }
        }
    }

    fn act(&mut self) {
        if !self.shared.fresh.is_empty() && !self.peers.is_empty() {
            // Somebody publishes at once where somebody was just subscribed.
            let peer = self.shared.random.below(self.peers.len());
            if let Role::Backend(_) = self.peers[peer].role {
                self.peers[peer].acts_ms = self.shared.now_ms.min(self.peers[peer].acts_ms);
            }
        }
        for peer in &mut self.peers {
            if peer.acts_ms <= self.shared.now_ms {
                peer.act(&mut self.shared);
            }
        }
    }

    /// Time passes: a little while something can be done at once, else until something is due.
    fn advance(&mut self, end_ms: u64) {
        let now_ms = self.shared.now_ms;
        let is_up = |node: &&Node| node.life == Life::Up;
        let is_busy = self
            .peers
            .iter()
            .any(|peer| peer.line.is_busy() && self.nodes[peer.node].life == Life::Up);
        if is_busy {
            self.shared.now_ms += *self.shared.random.pick(&[0, 0, 1, 3]);
            return;
        }
        let nodes = self.nodes.iter().filter(is_up).filter_map(Node::next_due);
        let acts = self.peers.iter().map(|peer| peer.acts_ms);
        let fault = self.plan.faults.first().map(|fault| fault.0);
        let joins = (self.shared.mood == Mood::Busy).then_some(self.joins_ms);
        let network = self.network.next_due(now_ms);
        let due = nodes.chain(acts).chain(fault).chain(joins).chain(network).min();
        self.shared.now_ms = due.unwrap_or(end_ms).clamp(now_ms + 1, end_ms.max(now_ms + 1));
    }

    fn befall(&mut self) {
        while self.plan.faults.first().is_some_and(|fault| fault.0 <= self.shared.now_ms) {
            let (_, fault) = self.plan.faults.remove(0);
            if self.shared.is_verbose {
                println!("{}: {fault:?}", self.shared.now_ms);
            }
            if !matches!(fault, Fault::Jump(..)) {
                self.shared.weather.note_trouble(self.shared.now_ms);
            }
            self.happen(fault);
        }
        let is_cut = self.nodes.iter().any(|node| node.life == Life::Frozen);
        if is_cut || self.network.is_troubled() {
            self.shared.weather.note_trouble(self.shared.now_ms);
        }
    }

    fn happen(&mut self, fault: Fault) {
        let now_ms = self.shared.now_ms;
        match fault {
            Fault::Break(one, two) => {
                self.network.break_links(&mut self.shared.random, now_ms, one, two);
            }
            Fault::Block(from, to, is_on) => self.network.block(from, to, is_on),
            Fault::Slow(from, to, more_ms) => self.network.slow(from, to, more_ms),
            Fault::Crash { node, is_announced } if self.nodes[node].life == Life::Up => {
                if is_announced {
                    self.nodes[node].leave(&mut self.shared, &mut self.network);
                }
                self.crash(node);
            }
            Fault::Restart(node) if self.nodes[node].life == Life::Dead => {
                self.restarts += 1;
                self.shared.weather.note_start(node, self.nodes.len(), now_ms);
                let last = Some(&self.nodes[node]);
                self.nodes[node] = Node::start(&self.plan, &mut self.shared, node, last);
                self.network.start(node);
            }
            Fault::Freeze(node) if self.nodes[node].life == Life::Up => {
                self.nodes[node].freeze(now_ms);
                self.network.freeze(node);
                self.shared.weather.note_frozen(node, now_ms);
            }
            Fault::Thaw(node) if self.nodes[node].life == Life::Frozen => {
                self.nodes[node].thaw(now_ms);
                self.network.thaw(&mut self.shared.random, now_ms, node);
                self.shared.weather.note_thawed(node, now_ms);
            }
            Fault::Jump(node, by_ms) => self.nodes[node].jump(by_ms),
            // It is not as the fault would have it: another is at work.
            Fault::Crash { .. } | Fault::Restart(_) | Fault::Freeze(_) | Fault::Thaw(_) => {}
        }
    }

    fn crash(&mut self, index: usize) {
        self.nodes[index].life = Life::Dead;
        self.crashed.push(index);
        self.network.end(&mut self.shared.random, self.shared.now_ms, index);
        self.shared.weather.note_start(index, self.nodes.len(), self.shared.now_ms);
        for peer in self.peers.iter_mut().filter(|peer| peer.node == index) {
            peer.crash(&mut self.shared);
        }
    }
}
