//! The channels of a shard and their subscribers, stored for a linear walk.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::message::InterestChange;
use crate::shard::interest::ShardInterest;

/// Number of channels for which the tables keep their capacity.
const ROOM_KEPT: usize = 1024;

/// The index of a channel in the table, valid while it has subscribers or a walk is in progress.
pub(super) type ChannelIndex = u32;

/// A client's position among the members of a channel. The client keeps one per channel, so that
/// unsubscribing takes no search.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// The channel.
    pub channel: ChannelIndex,
    position: u32,
}

/// A member of a channel, with the way back to its [`Subscription`]. Each side knows the position
/// of the other, so that either can move in constant time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChannelMember {
    /// The index of the connection in the shard's table.
    pub connection: u32,
    /// The index of the subscription in the client's list.
    pub place: u32,
}

impl ChannelMember {
    // Marks a member that unsubscribed while a walk was in progress. The entry is removed when the
    // last walk ends. An `Option` would make each of possibly millions of entries longer by half.
    const LEFT: Self = Self { connection: u32::MAX, place: u32::MAX };
}

/// All channels of one shard.
#[derive(Debug)]
pub(super) struct Channels {
    by_name: HashMap<Box<str>, ChannelIndex>,
    slots: Vec<Channel>,
    free: Vec<ChannelIndex>,
    // Changes for the mesh. `None`: the node has no mesh.
    changes: Option<Changes>,
    // Tells the other shards of the node which channels have subscribers here.
    interest: ShardInterest,
}

/// Channels that appeared or disappeared, to be announced. Emptied after each input.
#[derive(Debug, Default)]
struct Changes {
    last_number: InterestChange,
    unannounced: VecDeque<ChannelChange>,
}

/// A channel that gained its first subscriber on this shard, or lost its last.
#[derive(Debug)]
pub(super) struct ChannelChange {
    /// The number of the change.
    pub number: InterestChange,
    /// The name of the channel.
    pub channel: Arc<str>,
    /// Whether the channel has subscribers now.
    pub has_subscribers: bool,
}

impl Changes {
    fn note(&mut self, name: &str, has_subscribers: bool) -> InterestChange {
        self.last_number.0 += 1;
        let (number, channel) = (self.last_number, name.into());
        self.unannounced.push_back(ChannelChange { number, channel, has_subscribers });
        number
    }
}

#[derive(Debug, Default)]
struct Channel {
    name: Box<str>,
    // The number of the change with which the channel appeared. `None` without a mesh.
    change: Option<InterestChange>,
    // In no order. Some may be ChannelMember::LEFT while walks are in progress.
    members: Vec<ChannelMember>,
    walked: Option<Box<Walked>>,
}

/// The state of a channel while walks over several turns are in progress. The members keep their
/// positions while a walk is in progress.
#[derive(Debug, Default)]
struct Walked {
    // The numbers of the walks in progress, oldest first, and the last number given out.
    walks: Vec<WalkNumber>,
    last: WalkNumber,
    // Positions of members that unsubscribed. New subscribers reuse these positions, so that the
    // list does not grow while walks follow each other.
    holes: Vec<u32>,
    // Reused positions, each with the number of the newest walk at that time. A walk with that
    // number or a lower one skips the position, because it may have met the same client at another.
    newcomers: HashMap<u32, WalkNumber>,
}

/// The number of a walk among those through the same channel.
pub(super) type WalkNumber = u64;

impl Channels {
    /// Creates the table. With `has_mesh`, [`Self::poll_change`] returns the changes.
    pub(super) fn new(has_mesh: bool, interest: ShardInterest) -> Self {
        let changes = has_mesh.then(Changes::default);
        Self { by_name: HashMap::new(), slots: Vec::new(), free: Vec::new(), changes, interest }
    }

    /// Returns the next channel that appeared or disappeared.
    pub(super) fn poll_change(&mut self) -> Option<ChannelChange> {
        self.changes.as_mut()?.unannounced.pop_front()
    }

    /// Returns the number of the change with which this channel appeared. `None` without a mesh or
    /// for a channel without subscribers.
    pub(super) fn change_of(&self, name: &str) -> Option<InterestChange> {
        self.find(name).and_then(|channel| self.slots[channel as usize].change)
    }

    /// Returns the channel of this name, if it has subscribers on this shard.
    pub(super) fn find(&self, name: &str) -> Option<ChannelIndex> {
        self.by_name.get(name).copied()
    }

    /// Returns the name of a channel.
    pub(super) fn name(&self, channel: ChannelIndex) -> &str {
        &self.slots[channel as usize].name
    }

    /// Returns the number of channels with subscribers on this shard.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// All indices of channels are below this one.
    pub(super) fn index_end(&self) -> ChannelIndex {
        self.slots.len() as ChannelIndex
    }

    /// Returns the name of a channel and the number of its members. `None`: no channel has this index, or it
    /// has no members.
    pub(super) fn name_and_members(&self, channel: ChannelIndex) -> Option<(&str, usize)> {
        let slot = self.slots.get(channel as usize)?;
        let left = slot.walked.as_ref().map_or(0, |walked| walked.holes.len());
        let members = slot.members.len() - left;
        (members > 0).then_some((&*slot.name, members))
    }

    /// Subscribes a connection that is not subscribed to this channel yet.
    pub(super) fn subscribe(&mut self, name: &str, member: ChannelMember) -> Subscription {
        let channel = self.find(name).unwrap_or_else(|| self.open(name));
        let slot = &mut self.slots[channel as usize];
        if let Some(walked) = &mut slot.walked
            && let Some(position) = walked.holes.pop()
        {
            walked.newcomers.insert(position, walked.last);
            slot.members[position as usize] = member;
            return Subscription { channel, position };
        }
        slot.members.push(member);
        Subscription { channel, position: slot.members.len() as u32 - 1 }
    }

    fn open(&mut self, name: &str) -> ChannelIndex {
        let channel = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Channel::default());
            self.slots.len() as ChannelIndex - 1
        });
        let change = self.changes.as_mut().map(|changes| changes.note(name, true));
        let slot = &mut self.slots[channel as usize];
        (slot.name, slot.change) = (name.into(), change);
        self.by_name.insert(name.into(), channel);
        self.interest.open(name);
        channel
    }

    /// Notes that a subscription has moved to another index in its client's list.
    pub(super) fn set_place(&mut self, subscription: Subscription, place: u32) {
        let Subscription { channel, position } = subscription;
        self.slots[channel as usize].members[position as usize].place = place;
    }

    /// Ends a subscription. If another member took its position, `moved` receives that member and
    /// its new subscription.
    pub(super) fn unsubscribe(
        &mut self,
        subscription: Subscription,
        moved: impl FnOnce(ChannelMember, Subscription),
    ) {
        let Subscription { channel, position } = subscription;
        let slot = &mut self.slots[channel as usize];
        if let Some(walked) = &mut slot.walked {
            slot.members[position as usize] = ChannelMember::LEFT;
            walked.newcomers.remove(&position);
            walked.holes.push(position);
            return;
        }
        slot.members.swap_remove(position as usize);
        if let Some(&member) = slot.members.get(position as usize) {
            moved(member, subscription);
        }
        self.close_if_empty(channel);
    }

    fn close_if_empty(&mut self, channel: ChannelIndex) {
        let slot = &mut self.slots[channel as usize];
        if slot.members.is_empty() && slot.walked.is_none() {
            self.by_name.remove(&slot.name);
            self.interest.close(&slot.name);
            if let Some(changes) = &mut self.changes {
                changes.note(&slot.name, false);
            }
            *slot = Channel::default();
            self.free.push(channel);
            self.give_back_room();
        }
    }

    /// Releases the memory of many former channels: of the names when few are left, and of the
    /// slots when none is.
    fn give_back_room(&mut self) {
        let (channels, room) = (self.by_name.len(), self.by_name.capacity());
        if room > ROOM_KEPT && channels < room / 8 {
            self.by_name.shrink_to(2 * channels);
        }
        if channels == 0 && self.slots.len() > ROOM_KEPT {
            (self.slots, self.free) = (Vec::new(), Vec::new());
        }
    }

    /// Returns the end of the member list, for a walk that begins now.
    pub(super) fn end(&self, channel: ChannelIndex) -> usize {
        self.slots[channel as usize].members.len()
    }

    /// Registers a walk that continues in later turns, and returns its number.
    pub(super) fn begin_walk(&mut self, channel: ChannelIndex) -> WalkNumber {
        let walked = self.slots[channel as usize].walked.get_or_insert_default();
        walked.last += 1;
        walked.walks.push(walked.last);
        walked.last
    }

    /// Iterates over the members from `at` to `end`, with their positions. Skips members that
    /// unsubscribed, and those that this walk may have met before. `walk` is `None` for a walk
    /// within one turn, which meets all members.
    pub(super) fn members(
        &self,
        channel: ChannelIndex,
        walk: Option<WalkNumber>,
        at: usize,
        end: usize,
    ) -> impl Iterator<Item = (usize, ChannelMember)> {
        let slot = &self.slots[channel as usize];
        let newcomers = slot.walked.as_ref().map(|walked| &walked.newcomers);
        let newcomers = newcomers.filter(|newcomers| !newcomers.is_empty());
        let is_met = move |position: usize| {
            let began = newcomers.and_then(|newcomers| newcomers.get(&(position as u32)));
            began.is_none_or(|&began| walk.is_none_or(|walk| walk > began))
        };
        let members = (at..).zip(slot.members[at..end].iter().copied());
        members.filter(move |&(position, member)| member != ChannelMember::LEFT && is_met(position))
    }

    /// Ends a registered walk. When no walk is left, removes the members that unsubscribed
    /// meanwhile. `moved` receives each member whose position changed, with its new subscription.
    pub(super) fn end_walk(
        &mut self,
        channel: ChannelIndex,
        walk: WalkNumber,
        mut moved: impl FnMut(ChannelMember, Subscription),
    ) {
        let slot = &mut self.slots[channel as usize];
        let Some(walked) = &mut slot.walked else { return };
        walked.walks.retain(|&other| other != walk);
        if let Some(&oldest) = walked.walks.first() {
            walked.newcomers.retain(|_, began| *began >= oldest);
            return;
        }
        let mut holes = slot.walked.take().map(|walked| walked.holes).unwrap_or_default();
        // The last hole is filled first, so that the member that fills it is never a hole itself.
        holes.sort_unstable();
        while let Some(position) = holes.pop() {
            slot.members.swap_remove(position as usize);
            if let Some(&member) = slot.members.get(position as usize) {
                moved(member, Subscription { channel, position });
            }
        }
        self.close_if_empty(channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ShardId;
    use crate::shard::interest::Interest;

    fn met(channels: &Channels, walk: Option<WalkNumber>, at: usize, end: usize) -> Vec<u32> {
        channels.members(0, walk, at, end).map(|(_, member)| member.connection).collect()
    }

    #[test]
    fn the_memory_of_many_former_channels_is_released() {
        let interest = ShardInterest::new(ShardId(0), Arc::new(Interest::new(1)));
        let mut channels = Channels::new(false, interest);
        for round in 0..2 {
            let names = (0..20_000).map(|number| format!("{round}.{number}"));
            let places: Vec<_> = names
                .map(|name| channels.subscribe(&name, ChannelMember { connection: 0, place: 0 }))
                .collect();
            assert_eq!(channels.len(), 20_000);
            for place in places {
                channels.unsubscribe(place, |_, _| panic!("somebody moved"));
            }
            assert!(channels.by_name.capacity() <= 2 * ROOM_KEPT);
            assert_eq!((channels.slots.capacity(), channels.free.capacity()), (0, 0));
        }
    }

    #[test]
    fn a_walk_visits_a_client_that_resubscribes_only_once() {
        let interest = ShardInterest::new(ShardId(0), Arc::new(Interest::new(1)));
        let mut channels = Channels::new(false, interest);
        let member = |connection| ChannelMember { connection, place: 0 };
        let subscriptions: Vec<_> =
            (0..6).map(|connection| channels.subscribe("a", member(connection))).collect();
        let (end, first) = (channels.end(0), channels.begin_walk(0));
        assert_eq!(met(&channels, Some(first), 0, 3), [0, 1, 2]);
        for left in [0, 5] {
            channels.unsubscribe(subscriptions[left], |_, _| panic!("somebody moved"));
        }
        channels.subscribe("a", member(0));
        assert_eq!(met(&channels, Some(first), 3, end), [3, 4]);
        // Walks that began later meet the member at its new position, and so do walks within one
        // turn.
        let second = channels.begin_walk(0);
        for walk in [Some(second), None] {
            assert_eq!(met(&channels, walk, 0, end), [1, 2, 3, 4, 0]);
        }
        channels.end_walk(0, first, |_, _| panic!("somebody moved"));
        assert_eq!(met(&channels, Some(second), 3, end), [3, 4, 0]);
        let mut moved = Vec::new();
        channels.end_walk(0, second, |member, _| moved.push(member.connection));
        assert_eq!((moved, channels.end(0)), (vec![0], 5));
    }
}
