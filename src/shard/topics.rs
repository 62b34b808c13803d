//! A shard's part in the queue: it feeds topics, is home to some, and passes events to consumers.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;

use super::Shard;
use super::connection::{Connection, Pause, Stage};
use super::fanout::Lane;
use super::memory::Shortage;
use super::settings::Settings;
use super::turn::ClientGone;
use super::unfed::Unfed;
use crate::address::placement::home_of_topic;
use crate::address::{ClientId, NodeId, ShardAddress, ShardId};
use crate::message::{
    Answer, BackendId, ConnectionKey, Credit, Delivery, Event, Message, Party, Terms, TopicMessage,
};
use crate::metrics::{Durations, TopicReport};
use crate::protocol::api::{self, Code, Fault, Reply};
use crate::protocol::close::{self, Reason};
use crate::protocol::frame::Frame;
use crate::queue::feeder::{Feeder, Waiting};
use crate::queue::room::Room;
use crate::queue::topic::{Effect, JoinError, Topic};

/// Events, and bytes of them, that wait for room in one topic, those of clients that are gone
/// included: beyond it (or three quarters of the topic's bytes, if that is more) new clients of its
/// routes are refused with 503, so that a full topic and clients that come and go use no more.
const WAITING_MAX: usize = 1 << 16;
const WAITING_BYTES: usize = 16 << 20;

/// The feeding ends and the homes of one shard.
#[derive(Debug)]
pub struct Topics {
    pub(super) feeders: HashMap<Arc<str>, Feeder>,
    // Topics for which somebody may be deferred.
    pub(super) crowded: BTreeSet<Arc<str>>,
    // The connection that was deferred and has its turn, until it has sent a message.
    pub(super) admitted: Option<ConnectionKey>,
    pub(super) unfed: Unfed,
    homes: HashMap<Arc<str>, Topic>,
    // An event may take three quarters of a topic at most: the rest may be lent to other shards for
    // good.
    event_bytes_max: usize,
    // Topics that have something left to do because their consumers changed.
    unfinished: VecDeque<Arc<str>>,
    // When to look for consumers that take nothing; None while there are no consumers.
    next_look_ms: Option<u64>,
    // How long events waited in topics that are no more.
    past: Durations,
}

/// How often a shard looks for consumers that take nothing, in milliseconds.
const LOOK_MS: u64 = 250;

impl Topics {
    /// Feeders of the topics that routes name, and homes of those that live on this shard.
    pub fn new(shard: ShardId, settings: &Settings) -> Self {
        let bounds = settings.queue.bounds;
        let mut topics = Self {
            feeders: HashMap::new(),
            crowded: BTreeSet::new(),
            admitted: None,
            unfed: Unfed::default(),
            homes: HashMap::new(),
            event_bytes_max: bounds.bytes / 4 * 3,
            unfinished: VecDeque::new(),
            next_look_ms: None,
            past: Durations::default(),
        };
        for route in settings.edges.iter().flat_map(|edge| &edge.routes) {
            let Some(name) = &route.topic else { continue };
            let share = Room::share(bounds, settings.shards);
            topics.feeders.insert(name.clone(), Feeder::new(share));
            if home_of_topic(name, settings.shards) == shard {
                topics.homes.insert(name.clone(), new_topic(settings));
            }
        }
        topics
    }

    /// How things stand in the topics that live here.
    pub fn reports(&self, now_us: u64) -> Vec<TopicReport> {
        self.homes.iter().map(|(name, topic)| topic.report(name, now_us)).collect()
    }

    /// How long events were in the topics that live here, or did, until they were done with.
    pub fn waits(&self) -> Durations {
        self.homes.values().fold(self.past, |mut all, topic| {
            all += topic.waits();
            all
        })
    }

    /// Messages in the topics that live here.
    pub fn messages(&self) -> usize {
        self.homes.values().map(Topic::messages).sum()
    }

    /// Whether a topic that lives here has messages for a consumer.
    pub fn has_work(&self) -> bool {
        self.homes.values().any(|topic| topic.has_consumers() && topic.messages() > 0)
    }

    /// Panics if what a topic that lives here notes in several places does not agree.
    pub fn check(&self) {
        self.homes.values().for_each(Topic::check);
    }

    /// When a turn has something to do for topics; a time that is past: at once.
    pub fn next_turn(&self) -> Option<u64> {
        if self.unfinished.is_empty() && !self.has_turns() { self.next_look_ms } else { Some(0) }
    }

    /// The names of the topics that live here and for which this is so, in order.
    fn homes_that(&self, is_so: impl Fn(&Topic) -> bool) -> Vec<Arc<str>> {
        let homes = self.homes.iter().filter(|(_, topic)| is_so(topic));
        let mut names: Vec<_> = homes.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// Whether a report about a client of another node is to be put into this topic now: as long as
    /// nothing waits for room.
    pub fn takes_reports(&self, topic: &str) -> bool {
        self.feeders.get(topic).is_none_or(|feeder| feeder.waiting() == 0)
    }

    /// Whether a new client may feed this topic, while clients that have ended left so many bytes to be
    /// read, whatever their topic.
    pub fn takes_clients(&self, topic: &str, parted_bytes: usize) -> bool {
        self.feeders.get(topic).is_none_or(|feeder| {
            let bytes_max = WAITING_BYTES.max(self.event_bytes_max);
            let bytes = feeder.waiting_bytes() + parted_bytes;
            feeder.waiting() < WAITING_MAX && bytes <= bytes_max
        })
    }
}

fn new_topic(settings: &Settings) -> Topic {
    Topic::new(settings.node, settings.queue.bounds, settings.queue.when_full, settings.shards)
}

impl Shard {
    /// Puts the event of a client that was just written into its topic, or lets it and the client wait
    /// for room. If neither may be, the client is closed here.
    pub(super) fn feed(&mut self, topic: &Arc<str>, key: ConnectionKey, client: ClientId) {
        // Its turn, if it had one, is used up.
        self.topics.admitted = None;
        if self.event.len() > self.topics.event_bytes_max {
            self.turn.counters.oversized += 1;
            return self.close_client(key, close::TOO_LARGE);
        }
        self.push_or_wait(topic, client, Some(key));
    }

    /// Puts the last event of a client, which is gone, into its topic. It waits for room alone.
    pub(super) fn feed_last(
        &mut self,
        topic: &Arc<str>,
        client: ClientId,
        put_data: impl FnOnce(&mut Vec<u8>),
    ) {
        self.write_event(topic, client, put_data);
        if self.event.len() > self.topics.event_bytes_max {
            self.turn.counters.oversized += 1;
            return self.unname_ward(topic, client);
        }
        self.push_or_wait(topic, client, None);
    }

    /// Puts a report about a client of a node that is or was lost into a topic. No route of this
    /// node may name it.
    pub(super) fn feed_report(
        &mut self,
        topic: &Arc<str>,
        client: ClientId,
        put_data: impl FnOnce(&mut Vec<u8>),
    ) {
        self.write_event(topic, client, put_data);
        if !self.topics.feeders.contains_key(topic) {
            let share = Room::share(self.turn.settings.queue.bounds, self.turn.settings.shards);
            self.topics.feeders.insert(topic.clone(), Feeder::new(share));
        }
        self.push_or_wait(topic, client, None);
    }

    /// Writes an event of a client, for [`Self::feed`] or what else puts it into the topic.
    pub(super) fn write_event(
        &mut self,
        topic: &Arc<str>,
        client: ClientId,
        put_data: impl FnOnce(&mut Vec<u8>),
    ) {
        self.event.clear();
        let event_of = (client.node(), client, &topic[..]);
        api::put_event(&mut self.event, &mut self.turn.scratch, event_of, put_data);
    }

    /// Pushes the event that was just written if there is room for it. If not it waits, and with it
    /// the connection that it is from.
    fn push_or_wait(&mut self, topic: &Arc<str>, client: ClientId, from: Option<ConnectionKey>) {
        let frame = Frame::from_encoded(&self.event);
        let event =
            Event { client, frame, is_watched: from.is_none() && self.wards.is_ended(client) };
        let feeder = self.topics.feeders.get_mut(topic).expect("what feeds a topic has a feeder");
        let is_short = self.turn.is_short(Shortage::Holders);
        if !is_short && feeder.take(event.frame.bytes().len()) {
            return self.push(topic, event);
        }
        self.turn.counters.limits.topic += 1;
        feeder.wait(Waiting { from, event });
        self.topics.note_crowded(topic);
        if let Some(key) = from {
            self.connections.pause(key, Pause::Topic);
        }
        // Now, since the room may be there at once.
        if !is_short {
            self.ask_for_room(topic);
        }
    }

    /// Feeds topics again that took nothing for want of memory.
    pub(super) fn feed_again(&mut self) {
        let waited = self.topics.feeders.iter().filter(|(_, feeder)| feeder.waiting() > 0);
        let mut waited: Vec<_> = waited.map(|(name, _)| name.clone()).collect();
        waited.sort_unstable();
        waited.iter().for_each(|topic| self.push_waiting(topic));
    }

    fn ask_for_room(&mut self, topic: &Arc<str>) {
        let feeder = self.topics.feeders.get_mut(topic).expect("it fed the topic before");
        if let Some(bytes) = feeder.poll_ask() {
            self.tell_own_home(topic, TopicMessage::WantCredit(bytes));
        }
    }

    fn push(&mut self, topic: &Arc<str>, event: Event) {
        if let Some(home) = self.topics.homes.get_mut(topic) {
            home.push(self.turn.now.us, self.turn.address.shard, event);
            return self.carry_out_effects(topic);
        }
        self.tell_own_home(topic, TopicMessage::Push(event));
    }

    fn tell_own_home(&mut self, topic: &Arc<str>, message: TopicMessage) {
        let node = self.turn.address.node;
        self.turn.tell_home(node, topic, message);
    }

    fn tell(&mut self, to: ShardAddress, topic: &Arc<str>, message: TopicMessage) {
        self.turn.tell(Party::Shard(to), Message::Topic(topic.clone(), message));
    }

    /// A shard of this node.
    fn neighbour(&self, shard: ShardId) -> ShardAddress {
        ShardAddress { node: self.turn.address.node, shard }
    }

    pub(super) fn handle_topic_message(
        &mut self,
        from: ShardAddress,
        topic: Arc<str>,
        message: TopicMessage,
    ) {
        match message {
            // Only clients of this node feed its topics.
            TopicMessage::Credit(_)
            | TopicMessage::Refused
            | TopicMessage::Left(_)
            | TopicMessage::Push(_)
            | TopicMessage::WantCredit(..)
                if from.node != self.turn.address.node => {}
            TopicMessage::Credit(credit) => {
                if let Some(feeder) = self.topics.feeders.get_mut(&topic) {
                    feeder.granted(credit);
                    self.push_waiting(&topic);
                }
            }
            TopicMessage::Refused => self.close_waiting(&topic),
            TopicMessage::Left(client) => self.unname_ward(&topic, client),
            TopicMessage::Deliver(to, delivery) => {
                self.deliver(to.connection, from.node, topic, delivery);
            }
            TopicMessage::Expel(backend) => {
                self.connections.close_slow(&mut self.turn, backend.connection)
            }
            TopicMessage::Consume(backend, terms) => {
                // One topic too many here is no reason to keep a back end from those elsewhere.
                if self.join(&topic, backend, terms).is_ok() {
                    self.handle_as_home(from.shard, &topic, TopicMessage::Start(backend));
                }
            }
            TopicMessage::Unconsume(backend) => drop(self.leave(&topic, backend)),
            TopicMessage::Push(_)
            | TopicMessage::WantCredit(..)
            | TopicMessage::Start(_)
            | TopicMessage::Written(..)
            | TopicMessage::Returned(..)
            | TopicMessage::Gone(_)
            | TopicMessage::Settled(..) => self.handle_as_home(from.shard, &topic, message),
        }
    }

    fn handle_as_home(&mut self, from: ShardId, topic: &Arc<str>, message: TopicMessage) {
        let now_us = self.turn.now.us;
        let feeds = matches!(message, TopicMessage::Push(_) | TopicMessage::WantCredit(_));
        if feeds && !self.ensure_home(topic) {
            return self.refuse_report(from, topic, &message);
        }
        let Some(home) = self.topics.homes.get_mut(topic) else { return };
        match message {
            TopicMessage::Push(event) => home.push(now_us, from, event),
            TopicMessage::WantCredit(bytes) => home.want_credit(from, bytes),
            TopicMessage::Start(backend) => home.start(now_us, backend),
            TopicMessage::Written(backend, count) => home.written(now_us, backend, count),
            TopicMessage::Settled(backend, numbers) => home.settled(now_us, backend, &numbers),
            TopicMessage::Returned(backend, number, pop) => {
                home.returned(now_us, backend, number, pop);
            }
            TopicMessage::Gone(backend) => home.gone(backend),
            _ => {}
        }
        self.turn.counters.dropped += home.take_dropped();
        self.carry_out_effects(topic);
        self.forget_if_idle(topic);
    }

    /// Does what a topic wants done. Credit for this shard's own feeder may bring new messages,
    /// whose effects queue up behind: so this loops instead of nesting.
    fn carry_out_effects(&mut self, topic: &Arc<str>) {
        while let Some(effect) = self.topics.homes.get_mut(topic).and_then(Topic::poll_effect) {
            match effect {
                Effect::Deliver(to, delivery) => {
                    self.tell(to.at, topic, TopicMessage::Deliver(to, delivery));
                }
                Effect::Grant(shard, credit) if shard == self.turn.address.shard => {
                    let feeder = self.topics.feeders.get_mut(topic);
                    let feeder = feeder.expect("credit goes to those who feed");
                    feeder.granted(credit);
                    self.push_waiting_at_home(topic);
                }
                Effect::Grant(shard, credit) => {
                    self.tell(self.neighbour(shard), topic, TopicMessage::Credit(credit));
                }
                Effect::Refuse(shard) => {
                    self.tell(self.neighbour(shard), topic, TopicMessage::Refused);
                }
                Effect::Expel(backend) => {
                    self.tell(backend.at, topic, TopicMessage::Expel(backend));
                }
                Effect::Left(client) => {
                    let shard = self
                        .turn
                        .roster
                        .address_of(client)
                        .expect("clients of this node are watched");
                    self.tell(shard, topic, TopicMessage::Left(client));
                }
            }
        }
        if self.topics.homes.get_mut(topic).is_some_and(Topic::poll_unfinished) {
            self.topics.unfinished.push_back(topic.clone());
        }
    }

    /// Goes on in one topic whose consumers have changed; one after the other has its turn.
    pub(super) fn move_messages(&mut self) {
        let Some(topic) = self.topics.unfinished.pop_front() else { return };
        if let Some(home) = self.topics.homes.get_mut(&topic) {
            home.handle_turn(self.turn.now.us);
        }
        self.carry_out_effects(&topic);
        self.forget_if_idle(&topic);
    }

    /// There is room: pushes what waited for it and reads on from those who waited.
    fn push_waiting(&mut self, topic: &Arc<str>) {
        while let Some(waiting) = self.poll_waiting(topic) {
            self.push(topic, waiting.event);
        }
        self.ask_for_room(topic);
    }

    fn push_waiting_at_home(&mut self, topic: &Arc<str>) {
        while let Some(Waiting { event, .. }) = self.poll_waiting(topic) {
            let home = self.topics.homes.get_mut(topic).expect("this is its home");
            home.push(self.turn.now.us, self.turn.address.shard, event);
        }
        let feeder = self.topics.feeders.get_mut(topic).expect("it fed the topic before");
        if let Some(bytes) = feeder.poll_ask() {
            let home = self.topics.homes.get_mut(topic).expect("this is its home");
            home.want_credit(self.turn.address.shard, bytes);
        }
    }

    fn poll_waiting(&mut self, topic: &Arc<str>) -> Option<Waiting> {
        let waiting = self.topics.feeders.get_mut(topic)?.poll_ready()?;
        if let Some(from) = waiting.from {
            self.connections.unpause(&mut self.turn, from, Pause::Topic);
        }
        Some(waiting)
    }

    /// There is no room and nobody is to wait: the clients that waited are closed.
    fn close_waiting(&mut self, topic: &Arc<str>) {
        let Some(feeder) = self.topics.feeders.get_mut(topic) else { return };
        for waiting in feeder.refused() {
            self.turn.counters.refused += 1;
            if let Some(from) = waiting.from {
                self.connections.unpause(&mut self.turn, from, Pause::Topic);
                self.close_client(from, close::TOPIC_FULL);
            }
            if waiting.event.is_watched {
                self.unname_ward(topic, waiting.event.client);
            }
        }
    }

    /// Closes a connection if it is a client that is not gone yet.
    fn close_client(&mut self, key: ConnectionKey, reason: Reason) {
        if self.connections.get(key).is_some_and(|connection| connection.client().is_some()) {
            self.connections.close_with(&mut self.turn, key, reason);
        }
    }

    /// An event for one of our back ends, from a topic of this or another node. If its connection
    /// is gone, its home may have heard no more than that it does not consume any more.
    fn deliver(&mut self, key: ConnectionKey, home: NodeId, topic: Arc<str>, delivery: Delivery) {
        let id = self.turn.backend_id(key);
        let connection = self.connections.get(key);
        let Some(Connection { stage: Stage::Backend(backend), outbound, .. }) = connection else {
            return self.turn.tell_home(home, &topic, TopicMessage::Gone(id));
        };
        let Delivery { number, pop, is_acknowledged, .. } = delivery;
        if !backend.is_consuming || backend.pops != pop {
            return self.turn.tell_home(home, &topic, TopicMessage::Returned(id, number, pop));
        }
        if is_acknowledged {
            return self.deliver_tagged(key, home, topic, delivery);
        }
        outbound.push_shared(&mut self.turn.spare, Rc::new(delivery.frame));
        self.turn.counters.events += 1;
        let end = backend.written + outbound.buffered() as u64;
        backend.deliveries.push_back((end, home, topic));
        self.connections.queue_write(key);
    }

    /// Bytes were written to a back end: tells the homes of the events that went out whole.
    pub(super) fn count_written_events(&mut self, key: ConnectionKey) {
        let backend_id = self.turn.backend_id(key);
        let Some(backend) = self.connections.get(key).and_then(|c| c.backend()) else { return };
        let written = backend.written;
        loop {
            let Some(backend) = self.connections.get(key).and_then(|c| c.backend()) else { return };
            let Some((end, home, topic)) = backend.deliveries.front().cloned() else { return };
            if end > written {
                return;
            }
            let is_same = |delivery: &&(u64, NodeId, Arc<str>)| {
                delivery.0 <= written && delivery.1 == home && delivery.2 == topic
            };
            let count = backend.deliveries.iter().take_while(is_same).count();
            backend.deliveries.drain(..count);
            self.turn.tell_home(home, &topic, TopicMessage::Written(backend_id, count as u32));
        }
    }

    /// Makes a back end a consumer of a topic that lives here.
    pub(super) fn join(
        &mut self,
        topic: &Arc<str>,
        backend: BackendId,
        terms: Terms,
    ) -> Result<Reply, Fault> {
        if !self.ensure_home(topic) {
            return Err(Fault::new(Code::ConsumptionFailed, "too many topics on this node"));
        }
        let home = self.topics.homes.get_mut(topic).expect("it is there or was just made");
        self.topics.next_look_ms.get_or_insert(self.turn.now.ms + LOOK_MS);
        match home.join(self.turn.now.us, backend, terms) {
            Ok(()) => Ok(Reply::Done),
            Err(JoinError::Repeated) => {
                Err(Fault::new(Code::RepeatedConsumption, "consumes this topic already"))
            }
            Err(JoinError::TooMany) => {
                self.turn.counters.limits.consumers += 1;
                Err(Fault::new(Code::ConsumptionFailed, "too many consumers of this topic"))
            }
        }
    }

    /// Has a topic live here; false if there are too many.
    fn ensure_home(&mut self, topic: &Arc<str>) -> bool {
        if self.topics.homes.contains_key(topic) {
            return true;
        }
        // The bound is the node's; each shard is home to its part of it.
        if self.topics.homes.len()
            >= self.turn.settings.queue.topics.div_ceil(self.turn.settings.shards)
        {
            self.turn.counters.limits.topics += 1;
            return false;
        }
        self.topics.homes.insert(topic.clone(), new_topic(&self.turn.settings));
        true
    }

    /// There are too many topics for one that only reports of lost clients feed.
    fn refuse_report(&mut self, from: ShardId, topic: &Arc<str>, message: &TopicMessage) {
        match message {
            TopicMessage::Push(event) => {
                self.turn.counters.dropped += 1;
                let credit = Credit { messages: 1, bytes: event.frame.bytes().len() };
                self.tell(self.neighbour(from), topic, TopicMessage::Credit(credit));
            }
            _ => self.tell(self.neighbour(from), topic, TopicMessage::Refused),
        }
    }

    /// Ends that.
    pub(super) fn leave(&mut self, topic: &Arc<str>, backend: BackendId) -> Result<Reply, Fault> {
        let left = self.topics.homes.get_mut(topic).is_some_and(|home| home.leave(backend));
        self.carry_out_effects(topic);
        self.forget_if_idle(topic);
        match left {
            true => Ok(Reply::Done),
            false => Err(Fault::new(Code::CancelFailed, "was not consuming")),
        }
    }

    /// A topic that nobody has fed goes with its last consumer.
    fn forget_if_idle(&mut self, topic: &Arc<str>) {
        let is_idle = self.topics.homes.get(topic).is_some_and(Topic::is_idle);
        if is_idle && !self.topics.feeders.contains_key(topic) {
            let gone = self.topics.homes.remove(topic);
            self.topics.past += gone.map(|topic| topic.waits()).unwrap_or_default();
        }
    }

    /// A back end that consumed is gone: what it did not write goes to others.
    pub(super) fn handle_backend_gone(&mut self, backend: BackendId) {
        let lane = self.lanes.get_mut(&backend);
        for asked in lane.map(Lane::forget_joins).unwrap_or_default() {
            let fault = Fault::new(Code::ConsumptionFailed, "the connection is gone");
            self.answer(asked, Answer::Done(Err(fault)));
        }
        for topic in self.topics.homes_that(|home| home.knows(backend)) {
            if let Some(home) = self.topics.homes.get_mut(&topic) {
                home.gone(backend);
            }
            self.carry_out_effects(&topic);
            self.forget_if_idle(&topic);
        }
    }

    /// The consumers of a node are out of reach.
    pub(super) fn forget_consumers_of(&mut self, node: NodeId) {
        for topic in self.topics.homes_that(Topic::has_consumers) {
            if let Some(home) = self.topics.homes.get_mut(&topic) {
                home.node_gone(node);
            }
            self.carry_out_effects(&topic);
            self.forget_if_idle(&topic);
        }
    }

    /// The topics of a node are out of reach: they hear no more of what a back end wrote, and give it
    /// to others.
    pub(super) fn forget_deliveries_of(&mut self, node: NodeId, key: ConnectionKey) {
        let Some(backend) = self.connections.get(key).and_then(Connection::backend) else { return };
        backend.deliveries.retain(|(_, home, _)| *home != node);
        if let Some(unsettled) = &mut backend.unsettled {
            unsettled.forget_node(node);
        }
    }

    /// Looks for consumers that take nothing, when it is time to.
    pub(super) fn check_topics(&mut self) {
        let now_ms = self.turn.now.ms;
        if self.topics.next_look_ms.is_none_or(|due| now_ms < due) {
            return;
        }
        if cfg!(debug_assertions) {
            self.topics.check();
        }
        let consumed = self.topics.homes_that(Topic::has_consumers);
        self.topics.next_look_ms = (!consumed.is_empty()).then_some(now_ms + LOOK_MS);
        for topic in consumed {
            if let Some(home) = self.topics.homes.get_mut(&topic) {
                home.handle_timeout(self.turn.now.us);
            }
            self.carry_out_effects(&topic);
        }
    }

    /// A client is gone: its channels forget it, and its route's topic is told if it asked.
    pub(super) fn client_gone(&mut self, gone: ClientGone) {
        let ClientGone { key, code, reason } = gone;
        let Some(connection) = self.connections.get(key) else { return };
        let stage = std::mem::replace(&mut connection.stage, Stage::Ending);
        let Stage::Leaving(client) = stage else { return };
        self.clients.remove(&client.id);
        let route = self.connections.route(&mut self.turn, key, client.route);
        if let Some(topic) = route.topic.as_ref().filter(|_| route.tells_close) {
            self.keep_ward(topic, client.id);
            self.feed_end(topic, &client, (code, &reason));
        }
        self.begin_leaving(key, client);
        self.connections.forget_if_left(key);
    }
}
