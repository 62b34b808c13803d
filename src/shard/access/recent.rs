//! Counts how often a key was seen within a time window. The number of keys is bounded.

use std::collections::VecDeque;
use std::hash::Hash;

use hashbrown::HashMap;

/// Counts per key, each within a window that begins when the key is first seen. With more than
/// `keys_max` keys, the key whose window began first is forgotten.
#[derive(Debug)]
pub(super) struct Recent<K> {
    window_ms: u64,
    keys_max: usize,
    // At most `keys_max`.
    counts: HashMap<K, AttemptWindow>,
    // Keys in the order in which their windows began, with that time: one entry for each in
    // `counts`.
    windows: VecDeque<(K, u64)>,
}

/// The window of one key.
#[derive(Debug)]
struct AttemptWindow {
    // Stays at 255 when reached.
    count: u8,
    start_ms: u64,
}

impl<K: Copy + Eq + Hash> Recent<K> {
    /// Creates a record in which no key was seen.
    pub(super) fn new(window_ms: u64, keys_max: usize) -> Self {
        Self { window_ms, keys_max, counts: HashMap::new(), windows: VecDeque::new() }
    }

    /// Returns how often a key was seen within its window, at most 255.
    pub(super) fn count(&mut self, now_ms: u64, key: K) -> u8 {
        self.forget_old(now_ms);
        self.counts.get(&key).map_or(0, |window| window.count)
    }

    /// Returns when the window of a key began, in milliseconds of the shard's clock.
    pub(super) fn since(&mut self, now_ms: u64, key: K) -> Option<u64> {
        self.forget_old(now_ms);
        self.counts.get(&key).map(|window| window.start_ms)
    }

    /// Counts a key; returns how often it was seen within its window, this time included.
    pub(super) fn note(&mut self, now_ms: u64, key: K) -> u8 {
        self.forget_old(now_ms);
        if let Some(window) = self.counts.get_mut(&key) {
            window.count = window.count.saturating_add(1);
            return window.count;
        }
        if self.windows.len() == self.keys_max {
            self.forget_first();
        }
        self.counts.insert(key, AttemptWindow { count: 1, start_ms: now_ms });
        self.windows.push_back((key, now_ms));
        1
    }

    fn forget_old(&mut self, now_ms: u64) {
        let window_ms = self.window_ms;
        while self.windows.front().is_some_and(|&(_, start_ms)| start_ms + window_ms <= now_ms) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((key, _)) = self.windows.pop_front() {
            self.counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_counted_until_its_window_ends() {
        let mut recent = Recent::new(1000, 10);
        assert_eq!((recent.count(0, 'a'), recent.note(0, 'a'), recent.note(999, 'a')), (0, 1, 2));
        assert_eq!((recent.count(999, 'a'), recent.count(999, 'b')), (2, 0));
        assert_eq!((recent.since(999, 'a'), recent.since(999, 'b')), (Some(0), None));
        assert_eq!(recent.count(1000, 'a'), 0);
    }

    #[test]
    fn when_there_are_too_many_keys_the_first_is_forgotten() {
        let mut recent = Recent::new(1000, 3);
        (0..4).for_each(|key| _ = recent.note(key, key));
        assert_eq!((recent.count(4, 0), recent.count(4, 1), recent.count(4, 3)), (0, 1, 1));
        assert_eq!((recent.counts.len(), recent.windows.len()), (3, 3));
    }
}
