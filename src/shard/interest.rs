//! Which shards of a node may have subscribers of a channel: told by memory that they share, so that
//! a publish asks those alone.
//!
//! Each channel's name falls into one of a fixed number of slots, where each shard has a bit. It is set
//! before a subscribe is answered and cleared when the last channel of the slot has gone from the shard.
//! So whoever publishes after the answer sees it; names that share a slot cost a question in vain.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::address::{ShardId, placement};

/// Slots of a node: 2 MiB per 64 shards, 1 MiB more for each shard that uses all of them. With as many
/// channels as slots a publish asks about one shard in vain.
const SLOTS: usize = 1 << 18;

/// What the shards of a node tell each other. One shard alone needs none.
pub struct Interest {
    shards: usize,
    // By slot: so many words as there are 64 shards.
    words: Box<[AtomicU64]>,
}

impl Interest {
    /// Of a node with so many shards.
    pub fn new(shards: usize) -> Self {
        let words = if shards > 1 { SLOTS * shards.div_ceil(64) } else { 0 };
        Self { shards, words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// How many shards it was made for.
    pub fn count(&self) -> usize {
        self.shards
    }

    /// The shards that may have subscribers of this channel.
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

    /// Where a channel's bits are; `None` with one shard alone.
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

/// What one shard tells the others.
#[derive(Debug)]
pub struct ShardInterest {
    shard: ShardId,
    interest: Arc<Interest>,
    // Channels of this shard by slot.
    channels: Vec<u32>,
}

impl ShardInterest {
    /// Nothing yet.
    pub fn new(shard: ShardId, interest: Arc<Interest>) -> Self {
        let slots = if interest.shards > 1 { SLOTS } else { 0 };
        Self { shard, interest, channels: vec![0; slots] }
    }

    /// The shard has its first subscriber of a channel.
    pub fn open(&mut self, channel: &str) {
        let Some(slot) = self.interest.slot(channel) else { return };
        self.channels[slot] += 1;
        if self.channels[slot] == 1 {
            self.interest.set(slot, self.shard, true);
        }
    }

    /// It lost its last.
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
    fn those_who_have_a_channel_are_asked_and_no_others() {
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
    fn a_slot_is_on_for_as_long_as_one_of_its_channels_is_there() {
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
    fn one_shard_alone_is_always_asked() {
        assert_eq!(asked(&Interest::new(1), "a"), [0]);
    }
}
