//! One run of a sink: batches of events, in the order of each client, until the engine has acknowledged them.
//!
//! The events of one client form a lane. A batch takes whole lanes, as far as they fit, or the beginnings of many lanes where the
//! engine acknowledges each event by itself. No other batch takes events of the same clients until the engine has acknowledged it. A batch that fails stays as it is and is
//! sent again after a pause. An engine that has taken a part of it gets doubles with the same ids, unless it has said
//! which part.
//!
//! An engine may answer a batch with calls. They are carried out one after another, and the batch ends with the
//! last one. A call that fails is counted and not repeated: the engine has taken the events.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::address::ClientId;
use crate::bridge::pauses::RetryPauses;
use crate::message::{FromSink, MessageNumber, SinkEvent, SinkFigures, SinkRun};
use crate::protocol::api::{Code, Fault};
use crate::protocol::sink::Sink;

/// The longest pause that an engine may ask for, in milliseconds.
const ASKED_PAUSE_MS_MAX: u64 = 300_000;

/// The most bytes of events in a batch. The last event may exceed them.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A batch in its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::bridge) struct BatchId(u64);

/// Events for an engine: those of each client in their order. Never empty.
#[derive(Debug)]
pub(in crate::bridge) struct EventBatch {
    /// The beginning of each event's id.
    pub id_prefix: Arc<str>,
    /// The events.
    pub events: Vec<SinkEvent>,
    // Whether the engine has stored the event at the same place, in an attempt that has failed for others. Shorter than
    // the events if it has stored none of the last ones.
    stored: Mutex<Vec<bool>>,
}

impl EventBatch {
    /// Events that no attempt was made for.
    pub(in crate::bridge) fn new(id_prefix: Arc<str>, events: Vec<SinkEvent>) -> Self {
        Self { id_prefix, events, stored: Mutex::default() }
    }

    /// Returns the events that the engine has not stored yet, with their places.
    pub(in crate::bridge) fn unstored(&self) -> Vec<(usize, &SinkEvent)> {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stored = |at: usize| stored.get(at).copied().unwrap_or_default();
        self.events.iter().enumerate().filter(|(at, _)| !is_stored(*at)).collect()
    }

    /// Notes that the engine has stored the event at a place. If the attempt fails for others, the next one leaves the
    /// event out.
    pub(in crate::bridge) fn note_stored(&self, at: usize) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if stored.len() <= at {
            stored.resize(self.events.len(), false);
        }
        stored[at] = true;
    }

    /// The id of an event: the same for every attempt, and of no other event.
    pub(in crate::bridge) fn id_of(&self, event: &SinkEvent) -> String {
        format!("{}{}", self.id_prefix, event.number.0)
    }
}

/// Why an engine has not acknowledged a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bridge) struct EngineFailure {
    /// The reason, in words. Contains no secret.
    pub why: String,
    /// The pause that the engine asks for, in milliseconds.
    pub pause_ms: Option<u64>,
}

/// An engine has taken a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::bridge) struct Acknowledgement {
    /// The calls that the engine asks for, as JSON.
    pub calls: Vec<Vec<u8>>,
    /// Why calls of the engine cannot be carried out, in words.
    pub refused: Option<String>,
}

/// A batch that the engine has not acknowledged, or whose calls are not carried out.
#[derive(Debug)]
struct UnfinishedBatch {
    batch: Arc<EventBatch>,
    failures: u32,
    stage: BatchStage,
}

#[derive(Debug)]
enum BatchStage {
    InFlight,
    // Sent again at this time.
    Due(u64),
    // Acknowledged.
    Calling(OpenCalls),
}

/// Calls that an engine has asked for.
#[derive(Debug)]
struct OpenCalls {
    waiting: VecDeque<Vec<u8>>,
    is_in_flight: bool,
}

impl UnfinishedBatch {
    fn due_ms(&self) -> Option<u64> {
        match self.stage {
            BatchStage::Due(due_ms) => Some(due_ms),
            BatchStage::InFlight | BatchStage::Calling(_) => None,
        }
    }

    /// Takes the next call, unless one is in flight.
    fn take_call(&mut self) -> Option<Vec<u8>> {
        let BatchStage::Calling(calls) = &mut self.stage else { return None };
        if calls.is_in_flight {
            return None;
        }
        let call = calls.waiting.pop_front();
        calls.is_in_flight = call.is_some();
        call
    }
}

/// A run of a sink.
#[derive(Debug)]
pub(super) struct Runner {
    sink: Arc<Sink>,
    run: SinkRun,
    id_prefix: Arc<str>,
    // Clients with events that wait, or with events in a batch. At most the window of the topic.
    lanes: HashMap<ClientId, SinkLane>,
    // Clients with events that wait, and with none in a batch.
    ready: VecDeque<ClientId>,
    // At most `batches_max`.
    unfinished: HashMap<BatchId, UnfinishedBatch>,
    next_batch: BatchId,
    batch_events_max: usize,
    batches_max: usize,
    has_begun: bool,
    // Whether a call that makes no sense was logged, and none has succeeded since.
    has_wrong_calls: bool,
    // Whether the home has yet to hear of the figures or of settled events.
    has_news: bool,
    settled: Vec<MessageNumber>,
    figures: SinkFigures,
    pauses: RetryPauses,
}

#[derive(Debug, Default)]
struct SinkLane {
    waiting: VecDeque<SinkEvent>,
    is_in_batch: bool,
}

/// The events of a batch that is made.
struct NewBatch {
    events: Vec<SinkEvent>,
    bytes: usize,
    events_max: usize,
}

impl NewBatch {
    fn has_room(&self) -> bool {
        self.events.len() < self.events_max && self.bytes < BATCH_BYTES_MAX
    }

    /// Takes the next event of a lane. Returns false if there is none, or no room for it.
    fn take_one(&mut self, lane: &mut SinkLane) -> bool {
        let event = if self.has_room() { lane.waiting.pop_front() } else { None };
        let Some(event) = event else { return false };
        self.bytes += event.frame.bytes().len();
        self.events.push(event);
        true
    }
}

/// Puts the lane of the client that has been ready longest into a batch.
fn begin_lane<'a>(
    ready: &mut VecDeque<ClientId>,
    lanes: &'a mut HashMap<ClientId, SinkLane>,
) -> Option<(ClientId, &'a mut SinkLane)> {
    let client = ready.pop_front()?;
    let lane = lanes.get_mut(&client).expect("a client that is ready has a lane");
    lane.is_in_batch = true;
    Some((client, lane))
}

impl Runner {
    /// Begins a run.
    pub(super) fn new(sink: Arc<Sink>, run: SinkRun, random: u64) -> Self {
        let (batch_events_max, batches_max) = (sink.engine.batch(), sink.engine.in_flight());
        Self {
            sink,
            run,
            id_prefix: Arc::default(),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            unfinished: HashMap::new(),
            next_batch: BatchId(0),
            batch_events_max,
            batches_max,
            has_begun: false,
            has_wrong_calls: false,
            has_news: false,
            settled: Vec::new(),
            figures: SinkFigures::default(),
            pauses: RetryPauses::new(random),
        }
    }

    /// The settings of the sink.
    pub(super) fn sink(&self) -> &Arc<Sink> {
        &self.sink
    }

    /// The number of the run.
    pub(super) fn run(&self) -> SinkRun {
        self.run
    }

    /// Takes events. `id_prefix` is the same for all events of a run.
    pub(super) fn handle_events(&mut self, id_prefix: &Arc<str>, events: Vec<SinkEvent>) {
        self.id_prefix = id_prefix.clone();
        for event in events {
            let client = event.client;
            let lane = self.lanes.entry(client).or_default();
            if lane.waiting.is_empty() && !lane.is_in_batch {
                self.ready.push_back(client);
            }
            lane.waiting.push_back(event);
        }
    }

    /// Returns the next batch to deliver: one that is due again, or a new one.
    pub(super) fn poll_batch(&mut self, now_ms: u64) -> Option<(BatchId, Arc<EventBatch>)> {
        let is_due =
            |batch: &UnfinishedBatch| batch.due_ms().is_some_and(|due_ms| due_ms <= now_ms);
        if let Some((id, unfinished)) = self.unfinished.iter_mut().find(|(_, batch)| is_due(batch))
        {
            unfinished.stage = BatchStage::InFlight;
            return Some((*id, unfinished.batch.clone()));
        }
        if self.unfinished.len() >= self.batches_max {
            return None;
        }
        let events = self.take_events()?;
        self.has_news |= self.unfinished.is_empty();
        self.figures.in_flight += events.len() as u64;
        let batch = Arc::new(EventBatch::new(self.id_prefix.clone(), events));
        let id = self.next_batch;
        self.next_batch.0 += 1;
        let unfinished =
            UnfinishedBatch { batch: batch.clone(), failures: 0, stage: BatchStage::InFlight };
        self.unfinished.insert(id, unfinished);
        Some((id, batch))
    }

    fn take_events(&mut self) -> Option<Vec<SinkEvent>> {
        let mut batch =
            NewBatch { events: Vec::new(), bytes: 0, events_max: self.batch_events_max };
        if self.sink.engine.spreads_batches() {
            self.take_spread(&mut batch);
        } else {
            while batch.has_room()
                && let Some(lane) =
                    begin_lane(&mut self.ready, &mut self.lanes).map(|(_, lane)| lane)
            {
                while batch.take_one(lane) {}
            }
        }
        (!batch.events.is_empty()).then_some(batch.events)
    }

    /// Takes events of this batch's part of the clients that are ready: one of each, then a second one of each, and so on.
    fn take_spread(&mut self, batch: &mut NewBatch) {
        let clients_max = self.ready.len().div_ceil(self.batches_max - self.unfinished.len());
        let mut clients = Vec::with_capacity(clients_max.min(self.batch_events_max));
        while batch.has_room()
            && clients.len() < clients_max
            && let Some((client, lane)) = begin_lane(&mut self.ready, &mut self.lanes)
        {
            batch.take_one(lane);
            clients.push(client);
        }
        while !clients.is_empty() {
            clients.retain(|client| {
                self.lanes.get_mut(client).is_some_and(|lane| batch.take_one(lane))
            });
        }
    }

    /// Handles the outcome of an attempt.
    pub(super) fn handle_outcome(
        &mut self,
        now_ms: u64,
        id: BatchId,
        outcome: Result<Acknowledgement, EngineFailure>,
    ) {
        let Some(unfinished) = self.unfinished.get_mut(&id) else { return };
        self.has_news = true;
        match outcome {
            Ok(Acknowledgement { calls, refused }) => {
                let calls = OpenCalls { waiting: calls.into(), is_in_flight: false };
                let has_calls = !calls.waiting.is_empty();
                unfinished.stage = BatchStage::Calling(calls);
                if self.figures.failure.take().is_some() {
                    tracing::info!("sink {:?}: {} works again", self.sink.name, self.sink.engine);
                }
                if let Some(why) = refused {
                    self.figures.failed_calls += 1;
                    tracing::warn!("sink {:?}: {}: {why}", self.sink.name, self.sink.engine);
                }
                if !has_calls {
                    self.finish(id);
                }
            }
            Err(failure) => {
                unfinished.failures = unfinished.failures.saturating_add(1);
                let asked_ms = failure.pause_ms.unwrap_or(0).min(ASKED_PAUSE_MS_MAX);
                let pause_ms = self.pauses.next_ms(unfinished.failures).max(asked_ms);
                unfinished.stage = BatchStage::Due(now_ms + pause_ms);
                self.note_failure(&failure.why);
            }
        }
    }

    fn note_failure(&mut self, why: &str) {
        self.figures.retries += 1;
        let (name, engine) = (&self.sink.name, &self.sink.engine);
        match self.figures.failure {
            // An engine that is down would fill the log.
            Some(_) => tracing::debug!("sink {name:?}: {engine}: {why}"),
            None => tracing::warn!("sink {name:?}: {engine}: {why}; its events are sent again"),
        }
        self.figures.failure = Some(why.into());
    }

    /// Returns the next call that the engine has asked for, and the batch that it belongs to.
    pub(super) fn poll_call(&mut self) -> Option<(BatchId, Vec<u8>)> {
        let mut batches = self.unfinished.iter_mut();
        batches.find_map(|(id, unfinished)| Some((*id, unfinished.take_call()?)))
    }

    /// Handles the end of the call of a batch.
    pub(super) fn handle_called(&mut self, id: BatchId, outcome: Result<(), Fault>) {
        let Some(unfinished) = self.unfinished.get_mut(&id) else { return };
        let BatchStage::Calling(calls) = &mut unfinished.stage else { return };
        calls.is_in_flight = false;
        let is_last = calls.waiting.is_empty();
        self.has_news = true;
        self.figures.calls += 1;
        match outcome {
            Ok(()) => self.has_wrong_calls = false,
            Err(fault) => self.note_fault(&fault),
        }
        if is_last {
            self.finish(id);
        }
    }

    fn note_fault(&mut self, fault: &Fault) {
        self.figures.failed_calls += 1;
        let (name, code, why) = (&self.sink.name, fault.code.number(), &fault.message);
        let is_wrong = fault.code == Code::InvalidArgument;
        // A device that has gone is nothing to worry about, and a service with a defect would fill the log.
        match is_wrong && !std::mem::replace(&mut self.has_wrong_calls, true) {
            true => tracing::warn!("sink {name:?}: a call of its engine failed: {code}: {why}"),
            false => tracing::debug!("sink {name:?}: a call of its engine failed: {code}: {why}"),
        }
    }

    fn finish(&mut self, id: BatchId) {
        let Some(UnfinishedBatch { batch, .. }) = self.unfinished.remove(&id) else { return };
        let count = batch.events.len() as u64;
        self.figures.in_flight -= count;
        self.figures.delivered += count;
        self.figures.batches += 1;
        for event in &batch.events {
            self.settled.push(event.number);
            self.free(event.client);
        }
    }

    /// Notes that a batch with events of a client has ended. Called for each of the events.
    fn free(&mut self, client: ClientId) {
        let Some(lane) = self.lanes.get_mut(&client) else { return };
        if !lane.is_in_batch {
            return;
        }
        lane.is_in_batch = false;
        match lane.waiting.is_empty() {
            true => drop(self.lanes.remove(&client)),
            false => self.ready.push_back(client),
        }
    }

    /// Returns when a batch is to be sent again.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.unfinished.values().filter_map(UnfinishedBatch::due_ms).min()
    }

    /// Returns the next message for the home of the topic.
    pub(super) fn poll_message(&mut self) -> Option<FromSink> {
        if !std::mem::replace(&mut self.has_begun, true) {
            return Some(FromSink::Begin(self.run));
        }
        if !std::mem::take(&mut self.has_news) {
            return None;
        }
        let settled = std::mem::take(&mut self.settled);
        let figures = Box::new(self.figures.clone());
        Some(FromSink::Report { run: self.run, settled, figures })
    }
}

#[cfg(test)]
mod tests;
