//! The flag that a shard sets before it sleeps, so that senders know whether to wake it. This file
//! contains only the flag, so that loom can check every interleaving of both sides.
//!
//! ```text
//! shard:  set the flag, fence, check the mailboxes, sleep
//! sender: put a message, fence, check the flag, wake
//! ```
//!
//! The fences guarantee that the shard sees the message or the sender sees the flag.

// From the standard library, or from loom when `tests/wake.rs` includes this file.
use super::atomic::{AtomicBool, Ordering, fence};

/// A flag that is set while a shard sleeps or is about to sleep.
#[derive(Debug)]
pub(super) struct Armed(AtomicBool);

impl Armed {
    /// Creates the flag of a shard that is awake.
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether the caller must wake the shard. Call this after putting a message into a mailbox. Of
    /// several concurrent senders only one gets true.
    pub(super) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }

    /// Sets the flag and returns whether the shard may sleep. `is_empty` checks the shard's mailboxes.
    /// If they are not empty, the flag is cleared again.
    pub(super) fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.set(true);
        fence(Ordering::SeqCst);
        let may = is_empty();
        if !may {
            self.disarm();
        }
        may
    }

    /// Clears the flag: the shard is awake.
    pub(super) fn disarm(&self) {
        self.set(false);
    }

    /// Sets the flag with a swap. By the C++ memory model a store would suffice, because it cannot be
    /// ordered before another core's swap that has seen this core's earlier writes. loom does not model
    /// that rule, and a swap costs nothing compared with the sleep.
    fn set(&self, is_armed: bool) {
        self.0.swap(is_armed, Ordering::Relaxed);
    }
}
