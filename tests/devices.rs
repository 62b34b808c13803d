//! The order of what a device gets that speaks the device protocol. A node is a value here: the test stores events
//! and lets the grid know of channels when it likes.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::collections::BTreeMap;
use std::sync::Arc;

use gridcast::message::{
    ConnectionKey, FromLog, FromMesh, FromNode, FromShard, InterestChange, LogFacts, LogId,
    LogNews, MessageNumber, ToMesh, ToShard,
};
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::settings::{
    EdgeSettings, Process, QueueSettings, RouteSettings, Settings, TopicRules,
};
use gridcast::shard::{Chunk, Listener, Now, Shard, ShardRequest};
use serde_json::{Value, json};
use shard_value::{call, client_head};

const NOW: Now = Now { ms: 1_000_000, us: 1_000_000_000, unix_ms: 1_790_000_000_000 };

/// The topic on disk of the route `/ws`.
const TOPIC: &str = "t";

/// The unanswered calls at which a device is not read from any more.
const WAITING_MAX: usize = 128;

/// A node of one shard, and what it has written to each connection.
struct Node {
    shard: Shard,
    written: BTreeMap<u32, Vec<u8>>,
    // The changes of interest that were told to the mesh.
    changes: Vec<InterestChange>,
}

fn settings() -> Settings {
    let settings = shard_value::settings();
    let route = RouteSettings {
        topic: Some(TOPIC.into()),
        tells_message: true,
        tells_close: true,
        ..shard_value::route()
    };
    let edge = EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route)] };
    Settings { edges: vec![edge], ..settings }
}

/// The settings of a node whose topic is on disk.
fn on_disk() -> Settings {
    let settings = settings();
    let rules = TopicRules { is_on_disk: true, ..settings.queue.rules_of(TOPIC) };
    let facts = LogFacts {
        id: LogId(1),
        stored: MessageNumber(0),
        next_delayed: Default::default(),
        held: Default::default(),
        unsettled: vec![MessageNumber(0)],
    };
    let rules = Arc::new([(Box::from(TOPIC), rules)].into_iter().collect());
    Settings {
        queue: QueueSettings { rules, ..settings.queue.clone() },
        process: Process {
            logs: Arc::new([(TOPIC.into(), facts)].into_iter().collect()),
            ..Process::default()
        },
        ..settings
    }
}

impl Node {
    fn new(settings: &Settings) -> Self {
        Self {
            shard: shard_value::shard(settings, NOW),
            written: BTreeMap::new(),
            changes: Vec::new(),
        }
    }

    /// Opens the connection of a device, whose handshake is answered.
    fn device(&mut self, path: &str) -> ConnectionKey {
        let remote = ([127, 0, 0, 1], 50_000).into();
        let listener = Listener::Edge(0);
        let key = self.shard.handle_accepted(NOW, listener, remote).expect("it is accepted");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: gridcast.v1\r\n\r\n"
        );
        self.receive(key, request.into_bytes());
        key
    }

    fn backend(&mut self) -> ConnectionKey {
        let key = shard_value::upgraded(&mut self.shard, NOW, Listener::Api, "/ws/v1");
        self.settle();
        self.written.remove(&key.index);
        key
    }

    fn receive(&mut self, key: ConnectionKey, mut bytes: Vec<u8>) {
        self.shard.handle_bytes(NOW, key, &mut bytes);
        self.settle();
    }

    fn call(&mut self, key: ConnectionKey, method: &str, params: &Value, id: usize) {
        let text = json!({ "m": method, "p": params, "i": id }).to_string();
        self.receive(key, call(&text));
    }

    fn settle(&mut self) {
        while let Some(message) = self.shard.poll_message() {
            if let FromShard::Mesh(ToMesh::Interest { change, .. }) = message {
                self.changes.push(change);
            }
        }
        shard_value::settle(&mut self.shard, NOW, &mut self.written);
    }

    /// The events that the shard wants stored now.
    fn unstored(&mut self) -> usize {
        let requests = std::iter::from_fn(|| self.shard.poll_request());
        let changes = requests.map(|request| match request {
            ShardRequest::Log(log) => log.changes.len(),
            _ => panic!("not a change of the log"),
        });
        changes.sum()
    }

    /// The log has stored this number of events.
    fn store(&mut self, events: u64) {
        let news = LogNews { stored: events, ..LogNews::default() };
        let message = FromNode::Log(Box::new(FromLog { topic: TOPIC.into(), news }));
        self.shard.handle_message(NOW, ToShard::Node(message));
        self.settle();
    }

    /// Takes what was written to a connection: texts of messages, and `close CODE`.
    fn taken(&mut self, key: ConnectionKey) -> Vec<String> {
        let bytes = self.written.remove(&key.index).unwrap_or_default();
        let mut rest = match bytes.strip_prefix(b"HTTP/1.1 101") {
            None => &bytes[..],
            Some(_) => {
                let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a response");
                &bytes[end + 4..]
            }
        };
        let mut texts = Vec::new();
        while let [first, second, ..] = *rest {
            let (length, at) = match second {
                126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                length => (length.into(), 2),
            };
            let payload = &rest[at..at + length];
            texts.push(match first {
                0x88 => format!("close {}", u16::from_be_bytes([payload[0], payload[1]])),
                _ => String::from_utf8_lossy(payload).into_owned(),
            });
            rest = &rest[at + length..];
        }
        texts
    }
}

fn done(id: usize) -> String {
    format!(r#"{{"E":null,"r":{{"s":true}},"i":{id}}}"#)
}

fn subscribed(channel: &str, id: usize) -> String {
    format!(r#"{{"E":null,"r":{{"s":true,"channels":{{"{channel}":{{}}}}}},"i":{id}}}"#)
}

fn message(channel: &str, data: &str) -> String {
    format!(r#"{{"e":"message","p":{{"c":"{channel}","d":"{data}"}}}}"#)
}

fn publish(node: &mut Node, backend: ConnectionKey, channel: &str, data: &str) {
    node.call(backend, "mesh.publish", &json!({ "c": channel, "d": data }), 0);
}

#[test]
fn a_push_is_answered_when_its_event_is_stored_and_later_calls_after_it() {
    let mut node = Node::new(&on_disk());
    let device = node.device("/ws");
    node.call(device, "push", &json!({ "d": "a" }), 1);
    node.call(device, "nonsense", &json!({}), 2);
    node.call(device, "push", &json!({ "d": "b" }), 3);
    assert_eq!(node.taken(device), Vec::<String>::new());
    assert_eq!(node.unstored(), 2);
    node.store(1);
    let answers = node.taken(device);
    assert_eq!((answers.len(), &answers[0]), (2, &done(1)));
    assert!(answers[1].starts_with(r#"{"E":{"c":101,"#) && answers[1].ends_with(r#","i":2}"#));
    node.store(1);
    assert_eq!(node.taken(device), [done(3)]);
}

#[test]
fn a_subscribe_behind_a_push_waits_for_its_answer_and_messages_come_after_that_of_the_subscribe() {
    let mut node = Node::new(&on_disk());
    let (device, backend) = (node.device("/ws"), node.backend());
    node.call(device, "push", &json!({ "d": "a" }), 1);
    node.call(device, "subscribe", &json!({ "c": ["room"] }), 2);
    node.call(device, "push", &json!({ "d": "b" }), 3);
    publish(&mut node, backend, "room", "early");
    assert_eq!(node.taken(backend), [r#"{"E":null,"r":{"s":0,"f":0},"i":0}"#]);
    assert_eq!((node.taken(device).len(), node.unstored()), (0, 1), "the second push is not read");
    node.store(1);
    publish(&mut node, backend, "room", "late");
    assert_eq!(node.taken(device), [done(1), subscribed("room", 2), message("room", "late")]);
    assert_eq!(node.unstored(), 1);
    node.store(1);
    assert_eq!(node.taken(device), [done(3)]);
}

#[test]
fn a_device_with_many_unanswered_calls_is_not_read_from_until_some_are_answered() {
    let mut node = Node::new(&on_disk());
    let device = node.device("/ws");
    let mut stored = 0;
    for id in 0..WAITING_MAX + 10 {
        node.call(device, "push", &json!({ "d": "x" }), id);
    }
    assert_eq!(node.unstored(), WAITING_MAX);
    for id in 0..WAITING_MAX / 2 {
        assert_eq!(node.unstored(), 0, "{stored} are stored");
        node.store(1);
        stored += 1;
        assert_eq!(node.taken(device), [done(id)]);
    }
    assert_eq!(node.unstored(), 10);
    node.store((WAITING_MAX / 2 + 10) as u64);
    assert_eq!(node.taken(device).len(), WAITING_MAX / 2 + 10);
}

#[test]
fn the_calls_of_a_device_that_has_left_are_carried_out_and_not_answered() {
    let mut node = Node::new(&on_disk());
    let device = node.device("/ws");
    for id in 0..WAITING_MAX + 10 {
        node.call(device, "push", &json!({ "d": "x" }), id);
    }
    assert_eq!(node.unstored(), WAITING_MAX);
    let close = [&client_head(0x88, 2)[..], &1000u16.to_be_bytes()].concat();
    node.receive(device, close);
    // The others, and the close event.
    assert_eq!(node.unstored(), 11);
    assert_eq!(node.taken(device), ["close 1000"]);
    node.store((WAITING_MAX + 11) as u64);
    assert_eq!(node.taken(device), Vec::<String>::new());
}

#[test]
fn a_node_that_shuts_down_gives_the_receipts_first() {
    let mut node = Node::new(&on_disk());
    let device = node.device("/ws");
    node.call(device, "push", &json!({ "d": "a" }), 1);
    let drain = FromNode::Drain { over_ms: 0 };
    node.shard.handle_message(NOW, ToShard::Node(drain));
    node.settle();
    assert_eq!(node.taken(device), Vec::<String>::new());
    node.store(1);
    let written = node.taken(device);
    assert_eq!((&written[0], closing(&written[1..]).0), (&done(1), 1001));
}

/// Reads the hint before a close: the code, and the time to come back after.
#[track_caller]
fn closing(written: &[String]) -> (u64, u64) {
    let [hint, close] = written else { panic!("not a hint and a close frame: {written:?}") };
    let hint: Value = serde_json::from_str(hint).expect("JSON");
    assert_eq!(hint["e"], "closing");
    let [code, after_ms] =
        ["code", "after_ms"].map(|key| hint["p"][key].as_u64().expect("a number"));
    assert_eq!(hint, json!({ "e": "closing", "p": { "code": code, "after_ms": after_ms } }));
    assert_eq!(*close, format!("close {code}"));
    (code, after_ms)
}

#[test]
fn devices_of_a_node_that_shuts_down_are_told_to_come_back_spread_over_a_window() {
    let mut node = Node::new(&settings());
    let devices: Vec<_> = (0..200).map(|_| node.device("/ws")).collect();
    let plain = shard_value::upgraded(&mut node.shard, NOW, Listener::Edge(0), "/ws");
    node.settle();
    node.written.clear();
    node.shard.handle_message(NOW, ToShard::Node(FromNode::Drain { over_ms: 0 }));
    node.settle();
    assert_eq!(node.taken(plain), ["close 1001"], "only the device protocol has hints");
    let mut by_quarter = [0; 4];
    for device in devices {
        let (code, after_ms) = closing(&node.taken(device));
        assert_eq!(code, 1001);
        by_quarter[usize::try_from(after_ms / 250).expect("it is small")] += 1;
    }
    assert!(by_quarter.iter().all(|count| (20..80).contains(count)), "{by_quarter:?}");
}

#[test]
fn a_device_whose_topic_takes_no_more_is_told_and_closed() {
    let bounds = Bounds { messages: 4, bytes: 1 << 20 };
    let settings = settings();
    let queue = QueueSettings { bounds, when_full: WhenFull::Close, ..settings.queue.clone() };
    let mut node = Node::new(&Settings { queue, ..settings });
    let device = node.device("/ws");
    for id in 0..5 {
        node.call(device, "push", &json!({ "d": "x" }), id);
    }
    let answers = node.taken(device);
    assert_eq!(answers[..4], [0, 1, 2, 3].map(done));
    assert!(answers[4].starts_with(r#"{"E":{"c":201,"#) && answers[4].ends_with(r#","i":4}"#));
    assert_eq!(closing(&answers[5..]).0, 1013);
}

#[test]
fn the_output_of_a_device_is_withheld_until_the_grid_knows_of_its_channels() {
    let mut node = Node::new(&Settings { has_mesh: true, ..settings() });
    let device = node.device("/ws");
    node.taken(device);
    for (id, channel) in ["a", "b"].into_iter().enumerate() {
        node.call(device, "subscribe", &json!({ "c": [channel] }), id);
    }
    assert_eq!(node.changes, [1, 2].map(InterestChange));
    node.call(device, "push", &json!({ "d": "x" }), 2);
    assert_eq!(node.taken(device), Vec::<String>::new());
    for (change, written) in
        [(1, vec![]), (2, vec![subscribed("a", 0), subscribed("b", 1), done(2)])]
    {
        let known = FromMesh::InterestKnown(InterestChange(change));
        node.shard.handle_message(NOW, ToShard::Mesh(known));
        node.settle();
        assert_eq!(node.taken(device), written);
    }
}

#[test]
fn all_devices_of_a_shard_share_one_frame_in_its_envelope() {
    let mut node = Node::new(&settings());
    let devices = [(); 3].map(|()| node.device("/ws?channels=a"));
    let backend = node.backend();
    let text = json!({ "m": "mesh.publish", "p": { "c": "a", "d": "x" }, "i": 1 }).to_string();
    node.shard.handle_bytes(NOW, backend, &mut call(&text));
    let mut frames = Vec::new();
    while let Some((key, batch)) = shard_value::poll_write(&mut node.shard) {
        if devices.contains(&key) {
            let [Chunk::Shared(frame)] = &Vec::from(batch)[..] else { panic!("not one frame") };
            frames.push(frame.clone());
        }
    }
    assert_eq!(frames.len(), devices.len());
    assert_eq!(frames[0].payload(), message("a", "x").as_bytes());
    assert!(frames.iter().all(|frame| std::rc::Rc::ptr_eq(frame, &frames[0])));
}
