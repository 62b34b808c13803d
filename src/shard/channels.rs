//! Channel → the clients of this shard that are subscribed to it, laid out for a linear walk.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

/// A channel's place in the table, while it has subscribers or a walk goes through it.
pub type ChannelIndex = u32;

/// Where a client stands in a channel; the client keeps it, to find its way out again.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// The channel.
    pub channel: ChannelIndex,
    position: u32,
}

// A member that left while a walk was under way: taken out when the last walk ends.
const LEFT: u32 = u32::MAX;

/// All channels of one shard.
#[derive(Debug, Default)]
pub struct Channels {
    by_name: HashMap<Box<str>, ChannelIndex>,
    slots: Vec<Channel>,
    free: Vec<ChannelIndex>,
    // None: nobody is told of changes.
    changes: Option<Changes>,
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
    // Places of connections in the shard's table, or LEFT.
    members: Vec<u32>,
    // Positions of those that left during walks; empty while there is none.
    holes: Vec<u32>,
    walks: u32,
}

impl Channels {
    /// No channels yet; with `has_listener`, changes come out of [`Self::poll_change`].
    pub fn new(has_listener: bool) -> Self {
        Self { changes: has_listener.then(Changes::default), ..Self::default() }
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

    /// Subscribes the connection at `member`, which is not subscribed yet.
    pub fn subscribe(&mut self, name: &str, member: u32) -> Subscription {
        let channel = self.find(name).unwrap_or_else(|| self.open(name));
        let slot = &mut self.slots[channel as usize];
        // A hole is filled, so that walks that never cease do not let the members grow: who comes
        // while one is under way may be met by it.
        if let Some(position) = slot.holes.pop() {
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
        channel
    }

    /// Ends a subscription. If another member took its position, `moved` is told which, so that
    /// the subscription that this member keeps can be put right with [`Subscription::move_to`].
    pub fn unsubscribe(
        &mut self,
        subscription: Subscription,
        moved: impl FnOnce(u32, Subscription),
    ) {
        let Subscription { channel, position } = subscription;
        let slot = &mut self.slots[channel as usize];
        if slot.walks > 0 {
            slot.members[position as usize] = LEFT;
            slot.holes.push(position);
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
        if slot.members.is_empty() && slot.walks == 0 {
            self.by_name.remove(&slot.name);
            if let Some(changes) = &mut self.changes {
                changes.note(&slot.name, false);
            }
            *slot = Channel::default();
            self.free.push(channel);
        }
    }

    /// Begins a walk through the members; gives where it ends. Members that leave before they are
    /// met are not part of it.
    pub fn begin_walk(&mut self, channel: ChannelIndex) -> usize {
        let slot = &mut self.slots[channel as usize];
        slot.walks += 1;
        slot.members.len()
    }

    /// The members from `at` to `end` with their places, those that left not among them.
    pub fn members(
        &self,
        channel: ChannelIndex,
        at: usize,
        end: usize,
    ) -> impl Iterator<Item = (usize, u32)> {
        let members = &self.slots[channel as usize].members[at..end];
        (at..).zip(members.iter().copied()).filter(|&(_, member)| member != LEFT)
    }

    /// Ends a walk. With the last one, those who left meanwhile are taken out; `moved` is told of
    /// each member whose position changed, with the subscription as it is now.
    pub fn end_walk(&mut self, channel: ChannelIndex, mut moved: impl FnMut(u32, Subscription)) {
        let slot = &mut self.slots[channel as usize];
        slot.walks -= 1;
        if slot.walks > 0 {
            return;
        }
        // From the last hole on: what is behind it is then never a hole.
        slot.holes.sort_unstable();
        while let Some(position) = slot.holes.pop() {
            slot.members.swap_remove(position as usize);
            if let Some(&member) = slot.members.get(position as usize) {
                moved(member, Subscription { channel, position });
            }
        }
        self.close_if_empty(channel);
    }
}
