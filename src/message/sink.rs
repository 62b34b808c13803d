//! Messages between the home of a topic and the sinks that carry its events to engines.

use std::sync::Arc;

use super::MessageNumber;
use crate::address::ClientId;
use crate::protocol::frame::Frame;

/// A run of a sink in the bridge. A sink whose settings change runs anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkRun(pub u64);

/// Events for a sink, in the order of the topic.
#[derive(Clone, Debug)]
pub struct SinkEvents {
    /// The name of the sink.
    pub sink: Arc<str>,
    /// The run of the sink that has asked for events.
    pub run: SinkRun,
    /// The beginning of each event's id. The event's number follows. See [`SinkEvent::number`].
    pub id_prefix: Arc<str>,
    /// The events.
    pub events: Vec<SinkEvent>,
}

/// An event on its way to an engine.
#[derive(Clone, Debug)]
pub struct SinkEvent {
    /// The number of the event in the topic.
    pub number: MessageNumber,
    /// The client that sent the event.
    pub client: ClientId,
    /// When the event came to the topic, in Unix milliseconds.
    pub arrived_unix_ms: u64,
    /// The encoded event.
    pub frame: Frame,
}

/// A message of a sink to the home of its topic.
#[derive(Clone, Debug)]
pub enum FromSink {
    /// The sink begins a run, and asks for events. Those of an earlier run are handed out again.
    Begin(SinkRun),
    /// What has happened since the last report.
    Report {
        /// The run of the sink.
        run: SinkRun,
        /// The numbers of events that the engine has acknowledged.
        settled: Vec<MessageNumber>,
        /// The figures of the run.
        figures: Box<SinkFigures>,
    },
}

/// The figures of a run of a sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkFigures {
    /// Events that the engine has acknowledged.
    pub delivered: u64,
    /// Batches that the engine has acknowledged.
    pub batches: u64,
    /// Attempts that have failed.
    pub retries: u64,
    /// Events in batches that the engine has not acknowledged.
    pub in_flight: u64,
    /// Calls of the engine that were carried out.
    pub calls: u64,
    /// Calls of the engine that have failed.
    pub failed_calls: u64,
    /// Why the last attempt has failed. `None`: the last attempt has succeeded, or there was none.
    pub failure: Option<Arc<str>>,
}
