//! Idempotency keys: a publish whose key was used before is not delivered again.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::protocol::api::Tally;
use crate::protocol::position::Serial;

/// How long a key is remembered, in milliseconds: five minutes, as the protocol promises.
pub const KEY_MS: u64 = 5 * 60 * 1000;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;

/// The most keys of one channel. Beyond it the oldest key is forgotten, and may be used again.
const KEYS_MAX: usize = 4096;

/// The keys that were used in one channel.
#[derive(Debug, Default)]
pub struct UsedKeys {
    keys: HashMap<Box<str>, UsedKey>,
    // The keys in the order of their use.
    order: VecDeque<(u64, Box<str>)>,
}

/// The publish that has used a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedKey {
    /// The number of its message.
    pub serial: Serial,
    /// The connections that the message has reached. `None`: not known, or not yet.
    pub tally: Option<Tally>,
}

impl UsedKeys {
    /// The publish that has used a key within the last five minutes.
    pub fn get(&mut self, key: &str, now_ms: u64) -> Option<UsedKey> {
        self.expire(now_ms);
        self.keys.get(key).copied()
    }

    /// Notes the use of a new key.
    pub fn insert(&mut self, key: &str, serial: Serial, at_ms: u64) {
        if self.keys.len() >= KEYS_MAX {
            self.drop_first();
        }
        if self.keys.insert(key.into(), UsedKey { serial, tally: None }).is_none() {
            self.order.push_back((at_ms, key.into()));
        }
    }

    /// Notes what the publish with this key has reached.
    pub fn set_tally(&mut self, key: &str, serial: Serial, tally: Tally) {
        if let Some(used) = self.keys.get_mut(key).filter(|used| used.serial == serial) {
            used.tally = Some(tally);
        }
    }

    fn expire(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(at_ms, _)| at_ms + KEY_MS <= now_ms) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.keys.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_for_five_minutes() {
        let mut keys = UsedKeys::default();
        keys.insert("a", Serial(1), 10);
        assert_eq!(keys.get("a", 9 + KEY_MS).map(|used| used.serial), Some(Serial(1)));
        assert_eq!(keys.get("a", 10 + KEY_MS), None);
    }

    #[test]
    fn the_oldest_key_makes_room_for_a_new_one() {
        let mut keys = UsedKeys::default();
        for number in 0..=KEYS_MAX as u64 {
            keys.insert(&number.to_string(), Serial(number), 0);
        }
        assert_eq!((keys.keys.len(), keys.order.len()), (KEYS_MAX, KEYS_MAX));
        assert_eq!(keys.get("0", 0), None);
        assert!(keys.get("1", 0).is_some() && keys.get(&KEYS_MAX.to_string(), 0).is_some());
    }
}
