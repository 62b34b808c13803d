//! A node's shards, the messages between them, their peers, and a clock that only steps.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use gridcast::address::ShardId;
use gridcast::message::{FromNode, FromShard, LocalMessage, ToShard};
use gridcast::metrics::Report;
use gridcast::shard::node_state::NodeState;
use gridcast::shard::{Action, Listener, Now, Priority, Shard, ShedRound, Shortage, Usage};

use crate::backend::Backend;
use crate::client::Client;
use crate::ledger::Ledger;
use crate::line::Line;
use crate::peer::{Mood, Peer, Role, Shared};
use crate::plan::{MESSAGE_BYTES, Plan};
use crate::pushes::Pushes;
use crate::random::Random;

/// The distance between the seeds of a run and of its rare limits: such that the seeds that found a
/// bug have none.
const RARE: u64 = 8_000_000;

/// The seed offset of stops of the node, jumps of its wall clock, and the reaction of its clients.
const TROUBLE: u64 = 9_000_000;

const START_MS: u64 = 1_000_000;
const START_UNIX_MS: u64 = 1_790_000_000_000;

/// Bytes that may wait for a client above its bound: the handshake, pongs, and the last message that
/// a route sent back.
const SLACK_BYTES: usize = 2 * MESSAGE_BYTES;

/// Bytes that may wait for a back end above its bound: answers that come all at once, behind one that was
/// late. There are at most 1024 of them, each of at most 160 bytes here.
const ANSWERS_BYTES: usize = 1024 * 160;

/// Consumers of the fleet that come in one run, at most.
const RESTLESS_MAX: usize = 1500;

/// Turns of shards between two in which the inner state of topics is looked at.
const TURNS_PER_CHECK: u64 = 64;

/// Turns in a row in which a shard asks for another at once, at most: that is a loop.
const TURNS_MAX: usize = 2000;

/// The time, when the wall clock is so much ahead of the one that deadlines are kept by.
fn time(ms: u64, unix_ahead_ms: i64) -> Now {
    let unix_ms = (START_UNIX_MS + (ms - START_MS)).saturating_add_signed(unix_ahead_ms);
    Now { ms, us: ms * 1000, unix_ms }
}

/// A message between shards, and when it comes.
type Letter = (u64, LocalMessage);

pub struct World {
    pub plan: Plan,
    pub shared: Shared,
    pub peers: Vec<Peer>,
    pub shards: Vec<Shard>,
    // Time in which the node ran: so the runtime tells it.
    now_ms: u64,
    unix_ahead_ms: i64,
    // Rounds for which the node is stopped.
    stopped_rounds: usize,
    // By sender and receiver.
    mail: Vec<Vec<VecDeque<Letter>>>,
    // By shard: its lines by their place in its table.
    places: Vec<HashMap<gridcast::message::ConnectionKey, usize>>,
    restless: Vec<usize>,
    // How many consumers of the fleet have come.
    restless_joined: usize,
    turns: u64,
    /// How short the node is of memory, where it has a budget.
    pub shortage: Shortage,
    used_bytes: u64,
    shed_round: ShedRound,
    /// The largest share of it that was in use, in percent.
    pub budget_percent: u64,
}

impl World {
    pub fn new(seed: u64, is_verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::new(seed, &mut random, &mut Random::new(seed + RARE));
        let settings = plan.settings.clone();
        let count = settings.shards;
        let now = time(START_MS, 0);
        let mut trouble = Random::new(seed + TROUBLE);
        let is_troubled = trouble.one_in(2) && !crate::FOUND.contains(&seed);
        let state = Arc::new(NodeState::new(&settings, Arc::default()));
        let shard = |index| Shard::new(ShardId(index as u8), &settings, state.clone(), now);
        let mut world = Self {
            shared: Shared {
                random,
                ledger: Ledger::new(settings.queue.when_full),
                settings: settings.clone(),
                pushes: Pushes::default(),
                known: Vec::new(),
                moment: 0,
                mood: Mood::Busy,
                is_calm: plan.is_calm,
                trouble,
                is_troubled,
                has_budget: plan.memory_bytes.is_some(),
                answers: 0,
                is_verbose,
                subscribers: HashMap::new(),
            },
            peers: Vec::new(),
            shards: (0..count).map(shard).collect(),
            now_ms: START_MS,
            unix_ahead_ms: 0,
            stopped_rounds: 0,
            mail: (0..count).map(|_| (0..count).map(|_| VecDeque::new()).collect()).collect(),
            places: vec![HashMap::new(); count],
            restless: vec![0; count],
            restless_joined: 0,
            turns: 0,
            shortage: Shortage::None,
            used_bytes: 0,
            shed_round: ShedRound::default(),
            budget_percent: 0,
            plan,
        };
        for _ in 0..world.plan.crowd {
            let compresses = world.next_compresses();
            let client = Client::new(&mut world.shared.random, true, compresses);
            world.join(0, Role::Client(client), false);
        }
        world
    }

    fn now(&self) -> Now {
        time(self.now_ms, self.unix_ahead_ms)
    }

    /// A peer connects to a shard.
    pub fn join(&mut self, shard: usize, role: Role, is_slow: bool) -> usize {
        let listener = match role {
            Role::Client(_) => Listener::Edge(0),
            Role::Backend(_) => Listener::Api,
        };
        // Those of a crowd are all different; the others come from a few.
        let is_crowded = matches!(&role, Role::Client(client) if client.is_in_crowd);
        let host = if is_crowded { self.peers.len() as u32 } else { (self.peers.len() % 4) as u32 };
        let remote = (Ipv4Addr::from_bits(0x0A00_0000 + host), 50_000).into();
        let now = self.now();
        let key = self.shards[shard].handle_accepted(now, listener, remote);
        let key = key.expect("the node is up");
        let number = self.peers.len();
        self.places[shard].insert(key, number);
        if self.shared.is_verbose {
            println!("  peer {number} connects to shard {shard} as {key:?}");
        }
        let mut line = Line::new(shard, key);
        if !self.shards[shard].inspect().is_receiving(key) {
            line.stop_reading();
        }
        self.peers.push(Peer::new(number, line, role, is_slow));
        number
    }

    /// A back end of the last part of a run connects anywhere.
    pub fn join_anywhere(&mut self, backend: Backend) -> usize {
        let shard = self.shared.random.below(self.shards.len());
        self.join(shard, Role::Backend(backend), false)
    }

    fn next_compresses(&self) -> bool {
        self.plan.compresses && self.peers.len().is_multiple_of(2)
    }

    fn join_some(&mut self) {
        let compresses = self.next_compresses();
        let random = &mut self.shared.random;
        let others = self.peers.len() - self.restless_joined;
        let is_hasty = self.plan.fleet > 0;
        if others >= self.plan.peers + self.plan.crowd || !(is_hasty || random.one_in(4)) {
            return;
        }
        let shard = random.below(self.shards.len());
        let is_slow = !random.one_in(3);
        let role = match random.below(5) {
            0 => Role::Backend(Backend::new(true, self.plan.crowd > 0)),
            1 => Role::Backend(Backend::new(false, self.plan.crowd > 0)),
            _ => Role::Client(Client::new(random, false, compresses)),
        };
        self.join(shard, role, is_slow);
    }

    /// A consumer takes the place of each that went, a few at a time.
    fn join_fleet(&mut self) {
        let is_there = |peer: &&Peer| {
            let Role::Backend(backend) = &peer.role else { return false };
            backend.is_restless() && !peer.has_ended()
        };
        let there = self.peers.iter().filter(is_there).count();
        for _ in there..self.plan.fleet.min(there + 8) {
            if self.restless_joined < RESTLESS_MAX {
                self.restless_joined += 1;
                self.join_anywhere(Backend::restless());
            }
        }
    }

    /// All peers and shards have a turn, and a little time passes.
    pub fn round(&mut self) {
        if self.shared.mood == Mood::Busy {
            self.join_some();
            self.join_fleet();
        }
        for peer in &mut self.peers {
            peer.act(&mut self.shared);
        }
        if self.is_stopped() {
            return;
        }
        self.measure();
        let first = self.shared.random.below(self.shards.len());
        for index in 0..self.shards.len() {
            self.turn((first + index) % self.shards.len());
        }
        self.now_ms += *self.shared.random.pick(&[0, 0, 1, 5, 16]);
    }

    /// Whether nothing on the node runs in this round. Its wall clock goes on, and steps at times.
    fn is_stopped(&mut self) -> bool {
        if !self.shared.is_troubled || self.shared.mood != Mood::Busy {
            return false;
        }
        let trouble = &mut self.shared.trouble;
        if trouble.one_in(100) {
            self.unix_ahead_ms += trouble.between(0, 20_000) as i64 - 10_000;
        }
        if self.stopped_rounds == 0 && trouble.one_in(150) {
            self.stopped_rounds = trouble.between(1, 50);
        } else if self.stopped_rounds > 0 {
            self.stopped_rounds -= 1;
        }
        self.unix_ahead_ms += if self.stopped_rounds > 0 { 200 } else { 0 };
        self.stopped_rounds > 0
    }

    /// Measures what all shards hold. The runtime measures more, and more often.
    fn measure(&mut self) {
        let Some(limit_bytes) = self.plan.memory_bytes else { return };
        let held: usize = self.shards.iter().map(|shard| shard.inspect().held_bytes()).sum();
        let sending: usize = self.peers.iter().map(|peer| peer.line.sending_bytes()).sum();
        let bytes = (held + sending) as u64;
        self.budget_percent = self.budget_percent.max(bytes * 100 / limit_bytes);
        // What a round brings is much of a budget this small.
        assert!(bytes <= 2 * limit_bytes, "{bytes} bytes of a budget of {limit_bytes}");
        self.shortage = self.shortage.after(bytes, limit_bytes);
        self.used_bytes = bytes;
    }

    /// Tells a shard what was measured last.
    fn tell_memory(&mut self, index: usize) {
        let Some(limit_bytes) = self.plan.memory_bytes else { return };
        let usage = Usage { bytes: self.used_bytes, limit_bytes, shortage: self.shortage };
        let (now, Self { shards, peers, places, shed_round, .. }) = (self.now(), self);
        let blocked_bytes = |key| peers[*places[index].get(&key)?].line.blocked_bytes();
        shards[index].handle_memory(now, usage, shed_round, blocked_bytes);
    }

    fn turn(&mut self, index: usize) {
        if self.shared.random.one_in(4) {
            return;
        }
        let now = self.now();
        let was_busy = self.step_lines(index) | self.bring_mail(index);
        self.tell_memory(index);
        self.shards[index].handle_turn(now);
        let has_spoken = self.take_mail(index) | self.do_actions(index) | self.write(index);
        self.check_rest(index, was_busy || has_spoken);
        self.check_bounds(index);
        self.turns += 1;
        if self.turns.is_multiple_of(TURNS_PER_CHECK) {
            self.shards[index].inspect().check_invariants();
        }
    }

    fn step_lines(&mut self, index: usize) -> bool {
        let now = self.now();
        let mut was_busy = false;
        for peer in &mut self.peers {
            if peer.line.shard != index || !peer.line.is_busy() {
                continue;
            }
            was_busy = true;
            let shard = &mut self.shards[index];
            let taken = peer.line.step(&mut self.shared.random, now, shard);
            peer.hear(&mut self.shared, &taken);
        }
        was_busy
    }

    fn bring_mail(&mut self, index: usize) -> bool {
        let now = self.now();
        let mut has_some = false;
        for from in 0..self.shards.len() {
            let mail = &mut self.mail[from][index];
            while mail.front().is_some_and(|letter| letter.0 <= now.ms)
                && !self.shared.random.one_in(20)
                && let Some((_, message)) = mail.pop_front()
            {
                has_some = true;
                if self.shared.is_verbose {
                    println!("  shard {from} → {index}: {message:?}");
                }
                let message = ToShard::Local(ShardId(from as u8), message);
                self.shards[index].handle_message(now, message);
            }
        }
        has_some
    }

    fn take_mail(&mut self, index: usize) -> bool {
        let mut has_some = false;
        let delay = self.shared.random.between(0, self.plan.delay_ms_max) as u64;
        while let Some(message) = self.shards[index].poll_message() {
            has_some = true;
            let FromShard::Local(shard, message) = message else { panic!("there is no mesh") };
            assert_ne!(shard.index(), index, "a shard does not write to itself");
            let mail = &mut self.mail[index][shard.index()];
            // What was sent later does not come sooner.
            let soonest = mail.back().map_or(0, |letter| letter.0);
            mail.push_back((soonest.max(self.now_ms + delay), message));
        }
        has_some
    }

    fn do_actions(&mut self, index: usize) -> bool {
        let mut has_some = false;
        while let Some(action) = self.shards[index].poll_action() {
            has_some = true;
            if self.shared.is_verbose {
                println!("  shard {index}: {action:?}");
            }
            let places = &self.places[index];
            match action {
                Action::Pause(key) => self.peers[places[&key]].line.stop_reading(),
                Action::Resume(key) => self.peers[places[&key]].line.read_again(),
                Action::Shutdown(key) => self.peers[places[&key]].line.is_shut = true,
                Action::Close(key) => {
                    let peer = &mut self.peers[places[&key]];
                    self.shared.ledger.note_end(peer.number, peer.line.reported);
                    peer.line.close();
                }
                Action::StopAccepting => {}
            }
        }
        has_some
    }

    fn write(&mut self, index: usize) -> bool {
        let mut has_some = false;
        for count in 0..self.shared.random.between(1, 200) {
            let shard = &mut self.shards[index];
            let bulk =
                |shard: &mut Shard| (count <= 40).then(|| shard.poll_write(Priority::Bulk))?;
            let Some((key, batch)) = shard.poll_write(Priority::Urgent).or_else(|| bulk(shard))
            else {
                break;
            };
            has_some = true;
            let peer = &mut self.peers[self.places[index][&key]];
            let length = peer.line.send(batch, &mut self.shards[index]);
            let settings = &self.plan.settings;
            let bound = match &peer.role {
                Role::Client(_) => settings.edges[0].routes[0].outbound_bytes + SLACK_BYTES,
                Role::Backend(_) => 2 * settings.limits.outbound_bytes + ANSWERS_BYTES,
            };
            assert!(length <= bound, "{length} bytes waited for peer {}", peer.number);
        }
        has_some
    }

    /// A shard that has nothing to do does not ask for turns.
    fn check_rest(&mut self, index: usize, was_busy: bool) {
        let asks = self.shards[index].poll_timeout().is_some_and(|due| due <= self.now_ms);
        let restless = &mut self.restless[index];
        *restless = if asks && !was_busy { *restless + 1 } else { 0 };
        assert!(*restless < TURNS_MAX, "shard {index} asks for turns and does nothing");
    }

    fn check_bounds(&self, index: usize) {
        let bounds = self.plan.settings.queue.bounds;
        for topic in self.shards[index].inspect().report().topics {
            assert!(topic.messages <= bounds.messages as u64, "{topic:?}");
            assert!(topic.bytes <= bounds.bytes as u64, "{topic:?}");
        }
    }

    /// Whether nothing is under way anywhere, so that only time can change anything.
    fn is_still(&self) -> bool {
        self.mail.iter().flatten().all(VecDeque::is_empty)
            && !self.peers.iter().any(|peer| peer.line.is_busy())
            && !self.shards.iter().any(|shard| {
                shard.inspect().has_writes()
                    || shard.poll_timeout().is_some_and(|due| due <= self.now_ms)
            })
    }

    /// Goes on until nothing is under way for some rounds, or panics.
    pub fn settle(&mut self, rounds_max: usize) {
        let mut still = 0;
        for _ in 0..rounds_max {
            self.skip_to_mail();
            self.round();
            still = if self.is_still() { still + 1 } else { 0 };
            if still > 20 {
                return;
            }
        }
        panic!("no rest after {rounds_max} rounds: {:?}", self.reports());
    }

    /// Lets time pass up to the next message between shards, if nothing else is under way.
    fn skip_to_mail(&mut self) {
        let is_busy = self.peers.iter().any(|peer| peer.line.is_busy());
        let soonest = self.mail.iter().flatten().filter_map(VecDeque::front).map(|l| l.0).min();
        if let Some(due) = soonest.filter(|_| !is_busy) {
            self.now_ms = self.now_ms.max(due);
        }
    }

    /// Lets time pass with nothing under way.
    pub fn wait(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += 250;
            self.round();
        }
    }

    /// Tells every shard that the node goes down, and after a while that back ends are to go too.
    pub fn drain(&mut self) {
        self.tell_all(|| FromNode::Drain { over_ms: 1000 });
        self.wait(2000);
        self.tell_all(|| FromNode::DrainBackends);
    }

    fn tell_all(&mut self, message: impl Fn() -> FromNode) {
        let now = self.now();
        for index in 0..self.shards.len() {
            self.shards[index].handle_message(now, ToShard::Node(message()));
        }
    }

    pub fn reports(&self) -> Vec<Report> {
        self.shards.iter().map(|shard| shard.inspect().report()).collect()
    }
}
