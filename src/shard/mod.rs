//! All state of one core. Pure: bytes, messages and the time go in ([`Shard`]`::handle_*`), and what
//! is to be written, sent and done comes out (`poll_*`).
//!
//! # Parts
//!
//! [`Shard`] owns parts and routes between them. A part has private state and borrows the [`Turn`](turn):
//! the time, the settings, what is counted, what leaves the shard, and the steps that parts leave to each
//! other. No part names another: what one causes for another is a step, or goes through `Shard`.
//!
//! | part | what it knows |
//! |---|---|
//! | `connection` | sockets: what they speak, what they sent and what waits for them. All other parts borrow it |
//! | `access` | who may use the API, and how many connections an address may have |
//! | `client` | clients: handshakes, messages, channels, fan-out |
//! | `backend` | back ends: requests, calls that wait for answers, events on their way |
//! | `topics` | topics that this shard feeds, and those that live here |
//! | `wards` | the clients of other nodes, whose end this shard reports if their node is lost |
//! | `memory` | what gives way when the node is short of memory |
//! | `drain` | how the shard goes down |
//!
//! `requests.rs` and `calls.rs` are the routing of `Shard` itself, for HTTP and for calls. Beside the parts
//! stand what they share: `settings.rs` and `node_state.rs`, `roster.rs` (the nodes within reach),
//! `timers.rs`, `work.rs` (how much of a turn input may take), `rate.rs`, `interest.rs` (which shards have
//! subscribers), `trail.rs` (debug lines).

pub mod access;
mod backend;
mod calls;
mod client;
mod connection;
mod drain;
mod inspection;
pub mod interest;
mod memory;
pub mod node_state;
pub mod rate;
mod requests;
mod roster;
pub mod settings;
mod shed_round;
mod timers;
mod topics;
mod trail;
mod turn;
mod wards;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use connection::{Batch, Chunk, Listener, Priority, Reading, freed_bytes};
pub use inspection::{DrainState, Inspection};
pub use memory::{Shortage, Usage};
pub use shed_round::ShedRound;
pub use turn::{Action, Now};

use crate::address::{IdLayout, IdSource, ShardId};
use crate::message::{ConnectionKey, Message, Party, TopicMessage};
use crate::metrics::{Counters, Durations, ProcessReport, Report};
use crate::protocol::api;
use access::{Addresses, Doors, Verification};
use backend::{Backends, Caller};
use client::Clients;
use connection::{Connections, Pause, Phase, Shape, Stage, Written};
use drain::Draining;
use memory::{Node, Shedding};
use node_state::NodeState;
use settings::Settings;
use timers::{TIMERS_PER_TURN, Timer};
use topics::Topics;
use trail::Entry;
use turn::{Step, Turn};
use wards::Wards;

/// One core's connections, channels and topics.
pub struct Shard {
    turn: Turn,
    connections: Connections,
    doors: Doors,
    addresses: Addresses,
    clients: Clients,
    backends: Backends,
    topics: Topics,
    wards: Wards,
    shedding: Shedding,
    draining: Draining,
    turns_taken: Durations,
}

impl Shard {
    /// Creates a shard without connections. `state` is the one of all shards of the node.
    ///
    /// # Panics
    /// `state` was made for other settings.
    pub fn new(id: ShardId, settings: &Settings, state: Arc<NodeState>, now: Now) -> Self {
        let settings = Arc::new(settings.unshared());
        assert_eq!(state.interest.count(), settings.shards, "the state is that of the node");
        assert_eq!(state.quotas.len(), settings.api.users.len(), "the state is that of the node");
        let by_clock = now.unix_ms.saturating_sub(now.ms);
        let first_unix_ms = settings.process.first_unix_ms.unwrap_or(by_clock);
        let layout = IdLayout::new(settings.shards);
        let ids = IdSource::new(settings.node, id, layout, first_unix_ms);
        let turn = Turn::new(id, &settings, state, now);
        Self {
            connections: Connections::default(),
            doors: Doors::new(&settings),
            addresses: Addresses::default(),
            clients: Clients::new(&turn, ids),
            backends: Backends::new(first_unix_ms),
            topics: Topics::new(id, &settings),
            wards: Wards::default(),
            shedding: Shedding::default(),
            draining: Draining::default(),
            turns_taken: Durations::default(),
            turn,
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
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let key = connections.accept(turn, listener, remote);
        match listener {
            Listener::Api => self.doors.handle_arrival(connections, key),
            Listener::Edge(_) => self.addresses.count_arrival(turn, connections, key),
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
            self.connections.push_read_ahead(&mut self.turn, key, &input[input.len() - left..]);
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
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        match connections.handle_written(turn, key, bytes) {
            Written::Usual => return,
            Written::Events => self.backends.handle_written(turn, connections, key),
            Written::Awaited => {}
        }
        if is_done {
            connections.after_batch(turn, key);
        }
        self.route();
    }

    /// The socket of a connection was full and took bytes again: its peer reads, so it is alive. Bytes
    /// that fit the kernel's buffer at once prove nothing.
    pub fn handle_drained(&mut self, now: Now, key: ConnectionKey) {
        self.turn.now = now;
        if let Some(connection) = self.connections.get(key) {
            connection.last_received_ms = now.ms;
        }
    }

    /// The driver is done with a socket it was told to close, or that broke.
    pub fn handle_closed(&mut self, key: ConnectionKey) {
        trail::note(self.turn.trail(key), Entry::Gone);
        self.addresses.count_departure(&mut self.turn, &mut self.connections, key);
        self.connections.forget_connection(key);
        self.route();
    }

    /// Another shard, the mesh or the node itself says something.
    pub fn handle_message(&mut self, now: Now, from: Party, message: Message) {
        self.turn.now = now;
        self.dispatch(from, message);
        self.route();
    }

    /// What the node holds now. To be told once a turn, before [`Self::handle_turn`]; a shard that never
    /// is has no budget. If the node is short, closes connections: a slice of the work per turn, until all
    /// shards together have shed the excess in this round.
    ///
    /// `blocked_bytes` tells of a connection whose socket is full what closing it would free of the batch
    /// that the driver has of it. `None`: the socket is not full.
    pub fn handle_memory(
        &mut self,
        now: Now,
        usage: Usage,
        round: &ShedRound,
        blocked_bytes: impl Fn(ConnectionKey) -> Option<usize>,
    ) {
        self.turn.now = now;
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let was_holding = turn.is_short(Shortage::Holders);
        turn.shortage = usage.shortage;
        if was_holding && !turn.is_short(Shortage::Holders) {
            self.topics.feed_again(turn, connections);
        }
        let node = Node { round, blocked_bytes: &blocked_bytes };
        self.shedding.handle_usage(turn, connections, usage, &node);
        self.route();
    }

    /// Goes on with what takes more than one turn, within a budget. To be called once a turn.
    pub fn handle_turn(&mut self, now: Now) {
        self.turn.now = now;
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let mut left = TIMERS_PER_TURN;
        while left > 0
            && let Some((tick, timer)) = turn.timers.pop_due(turn.now.ms)
        {
            match timer {
                // There are as many as calls, and nearly all were answered in time: passing over
                // those costs next to nothing.
                Timer::Ticket(ticket) if !self.backends.expire(turn, connections, ticket) => {
                    continue;
                }
                Timer::Ticket(_) => {}
                Timer::Connection(key) => connections.check_connection(turn, key, tick),
                Timer::Rate(key) => connections.unpause(turn, key, Pause::Rate),
            }
            left -= 1;
        }
        self.topics.handle_timeout(turn);
        self.route();
        self.clients.begin_turn();
        self.read_waiting();
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        self.clients.continue_unsubscribing(connections);
        self.clients.continue_publishes(turn, connections);
        self.route();
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        self.topics.handle_turn(turn);
        self.draining.handle_turn(turn, connections);
        if self.wards.has_work() {
            self.wards.handle_turn(turn, connections);
            while let Some(report) =
                self.wards.poll_report(turn, connections, |topic| self.topics.takes_reports(topic))
            {
                self.topics.ensure_feeder(&turn.settings, &report.topic);
                self.topics.feed(turn, connections, report);
            }
        }
        self.route();
    }

    /// When [`Self::handle_turn`] is to be called at the latest, in milliseconds of [`Now::ms`];
    /// `None`: when something happens. A time that is past: at once.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.turn.work.is_waiting() || self.clients.is_waiting() {
            return Some(0);
        }
        let times = [
            self.turn.timers.next_deadline(),
            self.topics.next_turn(),
            self.draining.next_turn(self.turn.now.ms),
            self.wards.next_turn(self.turn.now.ms),
            self.doors.next_verification(),
            self.clients.next_announcement(&self.turn),
            self.shedding.next_turn(),
        ];
        // Every turn asks: with a number for never, this is a few instructions instead of hundreds.
        const NEVER: u64 = u64::MAX;
        let first = times.into_iter().fold(NEVER, |first, time| first.min(time.unwrap_or(NEVER)));
        (first != NEVER).then_some(first)
    }

    /// The next message for another shard, or the mesh.
    pub fn poll_message(&mut self) -> Option<(Party, Message)> {
        self.clients.announce(&mut self.turn);
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

    /// The next connection of this priority to write to, and all that waits for it. None too when this turn has
    /// had enough of those that a fan-out reached: see [`Self::has_writes`].
    pub fn poll_write(&mut self, priority: Priority) -> Option<(ConnectionKey, Batch)> {
        match priority {
            Priority::Urgent => self.connections.poll_urgent(&self.turn),
            Priority::Bulk if !self.clients.may_send() => None,
            Priority::Bulk => {
                let (key, batch, bytes) = self.connections.poll_bulk(&self.turn)?;
                self.clients.note_sent(bytes);
                Some((key, batch))
            }
        }
    }

    /// Whether a connection waits to be written to: then the next turn is to begin at once.
    pub fn has_writes(&self) -> bool {
        self.connections.has_writes()
    }

    /// Gives back a batch that was written or is of no use any more.
    pub fn recycle(&mut self, batch: Batch) {
        self.turn.buffer_pool.keep(batch);
    }

    /// The next comparison with hashes that somebody is to make elsewhere, and whose
    /// [`Verification::run`] is to come back as a message.
    pub fn poll_verification(&mut self) -> Option<Verification> {
        self.doors.poll_verification(&self.turn)
    }

    /// Closes the connection of the API that has been there longest without showing who it is; false if
    /// there is none. So strangers keep nobody out who has credentials.
    pub fn evict_unauthenticated(&mut self) -> bool {
        self.doors.evict_unauthenticated(&mut self.turn, &mut self.connections)
    }

    /// Whether a connection that was just accepted is to be received from; if not, an action says
    /// when.
    pub fn is_receiving(&mut self, key: ConnectionKey) -> bool {
        self.connections.get(key).is_some_and(|connection| !connection.is_receive_stopped)
    }

    /// How far the shard is in going down.
    pub fn drain_state(&self) -> DrainState {
        let has_told_clients = self.draining.has_told_clients() && self.clients.len() == 0;
        DrainState {
            is_draining: self.turn.is_draining,
            is_quiet: has_told_clients
                && !self.connections.has_pending_closes()
                && !self.topics.has_work(),
            is_drained: self.draining.has_ended() && self.connections.len() == 0,
        }
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

    /// What tests, and the summary of a node's life, look at.
    pub fn inspect(&self) -> Inspection<'_> {
        let shortage = self.turn.shortage;
        Inspection { connections: &self.connections, topics: &self.topics, shortage }
    }

    /// The state of the shard, for `/metrics`. Costs a look at each topic.
    pub fn report(&self) -> Report {
        let usage = self.shedding.usage();
        let is_first = self.turn.address.shard.0 == 0;
        Report {
            shard: self.turn.address.shard.0,
            counters: self.turn.counters,
            connections: self.connections.len() as u64,
            clients: self.clients.len() as u64,
            channels: self.clients.channels() as u64,
            pending_calls: self.backends.pending_calls() as u64,
            unfinished_fanouts: self.clients.pending_publishes() as u64,
            addresses: self.addresses.len() as u64,
            topics: self.topics.reports(self.turn.now.us),
            turns: self.turns_taken,
            calls: self.backends.calls_taken(),
            events: self.topics.waits(),
            process: is_first.then(|| ProcessReport {
                log_lines_dropped: self.turn.state.log_lines_dropped.load(Ordering::Relaxed),
                memory_bytes: usage.bytes,
                memory_limit_bytes: usage.limit_bytes,
            }),
        }
    }

    /// Hands over what the parts have left to each other, in order, until nothing is left. A part leaves a
    /// bounded number of steps for one that it takes.
    #[inline]
    fn route(&mut self) {
        // Most frames leave nothing.
        if self.turn.has_steps() {
            self.hand_over_steps();
        }
    }

    #[inline(never)]
    fn hand_over_steps(&mut self) {
        while let Some(step) = self.turn.poll_step() {
            let (turn, connections) = (&mut self.turn, &mut self.connections);
            match step {
                Step::Message(message) => {
                    let own = turn.own_party();
                    self.dispatch(own, message);
                }
                Step::Event(fed) => self.topics.feed(turn, connections, fed),
                Step::ClientOpened(key) => self.wards.name_ward(turn, connections, key),
                Step::ClientDisconnected(client) => self.clients.handle_disconnected(client),
                Step::ClientGone(gone) => {
                    if let Some((topic, ended)) = self.clients.handle_gone(turn, connections, gone)
                    {
                        self.wards.keep_ward(turn, &topic, ended.client);
                        self.topics.feed_last(turn, connections, &topic, ended);
                    }
                }
                Step::ConsumerGone(key, topics) => self.backends.handle_gone(turn, key, &topics),
                Step::PopAnswered(key, pop) => {
                    self.backends.start_consuming(turn, connections, key, pop);
                }
                Step::Execute(requester, command) => self.execute_command(requester, command),
                Step::VerdictTimedOut(key) => self.doors.give_up_verdict(turn, connections, key),
                Step::Admitted(key, admitted) => self.answer_parked(key, admitted),
            }
        }
    }

    /// Hands a message to the part that it is for.
    fn dispatch(&mut self, from: Party, message: Message) {
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        match message {
            Message::Ask { ticket, from: backend, command } => {
                self.execute_command(turn::Requester { party: from, ticket, backend }, command);
            }
            Message::Answer(ticket, answer) => {
                self.backends.handle_answer(turn, connections, ticket, answer);
            }
            Message::Topic(topic, message) => {
                let Party::Shard(from) = from else { return };
                match message {
                    TopicMessage::Deliver(to, delivery) => {
                        let (key, source) = (to.connection, (from.node, topic));
                        self.backends.deliver(turn, connections, key, source, delivery);
                    }
                    TopicMessage::Expel(backend) => {
                        connections.close_slow(turn, backend.connection);
                    }
                    // Only topics of this node watch clients of it.
                    TopicMessage::Left(client) if from.node == turn.address.node => {
                        self.wards.unname_ward(turn, &topic, client);
                    }
                    message => self.topics.handle(turn, connections, from, &topic, message),
                }
            }
            Message::InterestKnown(change) => {
                self.clients.handle_interest_known(turn, connections, change);
            }
            Message::NodeUp { node, shards, incarnation } => {
                turn.send(Party::Mesh, Message::NodeSeen(node));
                turn.roster.add(node, shards, incarnation);
                self.backends.handle_node_up(turn, connections, node);
                self.wards.guard_node(turn, node, incarnation);
            }
            Message::NodeDown(node) => {
                turn.roster.remove(node);
                self.backends.handle_node_down(connections, node);
                self.topics.handle_node_down(turn, node);
                self.wards.miss_guardian(turn, node);
            }
            Message::NodeDead(node, incarnation) => {
                self.wards.handle_node_dead(turn, node, incarnation);
            }
            Message::GivenUp => self.wards.handle_given_up(),
            Message::Wards(owner, message) => {
                if let Party::Shard(from) = from {
                    self.wards.handle_wards(turn, from, owner, message);
                }
            }
            // For the mesh.
            Message::NodeSeen(_) | Message::Interest(..) | Message::Clients(_) => {}
            Message::BackendGone(backend) => {
                self.clients.handle_backend_gone(turn, backend);
                self.topics.handle_backend_gone(turn, backend);
            }
            Message::Verdict(fingerprint, user) => {
                self.doors.handle_verdict(turn, connections, from, fingerprint, user);
            }
            Message::FailedTry(address) => self.doors.handle_failed_try(turn, address),
            Message::Arrived(source, key) => self.addresses.handle_arrived(turn, from, source, key),
            Message::Admitted(source, key, may) => {
                self.addresses.handle_admitted(turn, connections, source, key, may);
            }
            Message::Departed(source) => self.addresses.handle_departed(turn, source),
            Message::Drain { over_ms } => self.draining.begin(turn, connections, over_ms),
            Message::DrainBackends => self.draining.begin_with_backends(),
        }
    }

    /// Reads on where pauses are over, where slices were spent, and where a topic has room again, within
    /// the budgets of a turn.
    fn read_waiting(&mut self) {
        self.turn.work.begin_round();
        while let Some(key) = self.turn.work.poll_waiting() {
            if self.connections.is_to_resume(key) {
                self.resume(key);
            }
        }
        if self.topics.begin_round() {
            while let Some(key) = self.topics.poll_admitted(&mut self.turn, &mut self.connections) {
                self.resume(key);
            }
        }
        self.route();
    }

    /// Reads on in a message that is half inflated, then in what came while the connection was paused.
    fn resume(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        self.turn.work.begin_slice(connection.is_heavy);
        if connection.is_inflating {
            let (turn, connections) = (&mut self.turn, &mut self.connections);
            self.clients.read(turn, connections, key, &mut Default::default());
            self.route();
        }
        if let Some(mut held) = self.connections.take_read_ahead(key) {
            let left = self.read(key, held.unread());
            self.connections.put_back_read_ahead(key, held.keep_last(left));
        }
        self.connections.after_reading(&mut self.turn, key);
        self.route();
    }

    /// Reads what a connection sent, until it is all read, its slice of the turn is spent, or the
    /// connection is paused; gives how many bytes are left.
    fn read(&mut self, key: ConnectionKey, mut input: &mut [u8]) -> usize {
        while !input.is_empty() {
            let (turn, connections) = (&mut self.turn, &mut self.connections);
            let Some(connection) = connections.get(key) else { return 0 };
            if connection.phase != Phase::Open && !connection.has_pending_close {
                return 0;
            }
            if connection.paused != 0 || turn.work.is_slice_spent() {
                return input.len();
            }
            let before = input.len();
            match &connection.stage {
                Stage::Http(_) => self.read_http(key, &mut input),
                Stage::Client(_) => {
                    let topic = self.topics.defers(connection, &turn.settings, key, input);
                    match topic {
                        Some(topic) => self.topics.defer(turn, connections, key, &topic),
                        None => self.clients.read(turn, connections, key, &mut input),
                    }
                }
                Stage::Backend(_) => {
                    if let Some(mut payload) =
                        self.backends.read(turn, connections, key, &mut input)
                    {
                        // The parser is lent while what it read is carried out: the call borrows from it.
                        let mut parser = self.backends.lend_parser();
                        let api::Request { id, call } = parser.request(&mut payload);
                        let call = self.backends.admit_call(turn, connections, key, call);
                        self.call(Caller { key, shape: Shape::Message(id.into()) }, call);
                        self.backends.return_parser(parser);
                    }
                    self.connections.pause_if_unread(&mut self.turn, key);
                }
                Stage::Unsubscribing(_) | Stage::Ending => return 0,
            }
            self.turn.work.spend(1 + work::of_bytes(before - input.len()));
            self.route();
        }
        0
    }
}
