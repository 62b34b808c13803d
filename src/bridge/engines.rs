//! Engines that take the events of sinks. A new engine is a file here, a variant of
//! [`EngineAddress`], and a table in `config/sink.rs`.

mod nats;
mod redis;
mod webhook;

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;

use super::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::protocol::sink::{EngineAddress, Sink};
use nats::NatsEngine;
use redis::RedisEngine;
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
        EngineAddress::Redis(redis) => Box::new(RedisEngine::new(redis.clone())),
        EngineAddress::Webhook(webhook) => {
            Box::new(WebhookEngine::new(&sink.topic, webhook.clone()))
        }
    }
}

/// The longest reason that is kept of an engine's error, in characters.
const REASON_MAX: usize = 300;

/// Says on one line why an engine has failed.
fn explain(error: impl Display) -> String {
    let text = error.to_string();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_MAX).collect()
}
