//! Events that back ends take over HTTP: `queue.take`, `queue.ack` and `queue.nack`. A node is a value here, and
//! the test sets the clock.

#![forbid(unsafe_code)]

#[path = "support/http_api.rs"]
mod http_api;
#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::message::{ConnectionKey, FromNode, ToShard};
use gridcast::queue::topic::Policy;
use gridcast::shard::settings::{QueueSettings, Settings, TopicRules};
use http_api::Node;
use serde_json::{Value, json};

/// The time to acknowledge an event, in milliseconds.
const ACK_MS: u64 = 30_000;

fn push(node: &mut Node, key: ConnectionKey, data: &str, order: &str) {
    let answer = node.ask(key, "/v1/queue/push", &json!({ "t": "jobs", "d": data, "k": order }));
    assert_eq!(answer["E"], Value::Null, "{answer}");
}

/// A node with these events in the topic `jobs`, and a connection to it.
fn node_with(events: &[&str]) -> (Node, ConnectionKey) {
    let mut node = Node::new(&shard_value::settings());
    let key = node.connect();
    events.iter().for_each(|data| push(&mut node, key, data, data));
    (node, key)
}

fn start_take(node: &mut Node, key: ConnectionKey, max: u32, wait_ms: u64) {
    let params = json!({ "t": ["jobs"], "max": max, "wait_ms": wait_ms });
    node.post(key, "/v1/queue/take", &params);
}

/// The events in the answer to a take.
#[track_caller]
fn events(answer: &Value) -> Vec<Value> {
    answer["r"]["events"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
}

/// Takes what is there.
#[track_caller]
fn take(node: &mut Node, key: ConnectionKey, max: u32) -> Vec<Value> {
    start_take(node, key, max, 0);
    for _ in 0..20 {
        if let Some(answer) = node.answer(key) {
            return events(&answer);
        }
        node.pass_ms(10);
    }
    panic!("a take that does not wait is answered soon");
}

fn data(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["d"]["data"].as_str().expect("it was pushed")).collect()
}

fn tags(events: &[Value]) -> Vec<Value> {
    events.iter().map(|event| event["g"].clone()).collect()
}

#[track_caller]
fn ack(node: &mut Node, key: ConnectionKey, tags: Value) -> Value {
    node.ask(key, "/v1/queue/ack", &json!({ "g": tags }))
}

#[track_caller]
fn nack(node: &mut Node, key: ConnectionKey, tags: &[Value], after_ms: u64) -> Value {
    node.ask(key, "/v1/queue/nack", &json!({ "g": tags, "after_ms": after_ms }))
}

fn settled(stale: &[Value]) -> Value {
    json!({ "E": null, "r": { "s": true, "stale": stale } })
}

#[test]
fn events_are_taken_up_to_a_number_and_stay_taken_until_they_are_acknowledged() {
    let (mut node, key) = node_with(&["a", "b", "c"]);
    let first = take(&mut node, key, 2);
    assert_eq!(data(&first), ["a", "b"]);
    assert_eq!((&first[0]["c"], &first[0]["t"]), (&json!(""), &json!("jobs")));
    assert_eq!(first[0].get("redelivered"), None);
    let second = take(&mut node, key, 100);
    assert_eq!(data(&second), ["c"], "what is taken is not taken again");
    assert_eq!(ack(&mut node, key, tags(&first).into()), settled(&[]));
    assert_eq!(ack(&mut node, key, second[0]["g"].clone()), settled(&[]));
    node.pass_ms(2 * ACK_MS);
    assert!(take(&mut node, key, 100).is_empty(), "all is acknowledged");
    assert_eq!(node.shard.inspect().queued_messages(), 0);
}

#[test]
fn an_event_that_is_not_acknowledged_in_time_is_taken_again_and_the_old_tag_settles_nothing() {
    let (mut node, key) = node_with(&["a"]);
    let first = take(&mut node, key, 1);
    node.pass_ms(ACK_MS - 1000);
    assert!(take(&mut node, key, 1).is_empty());
    node.pass_ms(1500);
    let second = take(&mut node, key, 1);
    assert_eq!((data(&second), &second[0]["redelivered"]), (vec!["a"], &json!(true)));
    assert_ne!(second[0]["g"], first[0]["g"]);
    assert_eq!(ack(&mut node, key, first[0]["g"].clone()), settled(&tags(&first)));
    assert_eq!(nack(&mut node, key, &tags(&first), 0), settled(&tags(&first)));
    let both = [tags(&first), tags(&second), tags(&second)].concat();
    assert_eq!(ack(&mut node, key, both.into()), settled(&tags(&first)), "a tag counts once");
    assert_eq!(ack(&mut node, key, tags(&second).into()), settled(&tags(&second)));
}

#[test]
fn an_event_that_is_given_back_comes_again_before_later_ones_of_its_key() {
    let mut node = Node::new(&shard_value::settings());
    let key = node.connect();
    ["a", "b", "c"].iter().for_each(|data| push(&mut node, key, data, "one"));
    push(&mut node, key, "x", "other");
    let first = take(&mut node, key, 1);
    assert_eq!(data(&first), ["a"]);
    let others = take(&mut node, key, 100);
    assert_eq!(data(&others), ["x"], "later events of the key wait for the one that is taken");
    assert_eq!(nack(&mut node, key, &tags(&first), 5000), settled(&[]));
    assert!(take(&mut node, key, 100).is_empty(), "the key is delayed");
    node.pass_ms(5500);
    let again = take(&mut node, key, 100);
    assert_eq!(data(&again), ["a", "b", "c"]);
    let are_again: Vec<bool> = again.iter().map(|event| event["redelivered"] == true).collect();
    assert_eq!(are_again, [true, false, false]);
}

#[test]
fn a_take_waits_for_the_first_event_and_not_longer_than_asked() {
    let (mut node, key) = node_with(&[]);
    start_take(&mut node, key, 10, 20_000);
    node.pass_ms(19_000);
    assert_eq!(node.answer(key), None);
    let producer = node.connect();
    push(&mut node, producer, "a", "a");
    let answer = node.answer(key).expect("the event came");
    assert_eq!(data(&events(&answer)), ["a"]);
    start_take(&mut node, key, 10, 20_000);
    node.pass_ms(19_990);
    assert_eq!(node.answer(key), None);
    node.pass_ms(20);
    assert_eq!(node.answer(key).map(|answer| events(&answer)), Some(vec![]));
}

#[test]
fn requests_behind_a_take_are_answered_after_it() {
    let (mut node, key) = node_with(&[]);
    start_take(&mut node, key, 10, 20_000);
    node.post(key, "/v1/queue/push", &json!({ "t": "jobs", "d": "a" }));
    let answer = node.answer(key).expect("its own push ends the take");
    assert_eq!(data(&events(&answer)), ["a"]);
    assert_eq!(node.answer(key).expect("the push is answered next")["r"]["s"], true);
}

#[test]
fn a_peer_that_goes_away_while_it_waits_takes_nothing() {
    for is_broken in [true, false] {
        let (mut node, producer) = node_with(&[]);
        let gone = node.connect();
        start_take(&mut node, gone, 10, 20_000);
        node.shard.handle_end(node.now, gone, is_broken);
        node.pass_ms(10);
        push(&mut node, producer, "a", "a");
        let taken = take(&mut node, producer, 10);
        assert_eq!(data(&taken), ["a"], "broken: {is_broken}");
        assert_eq!(taken[0].get("redelivered"), None, "the event was never handed out");
        assert_eq!(node.shard.inspect().waiting_takes(), 0);
    }
}

#[test]
fn an_answer_that_was_not_written_leaves_its_events_to_others() {
    let (mut node, key) = node_with(&["a", "b"]);
    let gone = node.connect();
    let body = json!({ "t": ["jobs"], "max": 10, "wait_ms": 0 }).to_string();
    let head = format!(
        "POST /v1/queue/take HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}",
        body.len()
    );
    let mut request = format!("{head}\r\n\r\n{body}").into_bytes();
    node.shard.handle_bytes(node.now, gone, &mut request);
    // The answer is ready after a few turns. Its batch is taken out, and the socket breaks.
    let batch = (0..10).find_map(|_| {
        node.shard.handle_turn(node.now);
        shard_value::poll_write(&mut node.shard)
    });
    let (written_to, batch) = batch.expect("the take is answered");
    assert_eq!(written_to, gone);
    node.shard.handle_written(node.now, gone, shard_value::bytes_of(&batch).len() - 1, false);
    node.shard.handle_end(node.now, gone, true);
    node.shard.recycle(batch);
    node.pass_ms(10);
    let taken = take(&mut node, key, 10);
    assert_eq!(data(&taken), ["a", "b"]);
    assert_eq!(ack(&mut node, key, tags(&taken).into()), settled(&[]));
}

#[test]
fn an_upgrade_behind_takes_ends_them_and_leaves_no_entry() {
    let upgrade = "GET /ws/v1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for turns in [0, 1, 2, 3, 4, 10] {
        let (mut node, key) = node_with(&["a"]);
        let body = json!({ "t": ["jobs"], "max": 10, "wait_ms": 5000 }).to_string();
        let take = format!(
            "POST /v1/queue/take HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let upgrading = node.connect();
        node.shard.handle_bytes(node.now, upgrading, &mut take.into_bytes());
        (0..turns).for_each(|_| node.shard.handle_turn(node.now));
        node.receive(upgrading, upgrade.into());
        node.pass_ms(100);
        assert_eq!(node.shard.inspect().waiting_takes(), 0, "after {turns} turns");
        let answer = node.answer(upgrading).expect("the take is answered before the upgrade");
        let got = events(&answer);
        // An event that was not in the answer is there for others at once.
        assert_eq!(self::take(&mut node, key, 10).len() + got.len(), 1, "after {turns} turns");
        assert_eq!(node.shard.inspect().waiting_takes(), 0, "after {turns} turns");
    }
}

#[test]
fn groups_are_taken_from_apart_and_tries_end_in_the_dead_topic() {
    let plain = shard_value::settings();
    let rules = TopicRules {
        groups: vec!["billing".into()],
        policy: Policy { tries: 2, ..Policy::default() },
        dead: Some("jobs.dead".into()),
        ..plain.queue.rules_of("jobs")
    };
    let rules = Arc::new([("jobs".into(), rules)].into_iter().collect());
    let settings = Settings { queue: QueueSettings { rules, ..plain.queue.clone() }, ..plain };
    let mut node = Node::new(&settings);
    let key = node.connect();
    push(&mut node, key, "a", "a");
    let default = take(&mut node, key, 10);
    assert_eq!(data(&default), ["a"]);
    assert_eq!(ack(&mut node, key, tags(&default).into()), settled(&[]));
    let of_billing = json!({ "t": ["jobs"], "group": "billing", "wait_ms": 1000 });
    for _ in 0..2 {
        let taken = events(&node.ask(key, "/v1/queue/take", &of_billing));
        assert_eq!(data(&taken), ["a"]);
        assert_eq!(nack(&mut node, key, &tags(&taken), 0), settled(&[]));
    }
    let dead = json!({ "t": ["jobs.dead"], "wait_ms": 1000 });
    let dead = events(&node.ask(key, "/v1/queue/take", &dead));
    assert_eq!(dead[0]["dead"], json!({ "t": "jobs", "tries": 2, "why": "nack" }));
    let unknown = node.ask(key, "/v1/queue/take", &json!({ "t": ["jobs"], "group": "audit" }));
    let why = "the topic \"jobs\" has no group \"audit\" on this node";
    assert_eq!(unknown, json!({ "E": { "c": 201, "m": why } }));
    assert_eq!(node.shard.inspect().waiting_takes(), 0);
}

#[test]
fn a_node_that_drains_answers_takes_without_waiting() {
    let (mut node, key) = node_with(&[]);
    start_take(&mut node, key, 10, 20_000);
    let drain = FromNode::Drain { over_ms: 1000 };
    node.shard.handle_message(node.now, ToShard::Node(drain));
    node.pass_ms(10);
    assert_eq!(node.answer(key).map(|answer| events(&answer)), Some(vec![]));
    start_take(&mut node, key, 10, 20_000);
    node.pass_ms(100);
    assert_eq!(node.answer(key).map(|answer| events(&answer)), Some(vec![]));
}

#[test]
fn takes_that_wait_are_bounded() {
    const TAKES_MAX: usize = 4096;
    let (mut node, key) = node_with(&[]);
    let keys: Vec<ConnectionKey> = (0..TAKES_MAX / 512).map(|_| node.connect()).collect();
    for (number, &key) in keys.iter().enumerate() {
        for _ in 0..512 {
            // A group of a topic has at most 1024 consumers.
            let params = json!({ "t": [format!("jobs{}", number / 2)], "wait_ms": 20_000 });
            node.post(key, "/v1/queue/take", &params);
        }
        assert_eq!(node.answer(key), None);
    }
    assert_eq!(node.shard.inspect().waiting_takes(), TAKES_MAX);
    let refused = node.ask(key, "/v1/queue/take", &json!({ "t": ["jobs"], "wait_ms": 20_000 }));
    assert_eq!(refused["E"]["c"], 103);
    node.shard.handle_end(node.now, keys[0], true);
    node.pass_ms(10);
    assert_eq!(node.shard.inspect().waiting_takes(), TAKES_MAX - 512);
    assert!(take(&mut node, key, 1).is_empty(), "there is room again");
}

#[test]
fn a_tag_of_an_earlier_start_or_a_damaged_one_is_told_apart() {
    let (mut node, key) = node_with(&["a"]);
    let taken = take(&mut node, key, 1);
    let mut settings = shard_value::settings();
    settings.process.first_unix_ms = Some(1_800_000_000_000);
    let mut restarted = Node::new(&settings);
    let other = restarted.connect();
    assert_eq!(ack(&mut restarted, other, tags(&taken).into()), settled(&tags(&taken)));
    for wrong in
        [json!("xyz"), json!([]), json!(5), json!([5]), json!(["xyz"]), json!([taken[0]["g"], 5])]
    {
        let answer = ack(&mut node, key, wrong.clone());
        assert_eq!(answer["E"]["c"], 101, "{wrong}: {answer}");
    }
}
