//! Mutable state that all shards of a node share. The runtime creates it and passes it to each shard,
//! beside the settings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::interest::Interest;
use super::rate::Quota;
use super::settings::Settings;
use crate::metrics::{CertificateExpiry, DiskReport, SharedDurations, SharedUsage};

/// State that the shards of one node read and change, without locks.
#[derive(Debug)]
pub struct NodeState {
    /// Which shards may have subscribers of which channel.
    pub interest: Arc<Interest>,
    /// The quota of each user of the API, by the user's index in [`super::settings::Api::users`]. `None`:
    /// the user was removed.
    pub quotas: Box<[Option<Arc<Quota>>]>,
    /// Whether the node is about to shut down: `/readyz` answers 503, and everything else works.
    pub is_lame_duck: Arc<AtomicBool>,
    /// Log lines that were dropped. The log counts them; `/metrics` shows the number.
    pub log_lines_dropped: Arc<AtomicU64>,
    /// The resources that the process uses. The runtime samples them; `/metrics` shows them.
    pub usage: Arc<SharedUsage>,
    /// When the certificates in use expire, for `/metrics`.
    pub certificates: Arc<[CertificateExpiry]>,
    /// The state of the topics on disk, from the thread that keeps them.
    pub disk: Arc<DiskState>,
}

/// The state of the topics on disk, which their thread writes and all shards read.
#[derive(Debug, Default)]
pub struct DiskState {
    /// Whether files cannot be written or read, and not because the disk is full: `/readyz` answers 503.
    pub is_failing: AtomicBool,
    // How long each change of a file took, with its sync.
    syncs: SharedDurations,
    // Events that were stored.
    events: AtomicU64,
    // Errors, full disks included.
    errors: AtomicU64,
    // The size of all files, in bytes.
    bytes: AtomicU64,
}

impl DiskState {
    /// Counts a change of a file, which took this long.
    pub fn note_sync(&self, took: Duration) {
        self.syncs.add(took.as_micros() as u64);
    }

    /// Counts stored events.
    pub fn note_stored(&self, events: u64) {
        self.events.fetch_add(events, Ordering::Relaxed);
    }

    /// Counts an error.
    pub fn note_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The figures for `/metrics`.
    pub fn report(&self) -> DiskReport {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        DiskReport {
            syncs: self.syncs.load(),
            events: of(&self.events),
            errors: of(&self.errors),
            bytes: of(&self.bytes),
            is_failing: self.is_failing.load(Ordering::Relaxed),
        }
    }

    /// Notes the sizes of all logs, in bytes.
    pub fn note_bytes(&self, sizes: impl Iterator<Item = u64>) {
        self.bytes.store(sizes.sum(), Ordering::Relaxed);
    }
}

impl NodeState {
    /// Creates the state of a node without subscribers, whose users have made no calls.
    pub fn new(settings: &Settings, log_lines_dropped: Arc<AtomicU64>) -> Self {
        let interest = Arc::new(Interest::new(settings.shards));
        let quotas = quotas(settings, &[]);
        Self {
            interest,
            quotas,
            is_lame_duck: Arc::default(),
            log_lines_dropped,
            usage: Arc::default(),
            certificates: Arc::default(),
            disk: Arc::default(),
        }
    }

    /// Returns the state under reloaded settings. Users whose rate is unchanged keep what is left of it.
    /// The certificates stay.
    pub fn reloaded(&self, settings: &Settings) -> Self {
        Self {
            interest: self.interest.clone(),
            quotas: quotas(settings, &self.quotas),
            is_lame_duck: self.is_lame_duck.clone(),
            log_lines_dropped: self.log_lines_dropped.clone(),
            usage: self.usage.clone(),
            certificates: self.certificates.clone(),
            disk: self.disk.clone(),
        }
    }
}

/// Returns a quota for each user. `known` are the quotas under earlier settings.
fn quotas(settings: &Settings, known: &[Option<Arc<Quota>>]) -> Box<[Option<Arc<Quota>>]> {
    let users = &settings.api.users;
    let quota = |index: usize| {
        let user = users.get(index)?;
        let known = known.get(index).and_then(Option::as_ref);
        let kept = known.filter(|quota| quota.is_of(user)).cloned();
        Some(kept.unwrap_or_else(|| Arc::new(Quota::new(user))))
    };
    (0..users.index_end()).map(quota).collect()
}
