//! Sinks to a real NATS server, which is killed, restarted, full, and given wrong credentials. Skipped with a word
//! where `nats-server` is not on the path.

#![forbid(unsafe_code)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use async_nats::ConnectOptions;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use futures_util::StreamExt;
use serde_json::{Value, json};
use support::{Engine, Server, Socket, sample, until, with_orders};
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

fn metric(server: &Server, name: &str) -> u64 {
    sample(server, &format!("sink_{name}{{sink=\"s\"}}"))
}

fn send(devices: &mut [Socket], numbers: std::ops::Range<u64>) {
    for number in numbers {
        devices.iter_mut().for_each(|device| device.send_text(&number.to_string()));
    }
}

fn assert_complete(stored: &BTreeMap<String, Vec<u64>>, devices: usize, count: u64) {
    let all: Vec<u64> = (0..count).collect();
    assert_eq!(stored.len(), devices);
    assert!(stored.values().all(|numbers| *numbers == all), "{stored:?}");
}

#[test]
fn every_event_is_stored_once_and_in_order_though_the_server_is_killed_and_restarted() {
    let Some(mut nats) = Nats::start() else { return };
    nats.stream(orders());
    let server = server(&nats.url("hush"));
    let mut devices: Vec<Socket> = (0..10).map(|_| server.device("/in")).collect();
    send(&mut devices, 0..100);
    until(|| metric(&server, "delivered_total") > 0);
    nats.engine.kill();
    nats.engine.revive();
    send(&mut devices, 100..200);
    until(|| metric(&server, "lag_events") == 0);
    let stored = nats.stored(&nats.stream(orders()), 2000);
    assert_complete(&stored, 10, 200);
}

#[test]
fn wrong_credentials_cost_nothing_but_backlog_and_are_named_without_the_password() {
    let Some(nats) = Nats::start() else { return };
    nats.stream(orders());
    let mut server = server(&nats.url("wrong-one"));
    let mut devices = [server.device("/in")];
    send(&mut devices, 0..3);
    server.logs("authorization");
    until(|| metric(&server, "up") == 0 && metric(&server, "lag_events") == 3);
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
    send(&mut devices, 0..4);
    server.logs("maximum messages exceeded");
    nats.runtime.block_on(async { stream.purge().await.expect("it is emptied") });
    // Doubles of the first two are dropped by their ids.
    until(|| metric(&server, "lag_events") == 0);
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
    until(|| metric(&server, "delivered_total") == 2);
    nats.runtime.block_on(async {
        for subject in ["orders.room%2E7", "orders.-"] {
            stream.get_last_raw_message_by_subject(subject).await.expect("a message");
        }
    });
}
