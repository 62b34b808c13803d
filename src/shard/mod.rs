//! All state of one core. Pure: bytes, messages and the time go in ([`Shard`]`::handle_*`), and what
//! is to be written, sent and done comes out (`poll_*`).
//!
//! - `connection.rs`: one socket, and the table of them. `outbound.rs`: what waits to be written.
//! - `edge.rs`: clients. `requests.rs`: the API over HTTP. `backend.rs`: the API over WebSocket.
//! - `commands.rs`: carries out what back ends ask for. `fanout.rs`: walks through a channel.
//! - `pending.rs`, `replies.rs`: answers of other shards, and the order of answers.
//! - `topics.rs`: feeds topics, is home to some, passes on what consumers get.
//! - `lifecycle.rs`: how connections begin and end. `timers.rs`: what happens later.

mod backend;
mod channels;
mod commands;
mod connection;
mod context;
mod edge;
mod fanout;
mod lifecycle;
mod outbound;
mod pending;
mod replies;
mod requests;
pub mod settings;
mod timers;
mod topics;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::HashMap;

pub use connection::Listener;
pub use outbound::{Batch, Chunk};

use crate::address::{ClientId, IdLayout, IdSource, ShardId};
use crate::message::{BackendId, ConnectionKey, Message};
use crate::metrics::{Counters, Turns};
use crate::protocol::api;
use channels::Channels;
use connection::{Connection, Connections, Pause, Phase, Stage};
use fanout::Lane;
use pending::Pending;
use settings::Settings;
use timers::{Timer, Timers};
use topics::Topics;

/// The time, as the runtime tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that never go back.
    pub ms: u64,
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
    id: ShardId,
    settings: Arc<Settings>,
    layout: IdLayout,
    ids: IdSource,
    now: Now,
    connections: Connections,
    clients: HashMap<ClientId, ConnectionKey>,
    channels: Channels,
    topics: Topics,
    pending: Pending,
    timers: Timers,
    lanes: HashMap<BackendId, Lane>,
    // The lanes in the order of their turns.
    turns: VecDeque<BackendId>,
    // Connections with something to write. Those that one command meant go before those that a
    // fan-out reached: a huge channel does not delay a single message.
    urgent: VecDeque<ConnectionKey>,
    bulk: VecDeque<ConnectionKey>,
    resuming: VecDeque<ConnectionKey>,
    actions: VecDeque<Action>,
    outbox: VecDeque<(ShardId, Message)>,
    batches: Vec<Batch>,
    parser: Box<api::Parser>,
    scratch: Vec<u8>,
    event: Vec<u8>,
    counters: Counters,
    turns_taken: Turns,
    // The place from which connections are still to be closed, while the node goes down.
    draining: Option<Drain>,
}

#[derive(Clone, Copy, Debug)]
struct Drain {
    next: Option<u32>,
}

/// Empty batches kept for the next sends; more are given back to the allocator.
const BATCHES_MAX: usize = 4096;

/// Connections closed per turn while the node goes down.
const DRAIN_SLICE: usize = 256;

impl Shard {
    /// A shard without connections.
    pub fn new(id: ShardId, settings: Arc<Settings>, now: Now) -> Self {
        let layout = IdLayout::new(settings.shards);
        Self {
            id,
            layout,
            ids: IdSource::new(settings.node, id, layout, now.unix_ms),
            now,
            connections: Connections::default(),
            clients: HashMap::new(),
            channels: Channels::default(),
            topics: Topics::new(id, &settings),
            pending: Pending::default(),
            timers: Timers::new(now.ms),
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            urgent: VecDeque::new(),
            bulk: VecDeque::new(),
            resuming: VecDeque::new(),
            actions: VecDeque::new(),
            outbox: VecDeque::new(),
            batches: Vec::new(),
            parser: Box::default(),
            scratch: Vec::new(),
            event: Vec::new(),
            counters: Counters::default(),
            turns_taken: Turns::default(),
            draining: None,
            settings,
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
        let connection = Connection::new(remote, listener, now.ms, now.unix_ms);
        let key = self.connections.insert(connection);
        self.set_timer(key, now.ms + self.settings.limits.handshake_ms);
        Some(key)
    }

    /// Bytes were received. They are overwritten: masks are undone and JSON is parsed in place.
    pub fn handle_bytes(&mut self, now: Now, key: ConnectionKey, input: &mut [u8]) {
        self.now = now;
        let Some(connection) = self.connections.get(key) else { return };
        self.counters.received_bytes += input.len() as u64;
        connection.heard_ms = now.ms;
        connection.is_pinged = false;
        if connection.paused != 0 || !connection.held.is_empty() {
            connection.held.extend_from_slice(input);
            return;
        }
        self.read(key, input);
    }

    /// The peer sends nothing more: it shut its end, or the connection broke.
    pub fn handle_end(&mut self, now: Now, key: ConnectionKey, is_broken: bool) {
        self.now = now;
        let Some(connection) = self.connections.get(key) else { return };
        connection.is_ended = true;
        let waits_only_for = |reason: Pause| connection.paused == reason as u8;
        if is_broken && !waits_only_for(Pause::Topic) {
            self.break_off(key);
        } else if connection.paused & Pause::Hold as u8 != 0
            || (connection.paused == 0 && connection.held.is_empty())
        {
            self.end(key);
        }
        // Otherwise what it sent before counts first: the end comes when that is read.
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

    /// The driver is done with a socket it was told to close, or that broke.
    pub fn handle_closed(&mut self, key: ConnectionKey) {
        self.connections.remove(key);
    }

    /// Another shard says something.
    pub fn handle_message(&mut self, now: Now, from: ShardId, message: Message) {
        self.now = now;
        match message {
            Message::Ask { ticket, from, command } => self.carry_out(from, ticket, command),
            Message::Answer(ticket, answer) => self.handle_answer(ticket, answer),
            Message::Topic(topic, message) => self.handle_topic_message(from, topic, message),
            Message::BackendGone(backend) => self.handle_backend_gone(backend),
            Message::Drain => self.begin_drain(),
        }
    }

    /// Goes on with what takes more than one turn, within a budget. To be called once a turn.
    pub fn handle_turn(&mut self, now: Now) {
        self.now = now;
        self.fire_timers();
        self.resume_paused();
        self.walk_lanes();
        self.drain_slice();
    }

    /// When [`Self::handle_turn`] is to be called at the latest, in milliseconds of [`Now::ms`];
    /// `None`: when something happens. A time that is past: at once.
    pub fn poll_timeout(&self) -> Option<u64> {
        if !self.turns.is_empty() || !self.resuming.is_empty() || self.is_closing_more() {
            return Some(0);
        }
        [self.timers.next_deadline(), self.topics.poll_timeout()].into_iter().flatten().min()
    }

    /// The next message for another shard.
    pub fn poll_message(&mut self) -> Option<(ShardId, Message)> {
        self.outbox.pop_front()
    }

    /// The next thing to do with a socket.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next connection to write to, and all that waits for it; those that a single command
    /// meant first. With `urgent_only` no others.
    pub fn poll_write(&mut self, urgent_only: bool) -> Option<(ConnectionKey, Batch)> {
        loop {
            let key = match self.urgent.pop_front() {
                Some(key) => key,
                None if urgent_only => return None,
                None => self.bulk.pop_front()?,
            };
            let Some(connection) = self.connections.get(key) else { continue };
            connection.is_queued = false;
            if connection.phase != Phase::Closed && connection.outbound.is_ready() {
                let batch = connection.outbound.take(self.batches.pop().unwrap_or_default());
                return Some((key, batch));
            }
        }
    }

    /// Whether a connection waits to be written to.
    pub fn has_writes(&self) -> bool {
        !self.urgent.is_empty() || !self.bulk.is_empty()
    }

    /// Gives back a batch that was written or is of no use any more.
    pub fn recycle(&mut self, mut batch: Batch) {
        batch.clear();
        if self.batches.len() < BATCHES_MAX && batch.capacity() <= 64 {
            self.batches.push(batch);
        }
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether the node goes down and nothing is left to do here.
    pub fn is_drained(&self) -> bool {
        self.draining.is_some() && self.connections.len() == 0
    }

    /// A turn is over; it took so long, sleep not counted.
    pub fn handle_turn_taken(&mut self, us: u64) {
        self.turns_taken.add(us);
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Messages that wait in the topics whose home this is, those not yet written included.
    pub fn queued_messages(&self) -> usize {
        self.topics.messages()
    }

    /// Reads what a connection sent, until it is all read or the connection is paused.
    fn read(&mut self, key: ConnectionKey, mut input: &mut [u8]) {
        while !input.is_empty() {
            let Some(connection) = self.connections.get(key) else { return };
            if connection.phase != Phase::Open {
                return;
            }
            if connection.paused != 0 {
                connection.held.extend_from_slice(input);
                return;
            }
            match &mut connection.stage {
                Stage::Http(_) => self.read_http(key, &mut input),
                Stage::Client(_) => self.read_client(key, &mut input),
                Stage::Backend(_) => self.read_backend(key, &mut input),
                Stage::Ending => return,
            }
        }
    }

    /// Reads on in what came while the connection was paused.
    fn read_held(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        let mut held = std::mem::take(&mut connection.held);
        self.read(key, &mut held);
    }

    fn set_timer(&mut self, key: ConnectionKey, deadline_ms: u64) {
        if let Some(connection) = self.connections.get(key) {
            connection.timer_tick = self.timers.set(deadline_ms, Timer::Connection(key));
        }
    }
}
