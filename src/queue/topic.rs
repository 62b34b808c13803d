//! One topic: a bounded store of messages, and the consumers that compete for them.
//!
//! The messages of one client form a *lane*. Messages leave a lane in order, and all of a lane that
//! is with a consumer and not yet written is with the same consumer: so a client's messages arrive
//! in order even when a consumer dies and its unwritten ones go to another. Which consumer a lane is
//! for follows from the client's id ([`Slots`]), and stays the same while the set of consumers does.
//! A lane of which another consumer still has something is *parked* until that is written or comes
//! back.
//!
//! A change of the set costs the same however many lanes wait. What consumers are handed because of
//! it, and what comes back from those that are gone, takes several turns if it is much
//! ([`Topic::handle_turn`]).
//!
//! Its clock is in microseconds.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;

use super::consumers::{Consumer, Consumers, Item, Place, State};
use super::room::Room;
use super::slots::Slots;
use super::{Bounds, WhenFull};
use crate::address::{ClientId, NodeId, ShardId};
use crate::message::{BackendId, Credit, Delivery, Event, Terms};
use crate::metrics::{Durations, TopicReport};

/// Messages handed to one consumer and not yet written to its socket, at most.
const WINDOW_MESSAGES: usize = 1024;

/// Messages that a topic moves per turn because its consumers changed. The rest moves in the next
/// turns.
const MOVED_PER_TURN: usize = 1024;

/// A consumer that has had no room for so long, in microseconds, counts as absent until it takes
/// something again: what it could not take goes to the others.
const STALLED_US: u64 = 1_000_000;

/// One that has taken nothing for so long, in microseconds, is closed if another would take:
/// what it was handed keeps what came later of the same clients from the others.
const EXPELLED_US: u64 = 10_000_000;

/// Consumers of one topic, at most.
const CONSUMERS_MAX: usize = 1024;

/// What a topic wants done.
#[derive(Debug)]
pub enum Effect {
    /// A message for a consumer.
    Deliver(BackendId, Delivery),
    /// Credit for a feeding shard.
    Grant(ShardId, Credit),
    /// A consumer takes nothing, and others would.
    Expel(BackendId),
    /// A feeding shard asked for room that there is not.
    Refuse(ShardId),
    /// The watched event of this client has left for good.
    Left(ClientId),
}

/// Why a back end cannot become a consumer.
#[derive(Debug, PartialEq, Eq)]
pub enum JoinError {
    /// It is one already.
    Repeated,
    /// There are [`CONSUMERS_MAX`].
    TooMany,
}

/// A topic, at its home.
#[derive(Debug)]
pub struct Topic {
    node: NodeId,
    when_full: WhenFull,
    window_messages: usize,
    consumers: Consumers,
    // Those that are gone and still have messages, which are to wait again.
    gone: VecDeque<Place>,
    // Those that have room and for which something may wait.
    behind: VecDeque<Place>,
    has_asked_for_turn: bool,
    // Clients with messages that wait or are with a consumer.
    lanes: HashMap<ClientId, Lane>,
    // Lanes with waiting messages, by the number of the first, are in one of these.
    slots: Slots,
    parked: BTreeMap<u64, ClientId>,
    room: Room,
    // Feeders keep what they are lent, so it cannot go and come anew.
    is_fed: bool,
    next_number: u64,
    dropped: u64,
    waits: Durations,
    effects: VecDeque<Effect>,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Item>,
    // Who has some of its messages, and how many.
    holder: Option<Place>,
    unwritten: usize,
    is_parked: bool,
}

impl Topic {
    /// An empty topic on a node of `shards` shards. Each shard starts with [`Room::share`] credit.
    pub fn new(node: NodeId, bounds: Bounds, when_full: WhenFull, shards: usize) -> Self {
        Self {
            node,
            when_full,
            window_messages: match when_full {
                // Half of the topic at most is with one consumer, so that there is some to drop.
                WhenFull::DropOldest => WINDOW_MESSAGES.min(bounds.messages / 2).max(1),
                WhenFull::Hold | WhenFull::Close => WINDOW_MESSAGES,
            },
            consumers: Consumers::default(),
            gone: VecDeque::new(),
            behind: VecDeque::new(),
            has_asked_for_turn: false,
            lanes: HashMap::new(),
            slots: Slots::default(),
            parked: BTreeMap::new(),
            room: Room::new(bounds, shards),
            is_fed: false,
            next_number: 0,
            dropped: 0,
            waits: Durations::default(),
            effects: VecDeque::new(),
        }
    }

    /// What is to be done now.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether [`Self::handle_turn`] is to be called in the next turn. True once for each time.
    pub fn poll_unfinished(&mut self) -> bool {
        let is_unfinished = !self.behind.is_empty() || !self.gone.is_empty();
        is_unfinished && !std::mem::replace(&mut self.has_asked_for_turn, true)
    }

    /// Whether somebody consumes it: then [`Self::handle_timeout`] is to be called now and then.
    pub fn has_consumers(&self) -> bool {
        self.consumers.len() > 0
    }

    /// Whether this back end consumes it, or has something of it.
    pub fn knows(&self, id: BackendId) -> bool {
        self.consumers.find(id).is_some()
    }

    /// Whether it holds nothing, nobody consumes it, and nobody has fed it.
    pub fn is_idle(&self) -> bool {
        !self.is_fed && self.room.held().messages == 0 && !self.has_consumers()
    }

    /// Messages held, those with consumers and not yet written included.
    pub fn messages(&self) -> usize {
        self.room.held().messages
    }

    /// Messages dropped because the topic was full ([`WhenFull::DropOldest`]), since it was last
    /// asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// How long messages were in it until they were written, or acknowledged.
    pub fn waits(&self) -> Durations {
        self.waits
    }

    /// How things stand in it.
    pub fn report(&self, name: &str, now_us: u64) -> TopicReport {
        let since = self.oldest().and_then(|(_, client)| {
            let first = self.lanes.get(&client)?.waiting.front()?;
            Some(first.since_us)
        });
        TopicReport {
            name: name.to_owned(),
            messages: self.room.held().messages as u64,
            bytes: self.room.held().bytes as u64,
            consumers: self.consumers.len() as u64,
            oldest_ms: since.map_or(0, |since| now_us.saturating_sub(since) / 1000),
        }
    }

    /// Takes an event, for which the shard had credit.
    pub fn push(&mut self, now_us: u64, from: ShardId, event: Event) {
        let Event { client, frame, is_watched } = event;
        self.is_fed = true;
        self.room.take(from, frame.bytes().len());
        let credit = self.room.top_up(from);
        self.effects.extend(credit.map(|credit| Effect::Grant(from, credit)));
        let number = self.next_number;
        self.next_number += 1;
        let item =
            Item { number, since_us: now_us, is_redelivered: false, is_watched, pop: 0, frame };
        let lane = self.lanes.entry(client).or_default();
        if !lane.waiting.is_empty() {
            return lane.waiting.push_back(item);
        }
        let owner = self.slots.owner(client);
        if lane.holder.is_some() && lane.holder != owner {
            lane.waiting.push_back(item);
            lane.is_parked = true;
            self.parked.insert(number, client);
            return;
        }
        if let Some(place) = owner {
            let consumer = &mut self.consumers[place];
            // If it has room and is not behind, nothing waits for it.
            if consumer.has_room() && !consumer.is_behind {
                lane.give_to(place);
                let delivery = hand(consumer, now_us, client, item);
                return self.effects.push_back(delivery);
            }
        }
        lane.waiting.push_back(item);
        self.slots.list(number, client);
    }

    /// Makes a back end a consumer on these terms. It gets nothing before [`Self::start`].
    ///
    /// # Errors
    /// It is one already, or there are too many.
    pub fn join(&mut self, now_us: u64, id: BackendId, terms: Terms) -> Result<(), JoinError> {
        let place = match self.consumers.find(id) {
            // What it has still to write from before stays with it, ahead of what comes.
            Some(place) if self.consumers[place].state == State::Leaving => place,
            Some(_) => return Err(JoinError::Repeated),
            None if self.consumers.len() == CONSUMERS_MAX => return Err(JoinError::TooMany),
            None => self.consumers.insert(id),
        };
        self.consumers[place].begin(terms, self.window_messages);
        self.consumers[place].progress_us = now_us;
        Ok(())
    }

    /// The consumer's answer is on its way: it competes from now on.
    pub fn start(&mut self, now_us: u64, id: BackendId) {
        let Some(place) = self.consumers.find(id) else { return };
        let consumer = &mut self.consumers[place];
        if consumer.state == State::Joining {
            consumer.state = State::Active;
            consumer.progress_us = now_us;
            self.share_again();
        }
    }

    /// The consumer wants no more; false if it was none. What it was handed and has not written
    /// stays with it: its connection lives. What it has not acknowledged goes to others.
    pub fn leave(&mut self, id: BackendId) -> bool {
        let Some(place) = self.consumers.find(id) else { return false };
        let consumer = &mut self.consumers[place];
        if consumer.state == State::Leaving {
            return false;
        }
        consumer.state = State::Leaving;
        if consumer.acknowledges {
            let pop = consumer.pop;
            while self.take_back(place, Some(pop)) {}
        }
        self.share_again();
        self.remove_if_left(place);
        true
    }

    /// The consumer's connection is gone: what it did not write goes to others, before anything
    /// that came later.
    pub fn gone(&mut self, id: BackendId) {
        if self.note_gone(id) {
            self.share_again();
        }
    }

    /// All consumers on that node are out of reach.
    pub fn node_gone(&mut self, node: NodeId) {
        let ids = self.consumers.iter().map(|(_, consumer)| consumer.id);
        let ids: Vec<_> = ids.filter(|id| id.at.node == node).collect();
        for id in ids {
            self.note_gone(id);
        }
        self.share_again();
    }

    fn note_gone(&mut self, id: BackendId) -> bool {
        let place = self.consumers.mark_gone(id);
        self.gone.extend(place);
        place.is_some()
    }

    /// The consumer has written the first `count` of what it was handed.
    pub fn written(&mut self, now_us: u64, id: BackendId, count: u32) {
        let Some(place) = self.consumers.find(id) else { return };
        let count = self.consumers[place].handed.len().min(count as usize);
        for _ in 0..count {
            self.finish(now_us, place, 0);
        }
        self.progress(now_us, place);
    }

    /// The consumer has acknowledged these messages. Those that it was not handed, or not any more,
    /// are passed over.
    pub fn settled(&mut self, now_us: u64, id: BackendId, numbers: &[u64]) {
        let Some(place) = self.consumers.find(id) else { return };
        for &number in numbers {
            let handed = &self.consumers[place].handed;
            if let Some(at) = handed.iter().position(|(_, item)| item.number == number) {
                self.finish(now_us, place, at);
            }
        }
        self.progress(now_us, place);
    }

    /// The consumer was handed a message for a `queue.pop` that it has cancelled: it goes to others,
    /// before what came later of the same client.
    pub fn returned(&mut self, now_us: u64, id: BackendId, number: u64, pop: u64) {
        let Some(place) = self.consumers.find(id) else { return };
        let consumer = &mut self.consumers[place];
        let is_it = |(_, item): &(ClientId, Item)| item.number == number && item.pop == pop;
        let Some(at) = consumer.handed.iter().position(is_it) else { return };
        let (client, item) = consumer.remove(at).expect("the place was looked up");
        let takes_part = matches!(consumer.state, State::Active | State::Stalled);
        let has_cancelled = takes_part && consumer.pop == pop;
        if has_cancelled {
            // Word of that is on its way: until then all that it was handed would come back.
            consumer.state = State::Joining;
        }
        let has_nothing = consumer.handed.is_empty();
        self.put_back(client, item);
        match has_cancelled {
            true => self.share_again(),
            // It may have had no room for what waited behind this: that is over.
            false if has_nothing => self.progress(now_us, place),
            false => drop(self.fill(now_us, place, usize::MAX)),
        }
        self.remove_if_left(place);
    }

    /// A shard has a message of so many bytes and no credit for it.
    pub fn want_credit(&mut self, from: ShardId, bytes: usize) {
        self.is_fed = true;
        self.room.ask(from, bytes);
        if self.when_full == WhenFull::DropOldest {
            let wanted = self.room.wanted_by(from);
            while !self.room.has(wanted) && self.drop_oldest() {}
        }
        self.grant_to_asking();
        if self.when_full == WhenFull::Close && self.room.refuse(from) {
            self.effects.push_back(Effect::Refuse(from));
        }
    }

    /// Goes on with what a change of the consumers left to do. To be called once a turn after
    /// [`Self::poll_unfinished`] has asked for it.
    pub fn handle_turn(&mut self, now_us: u64) {
        self.has_asked_for_turn = false;
        let mut left = MOVED_PER_TURN;
        while left > 0
            && let Some(&place) = self.gone.front()
        {
            if self.take_back(place, None) {
                left -= 1;
            } else {
                self.gone.pop_front();
                self.consumers.remove(place);
            }
        }
        while left > 0
            && let Some(&place) = self.behind.front()
        {
            left -= self.fill(now_us, place, left).min(left);
            if left > 0 {
                self.behind.pop_front();
                self.catch_up(place);
            }
        }
    }

    fn catch_up(&mut self, place: Place) {
        if self.consumers.get(place).is_some() {
            self.consumers[place].is_behind = false;
        }
    }

    /// Looks for consumers that take nothing.
    pub fn handle_timeout(&mut self, now_us: u64) {
        let mut found = false;
        let is_active = |(_, consumer): (_, &Consumer)| consumer.state == State::Active;
        let others_would = self.consumers.iter().any(is_active);
        for (place, consumer) in self.consumers.iter_mut() {
            let idle_us = now_us.saturating_sub(consumer.progress_us);
            match consumer.state {
                State::Active
                    if idle_us >= STALLED_US
                        && !consumer.has_room()
                        && self.slots.has_waiting(place) =>
                {
                    consumer.state = State::Stalled;
                    found = true;
                }
                // One that acknowledges may be at work on what it has.
                State::Stalled
                    if others_would && !consumer.acknowledges && idle_us >= EXPELLED_US =>
                {
                    self.effects.push_back(Effect::Expel(consumer.id));
                }
                _ => {}
            }
        }
        if found {
            self.share_again();
        }
    }

    /// Panics if what is noted in several places does not agree. Costs a look at every lane.
    pub fn check(&self) {
        let waiting = self.lanes.values().filter(|lane| !lane.waiting.is_empty()).count();
        assert_eq!(self.slots.check() + self.parked.len(), waiting, "each waits in one place");
        for (number, client) in &self.parked {
            let lane = &self.lanes[client];
            assert!(lane.is_parked && lane.unwritten > 0, "{client:?} is parked for nothing");
            assert_eq!(lane.waiting.front().map(|item| item.number), Some(*number));
        }
        let mut held = Credit::default();
        for lane in self.lanes.values() {
            assert!(lane.unwritten > 0 || !lane.waiting.is_empty(), "no lane is empty");
            assert!(!lane.is_parked || !lane.waiting.is_empty(), "what is parked waits");
            assert_eq!(lane.holder.is_some(), lane.unwritten > 0);
            assert!(lane.waiting.iter().is_sorted_by_key(|item| item.number));
            held.messages += lane.waiting.len() + lane.unwritten;
            held.bytes += lane.waiting.iter().map(|item| item.frame.bytes().len()).sum::<usize>();
        }
        let mut with: HashMap<ClientId, usize> = HashMap::new();
        for (place, consumer) in self.consumers.iter() {
            let bytes = consumer.handed.iter().map(|(_, item)| item.frame.bytes().len());
            assert_eq!(bytes.sum::<usize>(), consumer.handed_bytes);
            held.bytes += consumer.handed_bytes;
            for (client, _) in &consumer.handed {
                assert_eq!(self.lanes[client].holder, Some(place), "one consumer has a lane");
                *with.entry(*client).or_default() += 1;
            }
            let is_offered = consumer.has_room() && self.slots.has_waiting(place);
            assert!(!is_offered || consumer.is_behind, "what waits is handed out");
        }
        let unwritten = self.lanes.iter().filter(|(_, lane)| lane.unwritten > 0);
        let unwritten = unwritten.map(|(&client, lane)| (client, lane.unwritten)).collect();
        assert_eq!(with, unwritten, "what consumers have, by client");
        assert_eq!(self.room.held(), held, "what is held");
        self.room.check();
    }

    /// Takes back the latest message of a consumer, if that is from this `queue.pop`, or from any.
    fn take_back(&mut self, place: Place, pop: Option<u64>) -> bool {
        let taken = self.consumers[place].take_back(pop);
        let is_some = taken.is_some();
        if let Some((client, item)) = taken {
            self.put_back(client, item);
        }
        is_some
    }

    /// A message that was handed out waits again, in its place: what was handed out after it may
    /// have come back before.
    fn put_back(&mut self, client: ClientId, item: Item) {
        let lane = self.lanes.get_mut(&client).expect("what is handed out has a lane");
        let before = lane.waiting.front().map(|item| item.number);
        let at = lane.waiting.partition_point(|waiting| waiting.number < item.number);
        lane.waiting.insert(at, item);
        lane.give_back();
        if let Some(before) = before {
            self.unlist(before, client);
        }
        self.list(client);
    }

    /// A consumer is done with one message that it was handed.
    fn finish(&mut self, now_us: u64, place: Place, at: usize) {
        let taken = self.consumers[place].remove(at);
        let (client, item) = taken.expect("the place was looked up");
        self.waits.add(now_us.saturating_sub(item.since_us));
        self.forget(client, &item);
        let lane = self.lanes.get_mut(&client).expect("what is handed out has a lane");
        lane.give_back();
        if lane.unwritten > 0 {
            return;
        }
        if lane.waiting.is_empty() {
            self.lanes.remove(&client);
        } else if lane.is_parked {
            let first = lane.waiting[0].number;
            self.unlist(first, client);
            self.list(client);
        }
    }

    /// A consumer has taken something: it may have more, and feeders may have its room.
    fn progress(&mut self, now_us: u64, place: Place) {
        let consumer = &mut self.consumers[place];
        consumer.progress_us = now_us;
        if consumer.state == State::Stalled {
            consumer.state = State::Active;
            self.share_again();
        }
        self.fill(now_us, place, usize::MAX);
        self.remove_if_left(place);
        self.grant_to_asking();
    }

    /// Notes where a lane with waiting messages waits.
    fn list(&mut self, client: ClientId) {
        let lane = self.lanes.get_mut(&client).expect("only lanes are listed");
        let first = lane.waiting.front().expect("a lane that waits has a message").number;
        lane.is_parked = lane.unwritten > 0;
        if lane.is_parked {
            self.parked.insert(first, client);
            return;
        }
        self.slots.list(first, client);
        if let Some(owner) = self.slots.owner(client) {
            self.offer(owner);
        }
    }

    /// Undoes that, for a lane that is listed under this number.
    fn unlist(&mut self, first: u64, client: ClientId) {
        match self.lanes.get(&client).is_some_and(|lane| lane.is_parked) {
            true => drop(self.parked.remove(&first)),
            false => self.slots.unlist(first, client),
        }
    }

    /// The consumers that take part are others than before, or the same: the slots are shared among
    /// the most preferred of them.
    fn share_again(&mut self) {
        let ranks = || self.consumers.iter().filter_map(|(_, c)| c.rank(self.node));
        let Some(best) = ranks().min() else {
            self.slots.share_among(&[]);
            return;
        };
        let is_member = |(_, consumer): &(_, &Consumer)| consumer.rank(self.node) == Some(best);
        let members: Vec<Place> =
            self.consumers.iter().filter(is_member).map(|(place, _)| place).collect();
        for place in self.slots.share_among(&members) {
            self.offer(place);
        }
    }

    /// Something waits for a consumer: if it has room, it is handed that in a later step.
    fn offer(&mut self, place: Place) {
        let consumer = &mut self.consumers[place];
        if consumer.has_room() && !consumer.is_behind {
            consumer.is_behind = true;
            self.behind.push_back(place);
        }
    }

    /// Hands a consumer what waits for it, oldest first, while it has room: so many lanes at most.
    /// Gives how many lanes were looked at.
    fn fill(&mut self, now_us: u64, place: Place, max: usize) -> usize {
        let mut looked_at = 0;
        while looked_at < max
            && self.consumers.get(place).is_some_and(Consumer::has_room)
            && let Some(client) = self.slots.pop(place)
        {
            looked_at += 1;
            let lane = self.lanes.get_mut(&client).expect("what waits is a lane");
            if lane.holder.is_some_and(|holder| holder != place) {
                self.list(client);
                continue;
            }
            let item = lane.waiting.pop_front().expect("a lane that waits has a message");
            if let Some(next) = lane.waiting.front() {
                self.slots.list(next.number, client);
            }
            lane.give_to(place);
            let delivery = hand(&mut self.consumers[place], now_us, client, item);
            self.effects.push_back(delivery);
        }
        looked_at
    }

    fn remove_if_left(&mut self, place: Place) {
        let consumer = self.consumers.get(place);
        if consumer.is_some_and(|c| c.state == State::Leaving && c.handed.is_empty()) {
            self.consumers.remove(place);
        }
    }

    fn grant_to_asking(&mut self) {
        while let Some((shard, credit)) = self.room.poll_grant() {
            self.effects.push_back(Effect::Grant(shard, credit));
        }
    }

    /// The lane that has waited longest, and the number of its first message.
    fn oldest(&self) -> Option<(u64, ClientId)> {
        let parked = self.parked.first_key_value().map(|(&number, &client)| (number, client));
        self.slots.oldest().into_iter().chain(parked).min()
    }

    /// Drops the oldest message that is not with a consumer; false if there is none.
    fn drop_oldest(&mut self) -> bool {
        let Some((number, client)) = self.oldest() else { return false };
        self.unlist(number, client);
        let lane = self.lanes.get_mut(&client).expect("what waits is a lane");
        let item = lane.waiting.pop_front().expect("a lane that waits has a message");
        match (lane.waiting.front(), lane.is_parked) {
            (None, _) if lane.unwritten == 0 => drop(self.lanes.remove(&client)),
            // Nothing of it waits, so it waits nowhere.
            (None, _) => lane.is_parked = false,
            (Some(next), true) => drop(self.parked.insert(next.number, client)),
            (Some(next), false) => self.slots.list(next.number, client),
        }
        self.forget(client, &item);
        self.dropped += 1;
        true
    }

    /// A message has left for good.
    fn forget(&mut self, client: ClientId, item: &Item) {
        self.room.release(item.frame.bytes().len());
        if item.is_watched {
            self.effects.push_back(Effect::Left(client));
        }
    }
}

/// Hands a message to a consumer that has room.
fn hand(consumer: &mut Consumer, now_us: u64, client: ClientId, mut item: Item) -> Effect {
    item.pop = consumer.pop;
    let Item { number, is_redelivered, pop, ref frame, .. } = item;
    let is_acknowledged = consumer.acknowledges;
    let frame = frame.clone();
    let delivery = Delivery { number, pop, is_acknowledged, is_redelivered, frame };
    consumer.take(now_us, client, item);
    Effect::Deliver(consumer.id, delivery)
}

impl Lane {
    fn give_to(&mut self, place: Place) {
        self.holder = Some(place);
        self.unwritten += 1;
    }

    fn give_back(&mut self) {
        self.unwritten -= 1;
        if self.unwritten == 0 {
            self.holder = None;
        }
    }
}

#[cfg(test)]
mod tests;
