//! Whether a sleeping shard must be woken: a flag that it arms before it sleeps. Nothing else than
//! the flag, so that loom can try every order of what both sides do.
//!
//! ```text
//! shard:  arm, fence, look for mail, sleep
//! others: put mail, fence, look at the flag, wake
//! ```
//!
//! Either the shard sees the mail or the others see the flag: the fences leave no third way.

// The standard library's, or loom's where this file is part of `tests/wake.rs`.
use super::atomic::{AtomicBool, Ordering, fence};

/// Set while a shard sleeps or is about to.
#[derive(Debug)]
pub(super) struct Armed(AtomicBool);

impl Armed {
    /// Of a shard that is awake.
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether the caller, who has put something into a mailbox, is the one to wake the shard.
    pub(super) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }

    /// Whether the shard may sleep now; `is_empty` looks into its mailboxes. If not it is awake.
    pub(super) fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.set(true);
        fence(Ordering::SeqCst);
        let may = is_empty();
        if !may {
            self.disarm();
        }
        may
    }

    /// The shard is awake: nobody needs to wake it.
    pub(super) fn disarm(&self) {
        self.set(false);
    }

    /// A store would do, by C++'s rules: it cannot slip in front of another core's swap that has
    /// seen what this core wrote before. loom does not know that rule, and a swap per sleep is
    /// nothing beside the sleep.
    fn set(&self, is_armed: bool) {
        self.0.swap(is_armed, Ordering::Relaxed);
    }
}
