//! A sink's group of a topic: the events that the sink's engine has not acknowledged.
//!
//! A sink has one consumer, which keeps the order of each client itself and never refuses an event. So the group
//! needs neither lanes nor leases: events are handed out in their order, while the window has room.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Topic;
use super::held::Held;
use crate::address::ClientId;
use crate::message::{GroupIndex, MessageNumber, SinkFigures, SinkRun};
use crate::metrics::SinkReport;
use crate::queue::consumers::{Item, age_us};

/// Events that the sink has and the engine has not acknowledged. Further ones wait in the topic.
pub(super) const WINDOW_MESSAGES: usize = 1 << 13;

/// Bytes of these events. The last event may exceed them.
pub(super) const WINDOW_BYTES: usize = 16 << 20;

/// The most events that the topic hands out at once.
pub const SINK_EVENTS_MAX: usize = 1024;

/// An event that is handed to a sink.
pub type Handed = (ClientId, Item);

/// The group of one sink.
#[derive(Debug)]
pub(super) struct SinkGroup {
    /// The name of the sink.
    pub name: Arc<str>,
    /// The index in the log of a topic on disk.
    pub place: GroupIndex,
    // The run that has asked for events. `None`: the sink has not begun.
    run: Option<SinkRun>,
    // In their order.
    waiting: VecDeque<Handed>,
    in_flight: BTreeMap<MessageNumber, Handed>,
    in_flight_bytes: usize,
    figures: SinkFigures,
    // Figures of earlier runs, without their failures and batches in flight.
    past: SinkFigures,
}

impl SinkGroup {
    /// A group without events, whose sink has not begun.
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            place: GroupIndex::default(),
            run: None,
            waiting: VecDeque::new(),
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            figures: SinkFigures::default(),
            past: SinkFigures::default(),
        }
    }

    /// The number of events that the engine has not acknowledged.
    pub(super) fn backlog(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }

    /// The number of events that the sink has.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Adds a new event.
    pub(super) fn push(&mut self, client: ClientId, item: Item) {
        self.waiting.push_back((client, item));
    }

    /// Begins a run: events that an earlier run has in flight wait again, ahead of the others.
    pub(super) fn begin(&mut self, run: SinkRun) {
        self.run = Some(run);
        self.in_flight_bytes = 0;
        for (_, handed) in std::mem::take(&mut self.in_flight).into_iter().rev() {
            self.waiting.push_front(handed);
        }
        let ended = std::mem::take(&mut self.figures);
        self.past.delivered += ended.delivered;
        self.past.batches += ended.batches;
        self.past.retries += ended.retries;
        self.past.calls += ended.calls;
        self.past.failed_calls += ended.failed_calls;
    }

    /// Whether the sink has begun a run.
    pub(super) fn has_begun(&self) -> bool {
        self.run.is_some()
    }

    /// Whether an event waits and the sink takes it.
    pub(super) fn is_ready(&self) -> bool {
        self.run.is_some() && !self.waiting.is_empty() && self.has_room()
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < WINDOW_MESSAGES && self.in_flight_bytes < WINDOW_BYTES
    }

    /// Hands out events while there is room, at most [`SINK_EVENTS_MAX`]. `None`: there are none, or no room.
    pub(super) fn poll(&mut self, mut take: impl FnMut(&Handed)) -> Option<SinkRun> {
        let run = self.run.filter(|_| self.is_ready())?;
        for _ in 0..SINK_EVENTS_MAX {
            if !self.has_room() {
                break;
            }
            let Some(handed) = self.waiting.pop_front() else { break };
            take(&handed);
            self.in_flight_bytes += handed.1.frame.bytes().len();
            self.in_flight.insert(handed.1.number, handed);
        }
        Some(run)
    }

    /// Takes a report of a run. Returns false, and does nothing, if another run has begun since.
    pub(super) fn report(
        &mut self,
        held: &mut Held,
        now_us: u64,
        run: SinkRun,
        settled: &[MessageNumber],
        figures: SinkFigures,
    ) -> bool {
        if self.run != Some(run) {
            return false;
        }
        self.figures = figures;
        for number in settled {
            let Some((client, item)) = self.in_flight.remove(number) else { continue };
            self.in_flight_bytes -= item.frame.bytes().len();
            held.waits.add(item.age_us(now_us));
            held.forget(self.place, client, &item);
        }
        true
    }

    /// The oldest event that waits.
    pub(super) fn oldest(&self) -> Option<(MessageNumber, ClientId)> {
        self.waiting.front().map(|(client, item)| (item.number, *client))
    }

    /// When the oldest event that waits arrived, in microseconds. Negative: in an earlier run of the node.
    pub(super) fn oldest_waiting_us(&self) -> Option<i64> {
        self.waiting.front().map(|(_, item)| item.since_us)
    }

    /// When the oldest event that the engine has not acknowledged arrived, in microseconds.
    fn oldest_since_us(&self) -> Option<i64> {
        let in_flight = self.in_flight.first_key_value().map(|(_, (_, item))| item.since_us);
        in_flight.or(self.oldest_waiting_us())
    }

    /// Whether an event waits, or the engine has not acknowledged it.
    pub(super) fn has(&self, number: MessageNumber) -> bool {
        self.in_flight.contains_key(&number) || self.waits(number)
    }

    /// Whether an event waits.
    pub(super) fn waits(&self, number: MessageNumber) -> bool {
        self.waiting.binary_search_by_key(&number, |(_, item)| item.number).is_ok()
    }

    /// Drops the first event that waits if it has this number, and returns its bytes.
    pub(super) fn drop_first(&mut self, held: &mut Held, number: MessageNumber) -> Option<usize> {
        self.oldest().filter(|&(oldest, _)| oldest == number)?;
        let (client, item) = self.waiting.pop_front()?;
        held.forget(self.place, client, &item);
        Some(item.frame.bytes().len())
    }

    /// Drops all events: the sink was removed.
    pub(super) fn drop_all(&mut self, held: &mut Held) {
        let in_flight = std::mem::take(&mut self.in_flight).into_values();
        for (client, item) in in_flight.chain(std::mem::take(&mut self.waiting)) {
            held.forget(self.place, client, &item);
        }
        self.in_flight_bytes = 0;
    }

    /// The numbers of all events of the group.
    pub(super) fn numbers(&self) -> impl Iterator<Item = MessageNumber> {
        let waiting = self.waiting.iter().map(|(_, item)| item.number);
        self.in_flight.keys().copied().chain(waiting)
    }

    /// The figures of the sink. `unread`: events that are on disk only.
    pub(super) fn figures(&self, now_us: u64, unread: u64) -> SinkReport {
        let since_us = self.oldest_since_us();
        SinkReport {
            name: self.name.to_string(),
            lag: self.backlog() as u64 + unread,
            lag_ms: since_us.map_or(0, |since_us| age_us(now_us, since_us) / 1000),
            delivered: self.past.delivered + self.figures.delivered,
            batches: self.past.batches + self.figures.batches,
            retries: self.past.retries + self.figures.retries,
            calls: self.past.calls + self.figures.calls,
            failed_calls: self.past.failed_calls + self.figures.failed_calls,
            in_flight: self.figures.in_flight,
            is_up: self.run.is_some() && self.figures.failure.is_none(),
            failure: self.figures.failure.as_deref().map(str::to_owned),
        }
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        assert!(self.numbers().is_sorted(), "a sink's events are in their order");
        let bytes = self.in_flight.values().map(|(_, item)| item.frame.bytes().len());
        assert_eq!(bytes.sum::<usize>(), self.in_flight_bytes);
    }
}

impl Topic {
    /// Gives the topic these sinks. One that stays keeps its events, a new one gets those that come from now on,
    /// and the events of one that goes are dropped from its group. Those that no other group has count as dropped.
    pub fn set_sinks(&mut self, names: &[Arc<str>]) {
        let mut known = std::mem::take(&mut self.sinks);
        for name in names {
            let place = known.iter().position(|sink| sink.name == *name);
            let sink = place.map(|place| known.remove(place));
            self.sinks.push(sink.unwrap_or_else(|| SinkGroup::new(name.clone())));
        }
        let messages = self.messages();
        known.iter_mut().for_each(|sink| sink.drop_all(&mut self.held));
        self.dropped += (messages - self.messages()) as u64;
        self.note_groups();
        self.held.grant_to_asking();
    }

    /// Begins a run of a sink, if the topic has the sink.
    pub fn begin_sink(&mut self, name: &str, run: SinkRun) {
        if let Some(sink) = self.sinks.iter_mut().find(|sink| *sink.name == *name) {
            sink.begin(run);
        }
    }

    /// Begins a run of a sink that has not begun one.
    pub fn begin_new_sink(&mut self, name: &str, run: SinkRun) {
        let new = self.sinks.iter_mut().find(|sink| *sink.name == *name && !sink.has_begun());
        if let Some(sink) = new {
            sink.begin(run);
        }
    }

    /// Finishes the events that the engine of a sink has acknowledged. Reports of earlier runs are ignored.
    pub fn sink_reported(
        &mut self,
        now_us: u64,
        name: &str,
        run: SinkRun,
        settled: &[MessageNumber],
        figures: SinkFigures,
    ) {
        let Some(sink) = self.sinks.iter_mut().find(|sink| *sink.name == *name) else { return };
        if sink.report(&mut self.held, now_us, run, settled, figures) {
            self.held.grant_to_asking();
        }
    }

    /// Whether [`Self::poll_sink`] has events.
    pub fn has_sink_events(&self) -> bool {
        self.sinks.iter().any(|sink| sink.is_ready() && Self::is_open(&self.held, sink.place))
    }

    /// Hands events to a sink that takes some, at most [`SINK_EVENTS_MAX`]. Passes each to `take`, and returns
    /// the sink and its run.
    pub fn poll_sink(&mut self, take: impl FnMut(&Handed)) -> Option<(Arc<str>, SinkRun)> {
        let is_due =
            |sink: &&mut SinkGroup| sink.is_ready() && Self::is_open(&self.held, sink.place);
        let sink = self.sinks.iter_mut().find(is_due)?;
        let run = sink.poll(take)?;
        Some((sink.name.clone(), run))
    }

    /// Whether a sink has events in memory alone that its engine has not acknowledged.
    pub fn has_sink_backlog(&self) -> bool {
        !self.is_on_disk() && self.sinks.iter().any(|sink| sink.backlog() > 0)
    }
}
