//! Which channels are wanted where: by shards of this node, and by other nodes.
//!
//! Channels are known by a keyed hash of their names, which takes 8 bytes whatever the length of the
//! name. Nobody without the grid's key can construct two names with the same hash. If two names collide
//! by chance, a publish to one is also sent where only the other has subscribers, and reaches nobody there.

use std::hash::Hasher;

use hashbrown::HashMap;
use siphasher::sip::SipHasher24;

use super::numbers::ChannelHash;
use crate::address::{NodeId, ShardId};

/// Channels that one node may announce: they take 1.5 to 2 GB at each other node. The link to a node with
/// more is closed.
pub(super) const CHANNELS_MAX: usize = 1 << 24;

/// Hashes channel names in the same way on every node of the grid.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChannelHasher(SipHasher24);

impl ChannelHasher {
    /// A hasher with the grid's key for this purpose.
    pub(super) fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher24::new_with_key(key))
    }

    /// The hash of a channel's name.
    pub(super) fn hash(&self, channel: &str) -> ChannelHash {
        let mut hasher = self.0;
        hasher.write(channel.as_bytes());
        ChannelHash(hasher.finish())
    }
}

/// A set of shards, as one bit per shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardSet([u64; 4]);

impl ShardSet {
    /// Inserts or removes a shard.
    pub(super) fn set(&mut self, shard: ShardId, is_in: bool) {
        let (word, bit) = (shard.index() / 64, 1 << (shard.index() % 64));
        match is_in {
            true => self.0[word] |= bit,
            false => self.0[word] &= !bit,
        }
    }

    /// Whether the set has no shard.
    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// The shards in the set.
    pub(super) fn iter(self) -> impl Iterator<Item = ShardId> {
        (0..=255)
            .map(ShardId)
            .filter(move |shard| self.0[shard.index() / 64] >> (shard.index() % 64) & 1 == 1)
    }
}

/// The channels that shards of this node want.
#[derive(Debug, Default)]
pub(super) struct LocalInterest {
    shards: HashMap<ChannelHash, ShardSet>,
    // Channels whose shards have changed since the last announcement, and whether they were wanted then.
    changed: HashMap<ChannelHash, bool>,
}

impl LocalInterest {
    /// Notes that a shard has its first subscriber of a channel, or has lost its last.
    pub(super) fn set(&mut self, channel: ChannelHash, shard: ShardId, is_on: bool) {
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
    pub(super) fn shards(&self, channel: ChannelHash) -> ShardSet {
        self.shards.get(&channel).copied().unwrap_or_default()
    }

    /// All channels that are wanted.
    pub(super) fn channels(&self) -> impl ExactSizeIterator<Item = ChannelHash> {
        self.shards.keys().copied()
    }

    /// Whether there is a change to announce.
    pub(super) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The channels that have become wanted since the last call, and those that are not wanted any more.
    pub(super) fn take_changes(&mut self) -> (Vec<ChannelHash>, Vec<ChannelHash>) {
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

/// The channels that other nodes want.
#[derive(Debug, Default)]
pub(super) struct RemoteInterest {
    nodes: HashMap<ChannelHash, Vec<InterestedNode>>,
    // Channels per node.
    counts: HashMap<NodeId, usize>,
}

/// A node that wants a channel.
#[derive(Clone, Copy, Debug)]
struct InterestedNode {
    node: NodeId,
    // The node's subscribers, as of its last tally.
    last_known: u32,
}

impl RemoteInterest {
    /// Notes that a node wants a channel, or does not want it any more. False if it wants too many.
    pub(super) fn set(&mut self, channel: ChannelHash, node: NodeId, is_on: bool) -> bool {
        let interested = self.nodes.entry(channel).or_default();
        let place = interested.iter().position(|interested| interested.node == node);
        let count = self.counts.entry(node).or_default();
        match (place, is_on) {
            (None, true) => {
                interested.push(InterestedNode { node, last_known: 0 });
                *count += 1;
            }
            (Some(place), false) => {
                interested.swap_remove(place);
                *count -= 1;
            }
            _ => {}
        }
        let is_within = *count <= CHANNELS_MAX;
        if interested.is_empty() {
            self.nodes.remove(&channel);
        }
        is_within
    }

    /// Forgets the interest of a node. Costs a look at every channel.
    pub(super) fn forget(&mut self, node: NodeId) {
        if self.counts.remove(&node).is_none_or(|count| count == 0) {
            return;
        }
        self.nodes.retain(|_, interested| {
            interested.retain(|interested| interested.node != node);
            !interested.is_empty()
        });
    }

    /// The nodes that want a channel.
    pub(super) fn nodes(&self, channel: ChannelHash) -> impl Iterator<Item = NodeId> {
        self.nodes.get(&channel).into_iter().flatten().map(|interested| interested.node)
    }

    /// Notes how many subscribers of a channel a node has counted.
    pub(super) fn note_subscribers(
        &mut self,
        channel: ChannelHash,
        node: NodeId,
        subscribers: u64,
    ) {
        if let Some(interested) = self.find(channel, node) {
            interested.last_known = u32::try_from(subscribers).unwrap_or(u32::MAX);
        }
    }

    /// The number of subscribers that a node counted last; 0 if it does not want the channel.
    pub(super) fn last_known(&mut self, channel: ChannelHash, node: NodeId) -> u64 {
        self.find(channel, node).map_or(0, |interested| u64::from(interested.last_known))
    }

    fn find(&mut self, channel: ChannelHash, node: NodeId) -> Option<&mut InterestedNode> {
        self.nodes.get_mut(&channel)?.iter_mut().find(|interested| interested.node == node)
    }

    /// The nodes with interest that is not forgotten.
    pub(super) fn known_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.counts.keys().copied()
    }

    /// Asserts the invariants. Costs a look at every channel.
    pub(super) fn check(&self) {
        let mut counts: HashMap<NodeId, usize> = HashMap::new();
        for interested in self.nodes.values() {
            assert!(!interested.is_empty(), "a channel that nobody wants");
            interested.iter().for_each(|known| *counts.entry(known.node).or_default() += 1);
        }
        let counted = self.counts.iter().filter(|(_, count)| **count > 0);
        assert_eq!(counts, counted.map(|(&node, &count)| (node, count)).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVEN: ChannelHash = ChannelHash(7);
    const EIGHT: ChannelHash = ChannelHash(8);

    #[test]
    fn a_change_that_was_reverted_is_not_announced() {
        let mut local = LocalInterest::default();
        local.set(SEVEN, ShardId(0), true);
        local.set(SEVEN, ShardId(200), true);
        local.set(EIGHT, ShardId(1), true);
        local.set(EIGHT, ShardId(1), false);
        assert_eq!(local.take_changes(), (vec![SEVEN], vec![]));
        assert_eq!(local.shards(SEVEN).iter().collect::<Vec<_>>(), [ShardId(0), ShardId(200)]);
        local.set(SEVEN, ShardId(0), false);
        assert!(!local.has_changes());
        local.set(SEVEN, ShardId(200), false);
        assert_eq!((local.take_changes(), local.channels().count()), ((vec![], vec![SEVEN]), 0));
    }

    #[test]
    fn a_node_that_is_forgotten_wants_nothing() {
        let (one, two) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let mut remote = RemoteInterest::default();
        assert!(remote.set(SEVEN, one, true) && remote.set(SEVEN, two, true));
        assert!(remote.set(EIGHT, two, true));
        remote.note_subscribers(SEVEN, two, 3);
        remote.note_subscribers(ChannelHash(9), two, 3);
        assert_eq!((remote.last_known(SEVEN, two), remote.last_known(ChannelHash(9), two)), (3, 0));
        remote.check();
        remote.forget(two);
        remote.check();
        assert_eq!(remote.nodes(SEVEN).collect::<Vec<_>>(), [one]);
        assert_eq!(remote.nodes(EIGHT).count(), 0);
    }
}
