//! The waiting messages of a topic, as one lane per client.
//!
//! A lane with waiting messages is listed in exactly one place: in the hash slot of its client, from which
//! the slot's owner takes it, or among the *parked* lanes while another consumer has messages of the lane
//! in flight, or while the lane is delayed. Parking keeps the messages of a client in order when the owner
//! changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::consumers::{ConsumerKey, Item};
use super::hash_slots::HashSlots;
use crate::address::ClientId;
use crate::message::{Credit, MessageNumber};

/// The lanes of a topic.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    // Clients with messages that wait or are in flight.
    lanes: HashMap<ClientId, ClientLane>,
    slots: HashSlots,
    // Parked lanes, by the number of their first waiting message.
    parked: BTreeMap<MessageNumber, ClientId>,
    // Delayed lanes with waiting messages, and when each delay ends in microseconds.
    delayed: HashMap<ClientId, u64>,
    delays: BTreeSet<(u64, ClientId)>,
}

#[derive(Debug, Default)]
struct ClientLane {
    waiting: VecDeque<Item>,
    // The consumer that has messages of the lane in flight.
    holder: Option<ConsumerKey>,
    // Messages in flight.
    in_flight: usize,
    is_parked: bool,
}

/// The result of [`Lanes::pop`].
#[derive(Debug)]
pub(super) enum Popped {
    /// A message, which is in flight now.
    Message(ClientId, Item),
    /// A lane that had to be parked.
    Parked,
}

impl Lanes {
    /// Adds a new message. Returns it instead, with its consumer, if no earlier message of the client waits
    /// and `takes` says that the consumer takes it now: then it is in flight.
    pub(super) fn push(
        &mut self,
        client: ClientId,
        item: Item,
        takes: impl FnOnce(ConsumerKey) -> bool,
    ) -> Option<(ConsumerKey, Item)> {
        let lane = self.lanes.entry(client).or_default();
        if !lane.waiting.is_empty() {
            lane.waiting.push_back(item);
            return None;
        }
        let owner = self.slots.owner(client);
        if lane.holder.is_some() && lane.holder != owner {
            lane.is_parked = true;
            self.parked.insert(item.number, client);
            lane.waiting.push_back(item);
            return None;
        }
        if let Some(owner) = owner
            && takes(owner)
        {
            lane.hand_to(owner);
            return Some((owner, item));
        }
        self.slots.list(item.number, client);
        lane.waiting.push_back(item);
        None
    }

    /// Adds a message, and holds back the waiting messages of its lane until this time in microseconds.
    pub(super) fn push_delayed(&mut self, client: ClientId, item: Item, until_us: u64) {
        let lane = self.lanes.entry(client).or_default();
        let is_first = lane.waiting.is_empty();
        lane.waiting.push_back(item);
        if is_first {
            self.list(client);
        }
        self.delay(client, until_us);
    }

    /// Takes the oldest message that waits for a consumer; `None`: nothing does.
    pub(super) fn pop(&mut self, consumer: ConsumerKey) -> Option<Popped> {
        let client = self.slots.pop(consumer)?;
        let lane = self.lanes.get_mut(&client).expect("a listed client has a lane");
        if lane.holder.is_some_and(|holder| holder != consumer) {
            self.list(client);
            return Some(Popped::Parked);
        }
        let item = lane.waiting.pop_front().expect("a listed lane has a waiting message");
        if let Some(next) = lane.waiting.front() {
            self.slots.list(next.number, client);
        }
        lane.hand_to(consumer);
        Some(Popped::Message(client, item))
    }

    /// Requeues a message that was in flight, in its order: messages that were handed out later may have
    /// been requeued before. Returns the consumer for which the lane waits now.
    pub(super) fn put_back(&mut self, client: ClientId, item: Item) -> Option<ConsumerKey> {
        let lane = self.lanes.get_mut(&client).expect("a message in flight has a lane");
        let before = lane.waiting.front().map(|item| item.number);
        let at = lane.waiting.partition_point(|waiting| waiting.number < item.number);
        lane.waiting.insert(at, item);
        lane.take_from_holder();
        if let Some(before) = before {
            self.unlist(before, client);
        }
        self.list(client)
    }

    /// Passes the messages in flight of a lane to another consumer.
    pub(super) fn pass_to(&mut self, client: ClientId, consumer: ConsumerKey) {
        let lane = self.lanes.get_mut(&client).expect("a message in flight has a lane");
        lane.holder = Some(consumer);
    }

    /// Notes that a message in flight is finished. Returns the consumer for which the lane waits from now on,
    /// if it was parked until now.
    pub(super) fn finish(&mut self, client: ClientId) -> Option<ConsumerKey> {
        let Entry::Occupied(mut entry) = self.lanes.entry(client) else {
            panic!("a message in flight has a lane");
        };
        let lane = entry.get_mut();
        lane.take_from_holder();
        if lane.in_flight > 0 {
            return None;
        }
        if lane.waiting.is_empty() {
            entry.remove();
            return None;
        }
        if !lane.is_parked {
            return None;
        }
        let first = lane.waiting[0].number;
        self.unlist(first, client);
        self.list(client)
    }

    /// Removes the first waiting message of a lane if it has this number.
    pub(super) fn drop_first(&mut self, client: ClientId, number: MessageNumber) -> Option<Item> {
        if self.lanes.get(&client)?.waiting.front()?.number != number {
            return None;
        }
        self.unlist(number, client);
        let lane = self.lanes.get_mut(&client).expect("the lane was looked up");
        let item = lane.waiting.pop_front().expect("the lane has a waiting message");
        match (lane.waiting.front(), lane.is_parked) {
            (None, _) => {
                // Nothing of the lane waits, so it is listed nowhere.
                lane.is_parked = false;
                if lane.in_flight == 0 {
                    self.lanes.remove(&client);
                }
                self.end_delay(client);
            }
            (Some(next), true) => drop(self.parked.insert(next.number, client)),
            (Some(next), false) => self.slots.list(next.number, client),
        }
        Some(item)
    }

    /// Holds back the waiting messages of a lane, at least one, until this time in microseconds.
    pub(super) fn delay(&mut self, client: ClientId, until_us: u64) {
        let lane = self.lanes.get(&client).expect("only lanes are delayed");
        let first = lane.waiting.front().expect("a delayed lane has a waiting message").number;
        let until_us = self.delayed.get(&client).map_or(until_us, |&other| other.max(until_us));
        self.unlist(first, client);
        self.end_delay(client);
        self.delayed.insert(client, until_us);
        self.delays.insert((until_us, client));
        self.list(client);
    }

    /// Ends the next delay that is over. Returns the consumer for which the lane waits now, unless it stays
    /// parked.
    pub(super) fn poll_delay(&mut self, now_us: u64) -> Option<Option<ConsumerKey>> {
        let &(until_us, client) = self.delays.first()?;
        if now_us < until_us {
            return None;
        }
        let first = self.lanes[&client].waiting[0].number;
        self.unlist(first, client);
        self.end_delay(client);
        Some(self.list(client))
    }

    /// Whether a message of a client waits.
    pub(super) fn has(&self, client: ClientId, number: MessageNumber) -> bool {
        let lane = self.lanes.get(&client);
        lane.is_some_and(|lane| lane.waiting.binary_search_by_key(&number, |i| i.number).is_ok())
    }

    /// The consumer that has messages of a client in flight.
    pub(super) fn holder(&self, client: ClientId) -> Option<ConsumerKey> {
        self.lanes.get(&client)?.holder
    }

    /// Whether a lane is delayed.
    pub(super) fn has_delayed(&self) -> bool {
        !self.delays.is_empty()
    }

    fn end_delay(&mut self, client: ClientId) {
        if let Some(until_us) = self.delayed.remove(&client) {
            self.delays.remove(&(until_us, client));
        }
    }

    /// When the oldest waiting message arrived, in microseconds. Negative: in an earlier run of the node.
    pub(super) fn oldest_since_us(&self) -> Option<i64> {
        let (_, client) = self.oldest()?;
        self.lanes.get(&client)?.waiting.front().map(|item| item.since_us)
    }

    /// The numbers of all waiting messages. Costs a look at every lane.
    pub(super) fn numbers(&self) -> impl Iterator<Item = MessageNumber> {
        self.lanes.values().flat_map(|lane| lane.waiting.iter().map(|item| item.number))
    }

    /// Whether a message waits in a lane that is not parked.
    pub(super) fn has_listed(&self) -> bool {
        !self.slots.is_empty()
    }

    /// Whether a message waits for a consumer.
    pub(super) fn has_waiting(&self, consumer: ConsumerKey) -> bool {
        self.slots.has_waiting(consumer)
    }

    /// Shares the clients among these consumers, which are sorted. Returns those for which more waits now.
    pub(super) fn share_among(&mut self, consumers: &[ConsumerKey]) -> Vec<ConsumerKey> {
        self.slots.share_among(consumers)
    }

    /// The lane that has waited longest, and the number of its first message.
    pub(super) fn oldest(&self) -> Option<(MessageNumber, ClientId)> {
        let parked = self.parked.first_key_value().map(|(&number, &client)| (number, client));
        self.slots.oldest().into_iter().chain(parked).min()
    }

    /// Lists a lane with waiting messages. Returns the owner of its slot, unless it is parked.
    fn list(&mut self, client: ClientId) -> Option<ConsumerKey> {
        let lane = self.lanes.get_mut(&client).expect("only lanes are listed");
        let first =
            lane.waiting.front().expect("only lanes with waiting messages are listed").number;
        lane.is_parked = lane.in_flight > 0 || self.delayed.contains_key(&client);
        if lane.is_parked {
            self.parked.insert(first, client);
            return None;
        }
        self.slots.list(first, client);
        self.slots.owner(client)
    }

    /// Removes a lane from where it is listed under this number.
    fn unlist(&mut self, first: MessageNumber, client: ClientId) {
        match self.lanes.get(&client).is_some_and(|lane| lane.is_parked) {
            true => drop(self.parked.remove(&first)),
            false => self.slots.unlist(first, client),
        }
    }

    /// Asserts the invariants, and returns the number of waiting messages and their bytes. Costs a look at
    /// every lane.
    pub(super) fn check(&self) -> Credit {
        let listed = self.lanes.values().filter(|lane| !lane.waiting.is_empty()).count();
        assert_eq!(self.slots.check() + self.parked.len(), listed, "a lane is listed in one place");
        for (number, client) in &self.parked {
            let lane = &self.lanes[client];
            let is_held = lane.in_flight > 0 || self.delayed.contains_key(client);
            assert!(lane.is_parked && is_held, "{client:?} is parked for nothing");
            assert_eq!(lane.waiting.front().map(|item| item.number), Some(*number));
        }
        let delays = self.delayed.iter().map(|(&client, &until_us)| (until_us, client));
        assert_eq!(delays.collect::<BTreeSet<_>>(), self.delays);
        for client in self.delayed.keys() {
            assert!(self.lanes[client].is_parked, "a delayed lane is parked");
        }
        let mut waiting = Credit::default();
        for lane in self.lanes.values() {
            assert!(lane.in_flight > 0 || !lane.waiting.is_empty(), "a lane is not empty");
            assert!(!lane.is_parked || !lane.waiting.is_empty(), "a parked lane has messages");
            assert_eq!(lane.holder.is_some(), lane.in_flight > 0);
            assert!(lane.waiting.iter().is_sorted_by_key(|item| item.number));
            waiting.messages += lane.waiting.len();
            let bytes = lane.waiting.iter().map(|item| item.frame.bytes().len());
            waiting.bytes += bytes.sum::<usize>();
        }
        waiting
    }

    /// The consumer of each lane with messages in flight, and the number of those.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = (ClientId, ConsumerKey, usize)> {
        self.lanes.iter().filter_map(|(&client, lane)| Some((client, lane.holder?, lane.in_flight)))
    }
}

impl ClientLane {
    /// Notes that a message is in flight to a consumer.
    fn hand_to(&mut self, consumer: ConsumerKey) {
        self.holder = Some(consumer);
        self.in_flight += 1;
    }

    /// Notes that a message is no longer in flight.
    fn take_from_holder(&mut self) {
        self.in_flight -= 1;
        if self.in_flight == 0 {
            self.holder = None;
        }
    }
}
