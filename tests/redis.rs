//! Sinks to a real Redis server, which is killed, restarted, full, slow, a replica, and given wrong credentials.
//! Skipped with a word where `redis-server` is not on the path.

#![forbid(unsafe_code)]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Command;

use redis::{Commands, Connection, Value as Answer, cmd};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Engine, Server, Socket, sample, until, with_orders};

fn serve(port: u16, folder: &Path) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--requirepass", "hush", "--save", "", "--port"]);
    command.arg(port.to_string()).arg("--dir").arg(folder);
    // What is answered outlives the process.
    command.args(["--appendonly", "yes", "--appendfsync", "always"]);
    command
}

fn url(redis: &Engine, password: &str) -> String {
    format!("redis://:{password}@127.0.0.1:{}/1", redis.port)
}

/// Waits until the server has loaded what it stored.
fn connect(redis: &Engine) -> Connection {
    let client = redis::Client::open(url(redis, "hush")).expect("a URL");
    let mut connection = None;
    until(|| {
        connection = client.get_connection().ok();
        let ping = |connection: &mut Connection| cmd("PING").query::<String>(connection).is_ok();
        connection.as_mut().is_some_and(ping)
    });
    connection.expect("it is connected")
}

/// Sends a command of words with spaces between them.
fn tell(connection: &mut Connection, command: &str) {
    let mut words = command.split(' ');
    let mut command = cmd(words.next().expect("a word"));
    for word in words {
        command.arg(word);
    }
    command.exec(connection).expect("it is carried out");
}

fn server(redis: &Engine, password: &str, keys: &str) -> Server {
    let url = url(redis, password);
    Server::start(&with_orders(&format!(
        "[[sink]]\nname = \"s\"\ntopic = \"orders\"\nredis = {{ url = \"{url}\", {keys} }}\n"
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

/// The entries of a stream: their fields in order.
fn entries(connection: &mut Connection, stream: &str) -> Vec<Vec<(String, String)>> {
    type Entry = (String, Vec<(String, String)>);
    let range = cmd("XRANGE").arg(stream).arg("-").arg("+").query::<Vec<Entry>>(connection);
    range.expect("a stream").into_iter().map(|(_, fields)| fields).collect()
}

/// The numbers of each client in their order, without doubles of the same id.
fn stored(connection: &mut Connection, stream: &str) -> BTreeMap<String, Vec<u64>> {
    let mut seen = HashSet::new();
    let mut stored: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for fields in entries(connection, stream) {
        let [id, client, data] = &fields[..] else { panic!("{fields:?}") };
        assert_eq!([&id.0, &client.0, &data.0], ["id", "client", "data"]);
        let event: Value = serde_json::from_str(&data.1).expect("an event");
        assert_eq!(event["c"], client.1);
        let number = event["d"]["frame"]["data"].as_str().expect("a message");
        if seen.insert(id.1.clone()) {
            stored.entry(client.1.clone()).or_default().push(number.parse().expect("a number"));
        }
    }
    stored
}

fn assert_complete(stored: &BTreeMap<String, Vec<u64>>, devices: usize, count: u64) {
    let all: Vec<u64> = (0..count).collect();
    assert_eq!(stored.len(), devices);
    assert!(stored.values().all(|numbers| *numbers == all), "{stored:?}");
}

#[test]
fn every_event_is_stored_in_order_though_the_server_is_killed_and_restarted() {
    let Some(mut redis) = Engine::start(serve) else { return };
    connect(&redis);
    let server = server(&redis, "hush", "stream = \"orders\"");
    let mut devices: Vec<Socket> = (0..10).map(|_| server.device("/in")).collect();
    send(&mut devices, 0..100);
    until(|| metric(&server, "delivered_total") > 0);
    redis.kill();
    send(&mut devices, 100..200);
    until(|| metric(&server, "up") == 0 && metric(&server, "lag_events") > 0);
    redis.revive();
    until(|| metric(&server, "lag_events") == 0);
    assert_eq!(metric(&server, "up"), 1);
    assert_complete(&stored(&mut connect(&redis), "orders"), 10, 200);
}

#[test]
fn a_wrong_password_costs_nothing_but_backlog_and_is_named_without_being_shown() {
    let Some(redis) = Engine::start(serve) else { return };
    connect(&redis);
    let mut server = server(&redis, "wrong-one", "stream = \"orders\"");
    let mut devices = [server.device("/in")];
    send(&mut devices, 0..3);
    server.logs("Password authentication failed");
    until(|| metric(&server, "up") == 0 && metric(&server, "lag_events") == 3);
    server.interrupt();
    server.kill();
    let (_, lines) = server.finish();
    assert!(!lines.iter().any(|line| line.contains("wrong-one")), "{lines:?}");
}

#[test]
fn a_server_that_is_full_or_a_replica_holds_the_events_back_until_it_takes_them() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    let mut server = server(&redis, "hush", "stream = \"orders\"");
    let mut devices = [server.device("/in"), server.device("/in")];
    tell(&mut connection, "CONFIG SET maxmemory 1");
    send(&mut devices, 0..3);
    server.logs("command not allowed when used memory > 'maxmemory'");
    until(|| metric(&server, "lag_events") == 6);
    tell(&mut connection, "CONFIG SET maxmemory 0");
    until(|| metric(&server, "lag_events") == 0);
    tell(&mut connection, "REPLICAOF 127.0.0.1 1");
    send(&mut devices, 3..6);
    server.logs("against a read only replica");
    tell(&mut connection, "REPLICAOF NO ONE");
    until(|| metric(&server, "lag_events") == 0);
    // No transaction was carried out in part.
    assert_eq!(entries(&mut connection, "orders").len(), 12);
    assert_complete(&stored(&mut connection, "orders"), 2, 6);
}

#[test]
fn a_server_that_stands_still_delays_its_sink_alone() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    let server = server(&redis, "hush", "stream = \"orders\"");
    let mut devices = [server.device("/in")];
    send(&mut devices, 0..1);
    until(|| metric(&server, "delivered_total") == 1);
    redis.signal(Signal::STOP);
    send(&mut devices, 1..50);
    until(|| metric(&server, "lag_events") == 49);
    server.backend().done("mesh.publish", &json!({"c": "news", "d": "x"}));
    redis.signal(Signal::CONT);
    until(|| metric(&server, "lag_events") == 0);
    assert_complete(&stored(&mut connection, "orders"), 1, 50);
}

#[test]
fn a_stream_of_a_client_has_its_events_alone_and_keeps_about_as_many_as_it_may() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    // Entries are dropped by whole nodes of the stream.
    tell(&mut connection, "CONFIG SET stream-node-max-entries 10");
    let server = server(&redis, "hush", "stream = \"in:{client}\", max_len = 10");
    let mut devices: Vec<Socket> = (0..2).map(|_| server.device("/in")).collect();
    send(&mut devices, 0..100);
    let mut backend = server.backend();
    backend.done("queue.push", &json!({"t": "orders", "d": "x", "k": "room 7"}));
    backend.done("queue.push", &json!({"t": "orders", "d": "x"}));
    until(|| metric(&server, "delivered_total") == 202);
    let mut streams: Vec<String> = connection.keys("in:*").expect("keys");
    streams.sort();
    assert_eq!((streams.len(), &*streams[0]), (4, "in:-"));
    let (_, pushed) = streams.split_last().expect("four");
    assert_eq!(streams[3], "in:room 7");
    for stream in &pushed[1..] {
        let kept = stored(&mut connection, stream);
        let (client, numbers) = kept.first_key_value().expect("a client");
        assert_eq!((kept.len(), stream), (1, &format!("in:{client}")));
        assert!((10..40).contains(&numbers.len()) && numbers.ends_with(&[99]), "{numbers:?}");
    }
    assert_eq!(entries(&mut connection, "in:-")[0][1], ("client".to_owned(), String::new()));
}

#[test]
fn a_key_that_is_no_stream_is_named_and_holds_the_events_back() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    tell(&mut connection, "SET orders text");
    let mut server = server(&redis, "hush", "stream = \"orders\"");
    send(&mut [server.device("/in")], 0..1);
    server.logs("WRONGTYPE");
    let deleted: Answer = connection.del("orders").expect("it is there");
    assert_eq!(deleted, Answer::Int(1));
    until(|| metric(&server, "lag_events") == 0);
    assert_complete(&stored(&mut connection, "orders"), 1, 1);
}
