//! What a topic holds for all of its groups, and what it wants done.
//!
//! A message is released once each group has settled it. Messages on their way to the dead topic stay here until
//! that topic has taken them. If it is full, they wait, and count against the bounds of their own topic.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::disk::OnDisk;
use super::{Effect, Policy};
use crate::address::{ClientId, ShardId};
use crate::message::{Credit, GroupIndex, MessageNumber};
use crate::metrics::Durations;
use crate::queue::consumers::Item;
use crate::queue::room::{Room, RoomGrant};

/// The messages of a topic, and its effects.
#[derive(Debug)]
pub(super) struct Held {
    /// What the topic holds, and the credit of each shard.
    pub room: Room,
    /// What the topic wants done.
    pub effects: VecDeque<Effect>,
    /// What happens to messages that are not acknowledged, or grow old.
    pub policy: Policy,
    /// Messages that wait again because they were not acknowledged.
    pub redelivered: u64,
    /// How long messages were in the topic until they were written, or acknowledged.
    pub waits: Durations,
    /// The log of a topic on disk.
    pub disk: Option<Box<OnDisk>>,
    // Groups that have not settled a message, of a topic with more than one group.
    shared: HashMap<MessageNumber, u32>,
    // Messages for the dead topic, in order.
    dead: VecDeque<DeadMessage>,
    // Whether the first of them was sent, and its answer has not come.
    is_burying: bool,
}

/// A message for the dead topic.
#[derive(Debug)]
struct DeadMessage {
    group: GroupIndex,
    client: ClientId,
    item: Item,
    why: &'static str,
}

impl Held {
    /// Nothing, with this room.
    pub(super) fn new(room: Room) -> Self {
        Self {
            room,
            effects: VecDeque::new(),
            policy: Policy::default(),
            redelivered: 0,
            waits: Durations::default(),
            disk: None,
            shared: HashMap::new(),
            dead: VecDeque::new(),
            is_burying: false,
        }
    }

    /// Notes that this number of groups have to settle a message, more than one.
    pub(super) fn share(&mut self, number: MessageNumber, groups: usize) {
        self.shared.insert(number, groups as u32);
    }

    /// Notes that a group has settled a message, or dropped it. Releases the room after the last group.
    pub(super) fn forget(&mut self, group: GroupIndex, client: ClientId, item: &Item) {
        if let Some(disk) = &mut self.disk {
            return disk.settle(group, item);
        }
        if !self.shared.is_empty() && !self.is_last(item.number) {
            return;
        }
        self.room.release(item.frame.bytes().len());
        if item.is_watched {
            self.effects.push_back(Effect::EventLeft(client));
        }
    }

    #[cold]
    fn is_last(&mut self, number: MessageNumber) -> bool {
        let Some(groups) = self.shared.get_mut(&number) else { return true };
        *groups -= 1;
        let is_last = *groups == 0;
        if is_last {
            self.shared.remove(&number);
        }
        is_last
    }

    /// Grants room to those who wait for it.
    #[inline]
    pub(super) fn grant_to_asking(&mut self) {
        // The usual case: nobody waits.
        if self.room.has_asking() {
            self.poll_grants();
        }
    }

    fn poll_grants(&mut self) {
        while let Some(grant) = self.room.poll_grant() {
            self.effects.push_back(match grant {
                RoomGrant::Credit(shard, credit) => Effect::Grant(shard, credit),
                RoomGrant::Push => Effect::RoomForPush,
            });
        }
    }

    /// Fills up the credit of a shard that has pushed.
    pub(super) fn top_up(&mut self, shard: ShardId) {
        if let Some(credit) = self.room.top_up(shard) {
            self.effects.push_back(Effect::Grant(shard, credit));
        }
    }

    /// Takes a message that a group was handed too often.
    pub(super) fn bury(
        &mut self,
        group: GroupIndex,
        client: ClientId,
        item: Item,
        why: &'static str,
    ) {
        self.dead.push_back(DeadMessage { group, client, item, why });
        self.bury_next();
    }

    /// Whether messages wait for the dead topic.
    pub(super) fn has_dead(&self) -> bool {
        !self.dead.is_empty()
    }

    /// Sends the first message to the dead topic, unless one is on its way.
    pub(super) fn bury_next(&mut self) {
        let Some(DeadMessage { client, item, why, .. }) = self.dead.front() else { return };
        if !self.is_burying {
            self.is_burying = true;
            let (client, tries, why) = (*client, item.tries, *why);
            let frame = item.frame.clone();
            self.effects.push_back(Effect::Bury { client, frame, tries, why });
        }
    }

    /// Handles the answer of the dead topic. A message that was not taken waits for the next check.
    pub(super) fn buried(&mut self, was_taken: bool) {
        self.is_burying = false;
        if was_taken && let Some(DeadMessage { group, client, item, .. }) = self.dead.pop_front() {
            self.forget(group, client, &item);
            self.grant_to_asking();
            self.bury_next();
        }
    }

    /// Asserts the invariants. `alone` is what the only group holds; `None` if there are several.
    pub(super) fn check(&self, alone: Option<Credit>) {
        if let Some(mut held) = alone {
            held.messages += self.dead.len();
            let bytes = self.dead.iter().map(|dead| dead.item.frame.bytes().len());
            held.bytes += bytes.sum::<usize>();
            assert_eq!(self.room.held(), held, "messages and bytes held");
        }
        self.room.check();
    }

    /// The numbers of messages for the dead topic.
    pub(super) fn dead_numbers(&self) -> impl Iterator<Item = MessageNumber> {
        self.dead.iter().map(|dead| dead.item.number)
    }

    /// Messages of a group for the dead topic, and their bytes. Costs a look at every such message.
    pub(super) fn dead_of(&self, group: GroupIndex) -> Credit {
        let dead = self.dead.iter().filter(|dead| dead.group == group);
        dead.fold(Credit::default(), |sum, dead| Credit {
            messages: sum.messages + 1,
            bytes: sum.bytes + dead.item.frame.bytes().len(),
        })
    }

    /// The groups that have not settled each message, of a topic with more than one group.
    pub(super) fn shared(&self) -> &HashMap<MessageNumber, u32> {
        &self.shared
    }
}
