//! The total of memory that all shards of a node free within 100 ms.

use std::sync::atomic::{AtomicU64, Ordering};

/// The length of a round, in milliseconds. By its end the closed connections have freed their
/// memory, which takes two turns of a shard.
const ROUND_MS: u64 = 100;

/// The bytes that all shards of a node have shed in the current round. Each shard compares this
/// total with the excess and closes connections only while the total is lower. So the shards
/// together free about the excess, whatever their number.
#[derive(Debug, Default)]
pub struct ShedRound {
    shed_bytes: AtomicU64,
    since_ms: AtomicU64,
}

impl ShedRound {
    /// Begins a new round if the current one is over. The next measurement of memory in use already
    /// leaves out what the old round freed.
    pub fn renew(&self, now_ms: u64) {
        let since_ms = self.since_ms.load(Ordering::Relaxed);
        // The clocks of two shards differ a little. A clock that lags does not begin a round.
        let is_over = now_ms >= since_ms + ROUND_MS;
        let relaxed = Ordering::Relaxed;
        if is_over && self.since_ms.compare_exchange(since_ms, now_ms, relaxed, relaxed).is_ok() {
            self.shed_bytes.store(0, relaxed);
        }
    }

    /// Returns how many of `excess_bytes` this round has not shed yet.
    pub fn left_bytes(&self, excess_bytes: u64) -> u64 {
        excess_bytes.saturating_sub(self.shed_bytes.load(Ordering::Relaxed))
    }

    /// Adds the bytes of a connection that is about to be closed. Returns false if the round has
    /// shed the excess already: then the connection must stay open.
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
    fn a_round_sheds_the_excess_and_at_most_one_connection_more() {
        let round = ShedRound::default();
        let taken = (0..100).filter(|_| round.take(30, 100)).count();
        assert_eq!(taken, 4);
        assert_eq!(round.left_bytes(100), 0);
        assert_eq!(round.left_bytes(150), 30, "a larger excess leaves more to shed");
    }

    #[test]
    fn a_round_begins_when_the_last_one_is_over_and_never_by_a_lagging_clock() {
        let round = ShedRound::default();
        round.renew(1000);
        assert!(round.take(100, 100));
        round.renew(1000 + ROUND_MS - 1);
        round.renew(500);
        assert_eq!(round.left_bytes(100), 0);
        round.renew(1000 + ROUND_MS);
        assert_eq!(round.left_bytes(100), 100);
    }
}
