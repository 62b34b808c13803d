//! Sinks to and sources on a real Redis server, which is killed, restarted, full, slow, a replica, and given wrong credentials.
//! Skipped with a word where `redis-server` is not on the path.

#![forbid(unsafe_code)]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Command;

use redis::{Commands, Connection, Value as Answer, cmd};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    Engine, Server, Socket, assert_complete, sample, send_numbers, sink_sample, until, with_orders,
};

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

#[test]
fn every_event_is_stored_in_order_though_the_server_is_killed_and_restarted() {
    let Some(mut redis) = Engine::start(serve) else { return };
    connect(&redis);
    let server = server(&redis, "hush", "stream = \"orders\"");
    let mut devices: Vec<Socket> = (0..10).map(|_| server.device("/in")).collect();
    send_numbers(&mut devices, 0..100);
    until(|| sink_sample(&server, "delivered_total") > 0);
    redis.kill();
    send_numbers(&mut devices, 100..200);
    until(|| sink_sample(&server, "up") == 0 && sink_sample(&server, "lag_events") > 0);
    redis.revive();
    until(|| sink_sample(&server, "lag_events") == 0);
    assert_eq!(sink_sample(&server, "up"), 1);
    assert_complete(&stored(&mut connect(&redis), "orders"), 10, 200);
}

#[test]
fn a_wrong_password_costs_nothing_but_backlog_and_is_named_without_being_shown() {
    let Some(redis) = Engine::start(serve) else { return };
    connect(&redis);
    let mut server = server(&redis, "wrong-one", "stream = \"orders\"");
    let mut devices = [server.device("/in")];
    send_numbers(&mut devices, 0..3);
    server.logs("Password authentication failed");
    until(|| sink_sample(&server, "up") == 0 && sink_sample(&server, "lag_events") == 3);
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
    send_numbers(&mut devices, 0..3);
    server.logs("command not allowed when used memory > 'maxmemory'");
    until(|| sink_sample(&server, "lag_events") == 6);
    tell(&mut connection, "CONFIG SET maxmemory 0");
    until(|| sink_sample(&server, "lag_events") == 0);
    tell(&mut connection, "REPLICAOF 127.0.0.1 1");
    send_numbers(&mut devices, 3..6);
    server.logs("against a read only replica");
    tell(&mut connection, "REPLICAOF NO ONE");
    until(|| sink_sample(&server, "lag_events") == 0);
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
    send_numbers(&mut devices, 0..1);
    until(|| sink_sample(&server, "delivered_total") == 1);
    redis.signal(Signal::STOP);
    send_numbers(&mut devices, 1..50);
    until(|| sink_sample(&server, "lag_events") == 49);
    server.backend().done("mesh.publish", &json!({"c": "news", "d": "x"}));
    redis.signal(Signal::CONT);
    until(|| sink_sample(&server, "lag_events") == 0);
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
    send_numbers(&mut devices, 0..100);
    let mut backend = server.backend();
    backend.done("queue.push", &json!({"t": "orders", "d": "x", "k": "room 7"}));
    backend.done("queue.push", &json!({"t": "orders", "d": "x"}));
    until(|| sink_sample(&server, "delivered_total") == 202);
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
    send_numbers(&mut [server.device("/in")], 0..1);
    server.logs("WRONGTYPE");
    let deleted: Answer = connection.del("orders").expect("it is there");
    assert_eq!(deleted, Answer::Int(1));
    until(|| sink_sample(&server, "lag_events") == 0);
    assert_complete(&stored(&mut connection, "orders"), 1, 1);
}

#[test]
fn an_entry_that_is_refused_has_no_other_one_stored_twice() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    tell(&mut connection, "SET in:8 text");
    let server = server(&redis, "hush", "stream = \"in:{client}\"");
    let mut backend = server.backend();
    // Meanwhile events gather for batches of several clients.
    redis.signal(Signal::STOP);
    for key in 0..10 {
        backend.done("queue.push", &json!({"t": "orders", "d": "x", "k": key.to_string()}));
    }
    redis.signal(Signal::CONT);
    until(|| sink_sample(&server, "retries_total") >= 3);
    let _: Answer = connection.del("in:8").expect("it is there");
    until(|| sink_sample(&server, "lag_events") == 0);
    for key in 0..10 {
        assert_eq!(entries(&mut connection, &format!("in:{key}")).len(), 1, "{key}");
    }
}

/// A server with a source on the stream `calls`.
fn server_with_source(redis: &Engine, password: &str, sections: &str) -> Server {
    let url = url(redis, password);
    let server = Server::start(&with_orders(&format!(
        "[[source]]\nname = \"s\"\nredis = {{ url = \"{url}\", stream = \"calls\" }}\n{sections}"
    )));
    until(|| server.get("/metrics").body.contains("gridcast_source_up{"));
    server
}

fn source_metric(server: &Server, name: &str) -> u64 {
    sample(server, &format!("source_{name}{{source=\"s\"}}"))
}

/// Adds an entry to the stream `calls`; returns its id.
fn add(connection: &mut Connection, call: &str) -> String {
    let id = cmd("XADD").arg(&["calls", "*", "by", "a test", "data", call]).query(connection);
    id.expect("it is added")
}

fn push(number: u64) -> String {
    json!({"m": "queue.push", "p": {"t": "orders", "d": number.to_string(), "k": "k"}}).to_string()
}

/// The entries that nobody has acknowledged.
fn pending(connection: &mut Connection) -> u64 {
    let summary = cmd("XPENDING").arg(&["calls", "gridcast"]).query::<Vec<Answer>>(connection);
    match summary.expect("there is a group")[0] {
        Answer::Int(count) => count as u64,
        ref other => panic!("{other:?}"),
    }
}

/// Reads pushed events until the one with the last number has come. Doubles count once.
fn pushed(consumer: &mut Socket, last: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&last) {
        let event = consumer.event();
        let number =
            event["d"]["data"].as_str().expect("a pushed event").parse().expect("a number");
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    numbers
}

#[test]
fn every_call_of_a_source_is_carried_out_in_order_though_the_server_is_killed_and_restarted() {
    let Some(mut redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    let server = server_with_source(&redis, "hush", "");
    let mut consumer = server.consumer("orders");
    (0..300).for_each(|number| drop(add(&mut connection, &push(number))));
    until(|| source_metric(&server, "calls_total") > 0);
    redis.kill();
    until(|| source_metric(&server, "up") == 0);
    redis.revive();
    let mut connection = connect(&redis);
    (300..400).for_each(|number| drop(add(&mut connection, &push(number))));
    assert_eq!(pushed(&mut consumer, 399), (0..400).collect::<Vec<u64>>());
    until(|| pending(&mut connection) == 0 && source_metric(&server, "in_flight") == 0);
    assert_eq!(source_metric(&server, "up"), 1);
}

#[test]
fn calls_reach_devices_and_what_is_no_call_or_fails_is_acknowledged_and_counted() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    let mut server = server_with_source(&redis, "hush", "");
    let mut device = server.device("/in?channels=news");
    add(&mut connection, "no call");
    add(&mut connection, r#"{"m":"node.list"}"#);
    cmd("XADD").arg(&["calls", "*", "other", "field"]).exec(&mut connection).expect("it is added");
    add(&mut connection, r#"{"m":"mesh.send","p":{"c":"1","d":"x"}}"#);
    add(&mut connection, r#"{"m":"mesh.publish","p":{"c":"news","d":"first"}}"#);
    add(&mut connection, r#"{"m":"mesh.publish","p":{"c":"news","d":"second"}}"#);
    assert_eq!([device.text(), device.text()], ["first", "second"]);
    until(|| source_metric(&server, "in_flight") == 0);
    let count = |name| source_metric(&server, name);
    assert_eq!((count("messages_total"), count("calls_total")), (6, 2));
    assert_eq!((count("wrong_messages_total"), count("failed_calls_total")), (3, 1));
    assert_eq!(pending(&mut connection), 0);
    server.logs("is dropped: ");
}

#[test]
fn what_an_earlier_run_and_other_consumers_have_left_is_carried_out() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    let ids: Vec<String> = (0..3).map(|number| add(&mut connection, &push(number))).collect();
    tell(&mut connection, "XGROUP CREATE calls gridcast 0");
    // The earlier run of this node, a consumer that has gone, and one that holds its entry.
    for consumer in ["node-1", "gone", "busy"] {
        let read = format!("XREADGROUP GROUP gridcast {consumer} COUNT 1 STREAMS calls >");
        tell(&mut connection, &read);
    }
    tell(&mut connection, &format!("XCLAIM calls gridcast gone 0 {} IDLE 3600000", ids[1]));
    let server = server_with_source(&redis, "hush", "");
    let mut consumer = server.consumer("orders");
    add(&mut connection, &push(3));
    assert_eq!(pushed(&mut consumer, 3), [0, 1, 3]);
    // The metric may be of the time before the last message. The third entry is still held.
    until(|| pending(&mut connection) == 1 && source_metric(&server, "in_flight") == 0);
}

#[test]
fn a_full_topic_delays_a_source_and_loses_nothing() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    let topic = "[[topic]]\nname = \"orders\"\nmessages = 2\n";
    let mut server = server_with_source(&redis, "hush", topic);
    (0..6).for_each(|number| drop(add(&mut connection, &push(number))));
    server.logs("the topic is full; the call is repeated until there is room");
    assert!(pending(&mut connection) > 0);
    let mut consumer = server.consumer("orders");
    assert_eq!(pushed(&mut consumer, 5), (0..6).collect::<Vec<u64>>());
    until(|| pending(&mut connection) == 0 && source_metric(&server, "in_flight") == 0);
}

#[test]
fn a_source_with_a_wrong_password_says_so_without_showing_it_and_a_reload_mends_it() {
    let Some(redis) = Engine::start(serve) else { return };
    let mut connection = connect(&redis);
    let mut server = server_with_source(&redis, "wrong-one", "");
    server.logs("Password authentication failed");
    until(|| source_metric(&server, "up") == 0);
    add(&mut connection, &push(0));
    let right = url(&redis, "hush");
    server.reload(&with_orders(&format!(
        "[[source]]\nname = \"s\"\nredis = {{ url = \"{right}\", stream = \"calls\" }}\n"
    )));
    assert_eq!(pushed(&mut server.consumer("orders"), 0), [0]);
    until(|| source_metric(&server, "up") == 1);
    server.reload(&with_orders(""));
    until(|| !server.get("/metrics").body.contains("gridcast_source_up{"));
    server.interrupt();
    server.kill();
    let (_, lines) = server.finish();
    assert!(!lines.iter().any(|line| line.contains("wrong-one")), "{lines:?}");
}
