//! NATS with JetStream: a message for each event, acknowledged by the stream.
//!
//! The messages of a batch go out in rounds: round *n* has the *n*-th event of each client, and begins when all
//! messages of the round before are acknowledged. So the order of each client holds although one of its
//! messages may fail. `Nats-Msg-Id` is the id of the event, by which the stream drops doubles.
//!
//! A source is a durable consumer, from which messages are pulled.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, ServerAddr};
use futures_util::StreamExt;
use hyper::body::Bytes;
use percent_encoding::percent_decode_str;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::{Acknowledging, CallFeed, Engine, Outcome, Taking, WAIT_MAX, explain};
use crate::bridge::call_sources::{CallMessage, Receipts};
use crate::bridge::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::message::SinkEvent;
use crate::protocol::api::event_object;
use crate::protocol::call_source::NatsConsumer;
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
    let context = context.get_or_try_init(|| connect(&nats.servers)).await?;
    check_connected(&context.client())?;
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

async fn connect(servers: &[String]) -> Result<Context, String> {
    let servers = servers.iter().map(|url| url.parse::<ServerAddr>());
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

/// The time after which NATS delivers a message again that is not acknowledged. A node that runs says more often that it
/// holds its messages.
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// The time for the confirmation of acknowledgements.
const CONFIRMED_MAX: Duration = Duration::from_secs(2);

/// How often a wait looks whether its connection is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A message is done.
const DONE: Bytes = Bytes::from_static(b"+ACK");

/// A message is still held.
const HELD: Bytes = Bytes::from_static(b"+WPI");

/// A durable consumer of a stream.
pub(super) struct NatsFeed {
    nats: Arc<NatsConsumer>,
    // Empty until a connection has succeeded.
    context: Arc<OnceCell<Context>>,
    // Empty until it is known that the stream has the consumer, and after each failure.
    consumer: Arc<Mutex<Option<PullConsumer>>>,
}

impl NatsFeed {
    /// A consumer that connects with the first take.
    pub(super) fn new(nats: NatsConsumer) -> Self {
        Self { nats: Arc::new(nats), context: Arc::default(), consumer: Arc::default() }
    }
}

impl CallFeed for NatsFeed {
    fn take(&mut self, most: usize) -> Taking {
        let (nats, context, consumer) =
            (self.nats.clone(), self.context.clone(), self.consumer.clone());
        Box::pin(async move {
            let known = || consumer.lock().unwrap_or_else(PoisonError::into_inner);
            let context = context.get_or_try_init(|| connect(&nats.servers)).await?;
            check_connected(&context.client())?;
            let found = known().take();
            let found = match found {
                Some(found) => found,
                None => find_consumer(&nats, context).await?,
            };
            let client = context.client();
            let messages = while_connected(&client, take_messages(&found, most)).await?;
            *known() = Some(found);
            Ok(messages)
        })
    }

    fn acknowledge(&mut self, receipts: Arc<Receipts>) -> Acknowledging {
        let (nats, context) = (self.nats.clone(), self.context.clone());
        Box::pin(async move {
            let context = context.get_or_try_init(|| connect(&nats.servers)).await?;
            let client = context.client();
            check_connected(&client)?;
            for receipt in &receipts.held {
                client.publish(receipt.to_string(), HELD).await.map_err(explain)?;
            }
            let Some((last, others)) = receipts.done.split_last() else {
                return client.flush().await.map_err(explain);
            };
            for receipt in others {
                client.publish(receipt.to_string(), DONE).await.map_err(explain)?;
            }
            // The server handles what a connection sends in order: the answer to the last is one to all.
            let answered = async {
                match timeout(CONFIRMED_MAX, client.request(last.to_string(), DONE)).await {
                    Ok(answered) => answered.map(drop).map_err(explain),
                    // A server that was killed may have forgotten that it gave the messages, and gives them again.
                    Err(_) => Ok(()),
                }
            };
            while_connected(&client, answered).await
        })
    }
}

/// Messages would wait in the client until it is connected.
fn check_connected(client: &Client) -> Result<(), String> {
    let is_connected = client.connection_state() == State::Connected;
    is_connected.then_some(()).ok_or_else(|| "not connected".to_owned())
}

/// Waits for something that a lost connection would delay by [`WAIT_MAX`], though the client connects again.
async fn while_connected<T>(
    client: &Client,
    wait: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let statistics = client.statistics();
    let connects = statistics.connects.load(Ordering::Relaxed);
    let mut wait = pin!(wait);
    loop {
        match timeout(LOOK_AGAIN, &mut wait).await {
            Ok(done) => return done,
            Err(_) if statistics.connects.load(Ordering::Relaxed) != connects => {
                return Err("the connection was lost".to_owned());
            }
            Err(_) => check_connected(client)?,
        }
    }
}

/// Finds the consumer, and makes it where it is missing.
async fn find_consumer(nats: &NatsConsumer, context: &Context) -> Result<PullConsumer, String> {
    let stream = context.get_stream(&*nats.stream).await.map_err(explain)?;
    let config = pull::Config {
        durable_name: Some(nats.consumer.to_string()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACKNOWLEDGED_MAX,
        ..pull::Config::default()
    };
    stream.get_or_create_consumer(&nats.consumer, config).await.map_err(explain)
}

/// Takes the messages that are there, or waits for one.
async fn take_messages(consumer: &PullConsumer, most: usize) -> Result<Vec<CallMessage>, String> {
    let batch = consumer.fetch().max_messages(most).messages().await.map_err(explain)?;
    let messages = collect(batch).await?;
    if !messages.is_empty() {
        return Ok(messages);
    }
    let one = consumer.batch().max_messages(1).expires(WAIT_MAX).messages();
    collect(one.await.map_err(explain)?).await
}

async fn collect(batch: pull::Batch) -> Result<Vec<CallMessage>, String> {
    let collected = timeout(WAIT_MAX + ANSWER_MAX, batch.collect::<Vec<_>>());
    let collected = collected.await.map_err(|_| "no answer in time".to_owned())?;
    collected.into_iter().map(|message| call_message(&message.map_err(explain)?)).collect()
}

fn call_message(message: &jetstream::Message) -> Result<CallMessage, String> {
    let info = message.info().map_err(explain)?;
    Ok(CallMessage {
        id: info.stream_sequence.to_string().into(),
        receipt: message.reply.as_deref().unwrap_or_default().into(),
        text: Some(message.payload.to_vec()),
    })
}
