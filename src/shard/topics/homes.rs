//! The topics that live on this shard, which its own clients and those of other shards feed.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::address::placement::home_of_topic;
use crate::address::{NodeId, ShardAddress, ShardId};
use crate::message::{BackendId, Credit, Event, Message, Party, Terms, TopicMessage};
use crate::metrics::{Durations, TopicReport};
use crate::protocol::api::{Code, Fault, Reply};
use crate::queue::topic::{Effect, JoinError, Topic};
use crate::shard::settings::Settings;
use crate::shard::turn::Turn;

/// How often a shard looks for consumers that take nothing, in milliseconds.
const LOOK_MS: u64 = 250;

/// The topics that live on a shard.
#[derive(Debug)]
pub struct Homes {
    homes: HashMap<Arc<str>, Topic>,
    // Topics of routes: they stay when nobody consumes them.
    routed: Vec<Arc<str>>,
    // Topics that have something left to do because their consumers changed.
    unfinished: VecDeque<Arc<str>>,
    // When to look for consumers that take nothing; None while there are no consumers.
    next_look_ms: Option<u64>,
    // How long events waited in topics that are no more.
    past: Durations,
}

impl Homes {
    /// Homes of the topics of routes that live on this shard.
    pub fn new(shard: ShardId, settings: &Settings) -> Self {
        let routes = settings.edges.iter().flat_map(|edge| &edge.routes);
        let topics = routes.filter_map(|route| route.topic.as_ref());
        let here = |topic: &&Arc<str>| home_of_topic(topic, settings.shards) == shard;
        let routed: Vec<_> = topics.filter(here).cloned().collect();
        Self {
            homes: routed.iter().map(|topic| (topic.clone(), new_topic(settings))).collect(),
            routed,
            unfinished: VecDeque::new(),
            next_look_ms: None,
            past: Durations::default(),
        }
    }

    /// Takes an event from a feeder on this shard, which had credit for it; gives it back if its topic
    /// lives elsewhere.
    pub fn push(&mut self, turn: &mut Turn, topic: &Arc<str>, event: Event) -> Option<Event> {
        let Some(home) = self.homes.get_mut(topic) else { return Some(event) };
        home.push(turn.now.us, turn.address.shard, event);
        self.carry_out_effects(turn, topic);
        None
    }

    /// Handles what a feeder or a consumer says to a topic that lives here.
    pub fn handle(
        &mut self,
        turn: &mut Turn,
        from: ShardId,
        topic: &Arc<str>,
        message: TopicMessage,
    ) {
        match message {
            TopicMessage::Consume(backend, terms) => {
                // One topic too many here is no reason to keep a back end from those elsewhere.
                if self.join(turn, topic, backend, terms).is_ok() {
                    self.handle(turn, from, topic, TopicMessage::Start(backend));
                }
                return;
            }
            TopicMessage::Unconsume(backend) => return drop(self.leave(turn, topic, backend)),
            _ => {}
        }
        let feeds = matches!(message, TopicMessage::Push(_) | TopicMessage::WantCredit(_));
        if feeds && !self.ensure(turn, topic) {
            return refuse_report(turn, from, topic, &message);
        }
        let now_us = turn.now.us;
        let Some(home) = self.homes.get_mut(topic) else { return };
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
        self.settle(turn, topic);
    }

    /// A topic has changed: does what it wants done, and forgets it if nobody needs it any more.
    fn settle(&mut self, turn: &mut Turn, topic: &Arc<str>) {
        self.carry_out_effects(turn, topic);
        let is_idle = self.homes.get(topic).is_some_and(Topic::is_idle);
        if is_idle && !self.routed.contains(topic) {
            let gone = self.homes.remove(topic);
            self.past += gone.map(|topic| topic.waits()).unwrap_or_default();
        }
    }

    /// Does what a topic wants done.
    fn carry_out_effects(&mut self, turn: &mut Turn, topic: &Arc<str>) {
        let Some(home) = self.homes.get_mut(topic) else { return };
        while let Some(effect) = home.poll_effect() {
            let (to, message) = match effect {
                Effect::Deliver(to, delivery) => (to.at, TopicMessage::Deliver(to, delivery)),
                Effect::Grant(shard, credit) => {
                    (neighbour(turn, shard), TopicMessage::Credit(credit))
                }
                Effect::Refuse(shard) => (neighbour(turn, shard), TopicMessage::Refused),
                Effect::Expel(backend) => (backend.at, TopicMessage::Expel(backend)),
                Effect::Left(client) => {
                    let shard = turn.roster.address_of(client);
                    let shard = shard.expect("clients of this node are watched");
                    (shard, TopicMessage::Left(client))
                }
            };
            turn.send(Party::Shard(to), Message::Topic(topic.clone(), message));
        }
        turn.counters.dropped += home.take_dropped();
        if home.poll_unfinished() {
            self.unfinished.push_back(topic.clone());
        }
    }

    /// Makes a back end a consumer of a topic; see [`super::Topics::join`].
    pub fn join(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        backend: BackendId,
        terms: Terms,
    ) -> Result<Reply, Fault> {
        if !self.ensure(turn, topic) {
            return Err(Fault::new(Code::ConsumptionFailed, "too many topics on this node"));
        }
        let home = self.homes.get_mut(topic).expect("it is there or was just made");
        self.next_look_ms.get_or_insert(turn.now.ms + LOOK_MS);
        match home.join(turn.now.us, backend, terms) {
            Ok(()) => Ok(Reply::Done),
            Err(JoinError::Repeated) => {
                Err(Fault::new(Code::RepeatedConsumption, "consumes this topic already"))
            }
            Err(JoinError::TooMany) => {
                turn.counters.limits.consumers += 1;
                Err(Fault::new(Code::ConsumptionFailed, "too many consumers of this topic"))
            }
        }
    }

    /// Ends the consumption of a topic; see [`super::Topics::leave`].
    pub fn leave(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        backend: BackendId,
    ) -> Result<Reply, Fault> {
        let left = self.homes.get_mut(topic).is_some_and(|home| home.leave(backend));
        self.settle(turn, topic);
        match left {
            true => Ok(Reply::Done),
            false => Err(Fault::new(Code::CancelFailed, "was not consuming")),
        }
    }

    /// Makes a topic live here; false if there are too many. The bound is the node's, and each shard is
    /// home to its part of it.
    fn ensure(&mut self, turn: &mut Turn, topic: &Arc<str>) -> bool {
        if self.homes.contains_key(topic) {
            return true;
        }
        let settings = &turn.settings;
        if self.homes.len() >= settings.queue.topics.div_ceil(settings.shards) {
            turn.counters.limits.topics += 1;
            return false;
        }
        self.homes.insert(topic.clone(), new_topic(settings));
        true
    }

    /// Takes what a back end did not write back, and gives it to others.
    pub fn handle_backend_gone(&mut self, turn: &mut Turn, backend: BackendId) {
        let known = self.homes_that(|home| home.knows(backend));
        self.change(turn, known, |home| home.gone(backend));
    }

    /// Takes what the consumers of a node did not write back, and gives it to others.
    pub fn handle_node_down(&mut self, turn: &mut Turn, node: NodeId) {
        let consumed = self.homes_that(Topic::has_consumers);
        self.change(turn, consumed, |home| home.node_gone(node));
    }

    fn change(&mut self, turn: &mut Turn, topics: Vec<Arc<str>>, change: impl Fn(&mut Topic)) {
        for topic in topics {
            if let Some(home) = self.homes.get_mut(&topic) {
                change(home);
            }
            self.settle(turn, &topic);
        }
    }

    /// Goes on in one topic whose consumers have changed: one after the other has its turn.
    pub fn handle_turn(&mut self, turn: &mut Turn) {
        let now_us = turn.now.us;
        if let Some(topic) = self.unfinished.pop_front() {
            self.change(turn, vec![topic], |home| home.handle_turn(now_us));
        }
    }

    /// Looks for consumers that take nothing, when it is time to.
    pub fn handle_timeout(&mut self, turn: &mut Turn) {
        let now = turn.now;
        if self.next_look_ms.is_none_or(|due_ms| now.ms < due_ms) {
            return;
        }
        if cfg!(debug_assertions) {
            self.check();
        }
        let consumed = self.homes_that(Topic::has_consumers);
        self.next_look_ms = (!consumed.is_empty()).then_some(now.ms + LOOK_MS);
        self.change(turn, consumed, |home| home.handle_timeout(now.us));
    }

    /// When a turn has something to do, in milliseconds of the shard's clock. A time that is past: at once.
    pub fn next_turn(&self) -> Option<u64> {
        if self.unfinished.is_empty() { self.next_look_ms } else { Some(0) }
    }

    /// The names of the topics for which this is so, in order.
    fn homes_that(&self, is_so: impl Fn(&Topic) -> bool) -> Vec<Arc<str>> {
        let homes = self.homes.iter().filter(|(_, topic)| is_so(topic));
        let mut names: Vec<_> = homes.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// The state of each topic.
    pub fn reports(&self, now_us: u64) -> Vec<TopicReport> {
        self.homes.iter().map(|(name, topic)| topic.report(name, now_us)).collect()
    }

    /// How long events stayed in topics that live here, or did, until they were done with.
    pub fn waits(&self) -> Durations {
        self.homes.values().fold(self.past, |mut all, topic| {
            all += topic.waits();
            all
        })
    }

    /// Messages in the topics.
    pub fn messages(&self) -> usize {
        self.homes.values().map(Topic::messages).sum()
    }

    /// Whether a topic has messages for a consumer.
    pub fn has_work(&self) -> bool {
        self.homes.values().any(|topic| topic.has_consumers() && topic.messages() > 0)
    }

    /// Checks that what a topic notes in several places agrees.
    ///
    /// # Panics
    /// It does not.
    pub fn check(&self) {
        self.homes.values().for_each(Topic::check);
    }
}

/// There are too many topics for one that only reports of lost clients feed.
fn refuse_report(turn: &mut Turn, from: ShardId, topic: &Arc<str>, message: &TopicMessage) {
    let answer = match message {
        TopicMessage::Push(event) => {
            turn.counters.dropped += 1;
            TopicMessage::Credit(Credit { messages: 1, bytes: event.frame.bytes().len() })
        }
        _ => TopicMessage::Refused,
    };
    let to = Party::Shard(neighbour(turn, from));
    turn.send(to, Message::Topic(topic.clone(), answer));
}

fn neighbour(turn: &Turn, shard: ShardId) -> ShardAddress {
    ShardAddress { node: turn.address.node, shard }
}

fn new_topic(settings: &Settings) -> Topic {
    Topic::new(settings.node, settings.queue.bounds, settings.queue.when_full, settings.shards)
}
