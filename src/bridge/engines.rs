//! Engines that take the events of sinks. A new engine is a file here, a variant of
//! [`EngineAddress`], and a table in `config/sink.rs`. As a source it has a variant of [`CallEngine`], and a table in
//! `config/call_source.rs`.

mod kafka;
mod nats;
mod redis;
mod webhook;

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::call_sources::{CallMessage, Receipts};
use super::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::address::NodeId;
use crate::protocol::call_source::{CallEngine, CallSource};
use crate::protocol::sink::{EngineAddress, Sink};
use kafka::KafkaEngine;
use nats::{NatsEngine, NatsFeed};
use redis::{RedisEngine, RedisFeed};
use webhook::WebhookEngine;

/// The end of an attempt to deliver a batch.
pub(super) type Outcome =
    Pin<Box<dyn Future<Output = Result<Acknowledgement, EngineFailure>> + Send>>;

/// An engine.
pub(super) trait Engine: Send {
    /// Delivers the events of a batch that are not stored. `Ok` only when the engine has acknowledged every one. The events
    /// of each client are stored in their order, also if the attempt fails half-way and the batch is delivered again.
    fn deliver(&mut self, batch: Arc<EventBatch>) -> Outcome;
}

/// Returns the engine of a sink. Connects with the first batch.
pub(super) fn connect(sink: &Sink) -> Box<dyn Engine> {
    match &sink.engine {
        EngineAddress::Nats(nats) => Box::new(NatsEngine::new(nats.clone())),
        EngineAddress::Kafka(kafka) => Box::new(KafkaEngine::new(kafka.clone())),
        EngineAddress::Redis(redis) => Box::new(RedisEngine::new(redis.clone())),
        EngineAddress::Webhook(webhook) => {
            Box::new(WebhookEngine::new(&sink.topic, webhook.clone()))
        }
    }
}

/// Messages for a source, or why there are none. Empty: none has come for a while.
pub(super) type Taking = Pin<Box<dyn Future<Output = Result<Vec<CallMessage>, String>> + Send>>;

/// The end of an acknowledgement, or why it has failed.
pub(super) type Acknowledging = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// An engine whose messages are calls.
pub(super) trait CallFeed: Send {
    /// Begins to wait for messages: at most `most`, at least one, in their order. A message that is not acknowledged in
    /// time, or was taken by a run that has ended, comes again. Called when the wait before has ended.
    fn take(&mut self, most: usize) -> Taking;

    /// Begins to acknowledge messages, and tells the engine which others are held. What has failed is repeated.
    fn acknowledge(&mut self, receipts: Arc<Receipts>) -> Acknowledging;
}

/// Connects to the engine of a source, when it has to do something.
pub(super) fn open_feed(source: &CallSource, node: NodeId) -> Box<dyn CallFeed> {
    match &source.engine {
        CallEngine::Nats(consumer) => Box::new(NatsFeed::new(consumer.clone())),
        CallEngine::Redis(group) => Box::new(RedisFeed::new(group.clone(), node)),
    }
}

/// The time for which an engine is asked to wait for messages.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The longest reason that is kept of an engine's error, in characters.
const REASON_MAX: usize = 300;

/// Says on one line why an engine has failed.
fn explain(error: impl Display) -> String {
    let text = error.to_string();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_MAX).collect()
}
