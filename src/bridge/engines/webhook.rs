//! An HTTP service that takes batches of CloudEvents, and may answer with calls.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{Engine, Outcome};
use crate::bridge::http::client::Client;
use crate::bridge::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::bridge::{HttpExchange, ServiceAnswer, ServiceFailure};
use crate::message::SinkEvent;
use crate::protocol::sink::{BATCH_TYPE, CloudEvent, Webhook, encoded_name, put_batch};

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The most calls of an answer.
const CALLS_MAX: usize = 10_000;

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

fn judge(answer: Result<ServiceAnswer, ServiceFailure>) -> Result<Acknowledgement, EngineFailure> {
    match answer {
        Ok(ServiceAnswer { status: 200..=299, body, .. }) => Ok(read_calls(&body)),
        // The service has taken the events. It would answer a repetition in the same way.
        Err(failure @ ServiceFailure::TooLong { status: 200..=299, .. }) => {
            Ok(refused(&failure.to_string()))
        }
        Ok(ServiceAnswer { status, retry_after_s, .. }) => Err(EngineFailure {
            why: format!("answered with status {status}"),
            pause_ms: retry_after_s.map(|seconds| seconds.saturating_mul(1000)),
        }),
        Err(failure) => Err(EngineFailure { why: failure.to_string(), pause_ms: None }),
    }
}

/// Returns the calls of an answer, which is a JSON array of them. Anything else has no calls.
fn read_calls(body: &[u8]) -> Acknowledgement {
    let Ok(calls) = serde_json::from_slice::<Vec<&RawValue>>(body) else {
        return Acknowledgement::default();
    };
    if calls.len() > CALLS_MAX {
        return refused(&format!("the answer has more than {CALLS_MAX} calls"));
    }
    let calls = calls.iter().map(|call| call.get().as_bytes().to_vec()).collect();
    Acknowledgement { calls, refused: None }
}

fn refused(why: &str) -> Acknowledgement {
    let why = format!("{why}; none of its calls is carried out");
    Acknowledgement { calls: Vec::new(), refused: Some(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> Acknowledgement {
        let body = body.as_bytes().to_vec();
        judge(Ok(ServiceAnswer { status: 200, retry_after_s: None, body })).expect("a 2xx")
    }

    #[test]
    fn an_array_is_calls_and_anything_else_is_no_call() {
        let calls = answer(" [ {\"m\":\"a\" } ,7] ").calls;
        assert_eq!(calls, [&b"{\"m\":\"a\" }"[..], b"7"]);
        for other in ["", "ok", "{}", "[", "null", "[{\"m\":1}] x"] {
            assert_eq!(answer(other), Acknowledgement::default(), "{other}");
        }
    }

    #[test]
    fn an_answer_that_is_too_long_acknowledges_the_batch_if_its_status_does() {
        let many = format!("[{}0]", "0,".repeat(CALLS_MAX));
        let answer = answer(&many);
        assert!(answer.calls.is_empty() && answer.refused.is_some());
        let too_long = |status| judge(Err(ServiceFailure::TooLong { status, bytes_max: 5 }));
        let why = too_long(201).expect("a 2xx").refused.expect("a reason");
        assert_eq!(why, "the answer is longer than 5 bytes; none of its calls is carried out");
        assert!(too_long(500).is_err());
    }
}
