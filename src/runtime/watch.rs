//! What the shards of a node share: a few counts, and the word to stop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::metrics::Counters;

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
}

impl Watch {
    pub(super) fn new(shards: usize, clients_max: usize) -> Self {
        Self {
            start: Instant::now(),
            quiet: (0..shards).map(|_| AtomicBool::new(false)).collect(),
            undrained: AtomicUsize::new(shards),
            is_stopped: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
            clients_max,
        }
    }

    /// Whether all shards are quiet.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.iter().all(|quiet| quiet.load(Ordering::Acquire))
    }

    /// Takes a place for one more client; false if there is none.
    pub(super) fn admit_client(&self) -> bool {
        let is_admitted = self.clients.fetch_add(1, Ordering::Relaxed) < self.clients_max;
        if !is_admitted {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
        is_admitted
    }

    /// Gives the place of a client back.
    pub(super) fn forget_client(&self, is_client: bool) {
        if is_client {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
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
