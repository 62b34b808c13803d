//! Sinks to a real broker that speaks the protocol of Kafka (Tansu), which is killed, stopped, cut off, and given wrong
//! credentials. Skipped with a word where `tansu` is not on the path.

#![forbid(unsafe_code)]

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rskafka::client::partition::{OffsetAt, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::Record;
use rustix::process::Signal;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::{Value, json};
use support::{
    Engine, Server, Socket, assert_complete, send_numbers, sink_sample, until, with_orders,
};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// The partitions of the topics of the tests.
const PARTITIONS: i32 = 3;

/// The most bytes that are read from a partition at a time.
const FETCH_BYTES: i32 = 1 << 20;

/// A broker that stores in memory, and a client of it.
struct Kafka {
    engine: Engine,
    runtime: Runtime,
    client: Client,
}

impl Kafka {
    /// Starts a broker with the topic `orders`.
    fn start() -> Option<Self> {
        let engine = Engine::start(|port, _: &Path| serve(port, port))?;
        let port = engine.port;
        Some(Self::over(engine, port, None))
    }

    /// Starts a broker that its clients reach over a way alone.
    fn behind(way: &Way, tls: Option<ClientConfig>) -> Option<Self> {
        let port = way.port;
        let engine = Engine::start(move |own, _: &Path| serve(own, port))?;
        way.to.store(engine.port, Ordering::Relaxed);
        Some(Self::over(engine, port, tls))
    }

    fn over(engine: Engine, port: u16, tls: Option<ClientConfig>) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = connect(&runtime, port, tls);
        let kafka = Self { engine, runtime, client };
        kafka.create("orders");
        kafka
    }

    fn create(&self, topic: &str) {
        let created = async {
            let controller = self.client.controller_client().expect("a controller");
            controller.create_topic(topic, PARTITIONS, 1, 5_000).await
        };
        self.runtime.block_on(created).expect("a topic");
    }

    /// Starts the broker again after it was killed. It has forgotten everything.
    fn revive(&mut self) {
        self.engine.revive();
        self.client = connect(&self.runtime, self.engine.port, None);
        self.create("orders");
    }

    /// The records of each partition of the topic `orders`.
    fn records(&self) -> Vec<Vec<Record>> {
        let read = async |partition| {
            let topic = ("orders", partition, UnknownTopicHandling::Error);
            let partition = self.client.partition_client(topic.0, topic.1, topic.2).await;
            let partition = partition.expect("a partition");
            let count = partition.get_offset(OffsetAt::Latest).await.expect("an offset");
            let mut records = Vec::new();
            while (records.len() as i64) < count {
                let next = records.len() as i64;
                let fetched = partition.fetch_records(next, 1..FETCH_BYTES, 1_000).await;
                records.extend(fetched.expect("records").0.into_iter().map(|one| one.record));
            }
            records
        };
        self.runtime.block_on(async {
            let mut all = Vec::new();
            for partition in 0..PARTITIONS {
                all.push(read(partition).await);
            }
            all
        })
    }

    /// The numbers of each client in their order, without doubles of the same id.
    fn stored(&self) -> BTreeMap<String, Vec<u64>> {
        let (mut seen, mut partitions) = (HashSet::new(), HashMap::new());
        let mut stored: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (partition, records) in self.records().into_iter().enumerate() {
            for record in records {
                let client = String::from_utf8(record.key.expect("a key")).expect("a client");
                let event: Value =
                    serde_json::from_slice(&record.value.expect("a value")).expect("an event");
                assert_eq!(event["c"], client);
                assert_eq!(*partitions.entry(client.clone()).or_insert(partition), partition);
                let number = event["d"]["frame"]["data"].as_str().expect("a message");
                if seen.insert(record.headers["id"].clone()) {
                    stored.entry(client).or_default().push(number.parse().expect("a number"));
                }
            }
        }
        stored
    }
}

fn serve(port: u16, advertised: u16) -> Command {
    let mut command = Command::new("tansu");
    command.args(["broker", "--storage-engine", "memory://tansu/", "--listener-url"]);
    command.arg(format!("tcp://127.0.0.1:{port}"));
    command.arg("--advertised-listener-url").arg(format!("tcp://127.0.0.1:{advertised}"));
    command
}

fn connect(runtime: &Runtime, port: u16, tls: Option<ClientConfig>) -> Client {
    let mut client = ClientBuilder::new(vec![format!("127.0.0.1:{port}")]);
    if let Some(tls) = tls {
        client = client.tls_config(Arc::new(tls));
    }
    runtime.block_on(client.build()).expect("it listens")
}

fn server(port: u16, keys: &str) -> Server {
    Server::start(&with_orders(&format!(
        "[[sink]]\nname = \"s\"\ntopic = \"orders\"\n\
         kafka = {{ brokers = [\"127.0.0.1:{port}\"], topic = \"orders\"{keys} }}\n"
    )))
}

/// A way to a broker whose connections can be cut, over TLS or not.
struct Way {
    port: u16,
    to: Arc<AtomicU16>,
    cut: Arc<Notify>,
}

impl Way {
    /// A way that leads nowhere yet.
    fn new(tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("it is a socket");
        let port = listener.local_addr().expect("it is bound").port();
        let way = Self { port, to: Arc::default(), cut: Arc::default() };
        let (to, cut) = (way.to.clone(), way.cut.clone());
        let tls = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
                while let Ok((near, _)) = listener.accept().await {
                    let far = TcpStream::connect(("127.0.0.1", to.load(Ordering::Relaxed)));
                    let Ok(far) = far.await else { continue };
                    tokio::spawn(carry(near, far, tls.clone(), cut.clone()));
                }
            });
        });
        way
    }
}

/// Carries bytes until a side ends or the way is cut.
async fn carry(near: TcpStream, mut far: TcpStream, tls: Option<TlsAcceptor>, cut: Arc<Notify>) {
    let carried = async {
        match tls {
            Some(tls) => copy_bidirectional(&mut tls.accept(near).await?, &mut far).await,
            None => copy_bidirectional(&mut { near }, &mut far).await,
        }
    };
    tokio::select! {
        _ = carried => {}
        () = cut.notified() => {}
    }
}

#[test]
fn every_event_is_stored_in_order_though_connections_break_and_the_broker_stands_still() {
    let way = Way::new(None);
    let Some(kafka) = Kafka::behind(&way, None) else { return };
    let server = server(way.port, "");
    let mut devices: Vec<Socket> = (0..10).map(|_| server.device("/in")).collect();
    for round in 0..10 {
        send_numbers(&mut devices, round * 20..(round + 1) * 20);
        until(|| sink_sample(&server, "delivered_total") > round * 100);
        way.cut.notify_waiters();
    }
    kafka.engine.signal(Signal::STOP);
    send_numbers(&mut devices, 200..250);
    until(|| sink_sample(&server, "lag_events") >= 500);
    server.backend().done("mesh.publish", &json!({"c": "news", "d": "x"}));
    kafka.engine.signal(Signal::CONT);
    until(|| sink_sample(&server, "lag_events") == 0);
    assert_eq!(sink_sample(&server, "up"), 1);
    assert_complete(&kafka.stored(), 10, 250);
}

#[test]
fn a_broker_that_was_killed_gets_what_it_has_not_acknowledged() {
    let Some(mut kafka) = Kafka::start() else { return };
    let server = server(kafka.engine.port, "");
    let mut devices: Vec<Socket> = (0..3).map(|_| server.device("/in")).collect();
    send_numbers(&mut devices, 0..50);
    until(|| sink_sample(&server, "delivered_total") == 150);
    assert_complete(&kafka.stored(), 3, 50);
    kafka.engine.kill();
    send_numbers(&mut devices, 50..100);
    until(|| sink_sample(&server, "up") == 0 && sink_sample(&server, "lag_events") == 150);
    kafka.revive();
    until(|| sink_sample(&server, "lag_events") == 0);
    let stored = kafka.stored();
    assert!(stored.values().all(|numbers| *numbers == (50..100).collect::<Vec<u64>>()));
    assert_eq!(stored.len(), 3);
}

#[test]
fn a_topic_that_is_missing_is_named_and_holds_the_events_back() {
    let Some(kafka) = Kafka::start() else { return };
    let mut server = Server::start(&with_orders(&format!(
        "[[sink]]\nname = \"s\"\ntopic = \"orders\"\n\
         kafka = {{ brokers = [\"127.0.0.1:1\", \"127.0.0.1:{}\"], topic = \"later\" }}\n",
        kafka.engine.port
    )));
    send_numbers(&mut [server.device("/in")], 0..3);
    server.logs("topic \"later\": UnknownTopicOrPartition");
    until(|| sink_sample(&server, "up") == 0 && sink_sample(&server, "lag_events") == 3);
    kafka.create("later");
    until(|| sink_sample(&server, "lag_events") == 0);
}

#[test]
fn pushed_events_have_their_key_and_those_without_one_are_spread() {
    let Some(kafka) = Kafka::start() else { return };
    let server = server(kafka.engine.port, "");
    let mut backend = server.backend();
    for number in 0..30 {
        backend.done("queue.push", &json!({"t": "orders", "d": number.to_string(), "k": "a b"}));
        backend.done("queue.push", &json!({"t": "orders", "d": "x"}));
    }
    until(|| sink_sample(&server, "delivered_total") == 60);
    let mut numbers = Vec::new();
    let mut without_key = Vec::new();
    for records in kafka.records() {
        without_key.push(records.iter().filter(|record| record.key.is_none()).count());
        let with_key = records.into_iter().filter(|record| record.key == Some(b"a b".to_vec()));
        for record in with_key {
            let event = serde_json::from_slice::<Value>(&record.value.expect("a value"));
            numbers.push(event.expect("an event")["d"]["data"].as_str().map(str::to_owned));
            assert!(record.timestamp.timestamp_millis() > 1_700_000_000_000);
        }
    }
    assert_eq!(numbers, (0..30).map(|number| Some(number.to_string())).collect::<Vec<_>>());
    assert!(without_key.iter().all(|count| *count > 0), "{without_key:?}");
    assert_eq!(without_key.iter().sum::<usize>(), 30);
}

/// A certificate for `127.0.0.1`: the settings of a server that has it and of a client that trusts it, and the PEM.
fn certificate() -> (ServerConfig, ClientConfig, String) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has both")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("the key is that of the certificate");
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("it is a certificate");
    let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has both")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, client, cert.pem())
}

#[test]
fn connections_are_encrypted_and_a_broker_that_nobody_vouches_for_gets_nothing() {
    let (server_side, client_side, pem) = certificate();
    let way = Way::new(Some(server_side));
    let Some(kafka) = Kafka::behind(&way, Some(client_side)) else { return };
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kafka-{}.pem", way.port));
    fs::write(&file, pem).expect("the folder is there");
    let mut server = server(way.port, ", tls = true");
    send_numbers(&mut [server.device("/in")], 0..3);
    server.logs("invalid peer certificate: ");
    until(|| sink_sample(&server, "lag_events") == 3);
    let trusted = format!(
        "[[sink]]\nname = \"s\"\ntopic = \"orders\"\nkafka = {{ brokers = [\"127.0.0.1:{}\"], \
         topic = \"orders\", tls = true, ca = {file:?} }}\n",
        way.port
    );
    server.reload(&with_orders(&trusted));
    until(|| sink_sample(&server, "lag_events") == 0);
    assert_complete(&kafka.stored(), 1, 3);
    fs::remove_file(file).expect("it was written");
}

#[test]
fn wrong_credentials_cost_nothing_but_backlog_and_are_named_without_the_password() {
    let serve = |port, _: &Path| {
        let mut command = serve(port, port);
        command.arg("--authentication");
        command
    };
    let Some(engine) = Engine::start(serve) else { return };
    let mut server = server(engine.port, ", user = \"app\", password = \"wrong-one\"");
    send_numbers(&mut [server.device("/in")], 0..3);
    server.logs("login with SCRAM-SHA-512: refused: ");
    until(|| sink_sample(&server, "up") == 0 && sink_sample(&server, "lag_events") == 3);
    server.interrupt();
    server.kill();
    let (_, lines) = server.finish();
    assert!(!lines.iter().any(|line| line.contains("wrong-one")), "{lines:?}");
}
