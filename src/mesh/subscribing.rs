//! Subscribes in progress.
//!
//! A back end may publish behind a subscribe without waiting for the answer, and both take effect in
//! order. So the node to which a subscribe is sent, and the shard there, count as interested in its
//! channels for as long as the subscribe may be unanswered.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::numbers::ChannelHash;

/// Subscribes that are remembered at a time. Beyond it the oldest is forgotten: a publish behind it may
/// miss the client, unless the back end waits for the answer to the subscribe.
const REMEMBERED_MAX: usize = 1 << 16;

/// The destinations of recent subscribes, by channel. `T` is a node or a shard.
#[derive(Debug)]
pub(super) struct Subscribing<T> {
    channels: HashMap<ChannelHash, Vec<Destination<T>>>,
    // In the order in which they were noted, which is that of their expiry.
    notes: VecDeque<Note<T>>,
}

#[derive(Debug)]
struct Destination<T> {
    to: T,
    // How many notes name it.
    notes: u32,
}

#[derive(Debug)]
struct Note<T> {
    until_ms: u64,
    channel: ChannelHash,
    to: T,
}

impl<T> Default for Subscribing<T> {
    fn default() -> Self {
        Self { channels: HashMap::new(), notes: VecDeque::new() }
    }
}

impl<T: Copy + PartialEq> Subscribing<T> {
    /// Remembers a subscribe until `until_ms`, which is never before that of the last one.
    pub(super) fn note(&mut self, until_ms: u64, channel: ChannelHash, to: T) {
        if self.notes.len() == REMEMBERED_MAX {
            self.forget_oldest();
        }
        self.notes.push_back(Note { until_ms, channel, to });
        let destinations = self.channels.entry(channel).or_default();
        match destinations.iter_mut().find(|destination| destination.to == to) {
            Some(destination) => destination.notes += 1,
            None => destinations.push(Destination { to, notes: 1 }),
        }
    }

    /// The destinations of recent subscribes to a channel.
    pub(super) fn destinations(&self, channel: ChannelHash) -> impl Iterator<Item = T> {
        self.channels.get(&channel).into_iter().flatten().map(|destination| destination.to)
    }

    /// Forgets subscribes whose time is over.
    pub(super) fn expire(&mut self, now_ms: u64) {
        while self.notes.front().is_some_and(|note| note.until_ms <= now_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(Note { channel, to, .. }) = self.notes.pop_front() else { return };
        let Some(destinations) = self.channels.get_mut(&channel) else { return };
        if let Some(destination) = destinations.iter_mut().find(|known| known.to == to) {
            destination.notes -= 1;
        }
        destinations.retain(|destination| destination.notes > 0);
        if destinations.is_empty() {
            self.channels.remove(&channel);
        }
    }

    /// Asserts the invariants. Costs a look at all that is remembered.
    pub(super) fn check(&self) {
        let counted: u32 = self.channels.values().flatten().map(|known| known.notes).sum();
        assert_eq!(counted as usize, self.notes.len(), "each note is counted");
        assert!(self.channels.values().all(|destinations| !destinations.is_empty()));
        assert!(self.notes.iter().is_sorted_by_key(|note| note.until_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_remembered_until_its_last_subscribe_is_over() {
        let mut subscribing = Subscribing::default();
        let channel = ChannelHash(7);
        subscribing.note(10, channel, 'a');
        subscribing.note(11, channel, 'b');
        subscribing.note(12, channel, 'a');
        subscribing.check();
        subscribing.expire(11);
        assert_eq!(subscribing.destinations(channel).collect::<Vec<_>>(), ['a']);
        subscribing.expire(12);
        let mut left = subscribing.destinations(channel);
        assert!(left.next().is_none() && subscribing.channels.is_empty());
    }
}
