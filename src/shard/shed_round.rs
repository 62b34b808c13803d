//! How much the shards of a node shed between two measurements, together.

use std::sync::atomic::{AtomicU64, Ordering};

/// How long a round takes, in milliseconds. Long enough for the sockets that were closed in it to be gone
/// and their memory to be freed, which takes two turns of a shard.
pub const ROUND_MS: u64 = 100;

/// The bytes that all shards of a node have shed in the present round. Each shard measures the excess
/// itself, and sheds only while the round's total is below it: so all of them together free about the
/// excess, however many they are.
#[derive(Debug, Default)]
pub struct ShedRound {
    shed_bytes: AtomicU64,
    since_ms: AtomicU64,
}

impl ShedRound {
    /// Begins a new round if the present one is over. Memory that was shed in the old round is free by
    /// now: measurements show it.
    pub fn renew(&self, now_ms: u64) {
        let since_ms = self.since_ms.load(Ordering::Relaxed);
        // The clocks of two shards differ a little: a clock that lags renews nothing.
        let is_over = now_ms >= since_ms + ROUND_MS;
        let relaxed = Ordering::Relaxed;
        if is_over && self.since_ms.compare_exchange(since_ms, now_ms, relaxed, relaxed).is_ok() {
            self.shed_bytes.store(0, relaxed);
        }
    }

    /// Bytes that are still to be shed in this round, of so many in excess.
    pub fn left(&self, excess_bytes: u64) -> u64 {
        excess_bytes.saturating_sub(self.shed_bytes.load(Ordering::Relaxed))
    }

    /// Books a connection of so many bytes that is about to be closed. False if the round has shed the
    /// excess already: then the connection stays.
    pub fn take(&self, bytes: u64, excess_bytes: u64) -> bool {
        let before = self.shed_bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_wanted = before < excess_bytes;
        if !is_wanted {
            self.shed_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_sheds_the_excess_and_not_more_than_one_connection_beyond_it() {
        let round = ShedRound::default();
        let taken = (0..100).filter(|_| round.take(30, 100)).count();
        assert_eq!(taken, 4);
        assert_eq!(round.left(100), 0);
        assert_eq!(round.left(150), 30, "the excess has grown meanwhile");
    }

    #[test]
    fn a_new_round_begins_when_the_old_one_is_over_and_not_by_a_clock_that_lags() {
        let round = ShedRound::default();
        round.renew(1000);
        assert!(round.take(100, 100));
        round.renew(1000 + ROUND_MS - 1);
        round.renew(500);
        assert_eq!(round.left(100), 0);
        round.renew(1000 + ROUND_MS);
        assert_eq!(round.left(100), 100);
    }
}
