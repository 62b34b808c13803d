//! The topics whose home is this shard. All shards of the node feed them; back ends of all nodes
//! consume them.

mod dead;
mod pushes;

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::logs::ChangedLogs;
use super::sinks::OutgoingEvents;
use crate::address::placement::home_of_topic;
use crate::address::{NodeId, ShardId};
use crate::message::{
    BackendId, ClientReply, Credit, Event, FromConsumer, FromFeeder, GridMessage, LocalMessage,
    SettleTaken, StaleTaken, Terms, ToConsumer, ToFeeder,
};
use crate::metrics::{Durations, TopicReport};
use crate::protocol::api::{Code, Death, Fault};
use crate::queue::topic::{Effect, JoinError, Topic};
use crate::shard::settings::{Settings, TopicRules};
use crate::shard::turn::Turn;
use pushes::WaitingPushes;

/// How often a shard checks for consumers that take no events, in milliseconds.
const CHECK_MS: u64 = 250;

/// The topics whose home is one shard.
#[derive(Debug)]
pub(in crate::shard) struct HomeTopics {
    // At most this shard's part of `Queue::topics`, besides those of routes. See `ensure`.
    topics: HashMap<Arc<str>, Topic>,
    // Topics of routes, with sinks, or on disk. They are kept even if they are empty and have no consumers.
    routed: Vec<Arc<str>>,
    // Topics for which a change of consumers has left work to do.
    unfinished: VecDeque<Arc<str>>,
    // When to check for consumers that take no events; None while there are no consumers.
    next_check_ms: Option<u64>,
    // Events of back ends that wait for room.
    pushes: WaitingPushes,
    // How long events stayed in topics that have been removed.
    past_waits: Durations,
    /// Topics with events for their sinks.
    pub(super) outgoing: OutgoingEvents,
    /// Topics with changes for their logs.
    pub(super) changed_logs: ChangedLogs,
}

impl HomeTopics {
    /// Creates the topics of routes whose home is this shard.
    pub(super) fn new(shard: ShardId, settings: &Settings) -> Self {
        let mut home = Self {
            topics: HashMap::new(),
            routed: Vec::new(),
            unfinished: VecDeque::new(),
            next_check_ms: None,
            pushes: WaitingPushes::default(),
            past_waits: Durations::default(),
            outgoing: OutgoingEvents::default(),
            changed_logs: ChangedLogs::default(),
        };
        home.create_routed(shard, settings);
        home
    }

    /// Applies the turn's reloaded settings: creates the topics of new routes, and gives each topic its new
    /// bounds. Topics without a route are removed when they are idle and used the next time.
    pub(super) fn handle_reload(&mut self, turn: &mut Turn) {
        let settings = Arc::clone(&turn.settings);
        self.create_routed(turn.address.shard, &settings);
        self.outgoing.handle_settings(&settings.queue);
        for name in self.names_of(|_| true) {
            let TopicRules { bounds, when_full, policy, .. } = settings.queue.rules_of(&name);
            self.change(turn, &name, |topic| {
                topic.set_policy(policy);
                if !topic.has_bounds(bounds, when_full) {
                    topic.set_bounds(bounds, when_full);
                }
            });
            self.set_sinks(turn, &name);
        }
        self.schedule_check(turn.now.ms);
    }

    /// Begins to check the topics regularly if one needs that.
    fn schedule_check(&mut self, now_ms: u64) {
        if self.topics.values().any(Topic::needs_checks) {
            self.next_check_ms.get_or_insert(now_ms + CHECK_MS);
        }
    }

    /// Checks the topics within the usual time.
    pub(super) fn check_soon(&mut self, now_ms: u64) {
        self.next_check_ms.get_or_insert(now_ms + CHECK_MS);
    }

    /// Creates the topics of routes and of presence whose home is this shard, as far as they do not exist.
    fn create_routed(&mut self, shard: ShardId, settings: &Settings) {
        let here = |topic: &&Arc<str>| home_of_topic(topic, settings.shards) == shard;
        let with_sinks = settings.queue.sinks.keys();
        let on_disk = settings.process.logs.keys();
        let kept = settings.topics().chain(with_sinks).chain(on_disk);
        self.routed = kept.filter(here).cloned().collect();
        for topic in &self.routed {
            if !self.topics.contains_key(topic) {
                self.topics.insert(topic.clone(), new_topic(settings, topic));
            }
        }
        // The time is unknown here. A check that is early finds nothing.
        self.schedule_check(0);
    }

    /// Takes an event from a feeder on this shard, which had credit for it. Returns the event if
    /// the topic's home is another shard.
    pub(super) fn push(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        event: Event,
    ) -> Option<Event> {
        let Some(home) = self.topics.get_mut(topic) else { return Some(event) };
        home.push(turn.now.us, turn.address.shard, event);
        self.carry_out_effects(turn, topic);
        None
    }

    /// Handles a message from a feeder to a topic whose home is this shard. Creates the topic if
    /// needed.
    pub(in crate::shard) fn handle_feeder(
        &mut self,
        turn: &mut Turn,
        from: ShardId,
        topic: &Arc<str>,
        message: FromFeeder,
    ) {
        if !self.ensure(turn, topic) {
            return refuse_report(turn, from, topic, &message);
        }
        let now_us = turn.now.us;
        self.change(turn, topic, |home| match message {
            FromFeeder::Push(event) => home.push(now_us, from, event),
            FromFeeder::WantCredit(bytes) => home.want_credit(from, bytes),
            FromFeeder::Returned(credit) => home.returned_credit(from, credit),
        });
    }

    /// Handles a message from a consumer to a topic whose home is this shard.
    pub(in crate::shard) fn handle_consumer(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        consumer: BackendId,
        message: FromConsumer,
    ) {
        let now_us = turn.now.us;
        match message {
            FromConsumer::Consume(terms) => {
                // A failure is not reported: the back end still consumes the topic on other nodes.
                if self.join(turn, topic, consumer, &terms).is_ok() {
                    self.start(turn, topic, consumer);
                }
            }
            FromConsumer::StopConsuming => drop(self.leave(turn, topic, consumer)),
            FromConsumer::Written(count) => {
                self.change(turn, topic, |home| home.written(now_us, consumer, count));
            }
            FromConsumer::Settled(numbers) => {
                self.change(turn, topic, |home| home.settled(now_us, consumer, &numbers));
            }
            FromConsumer::Refused { numbers, after_ms } => {
                let until_us = now_us + u64::from(after_ms) * 1000;
                self.change(turn, topic, |home| home.refused(now_us, consumer, &numbers, until_us));
            }
            FromConsumer::Returned { number, pop } => {
                self.change(turn, topic, |home| home.returned(now_us, consumer, number, pop));
            }
            FromConsumer::EndTake { kept } => {
                self.change(turn, topic, |home| home.end_take(now_us, consumer, &kept));
            }
            FromConsumer::GiveBack { pop, numbers } => {
                self.change(turn, topic, |home| home.give_back_taken(pop, &numbers));
            }
            FromConsumer::Gone => self.change(turn, topic, |home| home.gone(consumer)),
        }
    }

    /// Acknowledges or refuses events that were taken over HTTP. Returns those that were not.
    pub(in crate::shard) fn handle_settle(
        &mut self,
        turn: &mut Turn,
        settle: SettleTaken,
    ) -> StaleTaken {
        let SettleTaken { topic, events, after_ms } = settle;
        let now_us = turn.now.us;
        let until_us = after_ms.map(|after_ms| now_us + u64::from(after_ms) * 1000);
        let mut stale = None;
        self.change(turn, &topic, |home| {
            stale = Some(home.settle_taken(now_us, &events, until_us));
        });
        StaleTaken { topic, events: stale.unwrap_or(events) }
    }

    /// Starts deliveries to a consumer that has joined a topic.
    pub(in crate::shard) fn start(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        consumer: BackendId,
    ) {
        let now_us = turn.now.us;
        self.change(turn, topic, |home| home.start(now_us, consumer));
    }

    /// Changes a topic, if it exists, and carries out the effects.
    pub(super) fn change(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        change: impl FnOnce(&mut Topic),
    ) {
        if let Some(home) = self.topics.get_mut(topic) {
            change(home);
            self.settle(turn, topic);
        }
    }

    /// Carries out the effects of a change in a topic, and removes the topic if it is idle, has
    /// no route, and has handed nothing to a sink.
    fn settle(&mut self, turn: &mut Turn, topic: &Arc<str>) {
        self.carry_out_effects(turn, topic);
        let is_idle = self.topics.get(topic).is_some_and(Topic::is_idle);
        if is_idle && !self.routed.contains(topic) && !self.outgoing.has_named(topic) {
            let gone = self.topics.remove(topic);
            self.past_waits += gone.map(|topic| topic.waits()).unwrap_or_default();
        }
    }

    /// Carries out the effects that a topic has asked for.
    fn carry_out_effects(&mut self, turn: &mut Turn, topic: &Arc<str>) {
        let Some(home) = self.topics.get_mut(topic) else { return };
        while let Some(effect) = home.poll_effect() {
            match effect {
                Effect::Deliver(to, delivery) => {
                    tell_consumer(turn, topic, to, ToConsumer::Deliver(delivery));
                }
                Effect::Expired(backend, numbers) => {
                    tell_consumer(turn, topic, backend, ToConsumer::Expired(numbers));
                }
                Effect::Bury { client, frame, tries, why } => {
                    let death = Death { topic, tries, why };
                    match turn.settings.queue.dead_topic_of(topic).cloned() {
                        Some(to) => dead::bury(turn, death, topic, to, client, &frame),
                        // A reload has removed the dead topic meanwhile.
                        None => {
                            turn.counters.dropped += 1;
                            home.buried(true);
                        }
                    }
                }
                Effect::DeadStored(burial) => dead::answer(turn, burial, true),
                Effect::Evict(backend) => tell_consumer(turn, topic, backend, ToConsumer::Evict),
                Effect::Grant(shard, credit) => {
                    tell_feeder(turn, topic, shard, ToFeeder::Credit(credit));
                }
                Effect::Recall(shard, most) => {
                    tell_feeder(turn, topic, shard, ToFeeder::Recall(most));
                }
                Effect::Refuse(shard) => tell_feeder(turn, topic, shard, ToFeeder::Refused),
                Effect::RoomForPush => self.pushes.handle_room(turn, topic, home),
                Effect::Stored(requester) => turn.answer(requester, Ok(ClientReply::Done)),
                Effect::EventLeft(client) => {
                    let at = turn.roster.address_of(client);
                    let at = at.expect("clients of this node are watched");
                    tell_feeder(turn, topic, at.shard, ToFeeder::EventLeft(client));
                }
                Effect::EventStored(client, receipt) => {
                    let at = turn.roster.address_of(client);
                    let at = at.expect("the event is of a client of this node");
                    tell_feeder(turn, topic, at.shard, ToFeeder::EventStored(client, receipt));
                }
            }
        }
        turn.counters.dropped += home.take_dropped();
        turn.counters.aged += home.take_aged();
        turn.counters.redelivered += home.take_redelivered();
        if home.poll_unfinished() {
            self.unfinished.push_back(topic.clone());
        }
        if home.has_sink_events() {
            self.outgoing.note(topic);
        }
        if home.is_on_disk() && home.update_log() {
            self.changed_logs.note(topic);
        }
    }

    /// Makes a back end a consumer of a topic.
    ///
    /// # Errors
    /// The back end consumes the topic already, or there are too many consumers or topics.
    pub(in crate::shard) fn join(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        backend: BackendId,
        terms: &Terms,
    ) -> Result<(), Fault> {
        if !self.ensure(turn, topic) {
            return Err(Fault::new(Code::ConsumptionFailed, "too many topics on this node"));
        }
        let home = self.topics.get_mut(topic).expect("the topic exists or was just created");
        self.next_check_ms.get_or_insert(turn.now.ms + CHECK_MS);
        match home.join(turn.now.us, backend, terms) {
            Ok(()) => Ok(()),
            Err(JoinError::Repeated) => {
                Err(Fault::new(Code::RepeatedConsumption, "consumes this topic already"))
            }
            Err(JoinError::UnknownGroup) => {
                let group = terms.group.as_deref().unwrap_or_default();
                let why = format!("the topic {topic:?} has no group {group:?} on this node");
                Err(Fault::new(Code::ConsumptionFailed, why))
            }
            Err(JoinError::NoDefaultGroup) => {
                let why = format!(
                    "the topic {topic:?} has no default group on this node: name a group, or set \
                     default_group = true in its [[topic]]"
                );
                Err(Fault::new(Code::ConsumptionFailed, why))
            }
            Err(JoinError::TooMany) => {
                turn.counters.limits.consumers += 1;
                Err(Fault::new(Code::ConsumptionFailed, "too many consumers of this topic"))
            }
        }
    }

    /// Ends a back end's consumption of a topic.
    ///
    /// # Errors
    /// The back end does not consume the topic.
    pub(in crate::shard) fn leave(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        backend: BackendId,
    ) -> Result<(), Fault> {
        let left = self.topics.get_mut(topic).is_some_and(|home| home.leave(backend));
        self.settle(turn, topic);
        match left {
            true => Ok(()),
            false => Err(Fault::new(Code::CancelFailed, "was not consuming")),
        }
    }

    /// Creates a topic if there is none; returns false if there are too many. Each shard may have
    /// its share of the node's limit.
    fn ensure(&mut self, turn: &mut Turn, topic: &Arc<str>) -> bool {
        if self.topics.contains_key(topic) {
            return true;
        }
        let settings = &turn.settings;
        if self.topics.len() >= settings.queue.topics.div_ceil(settings.shards) {
            turn.counters.limits.topics += 1;
            return false;
        }
        let new = new_topic(settings, topic);
        if new.needs_checks() {
            self.next_check_ms.get_or_insert(turn.now.ms + CHECK_MS);
        }
        self.topics.insert(topic.clone(), new);
        true
    }

    /// Removes a back end that has ended from its topics. Events that were not written to it are
    /// redelivered.
    pub(in crate::shard) fn handle_backend_gone(&mut self, turn: &mut Turn, backend: BackendId) {
        let known = self.names_of(|home| home.knows(backend));
        self.change_each(turn, known, |home| home.gone(backend));
    }

    /// Removes the consumers of an unreachable node. Events that were not written to them are
    /// redelivered.
    pub(in crate::shard) fn handle_node_down(&mut self, turn: &mut Turn, node: NodeId) {
        let consumed = self.names_of(Topic::has_consumers);
        self.change_each(turn, consumed, |home| home.node_gone(node));
    }

    /// Changes topics and carries out the effects.
    fn change_each(&mut self, turn: &mut Turn, topics: Vec<Arc<str>>, change: impl Fn(&mut Topic)) {
        for topic in topics {
            self.change(turn, &topic, &change);
        }
    }

    /// Continues the work of one unfinished topic. The unfinished topics take turns.
    pub(in crate::shard) fn handle_turn(&mut self, turn: &mut Turn) {
        let now_us = turn.now.us;
        if let Some(topic) = self.unfinished.pop_front() {
            self.change(turn, &topic, |home| home.handle_turn(now_us));
        }
    }

    /// Removes consumers that take no events, when a check is due.
    pub(in crate::shard) fn handle_timeout(&mut self, turn: &mut Turn) {
        let now = turn.now;
        self.expire_pushes(turn);
        if self.next_check_ms.is_none_or(|due_ms| now.ms < due_ms) {
            return;
        }
        if cfg!(debug_assertions) {
            self.check();
        }
        let checked = self.names_of(Topic::needs_checks);
        self.next_check_ms = (!checked.is_empty()).then_some(now.ms + CHECK_MS);
        for topic in checked {
            self.refuse_late(turn, &topic);
            self.change(turn, &topic, |home| home.handle_timeout(now.us));
        }
    }

    /// Returns when the next turn has something to do, in milliseconds of the shard's clock. A time
    /// in the past means at once.
    pub(super) fn next_turn(&self) -> Option<u64> {
        match self.unfinished.is_empty() {
            true => match (self.next_check_ms, self.pushes.next_deadline()) {
                (Some(check_ms), Some(push_ms)) => Some(check_ms.min(push_ms)),
                (check_ms, push_ms) => check_ms.or(push_ms),
            },
            false => Some(0),
        }
    }

    /// Returns the names of the topics that match, in ascending order.
    fn names_of(&self, matches: impl Fn(&Topic) -> bool) -> Vec<Arc<str>> {
        let topics = self.topics.iter().filter(|(_, topic)| matches(topic));
        let mut names: Vec<_> = topics.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// Yields the topics with their names, in no order.
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, &Topic)> {
        self.topics.iter().map(|(name, topic)| (&**name, topic))
    }

    /// Returns the state of each topic.
    pub(in crate::shard) fn reports(&self, now_us: u64) -> Vec<TopicReport> {
        self.topics.iter().map(|(name, topic)| topic.report(name, now_us)).collect()
    }

    /// Returns how long events stayed in topics whose home is, or was, this shard.
    pub(in crate::shard) fn waits(&self) -> Durations {
        self.topics.values().fold(self.past_waits, |mut all, topic| {
            all += topic.waits();
            all
        })
    }

    /// Returns the number of messages in the topics that end with the process. Messages count until they are written.
    pub(in crate::shard) fn messages(&self) -> usize {
        self.topics.values().map(Topic::unsaved).sum()
    }

    /// Whether a topic has both messages and consumers, or messages for a sink.
    pub(in crate::shard) fn has_work(&self) -> bool {
        self.topics.values().any(|topic| topic.has_work() || topic.has_sink_backlog())
    }

    /// Returns a topic whose home is this shard.
    pub(super) fn topic_mut(&mut self, name: &str) -> Option<&mut Topic> {
        self.topics.get_mut(name)
    }

    /// Checks the invariants of the topics.
    ///
    /// # Panics
    /// An invariant does not hold.
    pub(in crate::shard) fn check(&self) {
        self.topics.values().for_each(Topic::check);
    }
}

/// Refuses an event for a topic that cannot be created because there are too many topics. Affects
/// only reports about clients of lost nodes, since the topics of routes always exist.
fn refuse_report(turn: &mut Turn, from: ShardId, topic: &Arc<str>, message: &FromFeeder) {
    let answer = match message {
        FromFeeder::Push(event) => {
            turn.counters.dropped += 1;
            ToFeeder::Credit(Credit { messages: 1, bytes: event.frame.bytes().len() })
        }
        FromFeeder::WantCredit(_) => ToFeeder::Refused,
        // A topic that was fed is never removed, so it does not have to be created.
        FromFeeder::Returned(_) => return,
    };
    tell_feeder(turn, topic, from, answer);
}

fn tell_feeder(turn: &mut Turn, topic: &Arc<str>, to: ShardId, message: ToFeeder) {
    turn.send_local(to, LocalMessage::ToFeeder(topic.clone(), message));
}

fn tell_consumer(turn: &mut Turn, topic: &Arc<str>, consumer: BackendId, message: ToConsumer) {
    let topic = topic.clone();
    turn.send_grid(consumer.at, GridMessage::ToConsumer { topic, consumer, message });
}

fn new_topic(settings: &Settings, name: &str) -> Topic {
    let TopicRules { groups, bounds, when_full, policy, .. } = settings.queue.rules_of(name);
    let first = settings.first_bounds();
    let topic = Topic::new(settings.node, first, when_full, settings.shards);
    let mut topic = topic.with_groups(&groups);
    topic.set_sinks(settings.queue.sinks_of(name));
    topic.set_default_group(settings.queue.has_default_group(name));
    topic.set_policy(policy);
    if bounds != first {
        topic.set_bounds(bounds, when_full);
    }
    match settings.process.logs.get(name) {
        Some(facts) => topic.on_disk(facts),
        None => topic,
    }
}
