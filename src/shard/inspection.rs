//! A view of a shard's state: for the driver, for `/metrics`, for tests, and for the summary at shutdown.

use std::sync::atomic::Ordering;

use super::access::Addresses;
use super::admission::Admissions;
use super::backend::Backends;
use super::client::Clients;
use super::connection::{Connections, ReadProgress};
use super::drain::Draining;
use super::homes::ChannelHomes;
use super::lists::{Lists, Rates};
use super::memory::{Shedding, Shortage};
use super::topics::Topics;
use super::turn::Turn;
use crate::message::{ConnectionKey, ProcessFacts, ShardFigures};
use crate::metrics::{Counters, ProcessReport, Report};
use crate::protocol::api::NodeStanding;

/// How far the shutdown of a shard has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainState {
    /// Whether the node is shutting down.
    pub is_draining: bool,
    /// Whether no client is left on this shard, and no message that a consumer could take.
    pub is_quiet: bool,
    /// Whether all connections were told to close, and none is left. Queued messages may still go
    /// to consumers on other nodes.
    pub is_drained: bool,
}

/// A view of a shard's state. Most methods visit every connection or topic.
pub struct Inspection<'s> {
    pub(super) turn: &'s Turn,
    pub(super) connections: &'s Connections,
    pub(super) topics: &'s Topics,
    pub(super) addresses: &'s Addresses,
    pub(super) clients: &'s Clients,
    pub(super) backends: &'s Backends,
    pub(super) shedding: &'s Shedding,
    pub(super) draining: &'s Draining,
    pub(super) admissions: &'s Admissions,
    pub(super) lists: &'s Lists,
    pub(super) homes: &'s ChannelHomes,
}

impl Inspection<'_> {
    /// Returns how far the shutdown of the shard has got. Cheap.
    pub fn drain_state(&self) -> DrainState {
        let has_closed_clients = self.draining.has_closed_clients() && self.clients.len() == 0;
        DrainState {
            is_draining: self.turn.is_draining,
            is_quiet: has_closed_clients
                && !self.connections.has_pending_closes()
                && !self.topics.home.has_work(),
            is_drained: self.draining.has_ended() && self.connections.len() == 0,
        }
    }

    /// Whether to receive from a connection that was newly accepted, or whose PROXY protocol header was
    /// read. If not, [`Action::Resume`](super::Action::Resume) follows.
    pub fn is_receiving(&self, key: ConnectionKey) -> bool {
        self.connections.peek(key).is_some_and(|connection| !connection.is_receive_stopped)
    }

    /// Whether a newly accepted connection begins with a PROXY protocol header, which goes to
    /// [`Shard::handle_proxy_header`](super::Shard::handle_proxy_header).
    pub fn awaits_proxy_header(&self, key: ConnectionKey) -> bool {
        self.connections.peek(key).is_some_and(|connection| connection.awaits_proxy_header())
    }

    /// Whether there are actions on sockets, so that the next turn begins at once.
    pub fn has_actions(&self) -> bool {
        !self.turn.actions.is_empty()
    }

    /// Whether a connection waits to be written to, so that the next turn begins at once.
    pub fn has_writes(&self) -> bool {
        self.connections.has_writes()
    }

    /// Whether there are messages for other shards or for the mesh, so that the next turn begins at once.
    pub fn has_messages(&self) -> bool {
        self.turn.has_messages()
    }

    /// Returns the shard's state for `/metrics`. Reading the state visits every topic.
    pub fn report(&self) -> Report {
        let usage = self.shedding.usage();
        let is_first = self.turn.address.shard.0 == 0;
        Report {
            shard: self.turn.address.shard.0,
            counters: self.turn.counters,
            connections: self.connections.len() as u64,
            clients: self.clients.len() as u64,
            backends: self.connections.backends() as u64,
            channels: self.clients.channels() as u64,
            pending_calls: self.backends.pending_calls() as u64,
            unfinished_fanouts: self.clients.pending_publishes() as u64,
            addresses: self.addresses.len() as u64,
            topics: self.topics.home.reports(self.turn.now.us),
            call_sources: self.backends.call_sources(),
            turns: self.turn.turns_taken,
            calls: self.backends.calls_taken(),
            events: self.topics.home.waits(),
            admissions: self.admissions.durations(),
            history_channels: self.homes.histories().channels() as u64,
            history_messages: self.homes.histories().messages() as u64,
            history_bytes: self.homes.histories().bytes() as u64,
            presence_channels: self.clients.presence_figures().channels,
            presence_members: self.clients.presence_figures().members,
            presence_bytes: self.clients.presence_figures().bytes,
            idempotency_keys: self.homes.keys() as u64,
            waiting_takes: self.backends.waiting_takes() as u64,
            waiting_handshakes: self.admissions.waiting() as u64,
            process: is_first.then(|| ProcessReport {
                log_lines_dropped: self.turn.state.log_lines_dropped.load(Ordering::Relaxed),
                memory_bytes: usage.bytes,
                memory_limit_bytes: usage.limit_bytes,
                driver: self.turn.settings.process.driver,
                usage: self.turn.state.usage.usage(),
                certificates: self.turn.state.certificates.clone(),
                disk: self.turn.state.disk.report(),
            }),
        }
    }

    /// Returns the shard's figures for `node.list`.
    pub(super) fn figures(&self) -> ShardFigures {
        let Turn { now, counters, address, .. } = self.turn;
        let Rates { received, delivered } = self.lists.rates(now.ms, counters);
        let is_first = address.shard.0 == 0;
        ShardFigures {
            clients: self.clients.len() as u64,
            backends: self.connections.backends() as u64,
            received,
            delivered,
            process: is_first.then(|| self.process_facts()),
        }
    }

    fn process_facts(&self) -> ProcessFacts {
        let usage = self.shedding.usage();
        ProcessFacts {
            state: match self.turn.is_draining {
                true => NodeStanding::Draining,
                false if self.turn.is_going_down() => NodeStanding::LameDuck,
                false => NodeStanding::Up,
            },
            uptime_ms: self.lists.uptime_ms(self.turn.now.ms),
            driver: self.turn.settings.process.driver.into(),
            memory_bytes: usage.bytes,
            memory_limit_bytes: usage.limit_bytes,
        }
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        self.turn.counters
    }

    /// Returns how short of memory the node is, as last given to the shard.
    pub fn shortage(&self) -> Shortage {
        self.turn.shortage
    }

    /// Returns the number of connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Returns the number of messages in the topics whose home this shard is, including those
    /// delivered but not written yet.
    pub fn queued_messages(&self) -> usize {
        self.topics.home.messages()
    }

    /// Returns the number of takes over HTTP that wait, or whose answers are being written.
    pub fn waiting_takes(&self) -> usize {
        self.backends.waiting_takes()
    }

    /// Returns the bytes that wait on this shard for room in topics: encoded events, and the
    /// read-ahead of disconnected clients.
    pub fn waiting_bytes(&self) -> usize {
        self.topics.feeders.waiting_bytes()
    }

    /// Estimates the memory held by the connections in bytes, without the batches in flight, which
    /// the driver has. A frame shared by several outbound queues counts once.
    pub fn held_bytes(&self) -> usize {
        self.connections.held_bytes()
    }

    /// Returns the part of [`Self::held_bytes`] in the read-ahead of connections.
    pub fn read_ahead_bytes(&self) -> usize {
        self.connections.read_ahead_bytes()
    }

    /// Returns the part of [`Self::held_bytes`] in what clients have sent: incomplete messages, and the
    /// history of those whose compressed messages refer to earlier ones.
    pub fn assembler_bytes(&self) -> usize {
        self.connections.assembler_bytes()
    }

    /// Returns how far the requests of a back end were read. `None` if the connection is no back
    /// end.
    ///
    /// # Panics
    /// Reading is paused although few enough requests are pending to resume.
    pub fn read_progress_of(&self, key: ConnectionKey) -> Option<ReadProgress> {
        self.connections.read_progress_of(key)
    }

    /// Checks the invariants of the topics, of the index of users, and of presence. Visits every client.
    ///
    /// # Panics
    /// An invariant is violated.
    pub fn check_invariants(&self) {
        self.topics.home.check();
        self.homes.check();
        self.clients.check_users(self.connections);
        self.clients.check_presence();
    }
}
