//! Redis Streams: an entry for each event, and one transaction for each batch.
//!
//! Redis carries out the `XADD`s of a transaction one after another, with nothing between them. Where it takes no
//! writes (no memory is left, it is a replica) it carries out none. So the order of each client holds. When it refuses single
//! entries, because a key holds another type, the others are stored and not sent again. A batch whose answer was lost is
//! stored twice: the field `id` of these entries is the same.
//!
//! A source is a consumer of a group, named after its node. First it takes what an earlier run of the node has left, then
//! from time to time what other consumers have left, and new entries.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisError, Value, cmd, from_redis_value};

use super::{Acknowledging, CallFeed, Engine, Outcome, Taking, WAIT_MAX, explain};
use crate::address::NodeId;
use crate::bridge::call_sources::{CallMessage, Receipts};
use crate::bridge::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::message::SinkEvent;
use crate::protocol::api::event_object;
use crate::protocol::call_source::RedisGroup;
use crate::protocol::sink::{Redis, RedisUrl};

/// The time for a connection, and for the answer to a transaction.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A Redis server, and the connections to it.
pub(super) struct RedisEngine {
    redis: Arc<Redis>,
    // Connections that no batch uses: at most one for each batch in flight.
    idle: Arc<Mutex<Vec<MultiplexedConnection>>>,
}

impl RedisEngine {
    /// An engine that connects with the first batch.
    pub(super) fn new(redis: Redis) -> Self {
        Self { redis: Arc::new(redis), idle: Arc::default() }
    }
}

impl Engine for RedisEngine {
    fn deliver(&mut self, batch: Arc<EventBatch>) -> Outcome {
        let (redis, idle) = (self.redis.clone(), self.idle.clone());
        Box::pin(async move {
            let idle = || idle.lock().unwrap_or_else(PoisonError::into_inner);
            let connection = idle().pop();
            match store(&redis, connection, &batch).await {
                Ok(connection) => {
                    idle().push(connection);
                    Ok(Acknowledgement::default())
                }
                Err(error) => {
                    // What has ended one connection has ended the others too, or leads elsewhere now.
                    idle().clear();
                    Err(EngineFailure { why: reason(error), pause_ms: None })
                }
            }
        })
    }
}

/// Stores the events of a batch; returns the connection.
async fn store(
    redis: &Redis,
    connection: Option<MultiplexedConnection>,
    batch: &EventBatch,
) -> Result<MultiplexedConnection, RedisError> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => connect(&redis.url, ANSWER_MAX).await?,
    };
    let mut transaction = redis::pipe();
    transaction.atomic();
    let events = batch.unstored();
    for (_, event) in &events {
        let object = event_object(event.frame.payload());
        transaction.cmd("XADD").arg(redis.stream_of(event.client, object));
        if let Some(max_len) = redis.max_len {
            transaction.arg("MAXLEN").arg("~").arg(max_len);
        }
        // Events of back ends have no client.
        let client = Some(event.client).filter(|client| !client.is_of_no_client());
        let client = client.map_or_else(String::new, |client| client.to_string());
        transaction.arg("*").arg("id").arg(batch.id_of(event));
        transaction.arg("client").arg(client).arg("data").arg(object);
    }
    // A transaction that is not carried out is an error all the same.
    let answers: Vec<Value> = transaction.ignore_errors().query_async(&mut connection).await?;
    note(batch, &events, answers)?;
    Ok(connection)
}

/// Notes which entries are stored. Returns the first refusal.
fn note(
    batch: &EventBatch,
    events: &[(usize, &SinkEvent)],
    answers: Vec<Value>,
) -> Result<(), RedisError> {
    let mut refused = HashSet::new();
    let mut noted = Ok(());
    for ((at, event), answer) in events.iter().zip(answers) {
        if let Err(error) = answer.extract_error() {
            refused.insert(event.client);
            noted = noted.and(Err(error));
        } else if !refused.contains(&event.client) {
            // A later entry of a client comes again behind the one that was refused.
            batch.note_stored(*at);
        }
    }
    noted
}

/// Connects to a server. Each answer has to come within `answer_max`.
async fn connect(
    url: &RedisUrl,
    answer_max: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_MAX))
        .set_response_timeout(Some(answer_max));
    let client = Client::open(url.secret())?;
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// The reason in the server's own words, if it has given one. Those of the first command that it has refused.
fn reason(error: RedisError) -> String {
    let refused = error.clone().into_server_errors().and_then(|all| Some(explain(&all.first()?.1)));
    refused.unwrap_or_else(|| explain(&error))
}

/// The time after which an entry that another consumer holds is taken over, in milliseconds. A node that runs says more
/// often that it holds its entries.
const ABANDONED_MS: u64 = 60_000;

/// Looks for abandoned entries once in so many takes, and whenever no new entries came.
const TAKES_PER_CLAIM: u32 = 64;

/// A consumer of a group, and its connections: one waits for entries, which blocks it, the other acknowledges.
pub(super) struct RedisFeed {
    consumer: Arc<RedisConsumer>,
    reader: Arc<Mutex<Option<RedisReader>>>,
    acknowledger: Arc<Mutex<Option<MultiplexedConnection>>>,
}

struct RedisConsumer {
    group: RedisGroup,
    name: String,
}

/// A connection that reads entries.
struct RedisReader {
    connection: MultiplexedConnection,
    // The id behind which entries follow that the node holds, as far as the server knows. `None`: none is left.
    own_after: Option<String>,
    takes_until_claim: u32,
}

/// An entry of a stream: its id and its fields. `None`: the entry was deleted.
type StreamEntry = (String, Option<Vec<(Vec<u8>, Vec<u8>)>>);

impl RedisFeed {
    /// A consumer that connects with the first take.
    pub(super) fn new(group: RedisGroup, node: NodeId) -> Self {
        let consumer = RedisConsumer { group, name: format!("node-{}", node.number()) };
        Self { consumer: Arc::new(consumer), reader: Arc::default(), acknowledger: Arc::default() }
    }
}

impl CallFeed for RedisFeed {
    fn take(&mut self, most: usize) -> Taking {
        let (consumer, reader) = (self.consumer.clone(), self.reader.clone());
        Box::pin(async move {
            let idle = || reader.lock().unwrap_or_else(PoisonError::into_inner);
            let connected = idle().take();
            let taken = async {
                let mut reader = match connected {
                    Some(reader) => reader,
                    None => consumer.connect().await?,
                };
                let entries = consumer.read(&mut reader, most).await?;
                Ok((reader, entries))
            };
            let (reader, entries) = taken.await.map_err(reason)?;
            *idle() = Some(reader);
            Ok(entries.into_iter().map(message).collect())
        })
    }

    fn acknowledge(&mut self, receipts: Arc<Receipts>) -> Acknowledging {
        let (consumer, acknowledger) = (self.consumer.clone(), self.acknowledger.clone());
        Box::pin(async move {
            let idle = || acknowledger.lock().unwrap_or_else(PoisonError::into_inner);
            let connected = idle().take();
            let acknowledged = consumer.acknowledge(connected, &receipts);
            let connection = acknowledged.await.map_err(reason)?;
            *idle() = Some(connection);
            Ok(())
        })
    }
}

impl RedisConsumer {
    /// Connects, and makes the group where it is missing.
    async fn connect(&self) -> Result<RedisReader, RedisError> {
        let mut connection = connect(&self.group.url, WAIT_MAX + ANSWER_MAX).await?;
        let (stream, group) = (&*self.group.stream, &*self.group.group);
        let made: Result<(), RedisError> = cmd("XGROUP")
            .arg(&["CREATE", stream, group, "0", "MKSTREAM"])
            .query_async(&mut connection)
            .await;
        match made {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(error),
            // There is a group of this name already.
            _ => {
                let own_after = Some("0".to_owned());
                Ok(RedisReader { connection, own_after, takes_until_claim: 0 })
            }
        }
    }

    /// Takes the next entries.
    async fn read(
        &self,
        reader: &mut RedisReader,
        most: usize,
    ) -> Result<Vec<StreamEntry>, RedisError> {
        if let Some(after) = reader.own_after.take() {
            let own = self.read_group(reader, most, None, &after).await?;
            if let Some((last, _)) = own.last() {
                reader.own_after = Some(last.clone());
                return Ok(own);
            }
        }
        if reader.takes_until_claim == 0 {
            reader.takes_until_claim = TAKES_PER_CLAIM;
            let abandoned = self.claim(reader, most).await?;
            if !abandoned.is_empty() {
                reader.takes_until_claim = 0;
                return Ok(abandoned);
            }
        }
        reader.takes_until_claim -= 1;
        let new = self.read_group(reader, most, Some(WAIT_MAX), ">").await?;
        if new.is_empty() {
            reader.takes_until_claim = 0;
        }
        Ok(new)
    }

    async fn read_group(
        &self,
        reader: &mut RedisReader,
        most: usize,
        wait: Option<Duration>,
        after: &str,
    ) -> Result<Vec<StreamEntry>, RedisError> {
        let mut command = cmd("XREADGROUP");
        command.arg("GROUP").arg(&*self.group.group).arg(&self.name).arg("COUNT").arg(most);
        if let Some(wait) = wait {
            command.arg("BLOCK").arg(wait.as_millis() as u64);
        }
        command.arg("STREAMS").arg(&*self.group.stream).arg(after);
        let streams: Option<Vec<(String, Vec<StreamEntry>)>> = query(&command, reader).await?;
        Ok(streams.unwrap_or_default().into_iter().flat_map(|(_, entries)| entries).collect())
    }

    /// Takes over entries that their consumers have abandoned.
    async fn claim(
        &self,
        reader: &mut RedisReader,
        most: usize,
    ) -> Result<Vec<StreamEntry>, RedisError> {
        let mut command = cmd("XAUTOCLAIM");
        command.arg(&*self.group.stream).arg(&*self.group.group).arg(&self.name);
        command.arg(ABANDONED_MS).arg("0-0").arg("COUNT").arg(most);
        // A cursor, the entries, and since Redis 7 the ids of deleted ones.
        let answer: Vec<Value> = query(&command, reader).await?;
        match answer.into_iter().nth(1) {
            Some(entries) => Ok(from_redis_value(entries)?),
            None => Ok(Vec::new()),
        }
    }

    async fn acknowledge(
        &self,
        connection: Option<MultiplexedConnection>,
        Receipts { done, held }: &Receipts,
    ) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = match connection {
            Some(connection) => connection,
            None => connect(&self.group.url, ANSWER_MAX).await?,
        };
        let (stream, group) = (&*self.group.stream, &*self.group.group);
        let mut pipeline = redis::pipe();
        if !done.is_empty() {
            pipeline.cmd("XACK").arg(stream).arg(group).arg(ids(done)).ignore();
        }
        if !held.is_empty() {
            // Sets the time back since when the entries are held.
            pipeline.cmd("XCLAIM").arg(stream).arg(group).arg(&self.name).arg(0);
            pipeline.arg(ids(held)).arg("JUSTID").ignore();
        }
        pipeline.exec_async(&mut connection).await?;
        Ok(connection)
    }
}

async fn query<T: redis::FromRedisValue>(
    command: &Cmd,
    reader: &mut RedisReader,
) -> Result<T, RedisError> {
    command.query_async(&mut reader.connection).await
}

fn ids(receipts: &[Box<str>]) -> Vec<&str> {
    receipts.iter().map(|id| &**id).collect()
}

fn message((id, fields): StreamEntry) -> CallMessage {
    let mut fields = fields.unwrap_or_default().into_iter();
    let call = fields.find(|(name, _)| name == b"data");
    let id: Box<str> = id.into();
    CallMessage { receipt: id.clone(), id, text: call.map(|(_, text)| text) }
}
