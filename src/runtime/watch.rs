//! What the shards of a node share: a few counts, and the word to stop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::budget::Budget;
use crate::metrics::Counters;
use crate::shard::{ShedRound, Usage};

/// What a node takes in, at most.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Clients.
    pub clients: usize,
    /// Connections of the API.
    pub callers: usize,
    /// Memory, in bytes: the budget.
    pub memory_bytes: u64,
}

/// Seen by every shard and by the node. Touched when a connection comes or goes, never per message.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) start: Instant,
    /// Which shards are quiet while the node goes down: clients gone, topics given out.
    pub(super) quiet: Vec<AtomicBool>,
    /// Shards with connections left while the node goes down.
    pub(super) undrained: AtomicUsize,
    pub(super) is_stopped: AtomicBool,
    clients: AtomicUsize,
    clients_max: usize,
    callers: AtomicUsize,
    callers_max: usize,
    budget: Budget,
}

impl Watch {
    pub(super) fn new(shards: usize, capacity: Capacity) -> Self {
        let Capacity { clients: clients_max, callers: callers_max, memory_bytes } = capacity;
        Self {
            start: Instant::now(),
            quiet: (0..shards).map(|_| AtomicBool::new(false)).collect(),
            undrained: AtomicUsize::new(shards),
            is_stopped: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
            clients_max,
            callers: AtomicUsize::new(0),
            callers_max,
            budget: Budget::new(memory_bytes),
        }
    }

    /// What the node holds now.
    pub(super) fn usage(&self) -> Usage {
        let clients = self.clients.load(Ordering::Relaxed);
        let connections = clients + self.callers.load(Ordering::Relaxed);
        self.budget.usage(connections as u64, self.start.elapsed())
    }

    /// What the shards shed in this round, together.
    pub(super) fn shed_round(&self) -> &ShedRound {
        self.budget.shed_round()
    }

    /// Whether all shards are quiet.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.iter().all(|quiet| quiet.load(Ordering::Acquire))
    }

    /// Takes a place for one more client; false if there is none.
    pub(super) fn admit_client(&self) -> bool {
        take_place(&self.clients, self.clients_max)
    }

    /// Takes a place for one more connection of the API; false if there is none.
    pub(super) fn admit_caller(&self) -> bool {
        take_place(&self.callers, self.callers_max)
    }

    /// Takes one for a connection of the API in whose favour another is being closed.
    pub(super) fn replace_caller(&self) {
        self.callers.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the place of a connection back.
    pub(super) fn forget(&self, is_client: bool) {
        let places = if is_client { &self.clients } else { &self.callers };
        places.fetch_sub(1, Ordering::Relaxed);
    }
}

fn take_place(places: &AtomicUsize, max: usize) -> bool {
    let is_taken = places.fetch_add(1, Ordering::Relaxed) < max;
    if !is_taken {
        places.fetch_sub(1, Ordering::Relaxed);
    }
    is_taken
}

/// What a node did, and what was left when it ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// What its shards counted.
    pub counters: Counters,
    /// Connections that were still open.
    pub connections: usize,
    /// Messages from clients that no back end had taken.
    pub queued_messages: usize,
}
