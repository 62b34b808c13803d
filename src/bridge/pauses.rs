//! RetryPauses before something that has failed is tried again.

/// The pause after the first failure, in milliseconds. Each further one doubles it.
pub(super) const PAUSE_MS_MIN: u64 = 200;

/// The longest pause, in milliseconds.
pub(super) const PAUSE_MS_MAX: u64 = 15_000;

/// RetryPauses that grow with the number of failures. Half of each is random, so that nodes do not return to a service at the
/// same time.
#[derive(Debug)]
pub(super) struct RetryPauses {
    random: u64,
}

impl RetryPauses {
    /// RetryPauses that differ for each value.
    pub(super) fn new(random: u64) -> Self {
        // A generator of this kind never leaves zero.
        Self { random: random | 1 }
    }

    /// Returns the pause after a number of failures in a row, in milliseconds.
    pub(super) fn next_ms(&mut self, failures: u32) -> u64 {
        // xorshift64.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let doublings = failures.saturating_sub(1).min(16);
        let grown_ms = (PAUSE_MS_MIN << doublings).min(PAUSE_MS_MAX);
        grown_ms / 2 + self.random % (grown_ms / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_grows_to_a_bound_and_half_of_it_is_random() {
        let mut pauses = RetryPauses::new(0);
        for (failures, longest_ms) in
            [(1, 200), (2, 400), (7, 12_800), (8, 15_000), (u32::MAX, 15_000)]
        {
            let all: Vec<u64> = (0..100).map(|_| pauses.next_ms(failures)).collect();
            assert!(all.iter().all(|ms| (longest_ms / 2..=longest_ms).contains(ms)), "{all:?}");
            assert!(all.iter().any(|ms| *ms != all[0]));
        }
    }
}
