//! Grids of nodes as values, from seeds: clients come, go and come back; nodes are killed, started and cut off; each shard
//! learns of it when it does. In the end every shard has to know who is there, and back ends, too.
//!
//!     GRIDCAST_SEEDS=20000 cargo test --lib presence::tests::grid
//!     GRIDCAST_SEED=7 cargo test --lib presence::tests::grid

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::*;
use crate::address::{Incarnation, ShardId};
use crate::channel::members::JOIN_MS;
use crate::message::PresenceMessage;

const NODES: usize = 4;
const CHANNELS: [&str; 3] = ["a", "b", "c"];
const USERS: [Option<&str>; 6] = [Some("u0"), Some("u1"), Some("u2"), Some("u3"), Some("u4"), None];
const TERMS: PresenceTerms = PresenceTerms { grace_ms: 3000, has_topic: true };

/// The longest time from one shard's knowledge of a loss to another's, in milliseconds.
const SKEW_MS: usize = 500;

/// xorshift64*, which is enough to choose what happens next.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }
}

/// What a shard receives from its mesh, in order.
enum Received {
    Up(usize, u64, Incarnation),
    Down(usize),
    Message(ShardAddress, PresenceMessage),
}

struct TestShard {
    address: ShardAddress,
    places: PresencePlaces,
    local: LocalPresence,
    home: HomePresence,
    inbox: VecDeque<Received>,
    // The sessions that the shard knows of, by node.
    sessions: BTreeMap<usize, u64>,
    // By channel: whom the devices were told of, since there are any.
    told: BTreeMap<String, BTreeMap<String, bool>>,
}

#[derive(Clone)]
struct TestClient {
    node: usize,
    shard: usize,
    channel: &'static str,
    user: Option<&'static str>,
    since_ms: u64,
}

struct World {
    seed: u64,
    random: Random,
    now_ms: u64,
    // By node. `None`: not running.
    nodes: Vec<Option<Vec<TestShard>>>,
    // By node: when it was started.
    started_ms: Vec<u64>,
    // By pair of nodes, the lower first.
    sessions: BTreeMap<(usize, usize), u64>,
    last_session: u64,
    // Messages that are on their way, by sender and receiver, with their session.
    wires: BTreeMap<(ShardAddress, ShardAddress), VecDeque<(u64, PresenceMessage)>>,
    // Sessions that are over and not noticed yet: by node, when it notices, and the other node.
    unnoticed: Vec<(u64, usize, usize)>,
    cut: Option<(usize, usize)>,
    clients: Vec<TestClient>,
    // Clients that come back, and when.
    returning: Vec<(u64, TestClient)>,
    // The last thing that back ends were told, by channel and user. No user: whether the channel is occupied.
    events: BTreeMap<(String, Option<String>), bool>,
    has_split: bool,
    // When a node was started, or a cut healed.
    changed_ms: u64,
    // When a node was killed or cut off last, and whether another one was soon after: together they may be a home and
    // its standby.
    broken_ms: u64,
    is_hasty: bool,
    // Whether no node is started or killed.
    keeps_nodes: bool,
    has_lost_both: bool,
}

fn address(node: usize, shard: usize) -> ShardAddress {
    let node = NodeId::new(node as u16 + 1).expect("a small number");
    ShardAddress { node, shard: ShardId(shard as u8) }
}

fn place(address: ShardAddress) -> (usize, usize) {
    (usize::from(address.node.number()) - 1, address.shard.index())
}

fn shards_of(node: usize) -> usize {
    1 + node % 2
}

impl World {
    fn new(seed: u64) -> Self {
        let random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut world = Self {
            seed,
            random,
            now_ms: 1_000_000,
            nodes: (0..NODES).map(|_| None).collect(),
            started_ms: vec![0; NODES],
            sessions: BTreeMap::new(),
            last_session: 0,
            wires: BTreeMap::new(),
            unnoticed: Vec::new(),
            cut: None,
            clients: Vec::new(),
            returning: Vec::new(),
            events: BTreeMap::new(),
            has_split: false,
            changed_ms: 1_000_000,
            broken_ms: 0,
            is_hasty: seed.is_multiple_of(4),
            keeps_nodes: false,
            has_lost_both: false,
        };
        (0..2 + world.random.below(2)).for_each(|node| world.start(node));
        world
    }

    fn start(&mut self, node: usize) {
        let shards = (0..shards_of(node)).map(|shard| TestShard {
            address: address(node, shard),
            places: PresencePlaces::new(address(node, shard), shards_of(node)),
            local: LocalPresence::new(1 << 20),
            home: HomePresence::new(1 << 20),
            inbox: VecDeque::new(),
            sessions: BTreeMap::new(),
            told: BTreeMap::new(),
        });
        self.nodes[node] = Some(shards.collect());
        self.started_ms[node] = self.now_ms;
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node] = None;
        for other in 0..NODES {
            self.end_session(node, other);
        }
        let (lost, kept) =
            self.clients.drain(..).partition(|client: &TestClient| client.node == node);
        self.clients = kept;
        let lost: Vec<TestClient> = lost;
        for client in lost {
            if self.random.below(2) == 0 {
                self.returning.push((self.now_ms + 500 + self.random.below(9000) as u64, client));
            }
        }
    }

    /// Ends a session. Both sides notice when they do.
    fn end_session(&mut self, one: usize, other: usize) {
        if self.sessions.remove(&(one.min(other), one.max(other))).is_none() {
            return;
        }
        self.wires.retain(|(from, to), _| {
            let pair = (place(*from).0, place(*to).0);
            pair != (one, other) && pair != (other, one)
        });
        for (node, lost) in [(one, other), (other, one)] {
            let at_ms = self.now_ms + 4000 + self.random.below(SKEW_MS) as u64;
            if self.nodes[node].is_some() {
                self.unnoticed.push((at_ms, node, lost));
            }
        }
    }

    /// Begins the sessions that may begin, and has ended ones noticed.
    fn connect(&mut self) {
        let now_ms = self.now_ms;
        let (due, later) = self.unnoticed.drain(..).partition(|(at_ms, ..)| *at_ms <= now_ms);
        self.unnoticed = later;
        let due: Vec<_> = due;
        for (_, node, lost) in due {
            for shard in self.nodes[node].iter_mut().flatten() {
                shard.inbox.push_back(Received::Down(lost));
            }
        }
        for one in 0..NODES {
            for other in one + 1..NODES {
                let may = self.nodes[one].is_some()
                    && self.nodes[other].is_some()
                    && self.cut != Some((one, other))
                    && !self.sessions.contains_key(&(one, other))
                    && !self.unnoticed.iter().any(|(_, node, lost)| {
                        (*node, *lost) == (one, other) || (*node, *lost) == (other, one)
                    });
                // Links come up within a second.
                let is_due = self.now_ms > self.changed_ms + 1000;
                if may && (is_due || self.random.below(5) == 0) {
                    self.last_session += 1;
                    self.sessions.insert((one, other), self.last_session);
                    for (node, peer) in [(one, other), (other, one)] {
                        let run = Incarnation(self.started_ms[peer]);
                        for shard in self.nodes[node].iter_mut().flatten() {
                            shard.inbox.push_back(Received::Up(peer, self.last_session, run));
                        }
                    }
                }
            }
        }
    }

    fn shard(&mut self, (node, shard): (usize, usize)) -> Option<&mut TestShard> {
        self.nodes[node].as_mut().map(|shards| &mut shards[shard])
    }

    fn all(&self) -> Vec<(usize, usize)> {
        let running = (0..NODES).filter(|&node| self.nodes[node].is_some());
        running.flat_map(|node| (0..shards_of(node)).map(move |shard| (node, shard))).collect()
    }

    fn add_client(&mut self, client: TestClient) {
        let Some(shard) = self.shard((client.node, client.shard)) else { return };
        let user = client.user.map(Arc::from);
        shard.local.enter(&shard.places, client.channel, user, TERMS.grace_ms);
        shard.told.entry(client.channel.into()).or_default();
        self.clients.push(client);
    }

    fn remove_client(&mut self, at: usize) -> TestClient {
        let client = self.clients.swap_remove(at);
        let now_ms = self.now_ms;
        if let Some(shard) = self.shard((client.node, client.shard)) {
            shard.local.leave(now_ms, client.channel, client.user.map(Arc::from));
        }
        client
    }

    fn random_client(&mut self) -> Option<TestClient> {
        let all = self.all();
        let &(node, shard) = all.get(self.random.below(all.len().max(1)))?;
        let channel = CHANNELS[self.random.below(CHANNELS.len())];
        let user = USERS[self.random.below(USERS.len())];
        Some(TestClient { node, shard, channel, user, since_ms: self.now_ms })
    }

    /// Does what shards do in a turn, and passes their messages on.
    fn run(&mut self, most: usize) {
        for at in self.all() {
            for _ in 0..most {
                let now_ms = self.now_ms;
                let Some(shard) = self.shard(at) else { break };
                let Some(received) = shard.inbox.pop_front() else { break };
                match received {
                    Received::Up(node, session, run) => {
                        shard.sessions.insert(node, session);
                        let change = shard.places.add(address(node, 0).node, shards_of(node), run);
                        shard.local.handle_session(address(node, 0).node);
                        shard.home.handle_session(now_ms, address(node, 0).node, change);
                    }
                    Received::Down(node) => {
                        shard.sessions.remove(&node);
                        shard.places.remove(address(node, 0).node);
                        shard.local.handle_session(address(node, 0).node);
                        shard.home.handle_session(
                            now_ms,
                            address(node, 0).node,
                            SessionChange::Ended,
                        );
                    }
                    Received::Message(from, message) => {
                        shard.home.handle(now_ms, from, message.clone(), &shard.places, |_| TERMS);
                        shard.local.handle(from, message);
                    }
                }
            }
            self.turn(at);
        }
        self.carry();
    }

    fn turn(&mut self, at: (usize, usize)) {
        let now_ms = self.now_ms;
        let is_joining = now_ms < self.started_ms[at.0] + JOIN_MS;
        let Some(shard) = self.shard(at) else { return };
        while shard.local.expire(now_ms, 2) {}
        shard.local.move_some(&shard.places, 2);
        shard.home.guard_some(&shard.places, 2);
        while shard.home.expire(now_ms, &shard.places, 2) {}
        shard.local.check();
        shard.home.check();
        let (mut told, mut changes) = (Vec::new(), Vec::new());
        if !is_joining {
            told.extend(std::iter::from_fn(|| shard.local.poll_told()));
            changes.extend(std::iter::from_fn(|| shard.home.poll_change()));
        }
        let mut messages: Vec<_> = std::iter::from_fn(|| shard.local.poll_message()).collect();
        messages.extend(std::iter::from_fn(|| shard.home.poll_message()));
        let (from, sessions) = (shard.address, shard.sessions.clone());
        for (channel, user, is_join) in told {
            self.handle_told(at, &channel, &user, is_join);
        }
        for change in changes {
            self.handle_change(change);
        }
        for (to, message) in messages {
            let (node, _) = place(to);
            let pair = (at.0.min(node), at.0.max(node));
            let session = self.sessions.get(&pair).copied();
            if node == at.0 {
                self.wires.entry((from, to)).or_default().push_back((0, message));
            } else if let Some(session) = session
                && sessions.get(&node) == Some(&session)
            {
                self.wires.entry((from, to)).or_default().push_back((session, message));
            }
        }
    }

    /// Passes some messages on.
    fn carry(&mut self) {
        let wires: Vec<_> = self.wires.keys().copied().collect();
        for (from, to) in wires {
            let most = 1 + self.random.below(8);
            for _ in 0..most {
                let wire = self.wires.get_mut(&(from, to));
                let Some((_, message)) = wire.and_then(VecDeque::pop_front) else { break };
                if let Some(shard) = self.shard(place(to)) {
                    shard.inbox.push_back(Received::Message(from, message));
                }
            }
        }
        self.wires.retain(|_, wire| !wire.is_empty());
        let nodes = &self.nodes;
        let runs = |at: &ShardAddress| nodes[place(*at).0].is_some();
        self.wires.retain(|(from, to), _| runs(from) && runs(to));
    }

    fn handle_told(&mut self, at: (usize, usize), channel: &str, user: &str, is_join: bool) {
        let (seed, now_ms) = (self.seed, self.now_ms);
        let Some(shard) = self.shard(at) else { return };
        let told = shard.told.entry(channel.into()).or_default();
        let earlier = told.insert(user.into(), is_join);
        assert_ne!(
            earlier,
            Some(is_join),
            "seed {seed}: {at:?} was told twice of {user} in {channel}"
        );
        assert!(
            is_join || !self.is_settled(channel, user),
            "seed {seed}, {now_ms}: {at:?} was told that {user} left {channel}"
        );
    }

    fn handle_change(&mut self, change: PresenceChange) {
        let (channel, user, is_present) = match change {
            PresenceChange::Occupied(channel) => (channel, None, true),
            PresenceChange::Joined(channel, user) => (channel, Some(user), true),
            PresenceChange::Left(channel, user) => (channel, Some(user), false),
            PresenceChange::Vacated(channel) => (channel, None, false),
        };
        let user = user.map(|user| user.to_string());
        if let Some(user) = &user
            && !is_present
        {
            let is_settled = self.is_settled(&channel, user);
            assert!(!is_settled, "seed {}: {user} has left {channel}, says the topic", self.seed);
        }
        self.events.insert((channel.to_string(), user), is_present);
    }

    /// Whether a user has had a client in a channel for a while, and no split may have hidden it.
    fn is_settled(&self, channel: &str, user: &str) -> bool {
        !self.has_split
            && !self.has_lost_both
            && self.clients.iter().any(|client| {
                (client.channel, client.user) == (channel, Some(user))
                    && client.since_ms + 10_000 <= self.now_ms
            })
    }

    /// Whether a node may be killed or cut off now.
    fn may_break(&mut self) -> bool {
        let is_soon = self.now_ms < self.broken_ms.max(self.changed_ms) + 10_000;
        self.has_lost_both |= is_soon && self.is_hasty;
        let may = !is_soon || self.is_hasty;
        if may {
            self.broken_ms = self.now_ms;
        }
        may
    }

    fn step(&mut self, may_split: bool) {
        self.now_ms += self.random.below(200) as u64;
        match self.random.below(60) {
            0..10 if self.clients.len() < 20 => {
                let client = self.random_client();
                client.into_iter().for_each(|client| self.add_client(client));
            }
            10..16 if !self.clients.is_empty() => {
                let at = self.random.below(self.clients.len());
                let client = self.remove_client(at);
                if self.random.below(2) == 0 {
                    let at_ms = self.now_ms + self.random.below(5000) as u64;
                    self.returning.push((at_ms, client));
                }
            }
            16 => {
                let node = self.random.below(NODES);
                let running = self.nodes.iter().flatten().count();
                match self.nodes[node].is_some() {
                    _ if self.keeps_nodes => {}
                    true if running > 1 && self.may_break() => self.kill(node),
                    true => {}
                    false => {
                        self.changed_ms = self.now_ms;
                        self.start(node);
                    }
                }
            }
            17 if may_split && self.may_break() => {
                let one = self.random.below(NODES - 1);
                let other = one + 1 + self.random.below(NODES - 1 - one);
                self.cut = Some((one, other));
                self.has_split = true;
                self.end_session(one, other);
            }
            18 if self.cut.is_some() => (self.cut, self.changed_ms) = (None, self.now_ms),
            _ => {}
        }
        let now_ms = self.now_ms;
        let (due, later) = self.returning.drain(..).partition(|(at_ms, _)| *at_ms <= now_ms);
        self.returning = later;
        let due: Vec<(u64, TestClient)> = due;
        for (_, client) in due {
            let all = self.all();
            let (node, shard) = all[self.random.below(all.len())];
            self.add_client(TestClient { node, shard, since_ms: now_ms, ..client });
        }
        self.connect();
        let most = 3 + self.random.below(6);
        self.run(most);
    }

    /// Lets everything settle, and checks that everybody knows who is there.
    fn finish(&mut self) {
        (self.cut, self.returning) = (None, Vec::new());
        for _ in 0..200 {
            self.now_ms += 100;
            self.connect();
            self.run(1000);
        }
        let truth = |channel: &str| {
            let here = self.clients.iter().filter(|client| client.channel == channel);
            here.filter_map(|client| client.user.map(String::from)).collect::<BTreeSet<_>>()
        };
        for shard in self.nodes.iter().flatten().flatten() {
            let (node, index) = place(shard.address);
            for channel in CHANNELS {
                let has_client = self.clients.iter().any(|client| {
                    (client.node, client.shard, client.channel) == (node, index, channel)
                });
                let known = shard.local.users(channel).map(|user| user.to_string()).collect();
                if has_client {
                    assert_eq!(
                        truth(channel),
                        known,
                        "seed {}: {channel} on {node}.{index}",
                        self.seed
                    );
                }
            }
        }
        for channel in CHANNELS {
            if self.has_lost_both {
                break;
            }
            let told = |user| self.events.get(&(channel.to_owned(), user)).copied();
            let is_occupied = self.clients.iter().any(|client| client.channel == channel);
            let seed = self.seed;
            assert_eq!(told(None).unwrap_or(false), is_occupied, "seed {seed}: {channel} occupied");
            for user in USERS.into_iter().flatten() {
                let is_there = truth(channel).contains(user);
                let told = told(Some(user.to_owned())).unwrap_or(false);
                assert_eq!(told, is_there, "seed {seed}: {user} in {channel}, says the topic");
            }
        }
        let members: usize = self.nodes.iter().flatten().flatten().map(|s| s.home.members()).sum();
        let expected: BTreeSet<_> =
            self.clients.iter().map(|client| (client.channel, client.user)).collect();
        assert_eq!(members, expected.len(), "seed {}: members of all homes", self.seed);
    }
}

fn run(seed: u64, may_split: bool) {
    let mut world = World::new(seed);
    world.keeps_nodes = may_split && seed.is_multiple_of(2);
    // After a split, a home on a node that has just been started cannot know what both sides were told.
    world.has_lost_both = may_split && seed % 2 == 1;
    for _ in 0..1000 {
        world.step(may_split);
        let all = world.all();
        for at in all {
            // Devices begin anew where there are none any more.
            let shard = world.shard(at).expect("it is running");
            let local = &shard.local;
            shard.told.retain(|channel, _| local.has_members(channel));
        }
    }
    world.finish();
}

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("GRIDCAST_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("GRIDCAST_SEEDS").unwrap_or(150)).collect(),
    }
}

#[test]
fn everybody_knows_who_is_there_whatever_dies_and_who_stays_is_never_said_to_leave() {
    seeds().into_iter().for_each(|seed| run(seed, false));
}

#[test]
fn everybody_knows_who_is_there_after_splits() {
    seeds().into_iter().for_each(|seed| run(seed, true));
}
