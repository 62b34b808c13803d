//! How many messages a shard has received and delivered per second, over the last few seconds.

use std::collections::VecDeque;

use crate::metrics::Counters;
use crate::protocol::api::PerSecond;

/// The time over which a rate is averaged, in milliseconds.
const WINDOW_MS: u64 = 5000;

/// The least time between two samples of the counters, in milliseconds.
const SAMPLE_MS: u64 = 1000;

/// The counters that rates are made of, at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    at_ms: u64,
    received: u64,
    delivered: u64,
}

impl Sample {
    fn new(at_ms: u64, counters: &Counters) -> Self {
        Self { at_ms, received: counters.client_messages, delivered: counters.delivered }
    }

    /// Returns the counters at a time between this sample and a later one, as if they had grown evenly.
    fn between(self, later: Self, at_ms: u64) -> Self {
        let (passed, whole) = (at_ms - self.at_ms, (later.at_ms - self.at_ms).max(1));
        let grown = |from: u64, to: u64| from + (to - from) * passed / whole;
        let received = grown(self.received, later.received);
        Self { at_ms, received, delivered: grown(self.delivered, later.delivered) }
    }
}

/// Samples of a shard's counters. A sleeping shard takes none: its counters do not change.
#[derive(Debug)]
pub(super) struct Throughput {
    // The samples of the window, and the last one before it, oldest first.
    samples: VecDeque<Sample>,
    next_ms: u64,
}

/// Messages per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::shard) struct Rates {
    /// Messages received from clients.
    pub received: PerSecond,
    /// Messages queued for clients.
    pub delivered: PerSecond,
}

impl Throughput {
    /// Begins with a shard that is created now.
    pub(super) fn new(now_ms: u64) -> Self {
        let start = Sample { at_ms: now_ms, ..Sample::default() };
        Self { samples: [start].into(), next_ms: now_ms + SAMPLE_MS }
    }

    /// Takes a sample if one is due. To be called once per turn.
    #[inline]
    pub(super) fn handle_turn(&mut self, now_ms: u64, counters: &Counters) {
        if now_ms >= self.next_ms {
            self.take_sample(now_ms, counters);
        }
    }

    fn take_sample(&mut self, now_ms: u64, counters: &Counters) {
        self.next_ms = now_ms + SAMPLE_MS;
        self.samples.push_back(Sample::new(now_ms, counters));
        let begin_ms = now_ms.saturating_sub(WINDOW_MS);
        while self.samples.get(1).is_some_and(|second| second.at_ms <= begin_ms) {
            self.samples.pop_front();
        }
    }

    /// Returns the rates over the last five seconds, or since the start of the shard.
    pub(super) fn rates(&self, now_ms: u64, counters: &Counters) -> Rates {
        let now = Sample::new(now_ms, counters);
        let begin_ms = now_ms.saturating_sub(WINDOW_MS);
        let mut later = now;
        let mut begin = now;
        for &sample in self.samples.iter().rev() {
            begin = sample;
            if sample.at_ms <= begin_ms {
                begin = sample.between(later, begin_ms);
                break;
            }
            later = sample;
        }
        let passed_ms = (now_ms - begin.at_ms).max(SAMPLE_MS);
        let rate = |from: u64, to: u64| PerSecond((to - from) * 10_000 / passed_ms);
        let received = rate(begin.received, now.received);
        Rates { received, delivered: rate(begin.delivered, now.delivered) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(received: u64) -> Counters {
        Counters { client_messages: received, delivered: 2 * received, ..Counters::default() }
    }

    fn received(throughput: &Throughput, now_ms: u64, count: u64) -> u64 {
        let rates = throughput.rates(now_ms, &counters(count));
        assert!(rates.delivered.0.abs_diff(2 * rates.received.0) <= 10, "{rates:?}");
        rates.received.0
    }

    #[test]
    fn a_steady_rate_is_shown_after_the_first_second() {
        let mut throughput = Throughput::new(0);
        for ms in 0..60_000 {
            throughput.handle_turn(ms, &counters(ms / 10));
            if ms >= 1000 {
                let shown = received(&throughput, ms, ms / 10);
                assert!((990..=1010).contains(&shown), "{shown} tenths at {ms}");
            }
            assert!(throughput.samples.len() <= 7);
        }
    }

    #[test]
    fn a_burst_after_a_long_sleep_counts_with_the_last_five_seconds() {
        let mut throughput = Throughput::new(0);
        throughput.handle_turn(100_000, &counters(0));
        throughput.handle_turn(101_000, &counters(5000));
        assert_eq!(received(&throughput, 101_000, 5000), 10_000);
        // The shard sleeps again, and takes no sample.
        assert_eq!(received(&throughput, 200_000, 5000), 0);
    }

    #[test]
    fn nothing_is_shown_for_a_shard_that_has_done_nothing() {
        assert_eq!(Throughput::new(5).rates(5, &counters(0)), Rates::default());
    }
}
