//! Kafka: a record for each event, in the partition of its key, with `acks=all`.
//!
//! The messages of the protocol are those of the crate `kafka-protocol`. The versions that are used are known to every
//! broker from Kafka 1.0 to 4, and to what speaks the same protocol. `kafka/connection.rs` exchanges them,
//! `kafka/login.rs` logs in, `kafka/cluster.rs` knows the brokers.
//!
//! The key of a record is the client, so that all events of a client are in one partition. A partition has one request in
//! flight at a time, and stores a record batch whole or not at all. So the order of each client holds. What a partition
//! has stored is not sent again when others fail. A batch whose answer was lost is stored twice: the header `id` of these
//! records is the same.

mod cluster;
mod connection;
mod layout;
mod login;
mod partitioner;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, NO_PARTITION_LEADER_EPOCH, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, Record,
    RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

use super::{Engine, Outcome, explain};
use crate::bridge::sinks::{Acknowledgement, EngineFailure, EventBatch};
use crate::message::SinkEvent;
use crate::protocol::api::event_object;
use crate::protocol::sink::{KAFKA_CONNECTIONS, Kafka};
use cluster::{BrokerId, Cluster};
use connection::{BrokerConnection, text};
use layout::AnswerPart::{self, Array, Fixed, Text};

/// The time that a broker has to store records, with all replicas that it waits for.
const STORED_MAX: Duration = Duration::from_secs(5);

/// The time for the answer to that.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// The version of the request.
const PRODUCE: i16 = 3;

/// The answer: topics with a name and partitions, then a time. A partition has a number, an error, an offset and a time.
const PRODUCE_ANSWER: &[AnswerPart] = &[Array(&[Text, Array(&[Fixed(22)])]), Fixed(4)];

/// Every replica that is in sync has to have the records.
const ACKS_ALL: i16 = -1;

/// The most bytes of events in a record batch at first. Brokers take 1 MiB, unless they are told otherwise. The last event may
/// exceed the bytes.
const RECORD_BATCH_BYTES: usize = 512 << 10;

/// The header of a record with the id of its event.
const ID_HEADER: &str = "id";

/// A topic of a cluster.
pub(super) struct KafkaEngine {
    kafka: Arc<Kafka>,
    // Empty until a connection has succeeded, while a batch is being delivered, and after each failure.
    producer: Arc<Mutex<Option<Producer>>>,
}

impl KafkaEngine {
    /// An engine that connects with the first batch.
    pub(super) fn new(kafka: Kafka) -> Self {
        Self { kafka: Arc::new(kafka), producer: Arc::default() }
    }
}

impl Engine for KafkaEngine {
    fn deliver(&mut self, batch: Arc<EventBatch>) -> Outcome {
        let (kafka, producer) = (self.kafka.clone(), self.producer.clone());
        Box::pin(async move {
            let idle = || producer.lock().unwrap_or_else(PoisonError::into_inner);
            let connected = idle().take();
            match store(&kafka, connected, &batch).await {
                Ok(connected) => {
                    *idle() = Some(connected);
                    Ok(Acknowledgement::default())
                }
                Err(why) => Err(EngineFailure { why, pause_ms: None }),
            }
        })
    }
}

/// Stores the events of a batch; returns the producer.
async fn store(
    kafka: &Arc<Kafka>,
    connected: Option<Producer>,
    batch: &EventBatch,
) -> Result<Producer, String> {
    if let Some(mut producer) = connected {
        // Brokers close connections that were idle for long, and leaders move.
        if producer.store(batch).await.is_ok() {
            return Ok(producer);
        }
    }
    let mut producer = Producer::connect(kafka.clone()).await?;
    producer.store(batch).await?;
    Ok(producer)
}

/// Sends records to the leaders of their partitions.
struct Producer {
    kafka: Arc<Kafka>,
    cluster: Cluster,
    // Halved when a broker finds a record batch too large.
    batch_bytes: usize,
}

/// Events for one partition, with their places in the batch.
#[derive(Default)]
struct PartitionChunk<'b> {
    events: Vec<(usize, &'b SinkEvent)>,
    bytes: usize,
}

/// What became of the chunks of a leader: the connection, and the answer.
type Sent = Result<(BrokerConnection, ProduceResponse), String>;

impl Producer {
    async fn connect(kafka: Arc<Kafka>) -> Result<Self, String> {
        let settings = Arc::new(kafka.cluster.clone());
        let cluster = Cluster::find(settings, &kafka.topic).await?;
        Ok(Self { kafka, cluster, batch_bytes: RECORD_BATCH_BYTES })
    }

    /// Stores the events of a batch that are not stored yet. If some cannot be stored, the others are, as far as the order
    /// of each client allows it.
    async fn store(&mut self, batch: &EventBatch) -> Result<(), String> {
        loop {
            let chunks = self.next_chunks(batch);
            if chunks.is_empty() {
                return Ok(());
            }
            self.store_chunks(batch, chunks).await?;
        }
    }

    /// Returns the next events of each partition.
    fn next_chunks<'b>(&self, batch: &'b EventBatch) -> BTreeMap<i32, PartitionChunk<'b>> {
        let mut chunks: BTreeMap<i32, PartitionChunk<'b>> = BTreeMap::new();
        for (at, event) in batch.unstored() {
            let chunk = chunks.entry(self.partition_of(event)).or_default();
            if chunk.bytes < self.batch_bytes {
                chunk.bytes += event.frame.bytes().len();
                chunk.events.push((at, event));
            }
        }
        chunks
    }

    fn partition_of(&self, event: &SinkEvent) -> i32 {
        let key = Kafka::key_of(event.client, event_object(event.frame.payload()));
        let partitions = self.cluster.partitions();
        match key {
            Some(key) => partitioner::partition_of(key.as_bytes(), partitions),
            // Events without an order are spread.
            None => (event.number.0 % partitions as u64) as i32,
        }
    }

    /// Sends each partition its chunk, and notes what is stored. Returns the first failure.
    async fn store_chunks(
        &mut self,
        batch: &EventBatch,
        mut chunks: BTreeMap<i32, PartitionChunk<'_>>,
    ) -> Result<(), String> {
        let mut failure = None;
        let mut leaders: BTreeMap<BrokerId, Vec<PartitionProduceData>> = BTreeMap::new();
        for (&partition, chunk) in &chunks {
            match self.cluster.leader_of(partition) {
                Ok(leader) => {
                    let records = encode(batch, &chunk.events)?;
                    let data = PartitionProduceData::default()
                        .with_index(partition)
                        .with_records(Some(records));
                    leaders.entry(leader).or_default().push(data);
                }
                Err(why) => failure = Some(why),
            }
        }
        let mut leaders: Vec<_> = leaders.into_iter().collect();
        while !leaders.is_empty() {
            let rest = leaders.split_off(leaders.len().min(KAFKA_CONNECTIONS));
            for (leader, sent) in self.send(std::mem::replace(&mut leaders, rest)).await {
                let noted = match sent {
                    Ok((connection, answer)) => {
                        self.cluster.put_back(leader, connection);
                        self.note(batch, &mut chunks, &answer)
                    }
                    Err(why) => Err(format!("broker {leader}: {why}")),
                };
                if let Err(why) = noted {
                    failure = failure.or(Some(why));
                }
            }
        }
        match failure {
            Some(why) => Err(why),
            None if chunks.is_empty() => Ok(()),
            None => Err("a broker has said nothing about some of its partitions".to_owned()),
        }
    }

    /// Sends leaders the records of their partitions, to all at the same time.
    async fn send(
        &mut self,
        leaders: Vec<(BrokerId, Vec<PartitionProduceData>)>,
    ) -> Vec<(BrokerId, Sent)> {
        let links: Vec<_> = leaders.iter().map(|(leader, _)| self.cluster.take(*leader)).collect();
        self.cluster.make_room(links.len());
        let topic = TopicName(text(&self.kafka.topic));
        let sends = leaders.into_iter().zip(links).map(|((leader, partitions), link)| {
            let data = TopicProduceData::default()
                .with_name(topic.clone())
                .with_partition_data(partitions);
            let request = ProduceRequest::default()
                .with_acks(ACKS_ALL)
                .with_timeout_ms(STORED_MAX.as_millis() as i32)
                .with_topic_data(vec![data]);
            async move {
                let sent = async {
                    let mut connection = link?.open().await?;
                    let answer =
                        connection.request(PRODUCE, &request, PRODUCE_ANSWER, ANSWER_MAX).await?;
                    Ok((connection, answer))
                };
                (leader, sent.await)
            }
        });
        join_all(sends).await
    }

    /// Notes what a leader has stored. Returns the first failure.
    fn note(
        &mut self,
        batch: &EventBatch,
        chunks: &mut BTreeMap<i32, PartitionChunk<'_>>,
        answer: &ProduceResponse,
    ) -> Result<(), String> {
        let mut noted = Ok(());
        for partition in answer.responses.iter().flat_map(|topic| &topic.partition_responses) {
            let Some(chunk) = chunks.remove(&partition.index) else { continue };
            let error = ResponseError::try_from_code(partition.error_code);
            match error {
                None => chunk.events.iter().for_each(|(at, _)| batch.note_stored(*at)),
                // Fewer at a time may fit.
                Some(ResponseError::MessageTooLarge) if chunk.events.len() > 1 => {
                    self.batch_bytes = (self.batch_bytes.min(chunk.bytes) / 2).max(1);
                }
                Some(error) => noted = noted.and(Err(self.refusal(partition.index, &chunk, error))),
            }
        }
        noted
    }

    fn refusal(&self, partition: i32, chunk: &PartitionChunk<'_>, error: ResponseError) -> String {
        let size = match error {
            ResponseError::MessageTooLarge => format!(" for an event of {} bytes", chunk.bytes),
            _ => String::new(),
        };
        format!("partition {partition} of {:?}: {error}{size}", self.kafka.topic)
    }
}

/// Encodes events as a record batch.
fn encode(batch: &EventBatch, events: &[(usize, &SinkEvent)]) -> Result<Bytes, String> {
    let records = events.iter().enumerate();
    let records: Vec<Record> =
        records.map(|(offset, (_, event))| record(batch, offset as i64, event)).collect();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    let mut out = BytesMut::new();
    RecordBatchEncoder::encode(&mut out, &records, &options).map_err(explain)?;
    Ok(out.freeze())
}

fn record(batch: &EventBatch, offset: i64, event: &SinkEvent) -> Record {
    let object = event_object(event.frame.payload());
    let id = Bytes::from(batch.id_of(event));
    Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
        producer_id: NO_PRODUCER_ID,
        producer_epoch: NO_PRODUCER_EPOCH,
        timestamp_type: TimestampType::Creation,
        offset,
        // That of the first record is the one of the batch.
        sequence: NO_SEQUENCE.wrapping_add(offset as i32),
        timestamp: event.arrived_unix_ms as i64,
        key: Kafka::key_of(event.client, object).map(Bytes::from),
        value: Some(Bytes::copy_from_slice(object)),
        headers: IndexMap::from([(StrBytes::from_static_str(ID_HEADER), Some(id))]),
    }
}

#[cfg(test)]
mod tests;
