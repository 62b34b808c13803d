//! Events that back ends take over HTTP: `POST /v1/queue/take`.
//!
//! A take is a consumer of its topics until it is answered: when it has as many events as it asked for, when it has
//! some and no more come, or when its time is up. Then it leaves the topics, and its events stay *taken* until
//! they are acknowledged (`settle.rs`). What it was handed and does not answer waits again. A waiting take costs an
//! entry in a table: it has neither a thread nor a task nor a timer of its own.
//!
//! - `table.rs`: the takes of one shard, and their keys.
//! - `ending.rs`: answers that are written, and connections that are gone.

mod ending;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Backends;
use super::calls::{Caller, ask_home};
use super::consumers::TopicHome;
use super::pending::{Asker, QuestionKind};
use crate::address::placement::home_of_topic;
use crate::address::{Incarnation, NodeId};
use crate::message::{
    ConnectionKey, Delivery, FromConsumer, LocalCommand, LocalMessage, MessageNumber, Requester,
    Terms,
};
use crate::protocol::api::{Code, Fault, Reply, TakeCall, TakenEvent, TakenTag};
use crate::shard::connection::{Connection, Connections, FollowUp};
use crate::shard::turn::Turn;
use table::{Take, TakeStage, take_key, taker};

pub(super) use table::Takes;
pub(in crate::shard) use table::{TakeKey, is_take};

/// The takes of one shard that may wait, or whose answer is being written. Further ones are refused with 103.
const TAKES_MAX: usize = 4096;

/// The time that each take waits if there is no event, in milliseconds: so long it takes to hear from the homes
/// of its topics on all nodes.
const LEAST_WAIT_MS: u64 = 50;

/// Turns without a further event after which a take with events is answered.
const QUIET_TURNS: u8 = 2;

impl Take {
    /// The terms on which the take consumes a topic, on this node or on one of `nodes` others.
    fn terms(&self, turn: &Turn, nodes: usize) -> Terms {
        let window_bytes = turn.settings.limits.outbound_bytes / 2 / self.topics.len() / nodes;
        Terms {
            pop: self.pop,
            group: self.group.clone(),
            window_bytes: window_bytes.max(1),
            unsettled_max: Some(self.max.div_ceil(nodes)),
        }
    }
}

impl Backends {
    /// Carries out `queue.take`: joins the topics on this node.
    pub(crate) fn call_take(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        call: &TakeCall<'_>,
    ) {
        if self.takes.takes.len() >= TAKES_MAX {
            turn.counters.limits.takes += 1;
            let fault = Fault::new(Code::TooManyRequests, "too many takes wait on this shard");
            return connections.reply(turn, caller.key, &caller.shape, &Err(fault));
        }
        let pop = self.takes.allot_pop(turn);
        let key = self.takes.insert(Take {
            connection: caller.key,
            stage: TakeStage::Joining { is_ended: false },
            topics: call.topics.iter().map(|&topic| topic.into()).collect(),
            group: call.group.map(Arc::from),
            pop,
            max: call.max,
            deadline_ms: turn.now.ms + wait_ms(turn, call.wait_ms),
            events: Vec::new(),
            quiet_turns: 0,
        });
        let (kind, homes) = (QuestionKind::Take(key), call.topics.len());
        let requester = self.open_question(turn, connections, caller, kind, homes);
        let (Some(requester), Some(take)) = (requester, self.takes.takes.get(key)) else {
            self.takes.remove(key);
            return;
        };
        // The take is the consumer: its connection may have several.
        let requester = Requester { backend: taker(turn, key), ..requester };
        let terms = Box::new(take.terms(turn, 1));
        for topic in take.topics.clone() {
            ask_home(turn, requester, &topic.clone(), LocalCommand::Join(topic, terms.clone()));
        }
    }

    /// Handles the answer of the homes on this node: the take waits for events, or has failed.
    pub(super) fn handle_take_joined(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: TakeKey,
        asker: Asker,
        joined: Result<Reply, Fault>,
    ) {
        let Some(take) = self.takes.takes.get_mut(key) else { return };
        let TakeStage::Joining { is_ended } = take.stage else { return };
        if let Err(fault) = joined {
            // Some of the homes may have agreed.
            self.leave(turn, key, &BTreeMap::new());
            self.takes.remove(key);
            return reply_to(turn, connections, asker, &Err(fault), None);
        }
        take.stage = TakeStage::Waiting(asker);
        self.takes.deadlines.insert((take.deadline_ms, key));
        if is_ended {
            return self.answer_empty(turn, connections, key);
        }
        let consumer = taker(turn, key);
        for topic in take.topics.clone() {
            let home = home_of_topic(&topic, turn.settings.shards);
            turn.send_local(home, LocalMessage::StartDelivery(topic, consumer));
        }
        for node in turn.roster.others() {
            self.take_on(turn, key, node);
        }
    }

    /// Makes a take a consumer on another node.
    fn take_on(&self, turn: &mut Turn, key: TakeKey, node: NodeId) {
        let Some(take) = self.takes.takes.get(key) else { return };
        let terms = Box::new(take.terms(turn, turn.roster.others().len().max(1)));
        let consumer = taker(turn, key);
        for topic in &take.topics {
            turn.send_to_home(node, topic, consumer, FromConsumer::Consume(terms.clone()));
        }
    }

    /// Hands an event to a take. An event for a take that has ended waits again at its home, which is told of the
    /// end.
    pub(super) fn deliver_to_take(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        consumer: ConnectionKey,
        home: TopicHome,
        delivery: Delivery,
    ) {
        let Some(key) = take_key(consumer) else { return };
        let Some(take) = self.takes.waiting(key) else { return };
        take.quiet_turns = 0;
        take.events.push((home, delivery));
        let count = take.events.len();
        if count == take.max {
            self.answer_take(turn, connections, key);
        } else if count == 1 {
            self.takes.gathering.push(key);
        }
    }

    /// Drops events of a waiting take that were not acknowledged in time: they wait again at their home.
    pub(super) fn expire_of_take(
        &mut self,
        consumer: ConnectionKey,
        home: &TopicHome,
        numbers: &[MessageNumber],
    ) {
        if let Some(take) = take_key(consumer).and_then(|key| self.takes.waiting(key)) {
            take.events.retain(|(of, delivery)| of != home || !numbers.contains(&delivery.number));
        }
    }

    /// Answers the takes that are due.
    pub(in crate::shard) fn continue_takes(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
    ) {
        for key in std::mem::take(&mut self.takes.gathering) {
            let Some(take) = self.takes.waiting(key) else { continue };
            take.quiet_turns += 1;
            match take.quiet_turns >= QUIET_TURNS {
                true => self.answer_take(turn, connections, key),
                false => self.takes.gathering.push(key),
            }
        }
        while let Some(&(due_ms, key)) = self.takes.deadlines.first()
            && due_ms <= turn.now.ms
        {
            self.answer_take(turn, connections, key);
        }
    }

    /// When a take is due next, in milliseconds. A time in the past means at once.
    pub(in crate::shard) fn next_take(&self) -> Option<u64> {
        match self.takes.gathering.is_empty() {
            true => self.takes.deadlines.first().map(|&(due_ms, _)| due_ms),
            false => Some(0),
        }
    }

    /// Whether a take waits or gathers.
    #[inline]
    pub(in crate::shard) fn has_takes(&self) -> bool {
        !self.takes.gathering.is_empty() || !self.takes.deadlines.is_empty()
    }

    /// Answers all waiting takes with what they have: the node shuts down. Those that have only begun do not wait
    /// for long.
    pub(in crate::shard) fn handle_drain(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
    ) {
        for key in self.takes.all_waiting() {
            self.answer_take(turn, connections, key);
        }
        for (_, take) in self.takes.takes.iter_mut() {
            take.deadline_ms = take.deadline_ms.min(turn.now.ms + LEAST_WAIT_MS);
        }
    }

    /// Makes all waiting takes consumers on a node that has become reachable.
    pub(super) fn take_on_new_node(&self, turn: &mut Turn, node: NodeId) {
        for key in self.takes.all_waiting() {
            self.take_on(turn, key, node);
        }
    }

    /// Drops the events of waiting takes from a node that has become unreachable: they wait again there.
    pub(super) fn forget_taken_of_node(&mut self, node: NodeId) {
        for key in self.takes.all_waiting() {
            if let Some(take) = self.takes.waiting(key) {
                take.events.retain(|(home, _)| home.node != node);
            }
        }
    }

    /// Answers a take with its events. If its connection takes no answer any more, they wait again.
    fn answer_take(&mut self, turn: &mut Turn, connections: &mut Connections, key: TakeKey) {
        let Some(take) = self.takes.waiting(key) else { return };
        let TakeStage::Waiting(asker) = take.stage else { return };
        let (due_ms, mut events) = (take.deadline_ms, std::mem::take(&mut take.events));
        events.truncate(take.max);
        self.takes.deadlines.remove(&(due_ms, key));
        let is_open = connections.get(asker.key).and_then(Connection::replies).is_some();
        if events.is_empty() || !is_open {
            self.leave(turn, key, &BTreeMap::new());
            self.takes.remove(key);
            return reply_to(turn, connections, asker, &Ok(Reply::Taken(Vec::new())), None);
        }
        let mut kept: BTreeMap<TopicHome, Vec<MessageNumber>> = BTreeMap::new();
        for (home, delivery) in &events {
            kept.entry(home.clone()).or_default().push(delivery.number);
        }
        self.leave(turn, key, &kept);
        if let Some(take) = self.takes.takes.get_mut(key) {
            take.stage = TakeStage::Answered(kept);
        }
        turn.counters.events += events.len() as u64;
        let events = events.into_iter().map(|(home, delivery)| taken(turn, home, delivery));
        let answer = Ok(Reply::Taken(events.collect()));
        reply_to(turn, connections, asker, &answer, Some(FollowUp::Take(key)));
    }

    /// Answers a take with an empty list. Its events wait again.
    fn answer_empty(&mut self, turn: &mut Turn, connections: &mut Connections, key: TakeKey) {
        if let Some(take) = self.takes.waiting(key) {
            take.events.clear();
            self.answer_take(turn, connections, key);
        }
    }

    /// Tells the homes of a take's topics, on all nodes, that the take ends with these events.
    fn leave(&self, turn: &mut Turn, key: TakeKey, kept: &BTreeMap<TopicHome, Vec<MessageNumber>>) {
        let Some(take) = self.takes.takes.get(key) else { return };
        let (consumer, own) = (taker(turn, key), turn.address.node);
        for node in std::iter::once(own).chain(turn.roster.others()) {
            for topic in &take.topics {
                let home = TopicHome { node, topic: topic.clone() };
                let kept = kept.get(&home).cloned().unwrap_or_default();
                turn.send_to_home(node, topic, consumer, FromConsumer::EndTake { kept });
            }
        }
    }
}

/// Fills the place of an answer, and writes what no earlier answer holds up.
fn reply_to(
    turn: &mut Turn,
    connections: &mut Connections,
    Asker { key, reply }: Asker,
    answer: &Result<Reply, Fault>,
    follow_up: Option<FollowUp>,
) {
    let Some(replies) = connections.get(key).and_then(Connection::replies) else { return };
    let date = turn.date();
    replies.fill(reply, answer, follow_up, date, &mut turn.scratch);
    connections.write_replies(turn, key);
}

fn taken(turn: &Turn, home: TopicHome, delivery: Delivery) -> TakenEvent {
    let TopicHome { node, topic } = home;
    let Delivery { number, pop, is_redelivered, frame, .. } = delivery;
    let tag = TakenTag {
        node,
        incarnation: turn.incarnation_of(node).unwrap_or(Incarnation(0)),
        take: pop.0,
        number: number.0,
        topic: (&*topic).into(),
    };
    TakenEvent { tag, is_redelivered, frame }
}

/// The time that a take may wait, in milliseconds. The connection must not look idle afterwards, and a node that
/// shuts down does not wait for long.
fn wait_ms(turn: &Turn, wanted_ms: u32) -> u64 {
    match turn.is_draining {
        true => LEAST_WAIT_MS,
        false => u64::from(wanted_ms).min(turn.settings.limits.idle_ms / 2).max(LEAST_WAIT_MS),
    }
}
