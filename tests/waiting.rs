//! Events that wait for a full topic are bounded, and none is lost. A shard is a value here.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::collections::BTreeMap;
use std::sync::Arc;

use gridcast::message::ConnectionKey;
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::rate::Rate;
use gridcast::shard::settings::{EdgeSettings, QueueSettings, RouteSettings, Settings};
use gridcast::shard::{Listener, Now, Shard};
use serde_json::Value;
use shard_value::call;

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

const CLIENTS: usize = 40;

/// The length of an inflated message. JSON needs six bytes for each byte of it.
const MESSAGE_BYTES: usize = 64 * 1024;

/// The bytes of encoded events that may wait, the last event included.
const WAITING_BYTES_MAX: usize = (1 << 20) + 6 * MESSAGE_BYTES + 1024;

/// A node of one shard. Its routes feed one small topic.
struct Node {
    shard: Shard,
    now: Now,
    // The output that was written to each connection.
    written: BTreeMap<u32, Vec<u8>>,
}

/// The route `/ws`, which feeds the topic.
fn route() -> RouteSettings {
    RouteSettings {
        topic: Some("t".into()),
        tells_message: true,
        tells_close: true,
        compression: true,
        message_bytes: MESSAGE_BYTES,
        ..shard_value::route()
    }
}

impl Node {
    fn new(when_full: WhenFull) -> Self {
        Self::with_routes(when_full, vec![route()])
    }

    fn with_routes(when_full: WhenFull, routes: Vec<RouteSettings>) -> Self {
        let bounds = Bounds { messages: 1000, bytes: 4 << 20 };
        let mut settings = Settings {
            edges: vec![EdgeSettings {
                proxy: None,
                port: 6790,
                routes: routes.into_iter().map(Arc::new).collect(),
            }],
            queue: QueueSettings {
                bounds,
                when_full,
                topics: 8,
                rules: Arc::default(),
                sinks: Arc::default(),
            },
            ..shard_value::settings()
        };
        settings.limits.outbound_bytes = 4 << 20;
        Self { shard: shard_value::shard(&settings, NOW), now: NOW, written: BTreeMap::new() }
    }

    fn open(&mut self, listener: Listener, path: &str) -> ConnectionKey {
        let remote = ([127, 0, 0, 1], 50_000).into();
        let key = self.shard.handle_accepted(self.now, listener, remote).expect("the node is up");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:6789\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; \
             server_no_context_takeover\r\n\r\n"
        );
        self.receive(key, request.as_bytes());
        self.written.remove(&key.index).expect("the handshake is answered");
        key
    }

    fn receive(&mut self, key: ConnectionKey, bytes: &[u8]) {
        self.shard.handle_bytes(self.now, key, &mut bytes.to_vec());
        self.settle();
    }

    /// Runs turns until nothing is left to do, and writes all output.
    fn settle(&mut self) {
        shard_value::settle(&mut self.shard, self.now, &mut self.written);
    }

    /// Connects a back end that consumes the topic. Returns the `p` of all events that it gets.
    fn consume(&mut self) -> Vec<Value> {
        let backend = self.join();
        self.events(backend)
    }

    /// Connects a back end that consumes the topic.
    fn join(&mut self) -> ConnectionKey {
        let backend = self.open(Listener::Api, "/ws/v1");
        self.receive(backend, &call(r#"{"m":"queue.pop","p":["t"],"i":1}"#));
        backend
    }

    /// Returns the `p` of all events that a consumer got so far.
    fn events(&self, consumer: ConnectionKey) -> Vec<Value> {
        let mut messages = texts(&self.written[&consumer.index]).into_iter();
        assert_eq!(messages.next().unwrap(), r#"{"E":null,"r":{"s":true},"i":1}"#);
        let event = |text: String| -> Value { serde_json::from_str(&text).expect("JSON") };
        messages.map(|text| event(text)["p"].take()).collect()
    }
}

/// Returns the texts of the frames that a server sent.
fn texts(mut bytes: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    while let [0x81, length, rest @ ..] = bytes {
        let (size, length) = match length {
            126 => (2, u16::from_be_bytes([rest[0], rest[1]]).into()),
            127 => (8, u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize),
            &length => (0, length.into()),
        };
        texts.push(String::from_utf8(rest[size..size + length].to_vec()).unwrap());
        bytes = &rest[size + length..];
    }
    assert!(bytes.is_empty(), "all are texts");
    texts
}

/// A compressed message of control characters, in a frame with a mask of zeros: about 85 bytes.
fn bomb(number: usize) -> Vec<u8> {
    let text = format!("{number}{}", "\u{1}".repeat(MESSAGE_BYTES - 1));
    let mut deflated = miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 9);
    // The message ends with an empty stored block, without its last four bytes (RFC 7692, section 7.2.1).
    deflated.push(0);
    assert!(deflated.len() < 126);
    [&[0xC1, 0x80 | deflated.len() as u8, 0, 0, 0, 0], &deflated[..]].concat()
}

/// Connects clients that each send messages; returns their connections.
fn crowd(node: &mut Node) -> Vec<ConnectionKey> {
    let clients: Vec<_> = (0..CLIENTS).map(|_| node.open(Listener::Edge(0), "/ws")).collect();
    let both = [bomb(1), bomb(2)].concat();
    for &client in &clients {
        node.receive(client, &both);
        assert!(
            node.shard.inspect().waiting_bytes() <= WAITING_BYTES_MAX,
            "{}",
            node.shard.inspect().waiting_bytes()
        );
    }
    clients
}

/// Returns, for each client, the first character of each message and then the kind of its last event, in the order
/// of arrival.
fn heard(events: &[Value]) -> BTreeMap<String, String> {
    let mut heard: BTreeMap<String, String> = BTreeMap::new();
    for event in events {
        let client = event["c"].as_str().expect("a client").to_owned();
        let word = match event["d"]["frame"]["data"].as_str() {
            Some(data) => &data[..1],
            None => event["d"]["event"].as_str().expect("an end"),
        };
        heard.entry(client).or_default().push_str(word);
    }
    heard
}

#[test]
fn messages_beyond_a_bound_wait_compressed_and_all_arrive_in_order() {
    for when_full in [WhenFull::Hold, WhenFull::DropOldest] {
        let mut node = Node::new(when_full);
        crowd(&mut node);
        let is_full = node.shard.inspect().waiting_bytes() > 1 << 20;
        assert_eq!(is_full, when_full == WhenFull::Hold);
        let heard = heard(&node.consume());
        assert_eq!(node.shard.inspect().waiting_bytes(), 0);
        if when_full == WhenFull::Hold {
            assert_eq!(heard.len(), CLIENTS);
            assert!(heard.values().all(|words| words == "12"), "{heard:?}");
        }
        let report = node.shard.inspect().report();
        assert_eq!(report.topics[0].messages, 0, "nothing stays behind");
        let sum = heard.values().map(|words| words.len() as u64).sum::<u64>();
        assert_eq!(sum + report.counters.dropped, 2 * CLIENTS as u64);
    }
}

#[test]
fn last_events_of_clients_wait_unencoded_and_all_arrive_last() {
    let mut node = Node::new(WhenFull::Hold);
    let silent: Vec<_> = (0..CLIENTS).map(|_| node.open(Listener::Edge(0), "/ws")).collect();
    let clients = crowd(&mut node);
    for &client in silent.iter().chain(&clients) {
        node.shard.handle_end(NOW, client, false);
        node.settle();
    }
    let bytes = node.shard.inspect().waiting_bytes();
    assert!(bytes <= WAITING_BYTES_MAX + 2 * CLIENTS * 256, "{bytes}");
    let heard = heard(&node.consume());
    let count = |words: &str| heard.values().filter(|heard| *heard == words).count();
    assert_eq!((count("close"), count("12close")), (CLIENTS, CLIENTS), "{heard:?}");
    assert_eq!(node.shard.inspect().waiting_bytes(), 0);
}

#[test]
fn a_deferred_client_is_still_answered_its_pings() {
    let mut node = Node::new(WhenFull::Hold);
    let client = node.open(Listener::Edge(0), "/ws");
    crowd(&mut node);
    node.receive(client, &[0x89, 0x80, 0, 0, 0, 0]);
    assert_eq!(node.written[&client.index], [0x8A, 0]);
}

#[test]
fn a_client_that_may_not_be_read_anyway_does_not_queue_for_a_full_topic() {
    let held = RouteSettings { path: "/held".into(), hold_until: Some("user".into()), ..route() };
    let limited = RouteSettings { path: "/limited".into(), messages: Rate::new(1), ..route() };
    let mut node = Node::with_routes(WhenFull::Hold, vec![route(), held, limited]);
    let clients = ["/held", "/limited"].map(|path| node.open(Listener::Edge(0), path));
    for client in clients {
        node.receive(client, &call("first"));
    }
    crowd(&mut node);
    let before = node.shard.inspect().counters().limits;
    for client in clients {
        node.receive(client, &call("second"));
    }
    let after = node.shard.inspect().counters().limits;
    assert_eq!(after.topic, before.topic, "neither waits for the topic");
    assert_eq!(after.messages_per_s, before.messages_per_s + 1);
    // The unread message of a held client is dropped when the client ends. A client over its rate
    // is read to the end.
    for client in clients {
        node.shard.handle_end(NOW, client, false);
        node.settle();
    }
    let consumer = node.join();
    node.now = Now { ms: 1100, us: 1_100_000, ..NOW };
    node.settle();
    let heard = heard(&node.events(consumer));
    let count = |words: &str| heard.values().filter(|heard| *heard == words).count();
    assert_eq!((count("fclose"), count("fsclose")), (1, 1), "{heard:?}");
}

#[test]
fn each_client_that_sends_to_a_full_topic_is_closed_and_counted() {
    let mut node = Node::new(WhenFull::Close);
    let clients: Vec<_> = (0..CLIENTS).map(|_| node.open(Listener::Edge(0), "/ws")).collect();
    for &client in &clients {
        node.receive(client, &[bomb(1), bomb(2)].concat());
        assert!(node.shard.inspect().waiting_bytes() <= WAITING_BYTES_MAX);
    }
    let closed = |key: &&ConnectionKey| {
        let written = node.written.get(&key.index).map_or(&[][..], |bytes| bytes);
        written.starts_with(&[0x88]) && written[2..4] == 1013u16.to_be_bytes()
    };
    let closed = clients.iter().filter(closed).count();
    assert!(closed > CLIENTS / 2, "{closed} were closed");
    assert!(node.shard.inspect().counters().refused >= closed as u64);
}

#[test]
fn a_client_that_a_full_topic_closes_is_reported_with_its_context() {
    let mut node = Node::new(WhenFull::Close);
    let client = node.open(Listener::Edge(0), "/ws");
    let backend = node.open(Listener::Api, "/ws/v1");
    node.receive(backend, &call(r#"{"m":"queue.pop","p":["t"],"i":1}"#));
    node.receive(client, &[0x81, 0x81, 0, 0, 0, 0, b'x']);
    let heard = texts(&node.written[&backend.index]).remove(1);
    let heard: Value = serde_json::from_str(&heard).expect("JSON");
    let id = heard["p"]["c"].as_str().expect("a client");
    let set = format!(
        r#"{{"m":"conn.call","p":{{"c":"{id}","f":"set_context_value","a":["k",1]}},"i":2}}"#
    );
    node.receive(backend, &call(&set));
    node.receive(backend, &call(r#"{"m":"queue.unpop","p":{},"i":3}"#));
    crowd(&mut node);
    node.receive(client, &bomb(1));
    assert!(node.written[&client.index].starts_with(&[0x88]), "the client is closed");
    let events = node.consume();
    let of_client = |event: &&Value| event["c"] == id && event["d"]["event"] == "close";
    let closed = events.iter().find(of_client).expect("its end is reported");
    assert_eq!(closed["d"]["context"], serde_json::json!({"k": 1}), "{closed}");
}

#[test]
fn a_back_end_is_warned_when_no_route_feeds_its_topic() {
    let mut node = Node::new(WhenFull::Hold);
    let pop = |node: &mut Node, topics: &str| {
        let backend = node.open(Listener::Api, "/ws/v1");
        node.receive(backend, &call(&format!(r#"{{"m":"queue.pop","p":{{"t":[{topics}]}}}}"#)));
        texts(&node.written[&backend.index]).remove(0)
    };
    let answer = |r: &str| format!(r#"{{"E":null,"r":{r},"i":null}}"#);
    assert_eq!(pop(&mut node, r#""t""#), answer(r#"{"s":true}"#));
    let warned = answer(r#"{"s":true,"w":"no route feeds \"T\""}"#);
    assert_eq!(pop(&mut node, r#""t","T""#), warned);
    let warned = answer(r#"{"s":true,"w":"no route feeds \"1\", \"2\", \"3\", \"4\" and 1 more"}"#);
    assert_eq!(pop(&mut node, r#""1","2","3","4","5""#), warned);
}
