//! NATS with JetStream: a message for each event, acknowledged by the stream.
//!
//! The messages of a batch go out in rounds: round *n* has the *n*-th event of each client, and begins when all
//! messages of the round before are acknowledged. So the order of each client holds although one of its
//! messages may fail. `Nats-Msg-Id` is the id of the event, by which the stream drops doubles.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context};
use async_nats::{ConnectOptions, ServerAddr};
use hyper::body::Bytes;
use percent_encoding::percent_decode_str;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::{Engine, Outcome, explain};
use crate::bridge::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::message::SinkEvent;
use crate::protocol::api::event_object;
use crate::protocol::sink::Nats;

/// The time for a connection, and for the acknowledgement of a message.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The time for a whole batch.
const BATCH_MAX: Duration = Duration::from_secs(30);

/// A connection to NATS. The client connects again by itself when the connection breaks.
pub(super) struct NatsEngine {
    nats: Arc<Nats>,
    // Empty until a connection has succeeded.
    context: Arc<OnceCell<Context>>,
}

impl NatsEngine {
    /// An engine that connects with the first batch.
    pub(super) fn new(nats: Nats) -> Self {
        Self { nats: Arc::new(nats), context: Arc::default() }
    }
}

impl Engine for NatsEngine {
    fn deliver(&mut self, batch: Arc<EventBatch>) -> Outcome {
        let (nats, context) = (self.nats.clone(), self.context.clone());
        Box::pin(async move {
            let delivered = timeout(BATCH_MAX, publish(&nats, &context, &batch));
            let late = |_| "not acknowledged in time".to_owned();
            let delivered = delivered.await.map_err(late).flatten();
            match delivered {
                Ok(()) => Ok(Acknowledgement::default()),
                Err(why) => Err(EngineFailure { why, pause_ms: None }),
            }
        })
    }
}

async fn publish(
    nats: &Nats,
    context: &OnceCell<Context>,
    batch: &EventBatch,
) -> Result<(), String> {
    let context = context.get_or_try_init(|| connect(nats)).await?;
    // Messages would wait in the client until it is connected.
    if context.client().connection_state() != State::Connected {
        return Err("not connected".to_owned());
    }
    for round in rounds(batch) {
        let mut unacknowledged: Vec<PublishAckFuture> = Vec::with_capacity(round.len());
        for event in round {
            let object = Bytes::copy_from_slice(event_object(event.frame.payload()));
            let subject = nats.subject_of(event.client, &object);
            let message = PublishMessage::build().payload(object).message_id(batch.id_of(event));
            let sent = context.send_publish(subject, message).await;
            unacknowledged.push(sent.map_err(explain)?);
        }
        for acknowledgement in unacknowledged {
            acknowledgement.await.map_err(explain)?;
        }
    }
    Ok(())
}

/// The events of a batch: first the first of each client, then the second of each, and so on.
fn rounds(batch: &EventBatch) -> Vec<Vec<&SinkEvent>> {
    let mut counts = HashMap::new();
    let mut rounds: Vec<Vec<&SinkEvent>> = Vec::new();
    for event in &batch.events {
        let count = counts.entry(event.client).or_insert(0);
        if *count == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[*count].push(event);
        *count += 1;
    }
    rounds
}

async fn connect(nats: &Nats) -> Result<Context, String> {
    let servers = nats.servers.iter().map(|url| url.parse::<ServerAddr>());
    let servers: Vec<ServerAddr> =
        servers.collect::<Result<_, _>>().map_err(|_| "a URL of a server is wrong".to_owned())?;
    let mut options = ConnectOptions::new().name("gridcast").connection_timeout(ANSWER_MAX);
    // The client takes no user from a URL.
    let user = servers.iter().find_map(|server| Some((server.username()?, server.password()?)));
    if let Some((user, password)) = user {
        options = options.user_and_password(decoded(user), decoded(password));
    }
    let client = options.connect(servers).await.map_err(explain)?;
    let mut context = jetstream::new(client);
    context.set_timeout(ANSWER_MAX);
    Ok(context)
}

/// Decodes what is percent-encoded in a URL.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
