use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    ApiKey, BrokerId as BrokerNumber, MetadataRequest, MetadataResponse, SaslAuthenticateRequest,
    SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, decode_request_header_from_buffer};
use kafka_protocol::records::RecordBatchDecoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::address::{ClientId, NodeId};
use crate::message::MessageNumber;
use crate::protocol::api::{EventHead, put_event, put_message};
use crate::protocol::frame::{Frame, Kind};
use crate::protocol::sink::{KafkaBroker, KafkaCluster, KafkaLogin, KafkaMechanism};

/// What a broker was asked to store: the partition, and the ids of the events.
type Asked = (i32, Vec<String>);

/// What a broker says to that: an error code of Kafka, or `None` to close the connection.
type Verdict = fn(&Asked) -> Option<i16>;

/// A broker with the topic `t` of so many partitions, which decides what it stores. It knows the user `app` with the
/// password `hush`.
struct FakeBroker {
    runtime: Runtime,
    address: KafkaBroker,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeBroker {
    fn start(partitions: i32, verdict: Verdict) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let address = KafkaBroker { host: "127.0.0.1".into(), port };
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (own, log) = (address.clone(), asked.clone());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = Served { own: own.clone(), partitions, verdict, log: log.clone() };
                tokio::spawn(served.run(stream));
            }
        });
        Self { runtime, address, asked }
    }

    fn engine(&self, login: Option<(&str, KafkaMechanism)>) -> KafkaEngine {
        let login = login.map(|(password, mechanism)| KafkaLogin {
            user: "app".into(),
            password: password.into(),
            mechanism,
        });
        let brokers = [self.address.clone()].into();
        let cluster = KafkaCluster { brokers, tls: None, login };
        KafkaEngine::new(Kafka { cluster, topic: "t".into() })
    }

    fn deliver(&self, engine: &mut KafkaEngine, batch: &Arc<EventBatch>) -> Result<(), String> {
        let delivered = self.runtime.block_on(engine.deliver(batch.clone()));
        delivered.map(drop).map_err(|failure| failure.why)
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().expect("no panic"))
    }
}

/// A connection to a broker.
struct Served {
    own: KafkaBroker,
    partitions: i32,
    verdict: Verdict,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Served {
    async fn run(self, mut stream: TcpStream) {
        while let Ok(length) = stream.read_i32().await {
            let mut request = vec![0; length as usize];
            stream.read_exact(&mut request).await.expect("a whole request");
            let Some(answer) = self.answer(request.into()) else { return };
            stream.write_all(&answer).await.expect("the client waits");
        }
    }

    /// Returns the answer with its length. `None`: the connection is closed.
    fn answer(&self, mut request: Bytes) -> Option<BytesMut> {
        let header = decode_request_header_from_buffer(&mut request).expect("a header");
        let version = header.request_api_version;
        let mut out = BytesMut::new();
        out.put_i32(0);
        out.put_i32(header.correlation_id);
        let key = ApiKey::try_from(header.request_api_key).expect("a known request");
        assert_eq!(key.response_header_version(version), 0);
        match key {
            ApiKey::SaslHandshake => {
                let asked = SaslHandshakeRequest::decode(&mut request, version).expect("one");
                let code = if &*asked.mechanism == "PLAIN" { 0 } else { 33 };
                let answer = SaslHandshakeResponse::default()
                    .with_error_code(code)
                    .with_mechanisms(vec![text("PLAIN"), text("GSSAPI")]);
                answer.encode(&mut out, version).expect("it fits");
            }
            ApiKey::SaslAuthenticate => {
                let asked = SaslAuthenticateRequest::decode(&mut request, version).expect("one");
                let code = if asked.auth_bytes == "\0app\0hush" { 0 } else { 58 };
                let answer = SaslAuthenticateResponse::default()
                    .with_error_code(code)
                    .with_error_message(Some(text("no such user")));
                answer.encode(&mut out, version).expect("it fits");
            }
            ApiKey::Metadata => {
                MetadataRequest::decode(&mut request, version).expect("one");
                self.metadata().encode(&mut out, version).expect("it fits");
            }
            ApiKey::Produce => {
                let asked = ProduceRequest::decode(&mut request, version).expect("one");
                self.store(asked)?.encode(&mut out, version).expect("it fits");
            }
            other => panic!("{other:?}"),
        }
        let length = out.len() as i32 - 4;
        (&mut out[..4]).put_i32(length);
        Some(out)
    }

    fn metadata(&self) -> MetadataResponse {
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerNumber(7))
            .with_host(text(&self.own.host))
            .with_port(i32::from(self.own.port));
        let partition = |index| {
            let leader = BrokerNumber(7);
            MetadataResponsePartition::default().with_partition_index(index).with_leader_id(leader)
        };
        let topic = MetadataResponseTopic::default()
            .with_name(Some(TopicName(text("t"))))
            .with_partitions((0..self.partitions).map(partition).collect());
        MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic])
    }

    fn store(&self, asked: ProduceRequest) -> Option<ProduceResponse> {
        assert_eq!((asked.acks, asked.topic_data.len()), (ACKS_ALL, 1));
        let mut partitions = Vec::new();
        for data in &asked.topic_data[0].partition_data {
            let asked = (data.index, ids(data.records.clone().expect("records")));
            let verdict = (self.verdict)(&asked);
            self.log.lock().expect("no panic").push(asked);
            let answer = PartitionProduceResponse::default().with_index(data.index);
            partitions.push(answer.with_error_code(verdict?));
        }
        let topic = TopicProduceResponse::default().with_name(TopicName(text("t")));
        let topic = topic.with_partition_responses(partitions);
        Some(ProduceResponse::default().with_responses(vec![topic]))
    }
}

/// The ids of the events in a record batch.
fn ids(mut records: Bytes) -> Vec<String> {
    let set = RecordBatchDecoder::decode(&mut records).expect("a record batch");
    assert!(!records.has_remaining(), "a partition gets one record batch");
    let id = |record: &Record| record.headers[ID_HEADER.as_bytes()].clone().expect("an id");
    let id = |record| String::from_utf8(id(record).to_vec()).expect("an id");
    set.records.iter().map(id).collect()
}

/// A batch with events of these clients, numbered from 0.
fn batch(clients: &[u64]) -> Arc<EventBatch> {
    let event = |(number, client): (usize, &u64)| {
        let (node, client) = (NodeId::new(1).expect("a node"), ClientId::from_value(*client));
        let head = EventHead { node, client, topic: "t" };
        let mut out = Vec::new();
        let put = |out: &mut Vec<u8>| put_message(out, Kind::Text, b"x", None);
        put_event(&mut out, &mut Vec::new(), head, put);
        let frame = Frame::from_encoded(&out);
        SinkEvent { number: MessageNumber(number as u64), client, arrived_unix_ms: 5, frame }
    };
    let events = clients.iter().enumerate().map(event).collect();
    Arc::new(EventBatch::new("e".into(), events))
}

/// Clients whose events are in the partitions 0 and 1 of two, by the hash of Kafka.
const IN_0: u64 = 2;
const IN_1: u64 = 1;

#[test]
fn the_events_of_a_client_are_in_one_partition() {
    let broker = FakeBroker::start(2, |_| Some(0));
    let mut engine = broker.engine(None);
    assert_eq!(broker.deliver(&mut engine, &batch(&[IN_0, IN_1, IN_0, IN_1])), Ok(()));
    let ids = |numbers: [&str; 2]| numbers.map(str::to_owned).to_vec();
    assert_eq!(broker.asked(), [(0, ids(["e0", "e2"])), (1, ids(["e1", "e3"]))]);
}

#[test]
fn what_a_partition_has_stored_is_not_sent_again_when_another_fails() {
    // The second partition has too few replicas in sync.
    let broker = FakeBroker::start(2, |(partition, _)| Some(if *partition == 1 { 19 } else { 0 }));
    let mut engine = broker.engine(None);
    let batch = batch(&[IN_0, IN_1, IN_0, IN_1]);
    let why = broker.deliver(&mut engine, &batch).expect_err("one partition fails");
    assert_eq!(why, "partition 1 of \"t\": NotEnoughReplicas");
    assert_eq!(broker.asked().len(), 2);
    assert!(broker.deliver(&mut engine, &batch).is_err());
    assert!(broker.asked().iter().all(|(partition, ids)| *partition == 1 && ids.len() == 2));
    let places: Vec<usize> = batch.unstored().into_iter().map(|(at, _)| at).collect();
    assert_eq!(places, [1, 3]);
}

#[test]
fn a_record_batch_that_is_too_large_is_sent_in_smaller_ones() {
    // Takes two records at a time.
    let broker = FakeBroker::start(1, |(_, ids)| Some(if ids.len() > 2 { 10 } else { 0 }));
    let mut engine = broker.engine(None);
    assert_eq!(broker.deliver(&mut engine, &batch(&[1; 9])), Ok(()));
    let mut asked = broker.asked();
    asked.retain(|(_, ids)| ids.len() <= 2);
    let stored: Vec<String> = asked.into_iter().flat_map(|(_, ids)| ids).collect();
    let all: Vec<String> = (0..9).map(|number| format!("e{number}")).collect();
    assert_eq!(stored, all);
}

#[test]
fn an_event_that_is_too_large_is_named_and_holds_back_those_behind_it() {
    let broker = FakeBroker::start(1, |_| Some(10));
    let mut engine = broker.engine(None);
    let batch = batch(&[1, 1]);
    let why = broker.deliver(&mut engine, &batch).expect_err("nothing fits");
    assert!(why.starts_with("partition 0 of \"t\": MessageTooLarge for an event of "), "{why}");
    assert_eq!(broker.asked().last(), Some(&(0, vec!["e0".to_owned()])));
    assert_eq!(batch.unstored().len(), 2);
}

#[test]
fn a_connection_that_was_closed_while_idle_costs_no_failure() {
    // The connection is closed once, instead of an answer about two events.
    static CLOSED: AtomicBool = AtomicBool::new(false);
    let broker = FakeBroker::start(1, |(_, ids)| {
        let closes = ids.len() == 2 && !CLOSED.swap(true, Ordering::Relaxed);
        (!closes).then_some(0)
    });
    let mut engine = broker.engine(None);
    assert_eq!(broker.deliver(&mut engine, &batch(&[1])), Ok(()));
    assert_eq!(broker.deliver(&mut engine, &batch(&[1, 1])), Ok(()));
    assert_eq!(broker.asked().len(), 3);
}

#[test]
fn a_login_succeeds_or_says_why_not() {
    let broker = FakeBroker::start(1, |_| Some(0));
    let deliver = |password, mechanism| {
        let mut engine = broker.engine(Some((password, mechanism)));
        broker.deliver(&mut engine, &batch(&[1]))
    };
    assert_eq!(deliver("hush", KafkaMechanism::Plain), Ok(()));
    let at = format!("broker {}: login with ", broker.address);
    assert_eq!(
        deliver("wrong-one", KafkaMechanism::Plain),
        Err(format!("{at}PLAIN: SaslAuthenticationFailed: no such user"))
    );
    assert_eq!(
        deliver("hush", KafkaMechanism::ScramSha512),
        Err(format!("{at}SCRAM-SHA-512: UnsupportedSaslMechanism; offered: PLAIN, GSSAPI"))
    );
}

/// Why an engine fails whose broker answers the first request with these bytes.
fn failure_after(answer: &'static [u8]) -> String {
    let broker = FakeBroker::start(1, |_| Some(0));
    let listener = broker.runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    broker.runtime.spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.write_all(answer).await.expect("the client waits");
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let other = KafkaBroker { host: "127.0.0.1".into(), port };
    let cluster = KafkaCluster { brokers: [other].into(), tls: None, login: None };
    let mut engine = KafkaEngine::new(Kafka { cluster, topic: "t".into() });
    broker.deliver(&mut engine, &batch(&[1])).expect_err("no answer of Kafka")
}

#[test]
fn what_is_no_broker_or_says_too_much_is_refused_before_memory_is_taken() {
    let why = failure_after(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert!(why.ends_with("the broker has sent no answer of Kafka, or a very long one"), "{why}");
    // The number of the request, a time, and 2,147,483,647 brokers.
    let why = failure_after(b"\0\0\0\x0c\0\0\0\0\0\0\0\0\x7f\xff\xff\xff");
    assert!(why.ends_with("the answer of the broker is not whole"), "{why}");
}
