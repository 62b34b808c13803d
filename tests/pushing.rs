//! Events that back ends push: `queue.push`. A node is a value here, and the test sets the clock.

#![forbid(unsafe_code)]

#[path = "support/http_api.rs"]
mod http_api;
#[path = "support/shard.rs"]
mod shard_value;

use gridcast::message::ConnectionKey;
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::Listener;
use gridcast::shard::settings::{QueueSettings, Settings};
use http_api::Node;
use serde_json::{Value, json};

/// The longest time until a push is answered, in milliseconds.
const ANSWER_MS: u64 = 2000;

fn settings(messages: usize, when_full: WhenFull) -> Settings {
    let settings = shard_value::settings();
    let bounds = Bounds { messages, bytes: 1 << 20 };
    Settings { queue: QueueSettings { bounds, when_full, ..settings.queue.clone() }, ..settings }
}

fn push(node: &mut Node, key: ConnectionKey, data: &str) {
    node.post(key, "/v1/queue/push", &json!({ "t": "jobs", "d": data }));
}

/// Makes a back end consume the topic with room for `window` events.
fn consume(node: &mut Node, window: u32) -> ConnectionKey {
    let key = shard_value::upgraded(&mut node.shard, node.now, Listener::Api, "/ws/v1");
    let pop = json!({ "m": "queue.pop", "p": { "t": ["jobs"], "a": true, "w": window } });
    node.receive(key, shard_value::call(&pop.to_string()));
    key
}

fn ack(node: &mut Node, key: ConnectionKey, tag: u64) {
    let ack = json!({ "m": "queue.ack", "p": { "g": tag, "u": true } });
    node.receive(key, shard_value::call(&ack.to_string()));
}

/// The content of the events that a consumer has got.
fn pushed(node: &mut Node, key: ConnectionKey) -> Vec<String> {
    let events = node.frames(key).into_iter().filter(|message| message["e"] == "queue.pop");
    events.map(|event| event["p"]["d"]["data"].as_str().expect("it was pushed").into()).collect()
}

fn done() -> Value {
    json!({ "E": null, "r": { "s": true } })
}

fn full() -> Value {
    json!({ "E": { "c": 201, "m": "the topic is full" } })
}

#[test]
fn a_push_to_a_full_topic_waits_for_room_in_its_order() {
    let mut node = Node::new(&settings(2, WhenFull::Hold));
    let [first, second, third] = [(); 3].map(|()| node.connect());
    for data in ["a", "b"] {
        push(&mut node, first, data);
        assert_eq!(node.answer(first), Some(done()));
    }
    push(&mut node, second, "c");
    push(&mut node, third, "d");
    assert_eq!((node.answer(second), node.answer(third)), (None, None));
    let consumer = consume(&mut node, 1);
    assert_eq!(pushed(&mut node, consumer), ["a"]);
    ack(&mut node, consumer, 1);
    assert_eq!((node.answer(second), node.answer(third)), (Some(done()), None));
    ack(&mut node, consumer, 2);
    assert_eq!(node.answer(third), Some(done()));
    ack(&mut node, consumer, 3);
    assert_eq!(pushed(&mut node, consumer), ["b", "c", "d"]);
}

#[test]
fn a_push_that_finds_no_room_in_time_is_refused_and_leaves_nothing() {
    let mut node = Node::new(&settings(1, WhenFull::Hold));
    let key = node.connect();
    push(&mut node, key, "a");
    assert_eq!(node.answer(key), Some(done()));
    let since_ms = node.now.ms;
    push(&mut node, key, "b");
    let answer = loop {
        node.pass_ms(10);
        if let Some(answer) = node.answer(key) {
            break answer;
        }
        assert!(node.now.ms < since_ms + ANSWER_MS);
    };
    assert_eq!(answer, full());
    let consumer = consume(&mut node, 9);
    ack(&mut node, consumer, 1);
    assert_eq!(pushed(&mut node, consumer), ["a"]);
    push(&mut node, key, "c");
    assert_eq!(node.answer(key), Some(done()));
    assert_eq!(pushed(&mut node, consumer), ["c"], "nothing waits ahead");
}

#[test]
fn a_topic_that_does_not_hold_its_clients_does_not_hold_back_ends() {
    let mut node = Node::new(&settings(1, WhenFull::Close));
    let key = node.connect();
    push(&mut node, key, "a");
    push(&mut node, key, "b");
    assert_eq!((node.answer(key), node.answer(key)), (Some(done()), Some(full())));
    let mut node = Node::new(&settings(1, WhenFull::DropOldest));
    let key = node.connect();
    push(&mut node, key, "a");
    push(&mut node, key, "b");
    assert_eq!((node.answer(key), node.answer(key)), (Some(done()), Some(done())));
    let consumer = consume(&mut node, 9);
    assert_eq!(pushed(&mut node, consumer), ["b"]);
    // What is in flight cannot be dropped.
    push(&mut node, key, "c");
    assert_eq!(node.answer(key), None);
    ack(&mut node, consumer, 1);
    assert_eq!(node.answer(key), Some(done()));
}

#[test]
fn pushes_that_wait_are_bounded_over_all_topics() {
    const WAITING_MAX: usize = 4096;
    let mut node = Node::new(&settings(1, WhenFull::Hold));
    let keys: Vec<ConnectionKey> = (0..WAITING_MAX / 512).map(|_| node.connect()).collect();
    push(&mut node, keys[0], "a");
    assert_eq!(node.answer(keys[0]), Some(done()));
    for &key in &keys {
        (0..512).for_each(|_| push(&mut node, key, "b"));
        assert_eq!(node.answer(key), None);
    }
    let last = node.connect();
    push(&mut node, last, "c");
    assert_eq!(node.answer(last), Some(full()), "there is no place to wait");
    node.pass_ms(ANSWER_MS);
    for key in keys {
        for _ in 0..512 {
            assert_eq!(node.answer(key), Some(full()));
        }
    }
}

#[test]
fn an_event_for_later_takes_its_room_at_once() {
    let mut node = Node::new(&settings(1, WhenFull::Hold));
    let consumer = consume(&mut node, 9);
    let key = node.connect();
    let later = json!({ "t": "jobs", "d": "later", "after_ms": 3000 });
    assert_eq!(node.ask(key, "/v1/queue/push", &later), done());
    push(&mut node, key, "now");
    node.pass_ms(ANSWER_MS);
    assert_eq!(node.answer(key), Some(full()));
    assert_eq!(pushed(&mut node, consumer), [""; 0]);
    node.pass_ms(1250);
    assert_eq!(pushed(&mut node, consumer), ["later"]);
}

#[test]
fn bounds_that_grow_make_room_for_a_push_that_waits() {
    let mut node = Node::new(&settings(1, WhenFull::Hold));
    let key = node.connect();
    push(&mut node, key, "a");
    push(&mut node, key, "b");
    assert_eq!((node.answer(key), node.answer(key)), (Some(done()), None));
    node.reload(&settings(2, WhenFull::Hold));
    assert_eq!(node.answer(key), Some(done()));
}

#[test]
fn an_event_that_can_never_fit_is_refused_with_its_size() {
    let mut node = Node::new(&settings(1, WhenFull::Hold));
    let key = node.connect();
    push(&mut node, key, &"x".repeat(800_000));
    let answer = node.answer(key).expect("it is refused at once");
    assert_eq!(answer["E"]["c"], 104);
    let why = answer["E"]["m"].as_str().expect("a reason");
    assert!(why.starts_with("d: the event takes 8") && why.ends_with("at most 786432"), "{why}");
}
