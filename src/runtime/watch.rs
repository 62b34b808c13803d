//! State that the shards of a node share: connection counts, the memory budget, and the progress of a
//! shutdown.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::budget::MemoryBudget;
use super::reload::{REQUESTS_MAX, ReloadRequest, Reloaded};
use crate::metrics::Counters;
use crate::shard::rate::{Rate, SharedBucket};
use crate::shard::{ShedRound, Usage};

/// The limits of a node.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// The most clients.
    pub clients: usize,
    /// The most connections of the API.
    pub callers: usize,
    /// The memory budget, in bytes. 0: unlimited.
    pub memory_bytes: u64,
    /// The most handshakes with clients per second. 0: unlimited.
    pub handshakes_per_s: u32,
}

/// State shared by every shard and the node. Written when a connection opens or closes, never per
/// message.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) start: Instant,
    /// For each shard, during shutdown: its clients are gone and its topics are delivered.
    pub(super) quiet: Vec<AtomicBool>,
    /// The number of shards that still have connections during shutdown.
    pub(super) undrained: AtomicUsize,
    pub(super) is_stopped: AtomicBool,
    clients: AtomicUsize,
    clients_max: AtomicUsize,
    callers: AtomicUsize,
    callers_max: AtomicUsize,
    handshakes_per_s: AtomicU32,
    handshakes: SharedBucket,
    budget: MemoryBudget,
    // For each shard, room for the settings of one reload.
    reloads: Vec<(Sender<Reloaded>, Receiver<Reloaded>)>,
    reload_requests: (Sender<ReloadRequest>, Receiver<ReloadRequest>),
}

impl Watch {
    pub(super) fn new(shards: usize, capacity: Capacity) -> Self {
        let Capacity { clients, callers, memory_bytes, handshakes_per_s } = capacity;
        Self {
            start: Instant::now(),
            quiet: (0..shards).map(|_| AtomicBool::new(false)).collect(),
            undrained: AtomicUsize::new(shards),
            is_stopped: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
            clients_max: AtomicUsize::new(clients),
            callers: AtomicUsize::new(0),
            callers_max: AtomicUsize::new(callers),
            handshakes_per_s: AtomicU32::new(handshakes_per_s),
            handshakes: SharedBucket::default(),
            budget: MemoryBudget::new(memory_bytes),
            reloads: (0..shards).map(|_| bounded(1)).collect(),
            reload_requests: bounded(REQUESTS_MAX),
        }
    }

    /// Changes the limits of the node. Connections above a lower limit stay.
    pub(super) fn set_capacity(&self, capacity: Capacity) {
        let Capacity { clients, callers, memory_bytes, handshakes_per_s } = capacity;
        self.handshakes_per_s.store(handshakes_per_s, Ordering::Relaxed);
        self.clients_max.store(clients, Ordering::Relaxed);
        self.callers_max.store(callers, Ordering::Relaxed);
        self.budget.set_limit(memory_bytes);
    }

    /// Requests a reload. Returns false if too many requests wait.
    pub(super) fn request_reload(&self, request: ReloadRequest) -> bool {
        self.reload_requests.0.try_send(request).is_ok()
    }

    /// Waits for a request to reload, and returns all that are there.
    pub(super) fn next_reload_requests(&self) -> Vec<ReloadRequest> {
        let requests = &self.reload_requests.1;
        let first = requests.recv().expect("both ends are in the same place");
        std::iter::once(first).chain(requests.try_iter()).collect()
    }

    /// Yields the senders of reloaded settings to each shard.
    pub(super) fn reloads(&self) -> impl Iterator<Item = &Sender<Reloaded>> {
        self.reloads.iter().map(|(sender, _)| sender)
    }

    /// Returns the settings of a reload that a shard has not applied yet.
    pub(super) fn poll_reload(&self, shard: usize) -> Option<Reloaded> {
        self.reloads[shard].1.try_recv().ok()
    }

    /// Returns the memory that the node uses now.
    pub(super) fn usage(&self) -> Usage {
        let clients = self.clients.load(Ordering::Relaxed);
        let connections = clients + self.callers.load(Ordering::Relaxed);
        self.budget.usage(connections as u64, self.start.elapsed())
    }

    /// Returns the total that all shards shed in the current round.
    pub(super) fn shed_round(&self) -> &ShedRound {
        self.budget.shed_round()
    }

    /// Whether all shards are quiet.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.iter().all(|quiet| quiet.load(Ordering::Acquire))
    }

    /// Whether the rate of handshakes allows one more at this time. Counts it if so.
    pub(super) fn admit_handshake(&self, now_ms: u64) -> bool {
        let rate = Rate::new(self.handshakes_per_s.load(Ordering::Relaxed));
        rate.is_none_or(|rate| self.handshakes.take(rate, now_ms))
    }

    /// Counts one more client. Returns false, and counts nothing, if the node is at its limit.
    pub(super) fn admit_client(&self) -> bool {
        take_place(&self.clients, &self.clients_max)
    }

    /// Counts one more connection of the API. Returns false, and counts nothing, if the node is at its
    /// limit.
    pub(super) fn admit_caller(&self) -> bool {
        take_place(&self.callers, &self.callers_max)
    }

    /// Counts one more connection of the API, above the limit: another one is being closed for it.
    pub(super) fn replace_caller(&self) {
        self.callers.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a closed connection.
    pub(super) fn forget(&self, is_client: bool) {
        let places = if is_client { &self.clients } else { &self.callers };
        places.fetch_sub(1, Ordering::Relaxed);
    }
}

fn take_place(places: &AtomicUsize, max: &AtomicUsize) -> bool {
    let is_taken = places.fetch_add(1, Ordering::Relaxed) < max.load(Ordering::Relaxed);
    if !is_taken {
        places.fetch_sub(1, Ordering::Relaxed);
    }
    is_taken
}

/// The counters of a node at its end, and what was left over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// The counters of all shards together.
    pub counters: Counters,
    /// Connections that were still open.
    pub connections: usize,
    /// Messages from clients that no back end had consumed.
    pub queued_messages: usize,
}
