//! What was seen of late and how often: bounded in number and in time.

use std::collections::VecDeque;
use std::hash::Hash;

use hashbrown::HashMap;

/// Counts keys, each for a window that begins when it is first seen. When there are too many keys,
/// the one whose window began first is forgotten.
#[derive(Debug)]
pub struct Recent<K> {
    window_ms: u64,
    keys_max: usize,
    // How often, and when the window began.
    counts: HashMap<K, (u8, u64)>,
    // In the order in which their windows began, with that time: one entry per count.
    windows: VecDeque<(K, u64)>,
}

impl<K: Copy + Eq + Hash> Recent<K> {
    /// Nothing was seen yet.
    pub fn new(window_ms: u64, keys_max: usize) -> Self {
        Self { window_ms, keys_max, counts: HashMap::new(), windows: VecDeque::new() }
    }

    /// How often a key was seen within its window.
    pub fn count(&mut self, now_ms: u64, key: K) -> u8 {
        self.forget_old(now_ms);
        self.counts.get(&key).map_or(0, |&(count, _)| count)
    }

    /// When the window of a key began.
    pub fn since(&mut self, now_ms: u64, key: K) -> Option<u64> {
        self.forget_old(now_ms);
        self.counts.get(&key).map(|&(_, start_ms)| start_ms)
    }

    /// Counts a key; how often it was seen then.
    pub fn note(&mut self, now_ms: u64, key: K) -> u8 {
        self.forget_old(now_ms);
        if let Some((count, _)) = self.counts.get_mut(&key) {
            *count = count.saturating_add(1);
            return *count;
        }
        if self.windows.len() == self.keys_max {
            self.forget_first();
        }
        self.counts.insert(key, (1, now_ms));
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
