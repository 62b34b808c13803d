//! Idempotency keys: a publish whose key was used before on the same channel is not delivered again.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::protocol::api::Tally;
use crate::protocol::position::Position;

/// How long a key is remembered, in milliseconds: five minutes, as the protocol promises.
pub const KEY_MS: u64 = 5 * 60 * 1000;

/// The most keys that are remembered. Each takes about 200 bytes, and its text and that of its channel.
const KEYS_MAX: usize = 1 << 17;

/// An idempotency key, with its channel.
pub type PublishKey = (Arc<str>, Box<str>);

/// The keys that were used in the channels whose home one shard is.
#[derive(Debug, Default)]
pub struct UsedKeys {
    keys: HashMap<Arc<str>, UsedKey>,
    // The keys in the order of their use.
    order: VecDeque<(u64, Arc<str>)>,
}

/// The publish that has used a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsedKey {
    /// The message is being delivered.
    InDelivery,
    /// The message was delivered.
    Delivered {
        /// The place behind the message. `None`: the channel has no history.
        position: Option<Position>,
        /// The connections that the message has reached.
        tally: Tally,
    },
}

/// No more keys can be remembered. The publish must not be delivered, because its repetition would be, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyKeys;

impl UsedKeys {
    /// The number of keys that are remembered.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the publish to a channel that has used a key within the last five minutes. If there is none, the key is
    /// used now.
    ///
    /// # Errors
    /// The key is new, and there is no room for it.
    pub fn take(
        &mut self,
        channel: &str,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<UsedKey>, TooManyKeys> {
        self.expire(now_ms);
        let name = name_of(channel, key);
        if let Some(&used) = self.keys.get(&*name) {
            return Ok(Some(used));
        }
        if self.keys.len() >= KEYS_MAX {
            return Err(TooManyKeys);
        }
        let name: Arc<str> = name.into();
        self.keys.insert(name.clone(), UsedKey::InDelivery);
        self.order.push_back((now_ms, name));
        Ok(None)
    }

    /// Notes that the publish with this key was delivered. A key that was forgotten meanwhile stays so.
    pub fn settle(&mut self, channel: &str, key: &str, position: Option<Position>, tally: Tally) {
        if let Some(used) = self.keys.get_mut(&*name_of(channel, key)) {
            *used = UsedKey::Delivered { position, tally };
        }
    }

    /// Remembers the key of a publish that another home has delivered, at most so long ago. Whom it has reached is not
    /// known. A key that is known already stays as it is. Returns false if there is no room.
    pub fn restore(&mut self, channel: &str, key: &str, position: Position, now_ms: u64) -> bool {
        let name = name_of(channel, key);
        if self.keys.contains_key(&*name) {
            return true;
        }
        if self.keys.len() >= KEYS_MAX {
            return false;
        }
        let (name, tally): (Arc<str>, _) = (name.into(), Tally::default());
        self.keys.insert(name.clone(), UsedKey::Delivered { position: Some(position), tally });
        // Kept in the order of the times: a key may live longer, not shorter.
        self.order.push_back((now_ms, name));
        true
    }

    /// Forgets the key of a publish that was not delivered.
    pub fn release(&mut self, channel: &str, key: &str) {
        let name = name_of(channel, key);
        if self.keys.remove(&*name).is_some() {
            self.order.retain(|(_, used)| **used != *name);
        }
    }

    /// Forgets the keys that were used more than five minutes ago.
    pub fn expire(&mut self, now_ms: u64) {
        while let Some((used_ms, _)) = self.order.front()
            && used_ms + KEY_MS <= now_ms
            && let Some((_, name)) = self.order.pop_front()
        {
            self.keys.remove(&name);
        }
    }

    /// Returns when the oldest key is forgotten.
    pub fn next_expiry(&self) -> Option<u64> {
        self.order.front().map(|(used_ms, _)| used_ms + KEY_MS)
    }
}

/// One name for a channel and a key. The length tells where the channel ends.
fn name_of(channel: &str, key: &str) -> String {
    format!("{} {channel}{key}", channel.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_for_five_minutes_on_its_channel() {
        let mut keys = UsedKeys::default();
        assert_eq!(keys.take("ab", "c", 10), Ok(None));
        assert_eq!(keys.take("ab", "c", 10), Ok(Some(UsedKey::InDelivery)));
        assert_eq!(keys.take("a", "bc", 20), Ok(None), "the channel is another");
        let delivered =
            UsedKey::Delivered { position: None, tally: Tally { delivered: 3, failed: 1 } };
        keys.settle("ab", "c", None, Tally { delivered: 3, failed: 1 });
        assert_eq!(keys.take("ab", "c", 9 + KEY_MS), Ok(Some(delivered)));
        assert_eq!(keys.next_expiry(), Some(10 + KEY_MS));
        assert_eq!(keys.take("ab", "c", 10 + KEY_MS), Ok(None));
        assert_eq!((keys.len(), keys.next_expiry()), (2, Some(20 + KEY_MS)));
        keys.settle("x", "y", None, Tally::default());
        keys.expire(10 + 2 * KEY_MS);
        assert!(keys.is_empty() && keys.next_expiry().is_none());
    }

    #[test]
    fn a_key_that_cannot_be_remembered_is_refused() {
        let mut keys = UsedKeys::default();
        for number in 0..KEYS_MAX {
            assert_eq!(keys.take("a", &number.to_string(), 0), Ok(None));
        }
        assert_eq!(keys.take("a", "new", KEY_MS - 1), Err(TooManyKeys));
        assert_eq!(keys.take("a", "7", KEY_MS - 1), Ok(Some(UsedKey::InDelivery)));
        assert_eq!(keys.take("a", "new", KEY_MS), Ok(None));
    }
}
