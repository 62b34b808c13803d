//! How a client is reported that ends while what it sent waits for room in a topic. One shard as a value;
//! the test is the topic's home, on another shard.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::address::ShardId;
use gridcast::address::placement::home_of_topic;
use gridcast::message::{
    ConnectionKey, Credit, FromFeeder, FromNode, FromShard, LocalMessage, ToFeeder, ToShard,
};
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::settings::{
    EdgeSettings, LimitSettings, QueueSettings, RouteSettings, Settings,
};
use gridcast::shard::{Action, Listener, Now, Priority, Shard};

const PING_MS: u64 = 300;
const IDLE_MS: u64 = 600;

/// How late a timer may fire.
const TICK_MS: u64 = 16;

/// Messages that a client sends before it ends. Each is `m` and its number.
const SENT: usize = 9;

/// Messages that a topic takes before its home has granted any.
const SHARE: usize = 2;

/// Bytes that a topic holds.
const TOPIC_BYTES: usize = 16_000;

/// The code of the close frame with which a client ends.
const OWN_CODE: u16 = 4321;

/// A client whose messages wait for room, but for the first ones.
struct Node {
    shard: Shard,
    now: Now,
    topic: Arc<str>,
    client: ConnectionKey,
}

impl Node {
    fn new() -> Self {
        let base = shard_value::settings();
        let is_elsewhere = |topic: &String| home_of_topic(topic, 2) == ShardId(1);
        let topic = (0..).map(|number| format!("events{number}")).find(is_elsewhere);
        let topic: Arc<str> = topic.expect("half of all topics live there").into();
        let route = RouteSettings {
            topic: Some(topic.clone()),
            tells_message: true,
            tells_close: true,
            ..shard_value::route()
        };
        let settings = Settings {
            shards: 2,
            edges: vec![EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route)] }],
            limits: LimitSettings { ping_ms: PING_MS, idle_ms: IDLE_MS, ..base.limits.clone() },
            queue: QueueSettings {
                bounds: Bounds { messages: SHARE * 4 * 2, bytes: TOPIC_BYTES },
                when_full: WhenFull::Close,
                ..base.queue.clone()
            },
            ..base
        };
        let now = at(1_000_000);
        let mut shard = shard_value::shard(&settings, now);
        let client = shard_value::upgraded(&mut shard, now, Listener::Edge(0), "/ws");
        let mut node = Self { shard, now, topic, client };
        assert!(node.written().starts_with(b"HTTP/1.1 101"));
        for number in 0..SENT {
            node.receive(&frame(0x81, format!("m{number}").as_bytes()));
        }
        assert_eq!(
            node.shard.inspect().counters().client_messages,
            SHARE as u64 + 1,
            "the others wait"
        );
        node
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.shard.handle_bytes(self.now, self.client, &mut bytes.to_vec());
    }

    fn pass_ms(&mut self, ms: u64) {
        self.now = at(self.now.ms + ms);
        self.shard.handle_turn(self.now);
    }

    fn tell(&mut self, message: FromNode) {
        self.shard.handle_message(self.now, ToShard::Node(message));
    }

    /// The topic's home says something to its feeder.
    fn tell_feeder(&mut self, message: ToFeeder) {
        let message = LocalMessage::ToFeeder(self.topic.clone(), message);
        self.shard.handle_message(self.now, ToShard::Local(ShardId(1), message));
    }

    /// Takes what is to be written to the client; its socket takes all of it.
    fn written(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some((key, batch)) = self.shard.poll_write(Priority::Urgent) {
            let before = all.len();
            all.extend(batch.iter().flat_map(|chunk| chunk.bytes()));
            self.shard.recycle(batch);
            self.shard.handle_written(self.now, key, all.len() - before, true);
        }
        all
    }

    /// The client sends `last` and its close frame, which is answered, and its socket is closed.
    fn close(&mut self, last: &[u8]) {
        self.receive(last);
        self.receive(&frame(0x88, &OWN_CODE.to_be_bytes()));
        let answer = [&[0x88, 2][..], &OWN_CODE.to_be_bytes()].concat();
        assert_eq!(self.written(), answer);
        self.end(false);
    }

    /// The client's socket is closed.
    fn end(&mut self, is_broken: bool) {
        self.shard.handle_end(self.now, self.client, is_broken);
        let mut actions = std::iter::from_fn(|| self.shard.poll_action());
        assert_eq!(actions.by_ref().last(), Some(Action::Close(self.client)));
        self.shard.handle_closed(self.client);
    }

    /// There is room: the messages that the topic gets now, by number, and what it gets behind them.
    fn pushed(&mut self) -> (Vec<usize>, Vec<String>) {
        let credit = Credit { messages: 100, bytes: 10 * TOPIC_BYTES };
        self.tell_feeder(ToFeeder::Credit(credit));
        (0..100).for_each(|_| self.pass_ms(1));
        let (mut numbers, mut others) = (Vec::new(), Vec::new());
        while let Some(message) = self.shard.poll_message() {
            let FromShard::Local(_, LocalMessage::FromFeeder(_, FromFeeder::Push(event))) = message
            else {
                continue;
            };
            let event = String::from_utf8_lossy(event.frame.bytes()).into_owned();
            let is_number = |number: &usize| event.contains(&format!("\"m{number}\""));
            match (0..SENT).find(is_number) {
                Some(number) if others.is_empty() => numbers.push(number),
                _ => others.push(event),
            }
        }
        (numbers, others)
    }

    /// Checks that so many of the messages come, and behind them the client's end with this code.
    fn check(&mut self, messages: usize, code: u16, reason: &str) {
        let (numbers, others) = self.pushed();
        assert_eq!(numbers, (0..messages).collect::<Vec<_>>());
        let end = format!(r#""event":"close","code":{code},"reason":"{reason}"#);
        assert!(others.len() == 1 && others[0].contains(&end), "{end}: {others:?}");
        assert_eq!(
            (self.shard.inspect().connections(), self.shard.inspect().waiting_bytes()),
            (0, 0)
        );
    }
}

fn at(ms: u64) -> Now {
    Now { ms, us: ms * 1000, unix_ms: 1_790_000_000_000 + ms }
}

/// A frame with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&shard_value::client_head(first, payload.len())[..], payload].concat()
}

// All that it sent is read.

#[test]
fn a_close_frame_is_reported_with_its_own_code_behind_all_messages() {
    let mut node = Node::new();
    node.close(b"");
    node.check(SENT, OWN_CODE, "");
}

#[test]
fn a_connection_that_ends_is_reported_behind_all_messages() {
    for (is_broken, reason) in
        [(false, "connection ended without a close frame"), (true, "connection broke")]
    {
        let mut node = Node::new();
        node.end(is_broken);
        node.check(SENT, 1006, reason);
    }
}

#[test]
fn silence_is_reported_behind_all_messages() {
    let mut node = Node::new();
    node.pass_ms(PING_MS + TICK_MS);
    assert_eq!(node.written(), [0x89, 0]);
    node.pass_ms(IDLE_MS - PING_MS + TICK_MS);
    assert!(node.written().starts_with(&[0x88]));
    node.end(false);
    node.check(SENT, 1001, "no answer to ping");
}

#[test]
fn a_node_that_goes_down_leaves_it_the_time_for_all_messages() {
    let mut node = Node::new();
    node.close(b"");
    node.tell(FromNode::Drain { over_ms: 100 });
    (0..20).for_each(|_| node.pass_ms(10));
    node.check(SENT, OWN_CODE, "");
}

// Not all that it sent is read: the close event says why.

#[test]
fn a_topic_that_refuses_what_waits_is_the_reason() {
    let mut node = Node::new();
    node.close(b"");
    node.tell_feeder(ToFeeder::Refused);
    node.check(SHARE, 1013, "topic is full");
}

#[test]
fn a_message_that_is_too_large_for_a_topic_is_the_reason() {
    let mut node = Node::new();
    node.close(&frame(0x81, &[b'x'; TOPIC_BYTES / 4 * 3]));
    node.check(SENT, 1009, "message too large");
}

#[test]
fn a_violation_of_the_protocol_is_the_reason() {
    let mut node = Node::new();
    node.close(&frame(0x81, &[0xFF]));
    node.check(SENT, 1007, "text is not valid UTF-8");
}

#[test]
fn a_node_whose_time_is_up_is_the_reason() {
    let mut node = Node::new();
    node.close(b"");
    node.tell(FromNode::Drain { over_ms: 0 });
    node.pass_ms(1);
    node.tell(FromNode::DrainBackends);
    node.pass_ms(1);
    node.check(SHARE + 1, 1001, "server is shutting down");
}
