//! Events that back ends push into topics whose home is this shard.
//!
//! An event that finds its topic full waits here for room, behind earlier ones of the topic. It gets room in turn
//! with the clients that feed the topic, or is refused when it has waited too long.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{CHECK_MS, HomeTopics};
use crate::address::ClientId;
use crate::address::placement;
use crate::message::{ClientReply, Credit, Event, PushCommand, Requester};
use crate::protocol::api::{Code, Fault};
use crate::queue::Bounds;
use crate::queue::topic::{DELAYED_MAX, Topic};
use crate::shard::turn::Turn;

/// The events that may wait for room on one shard, over all topics. Further ones are refused at once.
const WAITING_MAX: usize = 4096;

/// The bytes of events that may wait for room on one shard. Further events are refused at once.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// The longest time that an event waits for room, in milliseconds. It waits for less than
/// `limits.answer_ms`, so that its back end learns what became of it.
const WAIT_MS_MAX: u64 = 1500;

/// The events of back ends that wait for room.
#[derive(Debug, Default)]
pub(super) struct WaitingPushes {
    // No entry is empty. The topic of each entry has asked for room for its first event.
    by_topic: BTreeMap<Arc<str>, VecDeque<WaitingPush>>,
    // The events that wait, at most WAITING_MAX and WAITING_BYTES_MAX.
    waiting: Credit,
    // No event is to be refused before this time, in milliseconds.
    next_deadline_ms: Option<u64>,
    // Events without a key so far. Each has a lane of its own.
    keyless: u64,
}

/// An event of a back end that waits for room.
#[derive(Debug)]
struct WaitingPush {
    requester: Requester,
    event: Event,
    // When the event is handed out, in microseconds. `None`: at once.
    due_us: Option<u64>,
    deadline_ms: u64,
}

impl WaitingPush {
    fn bytes(&self) -> usize {
        self.event.frame.bytes().len()
    }

    /// Puts the event into its topic if there is room; false if there is none. Answers, unless the event is to be
    /// stored first.
    fn offer(&self, turn: &mut Turn, home: &mut Topic) -> bool {
        let (now_us, event) = (turn.now.us, self.event.clone());
        if home.is_on_disk() {
            let (requester, until_ms) = (self.requester, self.deadline_ms);
            return match self.due_us {
                None => home.offer_stored(now_us, event, requester, until_ms),
                Some(due_us) => home.offer_delayed_stored(due_us, event, requester, until_ms),
            };
        }
        let is_in = match self.due_us {
            None => home.offer(now_us, event),
            Some(due_us) => home.offer_delayed(due_us, event),
        };
        if is_in {
            turn.answer(self.requester, Ok(ClientReply::Done));
        }
        is_in
    }
}

impl HomeTopics {
    /// Puts an event of a back end into its topic, and answers. If the topic is full, the answer comes later.
    pub(in crate::shard) fn handle_push(
        &mut self,
        turn: &mut Turn,
        requester: Requester,
        push: PushCommand,
    ) {
        let topic = push.topic.clone();
        if !self.ensure(turn, &topic) {
            let why = "too many topics on this node";
            return turn.answer(requester, Err(Fault::new(Code::ConsumptionFailed, why)));
        }
        if push.after_ms > 0 {
            self.next_check_ms.get_or_insert(turn.now.ms + CHECK_MS);
        }
        let push = self.pushes.waiting_push(turn, requester, push);
        let home = self.topics.get_mut(&topic).expect("the topic exists or was just created");
        if push.due_us.is_some() && !home.may_delay(push.bytes()) {
            let Bounds { messages, bytes } = DELAYED_MAX;
            let why = format!(
                "after_ms: a topic on disk delays at most {messages} events and {bytes} bytes"
            );
            return turn.answer(requester, Err(Fault::new(Code::ConsumptionFailed, why)));
        }
        if home.is_on_disk() {
            // The event may not be stored in time.
            self.next_check_ms.get_or_insert(turn.now.ms + CHECK_MS);
        }
        self.pushes.handle_new(turn, &topic, home, push);
        self.settle(turn, &topic);
    }

    /// Refuses events that have waited too long for room.
    pub(super) fn expire_pushes(&mut self, turn: &mut Turn) {
        if self.pushes.next_deadline_ms.is_none_or(|due_ms| turn.now.ms < due_ms) {
            return;
        }
        for topic in self.pushes.expire(turn) {
            let next = self.pushes.first_bytes(&topic);
            self.change(turn, &topic, |home| match next {
                Some(bytes) => drop(home.wait_for_room(bytes)),
                None => home.end_waiting(),
            });
        }
    }
}

impl WaitingPushes {
    /// When the next event may be due to be refused, in milliseconds.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.next_deadline_ms
    }

    fn waiting_push(
        &mut self,
        turn: &Turn,
        requester: Requester,
        push: PushCommand,
    ) -> WaitingPush {
        let PushCommand { key, frame, after_ms, .. } = push;
        self.keyless += u64::from(key.is_none());
        let client = lane_of(key.as_deref(), self.keyless);
        let wait_ms = WAIT_MS_MAX.min(turn.settings.limits.answer_ms * 3 / 4);
        WaitingPush {
            requester,
            event: Event::new(client, frame),
            due_us: (after_ms > 0).then(|| turn.now.us + u64::from(after_ms) * 1000),
            deadline_ms: turn.now.ms + wait_ms,
        }
    }

    /// Puts an event into its topic. Where others wait for room, it waits behind them.
    fn handle_new(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        home: &mut Topic,
        push: WaitingPush,
    ) {
        if !home.has_waiting() && push.offer(turn, home) {
            return;
        }
        turn.counters.limits.topic += 1;
        let bytes = push.bytes();
        let has_place = self.waiting.messages < WAITING_MAX
            && self.waiting.bytes + bytes <= WAITING_BYTES_MAX.max(bytes);
        let is_first = !self.by_topic.contains_key(topic);
        if !has_place || is_first && !home.wait_for_room(bytes) {
            return turn.answer(push.requester, Err(full()));
        }
        self.waiting.messages += 1;
        self.waiting.bytes += bytes;
        let first_ms = self.next_deadline_ms.unwrap_or(push.deadline_ms);
        self.next_deadline_ms = Some(first_ms.min(push.deadline_ms));
        self.by_topic.entry(topic.clone()).or_default().push_back(push);
    }

    /// Puts the first event that waits into its topic, which has room for it.
    pub(super) fn handle_room(&mut self, turn: &mut Turn, topic: &Arc<str>, home: &mut Topic) {
        if let Some(push) = self.pop(topic)
            && !push.offer(turn, home)
        {
            turn.answer(push.requester, Err(full()));
        }
        home.end_waiting();
        if let Some(bytes) = self.first_bytes(topic) {
            home.wait_for_room(bytes);
        }
    }

    /// Refuses events that have waited too long. Returns their topics, which wait for less now.
    fn expire(&mut self, turn: &mut Turn) -> Vec<Arc<str>> {
        let now_ms = turn.now.ms;
        let is_due = |push: &WaitingPush| push.deadline_ms <= now_ms;
        let first_is_due = |queue: &VecDeque<WaitingPush>| queue.front().is_some_and(is_due);
        let due = self.by_topic.iter().filter(|(_, queue)| first_is_due(queue));
        let due: Vec<Arc<str>> = due.map(|(topic, _)| topic.clone()).collect();
        for topic in &due {
            while self.by_topic.get(topic).is_some_and(first_is_due) {
                let Some(push) = self.pop(topic) else { break };
                turn.answer(push.requester, Err(full()));
            }
        }
        let deadlines = self.by_topic.values().filter_map(|queue| queue.front());
        self.next_deadline_ms = deadlines.map(|push| push.deadline_ms).min();
        due
    }

    /// Takes out the first event that waits for room in a topic.
    fn pop(&mut self, topic: &Arc<str>) -> Option<WaitingPush> {
        let queue = self.by_topic.get_mut(topic)?;
        let push = queue.pop_front()?;
        if queue.is_empty() {
            self.by_topic.remove(topic);
        }
        self.waiting.messages -= 1;
        self.waiting.bytes -= push.bytes();
        Some(push)
    }

    /// The bytes of the first event that waits for room in a topic.
    fn first_bytes(&self, topic: &Arc<str>) -> Option<usize> {
        self.by_topic.get(topic)?.front().map(WaitingPush::bytes)
    }
}

fn full() -> Fault {
    Fault::new(Code::ConsumptionFailed, "the topic is full")
}

/// The lane of a pushed event, in place of a client. Keys that share a lane by chance are in one order.
fn lane_of(key: Option<&str>, number: u64) -> ClientId {
    ClientId::of_no_client(key.map_or(number, |key| placement::hash(key.as_bytes())))
}
