//! The reasons why reading from a connection is paused.

/// Reasons to pause reading from a connection. Each is a bit, because several can hold at once.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Pause {
    /// A message waits for room in a topic.
    Topic = 1,
    /// The client's context lacks the key that its route's `hold_until` names.
    Hold = 2,
    /// The peer does not read what was sent to it.
    Outbound = 4,
    /// Too many requests are unanswered.
    Answers = 8,
    /// The connection closes once all pending answers are written.
    Ending = 16,
    /// A request is parked: its credentials are being verified, or its handshake waits for the bridge.
    Parked = 32,
    /// The client has used up its message rate.
    Rate = 64,
    /// The shard that counts the connections of the address has not admitted the connection yet.
    Address = 128,
}

/// A set of reasons to pause reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pauses(u8);

impl Pauses {
    /// Returns the set of these reasons.
    pub const fn of(reasons: &[Pause]) -> Self {
        let (mut bits, mut at) = (0, 0);
        // Constant functions have no iterators.
        while at < reasons.len() {
            bits |= reasons[at] as u8;
            at += 1;
        }
        Self(bits)
    }

    /// Whether no reason is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this reason is in the set.
    pub fn contains(self, reason: Pause) -> bool {
        self.0 & reason as u8 != 0
    }

    /// Whether the sets have a reason in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether all reasons of this set are in the other.
    pub fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Adds a reason.
    pub fn insert(&mut self, reason: Pause) {
        self.0 |= reason as u8;
    }

    /// Removes a reason.
    pub fn remove(&mut self, reason: Pause) {
        self.0 &= !(reason as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_when_its_last_reason_is_removed() {
        let mut pauses = Pauses::default();
        pauses.insert(Pause::Topic);
        pauses.insert(Pause::Address);
        pauses.insert(Pause::Topic);
        assert_eq!(pauses, Pauses::of(&[Pause::Address, Pause::Topic]));
        assert!(pauses.intersects(Pauses::of(&[Pause::Topic, Pause::Rate])));
        assert!(!pauses.is_within(Pauses::of(&[Pause::Topic, Pause::Rate])));
        pauses.remove(Pause::Address);
        assert!(pauses.contains(Pause::Topic) && !pauses.contains(Pause::Address));
        assert!(pauses.is_within(Pauses::of(&[Pause::Topic, Pause::Rate])));
        pauses.remove(Pause::Topic);
        assert!(pauses.is_empty());
    }
}
