//! Channel → the clients of this shard that are subscribed to it, laid out for a linear walk.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::shard::interest::ShardInterest;

/// Channels for which room is kept when they are gone.
const ROOM_KEPT: usize = 1024;

/// A channel's place in the table, while it has subscribers or a walk goes through it.
pub type ChannelIndex = u32;

/// A client's place among the members of a channel. The client keeps one for each of its channels,
/// so that leaving a channel takes no search.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// The channel.
    pub channel: ChannelIndex,
    position: u32,
}

/// A member of a channel, with the way back to its [`Subscription`]: both ends know where the other
/// is, so that either can move in constant time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The index of the connection in the shard's table.
    pub connection: u32,
    /// The index of the subscription in the list that the connection keeps.
    pub place: u32,
}

impl Member {
    // A member that left while walks were in progress: removed when the last of them ends.
    const LEFT: Self = Self { connection: u32::MAX, place: u32::MAX };
}

/// All channels of one shard.
#[derive(Debug)]
pub struct Channels {
    by_name: HashMap<Box<str>, ChannelIndex>,
    slots: Vec<Channel>,
    free: Vec<ChannelIndex>,
    // None: no other node is told of changes.
    changes: Option<Changes>,
    // The other shards are told of them too.
    interest: ShardInterest,
}

/// Channels that came into being or went, for who is to be told: taken out after each step.
#[derive(Debug, Default)]
struct Changes {
    count: u64,
    untold: VecDeque<(u64, Arc<str>, bool)>,
}

impl Changes {
    fn note(&mut self, name: &str, is_on: bool) -> u64 {
        self.count += 1;
        self.untold.push_back((self.count, name.into(), is_on));
        self.count
    }
}

#[derive(Debug, Default)]
struct Channel {
    name: Box<str>,
    // The number of the change that it came with.
    change: u64,
    // In no order; some may be Member::LEFT while walks are in progress.
    members: Vec<Member>,
    walked: Option<Box<Walked>>,
}

/// What there is of a channel while walks go through it over several turns: nobody moves meanwhile.
#[derive(Debug, Default)]
struct Walked {
    // The numbers of the walks, in the order in which they began, and the last number given.
    walks: Vec<WalkNumber>,
    last: WalkNumber,
    // Positions of those that left. They are filled, so that walks that never cease do not let the
    // members grow.
    holes: Vec<u32>,
    // Positions that were filled, and the last walk that had begun by then. Walks up to that one
    // pass by: they may have met the same client where it stood before.
    newcomers: HashMap<u32, WalkNumber>,
}

/// Numbers a walk among those through its channel.
pub type WalkNumber = u64;

/// Of a walk that is not under way over several turns, or not yet: it meets all members.
pub const IN_ONE_GO: WalkNumber = WalkNumber::MAX;

impl Channels {
    /// No channels yet. With `has_listener`, changes come out of [`Self::poll_change`]. The other shards
    /// are told of them in any case.
    pub fn new(has_listener: bool, interest: ShardInterest) -> Self {
        let changes = has_listener.then(Changes::default);
        Self { by_name: HashMap::new(), slots: Vec::new(), free: Vec::new(), changes, interest }
    }

    /// The next channel that came into being (true) or went, with the number of the change.
    pub fn poll_change(&mut self) -> Option<(u64, Arc<str>, bool)> {
        self.changes.as_mut()?.untold.pop_front()
    }

    /// The number of the change that this channel came with; 0 if nobody is told of changes.
    pub fn change_of(&self, name: &str) -> u64 {
        self.find(name).map_or(0, |channel| self.slots[channel as usize].change)
    }

    /// The channel of this name, if it has subscribers here.
    pub fn find(&self, name: &str) -> Option<ChannelIndex> {
        self.by_name.get(name).copied()
    }

    /// A channel's name.
    pub fn name(&self, channel: ChannelIndex) -> &str {
        &self.slots[channel as usize].name
    }

    /// Channels with subscribers here.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Subscribes a connection, which is not subscribed yet.
    pub fn subscribe(&mut self, name: &str, member: Member) -> Subscription {
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
        let change = self.changes.as_mut().map_or(0, |changes| changes.note(name, true));
        let slot = &mut self.slots[channel as usize];
        (slot.name, slot.change) = (name.into(), change);
        self.by_name.insert(name.into(), channel);
        self.interest.open(name);
        channel
    }

    /// Notes that a subscription has moved to another place in the list of its connection.
    pub fn set_place(&mut self, subscription: Subscription, place: u32) {
        let Subscription { channel, position } = subscription;
        self.slots[channel as usize].members[position as usize].place = place;
    }

    /// Ends a subscription. If another member took its position, `moved` is told which member, and
    /// the subscription that it is to keep from now on.
    pub fn unsubscribe(
        &mut self,
        subscription: Subscription,
        moved: impl FnOnce(Member, Subscription),
    ) {
        let Subscription { channel, position } = subscription;
        let slot = &mut self.slots[channel as usize];
        if let Some(walked) = &mut slot.walked {
            slot.members[position as usize] = Member::LEFT;
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

    /// Gives memory back that a crowd of channels took: that of names when few are left of so many, and
    /// that of places when no channel is.
    fn give_back_room(&mut self) {
        let (channels, room) = (self.by_name.len(), self.by_name.capacity());
        if room > ROOM_KEPT && channels < room / 8 {
            self.by_name.shrink_to(2 * channels);
        }
        if channels == 0 && self.slots.len() > ROOM_KEPT {
            (self.slots, self.free) = (Vec::new(), Vec::new());
        }
    }

    /// Where a walk that begins now ends.
    pub fn end(&self, channel: ChannelIndex) -> usize {
        self.slots[channel as usize].members.len()
    }

    /// A walk is to go on in later turns; gives its number.
    pub fn begin_walk(&mut self, channel: ChannelIndex) -> WalkNumber {
        let walked = self.slots[channel as usize].walked.get_or_insert_default();
        walked.last += 1;
        walked.walks.push(walked.last);
        walked.last
    }

    /// The members from `at` to `end` with their positions, but for those that left, and those that
    /// came after the walk had begun.
    pub fn members(
        &self,
        channel: ChannelIndex,
        walk: WalkNumber,
        at: usize,
        end: usize,
    ) -> impl Iterator<Item = (usize, Member)> {
        let slot = &self.slots[channel as usize];
        let newcomers = slot.walked.as_ref().map(|walked| &walked.newcomers);
        let newcomers = newcomers.filter(|newcomers| !newcomers.is_empty());
        let is_met = move |position: usize| {
            let began = newcomers.and_then(|newcomers| newcomers.get(&(position as u32)));
            began.is_none_or(|&began| walk > began)
        };
        let members = (at..).zip(slot.members[at..end].iter().copied());
        members.filter(move |&(position, member)| member != Member::LEFT && is_met(position))
    }

    /// Ends a walk that went over several turns. With the last one, those who left meanwhile are
    /// taken out; `moved` is told of each member whose position changed, with the subscription as it
    /// is now.
    pub fn end_walk(
        &mut self,
        channel: ChannelIndex,
        walk: WalkNumber,
        mut moved: impl FnMut(Member, Subscription),
    ) {
        let slot = &mut self.slots[channel as usize];
        let Some(walked) = &mut slot.walked else { return };
        walked.walks.retain(|&other| other != walk);
        if let Some(&oldest) = walked.walks.first() {
            walked.newcomers.retain(|_, began| *began >= oldest);
            return;
        }
        let mut holes = slot.walked.take().map(|walked| walked.holes).unwrap_or_default();
        // From the last hole on: what is behind it is then never a hole.
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

    fn met(channels: &Channels, walk: WalkNumber, at: usize, end: usize) -> Vec<u32> {
        channels.members(0, walk, at, end).map(|(_, member)| member.connection).collect()
    }

    #[test]
    fn a_crowd_of_channels_gives_its_room_back() {
        let interest = ShardInterest::new(ShardId(0), Arc::new(Interest::new(1)));
        let mut channels = Channels::new(false, interest);
        for round in 0..2 {
            let names = (0..20_000).map(|number| format!("{round}.{number}"));
            let places: Vec<_> = names
                .map(|name| channels.subscribe(&name, Member { connection: 0, place: 0 }))
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
    fn who_leaves_and_comes_back_is_not_met_twice_by_a_walk_under_way() {
        let interest = ShardInterest::new(ShardId(0), Arc::new(Interest::new(1)));
        let mut channels = Channels::new(false, interest);
        let member = |connection| Member { connection, place: 0 };
        let subscriptions: Vec<_> =
            (0..6).map(|connection| channels.subscribe("a", member(connection))).collect();
        let (end, first) = (channels.end(0), channels.begin_walk(0));
        assert_eq!(met(&channels, first, 0, 3), [0, 1, 2]);
        for left in [0, 5] {
            channels.unsubscribe(subscriptions[left], |_, _| panic!("somebody moved"));
        }
        channels.subscribe("a", member(0));
        assert_eq!(met(&channels, first, 3, end), [3, 4]);
        // Later ones meet it where it stands now, and so do walks in one go.
        let second = channels.begin_walk(0);
        for walk in [second, IN_ONE_GO] {
            assert_eq!(met(&channels, walk, 0, end), [1, 2, 3, 4, 0]);
        }
        channels.end_walk(0, first, |_, _| panic!("somebody moved"));
        assert_eq!(met(&channels, second, 3, end), [3, 4, 0]);
        let mut moved = Vec::new();
        channels.end_walk(0, second, |member, _| moved.push(member.connection));
        assert_eq!((moved, channels.end(0)), (vec![0], 5));
    }
}
