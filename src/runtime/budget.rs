//! The memory budget of a node: the memory in use, the degree of shortage, and the log lines about it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::memory::allocated_bytes;
use crate::shard::{ShedRound, Shortage, Usage};

/// Memory that the kernel takes for an idle connection, in bytes. Measured: see tuning/README.md. The
/// control group counts it, but the allocator does not see it.
const CONNECTION_BYTES: u64 = 4608;

/// The shortest time between two log lines that say that memory is short, in milliseconds.
const LOG_MS: u64 = 10_000;

/// The budget, shared by all shards.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    limit_bytes: AtomicU64,
    // A `Shortage`, as its index in `Shortage::ALL`.
    shortage: AtomicU8,
    shed_round: ShedRound,
    // The log says that memory is short, and does not say yet that this is over.
    is_told: AtomicBool,
    told_ms: AtomicU64,
}

impl MemoryBudget {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes: AtomicU64::new(limit_bytes),
            shortage: AtomicU8::new(Shortage::None as u8),
            shed_round: ShedRound::default(),
            is_told: AtomicBool::new(false),
            told_ms: AtomicU64::new(0),
        }
    }

    /// Changes the limit.
    pub(super) fn set_limit(&self, limit_bytes: u64) {
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// Returns the memory in use, including the kernel's memory for `connections`. All shards see the
    /// same degree of shortage; the shard that changes it first writes the log line.
    pub(super) fn usage(&self, connections: u64, now: Duration) -> Usage {
        let bytes = allocated_bytes() + connections * CONNECTION_BYTES;
        let known = self.shortage.load(Ordering::Relaxed);
        let before = Shortage::ALL[usize::from(known)];
        let limit_bytes = self.limit_bytes.load(Ordering::Relaxed);
        let shortage = before.after(bytes, limit_bytes);
        let usage = Usage { bytes, limit_bytes, shortage };
        if shortage != before {
            let (from, to) = (known, shortage as u8);
            let relaxed = Ordering::Relaxed;
            // If another shard was first, this shard sees its result the next time.
            if self.shortage.compare_exchange(from, to, relaxed, relaxed).is_ok() {
                self.tell(usage, now.as_millis() as u64);
            }
        }
        usage
    }

    /// Returns the total that all shards shed in the current round.
    pub(super) fn shed_round(&self) -> &ShedRound {
        &self.shed_round
    }

    /// Logs one line when a shortage begins and one when it is over. Metrics count what was shed.
    fn tell(&self, usage: Usage, now_ms: u64) {
        let Usage { bytes, limit_bytes, shortage } = usage;
        let (used, limit) = (bytes >> 20, limit_bytes >> 20);
        let is_short = shortage != Shortage::None;
        if !is_short {
            if self.is_told.swap(false, Ordering::Relaxed) {
                tracing::warn!("memory: {used} of {limit} MiB in use, the shortage is over");
            }
            return;
        }
        let told_ms = self.told_ms.load(Ordering::Relaxed);
        let is_due = told_ms == 0 || now_ms >= told_ms + LOG_MS;
        if is_due && !self.is_told.swap(true, Ordering::Relaxed) {
            self.told_ms.store(now_ms.max(1), Ordering::Relaxed);
            tracing::warn!(
                "memory: {used} of {limit} MiB (limits.memory_bytes) in use: slow readers are \
                 closed, then new connections refused; see gridcast_shed_* in /metrics"
            );
        }
    }
}
