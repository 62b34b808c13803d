//! The sinks: which run, and what they tell the homes of their topics.

mod runner;

use std::collections::HashMap;
use std::sync::Arc;

use crate::message::{FromSink, SinkEvents, SinkRun};
use crate::protocol::api::Fault;
use crate::protocol::sink::Sink;
use runner::Runner;
pub(super) use runner::{Acknowledgement, BatchId, EngineFailure, EventBatch};

/// A batch for an engine, and where its outcome belongs.
#[derive(Clone, Debug)]
pub(super) struct SinkDelivery {
    /// The sink.
    pub sink: Arc<Sink>,
    /// The run of the sink.
    pub run: SinkRun,
    /// The batch in the run.
    pub id: BatchId,
    /// The events.
    pub batch: Arc<EventBatch>,
}

/// The batch whose engine has asked for a call.
#[derive(Clone, Debug)]
pub(super) struct SinkCaller {
    name: Arc<str>,
    run: SinkRun,
    batch: BatchId,
}

/// A message of a sink to the home of its topic.
#[derive(Debug)]
pub(super) struct SinkMessage {
    /// The sink.
    pub sink: Arc<Sink>,
    /// The message.
    pub message: FromSink,
}

/// All sinks.
pub(super) struct Sinks {
    // By the name of the sink.
    runners: HashMap<Arc<str>, Runner>,
    next_run: SinkRun,
    // Makes the pauses of sinks differ.
    random: u64,
}

impl Sinks {
    /// No sinks.
    pub(super) fn new(random: u64) -> Self {
        Self { runners: HashMap::new(), next_run: SinkRun(1), random }
    }

    /// Runs these sinks from now on, and no others. A sink whose settings have changed begins a new run.
    pub(super) fn set(&mut self, sinks: Vec<Arc<Sink>>) {
        self.runners.retain(|_, runner| sinks.contains(runner.sink()));
        for sink in sinks {
            let run = self.next_run;
            self.runners.entry(sink.name.clone()).or_insert_with(|| {
                self.next_run.0 += 1;
                self.random = self.random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(run.0);
                Runner::new(sink, run, self.random)
            });
        }
    }

    /// Whether a sink with these settings runs.
    pub(super) fn has(&self, sink: &Arc<Sink>) -> bool {
        self.runners.get(&sink.name).is_some_and(|runner| runner.sink() == sink)
    }

    /// Takes events from the home of a topic. Those for an earlier run are dropped: the home hands them out
    /// again.
    pub(super) fn handle_events(&mut self, events: SinkEvents) {
        if let Some(runner) = self.runners.get_mut(&events.sink)
            && runner.run() == events.run
        {
            runner.handle_events(&events.id_prefix, events.events);
        }
    }

    /// Handles the outcome of a delivery.
    pub(super) fn handle_outcome(
        &mut self,
        now_ms: u64,
        delivery: &SinkDelivery,
        outcome: Result<Acknowledgement, EngineFailure>,
    ) {
        if let Some(runner) = self.runners.get_mut(&delivery.sink.name)
            && runner.run() == delivery.run
        {
            runner.handle_outcome(now_ms, delivery.id, outcome);
        }
    }

    /// Handles the end of a call. Calls of an earlier run are ignored.
    pub(super) fn handle_called(&mut self, caller: &SinkCaller, outcome: Result<(), Fault>) {
        if let Some(runner) = self.runners.get_mut(&caller.name)
            && runner.run() == caller.run
        {
            runner.handle_called(caller.batch, outcome);
        }
    }

    /// Returns the next call that an engine has asked for, as JSON.
    pub(super) fn poll_call(&mut self) -> Option<(SinkCaller, Vec<u8>)> {
        self.runners.values_mut().find_map(|runner| {
            let (batch, text) = runner.poll_call()?;
            let (name, run) = (runner.sink().name.clone(), runner.run());
            Some((SinkCaller { name, run, batch }, text))
        })
    }

    /// Returns the next batch that is to be delivered.
    pub(super) fn poll_delivery(&mut self, now_ms: u64) -> Option<SinkDelivery> {
        self.runners.values_mut().find_map(|runner| {
            let (id, batch) = runner.poll_batch(now_ms)?;
            Some(SinkDelivery { sink: runner.sink().clone(), run: runner.run(), id, batch })
        })
    }

    /// Returns the next message for a home.
    pub(super) fn poll_message(&mut self) -> Option<SinkMessage> {
        self.runners.values_mut().find_map(|runner| {
            let message = runner.poll_message()?;
            Some(SinkMessage { sink: runner.sink().clone(), message })
        })
    }

    /// Returns when a batch is to be sent again.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.runners.values().filter_map(Runner::poll_timeout).min()
    }
}
