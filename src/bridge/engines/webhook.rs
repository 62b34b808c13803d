//! An HTTP service that takes batches of CloudEvents.

use std::sync::Arc;

use super::{Engine, Outcome};
use crate::bridge::http::client::Client;
use crate::bridge::sinks::{EngineFailure, EventBatch};
use crate::bridge::{HttpExchange, ServiceAnswer, ServiceFailure};
use crate::message::SinkEvent;
use crate::protocol::sink::{BATCH_TYPE, CloudEvent, Webhook, encoded_name, put_batch};

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The bytes that the envelope of an event takes, about.
const ENVELOPE_BYTES: usize = 256;

/// A webhook, and its connections.
pub(super) struct WebhookEngine {
    webhook: Webhook,
    // The field `source` of each event.
    source: String,
    client: Client,
}

impl WebhookEngine {
    /// A webhook that gets the events of a topic.
    pub(super) fn new(topic: &str, webhook: Webhook) -> Self {
        let source = format!("/gridcast/topics/{}", encoded_name(topic));
        Self { webhook, source, client: Client::default() }
    }

    fn exchange(&self, batch: &EventBatch) -> HttpExchange {
        let bytes = |event: &SinkEvent| event.frame.bytes().len() + ENVELOPE_BYTES;
        let mut body = Vec::with_capacity(batch.events.iter().map(bytes).sum());
        let ids: Vec<String> = batch.events.iter().map(|event| batch.id_of(event)).collect();
        let events = batch.events.iter().zip(&ids).map(|(event, id)| CloudEvent {
            id,
            client: event.client,
            arrived_unix_ms: event.arrived_unix_ms,
            json: event.frame.payload(),
        });
        put_batch(&mut body, &self.source, events);
        HttpExchange {
            service: self.webhook.service.clone(),
            body: Some(body),
            content_type: BATCH_TYPE,
            secret: self.webhook.secret.clone(),
            timeout_ms: self.webhook.service.timeout_ms,
            answer_bytes_max: ANSWER_BYTES_MAX,
        }
    }
}

impl Engine for WebhookEngine {
    fn deliver(&mut self, batch: Arc<EventBatch>) -> Outcome {
        let answer = self.client.exchange(self.exchange(&batch));
        Box::pin(async move { judge(answer.await) })
    }
}

fn judge(answer: Result<ServiceAnswer, ServiceFailure>) -> Result<(), EngineFailure> {
    match answer {
        Ok(ServiceAnswer { status: 200..=299, .. }) => Ok(()),
        Ok(ServiceAnswer { status, retry_after_s, .. }) => Err(EngineFailure {
            why: format!("answered with status {status}"),
            pause_ms: retry_after_s.map(|seconds| seconds.saturating_mul(1000)),
        }),
        Err(ServiceFailure(why)) => Err(EngineFailure { why, pause_ms: None }),
    }
}
