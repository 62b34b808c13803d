//! The memory budget of a node: what is in use, how short memory is, and the log lines about it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::memory::allocated_bytes;
use crate::shard::{ShedRound, Shortage, Usage};

/// What the kernel takes for a connection that says nothing, in bytes: measured, see tuning/README.md.
/// The control group counts it, and no allocator does.
const CONNECTION_BYTES: u64 = 4608;

/// How often the log says that memory is short, at most.
const LOG_MS: u64 = 10_000;

/// The budget, shared by the shards.
#[derive(Debug)]
pub(super) struct Budget {
    limit_bytes: u64,
    // A Shortage, as its place among the steps.
    shortage: AtomicU8,
    shed_round: ShedRound,
    // The log was told that memory is short, and not yet that it is so no more.
    is_told: AtomicBool,
    told_ms: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            shortage: AtomicU8::new(Shortage::None as u8),
            shed_round: ShedRound::default(),
            is_told: AtomicBool::new(false),
            told_ms: AtomicU64::new(0),
        }
    }

    /// What is in use, with so many connections. All shards see the same step: whoever looks first
    /// when another begins tells the log.
    pub(super) fn usage(&self, connections: u64, now: Duration) -> Usage {
        let bytes = allocated_bytes() + connections * CONNECTION_BYTES;
        let known = self.shortage.load(Ordering::Relaxed);
        let before = Shortage::ALL[usize::from(known)];
        let shortage = before.after(bytes, self.limit_bytes);
        let usage = Usage { bytes, limit_bytes: self.limit_bytes, shortage };
        if shortage != before {
            let (from, to) = (known, shortage as u8);
            let relaxed = Ordering::Relaxed;
            // If another shard was first, this one is right with the next look.
            if self.shortage.compare_exchange(from, to, relaxed, relaxed).is_ok() {
                self.tell(usage, now.as_millis() as u64);
            }
        }
        usage
    }

    /// What the shards shed in this round, together.
    pub(super) fn shed_round(&self) -> &ShedRound {
        &self.shed_round
    }

    /// One line when it begins, one when it is over; metrics tell what was given up meanwhile.
    fn tell(&self, usage: Usage, now_ms: u64) {
        let Usage { bytes, limit_bytes, shortage } = usage;
        let (used, limit) = (bytes >> 20, limit_bytes >> 20);
        let is_short = shortage != Shortage::None;
        if !is_short {
            if self.is_told.swap(false, Ordering::Relaxed) {
                tracing::warn!("memory: {used} of {limit} MiB in use, enough is free again");
            }
            return;
        }
        let told_ms = self.told_ms.load(Ordering::Relaxed);
        let is_due = told_ms == 0 || now_ms >= told_ms + LOG_MS;
        if is_due && !self.is_told.swap(true, Ordering::Relaxed) {
            self.told_ms.store(now_ms.max(1), Ordering::Relaxed);
            tracing::warn!(
                "memory: {used} of {limit} MiB (limits.memory_bytes) in use: slow readers are \
                 closed, then newcomers refused; see gridcast_shed_* in /metrics"
            );
        }
    }
}
