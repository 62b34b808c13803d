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
//! - `nodes.rs`: what other nodes are to know, and who is within reach. `wards.rs`: the clients of
//!   those that are lost.
//! - `topics.rs`: feeds topics, is home to some, passes on what consumers get. `deferred.rs`: clients
//!   that wait until fewer events do. `acknowledge.rs`: consumers that acknowledge. `unfed.rs`: those
//!   of topics that nothing feeds.
//! - `access.rs`: who may use the API. `admission.rs`: requests before it. `tries.rs`: who has
//!   guessed too often. `verdicts.rs`: whose credentials are verified next. `recent.rs`: what was
//!   seen of late.
//! - `rate.rs`: so many a second. `addresses.rs`: what one address may do at the edge.
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
pub mod settings;
mod shed_round;
mod subscriptions;
mod timers;
mod topics;
mod trail;
mod tries;
mod unfed;
mod verdicts;
mod wards;
mod work;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::HashMap;

pub use connection::Listener;
pub use memory::{Shortage, Usage};
pub use outbound::{Batch, Chunk, freed_bytes};
pub use shed_round::ShedRound;

use crate::address::{ClientId, IdLayout, IdSource, ShardAddress, ShardId};
use crate::message::{BackendId, ConnectionKey, Message, Party};
use crate::metrics::{Counters, Durations};
use crate::protocol::api;
use crate::protocol::deflate::{Deflater, Inflater};
use crate::protocol::http::{Calendar, Date};
use access::Access;
use addresses::Addresses;
use channels::{ChannelIndex, Channels};
use commands::Asked;
use connection::{Connection, Connections, Pause, Phase, Queued, Stage};
use drain::Drain;
use fanout::{Budget, Lane};
use forms::Tails;
use interest::ShardInterest;
use memory::Shedding;
use node_state::NodeState;
use nodes::Nodes;
use outbound::Spare;
use parting::Parting;
use pending::Pending;
use settings::Settings;
use subscriptions::Leaving;
use timers::{Timer, Timers};
use topics::Topics;
use trail::Entry;
use wards::Wards;
use work::Work;

/// The time, as the runtime tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that never go back.
    pub ms: u64,
    /// The same in microseconds.
    pub us: u64,
    /// Unix milliseconds.
    pub unix_ms: u64,
}

/// What the runtime is to do with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop reading from it.
    Pause(ConnectionKey),
    /// Read from it again.
    Resume(ConnectionKey),
    /// Shut our end; all that was to be written is.
    Shutdown(ConnectionKey),
    /// Close it, then say so with [`Shard::handle_closed`].
    Close(ConnectionKey),
    /// Stop accepting.
    StopAccepting,
}

/// One core's connections, channels and topics.
pub struct Shard {
    address: ShardAddress,
    settings: Arc<Settings>,
    // What all shards of the node share.
    state: Arc<NodeState>,
    layout: IdLayout,
    ids: IdSource,
    now: Now,
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
    timers: Timers,
    lanes: HashMap<BackendId, Lane>,
    // The lanes in the order of their turns.
    turns: VecDeque<BackendId>,
    budget: Budget,
    // Of the publish that ended last, until a turn begins without walks under way.
    tails: Option<(ChannelIndex, Tails)>,
    // Connections with something to write. Those that one command meant go before those that a
    // fan-out reached: a huge channel does not delay a single message.
    urgent: VecDeque<ConnectionKey>,
    bulk: VecDeque<ConnectionKey>,
    work: Work,
    leaving: Leaving,
    actions: VecDeque<Action>,
    outbox: VecDeque<(Party, Message)>,
    spare: Spare,
    parser: api::Parser,
    calendar: Calendar,
    deflater: Deflater,
    inflater: Inflater,
    scratch: Vec<u8>,
    event: Vec<u8>,
    counters: Counters,
    shedding: Shedding,
    turns_taken: Durations,
    calls_taken: Durations,
    // Clients that have ended while what they sent before is still read.
    parting: HashMap<ConnectionKey, Parting>,
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
            address: ShardAddress { node: settings.node, shard: id },
            layout,
            ids: IdSource::new(settings.node, id, layout, first_unix_ms),
            now,
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
            timers: Timers::new(now.ms),
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            budget: Budget::default(),
            tails: None,
            urgent: VecDeque::new(),
            bulk: VecDeque::new(),
            work: Work::default(),
            leaving: Leaving::default(),
            actions: VecDeque::new(),
            outbox: VecDeque::new(),
            spare: Spare::default(),
            parser: api::Parser::default(),
            calendar: Calendar::default(),
            deflater: Deflater::default(),
            inflater: Inflater::default(),
            scratch: Vec::new(),
            event: Vec::new(),
            counters: Counters::default(),
            shedding: Shedding::default(),
            turns_taken: Durations::default(),
            calls_taken: Durations::default(),
            parting: HashMap::new(),
            draining: None,
            settings,
            state,
        }
    }

    /// A socket was accepted. `None` when the node goes down: the caller closes the socket.
    pub fn handle_accepted(
        &mut self,
        now: Now,
        listener: Listener,
        remote: SocketAddr,
    ) -> Option<ConnectionKey> {
        self.now = now;
        if self.draining.is_some() {
            return None;
        }
        self.counters.connections += 1;
        let mut connection = Connection::new(remote, listener, (now.ms, now.unix_ms));
        connection.set_outbound_max(self.settings.limits.outbound_bytes);
        let key = self.connections.insert(connection);
        trail::note(self.trail(key), Entry::Accepted(remote, listener));
        self.set_timer(key, now.ms + self.settings.limits.handshake_ms);
        self.count_arrival(key);
        if listener == Listener::Api {
            self.forget_known_callers();
            self.strangers.push_back(key);
        }
        Some(key)
    }

    /// Bytes were received. They are overwritten: masks are undone and JSON is parsed in place.
    pub fn handle_bytes(&mut self, now: Now, key: ConnectionKey, input: &mut [u8]) {
        self.now = now;
        let Some(connection) = self.connections.get(key) else { return };
        self.counters.received_bytes += input.len() as u64;
        connection.heard_ms = now.ms;
        connection.is_pinged = false;
        if connection.paused != 0 || connection.is_resuming || !connection.held.is_empty() {
            return self.hold(key, input);
        }
        if connection.is_heavy || !self.work.takes(input.len()) {
            self.hold(key, input);
            return self.read_later(key);
        }
        self.work.begin_slice(false);
        let left = self.read(key, input);
        self.hold(key, &input[input.len() - left..]);
        if self.work.is_slice_spent() {
            self.note_slice(key);
        }
    }

    /// The peer sends nothing more: it shut its end, or the connection broke.
    pub fn handle_end(&mut self, now: Now, key: ConnectionKey, is_broken: bool) {
        self.now = now;
        let Some(connection) = self.connections.get(key) else { return };
        connection.is_ended = true;
        connection.is_broken |= is_broken;
        if connection.is_parting {
            return self.end_parting_socket(key);
        }
        if self.end_held(key) {
            return;
        }
        let Some(connection) = self.connections.get(key) else { return };
        let waits_for_its_turn = connection.paused == 0 && connection.has_input();
        if is_broken && connection.paused != Pause::Topic as u8 && !waits_for_its_turn {
            self.break_off(key);
        } else if connection.is_paused_for(Pause::Hold)
            || (connection.paused == 0 && !connection.has_input())
        {
            self.end(key);
        }
        // Otherwise what it sent before counts first: the end comes when that is read.
    }

    /// The work on what a connection sent panicked: it ends, and the shard lives on.
    pub fn handle_panic(&mut self, now: Now, key: ConnectionKey) {
        self.counters.panics += 1;
        self.handle_end(now, key, true);
        self.break_off(key);
    }

    /// So many bytes of the batch in flight are written; `is_done` when that was all of it.
    pub fn handle_written(&mut self, now: Now, key: ConnectionKey, bytes: usize, is_done: bool) {
        self.now = now;
        let Some(connection) = self.connections.get(key) else { return };
        self.counters.sent_bytes += bytes as u64;
        connection.outbound.written(bytes);
        if connection.backend().is_some() {
            self.count_written_events(key, bytes as u64);
        }
        if is_done {
            self.after_batch(key);
        }
    }

    /// The socket of a connection was full and took bytes again: its peer reads, so it is alive. Bytes
    /// that fit the kernel's buffer at once prove nothing.
    pub fn handle_drained(&mut self, now: Now, key: ConnectionKey) {
        self.now = now;
        if let Some(connection) = self.connections.get(key) {
            connection.heard_ms = now.ms;
        }
    }

    /// The driver is done with a socket it was told to close, or that broke.
    pub fn handle_closed(&mut self, key: ConnectionKey) {
        trail::note(self.trail(key), Entry::Gone);
        self.count_departure(key);
        self.forget_connection(key);
    }

    /// Another shard, the mesh or the node itself says something.
    pub fn handle_message(&mut self, now: Now, from: Party, message: Message) {
        self.now = now;
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
                self.outbox.push_back((Party::Mesh, Message::NodeSeen(node)));
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
        self.now = now;
        self.fire_timers();
        if self.turns.is_empty() {
            self.tails = None;
        }
        self.budget.begin_turn(!self.turns.is_empty());
        self.resume_paused();
        self.admit_deferred();
        self.leave_channels();
        self.walk_lanes();
        self.move_messages();
        self.drain_slice();
        self.name_wards();
        self.report_lost();
        self.report_found();
    }

    /// When [`Self::handle_turn`] is to be called at the latest, in milliseconds of [`Now::ms`];
    /// `None`: when something happens. A time that is past: at once.
    pub fn poll_timeout(&self) -> Option<u64> {
        if !self.turns.is_empty() || self.work.is_waiting() || self.leaving.is_waiting() {
            return Some(0);
        }
        let times = [
            self.timers.next_deadline(),
            self.topics.next_turn(),
            self.next_drain(),
            self.wards.next_turn(self.now.ms),
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
        self.outbox.pop_front()
    }

    /// The next thing to do with a socket.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether there is something to do with a socket: then the next turn is to begin at once.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// The next connection to write to because a single command meant it, and all that waits for
    /// it.
    pub fn poll_urgent_write(&mut self) -> Option<(ConnectionKey, Batch)> {
        loop {
            let key = self.urgent.pop_front()?;
            if let Some((batch, _)) = self.take_batch(key) {
                return Some((key, batch));
            }
        }
    }

    /// The next connection to write to because a fan-out reached it, and all that waits for it. None
    /// too when this turn has had enough of them: see [`Self::has_writes`].
    pub fn poll_bulk_write(&mut self) -> Option<(ConnectionKey, Batch)> {
        while self.budget.may_send(!self.turns.is_empty()) {
            let key = self.bulk.pop_front()?;
            if let Some((batch, bytes)) = self.take_batch(key) {
                self.budget.send(bytes);
                return Some((key, batch));
            }
        }
        None
    }

    /// All that waits for a connection, and how many bytes that is.
    fn take_batch(&mut self, key: ConnectionKey) -> Option<(Batch, usize)> {
        let now_ms = self.now.ms;
        let connection = self.connections.get(key)?;
        connection.queued = Queued::No;
        let is_ready = connection.phase != Phase::Closed && connection.outbound.is_ready();
        is_ready.then(|| (connection.outbound.take(now_ms), connection.outbound.buffered()))
    }

    /// Whether a connection waits to be written to: then the next turn is to begin at once.
    pub fn has_writes(&self) -> bool {
        !self.urgent.is_empty() || !self.bulk.is_empty()
    }

    /// Gives back a batch that was written or is of no use any more.
    pub fn recycle(&mut self, batch: Batch) {
        self.spare.keep(batch);
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether the node goes down.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
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
        self.counters
    }

    /// For what the runtime counts.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
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
            if connection.paused != 0 || self.work.is_slice_spent() {
                return input.len();
            }
            let before = input.len();
            match &mut connection.stage {
                Stage::Http(_) => self.read_http(key, &mut input),
                Stage::Client(_) => self.read_client(key, &mut input),
                Stage::Backend(_) => self.read_backend(key, &mut input),
                Stage::Leaving(_) | Stage::Ending => return 0,
            }
            self.work.spend(1 + work::of_bytes(before - input.len()));
        }
        0
    }

    /// Reads on in a message that is half inflated, then in what came while the connection was paused.
    fn read_held(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        self.work.begin_slice(connection.is_heavy);
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

    /// Keeps what cannot be read yet.
    fn hold(&mut self, key: ConnectionKey, input: &[u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        if input.is_empty() || connection.phase != Phase::Open {
            return;
        }
        connection.held.push(input);
        self.hear_held(key);
        let Some(connection) = self.connections.get(key) else { return };
        let may_stop = connection.phase == Phase::Open && !connection.is_ended;
        if connection.held.is_full() && !connection.is_stopped && may_stop {
            connection.is_stopped = true;
            self.actions.push_back(Action::Pause(key));
        }
    }

    /// The date of a response that is written now.
    fn date(&mut self) -> Date {
        self.calendar.date(self.now.unix_ms)
    }

    fn set_timer(&mut self, key: ConnectionKey, deadline_ms: u64) {
        if let Some(connection) = self.connections.get(key) {
            let left_ms = connection.expires_unix_ms().saturating_sub(self.now.unix_ms);
            let message_due_ms = connection.message_due_ms(self.settings.limits.idle_ms);
            let deadline_ms = deadline_ms
                .min(self.now.ms.saturating_add(left_ms))
                .min(message_due_ms.unwrap_or(u64::MAX));
            connection.set_timer_tick(self.timers.set(deadline_ms, Timer::Connection(key)));
        }
    }
}
