//! Which shards of a node may have subscribers of a channel. A publish asks only those.
//!
//! A table in shared memory has a fixed number of slots, and in each slot one bit per shard. The
//! hash of a channel's name selects its slot. A shard sets its bit before it answers a subscribe,
//! and clears it when it has no channel of that slot any more. So a publish after the answer sees
//! the bit. Channels that share a slot may make a publish ask a shard without subscribers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::address::{ShardId, placement};

/// The number of slots of a node. The table takes 2 MiB per 64 shards, and each shard needs 1 MiB
/// to count its channels. With as many channels as slots, a publish asks about one shard that has
/// no subscribers.
const SLOTS: usize = 1 << 18;

/// The table that the shards of a node share. Empty if the node has one shard, which is always
/// asked.
pub struct Interest {
    shards: usize,
    // The bits, slot by slot. Each slot has one word per 64 shards.
    words: Box<[AtomicU64]>,
}

impl Interest {
    /// Creates the table of a node with this number of shards, in which no shard has subscribers.
    pub fn new(shards: usize) -> Self {
        let words = if shards > 1 { SLOTS * shards.div_ceil(64) } else { 0 };
        Self { shards, words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Returns the number of shards that the table was made for.
    pub fn shard_count(&self) -> usize {
        self.shards
    }

    /// Returns the shards that may have subscribers of a channel.
    pub fn shards(&self, channel: &str) -> impl Iterator<Item = ShardId> {
        let slot = self.slot(channel);
        let words = (0..).zip(slot.map_or(&[][..], |slot| self.words_of(slot)));
        let alone = (self.shards == 1).then_some(ShardId(0));
        let told = words.flat_map(|(word, bits)| {
            let mut bits = bits.load(Ordering::SeqCst);
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros();
                bits &= bits.wrapping_sub(1);
                (bit < 64).then(|| ShardId((word * 64 + bit) as u8))
            })
        });
        alone.into_iter().chain(told)
    }

    /// Returns the slot of a channel; `None` if the node has one shard.
    fn slot(&self, channel: &str) -> Option<usize> {
        (self.shards > 1).then(|| placement::hash(channel.as_bytes()) as usize % SLOTS)
    }

    fn words_of(&self, slot: usize) -> &[AtomicU64] {
        let words = self.shards.div_ceil(64);
        &self.words[slot * words..][..words]
    }

    fn set(&self, slot: usize, shard: ShardId, is_on: bool) {
        let (word, bit) = (&self.words_of(slot)[shard.index() / 64], 1 << (shard.index() % 64));
        match is_on {
            true => word.fetch_or(bit, Ordering::SeqCst),
            false => word.fetch_and(!bit, Ordering::SeqCst),
        };
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Interest").field("shards", &self.shards).finish_non_exhaustive()
    }
}

/// One shard's part of the table.
#[derive(Debug)]
pub struct ShardInterest {
    shard: ShardId,
    interest: Arc<Interest>,
    // The number of this shard's channels in each slot.
    channels: Vec<u32>,
}

impl ShardInterest {
    /// Creates the part of a shard that has no channels.
    pub fn new(shard: ShardId, interest: Arc<Interest>) -> Self {
        let slots = if interest.shards > 1 { SLOTS } else { 0 };
        Self { shard, interest, channels: vec![0; slots] }
    }

    /// Notes that the shard has its first subscriber of a channel.
    pub fn open(&mut self, channel: &str) {
        let Some(slot) = self.interest.slot(channel) else { return };
        self.channels[slot] += 1;
        if self.channels[slot] == 1 {
            self.interest.set(slot, self.shard, true);
        }
    }

    /// Notes that the shard has lost its last subscriber of a channel.
    pub fn close(&mut self, channel: &str) {
        let Some(slot) = self.interest.slot(channel) else { return };
        self.channels[slot] -= 1;
        if self.channels[slot] == 0 {
            self.interest.set(slot, self.shard, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(interest: &Interest, channel: &str) -> Vec<u8> {
        interest.shards(channel).map(|shard| shard.0).collect()
    }

    #[test]
    fn only_shards_that_have_a_channel_are_asked() {
        let interest = Arc::new(Interest::new(200));
        let mut told =
            [0, 63, 64, 199].map(|shard| ShardInterest::new(ShardId(shard), interest.clone()));
        assert!(asked(&interest, "a").is_empty());
        told.iter_mut().for_each(|told| told.open("a"));
        assert_eq!(asked(&interest, "a"), [0, 63, 64, 199]);
        assert!(asked(&interest, "b").is_empty());
        told[1].close("a");
        assert_eq!(asked(&interest, "a"), [0, 64, 199]);
    }

    #[test]
    fn a_bit_stays_set_until_the_last_channel_of_its_slot_is_closed() {
        let interest = Arc::new(Interest::new(2));
        let names: Vec<String> = (0..SLOTS * 2).map(|number| number.to_string()).collect();
        let mut told = ShardInterest::new(ShardId(1), interest.clone());
        names.iter().for_each(|name| told.open(name));
        let (gone, kept) = names.split_at(SLOTS);
        gone.iter().for_each(|name| told.close(name));
        assert!(kept.iter().all(|name| asked(&interest, name) == [1]));
        kept.iter().for_each(|name| told.close(name));
        assert!(names.iter().all(|name| asked(&interest, name).is_empty()));
    }

    #[test]
    fn the_only_shard_of_a_node_is_always_asked() {
        assert_eq!(asked(&Interest::new(1), "a"), [0]);
    }
}
