//! Sinks to and sources on a real NATS server, which is killed, restarted, full, and given wrong credentials. Skipped with a word
//! where `nats-server` is not on the path.

#![forbid(unsafe_code)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use async_nats::ConnectOptions;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use futures_util::StreamExt;
use serde_json::{Value, json};
use support::{
    Engine, Server, Socket, assert_complete, sample, send_numbers, sink_sample, until, with_orders,
};
use tokio::runtime::{Builder, Runtime};

/// A NATS server with a user and JetStream, whose store outlives its process.
struct Nats {
    engine: Engine,
    runtime: Runtime,
}

impl Nats {
    fn start() -> Option<Self> {
        let engine = Engine::start(serve)?;
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Some(Self { engine, runtime })
    }

    fn url(&self, password: &str) -> String {
        format!("nats://app:{password}@127.0.0.1:{}", self.engine.port)
    }

    fn stream(&self, config: Config) -> Stream {
        self.runtime.block_on(async {
            let options = ConnectOptions::with_user_and_password("app".into(), "hush".into());
            let client = options.connect(format!("127.0.0.1:{}", self.engine.port)).await;
            let context = async_nats::jetstream::new(client.expect("it listens"));
            context.get_or_create_stream(config).await.expect("a stream")
        })
    }

    /// Reads the whole stream: the numbers of each client in their order.
    fn stored(&self, stream: &Stream, count: usize) -> BTreeMap<String, Vec<u64>> {
        self.runtime.block_on(async {
            let config = pull::Config { ack_policy: AckPolicy::None, ..Default::default() };
            let consumer = stream.create_consumer(config).await.expect("a consumer");
            let mut messages = consumer.messages().await.expect("messages").take(count);
            let mut stored: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            while let Some(message) = messages.next().await {
                let message = message.expect("a message");
                let event: Value = serde_json::from_slice(&message.payload).expect("an event");
                let data = event["d"]["frame"]["data"].as_str().expect("a message");
                let client = event["c"].as_str().expect("a client").to_owned();
                assert_eq!(message.subject.as_str(), format!("orders.{client}"));
                assert!(
                    message.headers.as_ref().is_some_and(|all| all.get("Nats-Msg-Id").is_some())
                );
                stored.entry(client).or_default().push(data.parse().expect("a number"));
            }
            stored
        })
    }
}

fn serve(port: u16, folder: &Path) -> Command {
    let mut command = Command::new("nats-server");
    command.args(["-a", "127.0.0.1", "--user", "app", "--pass", "hush", "-js", "-p"]);
    command.arg(port.to_string()).arg("-sd").arg(folder);
    command
}

fn orders() -> Config {
    Config { name: "ORDERS".into(), subjects: vec!["orders.*".into()], ..Default::default() }
}

fn server(url: &str) -> Server {
    Server::start(&with_orders(&format!(
        "[[sink]]\nname = \"s\"\ntopic = \"orders\"\n\
         nats = {{ servers = [\"{url}\"], subject = \"orders.{{client}}\" }}\n"
    )))
}

#[test]
fn every_event_is_stored_once_and_in_order_though_the_server_is_killed_and_restarted() {
    let Some(mut nats) = Nats::start() else { return };
    nats.stream(orders());
    let server = server(&nats.url("hush"));
    let mut devices: Vec<Socket> = (0..10).map(|_| server.device("/in")).collect();
    send_numbers(&mut devices, 0..100);
    until(|| sink_sample(&server, "delivered_total") > 0);
    nats.engine.kill();
    nats.engine.revive();
    send_numbers(&mut devices, 100..200);
    until(|| sink_sample(&server, "lag_events") == 0);
    let stored = nats.stored(&nats.stream(orders()), 2000);
    assert_complete(&stored, 10, 200);
}

#[test]
fn wrong_credentials_cost_nothing_but_backlog_and_are_named_without_the_password() {
    let Some(nats) = Nats::start() else { return };
    nats.stream(orders());
    let mut server = server(&nats.url("wrong-one"));
    let mut devices = [server.device("/in")];
    send_numbers(&mut devices, 0..3);
    server.logs("authorization");
    until(|| sink_sample(&server, "up") == 0 && sink_sample(&server, "lag_events") == 3);
    server.interrupt();
    server.kill();
    let (_, lines) = server.finish();
    assert!(!lines.iter().any(|line| line.contains("wrong-one")), "{lines:?}");
}

#[test]
fn a_full_stream_holds_the_events_back_until_it_has_room() {
    let Some(nats) = Nats::start() else { return };
    let full = Config { max_messages: 2, discard: DiscardPolicy::New, ..orders() };
    let stream = nats.stream(full);
    let mut server = server(&nats.url("hush"));
    let mut devices = [server.device("/in")];
    send_numbers(&mut devices, 0..4);
    server.logs("maximum messages exceeded");
    nats.runtime.block_on(async { stream.purge().await.expect("it is emptied") });
    // Doubles of the first two are dropped by their ids.
    until(|| sink_sample(&server, "lag_events") == 0);
    let stored = nats.stored(&stream, 2);
    assert_eq!(stored.into_values().next(), Some(vec![2, 3]));
}

#[test]
fn the_subject_of_a_pushed_event_has_its_key() {
    let Some(nats) = Nats::start() else { return };
    let stream = nats.stream(orders());
    let server = server(&nats.url("hush"));
    let mut backend = server.backend();
    for key in [json!("room.7"), Value::Null] {
        let mut push = json!({"t": "orders", "d": "x", "k": key});
        push.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
        backend.done("queue.push", &push);
    }
    until(|| sink_sample(&server, "delivered_total") == 2);
    nats.runtime.block_on(async {
        for subject in ["orders.room%2E7", "orders.-"] {
            stream.get_last_raw_message_by_subject(subject).await.expect("a message");
        }
    });
}

fn server_with_source(nats: &Nats, password: &str) -> Server {
    let url = nats.url(password);
    let server = Server::start(&with_orders(&format!(
        "[[source]]\nname = \"s\"\nnats = {{ servers = [\"{url}\"], stream = \"CALLS\" }}\n"
    )));
    until(|| server.get("/metrics").body.contains("gridcast_source_up{"));
    server
}

fn source_metric(server: &Server, name: &str) -> u64 {
    sample(server, &format!("source_{name}{{source=\"s\"}}"))
}

impl Nats {
    /// Stores calls in the stream `CALLS`, which is made where it is missing.
    fn store(&self, calls: impl IntoIterator<Item = String>) -> Stream {
        let calls_config =
            Config { name: "CALLS".into(), subjects: vec!["calls".into()], ..Default::default() };
        let stream = self.stream(calls_config);
        self.runtime.block_on(async {
            let options = ConnectOptions::with_user_and_password("app".into(), "hush".into());
            let client = options.connect(format!("127.0.0.1:{}", self.engine.port)).await;
            let context = async_nats::jetstream::new(client.expect("it listens"));
            for call in calls {
                let stored = context.publish("calls", call.into()).await.expect("it is sent");
                stored.await.expect("it is stored");
            }
        });
        stream
    }

    /// The messages that the consumer `gridcast` has been given and not acknowledged, and those that it has not been
    /// given.
    fn left(&self, stream: &Stream) -> (usize, u64) {
        self.runtime.block_on(async {
            let consumer = stream.get_consumer::<pull::Config>("gridcast").await;
            let info = consumer.expect("it was made").get_info().await.expect("its state");
            (info.num_ack_pending, info.num_pending)
        })
    }
}

fn push(number: u64) -> String {
    json!({"m": "queue.push", "p": {"t": "orders", "d": number.to_string(), "k": "k"}}).to_string()
}

/// Reads pushed events until so many different ones have come.
fn pushed(consumer: &mut Socket, count: usize) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    while numbers.len() < count {
        let event = consumer.event();
        let number = event["d"]["data"].as_str().expect("a pushed event");
        numbers.insert(number.parse().expect("a number"));
    }
    numbers
}

#[test]
fn every_call_of_a_source_is_carried_out_though_the_server_is_killed_and_restarted() {
    let Some(mut nats) = Nats::start() else { return };
    let stream = nats.store([]);
    // Made before, so that what is lost with a connection comes again soon.
    nats.runtime.block_on(async {
        let config = pull::Config {
            durable_name: Some("gridcast".into()),
            ack_wait: std::time::Duration::from_secs(1),
            ..Default::default()
        };
        stream.create_consumer(config).await.expect("a consumer");
    });
    let server = server_with_source(&nats, "hush");
    let mut consumer = server.consumer("orders");
    nats.store((0..200).map(push));
    until(|| source_metric(&server, "calls_total") > 0);
    nats.engine.kill();
    until(|| source_metric(&server, "up") == 0);
    nats.engine.revive();
    let stream = nats.store((200..300).map(push));
    assert_eq!(pushed(&mut consumer, 300), (0..300).collect::<BTreeSet<u64>>());
    until(|| source_metric(&server, "in_flight") == 0 && nats.left(&stream) == (0, 0));
    assert_eq!(source_metric(&server, "up"), 1);
}

#[test]
fn calls_reach_devices_and_what_is_no_call_or_fails_is_acknowledged_and_counted() {
    let Some(nats) = Nats::start() else { return };
    let mut server = server_with_source(&nats, "hush");
    // The stream is missing.
    server.logs("stream not found");
    let mut device = server.device("/in?channels=news");
    let stream = nats.store([
        "no call".to_owned(),
        String::new(),
        r#"{"m":"mesh.send","p":{"c":"1","d":"x"}}"#.to_owned(),
        r#"{"m":"mesh.publish","p":{"c":"news","d":"first"}}"#.to_owned(),
        r#"{"m":"mesh.publish","p":{"c":"news","d":"second"}}"#.to_owned(),
    ]);
    assert_eq!([device.text(), device.text()], ["first", "second"]);
    until(|| source_metric(&server, "in_flight") == 0);
    let count = |name| source_metric(&server, name);
    assert_eq!((count("messages_total"), count("calls_total")), (5, 2));
    assert_eq!((count("wrong_messages_total"), count("failed_calls_total")), (2, 1));
    until(|| nats.left(&stream) == (0, 0));
}

#[test]
fn a_source_with_wrong_credentials_says_so_without_showing_them() {
    let Some(nats) = Nats::start() else { return };
    let mut server = server_with_source(&nats, "wrong-one");
    server.logs("authorization");
    until(|| source_metric(&server, "up") == 0);
    server.interrupt();
    server.kill();
    let (_, lines) = server.finish();
    assert!(!lines.iter().any(|line| line.contains("wrong-one")), "{lines:?}");
}
