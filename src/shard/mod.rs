//! All state of one core. Pure: bytes, messages and the time go in ([`Shard`]`::handle_*`), and what
//! is to be written, sent and done comes out (`poll_*`).
//!
//! - `connection.rs`: one socket, and the table of them. `outbound.rs`: what waits to be written.
//! - `edge.rs`: clients. `requests.rs`: the API over HTTP. `heads.rs`: who may send it a body.
//!   `backend.rs`: the API over WebSocket.
//! - `commands.rs`: carries out what back ends ask for. `fanout.rs`: walks through a channel.
//!   `forms.rs`: what its members get.
//! - `pending.rs`, `replies.rs`: answers of other shards, and the order of answers.
//! - `channels.rs`: who is subscribed here. `interest.rs`: what the shards of a node know of it.
//! - `settings.rs`: what a node is told when it starts. `node_state.rs`: live state that its shards share.
//! - `roster.rs`: the nodes within reach. `nodes.rs`: what they are to know. `wards.rs`: the clients of
//!   those that are lost.
//! - `topics.rs`: feeds topics, is home to some, passes on what consumers get. `deferred.rs`: clients
//!   that wait until fewer events do. `acknowledge.rs`: consumers that acknowledge. `unfed.rs`: those
//!   of topics that nothing feeds.
//! - `access.rs`: who may use the API. `admission.rs`: requests before it. `tries.rs`: who has
//!   guessed too often. `verdicts.rs`: whose credentials are verified next. `recent.rs`: what was
//!   seen of late.
//! - `rate.rs`: so many a second. `addresses.rs`: what one address may do at the edge.
//! - `turn.rs`: the time, the settings, what is counted, what leaves the shard, and what its parts leave
//!   to each other.
//! - `work.rs`: how much of a turn input may take. `subscriptions.rs`: how clients join and leave
//!   channels. `memory.rs`: what gives way when the node is short of memory.
//!   `shed_round.rs`: how much of it the shards of a node shed together.
//! - `lifecycle.rs`: how connections begin and end. `drain.rs`: how all of them do. `timers.rs`:
//!   what happens later. `trail.rs`: debug lines about each of them.

pub mod access;
mod acknowledge;
mod addresses;
mod admission;
mod backend;
mod channels;
mod commands;
mod connection;
mod context;
mod deferred;
mod drain;
mod edge;
mod fanout;
mod forms;
mod heads;
pub mod interest;
mod lifecycle;
mod memory;
pub mod node_state;
mod nodes;
mod outbound;
mod page;
mod parting;
mod pending;
pub mod rate;
mod recent;
mod replies;
mod requests;
mod roster;
pub mod settings;
mod shed_round;
mod subscriptions;
mod timers;
mod topics;
mod trail;
mod tries;
mod turn;
mod unfed;
mod verdicts;
mod wards;
mod work;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::HashMap;

pub use backend::Reading;
pub use connection::Listener;
pub use memory::{Shortage, Usage};
pub use outbound::{Batch, Chunk, freed_bytes};
pub use shed_round::ShedRound;
pub use turn::{Action, Now};

use crate::address::{ClientId, IdLayout, IdSource, ShardId};
use crate::message::{BackendId, ConnectionKey, Message, Party};
use crate::metrics::{Counters, Durations};
use crate::protocol::api;
use crate::protocol::deflate::{Deflater, Inflater};
use access::Access;
use addresses::Addresses;
use channels::{ChannelIndex, Channels};
use commands::Asked;
use connection::{Connection, Connections, Phase, Queued, Stage};
use drain::Drain;
use fanout::{Budget, Lane};
use forms::Tails;
use interest::ShardInterest;
use memory::Shedding;
use node_state::NodeState;
use nodes::Nodes;
use pending::Pending;
use settings::Settings;
use subscriptions::Leaving;
use timers::Timer;
use topics::Topics;
use trail::Entry;
use turn::{Step, Turn};
use wards::Wards;

/// One core's connections, channels and topics.
pub struct Shard {
    turn: Turn,
    ids: IdSource,
    connections: Connections,
    clients: HashMap<ClientId, ConnectionKey>,
    access: Access,
    addresses: Addresses,
    channels: Channels,
    topics: Topics,
    pending: Pending,
    nodes: Nodes,
    wards: Wards,
    // Those that came to the API, in their order. Who has shown who it is, or is gone, is taken out when
    // it is first.
    strangers: VecDeque<ConnectionKey>,
    lanes: HashMap<BackendId, Lane>,
    // The lanes in the order of their turns.
    turns: VecDeque<BackendId>,
    budget: Budget,
    // Of the publish that ended last, until a turn begins without walks under way.
    tails: Option<(ChannelIndex, Tails)>,
    leaving: Leaving,
    parser: api::Parser,
    deflater: Deflater,
    inflater: Inflater,
    event: Vec<u8>,
    shedding: Shedding,
    turns_taken: Durations,
    calls_taken: Durations,
    // How far it is, while the node goes down.
    draining: Option<Drain>,
}

impl Shard {
    /// Creates a shard without connections. `state` is the one of all shards of the node.
    ///
    /// # Panics
    /// `state` was made for other settings.
    pub fn new(id: ShardId, settings: &Settings, state: Arc<NodeState>, now: Now) -> Self {
        let settings = Arc::new(settings.unshared());
        let layout = IdLayout::new(settings.shards);
        assert_eq!(state.interest.count(), settings.shards, "the state is that of the node");
        assert_eq!(state.quotas.len(), settings.api.users.len(), "the state is that of the node");
        let by_clock = now.unix_ms.saturating_sub(now.ms);
        let first_unix_ms = settings.process.first_unix_ms.unwrap_or(by_clock);
        Self {
            turn: Turn::new(id, &settings, state.clone(), now),
            ids: IdSource::new(settings.node, id, layout, first_unix_ms),
            connections: Connections::default(),
            clients: HashMap::new(),
            access: Access::new(&settings),
            addresses: Addresses::default(),
            channels: Channels::new(
                settings.has_mesh,
                ShardInterest::new(id, state.interest.clone()),
            ),
            topics: Topics::new(id, &settings),
            pending: Pending::new(first_unix_ms),
            nodes: Nodes::default(),
            wards: Wards::default(),
            strangers: VecDeque::new(),
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            budget: Budget::default(),
            tails: None,
            leaving: Leaving::default(),
            parser: api::Parser::default(),
            deflater: Deflater::default(),
            inflater: Inflater::default(),
            event: Vec::new(),
            shedding: Shedding::default(),
            turns_taken: Durations::default(),
            calls_taken: Durations::default(),
            draining: None,
        }
    }

    /// A socket was accepted. `None` when the node goes down: the caller closes the socket.
    pub fn handle_accepted(
        &mut self,
        now: Now,
        listener: Listener,
        remote: SocketAddr,
    ) -> Option<ConnectionKey> {
        self.turn.now = now;
        if self.turn.is_draining {
            return None;
        }
        self.turn.counters.connections += 1;
        let mut connection = Connection::new(remote, listener, (now.ms, now.unix_ms));
        connection.set_outbound_max(self.turn.settings.limits.outbound_bytes);
        let key = self.connections.insert(connection);
        trail::note(self.turn.trail(key), Entry::Accepted(remote, listener));
        let deadline_ms = now.ms + self.turn.settings.limits.handshake_ms;
        self.connections.set_timer(&mut self.turn, key, deadline_ms);
        self.count_arrival(key);
        if listener == Listener::Api {
            self.forget_known_callers();
            self.strangers.push_back(key);
        }
        self.route();
        Some(key)
    }

    /// Bytes were received. They are overwritten: masks are undone and JSON is parsed in place.
    pub fn handle_bytes(&mut self, now: Now, key: ConnectionKey, input: &mut [u8]) {
        self.turn.now = now;
        if self.connections.handle_bytes(&mut self.turn, key, input) {
            self.turn.work.begin_slice(false);
            let left = self.read(key, input);
            self.connections.hold(&mut self.turn, key, &input[input.len() - left..]);
            if self.turn.work.is_slice_spent() {
                self.connections.note_slice(&mut self.turn, key);
            }
        }
        self.route();
    }

    /// The peer sends nothing more: it shut its end, or the connection broke.
    pub fn handle_end(&mut self, now: Now, key: ConnectionKey, is_broken: bool) {
        self.turn.now = now;
        self.connections.handle_end(&mut self.turn, key, is_broken);
        self.route();
    }

    /// The work on what a connection sent panicked: it ends, and the shard lives on.
    pub fn handle_panic(&mut self, now: Now, key: ConnectionKey) {
        self.turn.counters.panics += 1;
        self.handle_end(now, key, true);
        self.connections.break_off(&mut self.turn, key);
        self.route();
    }

    /// So many bytes of the batch in flight are written; `is_done` when that was all of it.
    pub fn handle_written(&mut self, now: Now, key: ConnectionKey, bytes: usize, is_done: bool) {
        self.turn.now = now;
        let Some(connection) = self.connections.get(key) else { return };
        self.turn.counters.sent_bytes += bytes as u64;
        connection.outbound.written(bytes);
        let has_events = connection.backend().is_some_and(|backend| {
            backend.written += bytes as u64;
            !backend.deliveries.is_empty()
        });
        let is_open = connection.phase == Phase::Open && connection.paused == 0;
        if has_events {
            self.count_written_events(key);
        } else if is_open && connection.outbound.is_flushed() {
            // The usual case: nothing waits for this write.
            return;
        }
        if is_done {
            self.connections.after_batch(&mut self.turn, key);
        }
        self.route();
    }

    /// The socket of a connection was full and took bytes again: its peer reads, so it is alive. Bytes
    /// that fit the kernel's buffer at once prove nothing.
    pub fn handle_drained(&mut self, now: Now, key: ConnectionKey) {
        self.turn.now = now;
        if let Some(connection) = self.connections.get(key) {
            connection.heard_ms = now.ms;
        }
    }

    /// The driver is done with a socket it was told to close, or that broke.
    pub fn handle_closed(&mut self, key: ConnectionKey) {
        trail::note(self.turn.trail(key), Entry::Gone);
        self.count_departure(key);
        self.connections.forget_connection(key);
        self.route();
    }

    /// Another shard, the mesh or the node itself says something.
    pub fn handle_message(&mut self, now: Now, from: Party, message: Message) {
        self.turn.now = now;
        self.hand_over(from, message);
        self.route();
    }

    /// Hands over what the parts have left to each other, in order, until nothing is left. Each part
    /// leaves a bounded number of steps for one that it takes.
    pub(super) fn route(&mut self) {
        while let Some(step) = self.turn.poll_step() {
            match step {
                Step::Message(message) => self.hand_over(self.turn.own_party(), message),
                Step::ClientParted(client) => _ = self.clients.remove(&client),
                Step::ClientGone(gone) => self.client_gone(gone),
                Step::ConsumerGone(key, topics) => self.consumer_gone(key, &topics),
                Step::PopAnswered(key, pop) => self.start_consuming(key, pop),
                Step::VerdictLate(key) => self.give_up_verdict(key),
            }
        }
    }

    /// Hands a message to the part that it is for.
    fn hand_over(&mut self, from: Party, message: Message) {
        match message {
            Message::Ask { ticket, from: backend, command } => {
                self.carry_out(Asked { asker: from, ticket, backend }, command);
            }
            Message::Answer(ticket, answer) => self.handle_answer(ticket, answer),
            Message::Topic(topic, message) => {
                if let Party::Shard(from) = from {
                    self.handle_topic_message(from, topic, message);
                }
            }
            Message::InterestKnown(change) => self.handle_interest_known(change),
            Message::NodeUp { node, shards, incarnation } => {
                self.turn.tell(Party::Mesh, Message::NodeSeen(node));
                self.handle_node_up(node, shards, incarnation);
                self.guard_node(node, incarnation);
            }
            Message::NodeDown(node) => {
                self.handle_node_down(node);
                self.miss_guardian(node);
            }
            Message::NodeDead(node, incarnation) => self.handle_node_dead(node, incarnation),
            Message::GivenUp => self.wards.handle_given_up(),
            Message::Wards(owner, message) => {
                if let Party::Shard(from) = from {
                    self.handle_wards(from, owner, message);
                }
            }
            // For the mesh.
            Message::NodeSeen(_) | Message::Interest(..) | Message::Clients(_) => {}
            Message::BackendGone(backend) => self.handle_backend_gone(backend),
            Message::Verdict(fingerprint, user) => {
                self.handle_verdict(from, fingerprint, user);
            }
            Message::FailedTry(address) => self.handle_failed_try(address),
            Message::Arrived(source, key) => self.handle_arrived(from, source, key),
            Message::Admitted(source, key, may) => self.handle_admitted(source, key, may),
            Message::Departed(source) => self.handle_departed(source),
            Message::Drain { over_ms } => self.begin_drain(over_ms),
            Message::DrainBackends => self.begin_drain_of_backends(),
        }
    }

    /// Goes on with what takes more than one turn, within a budget. To be called once a turn.
    pub fn handle_turn(&mut self, now: Now) {
        self.turn.now = now;
        self.fire_timers();
        self.route();
        if self.turns.is_empty() {
            self.tails = None;
        }
        self.budget.begin_turn(!self.turns.is_empty());
        self.resume_paused();
        self.admit_deferred();
        self.leave_channels();
        self.walk_lanes();
        self.route();
        self.move_messages();
        self.drain_slice();
        self.route();
        self.name_wards();
        self.report_lost();
        self.report_found();
        self.route();
    }

    /// When [`Self::handle_turn`] is to be called at the latest, in milliseconds of [`Now::ms`];
    /// `None`: when something happens. A time that is past: at once.
    pub fn poll_timeout(&self) -> Option<u64> {
        if !self.turns.is_empty() || self.turn.work.is_waiting() || self.leaving.is_waiting() {
            return Some(0);
        }
        let times = [
            self.turn.timers.next_deadline(),
            self.topics.next_turn(),
            self.next_drain(),
            self.wards.next_turn(self.turn.now.ms),
            self.access.next_verification(),
            self.next_telling(),
            self.shedding.next_turn(),
        ];
        // Every turn asks: with a number for never, this is a few instructions instead of hundreds.
        const NEVER: u64 = u64::MAX;
        let first = times.into_iter().fold(NEVER, |first, time| first.min(time.unwrap_or(NEVER)));
        (first != NEVER).then_some(first)
    }

    /// The next message for another shard, or the mesh.
    pub fn poll_message(&mut self) -> Option<(Party, Message)> {
        self.tell_interest();
        self.tell_clients();
        self.turn.poll_message()
    }

    /// The next thing to do with a socket.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.turn.actions.pop_front()
    }

    /// Whether there is something to do with a socket: then the next turn is to begin at once.
    pub fn has_actions(&self) -> bool {
        !self.turn.actions.is_empty()
    }

    /// The next connection to write to because a single command meant it, and all that waits for
    /// it.
    pub fn poll_urgent_write(&mut self) -> Option<(ConnectionKey, Batch)> {
        loop {
            let key = self.connections.urgent.pop_front()?;
            if let Some((batch, _)) = self.connections.take_batch(&mut self.turn, key) {
                return Some((key, batch));
            }
        }
    }

    /// The next connection to write to because a fan-out reached it, and all that waits for it. None
    /// too when this turn has had enough of them: see [`Self::has_writes`].
    pub fn poll_bulk_write(&mut self) -> Option<(ConnectionKey, Batch)> {
        while self.budget.may_send(!self.turns.is_empty()) {
            let key = self.connections.bulk.pop_front()?;
            if let Some((batch, bytes)) = self.connections.take_batch(&mut self.turn, key) {
                self.budget.send(bytes);
                return Some((key, batch));
            }
        }
        None
    }

    /// Whether a connection waits to be written to: then the next turn is to begin at once.
    pub fn has_writes(&self) -> bool {
        self.connections.has_writes()
    }

    /// Gives back a batch that was written or is of no use any more.
    pub fn recycle(&mut self, batch: Batch) {
        self.turn.spare.keep(batch);
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether the node goes down.
    pub fn is_draining(&self) -> bool {
        self.turn.is_draining
    }

    /// Whether the node goes down and nothing is left to do here. What is in the topics may go to
    /// consumers on other nodes, though there is no connection here.
    pub fn is_drained(&self) -> bool {
        matches!(self.draining, Some(Drain::Ended)) && self.connections.len() == 0
    }

    /// A turn is over; it took so long, sleep not counted.
    pub fn handle_turn_taken(&mut self, us: u64) {
        self.turns_taken.add(us);
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.turn.counters
    }

    /// For what the runtime counts.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.turn.counters
    }

    /// Panics if what the topics note in several places does not agree. Costs a look at each client
    /// of theirs: for tests.
    pub fn check_invariants(&self) {
        self.topics.check();
    }

    /// Messages that wait in the topics whose home this is, those not yet written included.
    pub fn queued_messages(&self) -> usize {
        self.topics.messages()
    }

    /// Reads what a connection sent, until it is all read, its slice of the turn is spent, or the
    /// connection is paused; gives how many bytes are left.
    fn read(&mut self, key: ConnectionKey, mut input: &mut [u8]) -> usize {
        while !input.is_empty() {
            let Some(connection) = self.connections.get(key) else { return 0 };
            if connection.phase != Phase::Open && !connection.is_parting {
                return 0;
            }
            if connection.paused != 0 || self.turn.work.is_slice_spent() {
                return input.len();
            }
            let before = input.len();
            match &mut connection.stage {
                Stage::Http(_) => self.read_http(key, &mut input),
                Stage::Client(_) => self.read_client(key, &mut input),
                Stage::Backend(_) => self.read_backend(key, &mut input),
                Stage::Leaving(_) | Stage::Ending => return 0,
            }
            self.turn.work.spend(1 + work::of_bytes(before - input.len()));
            self.route();
        }
        0
    }

    /// Reads on in a message that is half inflated, then in what came while the connection was paused.
    fn read_held(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        self.turn.work.begin_slice(connection.is_heavy);
        if connection.is_inflating {
            self.read_client(key, &mut Default::default());
        }
        let Some(connection) = self.connections.get(key) else { return };
        if connection.paused != 0 || connection.is_inflating {
            return;
        }
        let mut held = std::mem::take(&mut connection.held);
        let left = self.read(key, held.unread());
        if let Some(connection) = self.connections.get(key) {
            connection.held = held.keep_last(left);
        }
    }
}

impl Connections {
    /// All that waits for a connection, and how many bytes that is.
    fn take_batch(&mut self, turn: &mut Turn, key: ConnectionKey) -> Option<(Batch, usize)> {
        let now_ms = turn.now.ms;
        let connection = self.get(key)?;
        connection.queued = Queued::No;
        let is_ready = connection.phase != Phase::Closed && connection.outbound.is_ready();
        is_ready.then(|| (connection.outbound.take(now_ms), connection.outbound.buffered()))
    }

    /// Keeps what cannot be read yet.
    fn hold(&mut self, turn: &mut Turn, key: ConnectionKey, input: &[u8]) {
        if input.is_empty() {
            return;
        }
        let Some(connection) = self.get(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.held.push(input);
        self.hear_held(turn, key);
        let Some(connection) = self.get(key) else { return };
        let may_stop = connection.phase == Phase::Open && !connection.is_ended;
        if connection.held.is_full() && !connection.is_stopped && may_stop {
            connection.is_stopped = true;
            turn.actions.push_back(Action::Pause(key));
        }
    }

    fn set_timer(&mut self, turn: &mut Turn, key: ConnectionKey, deadline_ms: u64) {
        if let Some(connection) = self.get(key) {
            let left_ms = connection.expires_unix_ms().saturating_sub(turn.now.unix_ms);
            let message_due_ms = connection.message_due_ms(turn.settings.limits.idle_ms);
            let deadline_ms = deadline_ms
                .min(turn.now.ms.saturating_add(left_ms))
                .min(message_due_ms.unwrap_or(u64::MAX));
            connection.set_timer_tick(turn.timers.set(deadline_ms, Timer::Connection(key)));
        }
    }
}
