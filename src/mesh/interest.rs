//! Who wants to hear of which channel: shards of this node, and other nodes. Channels are known by a
//! keyed hash of their names: 8 bytes whatever the name, and nobody without the grid's key can make
//! two names meet. Two that meet by chance cost a message that finds no subscriber.

use std::hash::Hasher;

use hashbrown::HashMap;
use siphasher::sip::SipHasher24;

use crate::address::{NodeId, ShardId};

/// Channels of one node, at most: 1.5 to 2 GB at each of the others. A node with more is not
/// understood, and its link is closed.
pub const CHANNELS_MAX: usize = 1 << 24;

/// Hashes of channel names, in the same way on every node of the grid.
#[derive(Clone, Copy, Debug)]
pub struct ChannelHash(SipHasher24);

impl ChannelHash {
    /// With the grid's key for this purpose.
    pub fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher24::new_with_key(key))
    }

    /// The hash of a channel's name.
    pub fn of(&self, channel: &str) -> u64 {
        let mut hasher = self.0;
        hasher.write(channel.as_bytes());
        hasher.finish()
    }
}

/// A set of shards: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet([u64; 4]);

impl ShardSet {
    /// Puts a shard in or takes it out.
    pub fn set(&mut self, shard: ShardId, is_in: bool) {
        let (word, bit) = (shard.index() / 64, 1 << (shard.index() % 64));
        match is_in {
            true => self.0[word] |= bit,
            false => self.0[word] &= !bit,
        }
    }

    /// Whether no shard is in it.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// The shards that are in it.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..=255)
            .map(ShardId)
            .filter(move |shard| self.0[shard.index() / 64] >> (shard.index() % 64) & 1 == 1)
    }
}

/// The channels of this node's shards.
#[derive(Debug, Default)]
pub struct OwnInterest {
    shards: HashMap<u64, ShardSet>,
    // Since the last change was told: channels, and whether anybody here wanted them then.
    changed: HashMap<u64, bool>,
}

impl OwnInterest {
    /// A shard has its first subscriber of a channel, or lost its last.
    pub fn set(&mut self, channel: u64, shard: ShardId, is_on: bool) {
        let set = self.shards.entry(channel).or_default();
        let was_on = !set.is_empty();
        set.set(shard, is_on);
        let is_on = !set.is_empty();
        if !is_on {
            self.shards.remove(&channel);
        }
        if was_on != is_on {
            self.changed.entry(channel).or_insert(was_on);
        }
    }

    /// The shards that have subscribers of a channel.
    pub fn shards(&self, channel: u64) -> ShardSet {
        self.shards.get(&channel).copied().unwrap_or_default()
    }

    /// All channels that somebody here wants.
    pub fn channels(&self) -> impl Iterator<Item = u64> {
        self.shards.keys().copied()
    }

    /// Whether there is a change to be told.
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What has changed since it was last asked: channels that are wanted now, and those that are
    /// not any more.
    pub fn take_changes(&mut self) -> (Vec<u64>, Vec<u64>) {
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for (channel, was_on) in self.changed.drain() {
            match (was_on, self.shards.contains_key(&channel)) {
                (false, true) => on.push(channel),
                (true, false) => off.push(channel),
                _ => {}
            }
        }
        on.sort_unstable();
        off.sort_unstable();
        (on, off)
    }
}

/// The channels of other nodes.
#[derive(Debug, Default)]
pub struct NodesInterest {
    nodes: HashMap<u64, Vec<Wanting>>,
    counts: HashMap<NodeId, usize>,
}

/// A node that wants a channel.
#[derive(Clone, Copy, Debug)]
struct Wanting {
    node: NodeId,
    // Its subscribers when it last said.
    last_known: u32,
}

impl NodesInterest {
    /// A node wants a channel from now on, or does not any more. False if it wants too many.
    pub fn set(&mut self, channel: u64, node: NodeId, is_on: bool) -> bool {
        let wanting = self.nodes.entry(channel).or_default();
        let place = wanting.iter().position(|wanting| wanting.node == node);
        let count = self.counts.entry(node).or_default();
        match (place, is_on) {
            (None, true) => {
                wanting.push(Wanting { node, last_known: 0 });
                *count += 1;
            }
            (Some(place), false) => {
                wanting.swap_remove(place);
                *count -= 1;
            }
            _ => {}
        }
        let is_within = *count <= CHANNELS_MAX;
        if wanting.is_empty() {
            self.nodes.remove(&channel);
        }
        is_within
    }

    /// Nothing is known of a node any more. Costs a look at every channel.
    pub fn forget(&mut self, node: NodeId) {
        if self.counts.remove(&node).is_none_or(|count| count == 0) {
            return;
        }
        self.nodes.retain(|_, wanting| {
            wanting.retain(|wanting| wanting.node != node);
            !wanting.is_empty()
        });
    }

    /// The nodes that want a channel.
    pub fn nodes(&self, channel: u64) -> impl Iterator<Item = NodeId> {
        self.nodes.get(&channel).into_iter().flatten().map(|wanting| wanting.node)
    }

    /// A node said how many subscribers it has.
    pub fn note(&mut self, channel: u64, node: NodeId, subscribers: u64) {
        if let Some(wanting) = self.find(channel, node) {
            wanting.last_known = u32::try_from(subscribers).unwrap_or(u32::MAX);
        }
    }

    /// What it last said; 0 if it wants none of it.
    pub fn last_known(&mut self, channel: u64, node: NodeId) -> u64 {
        self.find(channel, node).map_or(0, |wanting| u64::from(wanting.last_known))
    }

    fn find(&mut self, channel: u64, node: NodeId) -> Option<&mut Wanting> {
        self.nodes.get_mut(&channel)?.iter_mut().find(|wanting| wanting.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_was_taken_back_is_not_told() {
        let mut own = OwnInterest::default();
        own.set(7, ShardId(0), true);
        own.set(7, ShardId(200), true);
        own.set(8, ShardId(1), true);
        own.set(8, ShardId(1), false);
        assert_eq!(own.take_changes(), (vec![7], vec![]));
        assert_eq!(own.shards(7).iter().collect::<Vec<_>>(), [ShardId(0), ShardId(200)]);
        own.set(7, ShardId(0), false);
        assert!(!own.has_changes());
        own.set(7, ShardId(200), false);
        assert_eq!((own.take_changes(), own.channels().count()), ((vec![], vec![7]), 0));
    }

    #[test]
    fn a_node_that_is_forgotten_wants_nothing() {
        let (one, two) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let mut nodes = NodesInterest::default();
        assert!(nodes.set(7, one, true) && nodes.set(7, two, true) && nodes.set(8, two, true));
        nodes.note(7, two, 3);
        nodes.note(9, two, 3);
        assert_eq!((nodes.last_known(7, two), nodes.last_known(9, two)), (3, 0));
        nodes.forget(two);
        assert_eq!(nodes.nodes(7).collect::<Vec<_>>(), [one]);
        assert_eq!(nodes.nodes(8).count(), 0);
    }
}
