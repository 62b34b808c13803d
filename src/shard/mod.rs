//! All state of one core, without I/O. Bytes, messages and the time go in ([`Shard`]`::handle_*`).
//! Writes, messages and socket actions come out (`poll_*`).
//!
//! # Parts
//!
//! [`Shard`] owns the parts and routes between them. A part has private state and borrows the
//! [`Turn`](turn): the time, the settings, the counters, the outgoing messages, and a queue of
//! steps. A part never calls another part. Instead a part pushes a step, which `Shard` passes to
//! the part concerned.
//!
//! | part | responsibility |
//! |---|---|
//! | `connection` | sockets: protocol state, read-ahead, outbound queue. All other parts borrow it |
//! | `access` | users of the API, and the number of connections per address |
//! | `admission` | handshakes that wait for keys of an issuer, or for an admission hook |
//! | `client` | clients: handshakes, messages, channels, fan-out |
//! | `backend` | back ends: requests, calls that wait for answers, events being delivered |
//! | `topics` | topics that this shard feeds, and those whose home it is |
//! | `homes` | channels whose home this shard is: their histories, and the order of their messages |
//! | `last_wills` | clients of other nodes, whose close events this shard reports if their node is lost |
//! | `memory` | which connections are closed when the node is short of memory |
//! | `drain` | the shutdown of the shard |
//! | `reload` | applies reloaded settings to open connections |
//! | `lists` | lists of administration, which are gathered from shards of all nodes |
//! | `taps` | back ends that watch devices live. Their taps are in the turn, so that every part can tell them |
//!
//! `input.rs`, `requests.rs`, `calls.rs`, `messages.rs` and `steps.rs` contain the routing: of received
//! bytes, HTTP requests, calls, messages and steps. `publishing.rs` routes publishes through the homes of channels. `inspection.rs` is what the driver and `/metrics` only read, and `proxied.rs` finds the address
//! of a proxy's client. The remaining files are shared by the parts: `turn.rs`, `settings.rs`,
//! `node_state.rs`, `users.rs` (users in use), `roster.rs` (reachable nodes), `timers.rs`, `work.rs` (how
//! much of a turn input may take), `rate.rs`, `interest.rs` (which shards have subscribers),
//! `shed_round.rs` (what all shards free together), `trail.rs` (debug log of connections).

pub mod access;
pub mod admission;
mod backend;
mod calls;
mod client;
mod connection;
mod deadlines;
mod drain;
#[cfg(test)]
pub(crate) mod fixture;
mod homes;
mod input;
mod inspection;
pub mod interest;
mod last_wills;
mod lists;
mod memory;
mod messages;
pub mod node_state;
mod proxied;
mod publishing;
pub mod rate;
mod reload;
mod requests;
mod roster;
pub mod settings;
mod shed_round;
mod steps;
mod taps;
mod timers;
mod topics;
mod trail;
mod turn;
pub mod users;
mod work;

use std::sync::Arc;

pub use connection::{
    ACCESS_LOG_TARGET, Batch, Chunk, Listener, Priority, ReadProgress, freed_bytes,
};
pub use inspection::{DrainState, Inspection};
pub use memory::{Shortage, Usage};
pub use shed_round::ShedRound;
pub use turn::{Action, Now};

use crate::address::remote::Remote;
use crate::address::{IdLayout, IdSource, ShardId};
use crate::message::{ConnectionKey, FromShard, Ticket, ToBridge, ToLog};
use crate::metrics::Counters;
use access::{Addresses, ApiAccess, Verification};
use admission::Admissions;
use backend::Backends;
use client::Clients;
use connection::{Connections, Pause, PolledWrite, Written};
use drain::Draining;
use homes::ChannelHomes;
use last_wills::LastWills;
use lists::{Lists, Walk};
use memory::{ShedContext, Shedding};
use node_state::NodeState;
use reload::Reloading;
use settings::Settings;
use taps::Taps;
use timers::{TIMERS_PER_TURN, Timer};
use topics::Topics;
use trail::Entry;
use turn::Turn;

/// A request of a shard to its node.
pub enum ShardRequest {
    /// Run [`Verification::run`] on another thread. Its result is the answer.
    Verify(Verification),
    /// Reload the configuration. The answer is [`FromNode::Reloaded`](crate::message::FromNode::Reloaded) with this ticket.
    Reload(Ticket),
    /// Pass a message to the bridge. The answer is
    /// [`FromNode::Bridge`](crate::message::FromNode::Bridge).
    Bridge(ToBridge),
    /// Pass changes to the log of a topic on disk. The answers are [`FromNode::Log`](crate::message::FromNode::Log).
    Log(ToLog),
}

/// The connections, channels and topics of one core.
pub struct Shard {
    turn: Turn,
    connections: Connections,
    api_access: ApiAccess,
    addresses: Addresses,
    admissions: Admissions,
    clients: Clients,
    backends: Backends,
    topics: Topics,
    last_wills: LastWills,
    shedding: Shedding,
    draining: Draining,
    reload: Reloading,
    lists: Lists,
    taps: Taps,
    homes: ChannelHomes,
}

impl Shard {
    /// Creates a shard without connections. All shards of a node share one `state`.
    ///
    /// # Panics
    /// `state` was made for other settings.
    pub fn new(id: ShardId, settings: &Settings, state: Arc<NodeState>, now: Now) -> Self {
        let settings = Arc::new(settings.unshared());
        assert_eq!(state.interest.shard_count(), settings.shards, "the state is that of the node");
        assert_eq!(
            state.quotas.len(),
            settings.api.users.index_end(),
            "the state is that of the node"
        );
        let by_clock = now.unix_ms.saturating_sub(now.ms);
        let first_unix_ms = settings.process.first_unix_ms.unwrap_or(by_clock);
        let layout = IdLayout::new(settings.shards);
        let ids = IdSource::new(settings.node, id, layout, first_unix_ms);
        let turn = Turn::new(id, &settings, state, now);
        Self {
            connections: Connections::default(),
            api_access: ApiAccess::new(&settings),
            addresses: Addresses::default(),
            admissions: Admissions::default(),
            clients: Clients::new(&turn, ids),
            backends: Backends::new(first_unix_ms),
            topics: Topics::new(id, &settings),
            last_wills: LastWills::default(),
            shedding: Shedding::default(),
            draining: Draining::default(),
            reload: Reloading::default(),
            lists: Lists::new(now.ms),
            taps: Taps::default(),
            homes: ChannelHomes::new(id, &settings, first_unix_ms),
            turn,
        }
    }

    /// Adds the connection of an accepted socket. Returns `None` while the node shuts down: the
    /// caller then closes the socket.
    pub fn handle_accepted(
        &mut self,
        now: Now,
        listener: Listener,
        remote: Remote,
    ) -> Option<ConnectionKey> {
        self.turn.now = now;
        if self.turn.is_draining {
            return None;
        }
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let key = connections.accept(turn, listener, remote);
        if listener == Listener::Api {
            self.api_access.handle_arrival(connections, key);
        }
        if !proxied::await_header(turn, connections, key) {
            self.addresses.count_arrival(turn, connections, key);
        }
        self.route();
        Some(key)
    }

    /// Handles received bytes. The bytes are overwritten, because frames are unmasked and JSON is
    /// parsed in place.
    pub fn handle_bytes(&mut self, now: Now, key: ConnectionKey, input: &mut [u8]) {
        self.turn.now = now;
        if self.connections.handle_bytes(&mut self.turn, key, input) {
            self.turn.work.begin_slice(false);
            let left = self.read(key, input);
            self.connections.push_read_ahead(&mut self.turn, key, &input[input.len() - left..]);
            if self.turn.work.is_slice_spent() {
                self.connections.record_slice(&mut self.turn, key);
            }
        }
        self.route();
    }

    /// Handles bytes at the start of a connection that awaits a PROXY protocol header. Returns the length of
    /// the part that belongs to the header, once the header is complete. `None`: more of it is to come, or
    /// the connection is refused. What follows a header goes to [`Self::handle_bytes`].
    pub fn handle_proxy_header(
        &mut self,
        now: Now,
        key: ConnectionKey,
        input: &[u8],
    ) -> Option<usize> {
        self.turn.now = now;
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let length = proxied::read_header(turn, connections, key, input)?;
        self.addresses.count_arrival(turn, connections, key);
        self.route();
        Some(length)
    }

    /// Handles the end of the stream, or an error of the socket if `is_broken`.
    pub fn handle_end(&mut self, now: Now, key: ConnectionKey, is_broken: bool) {
        self.turn.now = now;
        proxied::handle_end(&mut self.turn, &mut self.connections, key);
        self.connections.handle_end(&mut self.turn, key, is_broken);
        self.backends.handle_take_end(&mut self.turn, &mut self.connections, key);
        self.route();
    }

    /// Closes a connection whose input made the shard panic. The shard keeps running.
    pub fn handle_panic(&mut self, now: Now, key: ConnectionKey) {
        self.turn.counters.panics += 1;
        self.handle_end(now, key, true);
        self.connections.close_broken(&mut self.turn, key);
        self.route();
    }

    /// Notes that bytes of the batch in flight were written. `is_done` says that the batch is
    /// complete.
    // Inlined: called for each send, and a call costs 13 instructions.
    #[inline]
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

    /// Notes that a full socket accepts bytes again, which proves that the peer is alive. A write
    /// that fits in the kernel's buffer proves nothing.
    pub fn handle_drained(&mut self, now: Now, key: ConnectionKey) {
        self.turn.now = now;
        if let Some(connection) = self.connections.get(key) {
            connection.last_received_ms = now.ms;
        }
    }

    /// Removes a connection whose socket was closed by the driver.
    pub fn handle_closed(&mut self, key: ConnectionKey) {
        trail::note(self.turn.trail(key), Entry::Gone);
        self.addresses.count_departure(&mut self.turn, &mut self.connections, key);
        self.admissions.handle_closed(key);
        self.connections.log_access(&self.turn, key);
        self.backends.handle_take_closed(&mut self.turn, key);
        self.connections.forget_connection(key);
        self.route();
    }

    /// Handles the memory usage of the node. To be called once per turn, before
    /// [`Self::handle_turn`]. Memory is unlimited for a shard that is never told the usage. When
    /// the node is short of memory, closes connections: a slice of them per turn, until all shards
    /// together have freed the excess of this round.
    ///
    /// `blocked_bytes` returns, for a connection whose socket is full, the memory of the batch in
    /// flight that closing would free. `None`: the socket is not full.
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
        let context = ShedContext { round, blocked_bytes: &blocked_bytes };
        self.shedding.handle_usage(turn, connections, usage, &context);
        self.route();
    }

    /// Applies the settings of a reloaded configuration. They come from [`Settings::reloaded`] of the
    /// settings in use, and `state` from [`NodeState::reloaded`]. Open connections follow in the next
    /// turns: see `reload.rs`.
    pub fn handle_reload(&mut self, now: Now, settings: &Settings, state: Arc<NodeState>) {
        self.turn.now = now;
        let settings = Arc::new(settings.unshared());
        self.api_access.handle_settings(&settings);
        (self.turn.settings, self.turn.state) = (settings, state);
        self.topics.handle_reload(&mut self.turn);
        self.reload.begin();
    }

    /// Runs the timers and continues all work that is spread over turns, within its budgets. Called
    /// once per turn.
    pub fn handle_turn(&mut self, now: Now) {
        self.turn.now = now;
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        let mut left = TIMERS_PER_TURN;
        while left > 0
            && let Some((tick, timer)) = turn.timers.pop_due(turn.now.ms)
        {
            match timer {
                // There is a timer for every call, and nearly all calls are answered in time.
                // Skipping their timers costs next to nothing.
                Timer::Ticket(ticket) if !self.backends.expire(turn, connections, ticket) => {
                    continue;
                }
                Timer::Ticket(_) => {}
                Timer::Connection(key) => connections.check_connection(turn, key, tick),
                Timer::Rate(key) => connections.unpause(turn, key, Pause::Rate),
                Timer::Token(key) => self.admissions.handle_token_timeout(turn, key),
            }
            left -= 1;
        }
        self.lists.handle_turn(turn, |turn, walk, budget| match walk {
            Walk::Client(walk) => self.clients.walk_clients(turn, connections, walk, budget),
            Walk::Channel(walk) => self.clients.walk_channels(walk, budget),
            Walk::Backend(walk) => backend::walk_backends(turn, connections, walk, budget),
            Walk::UserInfo(walk) => self.clients.walk_user_info(connections, walk, budget),
        });
        self.topics.home.handle_timeout(turn);
        if self.homes.has_work() {
            self.homes.handle_turn(turn, |turn, channel| {
                self.clients.has_channel(channel) || turn.has_subscribers_elsewhere(channel)
            });
        }
        self.backends.continue_takes(turn, connections);
        self.route();
        self.clients.begin_turn(self.turn.now.ms, self.connections.has_bulk_writes());
        self.read_waiting();
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        self.clients.continue_unsubscribing(turn.now.ms, connections);
        self.clients.continue_publishes(turn, connections);
        if self.clients.has_presence_work() {
            self.clients.continue_presence(turn, connections);
        }
        self.route();
        let (turn, connections) = (&mut self.turn, &mut self.connections);
        self.topics.home.handle_turn(turn);
        self.draining.handle_turn(turn, connections);
        self.reload.handle_turn(turn, connections);
        if self.taps.has_work(turn) {
            self.taps.handle_turn(turn, connections, self.clients.membership());
        }
        if self.last_wills.has_work() {
            self.last_wills.handle_turn(turn, connections);
            while let Some(report) = self
                .last_wills
                .poll_report(turn, connections, |topic| self.topics.feeders.takes_reports(topic))
            {
                self.topics.feeders.ensure(&turn.settings, &report.topic);
                self.topics.feed(turn, connections, report);
            }
        }
        self.route();
    }

    /// Returns the next message for another shard or for the mesh.
    pub fn poll_message(&mut self) -> Option<FromShard> {
        self.clients.announce(&mut self.turn);
        self.turn.poll_message()
    }

    /// Returns the next action on a socket.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.turn.actions.pop_front()
    }

    /// Returns the next connection of this priority to write to, with its batch. `None` also when
    /// the turn's budget for fan-out writes is spent: see [`Inspection::has_writes`].
    pub fn poll_write(&mut self, priority: Priority) -> Option<(ConnectionKey, Batch)> {
        if priority == Priority::Bulk && !self.clients.may_send() {
            return None;
        }
        let PolledWrite { key, batch, bytes } =
            self.connections.poll_write(&self.turn, priority)?;
        match priority {
            Priority::Urgent => self.clients.note_urgent(self.turn.now.ms),
            Priority::Bulk => self.clients.note_sent(bytes),
        }
        Some((key, batch))
    }

    /// Takes back a batch that was written or dropped, for reuse.
    pub fn recycle(&mut self, batch: Batch) {
        self.turn.buffer_pool.keep(batch);
    }

    /// Returns the next request for something that the shard cannot do itself. The answer comes back as
    /// a message.
    pub fn poll_request(&mut self) -> Option<ShardRequest> {
        let reload = self.reload.poll_request().map(ShardRequest::Reload);
        let request = reload.or_else(|| self.admissions.poll_message().map(ShardRequest::Bridge));
        let request = request.or_else(|| {
            let events = self.topics.home.poll_sink_events(&self.turn)?;
            Some(ShardRequest::Bridge(ToBridge::Events(events)))
        });
        let request = request
            .or_else(|| self.topics.home.poll_log_changes(&self.turn).map(ShardRequest::Log));
        let request = request.or_else(|| self.turn.poll_bridge_answer().map(ShardRequest::Bridge));
        request.or_else(|| self.api_access.poll_verification(&self.turn).map(ShardRequest::Verify))
    }

    /// Closes the oldest API connection without valid credentials, to make room for others. Returns
    /// false if there is none.
    pub fn evict_unauthenticated(&mut self) -> bool {
        self.api_access.evict_unauthenticated(&mut self.turn, &mut self.connections)
    }

    /// Records the duration of a turn in microseconds, without sleep.
    pub fn handle_turn_taken(&mut self, us: u64) {
        self.turn.turns_taken.add(us);
    }

    /// Returns the counters, for what the runtime counts.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.turn.counters
    }

    /// Returns a view of the shard's state for tests and for the summary at shutdown.
    pub fn inspect(&self) -> Inspection<'_> {
        let Self { turn, connections, addresses, clients, backends, topics, .. } = self;
        let Self { shedding, draining, admissions, lists, homes, .. } = self;
        Inspection {
            turn,
            connections,
            addresses,
            clients,
            backends,
            topics,
            shedding,
            draining,
            admissions,
            lists,
            homes,
        }
    }
}
