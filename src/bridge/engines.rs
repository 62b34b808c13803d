//! Engines that take the events of sinks. A new engine is a file here, a variant of
//! [`EngineAddress`], and a table in `config/sink.rs`.

mod nats;
mod webhook;

use std::pin::Pin;
use std::sync::Arc;

use super::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::protocol::sink::{EngineAddress, Sink};
use nats::NatsEngine;
use webhook::WebhookEngine;

/// The end of an attempt to deliver a batch.
pub(super) type Outcome =
    Pin<Box<dyn Future<Output = Result<Acknowledgement, EngineFailure>> + Send>>;

/// An engine.
pub(super) trait Engine: Send {
    /// Delivers a batch. `Ok` only when the engine has acknowledged every event. The events of each client are
    /// stored in their order, also if the attempt fails half-way and the whole batch is delivered again.
    fn deliver(&mut self, batch: Arc<EventBatch>) -> Outcome;
}

/// Returns the engine of a sink. Connects with the first batch.
pub(super) fn connect(sink: &Sink) -> Box<dyn Engine> {
    match &sink.engine {
        EngineAddress::Nats(nats) => Box::new(NatsEngine::new(nats.clone())),
        EngineAddress::Webhook(webhook) => {
            Box::new(WebhookEngine::new(&sink.topic, webhook.clone()))
        }
    }
}
