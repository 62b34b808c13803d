//! Redis Streams: an entry for each event, and one transaction for each batch.
//!
//! Redis carries out the `XADD`s of a transaction one after another, with nothing between them. Where it takes no
//! writes (no memory is left, it is a replica) it carries out none. So the order of each client holds. A batch
//! whose answer was lost is stored twice: the field `id` of its entries is the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};

use super::{Engine, Outcome, explain};
use crate::bridge::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::protocol::api::event_object;
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
    for event in &batch.events {
        let object = event_object(event.frame.payload());
        transaction.cmd("XADD").arg(redis.stream_of(event.client, object));
        if let Some(max_len) = redis.max_len {
            transaction.arg("MAXLEN").arg("~").arg(max_len);
        }
        // Events of back ends have no client.
        let client = Some(event.client).filter(|client| !client.is_of_no_client());
        let client = client.map_or_else(String::new, |client| client.to_string());
        transaction.arg("*").arg("id").arg(batch.id_of(event));
        transaction.arg("client").arg(client).arg("data").arg(object).ignore();
    }
    transaction.exec_async(&mut connection).await?;
    Ok(connection)
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
