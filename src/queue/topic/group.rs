//! One consumer group of a topic: the messages that the group has not settled, and the consumers that compete
//! for them.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::held::Held;
use super::taken::Taken;
use super::{CONSUMERS_MAX, EVICTION_US, Effect, JoinError, MOVED_PER_TURN, STALLED_US};
use crate::address::{ClientId, NodeId};
use crate::message::{BackendId, Credit, Delivery, GroupIndex, MessageNumber, PopId, Terms};
use crate::queue::consumers::{Consumer, ConsumerKey, ConsumerState, Consumers, InFlight, Item};
use crate::queue::lanes::{Lanes, Popped};

/// A consumer group.
#[derive(Debug)]
pub(super) struct Group {
    /// The name; `None` for the default group.
    pub name: Option<Arc<str>>,
    /// The index in the log of a topic on disk.
    pub place: GroupIndex,
    /// The messages that wait or are in flight.
    pub lanes: Lanes,
    /// The consumers, and the messages in flight to each.
    pub consumers: Consumers,
    /// Messages that back ends have taken over HTTP.
    pub taken: Taken,
    /// Messages that wait or are in flight.
    pub backlog: usize,
    /// How often a message was handed out again because it was not acknowledged.
    pub redelivered: u64,
    /// Messages moved to the dead topic.
    pub dead: u64,
    /// When the first message was handed out that was not acknowledged in time, in microseconds. `None`: a message
    /// was finished since.
    pub lapsed_since_us: Option<u64>,
    node: NodeId,
    // Consumers that are gone and whose messages are to be requeued.
    gone: VecDeque<ConsumerKey>,
    // Consumers with room for which something may wait.
    behind: VecDeque<ConsumerKey>,
}

impl Group {
    /// A group without messages and consumers.
    pub(super) fn new(node: NodeId, name: Option<Arc<str>>) -> Self {
        Self {
            name,
            place: GroupIndex::default(),
            lanes: Lanes::default(),
            consumers: Consumers::default(),
            taken: Taken::default(),
            backlog: 0,
            redelivered: 0,
            dead: 0,
            lapsed_since_us: None,
            node,
            gone: VecDeque::new(),
            behind: VecDeque::new(),
        }
    }

    /// Whether [`Self::handle_turn`] has work to do.
    pub(super) fn is_unfinished(&self) -> bool {
        !self.behind.is_empty() || !self.gone.is_empty()
    }

    /// Adds a new message.
    pub(super) fn push(&mut self, held: &mut Held, now_us: u64, client: ClientId, item: Item) {
        self.backlog += 1;
        let consumers = &self.consumers;
        // The usual case, since consumers keep up: the message is handed out at once. It skips its lane, the
        // hash slots and a second search for its consumer. Order is kept, because nothing waits for a
        // consumer that has room and is not behind.
        let takes = |owner| {
            let consumer: &Consumer = &consumers[owner];
            consumer.has_room() && !consumer.is_behind
        };
        if let Some((owner, item)) = self.lanes.push(client, item, takes) {
            let delivery = hand(&mut self.consumers[owner], now_us, client, item);
            held.effects.push_back(delivery);
        }
    }

    /// Adds a message that was handed out in vain in an earlier run of the node. It and all of its client wait until
    /// `until_us`.
    pub(super) fn push_delayed(&mut self, client: ClientId, item: Item, until_us: u64) {
        self.backlog += 1;
        self.lanes.push_delayed(client, item, until_us);
    }

    /// Makes a back end a consumer. It is handed nothing before [`Self::start`].
    ///
    /// # Errors
    /// The back end is a consumer already, or there are too many.
    pub(super) fn join(
        &mut self,
        now_us: u64,
        id: BackendId,
        terms: &Terms,
        window_messages: usize,
    ) -> Result<(), JoinError> {
        let key = match self.consumers.find(id) {
            // Messages in flight from before stay with the consumer, ahead of later ones.
            Some(key) if self.consumers[key].state == ConsumerState::Leaving => key,
            Some(_) => return Err(JoinError::Repeated),
            None if self.consumers.len() == CONSUMERS_MAX => return Err(JoinError::TooMany),
            None => self.consumers.insert(id),
        };
        self.consumers[key].begin(terms, window_messages);
        self.consumers[key].progress_us = now_us;
        Ok(())
    }

    /// Lets a consumer compete, whose `queue.pop` has been answered.
    pub(super) fn start(&mut self, now_us: u64, id: BackendId) {
        let Some(key) = self.consumers.find(id) else { return };
        let consumer = &mut self.consumers[key];
        if consumer.state == ConsumerState::Joining {
            consumer.state = ConsumerState::Active;
            consumer.progress_us = now_us;
            self.share_again();
        }
    }

    /// Stops a consumer; false if it was none. Unwritten messages stay with it, since its connection lives.
    /// Messages that it has not acknowledged are requeued.
    pub(super) fn leave(&mut self, held: &mut Held, id: BackendId) -> bool {
        let Some(key) = self.consumers.find(id) else { return false };
        let consumer = &mut self.consumers[key];
        if consumer.state == ConsumerState::Leaving {
            return false;
        }
        consumer.state = ConsumerState::Leaving;
        if consumer.acknowledges {
            let pop = consumer.pop;
            while self.take_back(held, key, Some(pop)) {}
        }
        self.share_again();
        self.remove_if_left(key);
        true
    }

    /// Removes a consumer whose connection is gone. Its unfinished messages are requeued, ahead of later
    /// ones.
    pub(super) fn gone(&mut self, id: BackendId) {
        if self.note_gone(id) {
            self.share_again();
        }
    }

    /// Removes all consumers on an unreachable node. Their unfinished messages are requeued.
    pub(super) fn node_gone(&mut self, node: NodeId) {
        let ids = self.consumers.iter().map(|(_, consumer)| consumer.id);
        let ids: Vec<_> = ids.filter(|id| id.at.node == node).collect();
        for id in ids {
            self.note_gone(id);
        }
        self.share_again();
    }

    fn note_gone(&mut self, id: BackendId) -> bool {
        let key = self.consumers.mark_gone(id);
        self.gone.extend(key);
        key.is_some()
    }

    /// Finishes the first `count` messages in flight to a consumer, which were written.
    pub(super) fn written(&mut self, held: &mut Held, now_us: u64, id: BackendId, count: u32) {
        let Some(key) = self.consumers.find(id) else { return };
        let count = self.consumers[key].handed.len().min(count as usize);
        for _ in 0..count {
            self.finish(held, now_us, key, 0);
        }
        self.progress(held, now_us, key);
    }

    /// Finishes messages that a consumer has acknowledged. Numbers of messages that are not in flight to it
    /// are ignored.
    pub(super) fn settled(
        &mut self,
        held: &mut Held,
        now_us: u64,
        id: BackendId,
        numbers: &[MessageNumber],
    ) {
        let Some(key) = self.consumers.find(id) else { return };
        for &number in numbers {
            if let Some(at) = self.consumers[key].place_of(number) {
                self.finish(held, now_us, key, at);
            }
        }
        self.progress(held, now_us, key);
    }

    /// Requeues a message that was handed out for a `queue.pop` which its consumer has cancelled, ahead of
    /// later messages of the same client.
    pub(super) fn returned(
        &mut self,
        held: &mut Held,
        now_us: u64,
        id: BackendId,
        number: MessageNumber,
        pop: PopId,
    ) {
        let Some(key) = self.consumers.find(id) else { return };
        let consumer = &mut self.consumers[key];
        let is_it = |handed: &InFlight| handed.item.number == number && handed.pop == pop;
        let Some(at) = consumer.handed.iter().position(is_it) else { return };
        let InFlight { client, item, .. } = consumer.remove(at).expect("the place was looked up");
        let competes = matches!(consumer.state, ConsumerState::Active | ConsumerState::Stalled);
        let has_cancelled = competes && consumer.pop == pop;
        if has_cancelled {
            // The cancellation is in flight. Until it arrives, every message would be returned.
            consumer.state = ConsumerState::Joining;
        }
        let has_nothing = consumer.handed.is_empty();
        self.put_back(client, item);
        match has_cancelled {
            true => self.share_again(),
            // The consumer may have lacked room for what waited behind this message.
            false if has_nothing => self.progress(held, now_us, key),
            false => drop(self.fill(held, now_us, key, usize::MAX)),
        }
        self.remove_if_left(key);
    }

    /// Continues what a change of the consumers has left to do, within a budget of moved messages. Returns
    /// what is left of the budget.
    pub(super) fn handle_turn(&mut self, held: &mut Held, now_us: u64, mut left: usize) -> usize {
        while left > 0
            && let Some(&key) = self.gone.front()
        {
            if self.take_back(held, key, None) {
                left -= 1;
            } else {
                self.gone.pop_front();
                self.consumers.remove(key);
            }
        }
        while left > 0
            && let Some(&key) = self.behind.front()
        {
            left -= self.fill(held, now_us, key, left).min(left);
            if left > 0 {
                self.behind.pop_front();
                if let Some(consumer) = self.consumers.get_mut(key) {
                    consumer.is_behind = false;
                }
            }
        }
        left
    }

    /// Finds consumers that take nothing, messages that were not acknowledged in time, and delays that are
    /// over.
    pub(super) fn handle_timeout(&mut self, held: &mut Held, now_us: u64) {
        let lapsed = self.expire_leases(held, now_us);
        self.expire_taken(held, now_us);
        self.find_stalled(held, now_us, &lapsed);
        let mut left = MOVED_PER_TURN;
        while left > 0
            && let Some(owner) = self.lanes.poll_delay(now_us)
        {
            left -= 1;
            if let Some(owner) = owner {
                self.offer(owner);
            }
        }
    }

    fn find_stalled(&mut self, held: &mut Held, now_us: u64, lapsed: &[ConsumerKey]) {
        let mut found = !lapsed.is_empty();
        let is_active = |(_, consumer): (_, &Consumer)| consumer.state == ConsumerState::Active;
        let others_would = self.consumers.iter().any(is_active);
        for (key, consumer) in self.consumers.iter_mut() {
            let idle_us = now_us.saturating_sub(consumer.progress_us);
            match consumer.state {
                ConsumerState::Active
                    if idle_us >= STALLED_US
                        && !consumer.has_room()
                        && self.lanes.has_waiting(key) =>
                {
                    consumer.state = ConsumerState::Stalled;
                    found = true;
                }
                // With nothing in flight, the consumer could finish no message to compete again.
                ConsumerState::Stalled
                    if consumer.handed.is_empty() && (!lapsed.contains(&key) || !others_would) =>
                {
                    consumer.state = ConsumerState::Active;
                    consumer.progress_us = now_us;
                    found = true;
                }
                // A consumer that acknowledges may be processing its messages.
                ConsumerState::Stalled
                    if others_would && !consumer.acknowledges && idle_us >= EVICTION_US =>
                {
                    held.effects.push_back(Effect::Evict(consumer.id));
                }
                _ => {}
            }
        }
        if found {
            self.share_again();
            self.offer_all();
        }
    }

    /// Whether a message of a client waits, is in flight to a consumer, or taken.
    pub(super) fn has(&self, client: ClientId, number: MessageNumber) -> bool {
        let holder = self.lanes.holder(client).and_then(|key| self.consumers.get(key));
        self.lanes.has(client, number)
            || self.taken.contains(number)
            || holder.is_some_and(|consumer| consumer.place_of(number).is_some())
    }

    /// Whether a back end has joined the group and not left it.
    pub(super) fn has_joined(&self, id: BackendId) -> bool {
        let key = self.consumers.find(id);
        key.is_some_and(|key| self.consumers[key].state != ConsumerState::Leaving)
    }

    /// The pop for which the first message in flight to a back end was handed out.
    pub(super) fn first_pop(&self, id: BackendId) -> Option<PopId> {
        let consumer = &self.consumers[self.consumers.find(id)?];
        consumer.handed.front().map(|handed| handed.pop)
    }

    /// Gives consumers that do not acknowledge a new window. It may be larger, so each is offered what waits.
    pub(super) fn set_windows(&mut self, window_messages: usize) {
        for (_, consumer) in self.consumers.iter_mut() {
            consumer.set_window(window_messages);
        }
        self.offer_all();
    }

    /// The numbers of all messages of the group.
    pub(super) fn numbers(&self) -> impl Iterator<Item = MessageNumber> {
        let in_flight = self.consumers.iter().flat_map(|(_, consumer)| &consumer.handed);
        let in_flight = in_flight.chain(self.taken.iter().map(|(_, taken)| taken));
        self.lanes.numbers().chain(in_flight.map(|handed| handed.item.number))
    }

    /// Offers what waits to each consumer.
    pub(super) fn offer_all(&mut self) {
        let keys: Vec<_> = self.consumers.iter().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.offer(key));
    }

    /// Asserts the invariants, and returns the messages of the group and their bytes. Costs a look at every
    /// lane.
    pub(super) fn check(&self, next_number: MessageNumber) -> Credit {
        let mut held = self.lanes.check();
        let mut handed: HashMap<(ClientId, ConsumerKey), usize> = HashMap::new();
        for (key, consumer) in self.consumers.iter() {
            let bytes = consumer.handed.iter().map(|handed| handed.item.frame.bytes().len());
            assert_eq!(bytes.sum::<usize>(), consumer.handed_bytes);
            held.messages += consumer.handed.len();
            held.bytes += consumer.handed_bytes;
            for in_flight in &consumer.handed {
                assert!(in_flight.item.number < next_number, "a message that never came");
                *handed.entry((in_flight.client, key)).or_default() += 1;
            }
            let is_offered = consumer.has_room() && self.lanes.has_waiting(key);
            assert!(!is_offered || consumer.is_behind, "waiting messages are handed out");
            let is_queued = self.behind.contains(&key);
            assert!(!consumer.is_behind || is_queued, "a consumer that is behind is queued");
            let is_gone = consumer.state == ConsumerState::Gone;
            assert_eq!(is_gone, self.gone.contains(&key), "messages of the gone are requeued");
        }
        self.taken.check();
        for (holder, taken) in self.taken.iter() {
            held.messages += 1;
            held.bytes += taken.item.frame.bytes().len();
            *handed.entry((taken.client, holder)).or_default() += 1;
        }
        // Each lane with messages in flight is here with one consumer, so no other has any of it.
        let in_flight = self.lanes.in_flight().map(|(client, key, count)| ((client, key), count));
        assert_eq!(handed, in_flight.collect(), "messages in flight, by client and consumer");
        assert_eq!(self.backlog, held.messages, "messages of the group");
        held
    }

    /// Requeues the latest message in flight to a consumer, if it was handed out for `pop`, or for any if that
    /// is `None`.
    fn take_back(&mut self, held: &mut Held, key: ConsumerKey, pop: Option<PopId>) -> bool {
        let consumer = &mut self.consumers[key];
        let acknowledges = consumer.acknowledges;
        let Some(InFlight { client, item, .. }) = consumer.take_back(pop) else { return false };
        match acknowledges {
            true => self.retry(held, client, item, "not acknowledged", 0),
            false => self.put_back(client, item),
        }
        true
    }

    /// Requeues a message that was in flight.
    pub(super) fn put_back(&mut self, client: ClientId, item: Item) {
        if let Some(owner) = self.lanes.put_back(client, item) {
            self.offer(owner);
        }
    }

    /// Notes that a message which was in flight has left the group.
    #[inline]
    pub(super) fn finish_lane(&mut self, client: ClientId) {
        self.backlog -= 1;
        if let Some(owner) = self.lanes.finish(client) {
            self.offer(owner);
        }
    }

    /// Finishes the message at a place among those in flight to a consumer.
    #[inline]
    fn finish(&mut self, held: &mut Held, now_us: u64, key: ConsumerKey, at: usize) {
        let removed = self.consumers[key].remove(at);
        let InFlight { client, item, .. } = removed.expect("the place was looked up");
        held.waits.add(item.age_us(now_us));
        held.forget(self.place, client, &item);
        self.finish_lane(client);
    }

    /// Notes that a consumer has finished messages: it may be handed more, and feeders may have the room.
    pub(super) fn progress(&mut self, held: &mut Held, now_us: u64, key: ConsumerKey) {
        self.lapsed_since_us = None;
        let consumer = &mut self.consumers[key];
        consumer.progress_us = now_us;
        let is_leaving = consumer.state == ConsumerState::Leaving;
        if consumer.state == ConsumerState::Stalled {
            consumer.state = ConsumerState::Active;
            self.share_again();
        }
        // The usual case, since consumers keep up: nothing waits, and the hash slots need not be searched.
        if self.lanes.has_listed() {
            self.fill(held, now_us, key, usize::MAX);
        }
        if is_leaving {
            self.remove_if_left(key);
        }
        held.grant_to_asking();
    }

    /// Shares the clients among the consumers of the best rank.
    pub(super) fn share_again(&mut self) {
        let ranks = || self.consumers.iter().filter_map(|(_, c)| c.rank(self.node));
        let Some(best) = ranks().min() else {
            self.lanes.share_among(&[]);
            return;
        };
        let is_member = |(_, consumer): &(_, &Consumer)| consumer.rank(self.node) == Some(best);
        let members: Vec<ConsumerKey> =
            self.consumers.iter().filter(is_member).map(|(key, _)| key).collect();
        for key in self.lanes.share_among(&members) {
            self.offer(key);
        }
    }

    /// Queues a consumer with room, for which something waits.
    pub(super) fn offer(&mut self, key: ConsumerKey) {
        let consumer = &mut self.consumers[key];
        if consumer.has_room() && !consumer.is_behind {
            consumer.is_behind = true;
            self.behind.push_back(key);
        }
    }

    /// Hands a consumer what waits for it, oldest first, while it has room. Looks at no more than `max` lanes,
    /// and returns their number.
    fn fill(&mut self, held: &mut Held, now_us: u64, key: ConsumerKey, max: usize) -> usize {
        let mut looked_at = 0;
        while looked_at < max
            && self.consumers.get(key).is_some_and(Consumer::has_room)
            && let Some(popped) = self.lanes.pop(key)
        {
            looked_at += 1;
            if let Popped::Message(client, item) = popped {
                let delivery = hand(&mut self.consumers[key], now_us, client, item);
                held.effects.push_back(delivery);
            }
        }
        looked_at
    }

    fn remove_if_left(&mut self, key: ConsumerKey) {
        let consumer = self.consumers.get(key);
        if consumer.is_some_and(|c| c.state == ConsumerState::Leaving && c.handed.is_empty()) {
            self.consumers.remove(key);
        }
    }
}

/// Hands a message to a consumer that has room.
#[inline]
fn hand(consumer: &mut Consumer, now_us: u64, client: ClientId, item: Item) -> Effect {
    let delivery = Delivery {
        number: item.number,
        pop: consumer.pop,
        is_acknowledged: consumer.acknowledges,
        is_redelivered: item.is_redelivered,
        frame: item.frame.clone(),
    };
    consumer.take(now_us, client, item);
    Effect::Deliver(consumer.id, delivery)
}
